"""Always-valid inference: seeds are added one by one, looked at after each, and the promise of 95 % still holds.

A t-interval holds for a number of seeds fixed beforehand. Who looks after every seed from the third to the thirtieth
and stops at the first p < 0.05 is wrong in 26 to 27 of 100 cases in which there is nothing. What is here may be looked
at as often as one likes: e-values by the right-Haar t-test, intervals and p-values from them, what they decide about
many effects together, and which treatments may be given up. Pure functions; nothing is random.

Each observation is what one seed says of a contrast: a paired difference. They are taken as independent and normal;
their spread is not known. A metric with few values (eight right of ten) makes differences that are equal by chance, and
a spread that looks smaller than it is: judge by a finer one. Of x_1, ..., x_n with t = mean / (s / sqrt(n)), the
e-value against the mean m is the likelihood ratio of the scale-free data, which is the Bayes factor with the right-Haar
prior 1/sigma on the spread under both, and a normal prior of variance g on (mean - m) / sigma:

    E_n(m) = (1 + n g)^(-1/2) * ((1 + x) / (1 + x / (1 + n g)))^(n/2),   x = t(m)^2 / (n - 1).

Under the mean m it is a martingale that starts at 1, so by Ville's inequality it ever reaches 1/alpha with probability
at most alpha. The means m with E_n(m) < 1/alpha are the interval after n seeds.

The prior's variance g is chosen on one principle: at `planned` seeds, where most studies stop, the interval at the
level that is asked for is as narrow as any g makes it. It is valid whatever g; another choice costs width, not truth.

Source: Lai 1976, On confidence sequences; Pérez-Ortiz, Lardy, de Heide & Grünwald 2022, E-statistics, group invariance
    and anytime valid testing, arXiv:2208.07610; Wang & Ramdas 2024, Anytime-valid t-tests and confidence sequences for
    Gaussian means with unknown variance, arXiv:2310.03722.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from homeostat.errors import invalid
from homeostat.inference.intervals import check_confidence, holm

PLANNED = 8  # seeds at which the intervals are narrowest
_VARIANCES = np.exp(np.linspace(np.log(0.01), np.log(1000.0), 400))  # of the prior, among which one is chosen


class Sequence(NamedTuple):
    """Estimates with always-valid intervals, arrays of one shape; infinite while there are too few observations."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Decisions(NamedTuple):
    """What is decided about q effects, arrays of shape (q,).

    Attributes:
        n: how many seeds each rests on.
        estimate, low, high: intervals that all hold together, at every look.
        p: always-valid p-value of "no further from zero than the margin".
        p_holm: the same adjusted over all effects.
        state: "beyond" (the margin, by p_holm), "within" (all of the interval lies within the margin), "narrow" (the
            interval is no wider than twice the target), or "open".
    """

    n: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p: np.ndarray
    p_holm: np.ndarray
    state: np.ndarray

    @property
    def settled(self) -> bool:
        """Whether nothing is open, so that no further seed is needed."""
        return not (self.state == "open").any()


def prior_variance(alpha: float, planned: int = PLANNED) -> float:
    """The variance g of the prior on the effect, in units of the spread, that makes the interval narrowest.

    Args:
        alpha: the level of the interval: 0.05 for 95 %, less where several share it.
        planned: the number of observations at which it is narrowest, 2 or more.
    Example:
        >>> [round(prior_variance(alpha), 1) for alpha in (0.05, 0.01)]
        [2.0, 3.9]
    """
    if planned < 2:
        raise invalid("prior_variance", "planned", "be at least 2", planned, "One seed has no spread.")
    return float(_VARIANCES[np.argmin(_half_width(np.array(planned), alpha, _VARIANCES))])


