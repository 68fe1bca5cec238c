"""Running the trials of a ledger on this machine, in supervised worker processes or in this one.

The driver starts workers, watches them, and starts others as long as there are pending trials. A worker that dies costs
its trial one attempt, and so does one that the driver ends because its trial has passed a limit of time or memory; a
driver that dies takes its workers along and costs nothing but the running attempts. Several drivers may work on one
study, each with workers and limits of its own. Nothing here is random.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from homeostat.errors import HomeostatError
from homeostat.study.running import launch, limits, worker
from homeostat.study.running.runner import Event, Objective, Rules, work
from homeostat.study.state.lease import Holder, Process, new_token
from homeostat.study.state.ledger import Attempt, Counts, Ledger
from homeostat.study.state.storage import StorageError

_TICK = 0.25  # seconds between two looks at the ledger
_GRACE = 3.0  # seconds that a worker has to go by itself, and again after SIGTERM
_STILLBORN = 3  # workers in a row that die before they hold a trial
_SIGKILL = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none
_SIGUSR1 = getattr(signal, "SIGUSR1", None)
_TAIL = 2000  # characters of a dead worker's log that are kept


class StudyInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the workers are gone, their trials are pending again, and the same call resumes."""

    def __init__(self, directory: Path, counts: Counts) -> None:
        self.directory, self.counts = directory, counts
        super().__init__(f"{counts.done} of {counts.most} trials are done; the same command resumes.")


class Watch(Protocol):
    """Somebody to tell how it goes."""

    def event(self, event: Event) -> None:
        """A trial ended one way or another."""

    def tick(self, counts: Counts) -> None:
        """Called several times a second."""


def run_here(ledger: Ledger, objective: Objective, rules: Rules, watch: Watch) -> None:
    """Run all pending trials in this process, one after another; also waits for those that other drivers run.

    Raises: StudyInterrupted; StorageError and what else `runner.work` raises.
    """
    holder = Holder.current()
    try:
        with _sigterm_as_interrupt():
            while True:
                ledger.recover(rules.retries)
                watch.tick(ledger.counts())
                for event in work(ledger, objective, holder, rules):
                    watch.event(event)
                    watch.tick(ledger.counts())
                if ledger.counts().ended:
                    return
                time.sleep(_TICK)
    except KeyboardInterrupt:
        ledger.release_worker(holder.worker)  # had it come just after the claim
        raise StudyInterrupted(ledger.directory, ledger.counts()) from None


def run_workers(
    ledger: Ledger, objective: Objective, rules: Rules, watch: Watch, *, workers: int, preload: Sequence[str] = ()
) -> None:
    """Run all pending trials in `workers` processes; returns when every trial of the study has ended.

    Args:
        objective: anything that cloudpickle can send.
        workers: how many processes, 1 or more.
        preload: modules that the fork server imports once for all workers; those it cannot find are left out.
    Raises: InvalidType if the objective cannot be sent; HomeostatError if workers cannot start; StudyInterrupted on
        Ctrl-C or SIGTERM; StorageError and what else `runner.work` raises.
    """
    environment = {**os.environ, **launch.THREADS}
    method = multiprocessing.get_start_method(allow_none=True)
    orders = worker.Orders(ledger.directory, launch.packed(objective), rules, environment, method, Process.current())
    logs = Path(tempfile.mkdtemp(prefix="homeostat-"))
    try:
        with stop_signals() as stop:
            _Crew(ledger, orders, workers, preload, watch, logs).run(stop)
    finally:
        shutil.rmtree(logs, ignore_errors=True)


