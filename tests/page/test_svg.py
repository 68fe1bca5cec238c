"""Figures as they stand in a page: alone, under the user's own settings, with names that can be read."""

from __future__ import annotations

import itertools
import logging
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.page.svg import apart, blank, drawing, inline


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
