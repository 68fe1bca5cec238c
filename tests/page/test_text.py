"""Text for people: cut to size, and fit to stand in any document."""

from __future__ import annotations

import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.page.text import clean, shorten

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
