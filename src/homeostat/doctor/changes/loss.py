"""Changes of the loss: a known one in its place, a mean in place of a sum, the other sign, targets in outputs' shape.

What a loss adds for the parameters themselves (a penalty written into it) is kept where the rest is replaced.
Not random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.scaling import StandardizedLoss
from homeostat.doctor.loss.black_box import BlackBox
from homeostat.doctor.loss.known import FittedLoss, known
from homeostat.doctor.loss.layout import Layout

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_Loss = Callable[[Tensor, Tensor], Tensor]
_FEW = 4  # examples on which a loss is asked whether it holds a penalty


@dataclass(frozen=True)
class WithPenalty:
    """A loss, and the gradient of what another one makes of the parameters past the outputs."""

    loss: _Loss
    penalizing: _Loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss; the penalty adds its gradient and not its value, which the other loss does not tell apart."""
        extra = self.penalizing(outputs.detach(), targets)
        return self.loss(outputs, targets) + (extra - extra.detach())


@dataclass(frozen=True)
class MeanOf:
    """A loss that sums over examples, divided by their number."""

    loss: _Loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(outputs, targets) / len(outputs)


@dataclass(frozen=True)
class NegativeOf:
    """A loss with the other sign."""

    loss: _Loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return -self.loss(outputs, targets)


@dataclass(frozen=True)
class ShapedTargets:
    """A loss that gets its targets in the shape of the outputs."""

    loss: _Loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(outputs, targets.reshape(outputs.shape))


@dataclass(frozen=True)
class ReplaceLoss(Change):
    """Put a known loss, averaged over examples, in the place of the loss."""

    name: str
    """As in `losses.KNOWN`."""
    layout: Layout
    """How outputs and targets lie."""

    slug: ClassVar[str] = "replace-loss"
    family: ClassVar[str] = "loss"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        fitted = FittedLoss(known(self.name), self.layout)
        if not fitted.known.applies(self.layout) or self.layout.form == "unlike":
            raise CannotApply(f"{self.name} needs another form of targets")
        old = training.loss_fn
        inner = old.loss if isinstance(old, StandardizedLoss) else old
        if inner == fitted or (isinstance(inner, WithPenalty) and inner.loss == fitted):
            return
        new = WithPenalty(fitted, inner) if _penalizes(training) else fitted
        training.loss_fn = replace(old, loss=new) if isinstance(old, StandardizedLoss) else new

    @property
    def what(self) -> str:
        return f"loss → {self.name}"

    @property
    def diff(self) -> str:
        return f"-loss = loss_fn(output, target)\n+loss = {known(self.name).written(self.layout)}"


@dataclass(frozen=True)
class MeanLoss(Change):
    """Divide a loss that sums over examples by their number."""

    slug: ClassVar[str] = "mean-loss"
    family: ClassVar[str] = "loss"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        if not isinstance(training.loss_fn, MeanOf):
            training.loss_fn = MeanOf(training.loss_fn)

    @property
    def what(self) -> str:
        return "loss / number of examples"

    @property
    def diff(self) -> str:
        return "-loss = loss_fn(output, target)\n+loss = loss_fn(output, target) / len(output)"


@dataclass(frozen=True)
class NegateLoss(Change):
    """Turn the sign of the loss."""

    slug: ClassVar[str] = "negate-loss"
    family: ClassVar[str] = "loss"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        if not isinstance(training.loss_fn, NegativeOf):
            training.loss_fn = NegativeOf(training.loss_fn)

    @property
    def what(self) -> str:
        return "loss → -loss"

    @property
    def diff(self) -> str:
        return "-loss = loss_fn(output, target)\n+loss = -loss_fn(output, target)"


@dataclass(frozen=True)
class ShapeTargets(Change):
    """Give the loss its targets in the shape of the outputs, so that they cannot be broadcast."""

    slug: ClassVar[str] = "shape-targets"
    family: ClassVar[str] = "loss"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        if not isinstance(training.loss_fn, ShapedTargets):
            training.loss_fn = ShapedTargets(training.loss_fn)

    @property
    def what(self) -> str:
        return "targets in the shape of the outputs"

    @property
    def diff(self) -> str:
        return "-loss = loss_fn(output, target)\n+loss = loss_fn(output, target.reshape(output.shape))"


def _penalizes(training: Training) -> bool:
    batch = training.examples("train").head(_FEW)
    modes = [(module, module.training) for module in training.model.modules()]
    try:
        training.model.eval()
        with torch.no_grad():
            outputs = training.predict(batch.inputs)
    finally:
        for module, mode in modes:
            module.training = mode
    return BlackBox(training.loss_fn, outputs.dtype).penalizes(outputs, batch.targets)
