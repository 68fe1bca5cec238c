"""Shares, interquartile means and effects without repetition: against published numbers and their promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from homeostat.errors import InvalidValue
from homeostat.inference import share_difference, share_interval
from homeostat.inference.lenth import lenth
from homeostat.inference.robust import interquartile_difference, interquartile_mean


@pytest.mark.parametrize(("count", "of"), [(0, 7), (7, 7), (3, 20), (81, 263)])
def test_shares_have_wilson_s_interval(count: int, of: int) -> None:
    found = share_interval(count, of, 0.9)
    assert (found.low, found.high) == pytest.approx(proportion_confint(count, of, 0.1, "wilson"), abs=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((10, 10), (0, 10), 0.6075, 1.0000),
    ],
)
def test_differences_of_shares_are_those_that_newcombe_published(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    found = share_difference(first, second)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    expected = confint_proportions_2indep(*first, *second, method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-9)


def test_shares_of_nothing_have_no_number_and_impossible_counts_are_refused() -> None:
    assert np.isnan(share_interval(0, 0).estimate)
    assert np.isnan(share_difference((1, 2), (0, 0))).all()
    with pytest.raises(InvalidValue, match=r"count must lie in 0\.\.3"):
        share_interval(4, 3)


# Montgomery, Design and Analysis of Experiments, example 6.2: filtration rate, 2^4, standard order.
RATE = np.array([45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96], dtype=float)


def test_lenth_s_margins_are_the_published_ones() -> None:
    """Montgomery gives PSE = 2.625, ME = 6.748 and SME = 13.699 for the fifteen effects."""
    levels = np.array([[(run >> bit) & 1 for bit in range(4)] for run in range(16)]) * 2 - 1
    columns = [levels[:, [bit for bit in range(4) if (word >> bit) & 1]].prod(axis=1) for word in range(1, 16)]
    effects = np.array(columns) @ RATE / 8
    assert effects[0] == pytest.approx(21.625)  # temperature
    found = lenth(effects)
    assert (found.pse, found.margin, found.simultaneous) == pytest.approx((2.625, 6.748, 13.699), abs=1e-3)
    assert found.df == 5


def test_lenth_s_intervals_cover_where_few_effects_are_active() -> None:
    """Known to be a little wide: a t-distribution with m/3 degrees of freedom is an approximation on the safe side."""
    draws = np.random.default_rng(0).normal(size=(2000, 15))
    truth = np.r_[np.zeros(12), 3.0, 5.0, 8.0]
    covered = [np.abs(study) <= lenth(study + truth).margin for study in draws]
    assert 0.94 <= np.mean(covered) <= 0.98


def test_lenth_needs_three_effects() -> None:
    assert lenth(np.zeros(4)).margin == 0.0
    with pytest.raises(InvalidValue, match="three or more finite"):
        lenth(np.array([1.0, 2.0]))


def test_the_interquartile_mean_is_the_trimmed_mean_and_ignores_odd_runs() -> None:
    values = np.random.default_rng(1).normal(size=(3, 17))
    np.testing.assert_allclose(interquartile_mean(values), stats.trim_mean(values, 0.25, axis=1))
    wild = np.r_[values[0], 1e9]
    assert abs(interquartile_mean(wild) - interquartile_mean(values[0])) < 0.3
    assert interquartile_mean(np.array([4.0])) == 4.0


def test_the_bootstrap_keeps_strata_and_covers_about_as_it_says() -> None:
    """Five strata of ten runs that lie far apart: the distance between strata is no noise."""
    draws, shift, covered, widths = np.random.default_rng(2), 10.0 * np.arange(5)[:, None], [], []
    for _ in range(200):
        one, two = draws.normal(size=(2, 5, 10)) + shift
        found = interquartile_difference(list(one), list(two), draws, draws=300)
        covered.append(found.low <= 0 <= found.high)
        widths.append(found.high - found.low)
    assert 0.86 <= np.mean(covered) <= 0.98
    assert np.median(widths) < 2.0
    with pytest.raises(InvalidValue, match="at least one run"):
        interquartile_difference([np.array([])], [np.ones(2)], draws)
