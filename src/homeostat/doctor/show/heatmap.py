"""Vitals as heat maps: layers × steps, one small map beside the other, drawn from finished numbers.

Drawn twice, for a wide page and for a narrow one; what the colors mean, a legend says in numbers. Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.transforms import Affine2D
from numpy.typing import NDArray

from homeostat.doctor.show.figures import place_axes
from homeostat.page.svg import GHOST, HURTS, INK, NARROW, SOFT, WIDE, Picture, blank, drawing, inline
from homeostat.page.text import shorten

Numbers = NDArray[np.float64]

# From little to much. Each is a CSS variable in the page, so that in a dark theme little is dark and much is bright.
HEAT = ("#eef5fa", "#d5e7f3", "#b5d5ea", "#8dbfdf", "#62a5d1", "#3a8ac0", "#1a70a8", "#0a5687", "#063c61")
_MOST_LAYERS = 40
_MOST_COLUMNS = 48
_MANY_CELLS = 600  # of one map


@dataclass(frozen=True)
class Panel:
    """One vital: `values` of layers × steps, NaN where nothing was measured; log colors unless `share` (of 0 to 1)."""

    title: str
    values: Numbers
    share: bool = False


def heat(layers: Sequence[str], steps: Sequence[int], panels: Sequence[Panel], alt: str) -> Picture:
    """Small multiples, one per vital: a row per layer in order of execution, a column per measured step.

    Args:
        layers: names, of the rows; where there are too many, evenly chosen ones are drawn.
        steps: of the columns; where there are too many, neighbors are drawn as one, with the largest value.
        panels: at least one.
        alt: the figure in a sentence.
    """
    rows = chosen_rows(len(layers))
    names = [layers[row] for row in rows]
    groups = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_COLUMNS))
    at = [steps[group[-1]] for group in groups]
    drawn = [(panel, _scale(panel), _grouped(panel.values[rows], groups)) for panel in panels]

    def draw(wide: bool) -> str:
        labels = 190.0 if wide else 104.0
        tall = min(22.0, max(9.5, 440.0 / len(names))) if wide else min(18.0, max(9.5, 300.0 / len(names)))
        head, foot, gap = 30.0, 64.0, 22.0
        each = tall * len(names)
        width = WIDE if wide else NARROW
        across = len(drawn) if wide else 1
        height = head + each + foot if wide else (head + each + foot) * len(drawn)
        plot = (width - labels - gap * (across - 1) - 4) / across
        with drawing():
            figure = blank(width, height)
            for place, (panel, scale, values) in enumerate(drawn):
                x = labels + (place * (plot + gap) if wide else 0.0)
                top = head if wide else head + place * (head + each + foot)
                axes = _tiles(figure, (x, top, plot, each), values, scale)
                axes.set_title(panel.title, loc="left", fontsize=12.5, color=INK, pad=8)
                _row_names(axes, names if place == 0 or not wide else (), 28 if wide else 15, min(12.0, tall - 1.5))
                _step_names(axes, at, plot)
                _heat_legend(figure, (x, top + each + 34.0, plot), scale, values)
            return _themed(inline(figure, f"heat-{'wide' if wide else 'narrow'}", alt))

    return Picture(draw(True), draw(False), alt)


def chosen_rows(count: int) -> list[int]:
    """Which of so many layers are drawn: all, or evenly chosen ones with the first and the last.

    Example:
        >>> chosen_rows(3), len(chosen_rows(500)), chosen_rows(500)[-1]
        ([0, 1, 2], 40, 499)
    """
    if count <= _MOST_LAYERS:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, _MOST_LAYERS)})


@dataclass(frozen=True)
class _Scale:
    """Classes of color between low and high, even in the logarithm or, for a share, in the value."""

    low: float
    high: float
    log: bool

    def classes(self, values: Numbers) -> NDArray[np.int64]:
        """The class of each value; what lies outside belongs to the first or the last."""
        with np.errstate(divide="ignore", invalid="ignore"):
            place = np.log10(values) if self.log else values
            low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
            share = np.nan_to_num((place - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
        return np.clip((share * len(HEAT)).astype(np.int64), 0, len(HEAT) - 1)


def _scale(panel: Panel) -> _Scale:
    """Whole powers of ten around what was measured, at least two of them apart, so that noise stays pale."""
    if panel.share:
        return _Scale(0.0, 1.0, log=False)
    positive = panel.values[np.isfinite(panel.values) & (panel.values > 0)]
    if not positive.size:
        return _Scale(0.01, 1.0, log=True)
    low, high = math.floor(math.log10(positive.min())), math.ceil(math.log10(positive.max()))
    if high - low < 2:
        middle = float(np.log10(np.median(positive)))
        low = math.floor(middle - 1) if high - low < 1 or middle - low < high - middle else low
        high = max(high, low + 2)
    return _Scale(10.0**low, 10.0**high, log=True)


def _grouped(values: Numbers, groups: Sequence[NDArray[np.int64]]) -> Numbers:
    """Neighboring columns as one, with the largest value; NaN only where all are."""
    columns = []
    for group in groups:
        part = values[:, group]
        filled = np.where(np.isnan(part), -np.inf, part).max(axis=1)
        columns.append(np.where(np.isnan(part).all(axis=1), np.nan, filled))
    return np.stack(columns, axis=1)


def _tiles(figure: Figure, box: tuple[float, float, float, float], values: Numbers, scale: _Scale) -> Axes:
    """The cells of one panel, a path per color."""
    axes = place_axes(figure, box)
    rows, columns = values.shape
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_axis_off()
    dx, dy = 0.5 * columns / box[2], 0.5 * rows / box[3]
    classes = scale.classes(values)
    missing, beyond = np.isnan(values), np.isinf(values)
    for index, color in enumerate(HEAT):
        _cells(axes, (classes == index) & ~missing & ~beyond, color, (dx, dy))
    _cells(axes, beyond, HURTS, (dx, dy))
    _cells(axes, missing, GHOST, (dx, 0.5 - 0.6 * rows / box[3]))  # a dash, no color: there is no value
    return axes


def _cells(axes: Axes, mask: NDArray[np.bool_], color: str, gap: tuple[float, float]) -> None:
    """One path for all the cells of a color; in a large map neighbors are one rectangle, so that a page stays small."""
    vertices: list[tuple[float, float]] = []
    codes: list[np.uint8] = []
    for row, first, end in _runs(mask, mask.size > _MANY_CELLS):
        left, right, top, bottom = first + gap[0], end - gap[0], row + gap[1], row + 1 - gap[1]
        vertices += [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        codes += [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    if vertices:
        axes.add_patch(PathPatch(Path(vertices, codes), facecolor=color, linewidth=0))


def _runs(mask: NDArray[np.bool_], joined: bool) -> Iterator[tuple[int, int, int]]:
    """Row, first column and the column after the last of each cell, or of each run of cells."""
    for row, cells in enumerate(mask):
        columns = np.flatnonzero(cells)
        breaks = np.flatnonzero(np.diff(columns) > 1) + 1 if joined else np.arange(1, len(columns))
        for run in np.split(columns, breaks):
            if run.size:
                yield row, int(run[0]), int(run[-1]) + 1


def _row_names(axes: Axes, names: Sequence[str], width: int, size: float) -> None:
    for row, name in enumerate(names):
        axes.annotate(
            ending(name, width), (0, row + 0.5), (-8, 0), textcoords="offset points",
            ha="right", va="center_baseline", fontsize=size, color=INK, annotation_clip=False,
        )  # fmt: skip


def ending(name: str, width: int) -> str:
    """A layer's name cut at its beginning: its end tells it from its neighbors.

    Example:
        >>> ending("encoder.layers.11.norm1", 15)
        '…yers.11.norm1'
    """
    line = shorten(name, 10_000)
    return line if len(line) <= width else f"…{line[2 - width :]}"


def _step_names(axes: Axes, at: Sequence[int], plot: float) -> None:
    """Steps below the first column, the last, and some between."""
    count = max(2, min(4, int(plot / 70)))
    places = sorted({round(place) for place in np.linspace(0, len(at) - 1, count)})
    for place in places:
        side = "left" if place == 0 and len(at) > 1 else "right" if place == len(at) - 1 and len(at) > 1 else "center"
        x = place if side == "left" else place + 1 if side == "right" else place + 0.5
        text = f"step {at[place]:,}" if place == places[0] else f"{at[place]:,}"
        axes.annotate(
            text, (x, 0), (0, -6), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha=side, va="top", fontsize=10.5, color=SOFT, annotation_clip=False,
        )  # fmt: skip


def _heat_legend(figure: Figure, place: tuple[float, float, float], scale: _Scale, values: Numbers) -> None:
    """What the colors mean: the classes in a row with the values at their ends, and what else the panel holds."""
    x, top, plot = place
    tile = min(13.0, plot / (len(HEAT) + 6))
    axes = place_axes(figure, (x, top, plot, 10.0))
    axes.set_axis_off()
    axes.set_xlim(0, plot)
    axes.set_ylim(10, 0)
    for index, color in enumerate(HEAT):
        axes.add_patch(PathPatch(Path.unit_rectangle().transformed(_box(index * tile, 0, tile, 10)), fc=color, lw=0))
    bar = tile * len(HEAT)
    middle = math.sqrt(scale.low * scale.high) if scale.log else (scale.low + scale.high) / 2
    whole = not scale.log or math.log10(middle) % 1 < 1e-9
    marks = [(0.0, "left", scale.low), (bar, "right", scale.high)]
    if bar > 90 and whole:
        marks.insert(1, (bar / 2, "center", middle))
    for at, side, value in marks:
        text = _power(value) if scale.log else f"{100 * value:.0f} %"
        axes.annotate(
            text, (at, 10), (0, -3), textcoords="offset points", ha=side, va="top", fontsize=10.5, color=SOFT,
            annotation_clip=False,
        )  # fmt: skip
    entries = [(np.isinf(values).any(), HURTS, 10.0, "not finite"), (np.isnan(values).any(), GHOST, 1.2, "none")]
    at = bar + 14
    for present, color, tall, text in entries:
        if present:
            shape = Path.unit_rectangle().transformed(_box(at, 5 - tall / 2, 10, tall))
            axes.add_patch(PathPatch(shape, fc=color, lw=0))
            axes.annotate(text, (at + 14, 5), va="center", fontsize=10.5, color=SOFT, annotation_clip=False)
            at += 22 + 6 * len(text)


def _box(x: float, y: float, width: float, height: float) -> Affine2D:
    return Affine2D().scale(width, height).translate(x, y)


def _power(value: float) -> str:
    """A power of ten, or a number near one."""
    if 1e-3 <= value < 1e4:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    mantissa, _, power = f"{value:.0e}".partition("e")
    return f"{mantissa}e{int(power)}".replace("-", "−")


def _themed(markup: str) -> str:
    """The heat map's colors as CSS variables."""
    for index, color in enumerate(HEAT):
        markup = markup.replace(f'"{color}"', f'"var(--heat-{index}, {color})"')
    return markup
