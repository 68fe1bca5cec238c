"""When to watch a training: densely at first, then as often as a limit on the cost allows. Not random.

Only time spent while watching counts as cost. The default cadence depends on a clock, so two runs may watch different
steps; what they measure at a step is the same, and training is not touched by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from homeostat.errors import invalid

FIRST_STEPS = 3
"""Steps at the start that are always watched: what is wrong by construction shows there."""

SPREAD = 50
"""After step n the next watched step is at least n / SPREAD away: a table of any training has a few hundred rows."""


AFTERMATH = 1.4
"""Seconds that a second of watching costs: calling hooks, and what comes next on caches that hold other things. The
ratio of the time that watched steps take longer to the time measured in hooks, from benchmarks/watch.py."""


class Cadence:
    """Says which steps to watch.

    Args:
        cost: the largest share of the training's time that watching may take; 0 < cost <= 1.
        every: watch each step divisible by this, whatever it costs; None lets the cost decide.
        clock: gives seconds.
    Raises: InvalidValue for a cost outside (0, 1] or an `every` that is not a whole number of at least 1.
    Example:
        >>> [step for step in range(12) if Cadence(every=5).due(step)]
        [0, 5, 10]
    """

    def __init__(
        self, cost: float = 0.03, every: int | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 < cost <= 1:
            raise invalid("watch", "cost", "lie in (0, 1]", cost, "0.03 is three percent of the training's time.")
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise invalid("watch", "every", "be a whole number of at least 1, or None", every)
        self.cost, self.every, self.clock = float(cost), every, clock
        self.spent = 0.0
        """Seconds spent on watching."""
        self.typical = 0.0
        """Seconds that a watched step is expected to take."""
        self._elapsed = 0.0
        self._since: float | None = None
        self._next = 0

    @property
    def elapsed(self) -> float:
        """Seconds of training so far, watching included."""
        return self._elapsed + (0.0 if self._since is None else self.clock() - self._since)

    @property
    def share(self) -> float:
        """The share of the time that watching took so far."""
        return self.spent / self.elapsed if self.elapsed else 0.0

    def start(self) -> None:
        """Time counts from here."""
        self._since = self.clock()

    def stop(self) -> None:
        """Time does not count until the next start."""
        self._elapsed, self._since = self.elapsed, None

    def due(self, step: int) -> bool:
        """Whether to watch this step."""
        if self.every is not None:
            return step % self.every == 0
        if step < FIRST_STEPS:
            return True
        return step >= self._next and self.spent + self.typical <= self.cost * self.elapsed

    def watched(self, step: int, seconds: float) -> None:
        """Note that a step was watched and what that cost."""
        seconds *= AFTERMATH
        self.spent += seconds
        self.typical = seconds if step < FIRST_STEPS else (self.typical + seconds) / 2
        self._next = step + max(1, step // SPREAD)
