"""What the report of some studies has besides: how a sequential one went, and what a tuned one depends on.

A section is plain data: a name for links, a title, notes (paragraphs) and tables of texts. Nothing here is random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from homeostat.study.factors import level_text
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.effects import oriented
from homeostat.study.results.wording import Unit, listed, metric_words, settings
from homeostat.study.show.exhibits import change_text
from homeostat.study.stopping import Look
from homeostat.study.tuning import LEFT_OUT, TUNED, Tuning

_MOST_ROWS = 40


@dataclass(frozen=True)
class Table:
    """A table of texts; the first column names its row, the others are numbers."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """One section of a page."""

    name: str
    title: str
    notes: tuple[str, ...]
    tables: tuple[Table, ...] = ()


def sequence_section(notes: list[str], analysis: Analysis, found: Look) -> Section:
    """How a sequential study went: what was run, and what the last look says of every effect."""
    unit = analysis.unit.column(found.effects[["estimate", "low", "high"]].to_numpy().tolist())
    rows = tuple((str(row.label), str(row.n), _change(row, unit), str(row.state)) for row in found.effects.itertuples())
    head = ("effect", "seeds", analysis.unit.change_label, "state")
    return Section("sequence", "Seeds one by one", tuple(notes), _tables(Table("Effects at the last look", head, rows)))


def tuning_section(tuning: Tuning, analysis: Analysis) -> Section:
    """Which levels were chosen, and the effects at each fixed level beside those at the tuned one."""
    names, design = list(tuning.usual), analysis.design
    values = tuning.chosen[tuning.metric].to_numpy(dtype=float)
    unit = analysis.units.get(tuning.metric, analysis.unit)
    chosen = tuple(
        (
            settings(design.config(number)),
            *(level_text(level) for level in tuning.setting(number).values()),
            unit.value(values[number]),
            str(tuning.chosen["n"].iloc[number]),
        )
        for number in np.argsort(-oriented(analysis.goal) * values, kind="stable").tolist()
    )
    head = ("treatment", *names, metric_words(tuning.metric), "seeds")
    ways = list(dict.fromkeys(tuning.dependence["way"]))
    change = analysis.unit.column(tuning.dependence[["estimate", "low", "high"]].to_numpy().tolist())
    cells: dict[str, list[str]] = {}
    for row in tuning.dependence.itertuples():
        cells.setdefault(str(row.label), []).append(_change(row, change))
    effects = tuple((label, *texts) for label, texts in cells.items())
    notes = [
        f"Every treatment was run at every level of {listed(names)}, and has the one that is best for it: by "
        f"{metric_words(tuning.metric)}, in the mean over seeds. It is judged by {metric_words(tuning.judged)}.",
        f"“{TUNED}” compares treatments each at its own level; the columns to the right of it show how much the "
        "conclusion depends on that.",
    ]
    if LEFT_OUT in ways:
        notes.append(f"“{LEFT_OUT}”: each seed is judged at the level that is best under the others.")
    base = design.find(design.base)
    if base is not None:
        notes.append(f"Whoever tunes the base treatment alone compares at {settings(tuning.setting(base))}.")
    what = f"Effects by how the levels are set ({analysis.unit.change_label})"
    tables = _tables(Table("Chosen levels, best first", head, chosen), Table(what, ("effect", *ways), effects))
    return Section("tuning", f"Tuned: {listed(names)}", tuple(notes), tables)


def _tables(*tables: Table) -> tuple[Table, ...]:
    """Those that have rows; of long ones the first rows, which the caption says."""
    return tuple(
        replace(
            each, caption=f"{each.caption}, the first {_MOST_ROWS} of {len(each.rows)}", rows=each.rows[:_MOST_ROWS]
        )
        if len(each.rows) > _MOST_ROWS
        else each
        for each in tables
        if each.rows
    )


def _change(row: Any, unit: Unit) -> str:
    """A change with its interval; one that is not finite on both sides is left out."""
    low, high = (row.low, row.high) if math.isfinite(row.high - row.low) else (math.nan, math.nan)
    return change_text(unit, row.estimate, low, high)
