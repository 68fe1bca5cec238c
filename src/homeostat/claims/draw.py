"""The figures of claims: courses, levels compared, points; with means over seeds and their 95 % intervals.

Every figure is drawn twice, for a wide page and for a telephone. Groups differ by color, by line or marker, and by a
name beside them. What is not finite is left out, and said. Nothing is random: the same tables give the same bytes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation

from homeostat.errors import invalid
from homeostat.inference import Interval, mean_interval
from homeostat.page.svg import FAINT, HELPS, HURTS, INK, NARROW, OTHER, SOFT, Picture, blank, drawing, inline
from homeostat.page.text import shorten

_WIDE = 720.0
_LABEL = {True: 28, False: 13}  # the most characters of a line's name, in the wide and the narrow layout
_STYLES: tuple[tuple[str, Any, str], ...] = (
    (INK, (0, (5, 2)), "s"),
    (HELPS, "-", "o"),
    (HURTS, (0, (1, 1)), "^"),
    (OTHER, (0, (6, 2, 1, 2)), "D"),
    (SOFT, "-", "v"),
    (HELPS, (0, (1, 2)), "P"),
    (HURTS, (0, (8, 2)), "X"),
    (OTHER, (0, (2, 1)), "<"),
)
MOST_GROUPS = len(_STYLES)
_COLORS = 5  # different ones
_ROW = {True: 40, False: 21}  # the most characters of a row's name, and of one of its two lines
_NOTHING: Mapping[bool, int] = {True: 0, False: 0}

Draw = Callable[[Axes, bool], None]


def renamed(figure: Picture, name: str) -> Picture:
    """The figure with ids that no other of a page has."""

    def with_name(markup: str) -> str:
        return markup.replace('id="claim-', f'id="{name}-').replace("#claim-", f"#{name}-")

    return Picture(with_name(figure.wide), with_name(figure.narrow), figure.alt)


def lined(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows with a column `line` that names the other levels."""
    lines = [", ".join(map(str, row)) for row in frame[list(columns)].to_numpy(dtype=object)]
    return frame.assign(line=lines)


