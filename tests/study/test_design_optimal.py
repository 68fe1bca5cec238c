"""D-optimal designs: within two per cent of the best that is known, with the base treatment, no treatment twice."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import InvalidType, InvalidValue
from homeostat.study.design import Design, full_factorial, make_design, optimal_design
from homeostat.study.design.exchange import coordinate_exchange
from homeostat.study.design.model import Columns, all_effects, contrasts, efficiency
from homeostat.study.factors import as_factors

# The largest determinant of a matrix of n x n signs, divided by 2^(n - 1): https://oeis.org/A003433. It is Hadamard's
# bound for n = 4k, Barba's for n = 5 and 13, Ehlich's and Wojtas's for n = 6, 10 and 14, and was found by search else.
LARGEST = {4: 2, 5: 3, 6: 5, 7: 9, 8: 32, 9: 56, 10: 144, 11: 320, 12: 1458, 13: 3645, 14: 9477, 15: 25515, 16: 131072}


def factors(*sizes: int) -> dict[str, list[int]]:
    return {f"f{place}": list(range(size)) for place, size in enumerate(sizes)}


@pytest.mark.parametrize("runs", sorted(LARGEST))
def test_saturated_main_effects_come_within_two_per_cent_of_the_largest_determinant(runs: int) -> None:
    best = (LARGEST[runs] * 2.0 ** (runs - 1)) ** (2 / runs) / runs
    found = optimal_design(factors(*[2] * (runs - 1)), 1, runs=runs, interactions="none")
    assert 0.98 * best <= found.d_efficiency <= best * (1 + 1e-9)


@pytest.mark.parametrize("runs", [5, 6, 8, 9, 10, 12, 13, 14])
def test_the_search_alone_reaches_them_too(runs: int) -> None:
    """Without the start from an orthogonal design that `optimal_design` has where there is one."""
    columns = Columns(
        as_factors(factors(*[2] * (runs - 1))), all_effects(as_factors(factors(*[2] * (runs - 1))))[: runs - 1]
    )
    rows = coordinate_exchange(columns, [2] * (runs - 1), np.zeros((1, runs - 1), int), runs - 1, searches=100)
    best = (LARGEST[runs] * 2.0 ** (runs - 1)) ** (2 / runs) / runs
    assert efficiency(columns(rows)) >= 0.98 * best


@pytest.mark.parametrize(
    ("count", "runs"), [(3, 5), (4, 9), (5, 9), (6, 13), (7, 17), (3, 6), (5, 10), (8, 18), (6, 22), (9, 26)]
)
def test_main_effects_in_one_or_two_more_than_a_multiple_of_four_reach_the_bounds(count: int, runs: int) -> None:
    """|X'X| is at most (n-1)^(p-1) (n-1+p) for n = 4k + 1 and, p = a + b split evenly, (n-2)^(p-2) (n-2+2a) (n-2+2b)
    for n = 4k + 2: Ehlich 1964 and Wojtas 1964 for p = n, Payne 1974 for p < n."""
    p = count + 1
    if runs % 4 == 1:
        bound = (runs - 1) ** (p - 1) * (runs - 1 + p)
    else:
        bound = (runs - 2) ** (p - 2) * (runs - 2 + 2 * (p // 2)) * (runs - 2 + 2 * (p - p // 2))
    found = optimal_design(factors(*[2] * count), 1, runs=runs, interactions="none").d_efficiency
    best = bound ** (1 / p) / runs
    assert 0.98 * best <= found <= best * (1 + 1e-9)


@pytest.mark.parametrize(
    ("sizes", "runs"), [([3] * 4, 9), ([2] * 11, 12), ([2] + [3] * 7, 18), ([3] * 7, 18), ([4] * 5, 16), ([2] * 23, 24)]
)
def test_where_an_orthogonal_design_exists_its_efficiency_is_reached(sizes: list[int], runs: int) -> None:
    assert optimal_design(factors(*sizes), 1, runs=runs, interactions="none").d_efficiency == pytest.approx(1.0)


def test_the_search_alone_comes_within_two_per_cent_of_the_array_of_eighteen() -> None:
    sizes = [2] + [3] * 7
    columns = Columns(as_factors(factors(*sizes)), all_effects(as_factors(factors(*sizes)))[:8])
    rows = coordinate_exchange(columns, sizes, np.zeros((1, 8), int), 17, searches=150)
    assert efficiency(columns(rows)) >= 0.98


def test_a_resolution_five_fraction_is_reached_with_interactions() -> None:
    assert optimal_design(factors(*[2] * 5), 1, runs=16, searches=60).d_efficiency == pytest.approx(1.0)


def quadratic(positions: np.ndarray) -> np.ndarray:
    """The second-order model of response surfaces on the levels -1, 0 and 1: 1, x, x², x x'."""
    x = positions - 1.0
    pairs = [x[:, i] * x[:, j] for i, j in itertools.combinations_with_replacement(range(x.shape[1]), 2)]
    return np.column_stack([np.ones(len(x)), x, *pairs])


