"""Learning curves and paired runs as figures, drawn from finished numbers; the heat maps are in `heatmap`.

Every figure is drawn twice, for a wide page and for a narrow one. Lines are told apart by dashes and named at their
ends. Nothing is random: the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator
from numpy.typing import NDArray

from homeostat.doctor.show.exhibits import number
from homeostat.page.svg import (
    FAINT,
    GHOST,
    HELPS,
    HURTS,
    INK,
    NARROW,
    OTHER,
    SOFT,
    WIDE,
    Picture,
    apart,
    blank,
    drawing,
    inline,
)
from homeostat.page.text import shorten

Numbers = NDArray[np.float64]

_MOST_POINTS = 400  # of a line
_DASHES: dict[str, tuple[str, Any]] = {
    "first": (HELPS, "-"),
    "second": (SOFT, (0, (5, 2))),
    "level": (GHOST, (0, (1, 2))),
    "after": (OTHER, "-"),
}


@dataclass(frozen=True)
class Line:
    """One line of a learning curve; `look` is a key of the styles, `name` stands at its right end."""

    name: str
    at: Sequence[float]
    values: Sequence[float]
    look: str


def curves(
    name: str,
    scores: Sequence[Line],
    levels: Sequence[tuple[str, float]],
    losses: Sequence[Line],
    metric: str,
    alt: str,
) -> Picture:
    """Learning curves: the score with baselines as level lines, and beside it the loss of every step.

    Args:
        name: of the figure, unique in the page.
        scores: by step.
        levels: names and scores of the baselines.
        losses: by step; a wide range gets a logarithmic axis. None leaves the panel out.
        metric: what the score is.
        alt: the figure in a sentence.
    """
    panels = [(metric, scores, levels)] + ([("Loss", losses, ())] if losses else [])

    def draw(wide: bool) -> str:
        across = len(panels) if wide else 1
        width, tall = (WIDE, 300.0) if wide else (NARROW, 250.0)
        height = tall * len(panels) / across
        letters = 22 if wide else 14
        names = 6.6 * max(len(shorten(name, letters)) for name in _names_of(scores, levels)) + 18
        plot = (width - 48.0 - names - (64.0 if across == 2 else 0.0)) / across
        with drawing():
            figure = blank(width, height)
            for place, (title, lines, flat) in enumerate(panels):
                x = 48.0 + (place % across) * (plot + names + 56.0)
                axes = place_axes(figure, (x, 34.0 + (place // across) * tall, plot, tall - 84.0))
                _plot(axes, lines, flat, letters, log=title == "Loss" and _wide_range(lines))
                axes.set_title(_capital(title), loc="left", fontsize=12.5, color=INK, pad=10)
            return inline(figure, f"{name}-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def _names_of(lines: Iterable[Line], levels: Iterable[tuple[str, float]]) -> list[str]:
    return [*(line.name for line in lines), *(name for name, _ in levels), ""]


def _plot(axes: Axes, lines: Sequence[Line], levels: Sequence[tuple[str, float]], width: int, *, log: bool) -> None:
    """Lines and level lines on one axis by step, named at the right."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.tick_params(axis="x", length=3, color=FAINT)
    ends: list[tuple[float, str, str]] = []
    for name, value in levels:
        color, dash = _DASHES["level"]
        axes.axhline(value, color=color, linestyle=dash, linewidth=1.4)
        ends.append((value, name, SOFT))
    for line in lines:
        color, dash = _DASHES[line.look]
        at, values = _thinned(line)
        axes.plot(at, values, color=color, linestyle=dash, linewidth=1.8, marker="o" if len(at) == 1 else "", ms=5)
        finite = values[np.isfinite(values)]
        if finite.size:
            ends.append((float(finite[-1]), line.name, color if color != GHOST else SOFT))
    low, high = _window(lines, levels)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.minorticks_off()
    else:
        axes.set_ylim(low, high)
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("step", fontsize=11, labelpad=2)
    if any(line.name for line in lines) or levels:
        _name_ends(axes, ends, width)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]], width: int) -> None:
    low, high = axes.get_ylim()
    named = sorted((min(max(value, low), high), name, color) for value, name, color in ends if name)
    for at, (_, name, color) in zip(apart([value for value, *_ in named], axes), named, strict=True):
        axes.annotate(
            shorten(name, width), (1, at), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=11.5, color=color, annotation_clip=False,
        )  # fmt: skip


def _thinned(line: Line) -> tuple[Numbers, Numbers]:
    """At most so many points, each the mean of its neighbors."""
    at, values = np.asarray(line.at, dtype=float), np.asarray(line.values, dtype=float)
    if len(at) <= _MOST_POINTS:
        return at, values
    groups = np.array_split(np.arange(len(at)), _MOST_POINTS)
    return np.array([at[g].mean() for g in groups]), np.array([values[g].mean() for g in groups])


def _wide_range(lines: Sequence[Line]) -> bool:
    """Whether a logarithmic axis shows more: all above zero, and two powers of ten apart."""
    values = np.concatenate([np.asarray(line.values, dtype=float) for line in lines])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > 0 and values.max() > 100 * values.min())


def _window(lines: Sequence[Line], levels: Sequence[tuple[str, float]]) -> tuple[float, float]:
    """What the lines cover, but for the few lowest values where those would flatten all (an R² may begin at −1e6)."""
    parts = [np.asarray(line.values, dtype=float) for line in lines]
    values = np.concatenate([*parts, np.array([value for _, value in levels], dtype=float)])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    middle = float(np.median(values))
    if middle - low > 8 * max(high - middle, 1e-9):
        kept = values[values >= middle - 8 * max(high - middle, 0.05)]
        low = float(kept.min())
    pad = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - pad, high + pad


def pairs(before: Sequence[float], after: Sequence[float], metric: str, alt: str) -> Picture:
    """A line per seed from its score before a repair to its score after; a run that diverged begins at the bottom."""
    finite = [value for value in (*before, *after) if math.isfinite(value)]
    bottom = min(finite, default=0.0)

    def draw(wide: bool) -> str:
        width, height = (420.0, 300.0) if wide else (NARROW, 250.0)
        with drawing():
            figure = blank(width, height)
            axes = place_axes(figure, (56.0, 34.0, width - 130.0, height - 70.0))
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.grid(axis="y", color=FAINT, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(length=0, pad=6)
            for low, high in zip(before, after, strict=True):
                color = HURTS if math.isfinite(high) and math.isfinite(low) and high < low else OTHER
                ends = [value if math.isfinite(value) else bottom for value in (low, high)]
                axes.plot([0, 1], ends, color=color, linewidth=1.4, alpha=0.8)
                for x, value, end in zip((0, 1), (low, high), ends, strict=True):
                    marker = "o" if math.isfinite(value) else "x"
                    axes.plot([x], [end], marker, ms=6, color=color, mfc=color if x else "none", mew=1.4)
            axes.set_xlim(-0.15, 1.15)
            axes.set_xticks([0, 1], ["before", "after"], fontsize=12)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
            axes.set_title(f"{_capital(metric)} of each seed", loc="left", fontsize=12.5, color=INK, pad=10)
            return inline(figure, f"pairs-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def _capital(text: str) -> str:
    return shorten(text[:1].upper() + text[1:], 40)


def place_axes(figure: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Transparent axes at (left, top, width, height) in units from the top left corner."""
    width, height = (float(side) * 72 for side in figure.get_size_inches())
    x, y, across, down = box
    axes = figure.add_axes((x / width, 1 - (y + down) / height, across / width, down / height))
    axes.patch.set_visible(False)
    return axes
