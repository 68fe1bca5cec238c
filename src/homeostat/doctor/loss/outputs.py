"""What a model gives: what its outputs look like on a batch, and what its last activation lets through.

`look` reads numbers, `last_activation` the structure: probabilities that sum to one are seen on the numbers even where
they are computed by hand, but only the structure tells which values can never come. Not random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from homeostat.doctor.network.structure import Step, Structure

_SUM = 1e-3  # how far a sum of probabilities may be from one in half precision
_WIDE = 100.0  # where a saturating activation has reached its limits in single precision
_INERT = frozenset({"shape", "dropout"})
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("relu", "softplus", "exp", "abs", "square"), (0.0, math.inf)),
    **dict.fromkeys(("sigmoid", "softmax", "softmin", "gumbel_softmax", "hardsigmoid"), (0.0, 1.0)),
    **dict.fromkeys(("tanh", "softsign", "hardtanh", "sin", "cos"), (-1.0, 1.0)),
    **dict.fromkeys(("log_softmax", "logsigmoid", "log_sigmoid"), (-math.inf, 0.0)),
    "relu6": (0.0, 6.0),
    "elu": (-1.0, math.inf),
    "selu": (-1.7581, math.inf),
}
"""By the name of a function or class in lower case; hardtanh with its default bounds. Others are measured."""


@dataclass(frozen=True)
class Seen:
    """Numbers of a batch of outputs."""

    low: float
    high: float
    """The least and the largest finite output."""
    finite: bool
    sum_axis: int | None
    """The axis along which outputs are probabilities that sum to one."""
    log_axis: int | None
    """The axis along which outputs are logarithms of such."""
    shape: tuple[int, ...]

    @property
    def in_unit(self) -> bool:
        """Whether all outputs lie in [0, 1]."""
        return self.finite and self.low >= 0 and self.high <= 1

    @property
    def columns(self) -> int:
        """Numbers per example."""
        return math.prod(self.shape[1:])


@dataclass(frozen=True)
class LastActivation:
    """The activation behind the last weight layer, if nothing but reshaping and dropout follows it."""

    name: str
    """The function in lower case, such as "softmax"; "" where there is none."""
    module: str | None
    """The module that does it; None for a bare function."""
    low: float
    high: float
    """The bounds of what it gives; infinite where there is none."""

    @property
    def bounded(self) -> bool:
        """Whether some values can never come out."""
        return math.isfinite(self.low) or math.isfinite(self.high)

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.name} ({self.module})" if self.module else self.name


NO_ACTIVATION = LastActivation("", None, -math.inf, math.inf)


def look(outputs: Tensor, class_axis: int | None) -> Seen:
    """What a batch of outputs (N, ...) looks like; `class_axis` is asked first for sums.

    Example:
        >>> look(torch.tensor([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]), 1).sum_axis
        1
    """
    values = outputs.detach().double()
    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (math.nan, math.nan)
    whole = finite.numel() == values.numel() and finite.numel() > 0
    axes = [axis for axis in range(values.dim() - 1, -1, -1) if values.shape[axis] > 1 and axis != class_axis]
    if class_axis is not None and values.shape[class_axis] > 1:
        axes.insert(0, class_axis)
    sums = _unit_axis(values, axes) if whole and low >= 0 else None
    logs = _unit_axis(values.exp(), axes) if whole and high <= 0 else None
    return Seen(low, high, whole, sums, logs, tuple(values.shape))


def last_activation(structure: Structure | None, model: nn.Module | None = None) -> LastActivation | None:
    """The last activation of a model.

    Args:
        structure: as `structure.read` gives it.
        model: asked for the bounds of an activation module that is not known by name.
    Returns: `NO_ACTIVATION` if the output is what a weight layer gave; None where that is not known: no structure, or
        something else than an activation stands last.
    """
    if structure is None or not structure.weights or not structure.into(None):
        return None
    steps = [step for step in structure.tail if step.role not in _INERT]
    if not steps:
        return NO_ACTIVATION
    last = steps[-1]
    if last.role != "activation":
        return None
    low, high = _RANGES.get(last.name.lower()) or _measured(last, model)
    return LastActivation(last.name.lower(), last.module, low, high)


def _unit_axis(values: Tensor, axes: list[int]) -> int | None:
    return next((axis for axis in axes if bool(((values.sum(axis) - 1).abs() < _SUM).all())), None)


def _measured(step: Step, model: nn.Module | None) -> tuple[float, float]:
    """The bounds of an elementwise activation: values it does not leave within ±100, nor far beyond."""
    function = getattr(F, step.name, None) or getattr(torch, step.name, None)
    if step.module is not None and model is not None:
        function = dict(model.named_modules()).get(step.module)
    if function is None:
        return -math.inf, math.inf
    grid = torch.linspace(-_WIDE, _WIDE, 2001)[:, None]
    try:
        with torch.no_grad():
            near, far = function(grid), function(grid * _WIDE)
    except Exception:  # it needs other shapes or another device: nothing is said about it
        return -math.inf, math.inf
    if near.shape != grid.shape or not bool((near.isfinite() | (near == math.inf)).all()):
        return -math.inf, math.inf
    slack = 1e-4 * max(1.0, float(near[near.isfinite()].abs().max()))
    low = float(near.min()) if bool(far.min() >= near.min() - slack) else -math.inf
    high = float(near.max()) if bool(far.max() <= near.max() + slack) else math.inf
    return low, high
