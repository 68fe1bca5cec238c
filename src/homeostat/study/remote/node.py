"""One trial on a node of a Ray cluster: the objective is called there, and all that must be kept is sent to the driver.

The node knows no ledger. `runner.run_trial` is given a `Line` in its place, which sends signs of life and curves to the
`Desk`, an actor beside the driver, and hears from it whether the attempt still holds its trial. The outcome is what the
task returns; the driver, in `cluster`, writes all of it under the attempt's token. A trial's folder for checkpoints is
on the node's own disk. Nothing here is random.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import cloudpickle
import psutil

from homeostat import environment
from homeostat.errors import HomeostatError
from homeostat.study.running.limits import WEIGH_SECONDS
from homeostat.study.running.runner import Objective, Rules, beside, run_trial, short_traceback
from homeostat.study.state.lease import Process
from homeostat.study.state.ledger import Claim, Counts, Ledger, StaleClaim
from homeostat.study.state.storage import StorageError

Row: TypeAlias = tuple[int, dict[str, float], bytes | None]  # epoch, values, what was said of its steps

_SPACING = 0.2  # seconds between two sendings of curves
_MATTERS = ("homeostat", "python", "torch", "numpy")  # versions on which results depend


@dataclass(frozen=True)
class Place:
    """Where an attempt runs.

    Attributes:
        node: Ray's identifier of the node.
        name: its host's name.
        process: the process there.
    """

    node: str
    name: str
    process: Process


@dataclass(frozen=True)
class Sign:
    """A sign of life of an attempt.

    Attributes:
        token: the attempt's.
        place: where it runs.
        rows: those of its curve since the last sign.
        held: bytes of memory, once they are more than the rules allow; otherwise 0.
    """

    token: str
    place: Place
    rows: Sequence[Row] = ()
    held: int = 0


@dataclass(frozen=True)
class Assignment:
    """One attempt, as it is sent to a node.

    Attributes:
        claim: the trial and the attempt's token.
        rules: how trials are run.
        study: names the study's folder on the node.
        versions: those of the driver.
        path: where the driver looks for modules; those of these folders that a node has too are looked into last.
    """

    claim: Claim
    rules: Rules
    study: str
    versions: Mapping[str, str]
    path: Sequence[str]


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt, as far as the node can say.

    Attributes:
        kind: "done"; "failed" by the trial's own fault; "lost" to another attempt; "unusable", a result that is none;
            "broken", where no trial can be run; "stop", where the node's disk is full.
        text: why.
        error: the class of the error behind "unusable" and "stop".
        metrics, seconds, warnings: of an attempt that ended by itself.
        final: whether a failed trial is not to be tried again.
        rows: the end of the curve, not yet sent.
    """

    kind: Literal["done", "failed", "lost", "unusable", "broken", "stop"]
    text: str = ""
    error: type[HomeostatError] = HomeostatError
    metrics: Mapping[str, float] | None = None
    seconds: float | None = None
    warnings: Sequence[str] = ()
    final: bool = False
    rows: Sequence[Row] = ()


class Desk:
    """The actor that trials speak to and the driver reads; it holds what was said since the driver last asked."""

    def __init__(self) -> None:
        self._said: list[Sign] = []
        self._stale: set[str] = set()

    def tell(self, sign: Sign) -> bool:
        """Note a sign of life.

        Returns: whether the attempt still holds its trial, as far as the driver has said.
        """
        if sign.token in self._stale:
            return False
        self._said.append(sign)
        return True

    def take(self, stale: Sequence[str]) -> list[Sign]:
        """What was said since the last call, in order.

        Args:
            stale: tokens of attempts that have lost their trial since.
        """
        self._stale.update(stale)
        said, self._said = self._said, []
        return said


