"""Intervals and tests that keep their promise at the sizes studies have: means, paired differences, linear contrasts.

The heart is `LinearModel`: least squares whose intervals stay honest where the spread differs between treatments and
where runs are missing. What a factor or a treatment is, it does not know. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from scipy import special  # the distributions themselves: scipy.stats takes half a second to import

from homeostat.errors import invalid

_NOISE = 1e-12  # below this times the size of the data, a difference of floats is rounding


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
    _check_confidence("mean_interval", confidence)
    sample = np.asarray(values, dtype=float)
    if not np.isfinite(sample).all():
        raise invalid("mean_interval", "values", "be finite", sample.tolist())
    if sample.size == 0:
        return NO_INTERVAL
    scale = float(_scale(sample))
    sample = sample / scale
    mean, df = float(sample.mean()), float(sample.size - 1)
    if sample.size == 1:
        return Interval(mean * scale, np.nan, np.nan, np.nan, 0.0)
    spread = sample - mean
    spread[np.abs(spread) < _NOISE * np.abs(sample).max()] = 0.0
    se = np.sqrt(spread @ spread / df / sample.size)
    low, high, p = _t_interval(np.array(mean), np.array(se), np.array(df), confidence)
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
    with np.errstate(divide="ignore", invalid="ignore"):
        se = (high - low) / 2 / special.stdtrit(df, 0.5 + confidence / 2)
        over = np.abs(estimate) - margin
        p = np.where(over > 0, np.where(se > 0, 2 * special.stdtr(df, -over / se), 0.0), 1.0)
    found: np.ndarray = np.where(np.isnan(estimate) | np.isnan(low) | np.isnan(high), np.nan, np.minimum(p, 1.0))
    return found


class Judged(NamedTuple):
    """Contrasts with intervals: arrays of shape (q,), or (q, r) for r responses at once."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    se: np.ndarray  # the plain HC3 standard error
    df: np.ndarray  # (q,)
    p: np.ndarray
    estimable: np.ndarray  # (q,) bool
    pooled: np.ndarray  # (q,) bool: the interval assumes one spread for all observations

    def at(self, position: int) -> Interval:
        """One contrast of a single response."""
        picked = (self.estimate, self.low, self.high, self.se, self.df, self.p)
        return Interval(*(float(field[position]) for field in picked))