@dataclass
class Stop:
    """How often a signal asked to stop."""

    asked: int = 0

    def note(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked += 1


@dataclass
class _Worker:
    name: str
    log: Path
    pipe: Connection
    process: BaseProcess
    fruitful: bool = False  # has ended a trial
    hung_up: bool = False  # has closed its end of the pipe
    late: bool = False  # was asked where it hangs
    ended_for: tuple[str, str] | None = None  # the attempt for which the driver ended it, and why

    def end(self, how: int) -> None:
        """Send a signal to the worker and all that it started, dead or alive."""
        pid = self.process.pid
        if pid is None:
            return
        try:
            os.killpg(pid, how)
        except (AttributeError, OSError):  # no process groups here, or it had no time to found one
            if self.process.is_alive():
                self.process.terminate() if how == signal.SIGTERM else self.process.kill()

    def last_words(self) -> str:
        """How it ended, for the user."""
        code = self.process.exitcode or 0
        if self.ended_for is not None:
            said = self.ended_for[1]
        elif code == -9:
            said = "The worker was killed (SIGKILL). If nobody did that, the machine ran out of memory."
        elif code < 0:
            said = f"The worker died of {signal.Signals(-code).name}."
        else:
            said = f"The worker ended with exit code {code}."
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            lines = []
        kept = [line for line in lines if not line.startswith("Extension modules:")]  # faulthandler's, thousands
        tail = "\n".join(kept)[-_TAIL:].strip()
        return f"{said}\nIts last output:\n{tail}" if tail else said


@dataclass
class _Crew:
    """The driver's view of its workers."""

    ledger: Ledger
    orders: worker.Orders
    size: int
    preload: Sequence[str]
    watch: Watch
    logs: Path
    workers: list[_Worker] = field(default_factory=list)
    stillborn: int = 0
    trusted_from: float = 0.0  # leases that ran out before this moment are given time to be renewed
    last_look: float = field(default_factory=time.monotonic)
    last_weighing: float = 0.0

    def run(self, stop: Stop) -> None:
        """Keep workers at work until every trial has ended."""
        try:
            while True:
                self._recover()
                self._enforce()
                counts = self.ledger.counts()
                self.watch.tick(counts)
                if counts.ended:
                    self._part(stop)
                    return
                self._hire(counts)
                self._listen()
                if stop.asked:
                    raise StudyInterrupted(self.ledger.directory, self.ledger.counts())
        finally:
            self._dismiss(stop)

    def _recover(self) -> None:
        """Free what dead workers and drivers hold; a driver that was itself frozen first lets its workers wake up."""
        now = time.monotonic()
        if now - self.last_look > self.orders.rules.lease / 3 + 1:
            self.trusted_from = now + self.orders.rules.lease
        self.last_look = now
        if now < self.trusted_from:
            return
        frozen = set(self.ledger.expired())
        for each in [each for each in self.workers if each.name in frozen]:
            for attempt in self.ledger.running():
                if attempt.holder.worker == each.name:
                    self._end_for(each, attempt, "The worker stopped answering and lost its lease.")
            each.process.join(_GRACE)
            if not each.process.is_alive():
                self._bury(each)
        self.ledger.recover(self.orders.rules.retries)

    def _enforce(self) -> None:
        """End the workers whose attempt has passed a limit."""
        rules = self.orders.rules
        if rules.timeout is None and rules.memory is None:
            return
        attempts = {attempt.holder.worker: attempt for attempt in self.ledger.running()}
        busy = [each for each in self.workers if each.name in attempts and each.ended_for is None]
        if rules.timeout is not None:
            for each in busy:
                self._enforce_timeout(each, attempts[each.name], rules.timeout)
        now = time.monotonic()
        if rules.memory is not None and now - self.last_weighing >= limits.WEIGH_SECONDS:
            self.last_weighing = now
            groups = {each.process.pid: each for each in busy if each.process.pid is not None}
            for group, held in limits.heaviest(groups, rules.memory).items():
                why = limits.memory_passed(held, rules.memory)
                self._end_for(groups[group], attempts[groups[group].name], why)

    def _enforce_timeout(self, each: _Worker, attempt: Attempt, timeout: float) -> None:
        late = attempt.started is not None and time.monotonic() - attempt.started > timeout
        if late and not each.late and _SIGUSR1 is not None and each.process.pid is not None:
            with contextlib.suppress(OSError):  # it may just have died
                os.kill(each.process.pid, _SIGUSR1)  # it writes to its log where it is; the next look ends it
        elif late:
            self._end_for(each, attempt, limits.time_passed(timeout))
        each.late = late

    def _end_for(self, each: _Worker, attempt: Attempt, why: str) -> None:
        each.ended_for = (attempt.token, why)
        each.end(_SIGKILL)

    def _hire(self, counts: Counts) -> None:
        for _ in range(min(self.size - len(self.workers), counts.pending)):
            name = new_token()
            log = self.logs / f"{name}.txt"
            pipe, process = launch.start(self.orders, name, log, self.preload)
            self.workers.append(_Worker(name, log, pipe, process))

    def _listen(self) -> None:
        """Wait a moment for what the workers have to say, and see to those that have ended."""
        pipes = [each.pipe for each in self.workers if not each.hung_up]
        heard = wait([*pipes, *(each.process.sentinel for each in self.workers)], _TICK)
        for each in list(self.workers):
            if each.pipe in heard:
                self._hear(each)
            if each.process.sentinel in heard:
                self._bury(each)

    def _hear(self, each: _Worker) -> None:
        while True:
            try:
                if not each.pipe.poll():
                    return
                message = each.pipe.recv()
            except (EOFError, OSError):
                each.hung_up = True
                return
            self._answer(each, message)

    def _answer(self, each: _Worker, message: tuple[Any, ...]) -> None:
        if message[0] == "stop":
            _, kind, text = message
            raise kind(text)
        if message[0] == "broken":
            raise HomeostatError(
                f"The workers cannot load the objective:\n{message[1]}\nWhat it needs must be importable in a new "
                "process; or run the trials in this one with workers=0."
            )
        if message[0] != "ready":
            each.fruitful = True
            self.watch.event(message)

    def _bury(self, each: _Worker) -> None:
        """A worker has ended: hear its last messages, and count a death for the trial it was running."""
        each.process.join()
        if not each.hung_up:
            self._hear(each)
        each.end(_SIGKILL)  # what it started
        words = each.last_words()
        token = None if each.ended_for is None else each.ended_for[0]
        held = self.ledger.bury(each.name, words, self.orders.rules.retries, token=token)
        for trial, status in held:
            self.watch.event(("quarantined" if status == "quarantined" else "failed", trial, words))
        alive = held or each.fruitful or each.ended_for or not each.process.exitcode
        self.stillborn = 0 if alive else self.stillborn + 1
        self._forget(each)
        if self.stillborn >= _STILLBORN:
            raise HomeostatError(f"Workers die before they begin a trial, {self.stillborn} in a row. {words}")

    def _forget(self, each: _Worker) -> None:
        self.workers.remove(each)
        each.pipe.close()
        each.process.close()
        each.log.unlink(missing_ok=True)

    def _part(self, stop: Stop) -> None:
        """Nothing is left to do: hear the last messages and let the workers go by themselves."""
        self._await_ends(stop)
        for each in self.workers:
            if not each.hung_up:
                self._hear(each)

    def _dismiss(self, stop: Stop) -> None:
        """End all workers (a second Ctrl-C: at once) and give back what they held."""
        for how in (signal.SIGTERM, _SIGKILL):
            for each in self.workers:
                if each.process.is_alive():
                    each.end(how)
            self._await_ends(stop)
        for each in list(self.workers):
            each.process.join()
            each.end(_SIGKILL)  # what it started
            with contextlib.suppress(StorageError):  # then whoever resumes sees that nobody holds it
                self.ledger.release_worker(each.name)
            self._forget(each)

    def _await_ends(self, stop: Stop) -> None:
        until = time.monotonic() + _GRACE
        while any(each.process.is_alive() for each in self.workers) and time.monotonic() < until and stop.asked < 2:
            wait([each.process.sentinel for each in self.workers if each.process.is_alive()], 0.05)


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Count SIGINT and SIGTERM instead of being thrown out of wherever the driver is."""
    stop = Stop()
    with _handling((signal.SIGINT, signal.SIGTERM), stop.note):
        yield stop


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM,), interrupt):
        yield


@contextmanager
def _handling(signals: tuple[signal.Signals, ...], handler: Any) -> Iterator[None]:
    """Handle signals that are not ignored; only the main thread can."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for each in signals:
            if signal.getsignal(each) is not signal.SIG_IGN:
                before[each] = signal.signal(each, handler)
    try:
        yield
    finally:
        for each, old in before.items():
            signal.signal(each, signal.SIG_DFL if old is None else old)
