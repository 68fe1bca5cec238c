"""The ledger: one row per trial in `study.sqlite`, the only state that the processes of a study share.

A worker claims a trial in run order, which gives it an attempt token and a lease; every later write of that attempt
shows the token, and is refused once the trial has been given to somebody else. Results are flushed to disk before they
count as stored. Metrics and curves are held as JSON text, in which NaN and infinities survive and floats are exact.
The ledger knows nothing of designs: it is given rows of (treatment, seed, config). Nothing here is random but tokens.
"""

from __future__ import annotations

import itertools
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.page.text import encodable
from homeostat.study.configuration import differences
from homeostat.study.factors import Level
from homeostat.study.state import schema
from homeostat.study.state.lease import Holder, new_token
from homeostat.study.state.records import Attempt as Attempt
from homeostat.study.state.records import Claim as Claim
from homeostat.study.state.records import Counts as Counts
from homeostat.study.state.records import Finished as Finished
from homeostat.study.state.records import trial_key
from homeostat.study.state.storage import Storage, StorageError, explained
from homeostat.study.state.view import View

FILE = "study.sqlite"

_ANYWAY = "Where the change cannot matter, --anyway (anyway=True) goes on; the report then says so."
_FREED = "token = NULL, worker = NULL, holder = NULL, deadline = NULL"

Row = tuple[int, int, Mapping[str, Level]]


class StaleClaim(HomeostatError):
    """This attempt no longer holds its trial: its lease ran out and another worker took it. Its writes are refused."""


