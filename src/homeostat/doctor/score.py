"""How good a model's outputs are, on one scale for every loss: accuracy, or R²; higher is better.

Losses cannot be compared once the loss is what is changed. Which task it is, the user tells, or outputs and targets do;
where an output begins to mean yes, and which targets do not count, the loss tells. Not random.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from homeostat.doctor.loss.black_box import BlackBox
from homeostat.doctor.loss.probes import MOST_OUTPUTS

Kind = Literal["multiclass", "binary", "multilabel", "regression", "other"]
_GRID = [index / 20 for index in range(-80, 81)]  # in steps of 0.05
_COARSE = 10  # of them at a time, until the place is found
_ASKED = 1 << 18  # numbers of outputs that a loss is given at each point of the grid: milliseconds
_PADDING = -100  # torch's ignore_index


@dataclass(frozen=True)
class Score:
    """The judge of a task's outputs."""

    kind: Kind
    classes: int = 0
    """Classes of a multiclass task, 2 of a binary one, columns of the others."""
    boundary: float = 0.5
    """Binary and multilabel: outputs above it mean yes."""
    class_dim: int = 1
    """Multiclass: the dimension of the outputs that counts classes."""
    dense: bool = False
    """Whether an example has many targets (the pixels of an image, the words of a text)."""
    numbered: bool = False
    """Multiclass: whether an example has one output, which stands for the number of its class."""
    spread: float = 1.0
    """Regression: the mean square of the training targets around their mean, for validation targets without any."""
    ignored: int = -1
    """Multiclass: the class that the loss leaves out, such as padding; -1 for none."""
    no: float = 0.0
    """Binary and multilabel: the target that means no, 0 or -1."""

    @property
    def name(self) -> str:
        """What the score is called."""
        return {"regression": "R²", "other": "minus loss"}.get(self.kind, "accuracy")

    def labels(self, targets: Tensor) -> Tensor:
        """Targets in one form: class numbers (N, ...) int64; for multilabel and regression columns (N, K).

        What is left out (padding, missing values) is -1, and NaN in a regression.
        """
        if self.kind == "multiclass":
            return self._class_numbers(targets)
        values = targets.reshape(len(targets), -1).float()
        if self.kind not in ("binary", "multilabel"):
            return torch.where(values.isfinite(), values, math.nan)
        known = values.isfinite() & (values >= self.no)
        truths = torch.where(known, (values > (1 + self.no) / 2).long(), -1)
        return truths[:, 0] if self.kind == "binary" else truths

    def of(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of outputs, where there are targets; nan where an output is not finite, or the task is unknown."""
        if self.kind == "other" or not torch.isfinite(outputs).all():
            return math.nan
        labels = self.labels(targets)
        if self.kind == "regression":
            flat = outputs.detach().reshape(len(outputs), -1).double()
            return self._explained(flat.cpu().numpy(), labels.double().cpu().numpy())
        if self.kind == "multiclass":
            answers = outputs.reshape(-1).round() if self.numbered else outputs.argmax(self.class_dim)
        else:
            answers = (outputs.reshape(len(outputs), -1) > self.boundary).long()
            labels = labels.reshape(len(labels), -1)
        right = answers == labels
        right = right[(labels >= 0).expand_as(right)]
        return int(right.sum()) / len(right) if len(right) else math.nan

    def of_predictions(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        """The score of predictions in the form that `labels` gives."""
        if self.kind == "regression":
            rows = len(labels)
            return self._explained(predicted.reshape(rows, -1).astype(float), labels.reshape(rows, -1).astype(float))
        right = (predicted.reshape(labels.shape) == labels)[labels >= 0]
        return float(right.mean()) if len(right) else math.nan

    def _class_numbers(self, targets: Tensor) -> Tensor:
        known = targets.isfinite()
        if self.numbered:
            targets, known = targets.reshape(-1), known.reshape(-1)
        elif _is_one_hot_like(targets, self):
            targets, known = targets.argmax(self.class_dim), known.all(self.class_dim)
        numbers = torch.where(known, targets, 0).long()
        known = known & (numbers >= 0) & (numbers != self.ignored)
        if not self.numbered:
            known &= numbers < self.classes
        return torch.where(known, numbers, -1)

    def _explained(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        kept = np.isfinite(labels)
        if predicted.shape != labels.shape or not kept.any():
            return math.nan
        with np.errstate(over="ignore", invalid="ignore"):
            residual = float(np.mean((predicted - labels)[kept] ** 2))
            total = _variance(labels)
        total = total if total > 0 else self.spread
        return 1.0 - residual / total if total > 0 else float(residual == 0)


def score_of(
    task: str | None, outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None = None
) -> Score:
    """The score that suits outputs and targets.

    Args:
        task: as the user named it; None infers it.
        outputs: of one batch, shape (n, ...).
        targets: many training targets, shape (N, ...), N >= n; the first n belong to the outputs.
        loss: asked where yes begins, and which class it leaves out; it may fail.
    Example:
        >>> score_of(None, torch.zeros(4, 3), torch.tensor([0, 2, 1, 1])).kind
        'multiclass'
        >>> score_of(None, torch.zeros(4, 1), torch.tensor([[0.5], [2.0], [1.0], [1.5]])).kind
        'regression'
    """
    kind = task or _kind(outputs, targets)
    if kind == "multiclass" and _one_output(outputs, targets) and _are_truths(targets):
        kind = "binary"  # two classes are several, to some; one output tells them apart
    if kind == "binary" and outputs[:1].numel() > 1:  # truth values of many places, or an output for no and one for yes
        kind = "multiclass" if _kind(outputs, targets) == "multiclass" else "multilabel"
    if kind == "multiclass":
        return _multiclass(outputs, targets, loss)
    if kind in ("binary", "multilabel"):
        columns = max(1, targets.reshape(len(targets), -1).shape[1])
        no = _no(targets)
        boundary = boundary_of(outputs, targets[: len(outputs)], loss, no)
        if kind == "binary":
            return Score("binary", 2, boundary, no=no)
        return Score("multilabel", columns, boundary, no=no)
    if kind == "regression":
        values = targets.reshape(len(targets), -1).double()
        return Score("regression", values.shape[1], spread=_variance(values.cpu().numpy()))
    return Score("other")


def _kind(outputs: Tensor, targets: Tensor) -> Kind:
    dim = None if targets.is_floating_point() else _class_dim(outputs, targets)
    if dim is not None and outputs.shape[dim] > 1:
        beyond = targets[targets >= outputs.shape[dim]]  # one such number may be padding
        return "other" if len(beyond) and bool((beyond != beyond[0]).any()) else "multiclass"
    if outputs.numel() and outputs.shape[1:].numel() != targets.shape[1:].numel():
        return "other"
    if not _are_truths(targets):
        return "regression"
    if targets.shape[1:].numel() == 1:
        return "binary"
    rows = targets.reshape(len(targets), -1)
    one_hot = outputs.dim() == 2 and bool((rows >= 0).all()) and bool((rows.sum(1) == 1).all())
    return "multiclass" if one_hot else "multilabel"


def _are_truths(targets: Tensor) -> bool:
    """Whether the targets that are there are 0 and 1, or -1 and 1."""
    values = targets.detach().float()
    values = values[values.isfinite() & (values != _PADDING)]
    return len(values) > 0 and any(bool(((values == no) | (values == 1)).all()) for no in (0, -1))


def _no(targets: Tensor) -> float:
    """Which truth value means no: -1 where there is no 0."""
    values = targets.detach().float()
    values = values[values >= -1]  # nan compares false
    return -1.0 if bool((values < 0).any()) and not bool((values == 0).any()) else 0.0


def _multiclass(outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None) -> Score:
    if _one_each(outputs, targets):
        numbers = targets[targets.isfinite()]
        return Score("multiclass", int(numbers.max()) + 1 if len(numbers) else 0, numbered=True)
    if targets.dim() == outputs.dim() and outputs.dim() >= 2:  # one-hot, or probabilities
        return Score("multiclass", outputs.shape[1], class_dim=1, dense=outputs.dim() > 2)
    dim = _class_dim(outputs, targets)
    if dim is None:
        return Score("other")
    ignored = -1 if loss is None else _ignored(outputs.detach(), targets[: len(outputs)], dim, loss)
    return Score("multiclass", outputs.shape[dim], class_dim=dim, dense=targets.dim() > 1, ignored=ignored)


def _ignored(outputs: Tensor, targets: Tensor, dim: int, loss: Callable[[Tensor, Tensor], Tensor]) -> int:
    """The one class at whose places the outputs never have a gradient while those of several others have; -1: none."""
    if not outputs.is_floating_point():
        return -1
    few = max(2, MOST_OUTPUTS // max(1, outputs[:1].numel()))
    box, undecided = BlackBox(loss, outputs.dtype), torch.full_like(outputs[:few], 1 / outputs.shape[dim])
    present: set[float] = set()
    heard: set[float] = set()
    for asked in (targets[:few], targets[:few].flip(tuple(range(targets.dim())))):  # a place may be left out by itself
        reading = box.read(undecided, asked)
        if not reading.usable or reading.gradient is None:
            return -1
        moved = reading.gradient.abs().amax(dim) > 0
        present.update(asked.unique().tolist())
        heard.update(asked[moved].unique().tolist())
    silent = [number for number in present - heard if 0 <= number < outputs.shape[dim]]
    return int(silent[0]) if len(silent) == 1 and len(heard) > 1 else -1


def _one_each(outputs: Tensor, targets: Tensor) -> bool:
    """Whether an example has one output and one target."""
    return outputs.numel() == len(outputs) and targets.numel() == len(targets)


def _one_output(outputs: Tensor, targets: Tensor) -> bool:
    """Whether every target has one output to itself, in a dimension of its own where there are several."""
    dim = _class_dim(outputs, targets)
    return _one_each(outputs, targets) or (dim is not None and outputs.shape[dim] == 1)


def _class_dim(outputs: Tensor, targets: Tensor) -> int | None:
    """Where outputs count classes: what is left is the targets' shape; torch's losses have it second."""
    sizes = targets.shape[1:]
    if outputs.dim() != targets.dim() + 1:
        return None
    if outputs.shape[2:] == sizes:
        return 1
    return outputs.dim() - 1 if outputs.shape[1:-1] == sizes else None


def _is_one_hot_like(targets: Tensor, score: Score) -> bool:
    return (
        targets.dim() > score.class_dim
        and targets.shape[score.class_dim] == score.classes
        and (targets.is_floating_point() or not score.dense)
    )


def _variance(values: np.ndarray) -> float:
    """The mean square of what is there in columns (N, K) around their means; 0 where nothing is."""
    kept = np.isfinite(values)
    with np.errstate(over="ignore"):
        centers = values.sum(0, where=kept) / np.maximum(kept.sum(0), 1)
        return float(np.mean((values - centers)[kept] ** 2)) if kept.any() else 0.0


def boundary_of(
    outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None, no: float = 0.0
) -> float:
    """The output at which the loss of a yes is that of a no: 0 for logits; 0.5 for probabilities, weighed or not."""
    points = [] if loss is None or not len(targets) else _indifferent(outputs.detach(), targets, loss, no)
    in_unit = bool(((outputs >= 0) & (outputs <= 1)).all())
    if not points or (in_unit and any(0 < point < 1 for point in points)):
        return 0.5
    return points[0]


def _indifferent(outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], no: float) -> list[float]:
    """The outputs at which the loss of a yes falls below that of a no, to 0.05; it may refuse values."""
    few = max(2, _ASKED // max(1, outputs[:1].numel()))
    outputs, targets = outputs[:few], targets[:few]

    @functools.cache
    def gap(index: int) -> float:
        try:
            with torch.no_grad():
                at = torch.full_like(outputs, _GRID[index])
                yes_loss, no_loss = (loss(at, torch.full_like(targets, value)) for value in (1.0, no))
            return float(yes_loss - no_loss)
        except Exception:
            return math.nan

    def falls(start: int, stop: int) -> bool:
        return gap(start) >= 0 > gap(stop)  # nan compares false

    coarse = [start for start in range(0, len(_GRID) - 1, _COARSE) if falls(start, start + _COARSE)]
    fine = [index for start in coarse for index in range(start, start + _COARSE) if falls(index, index + 1)]
    nearer = [index + (abs(gap(index)) > abs(gap(index + 1))) for index in fine]
    return [_GRID[index] for index in nearer]