class Line:
    """As much of a ledger as `run_trial` needs, at the other end of a wire: nothing waits for the wire."""

    def __init__(self, desk: Any, claim: Claim, place: Place, directory: Path, rules: Rules) -> None:
        self.directory = directory
        self.outcome = Outcome("lost")
        self._desk, self._claim, self._place, self._rules = desk, claim, place, rules
        self._rows: list[Row] = []
        self._turn = threading.Lock()  # of the objective's thread and the line's at the rows
        self._stale = False

    @contextmanager
    def open(self) -> Iterator[None]:
        """Send a first sign of life, then more and what has been reported from a thread, as long as the block runs.

        Raises: StaleClaim if the trial has been given to another attempt already.
        """
        self._send(0)  # and wait until it has arrived: what dies from now on had begun
        self.renew(self._claim, self._rules.lease)
        spacing = self._rules.lease / 3
        nap = min(spacing, _SPACING if self._rules.memory is None else WEIGH_SECONDS)

        def speak(ended: threading.Event) -> None:
            sent = time.monotonic()
            while not (self._stale or ended.wait(nap)):
                held = self._overweight()
                if self._rows or held or time.monotonic() - sent >= spacing:
                    self._send(held)
                    sent = time.monotonic()

        with beside(f"line of trial {self._claim.trial}", speak):
            yield

    def renew(self, claim: Claim, lease: float) -> None:
        """Nothing: the open line tells that the process lives.

        Raises: StaleClaim once the driver has given the trial to another attempt.
        """
        if self._stale:
            raise StaleClaim(f"trial {claim.trial}: attempt {claim.attempt} no longer holds it.")

    def report(
        self, claim: Claim, epoch: int, values: Mapping[str, float], lease: float, steps: bytes | None = None
    ) -> None:
        """Send one row of the curve, soon.

        Raises: StaleClaim.
        """
        self.renew(claim, lease)
        with self._turn:
            self._rows.append((epoch, dict(values), steps))

    def finish(self, claim: Claim, metrics: Mapping[str, float], seconds: float, warnings: Sequence[str] = ()) -> None:
        """The trial has ended well."""
        self.outcome = Outcome("done", metrics=dict(metrics), seconds=seconds, warnings=warnings)

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
        """The attempt has failed; whether the trial is run again is the driver's to say."""
        self.outcome = Outcome("failed", failure, seconds=seconds, warnings=warnings, final=final)
        return "pending"

    def release(self, claim: Claim) -> None:
        """Nothing: the driver holds the trial."""

    def counts(self) -> Counts:
        """None has ended well, as far as a node knows; so a result that is none comes back as an error."""
        return Counts()

    def rest(self) -> list[Row]:
        """The rows that were not sent."""
        with self._turn:
            rows, self._rows = self._rows, []
        return rows

    def _overweight(self) -> int:
        """The bytes that this process and its children hold, where that is more than they may; otherwise 0."""
        if self._rules.memory is None:
            return 0
        held = 0
        with suppress(psutil.Error):  # a child that ends meanwhile
            own = psutil.Process()
            held = sum(int(each.memory_info().rss) for each in (own, *own.children(recursive=True)))
        return held if held > self._rules.memory else 0

    def _send(self, held: int) -> None:
        from ray import get
        from ray.exceptions import RayError

        rows = self.rest()
        sign = Sign(self._claim.token, self._place, rows, held)
        try:
            self._stale = not get(self._desk.tell.remote(sign), timeout=self._rules.lease)
        except RayError:  # it may pass; if not, the driver gives the trial to somebody else
            with self._turn:
                self._rows = rows + self._rows


def run(desk: Any, assignment: Assignment, packed: list[Any]) -> Outcome:
    """What a Ray task does: one attempt, from its first sign of life to its outcome.

    Args:
        desk: the handle of the `Desk`.
        packed: references to the objective's bytes and to the files that it needs (or None), in a list so that Ray does
            not fetch what this process holds already.
    """
    claim, rules, place = assignment.claim, assignment.rules, _here()
    strange = _differing(assignment.versions)
    if strange:
        return Outcome("broken", f"{place.name} has {strange}. Results of other versions do not belong together.")
    folder = _folder(assignment.study)
    line = Line(desk, claim, place, folder, rules)
    with suppress(StaleClaim), line.open():
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            sys.path += [each for each in assignment.path if each not in sys.path and os.path.isdir(each)]
            objective = _objective(packed)
        except (Exception, SystemExit) as error:
            return Outcome("broken", f"{place.name}: {short_traceback(error)}")
        line.outcome = _outcome(line, claim, objective, rules)
    return replace(line.outcome, rows=line.rest())


def versions() -> dict[str, str]:
    """The versions of this process on which results depend."""
    known = environment.describe()
    return {name: known[name] for name in _MATTERS}


def kill(process: Process) -> None:
    """End a process of this node that no longer answers."""
    if process.alive():
        with suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)


def tidy(study: str) -> None:
    """Remove a study's folder from this node."""
    shutil.rmtree(_folder(study), ignore_errors=True)


def _folder(study: str) -> Path:
    return Path(tempfile.gettempdir()) / study


def _outcome(line: Line, claim: Claim, objective: Objective, rules: Rules) -> Outcome:
    try:
        _, _, text = run_trial(cast("Ledger", line), claim, objective, rules, interruptible=False)
    except StorageError as error:
        return Outcome("stop", f"{platform.node()}: {error}", StorageError)
    except HomeostatError as error:
        return Outcome("unusable", str(error), type(error))
    return line.outcome if line.outcome.kind != "lost" else Outcome("lost", text)


def _here() -> Place:
    from ray import get_runtime_context

    return Place(get_runtime_context().get_node_id(), platform.node(), Process.current())


def _differing(wanted: Mapping[str, str]) -> str:
    found = versions()
    return ", ".join(
        f"{name} {found[name]}, the driver {wanted[name]}" for name in _MATTERS if found[name] != wanted[name]
    )


_loaded: dict[str, Objective] = {}  # the objective that this process loaded last, by its reference


def _objective(packed: list[Any]) -> Objective:
    from ray import get

    reference, files = packed
    key = reference.hex()
    if key not in _loaded:
        _loaded.clear()
        found = cloudpickle.loads(get(reference))
        _loaded[key] = found if files is None else found(lambda: get(files))
    return _loaded[key]
