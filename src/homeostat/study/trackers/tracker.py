"""What a tracker is told of a study. Nothing here is random."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from homeostat.study.factors import Level, level_text

Ending: TypeAlias = Literal["done", "quarantined", "unfinished"]


@dataclass(frozen=True)
class Run:
    """One attempt at one trial, which trackers show as a run of its own.

    Attributes:
        study: the study's name.
        trial: the trial's place in the run order, from 0.
        attempt: from 1.
        treatment, seed, config: what is run.
    """

    study: str
    trial: int
    attempt: int
    treatment: int
    seed: int
    config: Mapping[str, Level]

    @property
    def name(self) -> str:
        """What to call it; also the name of a file, at most 120 characters.

        Example:
            >>> Run("digits", 3, 2, 1, 0, {"norm": "batch", "dropout": 0.2}).name
            '0003-norm=batch-dropout=0.2-seed=0-attempt=2'
        """
        said = [f"{self.trial:04}", *(f"{name}={level_text(level)}" for name, level in self.config.items())]
        said += [f"seed={self.seed}", *([f"attempt={self.attempt}"] if self.attempt > 1 else [])]
        return re.sub(r"[^A-Za-z0-9_=.+-]+", "_", "-".join(said))[:120]


class Tracker(Protocol):
    """Whoever is told of a study: each call comes from the tracker's own thread, in order, and may raise or hang."""

    def trial_started(self, run: Run) -> None:
        """An attempt has begun."""

    def epoch_reported(self, run: Run, epoch: int, values: Mapping[str, float]) -> None:
        """A row of the learning curve; values may be NaN or infinite."""

    def trial_ended(self, run: Run, ending: Ending, metrics: Mapping[str, float]) -> None:
        """An attempt has ended.

        Args:
            ending: "done"; "quarantined" when the trial is given up; "unfinished" when it failed or was interrupted.
            metrics: the result of a trial that is done, otherwise none.
        """

    def study_concluded(self, summary: str, report: Path) -> None:
        """Every trial has ended and the report is written."""
