"""What a report shows of an analysis: the order of rows, the words of cells, and which numbers go into which figure.

Between `analysis`, which knows the numbers, and `report` and `summary`, which lay them out on a page or a terminal.
Nothing is estimated here and nothing is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from homeostat.page.svg import Picture
from homeostat.page.text import duration, percent, shorten
from homeostat.study.factors import Factor, Level, level_text
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import Unit, capital, counted, metric_words, setting
from homeostat.study.show import curves as learning
from homeostat.study.show.figures import Interval, forest, matrix, strip
from homeostat.study.show.scatters import Point, cost

# How a verdict is drawn: a triangle up or down, a hollow circle, or nothing.
LOOKS = {"helps": "up", "strengthens": "up", "hurts": "down", "weakens": "down", "not estimable": "none"}
# Two techniques that hurt each "weaken" the other where together they are even worse: say what a reader takes from it.
_SAYS = {"strengthens": "better together", "weakens": "worse together"}
_MOST_INTERACTIONS = 24  # in the forest plot; the table has them all
_MOST_CELLS = 20  # rows of the interaction matrix
_MOST_NAMED = 8  # learning curves with a name
_OFF = ("none", "keep", "off", "no", "")
# The parts of a treatment beside its learning curve.
_MARKED = {"base": "◇ base", "base, best": "◇ base", "recommended": "★ recommended"}
_MARKED |= {
    "base, recommended": "★ ◇ base",
    "base, recommended, best": "★ ◇ base",
    "recommended, best": "★ recommended",
}
_UNKNOWN = Interval("", math.nan, math.nan, math.nan, "none", "", "")


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, what stands beside it in small, and a drawing (SVG markup)."""

    text: str
    beside: str = ""
    plot: str = ""
    look: str = ""


@dataclass(frozen=True)
class Treatment:
    """One row of the table of treatments; `name` says what differs from the base, `roles` is as in `roles`.

    `number` is "–" for a recommendation that was not run.
    """

    number: str
    name: str
    roles: tuple[str, ...]
    levels: tuple[Cell, ...]
    figures: tuple[Cell, ...]
    counts: tuple[str, ...]
    seconds: str


def basis(analysis: Analysis, method: str) -> str:
    """Where a change from the base comes from: "these two treatments, 5 seeds" or "the model of all trials"."""
    seeds = counted(len(analysis.design.seeds), "seed")
    return {"direct": f"these two treatments, {seeds}", "model": "by the model of all trials"}.get(method, "")


def is_switch(factor: Factor) -> bool:
    """Whether a factor is on or off: two levels, the base being nothing at all, or what was there ("keep").

    Example:
        >>> is_switch(Factor("dropout", (0, 0.5))), is_switch(Factor("lr", (0.1, 0.2)))
        (True, False)
    """
    base = factor.base
    off = base is None or base is False or base == 0 or (isinstance(base, str) and base.lower() in _OFF)
    return off and len(factor.levels) == 2


def change_text(unit: Unit, estimate: float, low: float, high: float) -> str:
    """A change with its interval and without its unit, which the column's head or the axis gives."""
    return unit.gain(estimate, low, high).replace(" points", "", 1)


def change_parts(unit: Unit, estimate: float, low: float, high: float) -> tuple[str, str]:
    """The same in two: ("+1.9", "[1.5, 2.3]"); the interval is "" where there is none."""
    number, bracket, interval = change_text(unit, estimate, low, high).partition("[")
    return number.strip(), bracket + interval


def counts(analysis: Analysis) -> list[str]:
    """How much was run and what is judged, in a few words each."""
    treatments, seeds = len(analysis.design.treatments), len(analysis.design.seeds)
    planned = f"{counted(treatments, 'treatment')} × {counted(seeds, 'seed')} = {counted(analysis.planned, 'trial')}"
    diverged = f" ({analysis.diverged} diverged)" if analysis.diverged else ""
    others = (("failed", analysis.failed), ("not run", analysis.missing))
    states = [f"{analysis.finished} finished{diverged}", *(f"{count} {state}" for state, count in others if count)]
    better = "higher" if analysis.goal == "maximize" else "lower"
    judged = f"judged by {analysis.unit.name}, {better} is better"
    return [planned, ", ".join(states), judged, f"{percent(analysis.confidence)} intervals"]


def verdict(said: str) -> str:
    """A verdict as people read it: of interactions "better together" or "worse together" (than the sum of both).

    Example:
        >>> verdict("perhaps weakens"), verdict("helps")
        ('perhaps worse together', 'helps')
    """
    doubt, perhaps, word = said.rpartition("perhaps ")
    return doubt + perhaps + _SAYS.get(word, word)


def brief_label(row: Any) -> str:
    """An effect by the levels alone: "norm=batch", "dropout=0.2 × norm=batch"."""
    return " × ".join(setting(name, level) for name, (_, level) in zip(row.factors, row.levels, strict=True))


