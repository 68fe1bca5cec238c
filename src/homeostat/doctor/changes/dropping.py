"""Dropout that a model calls as a function, changed while the model runs: how much it drops, and when.

The diffs say what to write instead. Layers are changed in `regularization`. Not random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from homeostat.doctor.changes.change import Change, Safety
from homeostat.parts.modes import DropoutCalls

if TYPE_CHECKING:
    from homeostat.doctor.training import Training


class Dropping(nn.Module):
    """A model whose calls of dropout functions drop otherwise.

    Args:
        model: any module that is not compiled.
        probabilities: the p of calls, and what it is instead.
        follows: whether nothing drops in evaluation mode, whatever functions are told.
    """

    def __init__(self, model: nn.Module, probabilities: Mapping[float, float], follows: bool = False) -> None:
        super().__init__()
        self.model = model
        self.probabilities = dict(probabilities)
        self.follows = follows
        self.training = model.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        with DropoutCalls(self._altered):
            return self.model(*args, **kwargs)

    def extra_repr(self) -> str:
        """What is different."""
        changed = [f"{before:g} → {after:g}" for before, after in self.probabilities.items()]
        return ", ".join([*changed, *(["not in evaluation"] if self.follows else [])])

    def _altered(self, p: float, training: bool) -> tuple[float, bool]:
        return self.probabilities.get(p, p), training and (self.training or not self.follows)


def dropping(model: nn.Module, probabilities: Mapping[float, float], follows: bool = False) -> Dropping:
    """The model as `Dropping`; itself if it is that already."""
    if isinstance(model, Dropping) and (model.probabilities, model.follows) == (dict(probabilities), follows):
        return model
    return Dropping(model, probabilities, follows)


@dataclass(frozen=True)
class FollowMode(Change):
    """Dropout functions drop in training mode alone.

    Args:
        probabilities: theirs, for the text.
    """

    probabilities: tuple[float, ...]

    slug: ClassVar[str] = "follow-mode"
    family: ClassVar[str] = "mode"
    safety: ClassVar[Safety] = "unsafe"

    def apply(self, training: Training) -> None:
        training.model = dropping(training.model, {}, follows=True)

    @property
    def what(self) -> str:
        return "no dropout in evaluation"

    @property
    def diff(self) -> str:
        return "\n".join(
            f"-x = F.dropout(x, {p:g})\n+x = F.dropout(x, {p:g}, self.training)"
            for p in dict.fromkeys(self.probabilities)
        )