def e_values(values: np.ndarray, mean: float | np.ndarray = 0.0, *, variance: float) -> np.ndarray:
    """The evidence against a mean after each observation: reject where it ever is at least 1/alpha.

    Args:
        values: finite, in the order in which they came, shape (n,) or (n, q) for q samples.
        mean: the mean that is tested, a number or shape (q,).
        variance: of the prior, see `prior_variance`; fixed before the first value is seen.
    Returns: shape of values; 1 after the first observation, which says nothing without a spread.
    Example:
        >>> e_values(np.array([1.0, 1.2, 0.9, 1.1]), variance=4.0).round(1).tolist()
        [1.0, 2.8, 10.2, 50.4]
    """
    mean_n, squares, n = _running(np.asarray(values, dtype=float) - mean)
    return np.exp(_log_e(mean_n, squares, n, variance))


def confidence_sequence(values: np.ndarray, confidence: float = 0.95, *, planned: int = PLANNED) -> Sequence:
    """The mean after each observation with an interval; all of them together hold it with probability `confidence`.

    Args:
        values: finite, in the order in which they came, shape (n,) or (n, q).
        confidence: in (0, 1).
        planned: see `prior_variance`.
    Example:
        >>> found = confidence_sequence(np.array([1.0, 1.2, 0.9, 1.1, 1.0]))
        >>> round(float(found.low[-1]), 2), round(float(found.high[-1]), 2)
        (0.74, 1.34)
    """
    check_confidence("confidence_sequence", confidence)
    sample = np.asarray(values, dtype=float)
    mean, squares, n = _running(sample)
    alpha = 1 - confidence
    with np.errstate(invalid="ignore"):
        half = np.sqrt(squares / np.maximum(n - 1, 1) / n) * _half_width(n, alpha, prior_variance(alpha, planned))
    half = np.where(np.isnan(half), np.inf, half)  # no spread seen yet, and too few observations to trust that
    return Sequence(mean, mean - half, mean + half)


def decide(
    values: np.ndarray,
    *,
    margin: float = 0.0,
    target: float = 0.0,
    confidence: float = 0.95,
    planned: int = PLANNED,
) -> Decisions:
    """What is known of q effects after the seeds so far, however often one has looked before.

    With probability `confidence` no statement about any effect, at any look, is false: intervals share the level alike
    (Bonferroni), and what is beyond the margin is judged by Holm's adjustment of always-valid p-values.

    Args:
        values: what each seed says of each effect, shape (n, q), in the order of the seeds; NaN where it says nothing.
        margin: the smallest effect that matters, >= 0.
        target: an interval no wider than twice this is narrow enough; 0: only one without any width.
        confidence, planned: see `confidence_sequence`.
    Raises: InvalidValue for values of another shape or a negative margin or target.
    """
    check_confidence("decide", confidence)
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 2:
        raise invalid("decide", "values", "have the shape (seeds, effects)", sample.shape)
    for name, number in (("margin", margin), ("target", target)):
        if not number >= 0:
            raise invalid("decide", name, "be 0 or more", number)
    count = sample.shape[1]
    n = np.isfinite(sample).sum(axis=0)
    found = np.full((4, count), np.nan)
    found[1:] = np.array([-np.inf, np.inf, 1.0])[:, None]
    share = (1 - confidence) / max(count, 1)
    variance = prior_variance(share, planned)
    for place in np.flatnonzero(n):
        own = sample[np.isfinite(sample[:, place]), place]
        path = confidence_sequence(own, 1 - share, planned=planned)
        found[:3, place] = path.estimate[-1], path.low[-1], path.high[-1]
        found[3, place] = _p_beyond(own, margin, variance)
    estimate, low, high, p = found
    adjusted = holm(p)
    state = np.select(
        [adjusted < 1 - confidence, (low >= -margin) & (high <= margin) & (margin > 0), (high - low) <= 2 * target],
        ["beyond", "within", "narrow"],
        "open",
    )
    return Decisions(n, estimate, low, high, p, adjusted, state)


