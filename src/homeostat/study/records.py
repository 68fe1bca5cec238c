"""What the ledger hands out: a claim on a trial, an attempt as others see it, how many trials are in which state.

Nothing here is random.
"""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.study.factors import Level
from homeostat.study.lease import Holder


@dataclass(frozen=True)
class Claim:
    """One attempt at one trial, held by whoever has the token."""

    trial: int
    treatment: int
    seed: int
    config: dict[str, Level]
    attempt: int
    token: str


@dataclass(frozen=True)
class Attempt:
    """A running attempt as others see it; `deadline` and `started` (None: not known) are on the monotonic clock."""

    trial: int
    attempt: int
    token: str
    holder: Holder
    deadline: float
    started: float | None


@dataclass(frozen=True)
class Counts:
    """How many trials are in which state."""

    pending: int = 0
    running: int = 0
    done: int = 0
    quarantined: int = 0
    waiting: int = 0

    @property
    def planned(self) -> int:
        """All trials, those too that wait until a look at the others shows whether they are needed."""
        return self.pending + self.running + self.done + self.quarantined + self.waiting

    @property
    def most(self) -> str:
        """How many trials there will be, in words: "80", or "at most 80" where some wait."""
        return f"{'at most ' if self.waiting else ''}{self.planned}"

    @property
    def ended(self) -> bool:
        """Whether every trial is done or quarantined, or waits."""
        return not self.pending and not self.running
