"""Losses and metrics by name: what targets they need, what they compute, and which way a metric is good.

A loss is the mean over a batch and is differentiated; a metric is computed once over a whole split from its outputs and
targets. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from homeostat.errors import invalid, invalid_type

Goal = Literal["maximize", "minimize"]
_SINGLE = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Loss:
    """A loss by name.

    Attributes:
        compute: (outputs, targets, label_smoothing) -> scalar.
        ready: (targets, where) -> the targets in the type the loss needs, or the error that says what is wrong.
        metric: the metric that goes with it.
        smooths: whether label smoothing has a meaning.
    """

    compute: Callable[[Tensor, Tensor, float], Tensor]
    ready: Callable[[Tensor, str], Tensor]
    metric: str
    smooths: bool = False


@dataclass(frozen=True)
class Metric:
    """A metric by name.

    Attributes:
        compute: (outputs, targets) -> scalar, over a whole split.
        goal: which way it is good.
        losses: the losses it suits.
        right: (outputs, targets) -> bool, for a metric that is the share of what is true in it.
    """

    compute: Callable[[Tensor, Tensor], Tensor]
    goal: Goal
    losses: tuple[str, ...]
    right: Callable[[Tensor, Tensor], Tensor] | None = None


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits (N, C, ...) against class numbers (N, ...), or class probabilities (N, C, ...)."""
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return functional.cross_entropy(outputs, targets, label_smoothing=label_smoothing)
    if outputs.ndim != targets.ndim + 1 or len(outputs) != len(targets):
        expected = f"have the shape (N, classes) for targets of shape {tuple(targets.shape)}"
        raise invalid("cross_entropy", "the model's output", expected, outputs, "One logit per class is needed.")
    return functional.cross_entropy(outputs, targets.long(), label_smoothing=label_smoothing)


def mse(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean squared error; an output (N, 1) meets a target (N,)."""
    outputs, targets = aligned(outputs, targets, "mse")
    return functional.mse_loss(outputs, targets)


def mae(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean absolute error; an output (N, 1) meets a target (N,)."""
    outputs, targets = aligned(outputs, targets, "mae")
    return functional.l1_loss(outputs, targets)


def bce_with_logits(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy of logits against targets in [0, 1]."""
    outputs, targets = aligned(outputs, targets, "bce_with_logits")
    return functional.binary_cross_entropy_with_logits(outputs, targets)


def aligned(outputs: Tensor, targets: Tensor, where: str) -> tuple[Tensor, Tensor]:
    """Outputs and targets in one shape and type: a last dimension of size 1 is dropped where only one of them has it.

    Without this, (N, 1) against (N,) would be broadcast to all N² pairs.
    """
    if outputs.shape != targets.shape:
        if outputs.shape == (*targets.shape, 1):
            outputs = outputs.squeeze(-1)
        elif targets.shape == (*outputs.shape, 1):
            targets = targets.squeeze(-1)
        else:
            cure = "The model's last layer must give one number per target."
            raise invalid(where, "the model's output", f"have the targets' shape {tuple(targets.shape)}", outputs, cure)
    # float32, not the outputs' type: that may be bfloat16, which would round the targets
    return outputs, targets.to(torch.float32) if targets.dtype not in _SINGLE else targets


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of right answers."""
    return is_right(outputs, targets).double().mean()


def is_right(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each answer is right: the largest logit's class, or, for one logit per target, its sign; bool."""
    if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1:
        return outputs.argmax(1) == targets
    outputs, targets = aligned(outputs, targets, "accuracy")
    return (outputs > 0) == (targets > 0.5)


def rmse(outputs: Tensor, targets: Tensor) -> Tensor:
    """The root of the mean squared error, in the target's unit."""
    outputs, targets = aligned(outputs, targets, "rmse")
    return (outputs.double() - targets).square().mean().sqrt()


def mean_absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean absolute error, in the target's unit."""
    outputs, targets = aligned(outputs, targets, "mae")
    return (outputs.double() - targets).abs().mean()


def r2(outputs: Tensor, targets: Tensor) -> Tensor:
    """The share of the targets' variance that is explained: 1 is perfect, 0 no better than their mean."""
    outputs, targets = aligned(outputs, targets, "r2")
    targets = targets.double()
    return 1 - (outputs - targets).square().sum() / (targets - targets.mean(0)).square().sum()


def _class_targets(y: Tensor, where: str) -> Tensor:
    if y.is_floating_point():
        cure = "Class numbers are integers: pass y.long(); for numbers to be predicted use loss='mse'."
        raise invalid_type(where, "targets", "be integers for cross_entropy", y, cure)
    if y.ndim == 2 and y.shape[1] == 1:
        raise invalid(where, "targets", "have the shape (N,) for cross_entropy", y, "Pass y.squeeze(1).")
    if y.ndim == 1 and int(y.min()) < 0:
        raise invalid(where, "targets", "be classes 0, 1, 2, ...", int(y.min()), "Number the classes from 0.")
    return y.long()


def _number_targets(y: Tensor, where: str) -> Tensor:
    return y.to(torch.float32)


def _probability_targets(y: Tensor, where: str) -> Tensor:
    y = y.to(torch.float32)
    if float(y.min()) < 0 or float(y.max()) > 1:
        wrong = float(y.min()) if float(y.min()) < 0 else float(y.max())
        raise invalid(where, "targets", "lie in [0, 1] for bce_with_logits", wrong)
    return y


LOSSES = {
    "cross_entropy": Loss(cross_entropy, _class_targets, "accuracy", smooths=True),
    "mse": Loss(mse, _number_targets, "rmse"),
    "mae": Loss(mae, _number_targets, "mae"),
    "bce_with_logits": Loss(bce_with_logits, _probability_targets, "accuracy"),
}
METRICS = {
    "accuracy": Metric(accuracy, "maximize", ("cross_entropy", "bce_with_logits"), is_right),
    "rmse": Metric(rmse, "minimize", ("mse", "mae")),
    "mae": Metric(mean_absolute_error, "minimize", ("mse", "mae")),
    "r2": Metric(r2, "maximize", ("mse", "mae")),
}