def records(table: pd.DataFrame) -> Iterator[Any]:
    """The rows of a table, with its columns as attributes."""
    yield from table.itertuples()


def roles(analysis: Analysis) -> dict[int, tuple[str, ...]]:
    """Which treatments have a part to play, and what it is called: base, recommended, best (by its mean)."""
    found: dict[int, tuple[str, ...]] = {}
    design, table = analysis.design, analysis.treatments
    best = ranked(analysis)[0]
    known = analysis.response in table and not math.isnan(measured(analysis, best, analysis.response)[0])
    named = {
        "base": design.find(design.base),
        "recommended": analysis.recommendation.treatment if analysis.finished > analysis.diverged else None,
        "best": best if known else None,
    }
    for role, treatment in named.items():
        if treatment is not None:
            found[treatment] = (*found.get(treatment, ()), role)
    return found


def shown_metrics(analysis: Analysis) -> tuple[str, ...]:
    """The metrics in the table of treatments: every split of what is judged, or the response and two others."""
    name = analysis.response.split("_", 1)[-1]
    splits = tuple(f"{split}_{name}" for split in ("train", "valid", "test"))
    if analysis.response in splits:
        return tuple(metric for metric in splits if metric in analysis.metrics)
    others = [metric for metric in analysis.metrics if metric != analysis.response]
    return tuple([analysis.response, *others][:3]) if analysis.response in analysis.metrics else tuple(others[:3])


def column_head(metric: str, points: bool) -> tuple[str, str]:
    """A metric's name in two lines: the split, and below it what was measured, with its unit.

    Example:
        >>> column_head("valid_accuracy", points=True)
        ('validation', 'accuracy, %')
    """
    split, _, name = metric.partition("_")
    if split not in ("train", "valid", "test") or not name:
        split, name = metric, ""
    return metric_words(split), ", ".join(filter(None, (metric_words(name), "%" if points else "")))


def ranked(analysis: Analysis) -> list[int]:
    """The numbers of the treatments, the best response first, those without one last."""
    order = analysis.treatments
    if analysis.response not in order:
        return [int(number) for number in order.index]
    sign = -1.0 if analysis.goal == "maximize" else 1.0
    keys = sign * order[analysis.response].astype(float)
    return [int(number) for number in keys.sort_values(kind="stable", na_position="last").index]


def treatment_rows(analysis: Analysis) -> list[Treatment]:
    """The table of treatments, best first."""
    parts, span, rows = roles(analysis), _span(analysis.treatments, analysis.response), _not_run(analysis)
    for number in ranked(analysis):
        row: Any = analysis.treatments.loc[number]
        figures = []
        for metric in shown_metrics(analysis):
            mean, low, high = measured(analysis, number, metric)
            unit = analysis.units[metric]
            plot = strip(mean, low, high, span) if metric == analysis.response else ""
            figures.append(Cell(unit.value(mean).removesuffix(" %"), unit.range(low, high), plot))
        levels = tuple(_level_cell(factor, row[factor.name]) for factor in analysis.design.factors)
        counts = tuple(str(int(row[name])) for name in ("n", "diverged", "failed"))
        name = shorten(what_is_on(analysis, analysis.design.config(number)), 80)
        seconds = duration(row["seconds"])
        rows.append(Treatment(str(number), name, parts.get(number, ()), levels, tuple(figures), counts, seconds))
    return rows


def measured(analysis: Analysis, treatment: int, metric: str) -> tuple[float, float, float]:
    """The mean of a metric over the seeds of a treatment, and its interval."""
    row: Any = analysis.treatments.loc[treatment]
    return float(row[metric]), float(row[f"{metric}_low"]), float(row[f"{metric}_high"])


def what_is_on(analysis: Analysis, config: Mapping[str, Level]) -> str:
    """A treatment by what differs from the base: "norm + dropout", "batch + lr 0.01", or "base"."""
    on = []
    for factor in analysis.design.factors:
        level = config.get(factor.name, factor.base)
        if level != factor.base:
            text = level if isinstance(level, str) else f"{factor.name} {level_text(level)}"
            on.append(factor.name if is_switch(factor) else text)
    return " + ".join(on) or "base"


def effects_unit(analysis: Analysis) -> Unit:
    """How the effects are written, all with the same decimals."""
    return analysis.unit.column(analysis.effects[["estimate", "low", "high"]].to_numpy(dtype=float).tolist())


