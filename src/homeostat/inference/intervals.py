"""Intervals for means and for pairs, and what many intervals at once have in common: Holm, p-values beyond a margin.

Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special  # the distributions themselves: scipy.stats takes half a second to import

from homeostat.errors import invalid

NOISE = 1e-12  # below this times the size of the data, a difference of floats is rounding
_MOST_PARTS = 12  # of the least difference of values, that may be their step
_WHOLE = 1e-3  # so near to a whole number is one: single precision leaves less, chance seldom as little


class Interval(NamedTuple):
    """An estimate with its confidence interval, and the test of zero; NaN where the data do not allow it."""

    estimate: float
    low: float
    high: float
    se: float = np.nan
    df: float = np.nan
    p: float = np.nan


NO_INTERVAL = Interval(np.nan, np.nan, np.nan)


def mean_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of a sample with its t-interval.

    Args:
        values: finite numbers, shape (n,). One value has a mean and no interval (NaN); none has neither.
        confidence: in (0, 1).
    Returns: the interval, with the two-sided p-value of a zero mean.
    Raises: InvalidValue if a value is not finite or confidence does not lie in (0, 1).
    Example:
        >>> mean_interval([1.0, 2.0, 3.0]).low
        -0.484137...
    """
    check_confidence("mean_interval", confidence)
    sample = np.asarray(values, dtype=float)
    if not np.isfinite(sample).all():
        raise invalid("mean_interval", "values", "be finite", sample.tolist())
    if sample.size == 0:
        return NO_INTERVAL
    scale = float(power_of_two(sample))
    sample = sample / scale
    mean, df = float(sample.mean()), float(sample.size - 1)
    if sample.size == 1:
        return Interval(mean * scale, np.nan, np.nan, np.nan, 0.0)
    spread = sample - mean
    spread[np.abs(spread) < NOISE * np.abs(sample).max()] = 0.0
    se = np.sqrt(spread @ spread / df / sample.size)
    low, high, p = t_interval(np.array(mean), np.array(se), np.array(df), confidence)
    return Interval(mean * scale, float(low) * scale, float(high) * scale, float(se) * scale, df, float(p))


def paired_interval(
    first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Interval:
    """The mean of the differences first - second of pairs with its t-interval.

    Args:
        first, second: finite numbers, shape (n,) each; position i of both is one pair (one seed).
        confidence: in (0, 1).
    Raises: InvalidValue if the lengths differ, a value is not finite or confidence does not lie in (0, 1).
    Example:
        >>> paired_interval([3.0, 5.0, 7.0], [1.0, 2.0, 3.0]).estimate
        3.0
    """
    if len(first) != len(second):
        raise invalid("paired_interval", "first and second", "have one length", (len(first), len(second)))
    return mean_interval(np.asarray(first, dtype=float) - np.asarray(second, dtype=float), confidence)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Holm's step-down adjustment: rejecting where it is at most alpha keeps the family-wise error at most alpha.

    Args:
        p: p-values, shape (n,); NaN marks a test that could not be made, which is no member of the family.
    Returns: adjusted p-values, shape (n,), NaN where p is.
    Source: Holm 1979, A simple sequentially rejective multiple test procedure.
    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    raw = np.asarray(p, dtype=float)
    adjusted = np.full(raw.shape, np.nan)
    family = np.flatnonzero(~np.isnan(raw))
    order = family[np.argsort(raw[family], kind="stable")]
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * steps), 1.0)
    return adjusted


def p_beyond(intervals: Any, margin: float, confidence: float = 0.95) -> np.ndarray:
    """The two-sided p-values of "no further from zero than the margin", from intervals; below 1 only beyond it.

    Args:
        intervals: what has estimate, low, high and df, numbers or arrays of one shape: an `Interval`, a `Judged`.
        margin: >= 0; with 0 these are the ordinary p-values.
        confidence: that of the intervals.
    Returns: p-values, NaN where there is no interval. p <= 1 - confidence where the interval lies beyond the margin.
    Example:
        >>> float(p_beyond(Interval(2.0, 1.0, 3.0, df=10), margin=1.0).round(9))
        0.05
    """
    estimate, low, high, df = (
        np.asarray(getattr(intervals, name), dtype=float) for name in ("estimate", "low", "high", "df")
    )
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        se = (high / 2 - low / 2) / special.stdtrit(df, 0.5 + confidence / 2)
        over = np.abs(estimate) - margin
        p = np.where(over > 0, np.where(se > 0, 2 * special.stdtr(df, -over / se), 0.0), 1.0)
    found: np.ndarray = np.where(np.isnan(estimate) | np.isnan(low) | np.isnan(high), np.nan, np.minimum(p, 1.0))
    return found


def least_step(values: np.ndarray) -> float:
    """The step of a quantity that takes few values, such as a share of 360 examples; 0.0 where none can be seen.

    That is the largest number of which the differences of all values are multiples, among the least difference and its
    halves, thirds, ... Those of numbers that may be any have no such thing in common.

    Args:
        values: finite numbers, shape (n,).
    Example:
        >>> least_step(np.array([0.25, 1.0, 1.5])), least_step(np.array([0.0, 1.0, 2**0.5, 3**0.5]))
        (0.25, 0.0)
    """
    scale = power_of_two(values)
    offsets = np.unique(values / scale)
    gaps = np.diff(offsets)
    gaps = gaps[gaps > NOISE * np.abs(offsets).max(initial=0.0)]
    for parts in range(1, _MOST_PARTS + 1) if gaps.size else ():
        multiples = (offsets - offsets[0]) / (gaps.min() / parts)
        if np.abs(multiples - multiples.round()).max() < _WHOLE:
            return float(gaps.min() / parts * scale)
    return 0.0


def power_of_two(y: np.ndarray) -> np.ndarray:
    """The power of two next to the largest number, shape y.shape[1:]: divided by it, squares do not overflow."""
    exponent = np.frexp(np.abs(y).max(axis=0, initial=0.0))[1]
    found: np.ndarray = np.ldexp(1.0, np.clip(exponent, -1000, 1000))
    return found


def t_interval(
    estimate: np.ndarray, se: np.ndarray, df: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, high and two-sided p of zero. A spread of exactly zero leaves no doubt: p is 1 for zero and 0 otherwise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        half = special.stdtrit(df, 0.5 + confidence / 2) * se
        p = 2 * special.stdtr(df, -np.abs(estimate) / se)
    p = np.where(se == 0, np.where(estimate == 0, 1.0, np.where(np.isnan(estimate), np.nan, 0.0)), p)
    return estimate - half, estimate + half, p


def check_confidence(where: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise invalid(where, "confidence", "lie in (0, 1)", confidence, "0.95 is usual.")
