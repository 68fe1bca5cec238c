"""Intervals and tests: against scipy and statsmodels, against their definitions, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from homeostat.errors import InvalidValue
from homeostat.inference import (
    Interval,
    LinearModel,
    holm,
    lack_of_fit,
    least_step,
    mean_interval,
    p_beyond,
    paired_interval,
)

samples = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


@given(samples, st.sampled_from([0.8, 0.95, 0.99]))
def test_mean_interval_is_the_t_interval(values: list[float], confidence: float) -> None:
    found = mean_interval(values, confidence)
    assert found.estimate == pytest.approx(np.mean(values))
    if np.ptp(values) < 1e-6:
        return
    expected = stats.ttest_1samp(values, 0.0)
    low, high = expected.confidence_interval(confidence)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, expected.pvalue), rel=1e-6, abs=1e-9)
    assert found.df == len(values) - 1


def test_paired_interval_is_that_of_the_differences() -> None:
    first, second = [0.91, 0.93, 0.95, 0.90], [0.90, 0.90, 0.93, 0.90]
    expected = stats.ttest_rel(first, second)
    found = paired_interval(first, second)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.p == pytest.approx(expected.pvalue)


def test_samples_too_small_for_an_interval_have_none() -> None:
    assert np.isnan(mean_interval([]).estimate)
    one = mean_interval([3.0])
    assert one.estimate == 3.0
    assert np.isnan([one.low, one.high, one.p]).all()


def test_a_sample_without_spread_leaves_no_doubt() -> None:
    same = mean_interval([0.1 + 0.2] * 5)
    assert (same.low, same.high, same.p) == (same.estimate, same.estimate, 0.0)
    assert mean_interval([0.0, 0.0]).p == 1.0


@settings(max_examples=8)  # one call of statsmodels takes 40 ms
@given(st.lists(st.one_of(st.floats(0, 1), st.just(float("nan"))), max_size=12))
def test_holm_equals_statsmodels_and_passes_over_nan(p: list[float]) -> None:
    raw = np.array(p, dtype=float)
    found, made = holm(raw), ~np.isnan(raw)
    assert np.isnan(found[~made]).all()
    if made.any():
        np.testing.assert_allclose(found[made], multipletests(raw[made], method="holm")[1])


def random_model(seed: int, n: int, p: int) -> tuple[LinearModel, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    x = np.hstack([np.ones((n, 1)), draws.normal(size=(n, p - 1))])
    return LinearModel(x), draws.normal(size=n) * draws.uniform(0.5, 3.0, n), draws.normal(size=(4, p))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 20))
def test_estimates_and_hc3_errors_are_those_of_statsmodels(seed: int, p: int, extra: int) -> None:
    model, y, contrasts = random_model(seed, p + extra, p)
    found = model.judge(contrasts, y)
    expected = sm.OLS(y, model.x).fit(cov_type="HC3").t_test(contrasts)
    np.testing.assert_allclose(found.estimate, expected.effect, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(model.hc3(contrasts, y), expected.sd.ravel(), rtol=1e-7)
    np.testing.assert_allclose(model.coefficients(y), sm.OLS(y, model.x).fit().params, rtol=1e-7, atol=1e-10)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(3, 20))
def test_the_calibrated_interval_follows_its_definition(seed: int, p: int, extra: int) -> None:
    """The formulas of Young (2016), with the n x n matrices written out."""
    model, y, contrasts = random_model(seed, p + extra, p)
    found = model.judge(contrasts, y, confidence=0.9)
    x, n = model.x, p + extra
    inverse = np.linalg.inv(x.T @ x)
    hat = x @ inverse @ x.T
    residual_maker = np.eye(n) - hat
    for i, contrast in enumerate(contrasts):
        w = x @ inverse @ contrast
        d = np.diag((w / (1 - np.diag(hat))) ** 2)
        trace, squared = np.trace(residual_maker @ d), np.trace(residual_maker @ d @ residual_maker @ d)
        e = residual_maker @ y
        half = stats.t.ppf(0.95, trace**2 / squared) * np.sqrt(e @ d @ e * (w @ w) / trace)
        assert found.df[i] == pytest.approx(trace**2 / squared, rel=1e-6)
        assert (found.high[i] - found.low[i]) / 2 == pytest.approx(half, rel=1e-6)


def test_in_a_balanced_two_level_design_it_is_the_interval_of_least_squares() -> None:
    a, b = np.tile([-1.0, 1.0], 8), np.repeat([-1.0, 1.0, -1.0, 1.0], 4)
    x = np.column_stack([np.ones(16), a, b, a * b])
    y = np.random.default_rng(0).normal(size=16)
    contrasts = 2 * np.eye(4)[1:]
    expected = sm.OLS(y, x).fit()
    found = LinearModel(x).judge(contrasts, y)
    np.testing.assert_allclose(np.column_stack([found.low, found.high]), expected.t_test(contrasts).conf_int())
    np.testing.assert_allclose(found.df, 12)
    np.testing.assert_allclose(found.p, expected.pvalues[1:])


def test_observations_of_few_values_that_agree_vary_as_much_as_they_are_rounded() -> None:
    """Pairs in blocks that differ by the same: no spread is seen, and the step of the values bounds it from below."""
    x = np.column_stack([np.ones(6), np.tile([-1.0, 1.0], 3), np.repeat([[1, 0], [0, 1], [-1, -1]], 2, axis=0)])
    contrast, blocks = np.array([[0.0, 2.0, 0.0, 0.0]]), np.repeat([0, 1, 2], 2)
    y = np.array([330, 332, 331, 333, 335, 337]) / 360
    found = LinearModel(x).judge(contrast, y, groups=blocks, step=least_step(y))
    assert found.estimate[0] == pytest.approx(2 / 360)
    assert found.se[0] == pytest.approx(np.sqrt(2 / 3 / 12) / 360)
    assert (found.high - found.estimate)[0] == pytest.approx(stats.t.ppf(0.975, 2) * found.se[0])
    varied = y + np.array([0, 9, 0, 0, 0, 0]) / 360
    without, beside = (LinearModel(x).judge(contrast, varied, groups=blocks, step=step) for step in (0.0, 1 / 360))
    assert beside.se[0] == without.se[0]


def test_the_step_of_values_is_found_where_they_have_one() -> None:
    draws = np.random.default_rng(0)
    counts = np.array([300, 307, 312, 331, 331])
    assert least_step(counts / 360) == pytest.approx(1 / 360)
    assert least_step((counts / 360).astype(np.float32)) == pytest.approx(1 / 360, rel=1e-3)
    assert least_step(1e300 * counts) == pytest.approx(1e300)
    assert least_step(0.1 * np.array([1.0, 2, 3])) == pytest.approx(0.1)
    assert least_step(np.array([0.7, 0.7])) == least_step(np.array([])) == 0.0
    assert not any(least_step(draws.normal(size=8)) for _ in range(50))


def test_many_responses_at_once_equal_one_by_one() -> None:
    model, _, contrasts = random_model(1, 12, 3)
    y = np.random.default_rng(2).normal(size=(12, 5))
    together = model.judge(contrasts, y)
    for column in range(5):
        alone = model.judge(contrasts, y[:, column])
        np.testing.assert_allclose(together.low[:, column], alone.low)
        np.testing.assert_allclose(together.p[:, column], alone.p)


def test_what_the_observations_do_not_determine_gets_no_number() -> None:
    x = np.array([[1.0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 0, 1]])  # intercept and both indicators: rank 2
    found = LinearModel(x).judge(np.array([[0.0, 1, -1], [0, 1, 0]]), np.array([1.0, 2, 5, 6]))
    assert found.estimable.tolist() == [True, False]
    assert found.estimate[0] == pytest.approx(-4.0)
    assert np.isnan([found.estimate[1], found.low[1], found.se[1], found.df[1], found.p[1]]).all()


def test_no_residual_no_interval() -> None:
    found = LinearModel(np.array([[1.0, -1], [1, 1]])).judge(np.array([[0.0, 2]]), np.array([1.0, 4]))
    assert found.estimate[0] == pytest.approx(3.0)
    assert np.isnan([found.low[0], found.high[0], found.p[0]]).all()


def test_no_observations_nothing_estimable() -> None:
    found = LinearModel(np.zeros((0, 2))).judge(np.eye(2), np.zeros(0))
    assert not found.estimable.any()
    assert np.isnan(found.estimate).all()


def test_a_run_that_is_fitted_perfectly_borrows_the_spread_of_the_others() -> None:
    """Group c has one run: its residual is zero whatever its value, so its spread is not to be seen."""
    x = np.repeat(np.eye(3), [4, 4, 1], axis=0)
    y = np.array([1.0, 2, 3, 4, 2, 4, 6, 8, 7])
    found = LinearModel(x).judge(np.array([[1.0, -1, 0], [1, 0, -1]]), y)
    assert found.pooled.tolist() == [False, True]
    assert np.isnan(LinearModel(x).hc3(np.array([[1.0, -1, 0], [1, 0, -1]]), y)).tolist() == [False, True]
    low, high = sm.OLS(y, x).fit().t_test([[1, 0, -1]]).conf_int()[0]
    assert (found.low[1], found.high[1]) == pytest.approx((low, high))


def test_residuals_that_are_rounding_count_as_none() -> None:
    x = np.column_stack([np.ones(6), np.tile([-1.0, 1.0], 3)])
    y = np.tile([0.1 + 0.2, 0.7], 3)
    found = LinearModel(x).judge(np.array([[0.0, 2]]), y)
    assert found.low[0] == found.high[0] == found.estimate[0]
    assert found.p[0] == 0.0


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(InvalidValue, match="confidence must lie in"):
        mean_interval([1.0, 2.0], confidence)


def test_values_must_be_finite_and_pairs_complete() -> None:
    with pytest.raises(InvalidValue, match="finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(InvalidValue, match="one length"):
        paired_interval([1.0], [1.0, 2.0])
    with pytest.raises(InvalidValue, match="finite"):
        LinearModel(np.ones((2, 1))).judge(np.ones((1, 1)), np.array([1.0, np.inf]))


def test_lack_of_fit_is_the_f_test_of_nested_models() -> None:
    draws = np.random.default_rng(4)
    groups = np.repeat(np.eye(6), 3, axis=0)
    line = np.column_stack([np.ones(18), groups @ np.arange(6.0)])
    y = draws.normal(size=18) + groups @ np.array([0.0, 1, 4, 9, 16, 25])
    small, large = sm.OLS(y, line).fit(), sm.OLS(y, groups).fit()
    f, p, df = large.compare_f_test(small)
    found = lack_of_fit(LinearModel(line), groups, y)
    assert found == pytest.approx((f, df, large.df_resid, p))
    assert lack_of_fit(LinearModel(line), groups, y * 1e-180)[:2] == pytest.approx((f, df))


def test_lack_of_fit_without_room_or_without_spread() -> None:
    groups, ones = np.repeat(np.eye(3), 2, axis=0), LinearModel(np.ones((6, 1)))
    assert np.isnan(lack_of_fit(LinearModel(groups), groups, np.arange(6.0)).p)  # nothing to add
    assert np.isnan(lack_of_fit(LinearModel(np.ones((3, 1))), np.eye(3), np.arange(3.0)).p)  # nothing left
    assert lack_of_fit(ones, groups, np.array([1.0, 1, 2, 2, 2, 2])).p == 0.0
    assert np.isnan(lack_of_fit(ones, groups, np.full(6, 0.1)).p)


@given(st.floats(0, 3), st.floats(-3, 3), st.floats(0.1, 2))
def test_p_beyond_a_margin_agrees_with_the_interval(margin: float, estimate: float, half: float) -> None:
    interval = Interval(estimate, estimate - half, estimate + half, df=7.0)
    beyond = estimate - half > margin + 1e-9 or estimate + half < -margin - 1e-9
    near = min(abs(estimate - half - margin), abs(estimate + half + margin)) < 1e-6
    assert near or (p_beyond(interval, margin) < 0.05) == beyond
    assert np.isnan(p_beyond(Interval(estimate, np.nan, np.nan, df=7.0), margin))


@pytest.mark.parametrize("scale", [1e-250, 1e-12, 1e12, 1e250])
def test_huge_and_tiny_numbers_keep_their_intervals(scale: float) -> None:
    sample = np.array([1.0, 2.5, 2.0, 4.0])
    small, one = mean_interval(sample * scale), mean_interval(sample)
    assert (small.low / scale, small.high / scale, small.p) == pytest.approx((one.low, one.high, one.p))
