"""Sections that only some reports have: what they say is escaped, and long tables say that they are cut."""

import pytest
import simulated_studies as simulated

from homeostat.study.show import sections
from homeostat.study.show.report import render
from homeostat.study.show.sections import Section, Table, sequence_section
from homeostat.study.stopping import look


def test_no_text_of_a_section_can_become_markup() -> None:
    analysis, curves = simulated.five()
    rough = simulated.HOSTILE
    section = Section("rough", rough, (rough,), (Table(rough, (rough, rough), ((rough, rough),)),))
    page = render(analysis, curves, {"sections": (section,)})
    assert rough not in page
    assert page.count("&lt;/script&gt;") >= 7
    assert 'href="#rough"' in page


def test_a_report_without_sections_is_as_it_was() -> None:
    analysis, curves = simulated.five()
    assert render(analysis, curves, {}) == render(analysis, curves, {"sections": ()})


def test_a_long_table_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, _ = simulated.five()
    found = look(analysis)
    (whole,) = sequence_section(["a note"], analysis, found).tables
    assert (whole.caption, len(whole.rows)) == ("Effects at the last look", 15)
    monkeypatch.setattr(sections, "_MOST_ROWS", 4)
    (table,) = sequence_section([], analysis, found).tables
    assert (table.caption, table.rows) == ("Effects at the last look, the first 4 of 15", whole.rows[:4])