@pytest.mark.parametrize("runs", [6, 7, 8, 9])
def test_second_order_designs_of_two_factors_are_the_best_of_all(runs: int) -> None:
    grid = np.array(list(itertools.product(range(3), repeat=2)))
    every = (quadratic(grid[list(chosen)]) for chosen in itertools.combinations(range(9), runs))
    best = max(np.linalg.det(x.T @ x) for x in every)
    x = quadratic(coordinate_exchange(quadratic, [3, 3], grid[:0], runs, searches=20))
    assert np.linalg.det(x.T @ x) == pytest.approx(best)


def optimum(count: int) -> float:
    """|M|^(1/p) of the weights on the grid of three levels that are D-optimal for the second-order model.

    By the multiplicative algorithm; that nothing is better follows from Kiefer and Wolfowitz's equivalence theorem,
    which is checked: no variance of prediction exceeds p.
    """
    x = quadratic(np.array(list(itertools.product(range(3), repeat=count))))
    weights, p = np.full(len(x), 1 / len(x)), x.shape[1]
    for _ in range(3000):
        information = (x * weights[:, None]).T @ x
        variance = np.einsum("ij,jk,ik->i", x, np.linalg.inv(information), x)
        weights = weights * variance / p
    assert variance.max() < p * 1.001
    return float(np.linalg.det(information) ** (1 / p))


@pytest.mark.parametrize(
    ("count", "runs", "published"), [(2, 9, 0.9740), (3, 10, 0.8631), (3, 14, 0.9759), (4, 15, 0.8700), (4, 27, 0.9815)]
)
def test_second_order_designs_have_the_efficiencies_that_are_known_for_them(
    count: int, runs: int, published: float
) -> None:
    """Against the optimal weights: Atkinson, Donev & Tobias 2007, Optimum Experimental Designs, chapter 11."""
    x = quadratic(coordinate_exchange(quadratic, [3] * count, np.zeros((0, count), int), runs, searches=30))
    found = np.linalg.det(x.T @ x / runs) ** (1 / x.shape[1]) / optimum(count)
    assert 0.98 * published <= found <= 1.0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(2, 4), min_size=2, max_size=4), st.sampled_from(["all", "none"]), st.integers(0, 6))
def test_every_design_has_the_base_first_estimates_its_model_and_no_treatment_twice(
    sizes: list[int], interactions: str, more: int
) -> None:
    least = optimal_design(factors(*sizes), 1, interactions=interactions, searches=1).model
    known = as_factors(factors(*sizes))
    runs = 1 + len(Columns(known, least).owners) + more
    design = optimal_design(known, 1, runs=runs, interactions=interactions, searches=3)
    assert len(design.treatments) == min(runs, design.combinations)
    assert design.config(0) == design.base
    assert len(design.treatments.drop_duplicates()) == len(design.treatments)
    assert 0 < design.d_efficiency <= 1 + 1e-9
    assert design.kind == ("full" if runs >= design.combinations else "optimal")


def test_a_design_is_a_function_of_its_seed_alone() -> None:
    asked = {"factors": factors(3, 3, 2, 2, 2), "runs": 16, "interactions": "none", "searches": 3}
    one, again = optimal_design(**asked), optimal_design(**asked)
    assert one.to_dict() == again.to_dict()
    np.random.seed(3)  # that this changes nothing is the point
    assert optimal_design(**asked).to_dict() == one.to_dict()
    assert optimal_design(**asked, seed=1).to_dict() != one.to_dict()


