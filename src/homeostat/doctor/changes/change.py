"""One alteration of a training, applied to a copy. Nothing here is random."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from homeostat.errors import HomeostatError

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

Safety = Literal["safe", "unsafe"]

ORDER = (
    *("data", "order", "validation", "augmentation", "mode", "activation", "norm", "dropout", "inputs", "output"),
    *(
        "loss",
        "targets",
        "init",
        "frozen",
        "optimizer",
        "rate",
        "momentum",
        "eps",
        "penalty",
        "clip",
        "batch",
        "epochs",
    ),
)
"""The families in the order in which changes are applied: data before what is measured of them, structure before the
weights that are drawn for it, the loss before the scaling around it, the optimizer before its settings."""


class CannotApply(HomeostatError):
    """A change does not fit this training; its text says why."""


class Change(ABC):
    """What is altered, where, and how a person would write it; subclasses are frozen dataclasses.

    Applying a change twice is applying it once.
    """

    slug: ClassVar[str]
    family: ClassVar[str]
    """Changes of one family exclude each other."""
    safety: ClassVar[Safety]
    """"safe": the function that the model computes now stays as it is."""

    @abstractmethod
    def apply(self, training: Training) -> None:
        """Alter a copy of a training in place; the optimizer holds the model's parameters afterwards.

        Raises: CannotApply where it does not fit; the copy is of no use then.
        """

    @property
    @abstractmethod
    def what(self) -> str:
        """A few words with the values before and after, such as "learning rate × 0.1"."""

    @property
    def where(self) -> tuple[str, ...]:
        """The names of the layers it is about; () for the whole training."""
        return ()

    @property
    @abstractmethod
    def diff(self) -> str:
        """Lines of code, each beginning with "-" or "+", that do the same in the user's own program."""

    @property
    def place(self) -> int:
        """Its place among changes of other families; unknown families come last."""
        return ORDER.index(self.family) if self.family in ORDER else len(ORDER)

    def __str__(self) -> str:
        return f"{self.what} ({', '.join(self.where)})" if self.where else self.what
