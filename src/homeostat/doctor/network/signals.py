"""Numbers that say how healthy a layer's output is: size, spread between examples, dead units, saturation, rank.

Everything is bounded: of large outputs the statistics that need more than one pass look at evenly spaced examples and
features. Not random: what is drawn comes from a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.kernels.moments import moments

_MOST_EXAMPLES = 128  # for ranks and slopes; the rank of a batch is at most the number of its examples
_MOST_FEATURES = 512
_MOST_VALUES = 1 << 18  # for slopes and spreads: a few milliseconds
_FEW_VALUES = 1 << 13  # for what is asked of a function itself
_CONSTANT = 1e-6  # a deviation relative to the largest magnitude that float32's rounding explains
_TINY_SLOPE = (
    0.005  # of the usual slope: less than the 0.01 that leaky rectifiers have (tanh beyond 3.3, sigmoid beyond 6.7)
)
_USUAL = 0.9  # the quantile of slopes at standard normal inputs that counts as usual: 1 for relu, 1/4 for sigmoid
_SURE = 0.99  # a softmax whose largest share is above passes less than 4 % of its steepest slope
_FEWEST = 16  # values of a unit without which nothing is said about it being dead or blocked

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Signal:
    """The size of a tensor of shape (examples, ...) and how much of it differs between examples."""

    mean: float
    std: float
    abs_max: float
    nonfinite: int
    dead: float
    """The share of units that are constant over all examples and positions, as a dead ReLU is; nan for a few values."""
    units: int
    spread: float
    """The share of the root mean square that differs between examples: 1 if their mean is 0, 0 if all are alike."""

    @property
    def rms(self) -> float:
        """The root mean square."""
        return math.hypot(self.mean, self.std)

    @property
    def carried(self) -> float:
        """The root mean square of what differs between examples: what a later layer can tell them apart by."""
        return self.rms * self.spread


@dataclass(frozen=True)
class Slopes:
    """How well a gradient passes an activation."""

    saturated: float
    """The share of values where the slope is less than a two-hundredth of its usual size."""
    usual: float
    """The same share for standard normal inputs: 1/2 for relu, 0 for sigmoid."""
    blocked: float
    """The share of units that are saturated on all examples and positions; nan where there are too few."""
    curved: bool
    """Whether the slope differs from place to place, so that the function is an activation."""
    steepest: float = math.nan
    """Its usual slope where it is steep: 1 for relu and tanh, 1/4 for sigmoid; nan for softmax."""
    growth: float = math.nan
    """The slope at 8 over that at 2, or at -8 over that at -2: 1 for relu, 403 for exp; nan for softmax."""


def signal_of(output: Tensor, unit_dim: int) -> Signal:
    """Size, dead units and spread of a floating tensor, shape (examples, ...); units lie along `unit_dim`."""
    x = output.detach()
    if not x.numel():
        return Signal(math.nan, math.nan, math.nan, 0, math.nan, 0, math.nan)
    if x.dim() < 2:
        x = x.reshape(-1, 1)
        unit_dim = 1
    each = moments(x, dim=unit_dim)
    count, total = each.count, each.count.sum()
    mean = _share(each.mean.nan_to_num() * count, total)
    square = _share((each.variance + each.mean.square()).nan_to_num() * count, total)
    still = each.variance.clamp(min=0).sqrt() <= _CONSTANT * each.abs_max
    several = x.numel() >= _FEWEST * x.shape[unit_dim]
    return Signal(
        mean,
        math.sqrt(max(0.0, square - mean * mean)),
        float(each.abs_max.nan_to_num().amax()) if float(total) else math.nan,
        int(each.nonfinite.sum()),
        float(still.double().mean()) if several else math.nan,
        x.shape[unit_dim],
        spread_of(x),
    )


def spread_of(x: Tensor) -> float:
    """The share of the root mean square that differs between examples, shape (examples, ...)."""
    rows = _rows(x, len(x), _MOST_VALUES // max(1, len(x)))
    square = float(rows.square().mean())
    if len(rows) < 2 or not 0 < square < math.inf:
        return math.nan if len(rows) < 2 or not math.isfinite(square) else 0.0
    return math.sqrt(float((rows - rows.mean(0)).square().mean()) / square)


def similarity_of(x: Tensor) -> float:
    """The mean cosine between different examples; 1 if all point the same way."""
    rows = _rows(x, _MOST_EXAMPLES, _MOST_VALUES // _MOST_EXAMPLES)
    if len(rows) < 2 or not rows.isfinite().all():
        return math.nan
    lengths = rows.norm(dim=1, keepdim=True)
    if float(lengths.min()) == 0:
        return math.nan
    total = float((rows / lengths).sum(0).square().sum())
    return (total - len(rows)) / (len(rows) * (len(rows) - 1))


def rank_of(x: Tensor) -> float:
    """The effective rank of what differs between examples: exp of the entropy of the singular values' shares.

    Source: Roy & Vetterli 2007, https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf.
    """
    rows = _rows(x, _MOST_EXAMPLES, _MOST_FEATURES)
    if len(rows) < 2 or not rows.isfinite().all():
        return math.nan
    values = torch.linalg.svdvals(rows - rows.mean(0))
    total = float(values.sum())
    if total <= _CONSTANT * float(rows.abs().max()):
        return 0.0
    shares = values / total
    return math.exp(float(torch.special.entr(shares).sum()))


def slopes_of(function: Function, given: Tensor, unit_dim: int, name: str) -> Slopes | None:
    """How steep an elementwise function is where its inputs lie; of softmax, how sure it is. None for anything else.

    Args:
        function: takes and returns tensors of the shape of `given`; may write into its input.
        given: what it was called on, shape (examples, ...).
        unit_dim: where units lie in it.
        name: of the function; softmax is known by it.
    """
    x = given.detach()
    rows = max(1, min(len(x), _MOST_VALUES // max(1, x[:1].numel())))
    x = x[:: max(1, len(x) // rows)][:rows] if x.dim() > 1 else x
    if "softmax" in name:
        return _of_softmax(function, x, unit_dim)
    few = x[: max(1, _FEW_VALUES // max(1, x[:1].numel()))] if x.dim() > 1 else x
    normal = torch.randn(few.shape, generator=seeds.torch_generator(0, "doctor", "slopes")).to(x)
    steep, normally = _derivative(function, x), _derivative(function, normal)
    if steep is None or normally is None or not normally.numel() or not is_elementwise(function, few):
        return None
    steepest = float(normally.flatten()[:_MOST_VALUES].float().quantile(_USUAL))  # refuses more than 2**24 values
    bound = _TINY_SLOPE * steepest
    tiny, curved = steep < bound, not torch.allclose(normally, normally.flatten()[:1].expand_as(normally))
    flat = tiny.movedim(unit_dim, 0).flatten(1) if x.dim() > 1 else tiny.reshape(1, -1)
    blocked = float(flat.all(1).float().mean()) if flat.shape[1] >= _FEWEST else math.nan
    share, usual = float(tiny.float().mean()), float((normally < bound).float().mean())
    return Slopes(share, usual, blocked, curved, steepest, _growth(function, x))


def _growth(function: Function, x: Tensor) -> float:
    """How much steeper a function is far from zero than near it, on either side."""
    found = [0.0]
    for side in (1.0, -1.0):
        far, near = (_derivative(function, torch.full_like(x[:1], side * place)) for place in (8.0, 2.0))
        if far is not None and near is not None and float(near.max()) > 0:
            found.append(float(far.max()) / float(near.max()))
    return max(found)


def is_elementwise(function: Function, example: Tensor) -> bool:
    """Whether each number of the result depends on the number in the same place alone; tried on normal numbers."""
    generator = seeds.torch_generator(0, "doctor", "elementwise")
    shape = example.shape
    first, second = (torch.randn(shape, generator=generator).to(example) for _ in range(2))
    changed = (torch.rand(shape, generator=generator) < 0.5).to(example.device)
    try:
        with torch.no_grad():
            before, after = function(first.clone()), function(torch.where(changed, second, first))
    except Exception:  # somebody else's function, given numbers that it may not take
        return False
    if not isinstance(before, Tensor) or before.shape != shape or after.shape != shape:
        return False
    return bool(torch.equal(before[~changed], after[~changed])) and not torch.equal(before, first)


def _of_softmax(function: Function, x: Tensor, unit_dim: int) -> Slopes | None:
    with torch.no_grad():
        shares = function(x.clone())
    if not isinstance(shares, Tensor) or shares.shape != x.shape or not shares.isfinite().all():
        return None
    shares = shares.exp() if float(shares.max()) <= 0 and float(shares.min()) < 0 else shares  # log_softmax
    dims = [dim for dim in range(x.dim()) if torch.allclose(shares.sum(dim), torch.ones_like(shares.sum(dim)), 1e-3)]
    dim = (unit_dim if unit_dim in dims else dims[0]) if dims else unit_dim
    sure = shares.amax(dim) > _SURE
    return Slopes(float(sure.float().mean()), 0.0, math.nan, True)


def _derivative(function: Function, x: Tensor) -> Tensor | None:
    """The magnitude of an elementwise function's slope at each number; None where autograd knows none."""
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_()
        try:
            output = function(leaf.clone())  # an in-place function may not write into a leaf
            if not isinstance(output, Tensor) or output.shape != x.shape or not output.requires_grad:
                return None
            (slope,) = torch.autograd.grad(output.sum(), leaf, allow_unused=True)
        except Exception:  # somebody else's function
            return None
    return None if slope is None else slope.abs().nan_to_num(nan=0.0)


def _rows(x: Tensor, examples: int, features: int) -> Tensor:
    """Evenly spaced examples and features as a matrix, shape (examples, features)."""
    rows = x.detach().flatten(1) if x.dim() > 1 else x.detach().reshape(-1, 1)
    rows = rows[:: max(1, -(-len(rows) // examples))]
    rows = rows[:, :: max(1, -(-rows.shape[1] // max(1, features)))]
    return rows.to("cpu", torch.float64 if rows.numel() <= 1 << 16 else torch.float32)


def _share(values: Tensor, total: Tensor) -> float:
    return float(values.sum() / total) if float(total) else math.nan