class Ledger(View):
    """The ledger of one study directory. Use `create_or_open` to run a study and `open` to work on or look at one."""

    @classmethod
    def create_or_open(
        cls,
        directory: Path | str,
        configuration: Mapping[str, Any],
        rows: Iterable[Row],
        *,
        anyway: bool | None = False,
    ) -> Ledger:
        """The ledger in `directory`, made with these rows if there is none yet.

        Args:
            directory: made where it is missing.
            configuration: JSON-able settings that must be the same for results to belong together.
            rows: (treatment, seed, config) of every trial, in run order; ignored when the ledger is there already.
            anyway: go on with another configuration, as long as the design is the same; it is remembered. None: no,
                and it cannot be asked for.
        Raises: InvalidValue, with the difference, if the directory holds another configuration or a newer schema;
            StorageError if it cannot be used.
        """
        directory = Path(directory)
        with explained(directory):
            directory.mkdir(parents=True, exist_ok=True)
        ledger = cls(directory, Storage(directory / FILE, create=True))
        try:
            text = json.dumps(configuration)
            if schema.version(ledger._storage) is not None:
                ledger._check_configuration(json.loads(text), anyway)
            ledger._storage.use_wal()
            stored = ((treatment, seed, json.dumps(dict(config))) for treatment, seed, config in rows)
            schema.create(ledger._storage, text, stored)
            schema.upgrade(ledger._storage)
            ledger._check_configuration(json.loads(text), anyway)  # another process may have been faster
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open(cls, directory: Path | str, *, read_only: bool = False) -> Ledger:
        """The ledger that is in `directory`.

        Args:
            read_only: refuse every write, so that whoever looks cannot disturb those who work on it.
        Raises: StorageError if there is none; InvalidValue if a newer homeostat wrote it.
        """
        directory = Path(directory)
        with explained(directory):
            found = (directory / FILE).exists()
        if not found:
            raise StorageError(f"{directory / FILE}: there is no study here. Give the directory of a study.")
        ledger = cls(directory, Storage(directory / FILE, create=False, read_only=read_only))
        try:
            if schema.version(ledger._storage) is None:
                raise StorageError(f"{directory / FILE}: there is no study here. Give the directory of a study.")
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Let go of the file."""
        self._storage.close()

    def claim(self, holder: Holder, lease: float) -> Claim | None:
        """Take the first pending trial in run order for `holder`, or None if no trial is pending.

        Args:
            lease: seconds for which the trial is held unless renewed.
        """
        with self._storage.writing("claim", durable=False) as connection:
            found = connection.execute(
                "SELECT trial, treatment, seed, config, attempt + 1 FROM trials WHERE status = 'pending' "
                "ORDER BY trial LIMIT 1"
            ).fetchone()
            if found is None:
                return None
            trial, treatment, seed, config, attempt = found
            claim = Claim(trial, treatment, seed, json.loads(config), attempt, new_token())
            connection.execute(
                "UPDATE trials SET status = 'running', attempt = ?, token = ?, worker = ?, holder = ?, deadline = ?, "
                "started = ? WHERE trial = ?",
                (attempt, claim.token, holder.worker, holder.to_json(), (now := time.monotonic()) + lease, now, trial),
            )
        return claim

    def renew(self, claim: Claim, lease: float) -> None:
        """Hold the trial for another `lease` seconds.

        Raises: StaleClaim.
        """
        with self._storage.writing("renew", durable=False) as connection:
            _renew(connection, claim, lease)

    def report(
        self, claim: Claim, epoch: int, values: Mapping[str, float], lease: float, steps: bytes | None = None
    ) -> None:
        """Store one row of the learning curve, in place of an earlier one for that epoch, and renew the lease.

        Args:
            steps: what `vitals.pack` made of the epoch's steps.
        Raises: StaleClaim.
        """
        with self._storage.writing("report", durable=False) as connection:
            _renew(connection, claim, lease)
            connection.execute(
                "INSERT OR REPLACE INTO curves (trial, epoch, attempt, record, steps) VALUES (?, ?, ?, ?, ?)",
                (claim.trial, epoch, claim.attempt, json.dumps(dict(values)), steps),
            )

    def finish(self, claim: Claim, metrics: Mapping[str, float], seconds: float, warnings: Sequence[str] = ()) -> None:
        """Store the result of a trial; when this returns it is on the disk.

        Curve rows past the last epoch of this attempt, left by an earlier one, are dropped.

        Raises: StaleClaim.
        """
        with self._storage.writing("finish") as connection:
            changed = connection.execute(
                f"UPDATE trials SET status = 'done', metrics = ?, seconds = ?, warnings = ?, failure = NULL, {_FREED} "
                "WHERE trial = ? AND token = ?",
                (json.dumps(dict(metrics)), seconds, json.dumps(list(warnings)), claim.trial, claim.token),
            ).rowcount
            _refuse_stale(changed, claim)
            connection.execute(
                "DELETE FROM curves WHERE trial = :trial AND epoch > "
                "(SELECT MAX(epoch) FROM curves WHERE trial = :trial AND attempt = :attempt)",
                {"trial": claim.trial, "attempt": claim.attempt},
            )

    def fail(
        self,
        claim: Claim,
        failure: str,
        retries: int,
        *,
        seconds: float | None = None,
        warnings: Sequence[str] = (),
        final: bool = False,
    ) -> str:
        """Store that an attempt failed by the trial's own fault.

        Args:
            retries: failed attempts that are forgiven; one more and the trial is quarantined.
            final: quarantine it at once.
        Returns: the trial's status now, "pending" or "quarantined".
        Raises: StaleClaim.
        """
        with self._storage.writing("fail") as connection:
            known = (seconds, json.dumps(list(warnings)))
            status = _count_death(connection, claim.token, failure, -1 if final else retries, known)
            _refuse_stale(status is not None, claim)
        return str(status)

    def release(self, claim: Claim) -> None:
        """Give a trial back, to be run later; this attempt is not held against it. A stale claim gives nothing back."""
        with self._storage.writing("release") as connection:
            connection.execute(f"UPDATE trials SET status = 'pending', {_FREED} WHERE token = ?", (claim.token,))

    def release_worker(self, worker: str) -> None:
        """Give back whatever the worker of that name holds; not held against the trial."""
        with self._storage.writing("release") as connection:
            connection.execute(f"UPDATE trials SET status = 'pending', {_FREED} WHERE worker = ?", (worker,))

    def retry(self) -> int:
        """Let the trials that are quarantined run again, none of their failed attempts counting; how many there are."""
        with self._storage.writing("retry") as connection:
            query = "UPDATE trials SET status = 'pending', deaths = 0 WHERE status = 'quarantined'"
            return connection.execute(query).rowcount

    def bury(self, worker: str, failure: str, retries: int, *, token: str | None = None) -> list[tuple[int, str]]:
        """Count a death for whatever the worker of that name, which has died, was running.

        Args:
            token: the worker was ended because of this attempt, and what else it held is given back.
        Returns: (trial, its status now) of each; none where the worker was between trials.
        """
        with self._storage.writing("bury") as connection:
            held = connection.execute("SELECT trial, token FROM trials WHERE worker = ?", (worker,)).fetchall()
            blamed = [(trial, each) for trial, each in held if token in (None, each)]
            counted = [(trial, str(_count_death(connection, each, failure, retries))) for trial, each in blamed]
            connection.execute(f"UPDATE trials SET status = 'pending', {_FREED} WHERE worker = ?", (worker,))
            return counted

    def recover(self, retries: int) -> None:
        """Give back the trials whose lease has run out, or whose worker and driver are both gone."""
        query = "SELECT token, holder, deadline FROM trials WHERE status = 'running'"
        for token, holder, deadline in self._storage.read(query):
            fate = Holder.from_json(holder).fate(deadline, time.monotonic())
            if fate == "held":
                continue
            with self._storage.writing("recover") as connection:
                same = "SELECT 1 FROM trials WHERE token = ? AND deadline = ?"
                if connection.execute(same, (token, deadline)).fetchone() is None:
                    continue  # renewed or ended in the meantime
                if fate == "abandoned":
                    connection.execute(f"UPDATE trials SET status = 'pending', {_FREED} WHERE token = ?", (token,))
                else:
                    _count_death(connection, token, "The worker stopped answering and lost its lease.", retries)

    def hold(self, seeds: Iterable[int]) -> None:
        """Let the trials of these seeds wait until `admit` lets them run, but for seeds that somebody has begun.

        From then on the study is `sequential`, if there was anything to hold.
        """
        begun = "EXISTS (SELECT 1 FROM trials AS others WHERE others.seed = trials.seed AND others.attempt > 0)"
        query = f"UPDATE trials SET status = 'waiting' WHERE status = 'pending' AND seed = ? AND NOT {begun}"
        with self._storage.writing("hold") as connection:
            if sum(connection.execute(query, (seed,)).rowcount for seed in seeds):
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('sequential', 'yes')")

    def admit(self, seeds: Iterable[int], treatments: Iterable[int]) -> None:
        """Let the trials of these treatments under these seeds run that wait."""
        query = "UPDATE trials SET status = 'pending' WHERE status = 'waiting' AND seed = ? AND treatment = ?"
        with self._storage.writing("admit") as connection:
            connection.executemany(query, itertools.product(seeds, list(treatments)))

    def extend(self, rows: Iterable[Row]) -> None:
        """Add the trials of these treatments and seeds that are not there, behind those that are, in their order."""
        with self._storage.writing("extend") as connection:
            known = set(connection.execute("SELECT treatment, seed FROM trials").fetchall())
            (last,) = connection.execute("SELECT MAX(trial) FROM trials").fetchone()
            added = [
                (treatment, seed, json.dumps(dict(config)))
                for treatment, seed, config in rows
                if (treatment, seed) not in known
            ]
            connection.executemany(
                "INSERT INTO trials (trial, treatment, seed, config) VALUES (?, ?, ?, ?)",
                [(trial, *row) for trial, row in enumerate(added, start=(-1 if last is None else last) + 1)],
            )

    def adopt(self, found: Iterable[Finished], source: str, *, sequential: bool) -> int:
        """Store the results of another ledger's trials for those of this one that are the same and were never begun.

        All of it or nothing; what has been adopted before is not adopted again.

        Args:
            source: where they come from, for the report.
            sequential: whether what they showed decided that there are more seeds; see `sequential`.
        Returns: how many trials were adopted.
        """
        known = {each.key: each for each in found}
        with self._storage.writing("adopt") as connection:
            rows = connection.execute("SELECT trial, config, seed FROM trials WHERE status = 'pending' AND attempt = 0")
            same = [(trial, known.get(trial_key(json.loads(config), seed))) for trial, config, seed in rows.fetchall()]
            adopted = [(trial, each) for trial, each in same if each is not None]
            for trial, each in adopted:
                connection.execute(
                    "UPDATE trials SET status = 'done', attempt = 1, metrics = ?, seconds = ?, warnings = ? "
                    "WHERE trial = ?",
                    (each.metrics, each.seconds, each.warnings, trial),
                )
                connection.executemany(
                    "INSERT INTO curves (trial, epoch, attempt, record, steps) VALUES (?, ?, 1, ?, ?)",
                    [(trial, *epoch) for epoch in each.curve],
                )
            if adopted:
                before = json.loads(dict(connection.execute("SELECT key, value FROM meta")).get("adopted", "{}"))
                told = json.dumps({**before, source: before.get(source, 0) + len(adopted)})
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('adopted', ?)", (told,))
                if sequential:
                    connection.execute("INSERT OR REPLACE INTO meta VALUES ('sequential', 'yes')")
        return len(adopted)

    def spend(self, seconds: float) -> None:
        """Add to `spent`."""
        with self._storage.writing("spend") as connection:
            connection.execute("UPDATE meta SET value = CAST(value AS REAL) + ? WHERE key = 'spent'", (seconds,))

    def _check_configuration(self, asked: dict[str, Any], anyway: bool | None) -> None:
        """Refuse another configuration than the stored one and those accepted before; or accept it and remember it."""
        lines = differences(self.configuration, asked)
        if not lines or any(not differences(each, asked) for each in self.accepted):
            return
        if anyway and not differences(self.configuration.get("design", {}), asked.get("design", {})):
            with self._storage.writing("accept") as connection:
                accepted = json.dumps([*self.accepted, asked])
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('accepted', ?)", (accepted,))
            return
        cure = "Give another directory, or the settings of the stored study to resume it."
        if anyway is not None:
            cure += f" {'Another design cannot be resumed anyway.' if anyway else _ANYWAY}"
        raise InvalidValue(
            f"{self._storage.path}: this study was made with another configuration (stored → asked):\n"
            + "\n".join(f"  {line}" for line in lines)
            + f"\n{cure}"
        )


def _renew(connection: sqlite3.Connection, claim: Claim, lease: float) -> None:
    changed = connection.execute(
        "UPDATE trials SET deadline = ? WHERE trial = ? AND token = ?",
        (time.monotonic() + lease, claim.trial, claim.token),
    ).rowcount
    _refuse_stale(changed, claim)


def _refuse_stale(changed: int | bool, claim: Claim) -> None:
    if not changed:
        raise StaleClaim(
            f"trial {claim.trial}: attempt {claim.attempt} no longer holds it, because its lease ran out; "
            "another worker has it now."
        )


def _count_death(
    connection: sqlite3.Connection,
    token: str,
    failure: str,
    retries: int,
    known: tuple[float | None, str] = (None, "[]"),
) -> str | None:
    """One more failed attempt of the trial with this token; its status afterwards, None where the token is stale."""
    found = connection.execute("SELECT trial, deaths + 1 FROM trials WHERE token = ?", (token,)).fetchone()
    if found is None:
        return None
    trial, deaths = found
    status = "pending" if deaths <= retries else "quarantined"
    connection.execute(
        f"UPDATE trials SET status = ?, deaths = ?, failure = ?, seconds = ?, warnings = ?, {_FREED} WHERE trial = ?",
        (status, deaths, encodable(failure), *known, trial),
    )
    return status
