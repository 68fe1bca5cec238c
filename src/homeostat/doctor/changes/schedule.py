"""Changes of how long and in which portions is trained: epochs and batch size. Safe, and not random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from homeostat.doctor.changes.change import Change, Safety

if TYPE_CHECKING:
    from homeostat.doctor.training import Training


@dataclass(frozen=True)
class MoreEpochs(Change):
    """Train for `factor` times as many epochs; below 1 for fewer.

    Args:
        factor: > 0.
        epochs: those before; see `of`.
    """

    factor: float
    epochs: int

    slug: ClassVar[str] = "more-epochs"
    family: ClassVar[str] = "epochs"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, factor: float) -> MoreEpochs:
        """The change for a training as it is."""
        return cls(factor, training.epochs)

    def apply(self, training: Training) -> None:
        training.epochs = self.after

    @property
    def after(self) -> int:
        """Epochs then; at least one."""
        return max(1, round(self.epochs * self.factor))

    @property
    def what(self) -> str:
        return f"epochs {self.epochs} → {self.after}"

    @property
    def diff(self) -> str:
        return f"-epochs = {self.epochs}\n+epochs = {self.after}"


@dataclass(frozen=True)
class BatchSize(Change):
    """Train with another number of examples per step; the number of epochs stays.

    Args:
        batch_size: at least 1.
        before: the one before; see `of`.
    """

    batch_size: int
    before: int | None = None

    slug: ClassVar[str] = "batch-size"
    family: ClassVar[str] = "batch"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, batch_size: int) -> BatchSize:
        """The change for a training as it is."""
        return cls(batch_size, training.batch_size)

    def apply(self, training: Training) -> None:
        training.batch_size = self.batch_size

    @property
    def what(self) -> str:
        return f"batch size {'' if self.before is None else f'{self.before} '}→ {self.batch_size}"

    @property
    def diff(self) -> str:
        old = "" if self.before is None else f"-batch_size = {self.before}\n"
        return f"{old}+batch_size = {self.batch_size}"
