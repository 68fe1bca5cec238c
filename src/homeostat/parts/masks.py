"""Every mask that dropout can draw, one after another: the exact distribution of a small network's output.

In evaluation mode dropout functions, torch's and homeostat's, pass their input on; there the masks are applied.
Examples do not share masks, so 2^n masks of one example's n units serve a whole batch. Not random.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from homeostat.errors import HomeostatError, InvalidValue, NoEffectWarning, invalid, invalid_type
from homeostat.kernels.backend import widest_dtype
from homeostat.nn import functional as fast
from homeostat.parts.layers import Sample, call, tensors_in
from homeostat.parts.modes import (
    DROPPING_FUNCTIONS,
    FAST_DROPPING_FUNCTIONS,
    drop_probability,
    dropout_arguments,
    fast_dropout_call,
    fast_dropout_probability,
    map_tensors,
    only_training,
    uncompiled,
)
from homeostat.parts.prediction import Prediction, summarize, tensor_in

_WHERE = "enumerate_masks"
_ELEMENTS_AT_ONCE = 1 << 22  # of the input, repeated for as many masks as fit
_ALPHA = -1.7580993408473766  # what alpha dropout puts in the place of a dropped unit: -λα of SELU
_UNBATCHED_BELOW = {F.dropout1d: 3, F.dropout3d: 5, fast.dropout1d: 3, fast.dropout3d: 5}
"""With fewer dimensions they read (C, ...), without a batch."""
_WHOLE_CHANNELS = {
    *(F.dropout1d, F.dropout2d, F.dropout3d, F.feature_alpha_dropout),
    *(torch.feature_dropout, torch.feature_alpha_dropout),
    *(fast.dropout1d, fast.dropout2d, fast.dropout3d, fast.feature_alpha_dropout),
}
_ALPHAS = {
    *(F.alpha_dropout, F.feature_alpha_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
    *(fast.alpha_dropout, fast.feature_alpha_dropout),
}
_LISTED = FAST_DROPPING_FUNCTIONS & {*_WHOLE_CHANNELS, *_ALPHAS, fast.dropout, fast.drop_path}
"""homeostat's functions whose masks can be listed."""


