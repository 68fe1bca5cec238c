"""Codes as users write them: beginnings, several at once, in any case; what is unknown is named with its nearest."""

from __future__ import annotations

import pytest

from homeostat.doctor.show.selection import codes_beginning, selection
from homeostat.errors import InvalidValue

CODES = ("INI001", "OPT001", "OPT002", "SIG001", "SIG003")


def kept(select=None, ignore=None) -> list[str]:
    wanted = selection(select, ignore, CODES)
    return [code for code in CODES if wanted.keeps(code)]


def test_without_a_wish_everything_is_kept() -> None:
    assert kept() == list(CODES)


def test_families_and_codes_are_picked_and_left_out() -> None:
    assert kept(["SIG"]) == ["SIG001", "SIG003"]
    assert kept(ignore=["OPT", "SIG003"]) == ["INI001", "SIG001"]
    assert kept(["sig, opt001"]) == ["OPT001", "SIG001", "SIG003"]
    assert kept(["SIG"], ["SIG003"]) == ["SIG001"]


def test_the_longer_beginning_decides_and_of_two_equal_ignore() -> None:
    assert kept(["SIG003"], ["SIG"]) == ["SIG003"]
    assert kept(["SIG"], ["SIG"]) == []


def test_an_unknown_code_is_named_with_the_nearest() -> None:
    with pytest.raises(InvalidValue, match=r"--select: unknown code 'SIG002'\. Did you mean 'SIG003'"):
        selection(["SIG002"], None, CODES)
    with pytest.raises(InvalidValue, match=r"--ignore: unknown code 'OTP'\. Did you mean 'OPT'"):
        selection(None, ["OTP"], CODES)
    with pytest.raises(InvalidValue, match=r"unknown code 'SGI003'\. Did you mean 'SIG003'"):
        selection(["SGI003"], None, CODES)


def test_a_beginning_lists_its_codes() -> None:
    assert codes_beginning("explain", " opt", CODES) == ["OPT001", "OPT002"]
    with pytest.raises(InvalidValue, match=r"explain: unknown code ''"):
        codes_beginning("explain", "", CODES)