@dataclass(frozen=True, eq=False)
class LinearModel:
    """The model y = X b + e, fitted by least squares, for judging contrasts c'b.

    Any X will do, of full rank or not: a contrast that the observations do not determine is said to be not estimable
    instead of getting a number. The standard error is HC3, which holds whatever the spread of each observation. A plain
    t-interval from it would be too wide in small balanced designs, where HC3 is the classic variance times n / (n - p),
    so its bias and its degrees of freedom are corrected as Young (2016) proposes, in the way of Satterthwaite, with
    equal spreads as the reference. With w the weights of the estimate w'y, h the leverages, M = I - H and
    D = diag(w^2 / (1 - h)^2):

        V = e' D e,  b = tr(M D) / w'w,  df = tr(M D)^2 / tr((M D)^2),  estimate +- t_df * sqrt(V / b).

    In a balanced two-level design that is the classic interval of least squares, exactly. An observation that the model
    fits perfectly whatever its value (leverage 1) says nothing about its own spread; a contrast that rests on one gets
    the classic interval, which pools the spread of all observations, and is marked `pooled`.

    Args:
        x: shape (n, p); n may be 0.
    Source: Young 2016, Improved, nearly exact, statistical inference with robust and clustered covariance matrices
        using effective degrees of freedom corrections; Bell & McCaffrey 2002; Imbens & Kolesár 2016, Robust standard
        errors in small samples.
    Example:
        >>> model = LinearModel(np.array([[1.0, -1], [1, -1], [1, 1], [1, 1]]))
        >>> judged = model.judge(np.array([[0.0, 2.0]]), np.array([1.0, 3.0, 6.0, 8.0]))
        >>> judged.estimate.round(6).tolist(), judged.df.round(6).tolist()
        ([5.0], [2.0])
    """

    x: np.ndarray

    @cached_property
    def _factored(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The singular value decomposition u, s, v of x, cut to its rank."""
        u, s, vt = np.linalg.svd(np.asarray(self.x, dtype=float), full_matrices=False)
        kept = s > (s[0] if s.size else 0.0) * max(self.x.shape) * np.finfo(float).eps
        return u[:, kept], s[kept], vt[kept].T

    @property
    def rank(self) -> int:
        """The number of independent coefficients."""
        return len(self._factored[1])

    @property
    def df_resid(self) -> int:
        """Observations minus independent coefficients."""
        return len(self.x) - self.rank

    @cached_property
    def leverage(self) -> np.ndarray:
        """The diagonal of the hat matrix, shape (n,)."""
        u = self._factored[0]
        found: np.ndarray = np.einsum("ij,ij->i", u, u)
        return found

    def estimable(self, contrasts: np.ndarray) -> np.ndarray:
        """Whether the observations determine each contrast: whether it lies in the row space of x.

        Args:
            contrasts: shape (q, p).
        Returns: shape (q,), bool.
        """
        v = self._factored[2]
        outside = contrasts - (contrasts @ v) @ v.T
        found: np.ndarray = np.abs(outside).max(axis=1, initial=0.0) < 1e-8 * np.maximum(1.0, np.abs(contrasts).max())
        return found

    def coefficients(self, y: np.ndarray) -> np.ndarray:
        """The coefficients b, shape (p,); of all that fit equally well, those of least norm."""
        u, s, v = self._factored
        found: np.ndarray = v @ (u.T @ y / s)
        return found

    def weights(self, contrasts: np.ndarray) -> np.ndarray:
        """The weights with which each contrast's estimate sums the observations.

        Args:
            contrasts: shape (q, p).
        Returns: shape (q, n).
        """
        u, s, v = self._factored
        found: np.ndarray = (contrasts @ v / s) @ u.T
        return found

    def fitted(self, y: np.ndarray) -> np.ndarray:
        """What the model makes of y, shape (n,) or (n, r)."""
        u = self._factored[0]
        found: np.ndarray = u @ (u.T @ y)
        return found

    def residuals(self, y: np.ndarray) -> np.ndarray:
        """What the model leaves of y, shape (n,) or (n, r); rounding is cut to zero."""
        rest = y - self.fitted(y)
        rest[np.abs(rest) < _NOISE * np.abs(y).max(axis=0, initial=0.0)] = 0.0
        return rest

    def judge(self, contrasts: np.ndarray, y: np.ndarray, confidence: float = 0.95) -> Judged:
        """Estimates and intervals of contrasts.

        Args:
            contrasts: shape (q, p), one contrast of the coefficients per row.
            y: finite observations, shape (n,), or (n, r) for r responses observed under the same x.
            confidence: in (0, 1).
        Returns: see `Judged`; NaN where a contrast is not estimable, and intervals NaN where no residual is left.
        Raises: InvalidValue if y is not finite or confidence does not lie in (0, 1).
        """
        _check_confidence("LinearModel.judge", confidence)
        if not np.isfinite(y).all():
            raise invalid("LinearModel.judge", "y", "be finite", y)
        many = y[:, None] if y.ndim == 1 else y
        scale = _scale(many)
        many = many / scale
        estimable, w = self.estimable(contrasts), self.weights(contrasts)
        estimate = w @ many
        rounding = _NOISE * np.abs(many).max(axis=0, initial=0.0) * np.abs(w).sum(axis=1, keepdims=True)
        estimate[np.abs(estimate) < rounding] = 0.0
        estimate[~estimable] = np.nan
        hc3, calibrated, df, pooled = self._variances(w, self.residuals(many))
        low, high, p = _t_interval(estimate, np.sqrt(calibrated), df[:, None], confidence)
        hc3_se = np.where(np.isnan(estimate), np.nan, np.sqrt(hc3))
        arrays = (estimate * scale, low * scale, high * scale, hc3_se * scale, p)
        estimate, low, high, hc3_se, p = (array[:, 0] if y.ndim == 1 else array for array in arrays)
        return Judged(estimate, low, high, hc3_se, np.where(estimable, df, np.nan), p, estimable, pooled & estimable)

    def _variances(self, w: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """HC3 and calibrated variances (q, r), degrees of freedom (q,), and which are pooled (q,)."""
        room = 1.0 - self.leverage
        free = room > 1e-9
        inverse = np.divide(1.0, room, out=np.zeros_like(room), where=free)
        resting = np.abs(w) > 1e-9 * np.abs(w).max(axis=1, initial=0.0, keepdims=True)
        pooled = (resting & ~free).any(axis=1)
        d = (w * inverse) ** 2
        hc3 = d @ rest**2
        trace = d @ room
        df = np.full(len(w), float(self.df_resid))
        squared = np.einsum("ij,j->i", d**2, 1.0 - 2.0 * self.leverage) + self._hat_part(d)
        usable = (trace > 0) & ~pooled & (self.df_resid > 0)
        np.divide(trace**2, squared, out=df, where=usable)
        size = np.einsum("ij,ij->i", w, w)
        ratio = np.divide(size, trace, out=np.full(len(w), np.nan), where=usable)
        classic = (rest**2).sum(axis=0) / (self.df_resid or np.nan)
        calibrated = np.where(pooled[:, None], size[:, None] * classic, ratio[:, None] * hc3)
        hc3[pooled] = np.nan
        return hc3, calibrated, df, pooled

    def _hat_part(self, d: np.ndarray) -> np.ndarray:
        """Sum over i, j of H_ij^2 d_i d_j for each row of d, without ever holding the n x n matrix H."""
        u = self._factored[0]
        if len(d) * self.rank < len(u):  # the cheaper of two ways
            inner = ((u.T * row) @ u for row in d)
            return np.array([matrix.ravel() @ matrix.ravel() for matrix in inner])
        found = np.zeros(len(d))
        for start in range(0, len(u), 512):
            rows = slice(start, start + 512)
            found += np.einsum("qi,qi->q", d[:, rows], d @ ((u @ u[rows].T) ** 2))
        return found


class FTest(NamedTuple):
    """An F-test of two nested models; NaN where the data do not allow it."""

    f: float
    df: float
    df_error: float
    p: float


def lack_of_fit(model: LinearModel, columns: np.ndarray, y: np.ndarray) -> FTest:
    """Whether a model misses something that further columns would explain: the F-test of the two nested models.

    F = ((RSS - RSS_larger) / (df - df_larger)) / (RSS_larger / df_larger). Equal spreads are assumed.

    Args:
        model: the smaller model.
        columns: what the larger one has besides, shape (n, m); what the model has already is no harm.
        y: finite observations, shape (n,).
    Returns: the test; f and p are NaN where the columns add nothing or leave no residual to compare with.
    Example:
        >>> groups = np.repeat(np.eye(3), 2, axis=0)
        >>> lack_of_fit(LinearModel(np.ones((6, 1))), groups, np.array([1.0, 2, 3, 4, 5, 6])).f
        16.0...
    """
    y = y / _scale(y)
    new = columns - model.fitted(columns)
    u, size, _ = np.linalg.svd(new, full_matrices=False)
    basis = u[:, size > 1e-8 * max(1.0, float(np.abs(columns).max(initial=0.0)))]
    df, df_error = float(basis.shape[1]), float(model.df_resid - basis.shape[1])
    if df < 1 or df_error < 1:
        return FTest(np.nan, df, df_error, np.nan)
    rest = model.residuals(y)
    explained = basis.T @ rest
    pure = rest - basis @ explained
    pure[np.abs(pure) < _NOISE * np.abs(y).max(initial=0.0)] = 0.0
    missed, error = float(explained @ explained) / df, float(pure @ pure) / df_error
    if error == 0.0:
        f, p = (np.inf, 0.0) if rest.any() else (np.nan, np.nan)
        return FTest(f, df, df_error, p)
    return FTest(missed / error, df, df_error, float(special.fdtrc(df, df_error, missed / error)))


def _scale(y: np.ndarray) -> np.ndarray:
    """The power of two next to the largest number, shape y.shape[1:]: divided by it, squares do not overflow."""
    exponent = np.frexp(np.abs(y).max(axis=0, initial=0.0))[1]
    found: np.ndarray = np.ldexp(1.0, np.clip(exponent, -1000, 1000))
    return found


def _t_interval(
    estimate: np.ndarray, se: np.ndarray, df: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, high and two-sided p of zero. A spread of exactly zero leaves no doubt: p is 1 for zero and 0 otherwise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        half = special.stdtrit(df, 0.5 + confidence / 2) * se
        p = 2 * special.stdtr(df, -np.abs(estimate) / se)
    p = np.where(se == 0, np.where(estimate == 0, 1.0, np.where(np.isnan(estimate), np.nan, 0.0)), p)
    return estimate - half, estimate + half, p


def _check_confidence(where: str, confidence: float) -> None:
    if not 0 < confidence < 1:
        raise invalid(where, "confidence", "lie in (0, 1)", confidence, "0.95 is usual.")
