"""What a worker does: claim a trial, call the objective, store what came of it, and again until none is left.

An exception in the objective is the trial's own failure, stored with a short traceback; a full disk is everybody's, and
ends the study; so does an objective whose return value cannot be used, before any trial has shown that it can be.
Warnings raised inside the objective are kept with the trial. The objective is handed its seed, and nothing is seeded
for it. Nothing here is random.
"""

from __future__ import annotations

import inspect
import os
import shutil
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from homeostat.errors import HomeostatError, invalid, invalid_type
from homeostat.page.text import encodable
from homeostat.study.factors import DIVERGED, TAKEN
from homeostat.study.state import vitals
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Claim, Ledger, StaleClaim
from homeostat.study.state.storage import FULL, StorageError, explained

Objective: TypeAlias = Callable[..., Mapping[str, float]]
Event: TypeAlias = tuple[Literal["done", "failed", "quarantined", "lost"], int, str]  # what, trial, text

LEASE_SECONDS = 30.0
_FRAMES = 8  # of a traceback
_TEXT = 4000  # characters of an error's message
_WARNINGS = 20  # distinct ones kept per trial
_QUIET = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as Python does by default


@dataclass(frozen=True)
class Rules:
    """How trials are run.

    Attributes:
        retries: failed attempts that are forgiven; one more and the trial is quarantined.
        lease: seconds without a sign of life after which a trial is given to somebody else.
        response: the metric that every result must have; None: any will do.
        timeout: seconds that an attempt may take before the driver ends its worker and all that it started; None: any
            time. Nothing else helps against a trial that hangs: the heartbeat's thread goes on and keeps its lease.
        memory: bytes that a worker and all that it started may hold in RAM; None: as much as there is.
    """

    retries: int = 2
    lease: float = LEASE_SECONDS
    response: str | None = None
    timeout: float | None = None
    memory: int | None = None


