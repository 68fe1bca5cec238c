"""A matplotlib figure as a small, deterministic piece of SVG that can stand inside an HTML page.

What matplotlib writes is a whole document with inline styles, a style sheet that would leak into the page, and ids that
collide when a page holds several figures. `inline` turns it into plain elements with presentation attributes (a strict
content security policy forbids inline styles), with colors that follow the page's theme and text in the page's font.
Nothing here is random.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from xml.etree import ElementTree

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from homeostat.page.text import clean

WIDE, NARROW = 1120.0, 360.0  # the widths in which every figure is drawn, in CSS pixels

# The colors of every figure: safe for the color-blind (blue against vermilion) and different in lightness on paper.
# In the page each is a CSS variable, so that a dark theme can replace it; the value here is the light one.
COLORS = {
    "ink": "#1b1f24",
    "soft": "#57606a",
    "faint": "#d8dde2",
    "ghost": "#b4bcc4",
    "paper": "#fffffe",
    "helps": "#0069a8",
    "hurts": "#b84e00",
    "other": "#00795a",
}
INK, SOFT, FAINT, GHOST, PAPER, HELPS, HURTS, OTHER = COLORS.values()

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "homeostat",
    "text.parse_math": False,  # a "$" in a level's name is a dollar
    "font.family": ["DejaVu Sans"],  # comes with matplotlib: the same layout on every machine
    "font.size": 12.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": 11.0,
    "ytick.labelsize": 11.0,
    "path.simplify": False,
}
_PRESENTATION = {
    "fill", "fill-opacity", "fill-rule", "opacity", "stroke", "stroke-dasharray", "stroke-dashoffset",
    "stroke-linecap", "stroke-linejoin", "stroke-miterlimit", "stroke-opacity", "stroke-width", "text-anchor",
}  # fmt: skip
_NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@dataclass(frozen=True)
class Picture:
    """One figure as markup in two layouts, for a wide page and for a telephone, with the sentence that describes it."""

    wide: str
    narrow: str
    alt: str


@contextmanager
def drawing() -> Iterator[None]:
    """The settings under which a figure must be built and written, whatever the user's own are; they are put back."""
    with _quiet(), style.context(["default", _STYLE]):
        yield


def blank(width: float, height: float) -> Figure:
    """An empty, transparent figure of `width` × `height` units, which are CSS pixels at its natural size."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    figure.patch.set_visible(False)
    return figure


def apart(heights: Sequence[float], axes: Axes, gap: float = 16.0) -> list[float]:
    """Heights for names beside points: as near to the points as it goes with `gap` units between them.

    Args:
        heights: of the points on the vertical axis of `axes`, rising.
    """
    low, high = axes.get_ylim()
    step = gap * (high - low) / axes.bbox.height
    places: list[float] = []
    for height in heights:
        places.append(max(height, places[-1] + step) if places else height)
    most = high + step / 2
    for index in reversed(range(len(places))):
        places[index] = min(places[index], most)
        most = places[index] - step
    return places


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as one `<svg>` element for an HTML page.

    Args:
        figure: built inside `drawing()`.
        name: unique in the page; the prefix of the ids inside. Its words (between hyphens) are classes of the element.
        label: what the figure shows, for those who cannot see it.
    Returns: markup without style attributes, style elements, scripts or links to anything outside.
    """
    buffer = io.StringIO()
    with drawing():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(buffer.getvalue())
    used = {match for node in root.iter() for value in node.attrib.values() for match in _REFERENCE.findall(value)}
    used |= {value[1:] for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")}
    _tidy(root, name, used)
    box = root.attrib["viewBox"]
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "class": f"figure {name.replace('-', ' ')}", "role": "img"})
    root.attrib["aria-label"] = clean(label)
    width, height = box.split()[2:]
    root.attrib.update({"width": width, "height": height, "stroke-linejoin": "round"})
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(node: ElementTree.Element, name: str, used: set[str]) -> None:
    """Rewrite one element and what it contains; see the module's docstring for why."""
    node.tag = node.tag.rpartition("}")[2]
    node.text, node.tail = (node.text if node.tag == "text" else None), None
    node.attrib.update(_presentation(node.attrib.pop("style", "")))
    identity = node.attrib.pop("id", None)
    if identity in used:
        node.attrib["id"] = f"{name}-{identity}"
    for key, value in list(node.attrib.items()):
        if key.endswith("href"):
            del node.attrib[key]
            node.attrib["href"] = f"#{name}-{value[1:]}"
        elif key == "transform" and node.tag == "text" and value.startswith(("rotate(-0 ", "rotate(0 ")):
            del node.attrib[key]
        else:
            short = " ".join(_NUMBER.sub(_rounded, value).split())
            node.attrib[key] = _REFERENCE.sub(rf"url(#{name}-\1)", short)
    for child in list(node):
        if not isinstance(child.tag, str) or child.tag.rpartition("}")[2] in {"metadata", "style"}:
            node.remove(child)
        else:
            _tidy(child, name, used)
    for child in list(node):
        if child.tag in {"g", "defs"} and not len(child):
            node.remove(child)


def _presentation(style: str) -> dict[str, str]:
    """The declarations of a style attribute as presentation attributes; the page chooses the font, not its size."""
    attributes: dict[str, str] = {}
    for declaration in filter(None, (part.strip() for part in style.split(";"))):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key in _PRESENTATION:
            attributes[key] = _themed(value)
        elif key in {"font", "font-size"}:  # the shorthand or its parts, as the version of matplotlib has it
            attributes["font-size"] = next(iter(re.findall(r"([\d.]+)px", value)), "12")
        if key in {"font", "font-weight"} and re.search(r"\b(bold|[6-9]00)\b", value):
            attributes["font-weight"] = "600"
    return attributes


def _themed(value: str) -> str:
    for name, color in COLORS.items():
        if value == color:
            return f"var(--{name}, {color})"
    return value


def _rounded(match: re.Match[str]) -> str:
    text = f"{float(match.group()):.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@contextmanager
def _quiet() -> Iterator[None]:
    """Without matplotlib's remarks on glyphs that its own font lacks: the page's fonts draw the text."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            yield
    finally:
        logger.setLevel(level)
