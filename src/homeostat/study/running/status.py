"""How a study stands, seen from another process: counts, who runs what since when, what failed, the strongest effects.

It reads the ledger and writes nothing: no lease is recovered and no trial is taken. Nothing here is random.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from homeostat.page.terminal import Printer
from homeostat.page.text import duration
from homeostat.study.design import Design
from homeostat.study.factors import Level, level_text
from homeostat.study.running.interim import Interim, Strongest
from homeostat.study.state.lease import boot_id
from homeostat.study.state.ledger import Attempt, Counts, Ledger
from homeostat.study.tuning import as_grid

_MOST_ROWS = 20  # of running trials, and of failed ones


@dataclass(frozen=True)
class Running:
    """A running trial: its name, the attempt, the worker's pid, seconds since it began (None: not known here)."""

    trial: int
    name: str
    attempt: int
    pid: int
    seconds: float | None
    held: bool  # whether its worker still has it; otherwise the next driver runs it again


@dataclass(frozen=True)
class Failed:
    """A trial that failed: its name, how often it was begun, why in a line, whether it is given up."""

    trial: int
    name: str
    attempts: int
    why: str
    given_up: bool


@dataclass(frozen=True)
class Status:
    """How a study stands.

    Attributes:
        directory: of the study.
        counts: trials by state.
        running, failed: in run order; failed trials are those given up and those that are to be tried again.
        left: seconds that the rest takes at the present number of workers; None where that is not known.
        strongest: the largest effects by the seeds that are complete.
        seeds: how many the study has.
    """

    directory: Path
    counts: Counts
    running: tuple[Running, ...]
    failed: tuple[Failed, ...]
    left: float | None
    strongest: Strongest
    seeds: int


class Onlooker:
    """Looks at one study as often as asked; a context manager.

    Args:
        directory: of the study.
    Raises: StorageError if there is none; InvalidValue if a newer homeostat wrote it.
    """

    def __init__(self, directory: Path | str) -> None:
        self._ledger = Ledger.open(directory, read_only=True)
        try:
            made = self._ledger.configuration
            self._design = Design.from_dict(made["design"])
            judged = {"response": made["response"], "goal": made["goal"], "margin": made["margin"]}
            self._grid = as_grid(made["design"].get("tune"), self._design)
            self._interim = Interim(self._ledger, self._design, judged, self._grid)
            self._first = True
        except BaseException:
            self._ledger.close()
            raise

    def __enter__(self) -> Onlooker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ledger.close()

    def look(self) -> Status:
        """How it stands now. The first look works out the effects, later ones do when that costs next to nothing."""
        attempts, trials, counts = self._ledger.running(), self._ledger.trials(), self._ledger.counts()
        configs = [self._design.config(treatment) for treatment in trials["treatment"]]
        if self._grid is not None:
            settings = [self._grid.settings[place] for place in self._grid.places(trials)]
            configs = [config | setting for config, setting in zip(configs, settings, strict=True)]
        names = [trial_name(config, seed) for config, seed in zip(configs, trials["seed"], strict=True)]
        running = tuple(_running(attempt, names[attempt.trial]) for attempt in attempts)
        strongest = self._interim.now() if self._first else self._interim(counts.done)
        self._first = False
        left = _left(counts, trials, running)
        failed = tuple(_failed(trials, names))
        return Status(self._ledger.directory, counts, running, failed, left, strongest, len(self._design.seeds))


def trial_name(config: Mapping[str, Level], seed: int) -> str:
    """A trial for people: "norm=batch, dropout=0.2, seed 3"."""
    return ", ".join([*(f"{name}={level_text(level)}" for name, level in config.items()), f"seed {seed}"])


def read_status(directory: Path | str) -> Status:
    """How the study in `directory` stands; see `Onlooker`."""
    with Onlooker(directory) as onlooker:
        return onlooker.look()


