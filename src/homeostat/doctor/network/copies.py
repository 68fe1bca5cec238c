"""Units of a layer that are copies of each other: which have the same weights, and which keep them.

Known are linear layers, convolutions, recurrent and attention layers, and parameters that a function takes as weights.
Not random but for the order in which rows are compared, which has a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from homeostat import seeds
from homeostat.parts.init.sites import is_turned

Bare = Mapping[nn.Parameter, str]
"""Parameters that functions were called with as weights by hand, and the functions' names."""

_ALIKE = 1e-4  # of the largest gradient of a unit: sums in another order differ by less


def duplicates_of(module: nn.Module | None, bare: Bare | None = None) -> tuple[float, float]:
    """The shares of output units with the same weights as an earlier one, and of those with all else the same too.

    Units that agree in weights, bias and gradients go on doing so under every optimizer; dropout between them parts
    them, and shows in the gradient. Weights of zero, as many begin on purpose, count for the second share alone.

    Args:
        module: a layer; None for parameters by themselves.
        bare: of a layer of no known kind, or of none, these parameters alone are weights.
    Returns: the largest share of any part of the layer, such as a direction of a recurrent one; nan without units.
    """
    shares = [_shares(units) for units in _parts(module, bare or {})]
    return _largest(same for same, _ in shares), _largest(alike for _, alike in shares)


def _same(parameter: Tensor) -> Tensor:
    return parameter


@dataclass(frozen=True)
class _Units:
    """Parameters that hold something of every unit of a part of a layer."""

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...] = ()
    rows: Callable[[Tensor], Tensor] = _same
    """A parameter, or its gradient, with the units first: (units, ...)."""
    groups: int = 1
    """Units of different groups, one behind the other, have other inputs or tasks: they are no copies."""

    def table(self, tensors: Iterable[Tensor]) -> Tensor:
        """What each unit has in these, shape (units, entries)."""
        found = [self.rows(tensor.detach()).double() for tensor in tensors]
        return torch.cat([each.flatten(1) if each.dim() > 1 else each[:, None] for each in found], 1)


def _parts(module: nn.Module | None, bare: Bare) -> Iterator[_Units]:
    if isinstance(module, nn.Linear | _ConvNd):
        weight, bias = getattr(module, "weight", None), module.bias
        groups = module.groups if isinstance(module, _ConvNd) else 1
        rows = partial(_outputs_first, groups=groups) if isinstance(module, _ConvTransposeNd) else _same
        if isinstance(weight, Tensor):
            yield _Units((weight,), () if bias is None else (bias,), rows, groups)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        yield from _recurrent(module)
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module)
    else:
        own = bare if module is None else {p: bare[p] for p in module.parameters(recurse=False) if p in bare}
        for parameter, function in own.items():
            turned = partial(_outputs_first, groups=1) if function.startswith("conv") else _outputs_last
            yield _Units((parameter,), rows=turned if is_turned(function) else _same)


def _recurrent(module: nn.RNNBase | nn.RNNCellBase) -> Iterator[_Units]:
    """Every direction of every layer, whose units have a row for each gate; projections by themselves."""
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name, parameter in own.items():
        kind, where = name[: len("weight_ih")], name[len("weight_ih") :]
        if kind == "weight_ih":
            weights, biases = ((f"{part}_ih{where}", f"{part}_hh{where}") for part in ("weight", "bias"))
            yield _Units(
                tuple(own[each] for each in weights if each in own),
                tuple(own[each] for each in biases if each in own),
                partial(_gates_behind, units=module.hidden_size),
            )
        elif kind == "weight_hr":
            yield _Units((parameter,))


def _attention(module: nn.MultiheadAttention) -> Iterator[_Units]:
    """The projections of queries, keys and values, in one parameter or in three, and that of the output."""
    own = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    if "in_proj_weight" in own:
        yield _Units((own["in_proj_weight"],), tuple(own[name] for name in ("in_proj_bias",) if name in own), groups=3)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if name in own:
            yield _Units((own[name],))
    yield from _parts(module.out_proj, {})


def _outputs_first(parameter: Tensor, groups: int) -> Tensor:
    """Of a transposed convolution, (inputs, outputs / groups, *kernel); its bias has the outputs first already."""
    if parameter.dim() == 1:
        return parameter
    return parameter.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def _outputs_last(parameter: Tensor) -> Tensor:
    """Of a matrix that is multiplied from the left, (..., inputs, outputs)."""
    return parameter.transpose(-1, -2).flatten(0, -2)


def _gates_behind(parameter: Tensor, units: int) -> Tensor:
    """Of a recurrent layer, (gates * units, ...)."""
    return parameter.unflatten(0, (-1, units)).transpose(0, 1)


def _shares(units: _Units) -> tuple[float, float]:
    rows = units.table((*units.weights, *units.biases))
    count = len(rows)
    if count < 2:
        return math.nan, math.nan
    width = 1 + sum(weight.numel() for weight in units.weights) // count
    rows = torch.cat([(torch.arange(count) * units.groups // count).to(rows)[:, None], rows], 1)
    draw = torch.randn(rows.shape[1], generator=seeds.torch_generator(0, "doctor", "rows")).to(rows)
    order = (rows @ draw).argsort()
    order = order[(rows[order, :width] @ draw[:width]).argsort(stable=True)]
    rows = rows[order]
    equal = rows[1:] == rows[:-1]
    copies, same = equal.all(1), equal[:, :width].all(1) & rows[1:, 1:width].any(1)
    share, gradients = float(same.sum() / count), _gradients(units.weights)
    if len(gradients) < len(units.weights):
        return share, math.nan
    if not bool(copies.any()):
        return share, 0.0
    slopes = units.table([*gradients, *_gradients(units.biases)])[order]
    apart = (slopes[1:] - slopes[:-1]).norm(dim=1)
    alike = copies & (apart <= _ALIKE * slopes.norm(dim=1).max())
    return share, float(alike.sum() / count)


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    """Those that there are; a weight that is computed from others has none."""
    return [p.grad for p in parameters if p.is_leaf and p.grad is not None]


def _largest(shares: Iterable[float]) -> float:
    return max((share for share in shares if not math.isnan(share)), default=math.nan)