def survivors(values: np.ndarray, *, confidence: float = 0.95, planned: int = PLANNED) -> np.ndarray:
    """Which treatments may still be the best: successive elimination, however often one looks.

    A treatment is out as soon as any other was clearly better on the seeds that both have seen. The best treatment
    is never out with probability `confidence`: it meets treatments - 1 others, each at that share of the level.

    Args:
        values: the response of each seed and treatment, shape (seeds, treatments), more being better; NaN where a
            treatment was not run, because it was out before, or has no result.
        confidence, planned: see `confidence_sequence`.
    Returns: shape (treatments,), bool.
    Example:
        >>> draws = np.random.default_rng(0)
        >>> survivors(draws.normal(size=(8, 3)) + np.array([0.0, 0.5, 6.0])).tolist()
        [False, False, True]
    """
    check_confidence("survivors", confidence)
    sample = np.asarray(values, dtype=float)
    if sample.ndim != 2:
        raise invalid("survivors", "values", "have the shape (seeds, treatments)", sample.shape)
    count = sample.shape[1]
    alive = np.ones(count, dtype=bool)
    if count < 2:
        return alive
    known, share = np.isfinite(sample), (1 - confidence) / (count - 1)
    for one in range(count):
        both = known & known[:, [one]]
        both[:, one] = False
        for pattern in np.unique(both, axis=1).T:
            if pattern.sum() > 1:  # the others that met this one under the same seeds, all at once
                others = np.flatnonzero((both == pattern[:, None]).all(axis=0))
                differences = sample[np.ix_(pattern, others)] - sample[pattern][:, [one]]
                alive[one] &= not (confidence_sequence(differences, 1 - share, planned=planned).low > 0).any()
    return alive


def _p_beyond(values: np.ndarray, margin: float, variance: float) -> float:
    """The always-valid p-value of a mean no further from zero than the margin: from the mean within that fits best."""
    mean = np.cumsum(values) / np.arange(1, len(values) + 1)
    nearest = np.clip(mean, -margin, margin)
    shifted, squares = mean - nearest, _running(values)[1]
    log_e = _log_e(shifted, squares, np.arange(1, len(values) + 1), variance)
    return float(np.exp(-max(0.0, log_e.max())))


def _running(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """After each observation: mean, sum of squares around it (by Welford's recurrence), and how many there are."""
    if not np.isfinite(values).all():
        raise invalid("confidence_sequence", "values", "be finite", values)
    n = np.arange(1, len(values) + 1, dtype=float).reshape(-1, *[1] * (values.ndim - 1))
    mean = np.cumsum(values, axis=0) / n
    before = np.vstack([np.zeros((1, *values.shape[1:])), mean[:-1]]) if values.ndim > 1 else np.r_[0.0, mean[:-1]]
    squares = np.cumsum((values - before) * (values - mean) * (n > 1), axis=0)
    return mean, np.maximum(squares, 0.0), n


def _log_e(mean: np.ndarray, squares: np.ndarray, n: np.ndarray, variance: float) -> np.ndarray:
    """The logarithm of the e-value; (n - 1) s^2 is `squares`, so that x = n mean^2 / squares."""
    shift, signal = 1 + n * variance, n * mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (squares + signal) / (squares + signal / shift)
    ratio = np.where(squares + signal > 0, ratio, 1.0)  # no spread and no difference: nothing is known
    return np.where(n > 1, n / 2 * np.log(ratio) - np.log(shift) / 2, 0.0)


def _half_width(n: np.ndarray, alpha: float, variance: float | np.ndarray) -> np.ndarray:
    """Half the width of the interval in units of s / sqrt(n), infinite where no spread would bound it."""
    shift = 1 + n * variance
    level = np.exp((np.log(shift) / 2 - np.log(alpha)) * 2 / n)  # (1 + x) / (1 + x / shift) must stay below
    with np.errstate(divide="ignore", invalid="ignore"):
        half = np.sqrt((n - 1) * (level - 1) / (1 - level / shift))
    return np.where((level < shift) & (n > 1), half, np.inf)
