"""Follow-up runs separate what a fraction could not, and keep what was run under its numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from homeostat.errors import InvalidValue
from homeostat.study.design import (
    Design,
    definitive_screening,
    fold_over,
    follow_up,
    fractional_factorial,
    full_factorial,
    plackett_burman,
)


def two_level(count: int) -> dict[str, list[int]]:
    return {name: [0, 1] for name in "abcdefghijklm"[:count]}


def told(design: Design, response: np.ndarray) -> dict[tuple[str, ...], float]:
    """The least-squares coefficients of the estimated effects, of two-level factors."""
    x = np.hstack([np.ones((len(response), 1)), *(design.columns(effect) for effect in design.estimated)])
    assert np.linalg.matrix_rank(x) == x.shape[1]
    return dict(zip(design.estimated, np.linalg.lstsq(x, response, rcond=None)[0][1:].tolist(), strict=True))


@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_folded_over_no_main_effect_is_mixed_up_with_an_interaction(count: int) -> None:
    first = fractional_factorial(two_level(count), 2, resolution=3)
    assert any(len(group[0][0]) == 1 for group in first.alias_sets)
    both = fold_over(first)
    assert both.treatments.iloc[: len(first.treatments)].equals(first.treatments)
    assert (both.kind, both.seeds, len(both.treatments)) == ("augmented", first.seeds, 2 * len(first.treatments))
    for group in both.alias_sets:
        assert {len(effect) for effect, _ in group} == {2}


def test_folded_over_in_one_factor_its_effects_are_free_of_all_others() -> None:
    both = fold_over(fractional_factorial(two_level(7), 1, resolution=3), "c")
    mixed = {effect for group in both.alias_sets for effect, _ in group}
    assert not [effect for effect in mixed if "c" in effect]
    assert mixed


def test_a_folded_plackett_burman_design_loses_the_bias_of_its_main_effects() -> None:
    design = plackett_burman(two_level(11))
    both = fold_over(design)
    names = [name for name in both.alias_matrix.index if "×" not in name]
    assert len(both.treatments) == 24
    assert abs(both.alias_matrix.loc[names].to_numpy()).max() == 0
    assert abs(design.alias_matrix.to_numpy()).max() == pytest.approx(1 / 3)


def test_a_mirror_image_that_is_the_design_itself_is_refused() -> None:
    with pytest.raises(InvalidValue, match="new treatments"):
        fold_over(full_factorial(two_level(3)))
    with pytest.raises(InvalidValue, match="unknown factor"):
        fold_over(fractional_factorial(two_level(4)), "z")
    with pytest.raises(InvalidValue, match="must be two"):
        fold_over(definitive_screening({name: [1, 2, 3] for name in "abc"}))


@pytest.mark.parametrize(("count", "resolution"), [(4, 4), (5, 3), (6, 4), (7, 3)])
def test_what_was_aliased_is_estimated_after_the_follow_up(count: int, resolution: int) -> None:
    first = fractional_factorial(two_level(count), 1, resolution=resolution)
    group = next(group for group in first.alias_sets if sum(len(effect) == 2 for effect, _ in group) > 1)
    pairs = [effect for effect, _ in group if len(effect) == 2][:2]
    both = follow_up(first, pairs)
    assert both.treatments.iloc[: len(first.treatments)].equals(first.treatments)
    assert len(both.treatments) <= len(first.treatments) + len(pairs)
    assert set(pairs) <= set(both.estimated)
    truth = {effect: float(place) for place, effect in enumerate(both.estimated, start=1)}
    response = sum(size * both.columns(effect)[:, 0] for effect, size in truth.items())
    assert told(both, np.asarray(response)) == pytest.approx(truth)


def test_more_runs_tell_more_and_the_fewest_are_the_default() -> None:
    first = fractional_factorial(two_level(6), 1, resolution=4)
    least = follow_up(first, "all")
    more = follow_up(first, "all", runs=12)
    assert len(least.treatments) == 16 + 8  # of the 22 coefficients the fraction tells 14
    assert len(more.treatments) == 16 + 12
    assert more.d_efficiency > least.d_efficiency > 0
    assert not more.alias_sets
    with pytest.raises(InvalidValue, match="at least 8"):
        follow_up(first, "all", runs=7)
    with pytest.raises(InvalidValue, match="at most 48"):
        follow_up(first, "all", runs=49)


def test_planted_effects_are_recovered_by_a_resolution_five_fraction() -> None:
    """Main effects and interactions, from noisy trials: every estimate within 4.5 of its standard errors."""
    design = fractional_factorial(two_level(8), 5)
    assert design.resolution == 5
    draws = np.random.default_rng(0)
    names = [*two_level(8)]
    planted = {(name,): draws.normal() for name in names[:4]}
    planted |= {pair: draws.normal() for pair in itertools.islice(itertools.combinations(names, 2), 0, 28, 5)}
    mean = sum(size * design.columns(effect)[:, 0] for effect, size in planted.items())
    noise = draws.normal(0, 0.5, (len(design.seeds), len(design.treatments))).mean(axis=0)
    found = told(design, np.asarray(mean) + noise)
    error = 0.5 / np.sqrt(design.trials)
    assert len(found) == 36
    for effect, size in found.items():
        assert size == pytest.approx(planted.get(effect, 0.0), abs=4.5 * error)
