"""What has changed in a ledger since the last look, as calls to a tracker.

Only rows of the ledger are read, so that trackers show what is stored and nothing else. What had ended before the first
look is not told again. Nothing here is random.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from homeostat.study.state.ledger import FILE
from homeostat.study.state.storage import Storage
from homeostat.study.trackers.tracker import Run

Call: TypeAlias = tuple[str, tuple[Any, ...]]  # a method of Tracker, its arguments

_ENDED = ("done", "quarantined")


class Feed:
    """The changes of one study.

    Args:
        directory: of the study.
        study: its name.
    """

    def __init__(self, directory: Path, study: str) -> None:
        self._storage = Storage(directory / FILE, create=False, read_only=True)
        self._study = study
        self._open: dict[int, tuple[Run, int]] = {}  # by trial: the attempt that was seen, its last epoch
        self._ended = {trial for trial, _, status in self._states() if status in _ENDED}

    def changes(self) -> Iterator[Call]:
        """What has happened since the last call, each attempt's in order."""
        for trial, attempt, status in self._states():
            if trial in self._ended or status == "waiting":
                continue
            seen = self._open.get(trial)
            if seen is not None and (seen[0].attempt != attempt or status == "pending"):
                yield from self._close(trial, "unfinished", {})
            if status == "pending":
                continue
            if trial not in self._open:
                yield self._begin(trial, attempt)
            if status in _ENDED:
                (metrics,) = self._storage.read("SELECT metrics FROM trials WHERE trial = ?", (trial,))[0]
                yield from self._close(trial, status, json.loads(metrics or "{}"))
                self._ended.add(trial)
            else:
                yield from self._curve(trial)

    def close(self) -> None:
        """Let go of the file."""
        self._storage.close()

    def _states(self) -> list[tuple[int, int, str]]:
        return self._storage.read("SELECT trial, attempt, status FROM trials ORDER BY trial")

    def _begin(self, trial: int, attempt: int) -> Call:
        query = "SELECT treatment, seed, config FROM trials WHERE trial = ?"
        treatment, seed, config = self._storage.read(query, (trial,))[0]
        run = Run(self._study, trial, attempt, treatment, seed, json.loads(config))
        self._open[trial] = (run, -1)
        return "trial_started", (run,)

    def _curve(self, trial: int) -> Iterator[Call]:
        run, last = self._open[trial]
        query = "SELECT epoch, record FROM curves WHERE trial = ? AND epoch > ? AND attempt = ? ORDER BY epoch"
        for epoch, record in self._storage.read(query, (trial, last, run.attempt)):
            yield "epoch_reported", (run, epoch, json.loads(record))
            self._open[trial] = (run, epoch)

    def _close(self, trial: int, ending: str, metrics: dict[str, float]) -> Iterator[Call]:
        yield from self._curve(trial)
        run, _ = self._open.pop(trial)
        yield "trial_ended", (run, ending, metrics)
