"""Dropout layers: new ones by kind, which modules are such layers, and the probability of those that a model has.

The layers are those of `homeostat.nn`; the one defined here only knows where the channels are. Random in training: a
seed per call from torch's global generator decides the mask.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from homeostat import nn as fast
from homeostat.errors import invalid, invalid_type, unknown
from homeostat.nn.functional import dropout1d

KINDS: tuple[str, ...] = ("element", "channel", "alpha", "gaussian")
"""The kinds that `make_dropout` knows."""

_CHANNEL: dict[int, type[nn.Module]] = {1: fast.Dropout1d, 2: fast.Dropout2d, 3: fast.Dropout3d}
_CONNECTED = (fast.DropConnectLinear, fast.DropConnectConv1d, fast.DropConnectConv2d, fast.DropConnectConv3d)


class LastAxisDropout(fast.Dropout):
    """Channel dropout of (N, ..., C): a feature of an example is dropped at all positions. For (N, C) it is Dropout."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop features of the last axis; the shape stays."""
        if input.dim() < 3:
            return super().forward(input)
        first = input.movedim(-1, 1)
        dropped = dropout1d(first.flatten(2), self.p, self.training, mode=self.mode, backend=self.backend)
        output = dropped.reshape(first.shape).movedim(1, -1)
        return input.copy_(output) if self.inplace and self.training else output


def make_dropout(p: float, kind: str = "element", dims: int = 0) -> nn.Module:
    """A new dropout layer.

    | kind | in training |
    |---|---|
    | element | single values are zero with probability p, the others divided by 1 - p |
    | channel | the same for whole channels: Dropout1d, 2d, 3d for (N, C, *spatial); for dims = 0 of (N, ..., C) |
    | alpha | single values are at SELU's limit, and the rest keeps mean 0 and variance 1; for SELU networks |
    | gaussian | values are multiplied by normal noise with mean 1 and variance p / (1 - p) |

    Args:
        p: the probability of dropping a unit, in [0, 1]; below 1 for gaussian.
        kind: element, channel, alpha or gaussian.
        dims: for channel: 0 behind a Linear, 1, 2 or 3 behind a convolution.
    Raises: InvalidValue if p lies outside [0, 1], for an unknown kind and other dims.
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, where p is that of keeping; Tompson
        et al. 2015, arXiv:1411.4280 (channel); Klambauer et al. 2017, arXiv:1706.02515 (alpha).
    Example:
        >>> make_dropout(0.2), make_dropout(0.2, "channel", dims=2)
        (Dropout(p=0.2, inplace=False), Dropout2d(p=0.2, inplace=False))
    """
    check_probability("make_dropout", p)
    if kind not in KINDS:
        raise unknown("make_dropout", "kind", kind, KINDS)
    if isinstance(dims, bool) or dims not in (0, 1, 2, 3):
        raise invalid("make_dropout", "dims", "be 0, 1, 2 or 3", dims, "0 is for Linear, 2 for images.")
    if kind == "alpha":
        return fast.AlphaDropout(p)
    if kind == "gaussian":
        return fast.GaussianDropout(p)
    if kind == "channel":
        return LastAxisDropout(p) if dims == 0 else _CHANNEL[dims](p)
    return fast.Dropout(p)


def dropout_kind(module: nn.Module) -> str | None:
    """The kind of a dropout layer, in the words of `make_dropout`; None for any other module.

    Example:
        >>> dropout_kind(nn.Dropout2d()), dropout_kind(nn.FeatureAlphaDropout()), dropout_kind(nn.Linear(2, 2))
        ('channel', 'alpha', None)
    """
    if not is_dropout(module):
        return None
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
        return "alpha"
    if isinstance(module, fast.GaussianDropout):
        return "gaussian"
    return "channel" if isinstance(module, nn.Dropout1d | nn.Dropout2d | nn.Dropout3d | LastAxisDropout) else "element"


def set_p_(model: nn.Module, p: float | Mapping[str, float]) -> list[str]:
    """Give the dropout layers of a model the probability p: those for values, channels, alpha, noise and weights.

    Left alone is stochastic depth (`DropPath`), whose probability belongs to a depth, see `drop_path_rates`; so are
    attention layers that drop attention weights and recurrent layers that drop between layers: their number is no
    dropout module.

    Args:
        model: changed in place; a layer that has p already is not counted.
        p: the probability of dropping, in [0, 1]; with 0 the layers stay and do nothing. A mapping from layers' names
            gives some their own.
    Returns: the names of the layers that changed.
    Raises: InvalidValue if p lies outside [0, 1], for 1 with Gaussian dropout, and for names of no such layer.
    Example:
        >>> model = nn.Sequential(nn.Dropout(0.2), nn.Linear(2, 2), nn.Dropout(0.5))
        >>> set_p_(model, 0.2)
        ['2']
        >>> set_p_(model, {"0": 0.0})
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise invalid_type("set_p_", "model", "be a torch.nn.Module", model)
    layers = {name: module for name, module in model.named_modules() if drops(module)}
    wanted = dict(p) if isinstance(p, Mapping) else dict.fromkeys(layers, p)
    if not isinstance(p, Mapping):
        check_probability("set_p_", p)
    for name, own in wanted.items():
        if name not in layers:
            raise unknown("set_p_", "dropout layer", name, layers)
        check_probability("set_p_", own, layers[name])
    changed = [name for name, own in wanted.items() if layers[name].p != own]
    for name in changed:
        layers[name].p = wanted[name]
    return changed


def drops(module: nn.Module) -> bool:
    """Whether the module drops units or weights with a probability `p` of its own."""
    return is_dropout(module) or isinstance(module, _CONNECTED)


def is_dropout(module: nn.Module) -> bool:
    """Whether the module is a dropout layer: torch's or one made from it."""
    return isinstance(module, _DropoutNd)


def check_probability(where: str, p: float, layer: nn.Module | None = None) -> None:
    """Raise an error in `where`'s name unless p is a number in [0, 1] that the layer can have."""
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
        raise invalid(where, "p", "be a number in [0, 1]", p, "p is the probability of dropping a unit.")
    if p == 1 and isinstance(layer, fast.GaussianDropout):
        raise invalid(where, "p", "lie in [0, 1)", p, "The variance of Gaussian dropout is p / (1 - p).")
