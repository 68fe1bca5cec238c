"""Text that goes into figures: cut to size, and fit to stand in any document."""

from __future__ import annotations

import itertools
import logging
import unicodedata
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.study.svg import apart, blank, clean, drawing, inline, shorten

ANY_TEXT = st.text(st.characters(exclude_categories=[]))  # half surrogates too


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


@given(ANY_TEXT, st.integers(1, 40))
def test_shortened_text_fits_on_one_line(text: str, width: int) -> None:
    short = shorten(text, width)
    assert columns(short) <= width
    assert not set(short) & set("\n\r\t\v\f")
    assert shorten(short, width) == short


@given(ANY_TEXT)
def test_clean_text_can_stand_in_any_document(text: str) -> None:
    found = clean(text)
    assert len(found) == len(text)
    found.encode("utf-8")
    escaped = found.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    ElementTree.fromstring(f"<a>{escaped}</a>")
    assert clean(found) == found


@pytest.mark.parametrize("text", ["plain", "norm × dropout → 名前 🎉", "e\u0301", "لغة", "a\u200db"])
def test_what_people_write_is_left_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_drawing_leaves_settings_and_logging_as_they_were() -> None:
    before, level = dict(mpl.rcParams), logging.getLogger("matplotlib").level
    with drawing():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before
    assert logging.getLogger("matplotlib").level == level


def test_two_figures_of_one_page_share_no_id() -> None:
    def figure(name: str) -> str:
        with drawing():
            found = blank(100, 100)
            found.add_axes((0.1, 0.1, 0.8, 0.8)).plot([0, 1], [0, 1], "o-")
            return inline(found, name, "A line.")

    def ids(markup: str) -> set[str]:
        return {node.attrib["id"] for node in ElementTree.fromstring(markup).iter() if "id" in node.attrib}

    first, second = figure("first"), figure("second")
    assert ids(first)
    assert not ids(first) & ids(second)
    assert first.replace("first", "second") == second


@given(st.lists(st.floats(0, 10), min_size=1, max_size=6).map(sorted))
def test_names_beside_points_do_not_overlap_nor_wander_off(heights: list[float]) -> None:
    with drawing():
        axes = blank(100, 200).add_axes((0, 0, 1, 1), ylim=(0, 10))
    places = apart(heights, axes, gap=16.0)
    assert all(high - low >= 0.8 - 1e-9 for low, high in itertools.pairwise(places))
    assert places[-1] <= 10.4 + 1e-9
    if all(high - low >= 0.8 for low, high in itertools.pairwise(heights)):
        assert places == pytest.approx(heights)