def courses(
    frame: pd.DataFrame,
    x: str,
    y: str,
    group: str | None = None,
    *,
    across: str,
    up: str,
    alt: str,
    names: Mapping[Any, str] | None = None,
    log: str = "",
    line: float | None = None,
) -> Picture:
    """Lines of y over x, one per group: means over seeds with their intervals as bands.

    Args:
        frame: one row per seed, x and group; x is a number.
        group: the column that tells lines apart, at most `MOST_GROUPS` of them; None: there is one line.
        across, up: what the axes show, with units.
        alt: the figure in a sentence.
        names: of the groups, where they are not to be called what they are.
        log: which axes are logarithmic: "", "x", "y" or "xy"; what is not above zero is then left out.
        line: a height at which a reference line is drawn.
    Raises: InvalidValue for more groups than can be told apart.
    """
    groups = _groups("courses", frame, group)
    longest = max((len(_named(key, names, 60)) for key, _ in groups), default=0) if group is not None else 0
    # names that are too long to stand beside lines, or lines too many for a color each, stand above them with a sample
    above = {wide: longest > _LABEL[wide] or len(groups) > _COLORS for wide in (True, False)}

    def draw(axes: Axes, wide: bool) -> None:
        ends, lost = [], 0
        for (key, own), (color, dash, marker) in zip(groups, _STYLES, strict=False):
            at, mean, low, high, missing = _summary(own, x, y, positive="y" in log)
            few = marker if len(at) <= 20 else ""
            label = _named(key, names, 60 if wide else 44) if group is not None else None
            axes.fill_between(at, low, high, color=color, alpha=0.14, linewidth=0)
            if len(at) == 1:  # a band without width is not seen
                axes.vlines(at, low, high, color=color, linewidth=2)
            axes.plot(at, mean, color=color, linestyle=dash, linewidth=2, marker=few, markersize=5, label=label)
            lost += missing
            if label is not None and len(mean):
                ends.append((float(mean[-1]), label, color))
        if line is not None:
            axes.axhline(line, color=SOFT, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        if lost:
            what = "not finite" if "y" not in log else "not finite, or zero"
            axes.annotate(
                f"not drawn: {lost} of {len(frame)} values, {what}", (0, 1), (2, 2), xycoords="axes fraction",
                textcoords="offset points", va="bottom", fontsize=10.5, color=HURTS,
            )  # fmt: skip
        _scales(axes, log, wide)
        _limited(axes, "y", frame[y], line, log="y" in log)
        if above[wide]:
            _legend(axes, _columns(longest, wide), lift=16 if lost else 2)
        else:
            _ends(axes, ends)

    rooms = {wide: 0 if above[wide] else longest for wide in above}
    heads = {wide: 18.0 * -(-len(groups) // _columns(longest, wide)) + 14 if above[wide] else 0.0 for wide in above}
    return _pictured(draw, across, up, alt, rooms=rooms, heads=heads)


def levels(
    frame: pd.DataFrame,
    by: str | Sequence[str],
    y: str,
    *,
    across: str,
    alt: str,
    names: Mapping[Any, str] | None = None,
    log: bool = False,
    line: float | None = None,
) -> Picture:
    """One row per level: the single runs as faint points, their mean with its interval on top.

    On a logarithmic axis it is the geometric mean.

    Args:
        frame: one row per run.
        by: the column, or columns, whose levels are the rows, in order of appearance.
        across: what the horizontal axis shows, with its unit.
        names: of the levels (of a tuple of them, where there are several columns).
        log: whether the axis is logarithmic.
        line: a place at which a reference line is drawn.
    """
    columns = [by] if isinstance(by, str) else list(by)
    keys = list(dict.fromkeys(map(tuple, frame[columns].to_numpy(dtype=object).tolist())))
    labels = [_named(key[0] if len(key) == 1 else key, names, _ROW[True]) for key in keys]

    def draw(axes: Axes, wide: bool) -> None:
        for row, key in enumerate(keys):
            chosen = np.logical_and.reduce([frame[name] == level for name, level in zip(columns, key, strict=True)])
            values = frame.loc[chosen, y].to_numpy(dtype=float)
            finite = values[np.isfinite(values) & ((values > 0) | (not log))]
            axes.plot(finite, np.full(len(finite), row), "o", color=SOFT, alpha=0.35, markersize=4, markeredgewidth=0)
            if len(finite):
                found = _mean(finite, geometric=log)
                if len(finite) > 1:
                    axes.plot([found.low, found.high], [row, row], color=HELPS, linewidth=2.4, solid_capstyle="butt")
                axes.plot([found.estimate], [row], "D", color=HELPS, markersize=7)
            gone = int((~np.isfinite(values)).sum())
            if gone or len(finite) < len(values):
                zeros = len(values) - len(finite)
                lost = f"{gone} of {len(values)} not finite" if gone else f"{zeros} of {len(values)} zero"
                axes.annotate(
                    lost, (1, row), (-4, 9), xycoords=("axes fraction", "data"), textcoords="offset points",
                    ha="right", va="center", fontsize=10.5, color=HURTS,
                )  # fmt: skip
        axes.set_ylim(len(keys) - 0.5, -0.5)
        axes.set_yticks(
            range(len(keys)), labels if wide else [_in_two_lines(label) for label in labels], linespacing=1.0
        )
        if line is not None:
            axes.axvline(line, color=SOFT, linewidth=1, linestyle=(0, (2, 3)), zorder=0)
        if log:
            _logarithmic(axes, "x", wide)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 4))
        _limited(axes, "x", frame[y], line, log=log)
        axes.grid(axis="x", color=FAINT, linewidth=0.8)

    rows = {True: labels, False: [_in_two_lines(label) for label in labels]}
    left = {wide: max((len(line) for row in own for line in row.split("\n")), default=0) for wide, own in rows.items()}
    return _pictured(draw, across, "", alt, rows=len(keys), left=left)


def scatter(
    frame: pd.DataFrame,
    x: str,
    y: str,
    group: str | None = None,
    *,
    across: str,
    up: str,
    alt: str,
    names: Mapping[Any, str] | None = None,
    log: str = "",
) -> Picture:
    """Points, one per run, by group; arguments as for `courses`."""
    groups = _groups("scatter", frame, group)

    def draw(axes: Axes, wide: bool) -> None:
        for (key, own), (color, _, marker) in zip(groups, _STYLES, strict=False):
            label = _named(key, names, 44) if group is not None else None
            axes.plot(own[x], own[y], marker, color=color, alpha=0.75, markersize=6, linestyle="none", label=label)
        _scales(axes, log, wide)
        if group is not None:
            _legend(axes, _columns(longest, wide), lift=2)

    longest = max((len(_named(key, names, 44)) for key, _ in groups), default=0)
    lines = {wide: -(-len(groups) // _columns(longest, wide)) if group is not None else 0 for wide in (True, False)}
    return _pictured(draw, across, up, alt, heads={wide: 18.0 * count for wide, count in lines.items()})


def _groups(where: str, frame: pd.DataFrame, group: str | None) -> list[tuple[Any, pd.DataFrame]]:
    found: list[tuple[Any, pd.DataFrame]] = [(None, frame)] if group is None else [*frame.groupby(group, sort=False)]
    if len(found) > MOST_GROUPS:
        cure = "More cannot be told apart in one figure: leave some out, or draw them with levels()."
        raise invalid(f"draw.{where}", "group", f"be a column of at most {MOST_GROUPS} values", len(found), cure)
    return found


def _columns(longest: int, wide: bool) -> int:
    """How many names of so many characters stand beside each other in a legend."""
    return max(1, min(4 if wide else 2, int((88 if wide else 42) / (longest + 8))))


def _legend(axes: Axes, columns: int, lift: float) -> None:
    """Names above the axes, line by line, each with a sample of its line or marker."""
    above = ScaledTranslation(0, lift / 72, axes.figure.dpi_scale_trans)
    samples, labels = axes.get_legend_handles_labels()
    order = [place for column in range(columns) for place in range(column, len(labels), columns)]  # column by column
    axes.legend(
        [samples[place] for place in order], [labels[place] for place in order],
        loc="lower left", bbox_to_anchor=(0, 1), bbox_transform=axes.transAxes + above, ncols=columns, frameon=False,
        fontsize=11, handlelength=2.6, handletextpad=0.5, columnspacing=1.2, borderaxespad=0.0, borderpad=0.0,
        labelspacing=0.35,
    )  # fmt: skip


def _pictured(
    draw: Draw,
    across: str,
    up: str,
    alt: str,
    *,
    rooms: Mapping[bool, int] = _NOTHING,
    rows: int = 0,
    left: Mapping[bool, int] = _NOTHING,
    heads: Mapping[bool, float] = _NOTHING,
) -> Picture:
    """A figure in both layouts: characters at the right, rows with so many characters at the left, points above."""

    def layout(wide: bool) -> str:
        width, room = (_WIDE if wide else NARROW), rooms[wide]
        height = 34.0 * rows + 66.0 if rows else (320.0 if wide else 260.0)
        beside = 7.1 * room + (14 if room else 6)
        before = 6.8 * left[wide] + 14 if rows else 64.0
        with drawing():
            whole = height + heads[wide]
            figure = blank(width, whole)
            box = (before / width, 48 / whole, (width - before - beside - 6) / width, (height - 62) / whole)
            axes = figure.add_axes(box)
            axes.patch.set_visible(False)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(length=0, pad=5)
            axes.tick_params(axis="x", length=3, color=FAINT)
            if not rows:
                axes.grid(axis="y", color=FAINT, linewidth=0.8)
            draw(axes, wide)
            axes.set_xlabel(shorten(across, 90 if wide else 50), fontsize=11.5, labelpad=4)
            if not wide:  # it may be longer than the axes
                axes.xaxis.set_label_coords(0.5, 22 / whole, transform=figure.transFigure)
            if up:
                axes.set_ylabel(shorten(up, 46 if wide else 36), fontsize=11.5, labelpad=6)
            return inline(figure, f"claim-{'wide' if wide else 'narrow'}", alt)

    return Picture(layout(True), layout(False), alt)


def _summary(frame: pd.DataFrame, x: str, y: str, *, positive: bool) -> tuple[Any, ...]:
    """Per x: the mean of y and the ends of its interval (the mean itself, where there is one); what is left out.

    Where y has to be positive, it is the geometric mean.
    """
    at: list[float] = []
    rows: list[tuple[float, float, float]] = []
    missing = 0
    for place in np.unique(frame[x].to_numpy(dtype=float)):
        values = frame.loc[frame[x] == place, y].to_numpy(dtype=float)
        known = values[np.isfinite(values) & ((values > 0) | (not positive))]
        missing += len(values) - len(known)
        if len(known):
            found = _mean(known, geometric=positive)
            at.append(float(place))
            rows.append((found[0], found[1], found[2]) if len(known) > 1 else (found[0],) * 3)
    return np.array(at), *np.array(rows, dtype=float).reshape(-1, 3).T, missing


def _mean(values: np.ndarray, *, geometric: bool) -> Interval:
    if not geometric:
        return mean_interval(values)
    return Interval(*np.exp(mean_interval(np.log(values))[:3]))


def _in_two_lines(label: str) -> str:
    """A label for the narrow layout; what does not fit is left out in the middle."""
    lines = textwrap.wrap(label, _ROW[False], break_long_words=False)
    return "\n".join(shorten(line, _ROW[False]) for line in ([lines[0], lines[-1]] if len(lines) > 2 else lines))


def _scales(axes: Axes, log: str, wide: bool) -> None:
    for name in "xy":
        if name in log:
            _logarithmic(axes, name, wide)
        else:
            counts = name == "x" and all(
                np.all(np.asarray(line.get_xdata(), dtype=float) % 1 == 0) for line in axes.lines
            )  # epochs, layers
            getattr(axes, f"{name}axis").set_major_locator(MaxNLocator(6, integer=counts))


def _logarithmic(axes: Axes, name: str, wide: bool) -> None:
    """Ticks at powers of ten, or at 1, 2, 5 times them where the axis covers less than two; none without values."""
    axis = getattr(axes, f"{name}axis")
    if not np.isfinite(getattr(axes.dataLim, f"minpos{name}")):  # of the positive values, the least
        axis.set_major_locator(NullLocator())
        return
    getattr(axes, f"set_{name}scale")("log")
    low, high = getattr(axes, f"get_{name}lim")()
    subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs, numticks=5 if name == "x" and not wide else 7))
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _limited(axes: Axes, name: str, values: pd.Series[float], line: float | None, *, log: bool) -> None:
    """End an axis a quarter of the range of values and reference line beyond them.

    Two values have intervals that would flatten all else.
    """
    kept = np.append(values.to_numpy(dtype=float), [] if line is None else line)
    kept = kept[np.isfinite(kept) & ((kept > 0) | (not log))]
    scale, back = (np.log10, lambda value: 10.0**value) if log else (np.positive, float)
    if len(kept) and kept.min() < kept.max():
        least, most = scale(kept.min()), scale(kept.max())
        low, high = scale(np.array(getattr(axes, f"get_{name}lim")()))
        room = 0.25 * (most - least)
        getattr(axes, f"set_{name}lim")(back(max(low, least - room)), back(min(high, most + room)))


def _ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name lines at their right end, moved apart where they would overlap."""
    if not ends:
        return
    low, high = axes.get_ylim()
    scale = axes.transData
    heights = [float(scale.transform((axes.get_xlim()[0], np.clip(end, low, high)))[1]) for end, *_ in ends]
    order = sorted(range(len(ends)), key=lambda place: heights[place])
    box = axes.bbox
    step = 15.0
    places: list[float] = []
    for place in order:
        places.append(max(heights[place], places[-1] + step) if places else heights[place])
    most = box.y1 + step / 2
    for index in reversed(range(len(places))):
        places[index] = min(places[index], most)
        most = places[index] - step
    for place, at in zip(order, places, strict=True):
        _, label, color = ends[place]
        axes.annotate(
            label, (1, (at - box.y0) / box.height), (8, 0), xycoords="axes fraction", textcoords="offset points",
            va="center", fontsize=12, color=color, annotation_clip=False,
        )  # fmt: skip


def _named(key: Any, names: Mapping[Any, str] | None, width: int) -> str:
    if names is not None and key in names:
        return shorten(names[key], width)
    return shorten(" · ".join(map(str, key)) if isinstance(key, tuple) else str(key), width)
