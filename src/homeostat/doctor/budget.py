"""How long an examination may take: a time such as "30s", or a number of steps, which gives the same on any machine."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from homeostat.errors import invalid
from homeostat.quantities import seconds_of


class Deadline:
    """A point in time on the monotonic clock.

    Args:
        seconds: from now; infinite for none.
    """

    def __init__(self, seconds: float = math.inf) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until then; 0 if it has passed."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        return self.left <= 0.0

    def share(self, fraction: float) -> Deadline:
        """The deadline after a fraction of what is left."""
        return Deadline(self.left * fraction)

    def within(self, seconds: float) -> Deadline:
        """The earlier of this deadline and one so many seconds from now."""
        return Deadline(min(self.left, seconds))


class Stopwatch:
    """Time since it was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @property
    def passed_seconds(self) -> float:
        return time.monotonic() - self._start


@dataclass(frozen=True)
class Budget:
    """Seconds in all, or steps for every run; exactly one is set."""

    seconds: float | None = None
    steps: int | None = None

    @staticmethod
    def parse(budget: str | float | Budget, where: str) -> Budget:
        """A budget as users write it: "30s", "2m", seconds as a float, steps as an int.

        Raises: InvalidValue for anything else.
        Example:
            >>> Budget.parse("2m", "examine"), Budget.parse(200, "examine")
            (Budget(seconds=120.0, steps=None), Budget(seconds=None, steps=200))
        """
        if isinstance(budget, Budget):
            return budget
        if isinstance(budget, str):
            seconds = seconds_of(budget)
            if seconds:
                return Budget(seconds=seconds)
        elif isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
            return Budget(steps=budget)
        elif isinstance(budget, float) and 0 < budget < math.inf:
            return Budget(seconds=budget)
        cure = 'A time is a text such as "30s" or "2m"; a whole number is a number of training steps.'
        raise invalid(where, "budget", "be a positive time or number of steps", budget, cure)

    def deadline(self) -> Deadline:
        """The deadline that starts now; none where steps are given."""
        return Deadline(math.inf if self.seconds is None else self.seconds)
