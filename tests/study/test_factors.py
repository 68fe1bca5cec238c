"""Factors: from text and from Python, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.errors import InvalidType, InvalidValue
from homeostat.study.factors import RESERVED, Factor, as_factors, level_text, parse_factor, parse_level


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("norm=none,batch", ("none", "batch")),
        ("dropout=0,0.5", (0, 0.5)),
        ("l1=0,1e-4,.5,-2.", (0, 1e-4, 0.5, -2.0)),
        ("compile=false,True", (False, True)),
        (" clip = 1_0 , +1 ", ("1_0", 1)),
        ("when=nan,inf", ("nan", "inf")),
        ("augment=none,crop+flip", ("none", "crop+flip")),
    ],
)
def test_text_becomes_levels(text: str, levels: tuple[object, ...]) -> None:
    found = parse_factor(text).levels
    assert found == levels
    assert [type(level) for level in found] == [type(level) for level in levels]


@pytest.mark.parametrize("text", ["norm", "=a,b", "norm=", "norm=none", "norm=none,", "norm=none,none", "x=1,1.0"])
def test_text_that_is_no_factor_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidValue) as error:
        parse_factor(text)
    assert "must" in str(error.value)


@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=2, unique=True))
def test_numbers_survive_the_way_through_text(levels: list[float]) -> None:
    assert parse_factor(f"x={','.join(level_text(level) for level in levels)}").levels == tuple(levels)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.booleans())
def test_a_level_is_read_as_it_was_written(level: float) -> None:
    found = parse_level(level_text(level))
    assert (found, type(found)) == (level, type(level))


def test_numbers_are_written_as_people_write_them() -> None:
    levels = (1e6, 1e-5, 1e-4, 150000.0, 123456.0, 2.0, 1e22, -1.5e-7)
    assert [level_text(x) for x in levels] == ["1e6", "1e-5", "0.0001", "1.5e5", "123456.0", "2.0", "1e22", "-1.5e-7"]


def test_a_mapping_and_a_list_of_factors_or_texts_mean_the_same() -> None:
    by_name = as_factors({"norm": ["none", "batch"], "dropout": (0, 0.5)})
    assert by_name == as_factors([Factor("norm", ("none", "batch")), "dropout=0,0.5"])
    assert [factor.base for factor in by_name] == ["none", 0]


@pytest.mark.parametrize("factors", [{}, [], ["a=0,1", "a=1,2"]])
def test_no_factor_or_two_of_one_name_are_refused(factors: object) -> None:
    with pytest.raises(InvalidValue, match="as_factors"):
        as_factors(factors)


@pytest.mark.parametrize("factors", ["norm=none,batch", 3, [3], {"norm": "none"}, {"norm": 3}, {3: [0, 1]}])
def test_things_that_are_no_factors_are_refused(factors: object) -> None:
    with pytest.raises(InvalidType):
        as_factors(factors)


@pytest.mark.parametrize("levels", [(1, True), (0, False), (0, 0.0), (0,), (), (0, float("nan")), (0, float("inf"))])
def test_levels_are_two_or_more_distinct_finite(levels: tuple[float, ...]) -> None:
    with pytest.raises(InvalidValue, match=r"levels? of 'x'"):
        Factor("x", levels)


@pytest.mark.parametrize("levels", [(0, 1, "1"), (None, "none"), (True, "true"), (0.1, "0.1")])
def test_levels_that_are_written_alike_are_refused(levels: tuple[object, ...]) -> None:
    with pytest.raises(InvalidValue, match="are written alike"):
        Factor("x", levels)


def test_levels_that_no_encoding_holds_are_refused() -> None:
    with pytest.raises(InvalidValue, match="UTF-8"):
        Factor("x", ("a", "b\udcff"))


def test_levels_of_other_types_are_refused_and_numpy_scalars_become_python() -> None:
    with pytest.raises(InvalidType, match="each level"):
        Factor("x", ([1], [2]))
    found = Factor("x", tuple(np.array([1, 2]))).levels
    assert [type(level) for level in found] == [int, int]


@pytest.mark.parametrize("name", ["", " ", " x", "a\nb", "a\0b", *sorted(RESERVED)])
def test_names_that_would_break_a_table_are_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="name"):
        Factor(name, (0, 1))


def test_a_nested_factor_is_said_in_text_in_a_mapping_and_in_python() -> None:
    by_text = as_factors(["dropout=off,on", " rate = 0.1,0.5 @ dropout = on "])
    assert by_text == as_factors(
        {"dropout": ["off", "on"], "rate": {"levels": [0.1, 0.5], "within": ["dropout", "on"]}}
    )
    assert by_text[1] == Factor("rate", (0.1, 0.5), within=("dropout", "on"))
    assert str(by_text[1]) == "rate (0.1, 0.5 where dropout is on)"
    assert parse_factor("mail=a@b,c").levels == ("a@b", "c")


def test_the_parents_level_is_the_one_that_the_parent_has() -> None:
    found = as_factors([Factor("depth", (2, 4)), Factor("width", (8, 16), within=("depth", 4.0))])[1].within
    assert found is not None
    assert type(found[1]) is int


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (["rate=1,2 @ dropout=on"], "unknown parent of 'rate'"),
        (["dropout=off,on", "rate=1,2 @ dropout=full"], "unknown level of 'dropout'"),
        (["a=0,1", "b=0,1 @ a=1", "c=0,1 @ b=1"], "not be nested itself"),
        (["a=0,1", "b=0,1 @ b=1"], "another factor"),
        (["a=0,1", "b=0,1 @ a"], "@ parent=level"),
        (["a=0,1", "b=0,1 @ a=1 @ a=0"], "@ parent=level"),
        ([Factor("a", (0, 1)), {"levels": [1, 2]}], "each factor"),
        ({"a": [0, 1], "b": {"levels": [1, 2]}}, "hold levels and within"),
        ({"a": [0, 1], "b": {"levels": [1, None], "within": ["a", 1]}}, "not hold None"),
        ({"a": [0, 1], "b": {"levels": [1, 2], "within": "a"}}, "within of 'b'"),
    ],
)
def test_what_cannot_be_nested_is_named(factors: object, message: str) -> None:
    with pytest.raises((InvalidValue, InvalidType), match=message):
        as_factors(factors)


@given(st.integers(2, 6))
def test_coding_sums_to_zero_with_the_base_at_minus_one(count: int) -> None:
    coding = Factor("x", tuple(range(count))).coding
    assert (coding[0] == -1).all()
    assert (coding.sum(axis=0) == 0).all()
    assert np.linalg.matrix_rank(coding) == count - 1
