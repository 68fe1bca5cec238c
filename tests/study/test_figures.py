"""Figures: what is drawn lies where the numbers say, is told by shape and word, and cannot break the page."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.page.svg import COLORS, NARROW, WIDE, Picture
from homeostat.page.text import clean, shorten
from homeostat.study.show.figures import Interval, forest, matrix, strip
from homeostat.study.show.scatters import Point, cost, residuals

NAN = float("nan")
ROWS = (
    Interval("norm: none → batch", 2.0, 1.5, 2.5, "up", "helps", "+2.0 [1.5, 2.5]", "Main effects"),
    Interval("dropout", -1.0, -1.6, -0.4, "down", "hurts", "−1.0 [−1.6, −0.4]", "Main effects"),
    Interval("l1", 0.1, -0.3, 0.5, "flat", "no clear effect", "+0.1 [−0.3, 0.5]", "Main effects"),
    Interval("norm × l1", NAN, NAN, NAN, "none", "not estimable", "", "Interactions"),
)


def drawn(rows: tuple[Interval, ...] = ROWS, margin: float = 0.5) -> Picture:
    return forest(rows, axis="change, points", better="right", margin=margin, tick=lambda x: f"{x:g}", alt="Effects.")


def tree(markup: str) -> ElementTree.Element:
    return ElementTree.fromstring(markup)


def texts(markup: str) -> list[str]:
    return [node.text or "" for node in tree(markup).iter("text")]


def marks(markup: str) -> list[tuple[float, str]]:
    """The horizontal place and the stroke of every marker, from top to bottom."""
    nodes = [node for node in tree(markup).iter("use") if "y" in node.attrib and "x" in node.attrib]
    found = sorted((float(node.attrib["y"]), float(node.attrib["x"]), node.attrib.get("stroke", "")) for node in nodes)
    return [(x, color) for _, x, color in found]


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_a_forest_shows_every_row_and_its_numbers(layout: str) -> None:
    markup = getattr(drawn(), layout)
    shown = texts(markup)
    for row in ROWS:
        assert row.label in shown
        assert row.text in shown or not row.text
        assert row.verdict in shown or layout == "narrow"
    assert shown.count("Main effects") == shown.count("Interactions") == 1
    assert any("better →" in text for text in shown)


@pytest.mark.parametrize("layout", ["wide", "narrow"])
def test_estimates_lie_where_their_numbers_say(layout: str) -> None:
    found = [x for x, color in marks(getattr(drawn(), layout)) if color]
    assert len(found) == 3  # what could not be estimated has no mark
    places = np.array(found)
    values = np.array([row.estimate for row in ROWS[:3]])
    slope, offset = np.polyfit(values, places, 1)
    assert slope > 0
    assert np.abs(slope * values + offset - places).max() < 0.02
    ends = re.findall(r'd="M (-?[\d.]+) (-?[\d.]+) L (-?[\d.]+) (-?[\d.]+)"', getattr(drawn(), layout))
    spans = [(float(a), float(c)) for a, b, c, d in ends if b == d]
    for row in ROWS[:3]:
        expected = (slope * row.low + offset, slope * row.high + offset)
        assert any(np.allclose(span, expected, atol=0.02) for span in spans)


def test_verdicts_differ_by_shape_and_not_only_by_color() -> None:
    root = tree(drawn().wide)
    used = {node.attrib["href"][1:] for node in root.iter("use") if node.attrib.get("stroke")}
    shapes = {node.attrib["d"] for node in root.iter("path") if node.attrib.get("id") in used}
    assert len(shapes) == 3


def test_the_margin_is_a_band_only_where_there_is_one() -> None:
    assert drawn(margin=0.0).wide.count('fill="var(--ghost') == 0
    assert drawn(margin=0.5).wide.count('fill="var(--ghost') > 0


def picture_of_each_kind() -> list[Picture]:
    table = pd.DataFrame([[NAN, 1.0], [1.0, NAN]])
    values = np.array([0.5, 1.0, 2.0])
    points = [Point(1.0, 0.9, 0.8, 1.0, "base", 0), Point(2.0, 0.95, NAN, NAN), Point(2.1, 0.96, 0.95, 0.97, "best", 2)]
    return [
        drawn(),
        matrix(["a", "b"], table, table > 0, number=str, better=1.0, alt="Pairs."),
        cost(points, axes_names=("seconds", "Accuracy"), ticks=(str, str), alt="Time."),
        residuals(values, -values, values > 1, axes_names=("fitted", "left over"), tick=str, alt="Residuals."),
    ]


@pytest.mark.parametrize("picture", picture_of_each_kind(), ids=["forest", "matrix", "cost", "residuals"])
def test_every_figure_is_plain_markup_of_the_right_size_in_the_colors_of_the_page(picture: Picture) -> None:
    for markup, most in ((picture.wide, WIDE), (picture.narrow, NARROW)):
        root = tree(markup)
        assert root.tag == "svg"
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"] == picture.alt
        assert float(root.attrib["width"]) <= most + 0.01
        assert {node.tag for node in root.iter()} <= {"svg", "g", "defs", "path", "use", "text", "clipPath", "rect"}
        assert not [node for node in root.iter() if "style" in node.attrib]
        assert "DejaVu" not in markup
        ids = [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="|url\()#([^")]+)', markup)) == set(ids)
        for name, color in COLORS.items():
            assert markup.count(color) == markup.count(f"var(--{name}, {color})")


@pytest.mark.parametrize("index", range(3))
def test_the_same_numbers_give_the_same_bytes(index: int) -> None:
    assert picture_of_each_kind()[index] == picture_of_each_kind()[index]


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_categories=[])), st.text())
def test_no_label_can_break_a_figure(label: str, verdict: str) -> None:
    row = Interval(label, 1.0, 0.0, 2.0, "up", clean(verdict), "+1", "Main effects")
    shown = texts(drawn((row,)).wide)
    assert shorten(label, 44) in shown or not label.strip()


def test_a_matrix_is_symmetric_and_marks_what_is_clear() -> None:
    table = pd.DataFrame([[NAN, 2.0, -1.0], [2.0, NAN, NAN], [-1.0, NAN, NAN]])
    arguments = (["norm", "dropout", "l1"], table, table == 2.0)
    markup = matrix(*arguments, number=lambda x: f"{x:+g}", better=1.0, alt="").wide
    shown = [(node.text, node.attrib.get("font-weight")) for node in tree(markup).iter("text")]
    assert shown.count(("+2", "600")) == 2
    assert shown.count(("-1", None)) == 2
    assert [text for text, _ in shown].count("norm") == 2
    fills = re.findall(r'fill="(#\w+)"', markup)
    opposite = matrix(*arguments, number=str, better=-1.0, alt="").wide
    bluest = max(set(fills), key=lambda color: int(color[5:], 16) - int(color[1:3], 16))
    assert bluest in markup
    assert bluest not in opposite  # where less is better, +2 is bad news


def test_only_what_is_marked_in_a_matrix_has_a_strong_color() -> None:
    table = pd.DataFrame([[NAN, 3.0, -1.0], [3.0, NAN, NAN], [-1.0, NAN, NAN]])
    markup = matrix(["a", "b", "c"], table, table == -1.0, number=str, better=1.0, alt="").wide

    def spread(color: str) -> int:
        channels = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
        return max(channels) - min(channels)

    blue, orange = [], []
    for fill in set(re.findall(r'fill="(#\w{6})"', markup)):
        (blue if fill[5:] > fill[1:3] else orange).append(spread(fill))
    assert max(orange) > 2 * max(blue)  # −1 is clear, +3 is not


def test_the_zero_line_does_not_run_through_the_numbers_of_the_narrow_forest() -> None:
    root = tree(drawn(margin=0.0).narrow)
    below = [float(node.attrib["y"]) for node in root.iter("text") if node.text == ROWS[0].label]
    lines = [
        node.attrib["d"].split() for node in root.iter("path") if node.attrib.get("stroke", "").startswith("var(--ink")
    ]
    heights = [sorted((float(line[2]), float(line[5]))) for line in lines]
    assert min(top for top, _ in heights) > below[0] + 3


def test_a_matrix_too_dense_for_numbers_on_a_telephone_shows_colors_alone() -> None:
    count = 16
    table = pd.DataFrame(np.ones((count, count)))
    picture = matrix([f"f{i}" for i in range(count)], table, table < 0, number=lambda x: "one", better=1.0, alt="")
    assert texts(picture.wide).count("one") == count**2
    assert texts(picture.narrow).count("one") == 0


def test_of_the_treatments_only_those_with_a_part_are_named() -> None:
    picture = picture_of_each_kind()[2]
    for markup in (picture.wide, picture.narrow):
        assert [text for text in texts(markup) if text in {"base", "best"}] == ["base", "best"]


def test_a_strip_lies_on_the_scale_of_its_column() -> None:
    def middle(markup: str) -> float:
        return float(tree(markup).find("circle").attrib["cx"])

    left, half, right = (middle(strip(x, NAN, NAN, (0.0, 1.0))) for x in (0.0, 0.5, 1.0))
    assert left < half < right
    assert half == pytest.approx((left + right) / 2)
    assert strip(NAN, NAN, NAN, (0.0, 1.0)) == ""
    assert strip(1.0, 0.5, 1.5, (1.0, 1.0)) == ""
    line = tree(strip(0.5, 0.25, 0.75, (0.0, 1.0), zero=True)).findall("path")
    assert line[0].attrib["d"].startswith(f"M{left}")
