"""What is in a ledger, for whoever looks: counts, tables, facts. Nothing here writes, and nothing is random."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from homeostat.study.factors import DIVERGED
from homeostat.study.state import frames, schema, vitals
from homeostat.study.state.lease import Holder
from homeostat.study.state.records import Attempt, Counts, Finished
from homeostat.study.state.storage import Storage


class View:
    """The reading half of `Ledger`."""

    def __init__(self, directory: Path, storage: Storage) -> None:
        self.directory = directory.absolute()  # an objective may change the current folder
        self._storage = storage

    @property
    def configuration(self) -> dict[str, Any]:
        """The settings with which the study was made."""
        return json.loads(self._meta()["configuration"])

    def counts(self) -> Counts:
        """How many trials are in which state."""
        return Counts(**dict(self._storage.read("SELECT status, COUNT(*) FROM trials GROUP BY status")))

    def running(self) -> list[Attempt]:
        """The attempts that are running now, in run order."""
        started = "started" if (schema.version(self._storage) or 0) > 1 else "NULL"
        query = f"SELECT trial, attempt, token, holder, deadline, {started} FROM trials WHERE status = 'running'"
        rows = self._storage.read(f"{query} ORDER BY trial")
        return [Attempt(row[0], row[1], row[2], Holder.from_json(row[3]), row[4], row[5]) for row in rows]

    def expired(self) -> list[str]:
        """The names of workers whose lease has run out."""
        query = "SELECT worker FROM trials WHERE status = 'running' AND deadline < ?"
        return [worker for (worker,) in self._storage.read(query, (time.monotonic(),))]

    def trials(self) -> pd.DataFrame:
        """One row per trial in run order.

        Columns: trial, treatment, seed, the factors, status, attempt, seconds, failure, warnings, and the metrics.
        Levels keep their types; `seconds` is the wall time of the last attempt that ended by itself; `failure` is the
        text of the last failure or None; `warnings` is a list of texts; a metric is NaN where the trial has none.
        """
        names = "trial, treatment, seed, config, status, attempt, seconds, failure, warnings, metrics"
        return frames.trials(self._storage.read(f"SELECT {names} FROM trials ORDER BY trial"))

    def curves(self) -> pd.DataFrame:
        """The learning curves: trial, treatment, seed, epoch and one column per reported value (NaN: not reported).

        Rows of trials that are still running, or were given up, are there too.
        """
        names = "curves.trial, treatment, seed, epoch, record"
        query = f"SELECT {names} FROM curves JOIN trials USING (trial) ORDER BY curves.trial, epoch"
        return frames.curves(self._storage.read(query))

    def vitals(self) -> Iterator[pd.DataFrame]:
        """What was said of single steps: a frame for each trial of which something was.

        Columns: trial, treatment, seed, epoch, step, and the values by name.

        Raises: StorageError where what is stored is damaged.
        """
        if (schema.version(self._storage) or 0) < 3:
            return
        names = "curves.trial, treatment, seed, epoch, steps"
        query = f"SELECT {names} FROM curves JOIN trials USING (trial) WHERE steps IS NOT NULL AND curves.trial = ?"
        for (trial,) in self._storage.read("SELECT DISTINCT trial FROM curves WHERE steps IS NOT NULL ORDER BY trial"):
            yield vitals.frame(self._storage.read(f"{query} ORDER BY epoch", (trial,)))

    def finished(self) -> Iterator[Finished]:
        """The trials that are done, whole."""
        steps = "steps" if (schema.version(self._storage) or 0) > 2 else "NULL"
        epochs = f"SELECT epoch, record, {steps} FROM curves WHERE trial = ? ORDER BY epoch"
        names = "trial, config, seed, metrics, seconds, warnings"
        for row in self._storage.read(f"SELECT {names} FROM trials WHERE status = 'done' ORDER BY trial"):
            trial, config, seed, metrics, seconds, warnings = row
            curve = self._storage.read(epochs, (trial,))
            yield Finished(json.loads(config), seed, metrics, seconds, warnings, curve)

    def first_metric(self) -> str:
        """The metric that the objective names first in the first trial that is done, but for `diverged`."""
        query = "SELECT metrics FROM trials WHERE status = 'done' ORDER BY trial LIMIT 1"
        names = json.loads(self._storage.read(query)[0][0])
        return next((name for name in names if name != DIVERGED), DIVERGED)

    @property
    def created(self) -> float:
        """When the study was begun, in seconds since the epoch."""
        return float(self._meta()["created"])

    @property
    def spent(self) -> float:
        """Seconds for which drivers have run, but for those that were killed."""
        return float(self._meta()["spent"])

    @property
    def sequential(self) -> bool:
        """Whether trials have ever waited for what others would show, or were added after it."""
        return "sequential" in self._meta()

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """Other configurations with which the study was resumed anyway, oldest first."""
        return json.loads(self._meta().get("accepted", "[]"))

    @property
    def adopted(self) -> dict[str, int]:
        """How many trials were taken over from where."""
        return json.loads(self._meta().get("adopted", "{}"))

    def _meta(self) -> dict[str, str]:
        return dict(self._storage.read("SELECT key, value FROM meta"))