def forest_rows(analysis: Analysis) -> list[Interval]:
    """The effects as the forest plot shows them: main effects from best to worst, then the largest interactions."""
    table = analysis.effects.reset_index(drop=True)
    sign = 1.0 if analysis.goal == "maximize" else -1.0
    main = table[table["kind"] == "main"]
    main = main.loc[(-sign * main["estimate"]).sort_values(kind="stable").index]
    both = table[table["kind"] != "main"]
    both = both.loc[(-both["estimate"].abs()).sort_values(kind="stable").index].head(_MOST_INTERACTIONS)
    rows = []
    unit = effects_unit(analysis)
    for row in records(pd.concat([main, both])):
        text = change_text(unit, row.estimate, row.low, row.high) if row.estimable else ""
        group = "Main effects" if row.kind == "main" else "Interactions"
        look, numbers = LOOKS.get(row.verdict, "flat"), (row.estimate, row.low, row.high)
        rows.append(Interval(row.label, *numbers, look, verdict(row.verdict), text, group, brief_label(row)))
    return rows


def forest_figure(analysis: Analysis) -> Picture | None:
    """The effects as a forest plot, or None where nothing could be estimated."""
    rows = forest_rows(analysis)
    if not any(row.look != "none" for row in rows):
        return None
    unit = analysis.unit
    clear = [f"{row.label} {row.verdict}" for row in rows if row.look in {"up", "down"}]
    return forest(
        rows,
        axis=f"change of {unit.name}, points" if unit.points else f"change of {unit.name}",
        better="right" if analysis.goal == "maximize" else "left",
        margin=analysis.margin,
        tick=unit.tick,
        alt=f"Forest plot of {counted(len(rows), 'effect')} with intervals. Clear: {'; '.join(clear) or 'none'}.",
    )


def matrix_figure(analysis: Analysis) -> Picture | None:
    """The two-factor interactions as a heat map, or None where there are none."""
    effects = analysis.effects[analysis.effects["kind"] != "main"]
    places = [(factor.name, level) for factor in analysis.design.factors for level in factor.levels[1:]]
    if not effects["estimable"].any() or len(places) > _MOST_CELLS:
        return None
    index = {place: position for position, place in enumerate(places)}
    values, marked = np.full((len(places),) * 2, np.nan), np.zeros((len(places),) * 2, dtype=bool)
    for row in records(effects[effects["estimable"]]):
        i, j = (index[name, level] for name, (_, level) in zip(row.factors, row.levels, strict=True))
        values[i, j] = values[j, i] = row.estimate
        marked[i, j] = marked[j, i] = LOOKS.get(row.verdict) in {"up", "down"}
    sizes = {factor.name: len(factor.levels) for factor in analysis.design.factors}
    labels = [name if sizes[name] == 2 else f"{name}: {level_text(level)}" for name, level in places]
    alt = f"Heat map of {counted(len(effects), 'interaction')} of two factors; the numbers are in the table above."
    better = 1.0 if analysis.goal == "maximize" else -1.0
    scale = float(np.nanmax(np.abs(values)))

    def number(value: float) -> str:
        return change_parts(analysis.unit, value, -scale, scale)[0]  # with the decimals that suit all cells

    return matrix(labels, pd.DataFrame(values), pd.DataFrame(marked), number=number, better=better, alt=alt)


def curve_figures(analysis: Analysis, curves: pd.DataFrame) -> tuple[Picture | None, Picture | None]:
    """The learning curves of the treatments, and those by factor; None where there is nothing to draw."""
    courses = len(curves) and int(curves.groupby("trial")["epoch"].nunique().max()) > 1  # a single epoch is no course
    columns = learning.quantities(curves, analysis.response) if courses else ()
    if not columns:
        return None, None
    units = {column: analysis.units.get(column, Unit(column)) for column in columns}
    tick = units[columns[-1]].tick
    titles = {column: capital(unit.label) for column, unit in units.items()}
    named = _named_lines(analysis)
    alt = f"Learning curves of {counted(len(analysis.treatments), 'treatment')}: {', '.join(titles.values())} by epoch."
    brief = {key: re.sub(r"(#\d+) .*", r"\1", label) for key, (label, _) in named.items()}
    lines = learning.overview(curves, titles, named, tick, alt, brief)
    levels: dict[str, dict[Hashable, str]] = {
        factor.name: _by_level(factor, analysis.design.treatments[factor.name]) for factor in analysis.design.factors
    }
    if len(levels) == 1:
        return lines, None
    alt = f"{titles[columns[-1]]} by epoch, one panel per factor, one line per level."
    return lines, learning.by_factor(curves, columns[-1], levels, tick, alt)


