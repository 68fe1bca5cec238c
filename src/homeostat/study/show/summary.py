"""The summary of a study on a terminal: the same sentence, effects, treatments and recommendation as in the report.

Nothing is computed here and nothing is random.
"""

from __future__ import annotations

import math

from rich.console import Console
from rich.table import Table
from rich.text import Text

from homeostat.page.terminal import ASCII, Printer
from homeostat.page.text import shorten
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import counted
from homeostat.study.show import exhibits
from homeostat.study.show.figures import Interval
from homeostat.study.show.remarks import remarks

_MOST_INTERACTIONS = 6  # with those that have a verdict, and those in any case
_MOST_TREATMENTS = 5  # beside base and recommended
_MOST_WARNINGS = 6
_LEAST_PLOT = 12  # characters; in fewer nothing can be seen
_STYLES = {"up": "bold cyan", "down": "bold yellow", "flat": "", "none": "dim"}
_MARKS = {"up": "▲", "down": "▼", "flat": "○"}


def print_summary(analysis: Analysis, console: Console) -> None:
    """Print what a study found, as wide as the console is.

    Args:
        analysis: what is reported.
        console: where it is printed; without color or Unicode it stays readable.
    """
    show = Printer(console)
    show.text(analysis.summary, "bold")
    show.text(" · ".join(exhibits.counts(analysis)), "dim")
    told = remarks(analysis)
    for remark in told[:_MOST_WARNINGS]:
        show.item("!", remark, "yellow")
    if len(told) > _MOST_WARNINGS:
        more = counted(len(told) - _MOST_WARNINGS, "more remark")
        show.item("!", f"{more} in the report.", "yellow")
    rows = exhibits.forest_rows(analysis)
    if any(row.look != "none" for row in rows):
        unit = f"points of {analysis.unit.name}" if analysis.unit.points else analysis.unit.name
        show.heading(f"What each technique does ({unit})")
        kept = _kept(rows)
        show.table(_effects(kept, show))
        show.more(len(analysis.effects) - len(kept))
    if analysis.finished > analysis.diverged:
        show.heading(f"Treatments, best first by {analysis.unit.name} (★ recommended, ◇ base)")
        table = _treatments(analysis, show)
        show.table(table)
        show.more(len(exhibits.treatment_rows(analysis)) - table.row_count)
    if analysis.recommendation.reasons:
        show.heading("Recommendation")
        for reason in analysis.recommendation.reasons:
            show.item("•", reason)


def _kept(rows: list[Interval]) -> list[Interval]:
    """The effects that are printed: every main effect, every clear interaction, and of the others the largest."""
    told = [row for row in rows if row.group == "Main effects" or row.look in {"up", "down"}]
    mute = [row for row in rows if row not in told][
        : max(0, _MOST_INTERACTIONS - sum(row.group != "Main effects" for row in told))
    ]
    return [row for row in rows if row in told or row in mute]


def _effects(kept: list[Interval], show: Printer) -> Table:
    """A forest plot of characters: label, numbers, interval, verdict."""
    width = show.console.width
    most = max(18, 3 * width // 10)
    labels = [row.label if len(row.label) <= most else min(row.label, row.brief or row.label, key=len) for row in kept]
    label = min(max(map(len, labels)), most)
    room = width - label - max(len(row.text) for row in kept) - max(len(row.verdict) for row in kept)
    gap = 2 if room - 8 >= _LEAST_PLOT else 1
    plot = min(40, room - 4 * gap)
    table = Table.grid(padding=(0, gap))
    span = _span(kept)
    for place, row in enumerate(kept):
        if place and row.group != kept[place - 1].group:
            table.add_row()
        style = _STYLES[row.look]
        cells = [show.cell(shorten(labels[place], label)), Text(show.plain(row.text), justify="right")]
        if plot >= _LEAST_PLOT:
            cells.append(
                Text(_drawn(row, span, plot) if show.unicode else _drawn(row, span, plot).translate(ASCII), style)
            )
        table.add_row(*cells, show.cell(row.verdict, style))
    return table


def _span(rows: list[Interval]) -> tuple[float, float]:
    ends = [x for row in rows if row.look != "none" for x in (row.estimate, row.low, row.high) if math.isfinite(x)]
    return min([0.0, *ends]), max([0.0, *ends])


def _drawn(row: Interval, span: tuple[float, float], width: int) -> str:
    """An interval of characters, `width` wide, with a line at zero."""

    def place(value: float) -> int:
        return round((value - span[0]) / (span[1] - span[0]) * (width - 1)) if span[1] > span[0] else 0

    line = [" "] * width
    line[place(0.0)] = "│"
    if row.look in _MARKS and math.isfinite(row.estimate):
        if math.isfinite(row.low) and math.isfinite(row.high):
            line[place(row.low) : place(row.high) + 1] = "─" * (place(row.high) - place(row.low) + 1)
        line[place(row.estimate)] = _MARKS[row.look]
    return "".join(line)


def _treatments(analysis: Analysis, show: Printer) -> Table:
    """The best treatments, the recommended one and the base, each named by what differs from the base."""
    metrics = exhibits.shown_metrics(analysis)
    columns = list(enumerate(metrics))
    if not _roomy(show, columns):
        columns = [(place, metric) for place, metric in columns if not metric.startswith("train_")]
    wide = _roomy(show, columns)
    states = [(1, "diverged", analysis.diverged), (2, "failed", analysis.failed)]
    shown = [(0, "n"), *((place, name) for place, name, count in states if count)]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("treatment", overflow="fold", ratio=1)
    for _, metric in columns:
        head = "\n".join(map(show.plain, exhibits.column_head(metric, analysis.units[metric].points)))
        table.add_column(Text(head), justify="right", no_wrap=True)
    for name in [*(name for _, name in shown), "time"]:
        table.add_column(name, justify="right", no_wrap=True)
    for place, row in enumerate(exhibits.treatment_rows(analysis)):
        recommended, base = "recommended" in row.roles, "base" in row.roles
        if place < _MOST_TREATMENTS or recommended or base:
            number = f"{'★ ' if recommended else ''}{'◇ ' if base else ''}{row.number}"
            cells = [row.figures[position] for position, _ in columns]
            figures = [f"{cell.text} {cell.beside}".strip() if wide else cell.text for cell in cells]
            counts = [row.counts[position] for position, _ in shown]
            texts = (number, row.name, *figures, *counts, row.seconds)
            table.add_row(*map(show.cell, texts), style="bold cyan" if recommended else "")
    return table


def _roomy(show: Printer, columns: list[tuple[int, str]]) -> bool:
    """Whether there is room for the intervals of so many metrics."""
    return show.console.width >= 45 + 22 * len(columns)
