"""A tracker in a thread of its own: whatever it does, nobody waits for it and nobody hears its exceptions.

Calls wait in a queue of bounded length. A tracker that raises is told of once and called no more; one that does not
keep up loses what the queue cannot hold. Nothing here is random.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from homeostat.study.trackers.feed import Call
from homeostat.study.trackers.tracker import Tracker

LENGTH = 10_000  # calls that may wait


class Lane:
    """The way to one tracker.

    Args:
        name: what to call it.
        make: makes the tracker, in its thread, where that too may raise or hang.
        tell: how to tell the user.
        length: calls that may wait.
    """

    def __init__(
        self, name: str, make: Callable[[], Tracker], tell: Callable[[str], None], *, length: int = LENGTH
    ) -> None:
        self._name, self._make, self._tell = name, make, tell
        self._queue: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._length, self._left_out = length, 0
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def put(self, call: Call) -> None:
        """Have the tracker called, later; never waits."""
        if not self._thread.is_alive():
            return
        if self._queue.qsize() < self._length:
            self._queue.put(call)
            return
        if not self._left_out:
            self._tell(f"The tracker {self._name} does not keep up, and will miss some of what is told.")
        self._left_out += 1

    def finish(self) -> None:
        """Nothing more will be put."""
        self._queue.put(None)

    def join(self, deadline: float) -> None:
        """Wait until the tracker has heard all, or until `deadline` on the monotonic clock."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._tell(f"The tracker {self._name} does not answer and has missed the end. The study has not.")
        elif self._left_out:
            self._tell(f"The tracker {self._name} has missed {self._left_out} calls.")

    def _work(self) -> None:
        try:
            tracker = self._make()
            while (call := self._queue.get()) is not None:
                method, arguments = call
                getattr(tracker, method)(*arguments)
        except BaseException as error:  # a tracker may even call sys.exit
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            self._tell(f"The tracker {self._name} failed and is told no more ({said}). The study goes on.")