@torch.no_grad()
def enumerate_masks(model: nn.Module, input: Sample, max_units: int = 16, *, kind: str | None = None) -> Prediction:
    """The exact distribution of a model's output over all masks of its dropout, E_z f(x, z) = Σ_z P(z) f(x, z).

    Σ runs over 2^n masks of n units, P(z) = Π (1 - p_i if unit i stays, else p_i). Units are the values that one
    example has in front of a dropout layer, its channels for channel dropout, or the example itself for DropPath;
    layers with p = 0 or 1 have none. Everything but dropout is in evaluation mode; the model is left as it was.

    Args:
        model: with dropout layers or functions of torch or homeostat (not gaussian, not DropConnect), or DropPath.
        input: what the model is called with, a tensor (N, ...), a tuple of arguments or a mapping of keywords.
        max_units: the largest n to allow.
        kind: classification, binary or regression; None: by the output's shape, see `prediction.summarize`.
    Returns: mean, variance and entropies without any sampling error; samples (2^n, N, ...) with their probabilities as
        weights.
    Raises: InvalidValue for more units, for layers that drop in a way that cannot be enumerated (named), and where
        examples influence one another or are not in the first dimension.
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html (2^n thinned networks).
    Example:
        >>> model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1, bias=False))
        >>> _ = nn.init.ones_(model[1].weight)
        >>> exact = enumerate_masks(model, torch.tensor([[1.0, 2.0]]))  # 0, 2, 4 and 6, equally often
        >>> exact.mean, exact.variance
        (tensor([[3.]]), tensor([[5.]]))
    """
    if not isinstance(model, nn.Module):
        raise invalid_type(_WHERE, "model", "be a torch.nn.Module", model)
    if isinstance(max_units, bool) or not isinstance(max_units, int):
        raise invalid_type(_WHERE, "max_units", "be an integer", max_units)
    examples = _examples(input)
    with uncompiled(model), only_training(model, ()), _watched(model, _Masks(examples)) as masks:
        _run(model, input, 1, masks, None)
        units = sum(site.units for site in masks.sites)
        if units > max_units:
            cure = f"They have 2^{units} masks. Sample them with mc_dropout."
            raise invalid(_WHERE, "model", f"have at most {max_units} units that can drop, per example", units, cure)
        if not masks.sites:
            warnings.warn(f"{_WHERE}: nothing in the model drops; one mask.", NoEffectWarning, stacklevel=3)
        p = torch.tensor([site.p for site in masks.sites for _ in range(site.units)], dtype=torch.float64, device="cpu")
        both = _check_independent(model, input, masks, units)
        count = 1 << units
        largest = max(tensor.numel() for tensor in tensors_in(input))
        at_once = max(1, min(count, _ELEMENTS_AT_ONCE // max(largest, 1)))
        outputs, weights = [], []
        for start in range(0, count, at_once):
            numbers = torch.arange(start, min(start + at_once, count), device="cpu")
            keep = (numbers[:, None] >> torch.arange(units, device="cpu")) % 2 == 0
            output = tensor_in(_WHERE, _run(model, input, len(numbers), masks, keep))
            outputs.append(output.reshape(len(numbers), examples, *output.shape[1:]))
            weights.append(torch.where(keep, 1 - p, p).prod(1))
    wide = widest_dtype(both.device)
    return summarize(torch.cat(outputs), kind, torch.cat(weights).to(both.device, wide))


@dataclass
class _Site:
    """One call of a dropout function or layer in a pass."""

    p: float
    units: int


class _Masks(TorchFunctionMode):
    """Applies masks wherever something would drop; without masks, everything stays and the sites are counted."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.sites: list[_Site] = []
        self.keep: Tensor | None = None
        self.copies = 1
        self.passed = 0
        self.used = 0
        self.inside = 0
        """How many layers that drop are running, one in the other."""

    def start(self, copies: int, keep: Tensor | None) -> None:
        """Begin a pass with `copies` copies of the batch, of which copy k has the mask keep[k]."""
        self.copies, self.keep, self.passed, self.used, self.inside = copies, keep, 0, 0, 0
        if keep is None:
            self.sites = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply a mask in the place of a dropout function; pass on everything else."""
        kwargs, scale = kwargs or {}, None
        if func in _LISTED:
            given = fast_dropout_call(func, args, kwargs)
            input, p = given.arguments["input"], fast_dropout_probability(given)
            if given.arguments.get("mode") == "scaled" or not given.arguments.get("scale_by_keep", True):
                scale = 1.0
        elif func in DROPPING_FUNCTIONS:
            input, p, _ = dropout_arguments(args, kwargs)
        elif (
            func in FAST_DROPPING_FUNCTIONS
            and not self.inside
            and fast_dropout_probability(fast_dropout_call(func, args, kwargs))
        ):
            raise _unlisted(func.__name__)
        else:
            return func(*args, **kwargs)
        whole = 2 if func in _WHOLE_CHANNELS else input.dim()
        if func is fast.drop_path or input.dim() < _UNBATCHED_BELOW.get(func, 0):
            whole = 1
        return self.drop(input, p, whole, func in _ALPHAS, scale)

    def drop(self, input: Tensor, p: float, whole: int, alpha: bool = False, scale: float | None = None) -> Tensor:
        """The input with a mask over its first `whole` dimensions, of which the first is that of examples."""
        if p == 0:
            return input
        if not input.dim() or input.shape[0] != self.copies * self.examples:
            cure = "Give a batch, in the first dimension of every tensor (batch_first=True)."
            raise invalid(_WHERE, "what a dropout layer gets", f"have {self.examples} examples first", input, cure)
        shape = input.shape[1:whole]
        units = 0 if p == 1 else shape.numel()
        self.passed += 1
        if self.keep is None:
            self.sites.append(_Site(p, units))
            return torch.zeros_like(input) if p == 1 else input
        if self.passed > len(self.sites) or self.sites[self.passed - 1] != _Site(p, units):
            raise HomeostatError(f"{_WHERE}: the model does not call its dropout layers in the same way at every pass.")
        keep = self.keep[:, self.used : self.used + units].to(input.device)
        self.used += units
        if p == 1:
            return torch.zeros_like(input)
        keep = keep.reshape(self.copies, 1, *shape).expand(self.copies, self.examples, *shape)
        keep = keep.reshape(len(input), *shape, *(1,) * (input.dim() - len(shape) - 1))
        if not alpha:
            return torch.where(keep, input * ((1 / (1 - p)) if scale is None else scale), 0)
        slope = ((1 - p) * (1 + p * _ALPHA**2)) ** -0.5  # keeps mean 0 and variance 1
        return torch.where(keep, input, _ALPHA) * slope - slope * _ALPHA * p


@contextmanager
def _watched(model: nn.Module, masks: _Masks) -> Iterator[_Masks]:
    """Hooks on every layer that drops: all must have got a mask when they return."""
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if drop_probability(module) > 0:
                before = _Before(masks)
                stack.callback(module.register_forward_pre_hook(before).remove)
                stack.callback(module.register_forward_hook(_After(masks, name, before)).remove)
        stack.enter_context(masks)
        yield masks


class _Before:
    """A hook that remembers how many sites there were when a layer was called."""

    def __init__(self, masks: _Masks) -> None:
        self.masks = masks
        self.passed = 0

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.passed = self.masks.passed
        self.masks.inside += 1


class _After:
    """A hook that drops from the output of a stochastic depth of others, and refuses what else calls no function."""

    def __init__(self, masks: _Masks, name: str, before: _Before) -> None:
        self.masks, self.name, self.before = masks, name, before

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        self.masks.inside -= 1
        if self.masks.passed > self.before.passed:
            return None
        p = drop_probability(module)
        if type(module).__name__ == "DropPath":
            scale = 1 / (1 - p) if p < 1 and getattr(module, "scale_by_keep", True) else 1.0
            return self.masks.drop(output, p, whole=1, scale=scale)
        raise _unlisted(f"{self.name!r} ({type(module).__name__})")


def _unlisted(what: str) -> InvalidValue:
    condition = "hold only dropout whose masks can be listed"
    return invalid(_WHERE, "model", condition, what, "Sample it with mc_dropout.")


def _run(model: nn.Module, input: Sample, copies: int, masks: _Masks, keep: Tensor | None) -> Any:
    """One pass over `copies` copies of the batch."""
    masks.start(copies, keep)

    def repeated(tensor: Tensor) -> Tensor:
        batched = tensor.dim() and tensor.shape[0] == masks.examples
        return tensor.repeat(copies, *(1,) * (tensor.dim() - 1)) if batched else tensor.clone()

    output = call(model, map_tensors(repeated, input))
    if keep is not None and masks.passed != len(masks.sites):
        raise HomeostatError(f"{_WHERE}: the model does not call its dropout layers in the same way at every pass.")
    return output


def _check_independent(model: nn.Module, input: Sample, masks: _Masks, units: int) -> Tensor:
    """Raise an error unless two copies of a batch, under two masks, get in one batch what they get alone."""
    keep = torch.tensor([[True], [False]], device="cpu").expand(2, units)  # everything stays; everything is dropped
    alone = torch.cat([tensor_in(_WHERE, _run(model, input, 1, masks, mask)) for mask in keep.split(1)])
    both = tensor_in(_WHERE, _run(model, input, 2, masks, keep))
    scale = float(alone.abs().max()) if alone.numel() else 0.0
    if alone.shape != both.shape or not torch.allclose(alone, both, rtol=1e-3, atol=1e-3 * scale, equal_nan=True):
        cure = "Statistics of a batch tie examples together, and so do sequences whose batch is not first."
        raise invalid(_WHERE, "model", "treat examples, in the first dimension, one by one", type(model).__name__, cure)
    return both


def _examples(input: Sample) -> int:
    tensors = tensors_in(input)
    if not tensors or not tensors[0].dim():
        raise invalid_type(_WHERE, "input", "be a batch (N, ...), or a tuple or mapping that holds one", input)
    return tensors[0].shape[0]
