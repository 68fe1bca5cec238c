"""Designs: complete, balanced, of the resolution they say, with every alias named, and exact through JSON."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pydoe
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.study.design import MOST_FULL, Design, fraction, fractional_factorial, full_factorial, make_design
from homeostat.study.factors import level_text

# NIST/SEMATECH e-Handbook of Statistical Methods, section 5.3.3.4.7, summary table of fractional factorial designs:
# (factors, runs) -> the highest resolution.
NIST = {
    (3, 4): 3,
    (4, 8): 4,
    (5, 8): 3,
    (5, 16): 5,
    (6, 8): 3,
    (6, 16): 4,
    (6, 32): 6,
    (7, 8): 3,
    (7, 16): 4,
    (7, 32): 4,
    (7, 64): 7,
    (8, 16): 4,
    (8, 32): 4,
    (8, 64): 5,
    (9, 16): 3,
    (9, 32): 4,
    (9, 64): 4,
    (9, 128): 6,
    (10, 16): 3,
    (10, 32): 4,
    (10, 64): 4,
    (10, 128): 5,
    (11, 16): 3,
    (11, 32): 4,
    (11, 64): 4,
    (11, 128): 5,
    (15, 16): 3,
    (15, 32): 4,
    (31, 32): 3,
}
# Chen, Sun & Wu 1993, A catalogue of two-level and three-level fractional factorial designs with small runs:
# (factors, runs) -> the numbers of words of 3, 4, 5 and 6 letters of the design of minimum aberration. NIST's up to 11
# factors are the same.
LEAST_ABERRATION = {
    (6, 16): (0, 3, 0, 0),
    (7, 16): (0, 7, 0, 0),
    (8, 16): (0, 14, 0, 0),
    (9, 16): (4, 14, 8, 0),
    (10, 16): (8, 18, 16, 8),
    (11, 16): (12, 26, 28, 24),
    (12, 16): (16, 39, 48, 48),
    (13, 16): (22, 55, 72, 96),
    (14, 16): (28, 77, 112, 168),
    (15, 16): (35, 105, 168, 280),
    (9, 32): (0, 6, 8, 0),
    (10, 32): (0, 10, 16, 0),
    (11, 32): (0, 25, 0, 27),
    (12, 32): (0, 38, 0, 52),
    (13, 32): (0, 55, 0, 96),
    (14, 32): (0, 77, 0, 168),
    (15, 32): (0, 105, 0, 280),
    (16, 32): (0, 140, 0, 448),
    (8, 64): (0, 0, 2, 1),
    (10, 128): (0, 0, 3, 3),
    (11, 128): (0, 0, 6, 6),
}


def two_level(count: int) -> dict[str, list[int]]:
    return {f"f{place}" if count > 25 else "abcdefghijklmopqrstuvwxyz"[place]: [0, 1] for place in range(count)}


def signs(design: Design) -> np.ndarray:
    return np.hstack([design.columns((factor.name,)) for factor in design.factors])


@given(st.lists(st.integers(2, 4), min_size=1, max_size=4))
def test_a_full_factorial_has_every_combination_once_and_the_base_first(sizes: list[int]) -> None:
    factors = {f"f{i}": [f"level{j}" for j in range(size)] for i, size in enumerate(sizes)}
    design = full_factorial(factors, seeds=2)
    rows = [tuple(row) for row in design.treatments.to_numpy()]
    assert len(rows) == len(set(rows)) == np.prod(sizes)
    assert design.config(0) == design.base == dict.fromkeys(factors, "level0")
    assert (design.kind, design.resolution, design.trials) == ("full", None, 2 * len(rows))
    assert design.aliases.empty


@pytest.mark.parametrize(("count", "runs"), sorted(NIST))
def test_fractions_reach_the_resolutions_of_the_nist_table(count: int, runs: int) -> None:
    design = fractional_factorial(two_level(count), 1, runs=runs)
    assert len(design.treatments) <= runs
    assert design.resolution == NIST[count, runs]


@pytest.mark.parametrize(("count", "runs"), sorted(LEAST_ABERRATION))
def test_fractions_have_the_least_aberration_that_was_published(count: int, runs: int) -> None:
    design = fractional_factorial(two_level(count), 1, runs=runs)
    assert len(design.treatments) == runs
    assert fraction.words(signs(design))[:4] == LEAST_ABERRATION[count, runs]


@pytest.mark.parametrize("count", range(9, 15))
def test_of_all_fractions_in_sixteen_runs_none_has_fewer_words(count: int) -> None:
    full = full_factorial(two_level(4), 1)
    products = [c for size in (2, 3, 4) for c in itertools.combinations(range(4), size)]
    columns = [signs(full)[:, product].prod(axis=1) for product in products]
    every = (np.column_stack([signs(full), *chosen]) for chosen in itertools.combinations(columns, count - 4))
    assert fraction.words(fraction.regular_fraction(count, 3)) == min(map(fraction.words, every))


@pytest.mark.parametrize(("count", "resolution"), [(6, 3), (9, 3), (9, 4), (8, 5)])
def test_words_are_the_sets_of_columns_with_a_constant_product(count: int, resolution: int) -> None:
    matrix = fraction.regular_fraction(count, resolution)
    sizes = [len(c) for c in powerset(range(count)) if abs(matrix[:, c].prod(axis=1).sum()) == len(matrix)]
    assert fraction.words(matrix) == tuple(sizes.count(size) for size in range(3, min(count, 8) + 1))


def powerset(places: range) -> list[tuple[int, ...]]:
    return [c for size in range(1, len(places) + 1) for c in itertools.combinations(places, size)]


@pytest.mark.parametrize("count", range(3, 12))
def test_every_fraction_is_balanced_has_the_base_first_and_the_resolution_it_says(count: int) -> None:
    for resolution in range(3, min(count, 6) + 1):
        design = fractional_factorial(two_level(count), 1, resolution=resolution)
        matrix = signs(design)
        assert (matrix[0] == -1).all()
        assert design.config(0) == design.base
        assert (matrix.sum(axis=0) == 0).all()
        assert len(np.unique(matrix, axis=0)) == len(matrix) < 2**count
        assert design.resolution is not None
        assert design.resolution >= resolution
        # Of resolution r: every r - 1 columns hold every combination equally often.
        for chosen in itertools.islice(itertools.combinations(range(count), design.resolution - 1), 30):
            _, times = np.unique(matrix[:, chosen], axis=0, return_counts=True)
            assert len(times) == 2 ** len(chosen)
            assert len(set(times)) == 1


def test_generators_hold_in_the_matrix() -> None:
    design = fractional_factorial(two_level(7), 1, resolution=4)
    assert len(design.generators) == 3
    for text in design.generators:
        left, right = text.split(" = ")
        product = np.prod([design.columns((name,)) for name in right.lstrip("−").split(" × ")], axis=0)
        assert (design.columns((left,)) == (-product if right.startswith("−") else product)).all()


@pytest.mark.parametrize(("count", "resolution"), [(3, 3), (5, 3), (6, 4), (7, 3), (5, 5)])
def test_aliases_are_exactly_the_effects_with_one_column(count: int, resolution: int) -> None:
    design = fractional_factorial(two_level(count), 1, resolution=resolution)
    named = {
        frozenset((row.effect, other.lstrip("−")))
        for row in design.aliases.itertuples()
        for other in row.aliased_with.split(", ")
    }
    same = set()
    for one, two in itertools.combinations(design.effects, 2):
        product = float((design.columns(one) * design.columns(two)).sum())
        if abs(product) == len(design.treatments):
            same.add(frozenset((" × ".join(one), " × ".join(two))))
    assert named == same
    for group in design.alias_sets:
        assert group[0][1] == 1
        for effect, sign in group:
            assert (design.columns(effect) == sign * design.columns(group[0][0])).all()


def test_resolution_five_tells_everything_apart() -> None:
    design = fractional_factorial(two_level(5), 3)
    assert design.resolution == 5
    assert design.aliases.empty
    assert "Every main effect" in design.describe()


def test_describe_names_size_resolution_and_aliases() -> None:
    text = fractional_factorial(two_level(3), 4).describe()
    assert "4 treatments × 4 seeds = 16 trials" in text
    assert "resolution III" in text
    assert "c = −a × b" in text
    assert "1 seed = 4 trials" in full_factorial(two_level(2), 1).describe()


def test_mixed_levels_have_one_column_per_level_beyond_the_base() -> None:
    design = full_factorial({"norm": ["none", "batch", "layer"], "dropout": [0, 0.5]}, 1)
    assert design.columns(("norm", "dropout")).shape == (6, 2)
    whole = np.hstack([np.ones((6, 1)), *(design.columns(effect) for effect in design.effects)])
    assert np.linalg.matrix_rank(whole) == 6


def test_run_order_is_random_block_by_block_and_a_function_of_its_seed_alone() -> None:
    design = full_factorial(two_level(4), seeds=[7, 3])
    order = design.run_order()
    assert sorted(order) == sorted(itertools.product(range(16), (3, 7)))
    assert [seed for _, seed in order] == [7] * 16 + [3] * 16
    first, second = [t for t, s in order if s == 7], [t for t, s in order if s == 3]
    assert first != second
    assert first != sorted(first)
    random.seed(1)
    np.random.seed(1)  # that this changes nothing is the point
    assert design.run_order() == order
    assert design.run_order(order_seed=1) != order


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text("abcé-<_", min_size=1, max_size=4),
        st.lists(
            st.none() | st.booleans() | st.integers(2) | st.floats(0.1, 0.9) | st.text(max_size=3),
            min_size=2,
            max_size=3,
            unique_by=level_text,
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_design_survives_json_exactly(factors: dict[str, list[object]]) -> None:
    design = full_factorial(factors, seeds=[5, 1])
    back = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert back.to_dict() == design.to_dict()
    for treatment in design.treatments.index:
        one, two = design.config(treatment), back.config(treatment)
        assert one == two
        assert [type(level) for level in one.values()] == [type(level) for level in two.values()]
        assert back.find(one) == treatment


def test_a_fraction_survives_json_too_and_knows_what_it_does_not_run() -> None:
    design = fractional_factorial(two_level(4), 2)
    back = Design.from_dict(json.loads(json.dumps(design.to_dict())))
    assert back.describe() == design.describe()
    assert design.find({"a": 1, "b": 0, "c": 0, "d": 0}) is None


def test_none_and_whole_numbers_stay_what_they_are() -> None:
    config = full_factorial({"clip": [None, 1.0], "depth": [2, 3]}, 1).config(0)
    assert config == {"clip": None, "depth": 2}
    assert type(config["depth"]) is int


@pytest.mark.parametrize("seeds", [0, -1, [], [1, 1]])
def test_seeds_are_one_or_more_and_distinct(seeds: object) -> None:
    with pytest.raises(InvalidValue, match="seeds"):
        full_factorial(two_level(2), seeds)


@pytest.mark.parametrize("seeds", [1.5, "3", True, [0.5], None])
def test_seeds_are_integers(seeds: object) -> None:
    with pytest.raises(InvalidType, match="seed"):
        full_factorial(two_level(2), seeds)


def test_fractions_that_do_not_exist_say_what_does() -> None:
    with pytest.raises(InvalidValue, match=r"lie in 3\.\.4.*at most 4"):
        fractional_factorial(two_level(4), resolution=5)
    with pytest.raises(InvalidValue, match="three or more"):
        fractional_factorial(two_level(2))
    with pytest.raises(InvalidValue, match="'norm' must be two"):
        fractional_factorial(two_level(3) | {"norm": [0, 1, 2]})
    with pytest.raises(InvalidValue, match="has 16 runs"):
        fractional_factorial(two_level(9), runs=15)
    with pytest.raises(InvalidValue, match="not both"):
        fractional_factorial(two_level(5), runs=16, resolution=3)


def test_make_design_goes_by_name() -> None:
    assert make_design(two_level(4), 1).kind == "full"
    assert make_design(two_level(4), 1, "fractional", 4).resolution == 4
    with pytest.raises(InvalidValue, match="Did you mean 'fractional'"):
        make_design(two_level(4), 1, "latin")
    with pytest.raises(InvalidValue, match="resolution"):
        make_design(two_level(4), 1, "full", 4)


def test_a_factorial_too_large_to_run_is_refused() -> None:
    with pytest.raises(InvalidValue, match="fraction"):
        full_factorial(two_level(20))


def test_a_wrong_fraction_from_the_library_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = np.array([[-1, -1, -1, 1], [-1, 1, 1, -1], [1, -1, 1, -1], [1, 1, -1, 1.0]])  # d = -c: a word of two
    monkeypatch.setattr(pydoe, "fracfact_by_res", lambda count, resolution: wrong)
    with pytest.raises(HomeostatError, match="resolution 2 where 4"):
        fractional_factorial(two_level(4), resolution=4)


def test_treatments_that_do_not_exist_and_data_that_is_no_design_are_refused() -> None:
    design = full_factorial(two_level(2), 1)
    with pytest.raises(InvalidValue, match=r"lie in 0\.\.3"):
        design.config(4)
    data = design.to_dict()
    with pytest.raises(InvalidValue, match="one level of each factor"):
        Design.from_dict(data | {"treatments": [[0, 7]]})
    with pytest.raises(InvalidValue, match="seeds"):
        Design.from_dict({"factors": data["factors"], "treatments": data["treatments"]})


def test_auto_runs_in_full_what_is_small_and_of_the_rest_the_best_fraction() -> None:
    names = [f"f{place}" for place in range(6)]
    two = {name: [0, 1] for name in names}
    assert make_design({name: [0, 1] for name in names[:5]}, 2, "auto").kind == "full"
    large = make_design(two, 2, "auto")
    assert (large.kind, len(large.treatments) <= MOST_FULL) == ("fractional", True)
    assert (large.resolution or 0) >= 5
    assert make_design({name: [0, 1, 2] for name in names[:3]}, 1, "auto").kind == "full"
    assert make_design({name: [0, 1] for name in names[:5]}, 1, "auto", 3).kind == "fractional"


def test_only_fractions_are_explained() -> None:
    two = {name: [0, 1] for name in "abcde"}
    assert "told apart" not in full_factorial(two).describe()
    assert "the resolution is what that mixes up" in fractional_factorial(two).describe()
