"""Designs for screening: orthogonal and balanced by counting, with the biases that their theory gives them."""

from __future__ import annotations

import itertools

import numpy as np
import pydoe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.study.design import Design, definitive_screening, make_design, orthogonal_array, plackett_burman
from homeostat.study.design.arrays import is_orthogonal, smallest_array
from homeostat.study.design.screening import hadamard


def factors(*sizes: int) -> dict[str, list[int]]:
    return {f"f{place}": list(range(size)) for place, size in enumerate(sizes)}


def met_equally(design: Design) -> bool:
    """Whether every two factors meet at all combinations of levels equally often: counted, in no other way."""
    for one, two in itertools.combinations(design.factors, 2):
        counts = design.treatments.groupby([one.name, two.name]).size()
        if len(counts) != len(one.levels) * len(two.levels) or counts.nunique() != 1:
            return False
    return True


@pytest.mark.parametrize("count", range(2, 48))
def test_plackett_burman_designs_are_orthogonal_in_the_next_multiple_of_four(count: int) -> None:
    design = plackett_burman(factors(*[2] * count), 1)
    assert len(design.treatments) == 4 * (count // 4 + 1)
    assert len(design.treatments.drop_duplicates()) == len(design.treatments)
    assert met_equally(design)
    assert design.config(0) == design.base
    assert design.model == tuple((name,) for name in design.base)
    assert design.d_efficiency == pytest.approx(1.0)


def test_in_twelve_treatments_every_interaction_biases_every_other_main_effect_by_a_third() -> None:
    table = plackett_burman(factors(*[2] * 11)).alias_matrix  # Plackett & Burman 1946; Box, Hunter & Hunter 2005
    assert table.shape == (11, 55)
    for pair in table.columns:
        for name in table.index:
            inside = name in pair.split(" × ")
            assert abs(table.loc[name, pair]) == pytest.approx(0.0 if inside else 1 / 3)


def test_with_eight_treatments_plackett_burman_is_regular_and_says_so() -> None:
    design = plackett_burman(factors(*[2] * 7))
    assert len(design.alias_sets) == 7
    assert all(len(group) == 4 for group in design.alias_sets)
    assert "Cannot be told apart" in design.describe()
    assert "moves an estimate" not in design.describe()


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 24, 28, 36, 40, 44, 48, 60, 72, 76, 80])
def test_hadamard_matrices_have_orthogonal_columns_of_signs(order: int) -> None:
    found = hadamard(order)
    assert found is not None
    assert (np.abs(found) == 1).all()
    assert (found.T @ found == order * np.eye(order)).all()
    assert (found[:, 0] == 1).all()


@pytest.mark.parametrize("order", [3, 6, 10, 92])  # for 92 there are some, but none by these constructions
def test_where_no_construction_fits_there_is_none(order: int) -> None:
    assert hadamard(order) is None


@pytest.mark.parametrize("count", range(3, 13))
def test_definitive_screening_takes_two_k_plus_one_treatments_and_tells_curvature(count: int) -> None:
    design = definitive_screening({f"f{place}": ["b", "a", "c"] for place in range(count)}, 1)
    even = count + count % 2
    assert (
        len(design.treatments) == 2 * even + 1
    )  # Jones & Nachtsheim 2011; odd k: the next even one, a column left out
    assert design.config(0) == design.base
    assert design.d_efficiency > 0.5  # 0 if a step or a curvature of any factor could not be estimated
    middle = (design.positions == 0).sum(axis=1)
    assert sorted(set(middle.tolist())) == ([1, count] if count % 2 == 0 else [0, 1, count])


@pytest.mark.parametrize("levels", [["b", "a", "c"], [0.0, 0.1, 0.2], [0.2, 0.0, 0.1]])
def test_a_step_between_the_ends_is_biased_by_no_interaction_and_by_no_curvature(levels: list[object]) -> None:
    design = definitive_screening({f"f{place}": levels for place in range(6)}, 1)
    low, high = ("a", "c") if isinstance(levels[0], str) else (0.0, 0.2)
    coded = np.array(
        [[0 if x not in (low, high) else 1 if x == high else -1 for x in row] for row in design.treatments.to_numpy()]
    )
    pairs = np.array([coded[:, i] * coded[:, j] for i, j in itertools.combinations_with_replacement(range(6), 2)])
    assert np.abs(coded.sum(axis=0)).max() == 0
    assert np.abs(pairs @ coded).max() == 0
    assert design.config(0) == design.base


def test_what_is_said_of_curvature_is_said() -> None:
    assert "A step from one end to the other is free of them" in definitive_screening(factors(3, 3, 3, 3)).describe()


@pytest.mark.parametrize(
    ("sizes", "runs"),
    [
        ([2] * 3, 4),
        ([2] * 11, 12),
        ([3] * 4, 9),
        ([2] + [3] * 7, 18),
        ([6] + [3] * 6, 18),
        ([2] * 11 + [3] * 12, 36),
        ([4] * 5, 16),
        ([4] * 3 + [2] * 6, 16),
        ([5] * 6, 25),
        ([3] * 13, 27),
        ([2] + [4] * 9, 32),
        ([3, 2], 6),
    ],
)
def test_mixed_orthogonal_arrays_are_orthogonal_by_counting_and_have_efficiency_one(
    sizes: list[int], runs: int
) -> None:
    design = orthogonal_array(factors(*sizes), 1)
    assert len(design.treatments) == runs
    assert met_equally(design)
    assert design.config(0) == design.base
    assert design.d_efficiency == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=2, max_size=6))
def test_an_array_that_is_found_is_orthogonal_and_has_no_treatment_twice(sizes: list[int]) -> None:
    found = smallest_array(sizes)
    if found is not None:
        assert is_orthogonal(found)
        assert len(np.unique(found, axis=0)) == len(found)
        assert [len(set(column)) for column in found.T.tolist()] == sizes
        assert (found[0] == 0).all()


def test_a_table_that_is_not_orthogonal_is_never_used(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 0, 0]])
    monkeypatch.setattr(pydoe, "list_orthogonal_arrays", lambda: ["wrong"])
    monkeypatch.setattr(pydoe, "get_orthogonal_array", lambda name: wrong)
    assert smallest_array([2, 2, 2]) is None
    monkeypatch.setattr(pydoe, "definitive_screening_design", np.eye)
    with pytest.raises(HomeostatError, match="is none"):
        definitive_screening(factors(3, 3, 3))


@pytest.mark.parametrize(
    ("kind", "sizes", "message"),
    [
        ("plackett-burman", [2, 3], "must be two"),
        ("plackett-burman", [2], "two or more"),
        ("plackett-burman", [2] * 200, "at most 199"),
        ("screening", [3, 3, 2], "must be three"),
        ("screening", [3, 3], "three or more"),
        ("orthogonal", [7, 7], "known array"),
        ("orthogonal", [2], "two or more"),
    ],
)
def test_factors_that_a_design_does_not_take_are_named_with_what_does(
    kind: str, sizes: list[int], message: str
) -> None:
    with pytest.raises(InvalidValue, match=message):
        make_design(factors(*sizes), 1, kind)


@pytest.mark.parametrize("kind", ["fractional", "plackett-burman", "screening", "orthogonal"])
def test_designs_from_tables_refuse_nested_factors(kind: str) -> None:
    with pytest.raises(InvalidValue, match="not be nested"):
        make_design(["a=0,1", "b=0,1 @ a=1", "c=0,1"], 1, kind)
