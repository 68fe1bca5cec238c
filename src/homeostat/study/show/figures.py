"""The figures of a study's report, drawn from finished tables: nothing here estimates or tests anything.

Every figure is drawn twice, for a wide page and for a narrow one, because text that shrinks with a figure cannot be
read on a telephone. A verdict is told by shape and word as well as by color. Points are in `scatters`, the learning
curves in `curves`.
Nothing is random: the same tables give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from homeostat.page.svg import (
    FAINT,
    GHOST,
    HELPS,
    HURTS,
    INK,
    NARROW,
    PAPER,
    SOFT,
    WIDE,
    Picture,
    blank,
    drawing,
    inline,
)
from homeostat.page.text import shorten

Number = Callable[[float], str]


@dataclass(frozen=True)
class Interval:
    """One row of a forest plot. `look` is "up", "down", "flat" or "none" (nothing could be estimated).

    `brief` is the label where there is little room, if there is a shorter one.
    """

    label: str
    estimate: float
    low: float
    high: float
    look: str
    verdict: str
    text: str
    group: str = ""
    brief: str = ""


_LABEL = 44  # characters of a label beside its interval
_MARKERS = {"up": ("^", HELPS, HELPS), "down": ("v", HURTS, HURTS), "flat": ("o", SOFT, PAPER)}


def forest(rows: Sequence[Interval], *, axis: str, better: str, margin: float, tick: Number, alt: str) -> Picture:
    """Estimates with their intervals, one per line, in groups.

    Args:
        rows: in the order in which they are shown; a new `group` starts with its name as a heading.
        axis: what the horizontal axis shows, with its unit.
        better: "right" or "left", the direction that is an improvement; "" says nothing.
        margin: half the width of the shaded band around zero within which a difference does not matter; 0 for none.
        tick: formats a number on the axis.
        alt: the figure in a sentence.
    """
    values = [x for row in rows for x in (row.estimate, row.low, row.high)]
    rows, margin, tick = _drawable(rows, shrunk([*values, margin]), margin, tick)

    def draw(wide: bool) -> str:
        longest = max((len(shorten(row.label, _LABEL)) for row in rows), default=0)
        width, line, left, right = (WIDE, 27.0, 7.4 * longest + 30, 340.0) if wide else (NARROW, 44.0, 6.0, 6.0)
        lines, bottom = _places(rows, line)
        height = bottom + 46.0
        with drawing():
            figure = blank(width, height)
            box = (left / width, 1 - bottom / height, (width - left - right) / width, bottom / height)
            axes = figure.add_axes(box)
            axes.set_ylim(bottom, 0)
            _horizontal(axes, rows, margin, tick, 6 if wide else 4)
            if wide:
                axes.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
                _zero(axes, margin, bottom, 0.0)
            for at, row in lines:
                if isinstance(row, str):
                    _words(axes, 0, -left if wide else -4, at, row, fontsize=11.5, color=SOFT, weight="bold")
                elif wide:
                    _wide_row(axes, row, at, left)
                else:
                    _zero(axes, margin, at + 9, at - 9)  # below the row of text
                    _narrow_row(axes, row, at)
            direction = {"right": " · better →", "left": " · ← better"}.get(better, "")
            axes.set_xlabel(shorten(axis, 80 if wide else 40) + direction, fontsize=11.5, labelpad=5)
            return inline(figure, f"forest-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def shrunk(values: Sequence[float]) -> float:
    """By what to multiply numbers so that an axis can be drawn: 1, and less for those near the largest there is."""
    return 1e-20 if any(abs(value) > 1e290 for value in values) else 1.0


def _drawable(rows: Sequence[Interval], by: float, margin: float, tick: Number) -> tuple[list[Interval], float, Number]:
    """Rows, margin and labels of the axis in units in which they can be drawn; an infinite end is far away."""

    def near(value: float) -> float:
        return value if math.isnan(value) else max(-1e290, min(value * by, 1e290))

    found = [replace(row, estimate=near(row.estimate), low=near(row.low), high=near(row.high)) for row in rows]
    return found, margin * by, lambda value: tick(float(value) / by)


def _places(rows: Sequence[Interval], line: float) -> tuple[list[tuple[float, Interval | str]], float]:
    """The vertical place of every row and heading, from the top, and where the axis stands."""
    places: list[tuple[float, Interval | str]] = []
    y, group = 0.0, ""
    for row in rows:
        if row.group != group:
            y += 30.0 if places else 14.0
            places.append((y, row.group))
            y, group = y + 2.0, row.group
        y += line
        places.append((y, row))
    return places, y + 0.5 * min(line, 30.0)


def _horizontal(axes: Axes, rows: Sequence[Interval], margin: float, tick: Number, ticks: int) -> None:
    values = [x for row in rows if row.look != "none" for x in (row.estimate, row.low, row.high) if math.isfinite(x)]
    low, high = min([0.0, -margin, *values]), max([0.0, margin, *values])
    pad = 0.05 * (high - low) or 1.0
    axes.set_xlim(low - pad, high + pad)
    axes.patch.set_visible(False)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.tick_params(length=0, pad=5)


def _zero(axes: Axes, margin: float, bottom: float, top: float) -> None:
    """The zero line and the band of differences that do not matter, between two heights."""
    if margin > 0:
        axes.fill_between([-margin, margin], bottom, top, color=GHOST, alpha=0.25, linewidth=0, zorder=0.5)
    axes.plot([0, 0], [bottom, top], color=INK, linewidth=1, zorder=1.5)


def _wide_row(axes: Axes, row: Interval, y: float, left: float) -> None:
    """Label, mark, numbers and verdict on one line."""
    _words(axes, 0, -left, y, shorten(row.label, _LABEL), fontsize=13, color=INK)
    _words(axes, 1, 178, y, row.text, fontsize=13, color=INK, ha="right")
    _words(axes, 1, 192, y, row.verdict, fontsize=12.5, color={"up": HELPS, "down": HURTS}.get(row.look, SOFT))
    _mark(axes, row, y)


def _narrow_row(axes: Axes, row: Interval, y: float) -> None:
    """Label and numbers above the mark."""
    room = 46 - len(row.text)
    label = row.label if len(row.label) <= room else row.brief or row.label
    _words(axes, 0, -4, y - 19, shorten(label, room), fontsize=12.5, color=INK)
    _words(axes, 1, 4, y - 19, row.text, fontsize=12, color=SOFT, ha="right")
    _mark(axes, row, y - 2)


def _mark(axes: Axes, row: Interval, y: float) -> None:
    if row.look not in _MARKERS or not math.isfinite(row.estimate):
        return
    marker, color, face = _MARKERS[row.look]
    if math.isfinite(row.low) and math.isfinite(row.high):
        axes.plot([row.low, row.high], [y, y], color=color, linewidth=2, solid_capstyle="butt", zorder=2)
    axes.plot([row.estimate], [y], marker, markersize=8, color=color, mfc=face, mew=1.5, zorder=3)


def _words(axes: Axes, side: float, dx: float, y: float, text: str, **style: Any) -> None:
    """Text at height y, dx units from the left (side 0) or right (side 1) edge of the plot."""
    axes.annotate(
        text, (side, y), (dx, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
        va="center_baseline", annotation_clip=False, **style,
    )  # fmt: skip


def matrix(
    labels: Sequence[str], values: pd.DataFrame, marked: pd.DataFrame, *, number: Number, better: float, alt: str
) -> Picture:
    """A symmetric heat map with its numbers: what is marked in full color, the rest pale, what is not known blank.

    Args:
        labels: of rows and columns, at least one.
        values: labels × labels, NaN where there is nothing to show.
        marked: labels × labels of bool; these are in bold and in color, however small they are.
        number: formats a cell.
        better: +1 where positive numbers are good news (blue), -1 where they are bad.
        alt: the figure in a sentence.
    """
    table, bold = values.to_numpy(dtype=float), marked.to_numpy(dtype=bool)
    scale = better * (float(np.abs(table[np.isfinite(table)]).max(initial=0.0)) or 1.0)

    def draw(wide: bool) -> str:
        grid = _Grid.of(labels, wide)
        with drawing():
            figure = blank(grid.width, grid.height)
            across, down = grid.cell * len(labels), grid.tall * len(labels)
            box = (grid.left / grid.width, 2 / grid.height, across / grid.width, down / grid.height)
            axes = figure.add_axes(box, xlim=(0, len(labels)), ylim=(len(labels), 0))
            axes.set_axis_off()
            for i, name in enumerate(grid.names):
                _label(axes, grid, i, name)
                for j, value in enumerate(table[i]):
                    _tile(axes, grid, (i, j), value / scale, number(value), bool(bold[i, j]))
            return inline(figure, f"matrix-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


@dataclass(frozen=True)
class _Grid:
    """The layout of a matrix: names as shown, sizes in units."""

    names: tuple[str, ...]
    size: float  # of the letters
    left: float
    cell: float
    tall: float
    slanted: bool
    width: float
    height: float

    @staticmethod
    def of(labels: Sequence[str], wide: bool) -> _Grid:
        left, most, size = (190.0, 92.0, 12.5) if wide else (104.0, 60.0, 11.0)
        names = tuple(shorten(label, 27 if wide else 15) for label in labels)
        longest = max(map(len, names))
        cell = min(most, ((WIDE if wide else NARROW) - left) / len(names))
        slanted = longest * 0.58 * size > cell - 6
        spill = max(2.0, 0.45 * size * len(names[-1]) - cell / 2 if slanted else 0.0)  # of the last name, to the right
        cell = min(cell, ((WIDE if wide else NARROW) - left - spill) / len(names))
        tall = min(cell, 44.0)
        top = 14 + (0.45 * size * longest if slanted else size)
        return _Grid(
            names, size, left, cell, tall, slanted, left + cell * len(names) + spill, top + tall * len(names) + 2
        )


def _label(axes: Axes, grid: _Grid, i: int, name: str) -> None:
    """The name of row i and column i."""
    style: dict[str, Any] = {"fontsize": grid.size, "color": INK}
    axes.text(-8 / grid.cell, i + 0.5, name, ha="right", va="center_baseline", **style)
    if grid.slanted:
        style |= {"rotation": 45, "rotation_mode": "anchor", "ha": "left"}
    axes.text(i + 0.5, -6 / grid.tall, name, va="bottom", **{"ha": "center", **style})


def _tile(axes: Axes, grid: _Grid, place: tuple[int, int], share: float, text: str, bold: bool) -> None:
    """One cell; `share` of the largest value, in [-1, 1], chooses its color, NaN leaves it blank."""
    (i, j), gap = place, 1.5
    known = math.isfinite(share)
    shade = math.copysign(0.4 + 0.6 * abs(share), share) if bold else 0.2 * share
    color, alpha = (to_hex(_DIVERGING(0.5 + 0.5 * shade)), None) if known else (FAINT, 0.3)
    corner, sides = (j + gap / grid.cell, i + gap / grid.tall), (1 - 2 * gap / grid.cell, 1 - 2 * gap / grid.tall)
    axes.add_patch(Rectangle(corner, *sides, color=color, alpha=alpha, lw=0))
    if known and grid.cell >= _LEGIBLE:
        axes.text(
            j + 0.5, i + 0.5, text, weight="bold" if bold else "normal", fontsize=min(grid.size, grid.cell / 3.1),
            color=_ON_TILE, ha="center", va="center_baseline",
        )  # fmt: skip


_DIVERGING = LinearSegmentedColormap.from_list("homeostat", ["#dd8f52", "#f2d3ba", "#f6f6f3", "#c3dcee", "#66a6d3"])
_LEGIBLE = 24.0  # the width of a cell below which its number would be too small to read
_ON_TILE = "#15191d"  # the tiles keep their color in a dark theme, and so does the text on them


def strip(estimate: float, low: float, high: float, span: tuple[float, float], *, zero: bool = False) -> str:
    """An interval as a small drawing for a cell of a table, on the scale that `span` gives to the whole column.

    Returns: SVG markup, without text; "" where there is no estimate.
    Example:
        >>> strip(float("nan"), 0.0, 1.0, (0.0, 1.0))
        ''
    """
    if not math.isfinite(estimate) or not span[0] < span[1]:
        return ""
    by = shrunk(span)
    estimate, low, high, span = estimate * by, low * by, high * by, (span[0] * by, span[1] * by)

    def place(value: float) -> str:
        return f"{5 + 86 * min(max((value - span[0]) / (span[1] - span[0]), 0.0), 1.0):.1f}"

    parts = ['<svg class="strip" viewBox="0 0 96 16" width="96" height="16" aria-hidden="true">']
    if zero:
        parts.append(f'<path d="M{place(0.0)} 0V16" stroke="var(--ghost)"/>')
    if math.isfinite(low) and math.isfinite(high):
        parts.append(f'<path d="M{place(low)} 8H{place(high)}" stroke="currentColor" stroke-width="1.5"/>')
    parts.append(f'<circle cx="{place(estimate)}" cy="8" r="3.5" fill="currentColor"/></svg>')
    return "".join(parts)