def _running(attempt: Attempt, name: str) -> Running:
    now = time.monotonic()
    known = attempt.started is not None and attempt.holder.boot == boot_id()
    seconds = now - attempt.started if known and attempt.started is not None else None
    held = attempt.holder.fate(attempt.deadline, now) == "held"
    return Running(attempt.trial, name, attempt.attempt, attempt.holder.process.pid, seconds, held)


def _failed(trials: pd.DataFrame, names: list[str]) -> list[Failed]:
    columns = (trials[name] for name in ("trial", "attempt", "failure", "status"))
    return [
        Failed(trial, names[trial], attempt, str(failure).partition("\n")[0], status == "quarantined")
        for trial, attempt, failure, status in zip(*columns, strict=True)
        if failure is not None and status != "done"
    ]


def _left(counts: Counts, trials: pd.DataFrame, running: tuple[Running, ...]) -> float | None:
    """By the mean time of the trials that are done, if as many workers go on."""
    workers = [each for each in running if each.held]
    if counts.ended or not workers or not counts.done:
        return None
    mean = float(trials.loc[trials["status"] == "done", "seconds"].mean())
    begun = sum(max(0.0, mean - (each.seconds or 0.0)) for each in workers)
    return (mean * (counts.planned - counts.done - counts.quarantined - len(workers)) + begun) / len(workers)


def rendered(status: Status, console: Console) -> RenderableType:
    """The status as something that `console` can print."""
    show = Printer(console)
    counts = status.counts
    parts: list[RenderableType] = []
    parts.append(show.cell(f"{status.directory}: {_counted(status)}", "bold"))
    if counts.ended:
        again = " With --retry-failed it also runs what was given up." if counts.quarantined else ""
        ended = f"The study has ended. Where report.html is missing, the same command writes it.{again}"
        parts.append(show.cell(ended))
    elif not any(each.held for each in status.running):
        parts.append(show.cell("Nobody is working on it. The same command goes on where it stopped.", "yellow"))
    elif status.left is not None:
        parts.append(show.cell(f"{'At most about' if counts.waiting else 'About'} {duration(status.left)} left."))
    if status.running:
        rows = [
            (str(each.trial), each.name, _since(each), f"attempt {each.attempt}", f"pid {each.pid}")
            for each in status.running
        ]
        parts += _section(show, "Running", rows)
    if status.failed:
        words = {True: "given up", False: "will be tried again"}
        failed = [
            (str(each.trial), each.name, words[each.given_up], f"attempt {each.attempts}", each.why)
            for each in status.failed
        ]
        parts += _section(show, "Failed", failed)
    found = status.strongest
    if found.effects:
        heading = f"Strongest effects so far ({found.seeds} of {status.seeds} seeds are complete)"
        whole = "Strongest effects" if counts.ended else heading
        parts += _section(show, whole, [(each.label, each.amount, each.verdict) for each in found.effects])
    return Group(*parts)


def _counted(status: Status) -> str:
    counts = status.counts
    waiting = (counts.waiting, "not needed" if counts.ended else "waiting for what others show")
    numbers = ((counts.running, "running"), (counts.quarantined, "failed"), waiting)
    more = [f"{number} {word}" for number, word in numbers if number]
    return ", ".join([f"{counts.done} of {counts.planned} trials are done", *more]) + "."


def _since(each: Running) -> str:
    if not each.held:
        return "its worker is gone"
    return "" if each.seconds is None else f"for {duration(each.seconds)}"


def _section(show: Printer, heading: str, rows: Sequence[tuple[str, ...]]) -> list[RenderableType]:
    table = Table.grid(padding=(0, 2))
    for row in rows[:_MOST_ROWS]:
        table.add_row(*map(show.cell, row))
    parts: list[RenderableType] = [Text(), show.cell(heading, "bold"), table]
    if len(rows) > _MOST_ROWS:
        parts.append(show.cell(f"... and {len(rows) - _MOST_ROWS} more.", "dim"))
    return parts
