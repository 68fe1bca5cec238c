"""What the ledger hands out: a claim, an attempt as others see it, a finished trial, how many are in which state.

Nothing here is random.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from homeostat.study.factors import Level
from homeostat.study.state.lease import Holder


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
class Finished:
    """A trial that ended well, whole; `curve` has (epoch, values as JSON, steps) per epoch."""

    config: dict[str, Level]
    seed: int
    metrics: str
    seconds: float
    warnings: str
    curve: Sequence[tuple[int, str, bytes | None]]

    @property
    def key(self) -> tuple[str, int]:
        """What makes it this trial and no other."""
        return trial_key(self.config, self.seed)


def trial_key(config: Mapping[str, Level], seed: int) -> tuple[str, int]:
    """What tells a trial from others, whatever the order of its factors; 0, 0.0 and false are different levels."""
    return json.dumps(dict(config), sort_keys=True), seed


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