def test_the_efficiency_does_not_depend_on_the_order_or_the_coding_of_levels() -> None:
    design = optimal_design(factors(3, 3, 2, 2), 1, runs=14, interactions=["f0:f1"])
    whole = full_factorial(design.factors, 1)
    x, every = (
        np.hstack([np.ones((len(one.treatments), 1)), *(one.columns(effect) for effect in design.model)])
        for one in (design, whole)
    )
    by_dummies = (np.linalg.det(x.T @ x / len(x)) / np.linalg.det(every.T @ every / len(every))) ** (1 / x.shape[1])
    assert design.d_efficiency == pytest.approx(by_dummies)


def test_contrasts_are_orthonormal() -> None:
    for count in range(2, 7):
        table = contrasts(count)
        assert table.T @ table == pytest.approx(count * np.eye(count - 1))
        assert table.sum(axis=0) == pytest.approx(0.0)


def test_chosen_interactions_are_in_the_model_survive_json_and_are_described() -> None:
    design = optimal_design(factors(3, 3, 2, 2, 2), 2, interactions=[("f3", "f0"), "f1:f2"])
    assert design.model[5:] == (("f0", "f3"), ("f1", "f2"))
    back = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert back.model == design.model
    assert back.describe() == design.describe()
    assert "Estimates the main effects, f0 × f3 and f1 × f2" in design.describe()
    assert "Taken to be zero: 8 two-factor interactions" in design.describe()


def test_old_data_without_a_model_means_all_main_effects_and_interactions() -> None:
    design = full_factorial(factors(2, 3, 2), 1)
    assert "model" not in design.to_dict()  # so that a study that was begun before there was one can be resumed
    assert Design.from_dict(design.to_dict()).model == design.effects
    with pytest.raises(InvalidValue, match="model"):
        Design.from_dict(design.to_dict() | {"model": [["f0"], ["f9"]]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"runs": 4}, "at least 8"),
        ({"runs": 0}, "at least 1"),
        ({"interactions": ["a:z"]}, "unknown factor"),
        ({"interactions": ["f0:f0"]}, "of two factors"),
        ({"interactions": [("f0", "f1", "f2")]}, "of two factors"),
    ],
)
def test_what_cannot_be_asked_for_is_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        optimal_design(factors(2, 2, 3), **{"runs": 10, "interactions": ["f0:f1", "f0:f2"]} | wrong)


def test_things_of_another_type_are_refused() -> None:
    with pytest.raises(InvalidType, match="runs"):
        optimal_design(factors(2, 2, 3), runs=2.5)
    with pytest.raises(InvalidType, match="interactions"):
        optimal_design(factors(2, 2, 3), interactions="f0:f1")


def test_auto_takes_a_d_optimal_design_for_more_than_two_levels() -> None:
    design = make_design(factors(3, 3, 3, 3), 1, "auto")
    assert (design.kind, design.model) == ("optimal", design.effects)
    assert len(design.treatments) < design.combinations
    many = make_design(factors(*[4] * 7), 1, "auto")  # 211 coefficients with interactions
    assert len(many.model) == 7
    within = make_design(factors(3, 3, 3, 3), 1, "auto", runs=20)
    assert (len(within.treatments), len(within.model)) == (20, 4)
    assert make_design(factors(*[2] * 6), 1, "auto", runs=32).kind == "fractional"
    assert len(make_design(factors(*[2] * 6), 1, "auto", runs=24).treatments) == 24
    chosen = make_design(factors(*[2] * 6), 1, "auto", interactions=["f0:f1"])
    assert (chosen.kind, len(chosen.model)) == ("optimal", 7)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("full", {"runs": 8}),
        ("orthogonal", {"runs": 8}),
        ("fractional", {"interactions": "all"}),
        ("optimal", {"resolution": 4}),
        ("auto", {"resolution": 4, "interactions": "all"}),
    ],
)
def test_what_a_kind_has_no_use_for_is_refused(kind: str, given: dict[str, object]) -> None:
    with pytest.raises(InvalidValue, match=next(reversed(given))):
        make_design(factors(2, 2, 2, 2), 1, kind, **given)
