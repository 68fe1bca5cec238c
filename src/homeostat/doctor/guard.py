"""A last resort against user code that never returns: time limits hold between steps, batches and rules, not inside.

Where the system has an alarm (not on Windows) and in the main thread, a call that is still running long after the limit
is interrupted. What runs is a copy, so that nothing of the user's is left half done.
"""

from __future__ import annotations

import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from homeostat.doctor.budget import Budget
from homeostat.errors import HomeostatError

LEAST_GRACE = 30.0
"""Seconds beyond the limit that any call may take: the first compilation of a kernel takes 13."""


class _NeverReturns(BaseException):
    """Raised out of the call; no handler of ordinary exceptions keeps it."""

    def __init__(self, place: str) -> None:
        super().__init__(place)
        self.place = place


@contextmanager
def interrupted(budget: Budget, where: str, least_grace: float = LEAST_GRACE) -> Iterator[None]:
    """Interrupt what runs in this block when twice the budget's time has passed, and the grace.

    Args:
        budget: one of steps sets no limit.
        where: the public function, for the message.
        least_grace: seconds beyond the budget at least.
    Raises: HomeostatError that says which line did not return.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if budget.seconds is None or not possible:
        yield
        return
    limit = budget.seconds + max(least_grace, budget.seconds)
    start = time.monotonic()
    before = signal.signal(signal.SIGALRM, _stop)
    left, interval = signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    except _NeverReturns as error:
        cure = "Look for what it waits for (a worker, a lock, a network), or pass less data."
        raise HomeostatError(f"{where}: {error.place} has not returned after {limit:.0f} s. {cure}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - start)), interval)


def _stop(number: int, frame: FrameType | None) -> None:
    last = traceback.extract_stack(frame)[-1]
    raise _NeverReturns(f'"{last.filename}", line {last.lineno}, in {last.name}')
