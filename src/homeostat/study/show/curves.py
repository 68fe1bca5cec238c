"""The learning curves of a study as figures: every treatment in grey, a few that matter on top, and a panel per factor.

The means and bands over trials are computed here, only to be drawn: no conclusion rests on them. Nothing is random.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

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
Named = Mapping[Hashable, tuple[str, int]]  # which lines have a name, and the place of their style in _STYLES
Lines = dict[Hashable, "Line"]
_EARLY = 0.25  # the share of the epochs that the panels by factor leave out: all rise steeply there
_MOST_GREY = 64  # lines; more of them are a stain
_MOST_POINTS = 100  # per line; a figure has no more pixels to tell them apart
_STYLES: tuple[tuple[str, Any], ...] = (
    (INK, (0, (5, 2))),
    (HELPS, "-"),
    (OTHER, (0, (6, 2, 1, 2))),
    (HURTS, (0, (1, 1))),
    (SOFT, "-"),
    (HELPS, (0, (1, 2))),
    (OTHER, (0, (2, 1))),
    (HURTS, (0, (8, 2))),
)


@dataclass(frozen=True)
class Line:
    """The course of a group of trials: mean and band at epochs `at`, all of one shape; NaN where nothing is known."""

    at: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers


def quantities(curves: pd.DataFrame, response: str) -> tuple[str, ...]:
    """The one or two columns worth drawing: training and validation of what the study measures, if they were recorded.

    Example:
        >>> names = ["train_loss", "valid_loss", "train_accuracy", "valid_accuracy"]
        >>> quantities(pd.DataFrame(0.5, index=[0], columns=["trial", "epoch", *names]), "test_accuracy")
        ('train_accuracy', 'valid_accuracy')
    """
    columns = [name for name in curves.columns if name not in {"trial", "treatment", "seed", "epoch"}]
    columns = [name for name in columns if pd.api.types.is_numeric_dtype(curves[name]) and curves[name].notna().any()]
    name = response.split("_", 1)[-1]
    for pair in ((f"train_{name}", f"valid_{name}"), ("train_loss", "valid_loss")):
        if all(column in columns for column in pair):
            return pair
    return (response,) if response in columns else tuple(columns[:2])


def overview(
    curves: pd.DataFrame,
    titles: Mapping[str, str],
    named: Named,
    tick: Callable[[float], str],
    alt: str,
    brief: Mapping[Hashable, str] | None = None,
) -> Picture:
    """One panel per quantity, on a common scale: the mean over seeds of every treatment, with the range of a few.

    Args:
        curves: trial, treatment, epoch and the quantities.
        titles: quantity → the title of its panel.
        named: treatment → (the name of its line, the number of its style); the other treatments are grey.
        tick: formats a number on the vertical axis.
        alt: the figure in a sentence.
        brief: treatment → the name of its line in the narrow layout, where that has to be another.
    """
    panels = {column: _lines(curves, column) for column in titles}
    shorter = {key: ((brief or {}).get(key, label), style) for key, (label, style) in named.items()}
    window = _window(line for lines in panels.values() for line in lines.values())

    def draw(wide: bool) -> str:
        width, height = (WIDE, 360.0) if wide else (NARROW, 250.0 * len(panels))
        across, down = (len(panels), 1) if wide else (1, len(panels))
        labels = named if wide else shorter
        longest = max((len(shorten(label, 30 if wide else 13)) for label, _ in labels.values()), default=0)
        names = 6.6 * longest + 16  # the space at the right, where the lines are named
        with drawing():
            figure = blank(width, height)
            each = (width - names - 44.0 - 56.0 * (across - 1)) / across
            for index, (column, lines) in enumerate(panels.items()):
                x = 44.0 + (index % across) * (each + 56.0)
                box = (x / width, 1 - (index // across * height / down + height / down - 42) / height)
                axes = figure.add_axes((*box, each / width, (height / down - 76) / height))
                _panel(axes, lines, labels, window, tick)
                axes.set_title(shorten(titles[column], 60 if wide else 40), loc="left", fontsize=13, color=INK, pad=10)
                if index == len(panels) - 1 or not wide:
                    _name(axes, lines, labels, 30 if wide else 13)
            return inline(figure, f"curves-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def by_factor(
    curves: pd.DataFrame,
    column: str,
    levels: Mapping[str, Mapping[Hashable, str]],
    tick: Callable[[float], str],
    alt: str,
) -> Picture:
    """One small panel per factor: the mean over all trials at each level, with a band for the middle half of them.

    The first quarter of the epochs is left out, so that what remains of a difference can be seen.

    Args:
        curves: trial, treatment, epoch and the quantity.
        column: the quantity.
        levels: factor → (treatment → the text of its level), base level first.
        tick: formats a number on the vertical axis.
        alt: the figure in a sentence.
    """
    panels = {
        factor: _lines(curves.assign(treatment=curves["treatment"].map(dict(of))), column, quartiles=True)
        for factor, of in levels.items()
    }
    panels = {
        factor: {level: _after(_EARLY, line) for level, line in lines.items()} for factor, lines in panels.items()
    }
    window = _window((line for lines in panels.values() for line in lines.values()), start=0.0)

    def draw(wide: bool) -> str:
        across = 3 if wide else 2
        down = math.ceil(len(panels) / across)
        share, left = (WIDE / across, 44.0) if wide else (NARROW / across, 36.0)
        entry = 22 if wide else 12  # characters of a level's name
        keys = {factor: _key(list(map(str, lines)), entry, share - left) for factor, lines in panels.items()}
        head = 17.0 * max(rows for _, rows in keys.values())
        width, each = (WIDE, 224.0 + head) if wide else (NARROW, 176.0 + head)
        with drawing():
            figure = blank(width, each * down)
            for index, (factor, lines) in enumerate(panels.items()):
                x, y = index % across * share + left, (index // across + 1) * each - 34
                box = (
                    x / width,
                    1 - y / (each * down),
                    (share - left - 12) / width,
                    (each - 66 - head) / (each * down),
                )
                axes = figure.add_axes(box)
                order = [level for level in dict.fromkeys(levels[factor].values()) if level in lines]
                named: Named = {level: (str(level), style) for style, level in enumerate(order[: len(_STYLES)])}
                _panel(axes, lines, named, window, tick, small=True)
                axes.set_title(shorten(factor, 34 if wide else 20), loc="left", fontsize=12.5, color=INK, pad=8 + head)
                _legend(axes, keys[factor][0], entry)
            return inline(figure, f"levels-{'wide' if wide else 'narrow'}", alt)

    return Picture(draw(True), draw(False), alt)


def _lines(curves: pd.DataFrame, column: str, *, quartiles: bool = False) -> Lines:
    """One line per value of the column `treatment`.

    A trial that stopped early keeps its last value; what is not finite is left out.
    """
    table = curves.pivot_table(
        index="trial", columns="epoch", values=column, aggfunc="last", dropna=False, observed=True
    )
    values = table.to_numpy(dtype=float, copy=True)
    last = curves.groupby("trial")["epoch"].max().reindex(table.index).to_numpy()
    epochs = table.columns.to_numpy(dtype=float)
    values[~np.isfinite(values)] = np.nan
    for row, end in zip(values, np.searchsorted(epochs, last), strict=True):
        row[end + 1 :] = row[end]
    step = max(1, math.ceil(len(epochs) / _MOST_POINTS))
    keep = np.unique([*range(0, len(epochs), step), len(epochs) - 1])
    owner = curves.groupby("trial")["treatment"].first().reindex(table.index)
    low, high = (25, 75) if quartiles else (0, 100)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice|All-NaN slice", RuntimeWarning)
        return {
            name: Line(epochs[keep], np.nanmean(group, axis=0), *np.nanpercentile(group, [low, high], axis=0))
            for name, rows in owner.groupby(owner, sort=True).indices.items()
            for group in [values[rows][:, keep]]
        }


def _after(start: float, line: Line) -> Line:
    """A line without the first part of its epochs."""
    first = int(start * len(line.at))
    return Line(line.at[first:], line.mean[first:], line.low[first:], line.high[first:])


def _panel(
    axes: Axes,
    lines: Lines,
    named: Named,
    window: tuple[float, float],
    tick: Callable[[float], str],
    *,
    small: bool = False,
) -> None:
    axes.patch.set_visible(False)
    axes.set_ylim(*window)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.tick_params(length=0, pad=5, labelsize=10.5 if small else 11)
    axes.tick_params(axis="x", length=3, color=FAINT)
    axes.yaxis.set_major_locator(MaxNLocator(4 if small else 6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
    axes.xaxis.set_major_locator(MaxNLocator(4 if small else 6, integer=True))
    axes.set_xlabel("epoch", fontsize=10.5 if small else 11, labelpad=2)
    grey = [key for key in lines if key not in named]
    for key in grey[:: max(1, math.ceil(len(grey) / _MOST_GREY))]:
        axes.plot(lines[key].at, lines[key].mean, color=GHOST, linewidth=0.9, alpha=0.7)
    for key, (label, style) in named.items():
        if key in lines:
            line, (color, dash) = lines[key], _STYLES[style]
            axes.fill_between(line.at, line.low, line.high, color=color, alpha=0.10, linewidth=0)
            dot = "o" if len(line.at) == 1 else ""
            axes.plot(line.at, line.mean, color=color, linestyle=dash, linewidth=2, label=label, marker=dot)


def _name(axes: Axes, lines: Lines, named: Named, width: int) -> None:
    """Name the lines at their right end, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    ends = []
    for key, (label, style) in named.items():
        mean = lines[key].mean if key in lines else np.empty(0)
        if np.isfinite(mean).any():
            end = float(np.clip(mean[np.isfinite(mean)][-1], low, high))
            ends.append((end, shorten(label, width), _STYLES[style][0]))
    for at, (_, label, color) in zip(apart([end for end, *_ in sorted(ends)], axes), sorted(ends), strict=True):
        axes.annotate(
            label, (1, at), (8, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            va="center", fontsize=12, color=color, annotation_clip=False,
        )  # fmt: skip


def _key(labels: Sequence[str], most: int, room: float) -> tuple[int, int]:
    """The columns and rows of a legend above a panel that is `room` units wide."""
    labels = labels[: len(_STYLES)]
    longest = max((len(shorten(label, most)) for label in labels), default=0)
    columns = max(1, min(len(labels), int(room / (6.8 * longest + 38))))
    return columns, max(1, math.ceil(len(labels) / columns))


def _legend(axes: Axes, columns: int, width: int) -> None:
    """What the lines are, above the panel, where no line runs."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            handles, [shorten(label, width) for label in labels], loc="lower left", ncols=columns,
            bbox_to_anchor=(0, 1), frameon=False, fontsize=11, handlelength=1.8, borderaxespad=0.0, borderpad=0.2,
            labelspacing=0.3, columnspacing=1.2,
        )  # fmt: skip


def _window(lines: Iterable[Line], start: float = 0.2) -> tuple[float, float]:
    """Limits of the vertical axis: what the lines cover after `start`, but for a few values that would flatten all."""
    parts = [line.mean[int(start * len(line.mean)) :] for line in lines]
    values = np.concatenate(parts) if parts else np.empty(0)
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.quantile(values, [0.02, 0.98]))
    spread = values.max() - values.min()
    if high - low > 0.25 * spread:
        low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or abs(high) * 0.05 or 1.0
    return low - pad, high + pad
