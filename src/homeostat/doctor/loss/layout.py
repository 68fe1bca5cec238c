"""How outputs and targets lie to each other: which axis counts classes, and whether targets are numbers or one-hot.

Everything about losses works on rows: an example (or one position of it) with its columns. Not random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Form = Literal["index", "one-hot", "same", "unlike"]
_SUM = 1e-3  # how far the sum of a distribution may be from one: single precision over many classes


@dataclass(frozen=True)
class Layout:
    """Where classes are, and what targets are.

    Example:
        >>> layout = layout_of(torch.zeros(2, 5, 7), torch.zeros(2, 7, dtype=torch.long))
        >>> layout.form, layout.axis
        ('index', 1)
    """

    form: Form
    """Targets are class numbers ("index"), a distribution over classes ("one-hot"), as many numbers as there are
    outputs ("same"), or none of these ("unlike")."""
    axis: int = 1
    """The axis of the outputs that counts classes; counts only for "index" and "one-hot"."""
    dims: int = 2
    """How many axes outputs have."""
    reshape: bool = False
    """Whether targets must take the outputs' shape first."""

    def rows(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs as (M, C), and targets as (M,) class numbers or as (M, C) in the outputs' dtype."""
        if self.form in ("same", "unlike"):
            flat = outputs.reshape(len(outputs), -1)
            return flat, targets.reshape(len(targets), -1).to(flat.dtype)
        rows = outputs.movedim(self.axis, -1).reshape(-1, outputs.shape[self.axis])
        if self.form == "one-hot":
            return rows, targets.movedim(self.axis, -1).reshape(rows.shape).to(rows.dtype)
        goals = targets.reshape(-1).long()
        return (rows, goals) if bool((goals >= 0).all()) else (rows[goals >= 0], goals[goals >= 0])

    def labels(self, targets: Tensor) -> Tensor:
        """Class numbers in the order of the rows, shape (M,); for "index" and "one-hot"."""
        if self.form == "index":
            goals = targets.reshape(-1).long()
            return goals[goals >= 0]
        return targets.movedim(self.axis, -1).reshape(-1, targets.shape[self.axis]).argmax(1)

    def one_hot(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The outputs that a perfect model would give, as probabilities or values, in the outputs' shape; float64."""
        if self.form == "same":
            return targets.detach().double().reshape(outputs.shape)
        if self.form == "one-hot":
            return targets.detach().double()
        numbers = targets.long().clamp(min=0).reshape(outputs.movedim(self.axis, -1).shape[:-1])
        return torch.nn.functional.one_hot(numbers, outputs.shape[self.axis]).double().movedim(-1, self.axis)

    @property
    def output_code(self) -> str:
        """How outputs are written with classes second."""
        moved = self.form in ("index", "one-hot") and self.axis not in (1, 1 - self.dims)
        return f"output.movedim({self.axis}, 1)" if moved else "output"

    @property
    def target_code(self) -> str:
        """How targets are written to go with that."""
        if self.form == "one-hot" and self.axis != 1:
            return f"target.movedim({self.axis}, 1)"
        return "target.reshape(output.shape)" if self.reshape else "target"


def layout_of(outputs: Tensor, targets: Tensor, axis: int | None = None) -> Layout:
    """The layout of a batch.

    Args:
        outputs: shape (N, ...).
        targets: shape (N, ...).
        axis: where classes are, if that is known; None finds it, torch's own place first.
    """
    dims = outputs.dim()
    if outputs.shape == targets.shape:
        places = [a for a in _places(dims, axis) if outputs.shape[a] > 1 and _sums_to_one(targets, a)]
        return Layout("one-hot", places[0], dims) if places else Layout("same", 1, dims)
    if axis is not None or not targets.is_floating_point():
        squeezed = tuple(size for size in targets.shape[1:] if size != 1)
        for a in _places(dims, axis):
            rest = outputs.shape[1:a] + outputs.shape[a + 1 :]
            if (
                outputs.shape[a] > 1
                and _are_classes(targets, outputs.shape[a])
                and (rest == targets.shape[1:] or (dims == 2 and rest == squeezed))
            ):
                return Layout("index", a, dims)
    if outputs.numel() == targets.numel():
        return Layout("same", 1, dims, reshape=True)
    return Layout("unlike", 1, dims)


def _places(dims: int, axis: int | None) -> list[int]:
    """The axes where classes may be, the likeliest first."""
    if axis is not None:
        return [axis % dims] if dims > 1 else []
    return list(dict.fromkeys([1, dims - 1])) if dims > 1 else []


def _are_classes(targets: Tensor, count: int) -> bool:
    """Whether targets are class numbers below `count`; negative ones are to be ignored."""
    return targets.numel() == 0 or (int(targets.max()) < count and bool((targets == targets.round()).all()))


def _sums_to_one(targets: Tensor, axis: int) -> bool:
    values = targets.detach().double()
    return bool((values >= 0).all()) and bool(((values.sum(axis) - 1).abs() < _SUM).all())
