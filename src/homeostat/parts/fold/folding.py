"""Folding batch normalization into the weights beside it, and taking dropout out: a copy of a model for inference.

In evaluation mode batch normalization is a constant scale and shift per channel, so that a linear layer or convolution
before it (or, where that is exact, behind it) can do it at no cost. What belongs together is found by running the model
(`dataflow.record`), not by names or the order of modules. The result is compared with the original before it is
returned. Not random.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

from torch import nn

from homeostat.errors import NoEffectWarning, invalid
from homeostat.parts.dataflow import record
from homeostat.parts.fold.apply import apply_, make_plan, strip_dropout_
from homeostat.parts.fold.check import check_outputs
from homeostat.parts.layers import Sample, check_traceable, tensors_in

__all__ = ["Folded", "Folding", "Refused", "fold", "plan_folding"]


@dataclass(frozen=True)
class Folded:
    """A batch normalization that goes into other layers."""

    norm: str
    """Its name and class."""
    into: tuple[str, ...]
    """The names and classes of the layers that take it."""
    behind: bool
    """Whether it stands behind them, or before."""

    def __str__(self) -> str:
        return f"{self.norm} goes into {', '.join(self.into)}, {'before' if self.behind else 'behind'} it"


@dataclass(frozen=True)
class Refused:
    """A batch normalization that stays."""

    norm: str
    """Its name and class."""
    reason: str

    def __str__(self) -> str:
        return f"{self.norm} stays: {self.reason}"


@dataclass(frozen=True)
class Folding:
    """What folding does to a model; true if it does anything."""

    model: str
    """The model's class."""
    folded: tuple[Folded, ...]
    refused: tuple[Refused, ...]
    removed: tuple[str, ...]
    """Dropout layers that are taken out."""

    def __bool__(self) -> bool:
        return bool(self.folded or self.removed)

    def __str__(self) -> str:
        """A line for each layer, and a sum."""
        removed = [f"{name} is removed" for name in self.removed]
        total = f"{len(self.folded)} folded, {len(self.refused)} stay, {len(self.removed)} dropout layers removed"
        lines = [*map(str, self.folded), *map(str, self.refused), *removed, total]
        return "\n".join([f"Folding of {self.model}", *(f"  {line}" for line in lines)])


def plan_folding(model: nn.Module, sample: Sample) -> Folding:
    """Say what `fold` would do to a model: what goes where, what stays and why. The model is left as it was.

    Args:
        model, sample: as for `fold`.
    Returns: the plan; its text is a table.
    Raises: as `fold`, but for the comparison.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Dropout())
        >>> print(plan_folding(model, torch.randn(2, 3, 8, 8)))
        Folding of Sequential
          1 (BatchNorm2d) goes into 0 (Conv2d), before it
          3 (BatchNorm2d) stays: not into what is before it: that is relu in '2'; nor into what is behind it: ...
          4 (Dropout) is removed
          1 folded, 1 stay, 1 dropout layers removed
    """
    return _fold("plan_folding", model, sample)[1]


def fold(model: nn.Module, sample: Sample, *, rtol: float = 1e-4) -> nn.Module:
    """A copy of a model for inference, in evaluation mode, with batch normalization folded and dropout removed.

    W' = W * gamma / sqrt(var + eps),   b' = beta + (b - mean) * gamma / sqrt(var + eps),   in float64.

    Into: the linear layer, convolution or transposed convolution before the norm; else those behind it, a convolution
    only if it does not pad with zeros or the norm has no shift. Only reshaping, transposing and slicing may stand
    between. A norm that cannot go anywhere exactly stays, as `plan_folding` says. Modules that call batch_norm as a
    function are rewritten by torch.fx where it can. A layer of `homeostat.nn` leaves its activation and its addition.

    Args:
        model: stays untouched; on any device, in any floating dtype.
        sample: what the model is called with, on its device: a tensor, a tuple of positional or a mapping of keyword
            arguments. Everything that will be used must run on it: what it does not reach stays.
        rtol: the largest difference between an output of the copy and of the original that is taken for rounding,
            relative to the output's largest absolute value; never less than 16 times the precision of its dtype.
    Returns: the copy; the same class, with Identity in the place of norms and dropout.
    Raises: InvalidValue if an output differs by more, on the sample or on a second batch made from it by permuting its
        examples and adding noise; for models that cannot be followed or copied.
    Source: Jacob et al. 2018, arXiv:1712.05877, section 3.2; Markuš 2018, https://nenadmarkus.com/p/fusing-batchnorm-and-conv.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout())
        >>> fold(model, torch.randn(2, 3, 8, 8))
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
          (3): Identity()
        )
    """
    if isinstance(rtol, bool) or not isinstance(rtol, int | float) or not 0 < rtol < 1:
        raise invalid("fold", "rtol", "be a number between 0 and 1", rtol)
    folded, folding = _fold("fold", model, sample)
    if folding.refused and not folding:
        text = f"fold changed nothing in {type(model).__name__}: {folding.refused[0]}"
        warnings.warn(text, NoEffectWarning, stacklevel=2)
    check_outputs("fold", model, folded, sample, rtol)
    return folded


def _fold(where: str, model: nn.Module, sample: Sample) -> tuple[nn.Module, Folding]:
    """A folded copy, and what was done."""
    check_traceable(where, model)
    if not any(tensor.numel() for tensor in tensors_in(sample)):
        raise invalid(where, "sample", "hold numbers", sample, "Give a batch of the data that the model is for.")
    try:
        copied = copy.deepcopy(model).eval()
    except Exception as error:
        cure = f"copy.deepcopy fails on it with {type(error).__name__}: {error}"
        raise invalid(where, "model", "be copyable", type(model).__name__, cure) from error
    copied, removed = strip_dropout_(copied, record(copied, sample))
    folded: list[Folded] = []
    plan = make_plan(record(copied, sample))
    idle = plan.idle
    while plan.steps:  # again: behind a norm that is gone may stand another one
        for steps in plan.steps:
            into = tuple(step.layer.title for step in steps)
            folded.append(Folded(steps[0].norm.title, into, steps[0].behind))
        copied = apply_(copied, plan)
        try:
            plan = make_plan(record(copied, sample))
        except Exception as error:
            cure = f"It fails with {type(error).__name__}: {error}"
            raise invalid(where, "model", "run without its norms", type(model).__name__, cure) from error
    refused = tuple(Refused(title, reason) for title, reason in (*plan.refused, *idle))
    return copied, Folding(type(model).__name__, tuple(folded), refused, removed)
