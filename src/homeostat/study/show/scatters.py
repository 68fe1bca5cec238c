"""The figures of a study's report that are clouds of points: time against response, and what the model leaves over.

Drawn twice, like those in `figures`, from finished tables. Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

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
from homeostat.study.show.figures import Number, shrunk


@dataclass(frozen=True)
class Point:
    """One treatment of the scatter plot: x, y with its interval, a name if it is to be named, and then its style."""

    x: float
    y: float
    low: float
    high: float
    name: str = ""
    style: int = 0


def cost(points: Sequence[Point], *, axes_names: tuple[str, str], ticks: tuple[Number, Number], alt: str) -> Picture:
    """What a treatment takes against what it brings: a point per treatment, the named ones with their interval.

    Args:
        points: treatments.
        axes_names: what x and y show, with units.
        ticks: format a number of x and of y.
        alt: the figure in a sentence.
    """
    by = shrunk([x for point in points for x in (point.y, point.low, point.high)])
    points = [replace(point, y=point.y * by, low=point.low * by, high=point.high * by) for point in points]
    ticks = (ticks[0], _in_units(ticks[1], by))
    most = max((point.x for point in points), default=0.0) or 1.0
    named = [point for point in points if point.name]
    others = [(point.x, point.y) for point in points if not point.name]

    def draw(wide: bool) -> str:
        width, height = (WIDE, 380.0) if wide else (NARROW, 300.0)
        with drawing():
            figure = blank(width, height)
            axes = figure.add_axes((46 / width, 50 / height, (width - 62) / width, (height - 84) / height))
            _plain(axes, ticks, wide)
            axes.plot(*(zip(*others, strict=True) if others else ([], [])), "o", ms=6, color=GHOST)
            for point in named:
                color, marker = _NAMED[point.style]
                if math.isfinite(point.low) and math.isfinite(point.high):
                    axes.plot([point.x, point.x], [point.low, point.high], color=color, linewidth=1.5)
                axes.plot([point.x], [point.y], marker, ms=8, color=color)
            axes.set_xlim(0, 1.06 * most)
            _names(axes, named, 0.6 * most)
            axes.set_xlabel(axes_names[0], fontsize=11.5, labelpad=6)
            axes.set_title(axes_names[1], loc="left", fontsize=11.5, color=SOFT, pad=10)
            return inline(figure, f"cost-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


_NAMED = ((INK, "s"), (HELPS, "^"), (OTHER, "D"))


def _names(axes: Axes, named: Sequence[Point], middle: float) -> None:
    """Name the points, on the side where there is room, moved apart where the names would overlap."""
    named = sorted(named, key=lambda point: point.y)
    for point, at in zip(named, apart([point.y for point in named], axes), strict=True):
        side, dx = ("right", -10) if point.x > middle else ("left", 10)
        axes.annotate(
            shorten(point.name, 24), (point.x, at), (dx, 0), textcoords="offset points",
            ha=side, va="center_baseline", fontsize=12, color=_NAMED[point.style][0], annotation_clip=False,
        )  # fmt: skip


def residuals(
    fitted: np.ndarray, left: np.ndarray, far: np.ndarray, *, axes_names: tuple[str, str], tick: Number, alt: str
) -> Picture:
    """What the model leaves of each run against what it makes of it: a band of even height where it fits.

    Args:
        fitted, left: of the runs, shape (n,) each, on one scale.
        far: whether a run lies too far off to be chance, shape (n,), bool; these are marked.
        axes_names: what x and y show, with units.
        tick: formats a number of either axis.
        alt: the figure in a sentence.
    """
    by = shrunk([*fitted.tolist(), *left.tolist()])
    x, y, label = fitted * by, left * by, _in_units(tick, by)

    def draw(wide: bool) -> str:
        width, height = (WIDE, 320.0) if wide else (NARROW, 260.0)
        with drawing():
            figure = blank(width, height)
            axes = figure.add_axes((56 / width, 50 / height, (width - 72) / width, (height - 84) / height))
            _plain(axes, (label, label), wide)
            axes.axhline(0, color=INK, linewidth=1)
            axes.plot(x[~far], y[~far], "o", ms=4, color=GHOST)
            axes.plot(x[far], y[far], "D", ms=6, color=HURTS)
            axes.set_xlabel(axes_names[0], fontsize=11.5, labelpad=6)
            axes.set_title(axes_names[1], loc="left", fontsize=11.5, color=SOFT, pad=10)
            return inline(figure, f"residuals-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def _plain(axes: Axes, ticks: tuple[Number, Number], wide: bool) -> None:
    """Axes without a frame, few labels, faint lines across."""
    axes.patch.set_visible(False)
    axes.spines[["top", "left", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    for part, tick in zip((axes.xaxis, axes.yaxis), ticks, strict=True):
        part.set_major_locator(MaxNLocator(6 if wide else 4, steps=[1, 2, 2.5, 5, 10]))
        part.set_major_formatter(FuncFormatter(lambda value, _, tick=tick: tick(value)))


def _in_units(tick: Number, by: float) -> Number:
    return lambda value: tick(float(value) / by)
