"""How good a model's outputs are, on one scale for every loss: accuracy, or R²; higher is better.

Losses cannot be compared once the loss is what is changed. Which task it is, the user tells, or outputs and targets do;
where an output begins to mean yes, the loss tells. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Kind = Literal["multiclass", "binary", "multilabel", "regression", "other"]
_GRID = torch.linspace(-4.0, 4.0, 161, dtype=torch.float32)  # in steps of 0.05; holds 0 and 0.5
_ASKED = 1 << 18  # numbers of outputs that a loss is given at each point of the grid: milliseconds


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

    @property
    def name(self) -> str:
        """What the score is called."""
        return {"regression": "R²", "other": "minus loss"}.get(self.kind, "accuracy")

    def labels(self, targets: Tensor) -> Tensor:
        """Targets in one form: class numbers (N, ...) int64; for multilabel and regression columns (N, K)."""
        if self.kind == "multiclass":
            if self.numbered:
                return targets.reshape(-1).long()
            return targets.long() if not _is_one_hot_like(targets, self) else targets.argmax(self.class_dim)
        if self.kind == "binary":
            return (targets.reshape(len(targets), -1)[:, 0] > _middle(targets)).long()
        if self.kind == "multilabel":
            return (targets.reshape(len(targets), -1) > _middle(targets)).long()
        return targets.reshape(len(targets), -1).float()

    def of(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of outputs; nan where one is not finite, or the task is unknown."""
        if self.kind == "other" or not torch.isfinite(outputs).all():
            return math.nan
        labels = self.labels(targets)
        if self.kind == "multiclass":
            classes = outputs.reshape(-1).round() if self.numbered else outputs.argmax(self.class_dim)
            return (classes == labels).float().mean().item()
        if self.kind in ("binary", "multilabel"):
            yes = outputs.reshape(len(outputs), -1) > self.boundary
            return (yes == labels.reshape(len(labels), -1).bool()).float().mean().item()
        flat = outputs.detach().reshape(len(outputs), -1).double()
        return self._explained(flat.cpu().numpy(), labels.double().cpu().numpy())

    def of_predictions(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        """The score of predictions in the form that `labels` gives."""
        if self.kind == "regression":
            rows = len(labels)
            return self._explained(predicted.reshape(rows, -1).astype(float), labels.reshape(rows, -1).astype(float))
        return float(np.mean(predicted.reshape(labels.shape) == labels))

    def _explained(self, predicted: np.ndarray, labels: np.ndarray) -> float:
        if predicted.shape != labels.shape:
            return math.nan
        with np.errstate(over="ignore", invalid="ignore"):
            residual = float(np.mean((predicted - labels) ** 2))
            total = float(np.mean((labels - labels.mean(0)) ** 2))
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
        loss: asked for the boundary of a binary task; it may fail.
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
        return _multiclass(outputs, targets)
    if kind in ("binary", "multilabel"):
        columns = max(1, targets.reshape(len(targets), -1).shape[1])
        boundary = _boundary(outputs, targets[: len(outputs)], loss)
        return Score(
            "multilabel" if kind == "multilabel" else "binary", columns if kind == "multilabel" else 2, boundary
        )
    if kind == "regression":
        values = targets.reshape(len(targets), -1).double()
        finite = values[torch.isfinite(values).all(1)]
        spread = ((finite - finite.mean(0)) ** 2).mean().item() if len(finite) else 1.0
        return Score("regression", values.shape[1], spread=spread)
    return Score("other")


def _kind(outputs: Tensor, targets: Tensor) -> Kind:
    dim = None if targets.is_floating_point() else _class_dim(outputs, targets)
    if dim is not None and outputs.shape[dim] > 1:
        return "multiclass"
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
    """Whether all targets are 0 and 1, or -1 and 1."""
    values = targets.detach().float()
    return any(bool(((values == no) | (values == 1)).all()) for no in (0, -1))


def _multiclass(outputs: Tensor, targets: Tensor) -> Score:
    if _one_each(outputs, targets):
        return Score("multiclass", int(targets.max()) + 1, numbered=True)
    if targets.dim() == outputs.dim() and outputs.dim() >= 2:  # one-hot, or probabilities
        return Score("multiclass", outputs.shape[1], class_dim=1, dense=outputs.dim() > 2)
    dim = _class_dim(outputs, targets)
    if dim is None:
        return Score("other")
    return Score("multiclass", outputs.shape[dim], class_dim=dim, dense=targets.dim() > 1)


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


def _middle(targets: Tensor) -> float:
    """Between no and yes: 0.5, or 0 where no is -1."""
    return 0.0 if targets.numel() and float(targets.min()) < 0 else 0.5


def _boundary(outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor] | None) -> float:
    """The output at which the loss of a yes is that of a no: 0 for logits; 0.5 for probabilities, weighed or not."""
    points = [] if loss is None or not len(targets) else _indifferent(outputs.detach(), targets, loss)
    in_unit = bool(((outputs >= 0) & (outputs <= 1)).all())
    if not points or (in_unit and any(0 < point < 1 for point in points)):
        return 0.5
    return points[0]


def _indifferent(outputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """The outputs at which the loss of a yes falls below that of a no, to 0.05; it may refuse values."""
    few = max(2, _ASKED // max(1, outputs[:1].numel()))
    outputs, targets = outputs[:few], targets[:few]
    no = -1.0 if float(targets.min()) < 0 else 0.0
    gaps = []
    for point in _GRID.tolist():
        try:
            with torch.no_grad():
                at = torch.full_like(outputs, point)
                yes_loss, no_loss = (loss(at, torch.full_like(targets, value)) for value in (1.0, no))
            gaps.append(float(yes_loss - no_loss))
        except Exception:
            gaps.append(math.nan)
    found = []
    for point, gap, following in zip(_GRID.tolist(), gaps, gaps[1:], strict=False):
        if gap >= 0 > following:  # nan compares false
            width = gap / (gap - following)
            found.append(round((point + width * 0.05) * 20) / 20)
    return found