def cost_figure(analysis: Analysis) -> Picture | None:
    """Seconds per trial against the response, or None where no trial has a time."""
    table, response = analysis.treatments, analysis.response
    if response not in table:
        return None
    table = table[np.isfinite(table["seconds"].astype(float)) & np.isfinite(table[response].astype(float))]
    if table.empty:
        return None
    longest = float(table["seconds"].max())
    size, name = (3600.0, "hours") if longest > 5400 else (60.0, "minutes") if longest > 120 else (1.0, "seconds")
    named = _named_roles(analysis)
    points = []
    for number, row in table.iterrows():
        value = measured(analysis, int(str(number)), response)
        points.append(Point(float(row["seconds"]) / size, *value, *named.get(number, ("", 0))))
    alt = f"{counted(len(points), 'treatment')} by time per trial and {analysis.unit.name}."
    names = (f"{name} per trial", capital(analysis.unit.label))
    return cost(points, axes_names=names, ticks=(lambda value: f"{value:g}", analysis.unit.tick), alt=alt)


def conditional_rows(analysis: Analysis) -> list[tuple[str, tuple[Cell, ...]]]:
    """Per level: what it changes alone, on average over the others, and with the others as recommended."""
    main = analysis.effects[analysis.effects["kind"] == "main"].set_index("label")
    tables = [analysis.alone.set_index("label"), main, analysis.together.set_index("label")]
    changes = np.concatenate([table[["estimate", "low", "high"]].to_numpy(dtype=float) for table in tables])
    unit, ends = analysis.unit.column(changes.tolist()), changes[np.isfinite(changes)]
    span = (min(0.0, ends.min(initial=0.0)), max(0.0, ends.max(initial=0.0)))
    rows = []
    for label in analysis.alone["label"]:
        cells = []
        for table in tables:
            known = label in table.index and bool(table.at[label, "estimable"])
            row: Any = table.loc[label] if known else _UNKNOWN
            number, interval = change_parts(unit, row.estimate, row.low, row.high)
            cells.append(Cell(number, interval, strip(row.estimate, row.low, row.high, span, zero=True)))
        rows.append((shorten(str(label), 90), tuple(cells)))
    return rows


def _named_roles(analysis: Analysis) -> dict[Hashable, tuple[str, int]]:
    """The treatments with a part to play: what they are called, and the style of the first of their parts."""
    styles = {"base": 0, "recommended": 1, "best": 2}
    return {number: (", ".join(parts), styles[parts[0]]) for number, parts in roles(analysis).items()}


def _named_lines(analysis: Analysis) -> dict[Hashable, tuple[str, int]]:
    """The learning curves that get a name: all of them if they are few, else those with a part to play."""
    if len(analysis.treatments) > _MOST_NAMED:
        return {number: (_MARKED.get(role, role), style) for number, (role, style) in _named_roles(analysis).items()}
    parts, names = roles(analysis), {}
    for treatment in map(int, analysis.treatments.index):
        part = parts.get(treatment, ())
        place = 0 if "base" in part else 1 if "recommended" in part else 2
        marks = "★ " * ("recommended" in part) + "◇ " * ("base" in part)
        what = what_is_on(analysis, analysis.design.config(treatment))
        names[treatment] = (place, f"{marks}#{treatment} {what}")
    order = sorted(names, key=lambda treatment: (names[treatment][0], treatment))
    return {treatment: (names[treatment][1], style) for style, treatment in enumerate(order)}


def _not_run(analysis: Analysis) -> list[Treatment]:
    """The row of a recommendation that the design does not run, with the change that the model predicts."""
    advice, unit = analysis.recommendation, analysis.unit
    if advice.treatment is not None or not advice.kept or analysis.finished == analysis.diverged:
        return []
    gain = change_parts(unit, advice.gain.estimate, advice.gain.low, advice.gain.high)[0]
    said = Cell("not run", f"base {gain}" if not math.isnan(advice.gain.estimate) else "")
    figures = tuple(said if metric == analysis.response else Cell("–") for metric in shown_metrics(analysis))
    levels = tuple(_level_cell(factor, advice.config.get(factor.name)) for factor in analysis.design.factors)
    name = shorten(what_is_on(analysis, advice.config), 80)
    return [Treatment("–", name, ("recommended",), levels, figures, ("0", "0", "0"), "–")]


def _level_cell(factor: Factor, level: Level) -> Cell:
    if level is None and factor.within is not None:
        return Cell("–", look="no")
    on = bool(level != factor.base)
    if is_switch(factor):
        return Cell("Yes" if on else "No", look="yes" if on else "no")
    return Cell(shorten(level_text(level), 28), look="yes" if on else "no")


def _by_level(factor: Factor, column: pd.Series) -> dict[Hashable, str]:
    """Treatment → the text of its level, in the order of the levels."""
    order = {level: position for position, level in enumerate(factor.levels)}
    held = [(number, level) for number, level in column.items() if level in order]  # a nested factor may be absent
    return {number: level_text(level) for number, level in sorted(held, key=lambda item: order[item[1]])}


def _span(table: pd.DataFrame, metric: str) -> tuple[float, float]:
    """The scale of the drawings in the table: from the lowest to the highest end of the treatments' intervals."""
    if metric not in table:
        return 0.0, 0.0
    values = table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