class Trial:
    """What an objective with a parameter `trial` is told, and how it reports.

    Attributes:
        number: the trial's place in the run order, from 0.
        attempt: 1 for the first attempt, 2 after one that failed or was interrupted, ...
        directory: private to this trial; it survives retries and resumes, so checkpoints go there, and it is removed
            once the result is stored.
    """

    def __init__(self, ledger: Ledger, claim: Claim, lease: float = LEASE_SECONDS) -> None:
        self.number = claim.trial
        self.attempt = claim.attempt
        self.directory = trial_directory(ledger.directory, claim.trial)
        self._ledger, self._claim, self._lease = ledger, claim, lease
        self._steps: list[dict[str, Any]] = []
        with explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def report(self, epoch: int, **values: float) -> None:
        """Store one row of the learning curve; also a sign of life. Reporting an epoch again replaces its row.

        Args:
            epoch: 0 or more.
            values: by name; anything that float() takes, NaN and infinities too.
        Raises: StaleClaim once another worker has the trial: stop then.
        """
        if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 0:
            raise invalid("Trial.report", "epoch", "be an integer of at least 0", epoch)
        _check_names("Trial.report", "curves", values)
        record = {name: _as_float("Trial.report", name, value) for name, value in values.items()}
        numbers = ({name: _as_float("Trial.step", name, value) for name, value in step.items()} for step in self._steps)
        steps = vitals.pack(list(numbers)) if self._steps else None
        self._ledger.report(self._claim, epoch, record, self._lease, steps)
        self._steps = []

    def step(self, step: int, **values: float) -> None:
        """Note what happened in one step of training. The next `report` stores it, compressed, with its epoch.

        Args:
            step: 0 or more.
            values: by name, as for `report`. What is a tensor is only read then, so that no step waits for a GPU.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise invalid("Trial.step", "step", "be an integer of at least 0", step)
        _check_names("Trial.step", "steps", values)
        self._steps.append({"step": step, **values})


def _check_names(where: str, table: str, names: Iterable[str]) -> None:
    """Raise InvalidValue for names that the table cannot have."""
    taken = {"trial", "treatment", "seed", "epoch"}.intersection(names)
    if taken:
        raise invalid(where, "names", f"not be columns of the table of {table}", sorted(taken))
    for name in names:
        if name != encodable(name):
            raise invalid(where, "names", "be text that UTF-8 can hold", name)


def trial_directory(directory: Path, trial: int) -> Path:
    """Where a trial keeps its checkpoints."""
    return directory / "trials" / str(trial)


def work(ledger: Ledger, objective: Objective, holder: Holder, rules: Rules) -> Iterator[Event]:
    """Run pending trials, one after another, until none is pending; yields what came of each.

    Raises: StorageError if the disk is full or the ledger cannot be written; InvalidType or InvalidValue if the
        objective's result cannot be used and no trial of the study has yet ended well.
    """
    while (claim := ledger.claim(holder, rules.lease)) is not None:
        yield run_trial(ledger, claim, objective, rules, interruptible=holder.process == holder.driver)


def run_trial(ledger: Ledger, claim: Claim, objective: Objective, rules: Rules, *, interruptible: bool = True) -> Event:
    """Run one claimed trial and store its result or failure; see `work` for what is raised.

    Args:
        interruptible: whether a KeyboardInterrupt is the user's, which gives the trial back and is raised. In a worker,
            to which Ctrl-C means nothing, it is the objective's own, and a failure like any other.
    """
    start = time.perf_counter()
    seen: list[str] = []
    try:
        with _heartbeat(ledger, claim, rules.lease), _collected_warnings(seen):
            returned = _call(ledger, claim, objective, rules)
            metrics = _checked(returned, claim, rules)
        ledger.finish(claim, metrics, time.perf_counter() - start, seen)
    except StaleClaim as error:
        return "lost", claim.trial, str(error)
    except _Unusable as error:
        if not ledger.counts().done:
            ledger.release(claim)
            raise error.reason from None
        return _failed(ledger, claim, str(error.reason), rules, (start, seen), final=True)
    except (Exception, SystemExit) as error:
        _raise_if_storage(ledger, claim, error)
        return _failed(ledger, claim, short_traceback(error), rules, (start, seen))
    except BaseException as error:
        if not interruptible:
            return _failed(ledger, claim, short_traceback(error), rules, (start, seen))
        ledger.release(claim)
        raise
    shutil.rmtree(trial_directory(ledger.directory, claim.trial), ignore_errors=True)
    return "done", claim.trial, ""


def short_traceback(error: BaseException) -> str:
    """What went wrong in the first line, then the last frames that led there, without those of this module."""
    said = "".join(traceback.format_exception_only(error)).strip()
    if len(said) > _TEXT:
        said = f"{said[: _TEXT // 2]} ... {said[-_TEXT // 2 :]}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    return "\n".join([said, *"".join(traceback.format_list(frames[-_FRAMES:])).splitlines()])


class _Unusable(Exception):
    """The objective returned something that is not a result; `reason` is the error for the user."""

    def __init__(self, reason: HomeostatError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _call(ledger: Ledger, claim: Claim, objective: Objective, rules: Rules) -> object:
    if _takes_trial(objective):
        return objective(dict(claim.config), claim.seed, trial=Trial(ledger, claim, rules.lease))
    return objective(dict(claim.config), claim.seed)


def _takes_trial(objective: Objective) -> bool:
    try:
        return "trial" in inspect.signature(objective).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False


def _checked(returned: object, claim: Claim, rules: Rules) -> dict[str, float]:
    """The result as metrics, or _Unusable."""
    where, cure = "objective", "Return a dict such as {'valid_accuracy': 0.93}."
    try:
        if not isinstance(returned, Mapping):
            raise invalid_type(where, "its result", "be a dict of metrics", returned, cure)
        if not returned.keys() - {DIVERGED}:
            raise invalid(where, "its result", "hold at least one metric", returned, cure)
        for name in returned:
            if not isinstance(name, str) or not name:
                raise invalid_type(where, "each name of a metric", "be a text", name, cure)
            if name != encodable(name):
                raise invalid(where, "each name of a metric", "be text that UTF-8 can hold", name)
            _refuse_taken(where, name, returned, claim.config)
        if rules.response is not None and rules.response not in returned:
            cure = f"That is the study's response; name another one with response=, such as {next(iter(returned))!r}."
            raise invalid(where, "its result", f"hold {rules.response!r}", sorted(returned), cure)
        return {name: _as_float(where, name, value) for name, value in returned.items()}
    except HomeostatError as error:
        raise _Unusable(error) from None


def _refuse_taken(where: str, name: str, metrics: Iterable[str], config: Iterable[str]) -> None:
    """Raise InvalidValue for a metric whose columns in the table of treatments would be those of something else."""
    bounds = {f"{name}_low", f"{name}_high"}
    taken = bounds & {*metrics} | {name, *bounds} & (TAKEN - {DIVERGED} | {*config})
    if taken:
        cure = f"With its interval it takes {name}, {name}_low and {name}_high in the table of treatments: rename it."
        raise invalid(where, f"metric {name!r}", "not take columns that are there already", sorted(taken), cure)


def _as_float(where: str, name: str, value: Any) -> float:
    if not isinstance(value, str | bytes):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            pass
    raise invalid_type(where, name, "be one number", value)


def _failed(
    ledger: Ledger, claim: Claim, text: str, rules: Rules, spent: tuple[float, list[str]], *, final: bool = False
) -> Event:
    start, seen = spent
    seconds = time.perf_counter() - start
    try:
        status = ledger.fail(claim, text, rules.retries, seconds=seconds, warnings=seen, final=final)
    except StaleClaim as error:
        return "lost", claim.trial, str(error)
    return "quarantined" if status == "quarantined" else "failed", claim.trial, text


def _raise_if_storage(ledger: Ledger, claim: Claim, error: BaseException) -> None:
    """Tell a study whose directory cannot be written from a trial that failed by itself."""
    full = _full_disk(error, ledger.directory) or _unwritable(ledger.directory)
    if full is None:
        return
    with suppress(StorageError):  # then the driver gives the trial back, or whoever resumes
        ledger.release(claim)
    raise full from error


def _full_disk(error: BaseException | None, directory: Path) -> StorageError | None:
    while error is not None:
        if isinstance(error, StorageError):
            return error
        if isinstance(error, OSError) and error.errno in FULL:
            cure = "Free some space; the same command then resumes where this one stopped."
            return StorageError(f"{error.filename or directory}: {error.strerror}. {cure}")
        error = error.__cause__ or error.__context__
    return None


def _unwritable(directory: Path) -> StorageError | None:
    """Libraries wrap a full disk into errors of their own; so try."""
    probe = directory / f".probe-{os.getpid()}-{threading.get_ident()}"
    try:
        with explained(directory):
            try:
                probe.write_bytes(bytes(65536))
            finally:
                probe.unlink(missing_ok=True)
    except StorageError as error:
        return error
    return None


@contextmanager
def _heartbeat(ledger: Ledger, claim: Claim, lease: float) -> Iterator[None]:
    """Renew the lease from a thread as long as the block runs."""

    def beat(ended: threading.Event) -> None:
        while not ended.wait(lease / 3):
            try:
                ledger.renew(claim, lease)
            except StaleClaim:
                return  # the next write of the trial itself is refused
            except StorageError:
                continue  # it may pass; if not, the trial's next write says why

    with beside(f"heartbeat of trial {claim.trial}", beat):
        yield


@contextmanager
def beside(name: str, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Let a thread work while the block runs; it is given the event that tells it to end."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def _collected_warnings(seen: list[str]) -> Iterator[None]:
    """Append the warnings of the block to `seen`, each once."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for category in _QUIET:
            warnings.simplefilter("ignore", category)
        try:
            yield
        finally:
            texts = list(dict.fromkeys(encodable(f"{w.category.__name__}: {w.message}") for w in caught))
            seen += texts[:_WARNINGS]
            if len(texts) > _WARNINGS:
                seen.append(f"... and {len(texts) - _WARNINGS} more")
