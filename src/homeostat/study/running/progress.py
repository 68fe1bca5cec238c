"""How a study is getting on: a live board on a terminal or in a notebook, a plain line now and then elsewhere.

The board has a bar of the trials that have ended, what runs, what failed, the time left, and the strongest effects so
far. Nothing here is random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

from homeostat.page.terminal import Printer
from homeostat.page.text import roughly
from homeostat.study.running.interim import Strongest
from homeostat.study.running.local import Watch
from homeostat.study.running.runner import Event
from homeostat.study.state.ledger import Counts

_PLAIN_SECONDS = 5.0  # between two plain lines
_QUIET_SECONDS = 30.0  # between two plain lines when nothing has changed
_MOST_FAILURES = 20  # that are told one by one


class Silent:
    """Tells nobody anything."""

    def event(self, event: Event) -> None:
        """A trial ended one way or another."""

    def tick(self, counts: Counts) -> None:
        """Called several times a second."""


@contextmanager
def shown(
    console: Console, name_of: Callable[[int], str], strongest: Callable[[int], Strongest] = lambda done: Strongest()
) -> Iterator[Watch]:
    """Show progress on `console` while the block runs.

    Args:
        name_of: what to call the trial of a number, e.g. "norm=batch, seed 3".
        strongest: the strongest effects, given how many trials are done; asked several times a second.
    """
    if not (console.is_terminal or console.is_jupyter):
        yield _Teller(console, name_of)
        return
    described = TextColumn("{task.description}")
    columns = (TextColumn("trials"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), described)
    with _Board(*columns, console=console) as board:
        yield _Teller(console, name_of, board, strongest)


class _Board(Bars):
    """A bar, and below it the strongest effects."""

    strongest = Strongest()

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.strongest.effects:
            show = Printer(self.console)
            yield show.cell(f"Strongest effects so far (complete seeds: {self.strongest.seeds})", "dim")
            table = Table.grid(padding=(0, 2))
            for effect in self.strongest.effects:
                table.add_row(*map(show.cell, (effect.label, effect.amount, effect.verdict)))
            yield table


class _Teller:
    def __init__(
        self,
        console: Console,
        name_of: Callable[[int], str],
        bars: _Board | None = None,
        strongest: Callable[[int], Strongest] | None = None,
    ) -> None:
        self._show, self._name_of, self._bars, self._strongest = Printer(console), name_of, bars, strongest
        self._bar = bars.add_task("", total=None) if bars else None
        self._start = time.monotonic()
        self._ended_before: int | None = None  # trials that had ended when this driver came
        self._last, self._last_line = (self._start, "")
        self._failures = 0

    def event(self, event: Event) -> None:
        """Say that a trial failed, and why."""
        kind, trial, text = event
        if kind not in ("failed", "quarantined"):
            return
        self._failures += 1
        if self._failures > _MOST_FAILURES:
            return
        fate = "will be tried again" if kind == "failed" else "is given up"
        gist = text.partition("\n")[0]
        self._show.say(f"Trial {trial} ({self._name_of(trial)}) failed and {fate}: {gist}")
        if self._failures == _MOST_FAILURES:
            self._show.say("Further failures are not shown here; the table of trials has them.")

    def tick(self, counts: Counts) -> None:
        """Bring what is shown up to date."""
        ended = counts.done + counts.quarantined
        if self._ended_before is None:
            self._ended_before = ended
        line = self._line(counts, ended)
        if self._bars is not None and self._bar is not None:
            if self._strongest is not None:
                self._bars.strongest = self._strongest(counts.done)
            self._bars.update(self._bar, total=counts.planned, completed=ended, description=line)
            return
        waited = time.monotonic() - self._last
        if waited >= (_PLAIN_SECONDS if line != self._last_line else _QUIET_SECONDS):
            self._last, self._last_line = time.monotonic(), line
            self._show.say(f"{ended} of {counts.most} trials, {line}")

    def _line(self, counts: Counts, ended: int) -> str:
        parts = ["finished" if counts.ended else f"{counts.running} running"]
        if counts.quarantined:
            parts.append(f"{counts.quarantined} failed")
        since = ended - (self._ended_before or 0)
        if since and not counts.ended:
            left = (counts.planned - ended) * (time.monotonic() - self._start) / since
            parts.append(f"{'at most ' if counts.waiting else ''}{roughly(left)} left")
        return ", ".join(parts)
