"""Least squares for judging contrasts: intervals that hold whatever the spread, and tests of nested models.

The heart is `LinearModel`. What a factor, a treatment or a seed is, it does not know. Nothing here is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import special

from homeostat.errors import invalid
from homeostat.inference.intervals import NOISE, Interval, check_confidence, power_of_two, t_interval


class Judged(NamedTuple):
    """Contrasts with intervals: arrays of shape (q,), or (q, r) for r responses at once."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    se: np.ndarray  # the standard error on which the interval rests
    df: np.ndarray  # (q,)
    p: np.ndarray
    estimable: np.ndarray  # (q,) bool
    pooled: np.ndarray  # (q,) bool: single observations decide, whose spread is taken from the others

    def at(self, position: int) -> Interval:
        """One contrast of a single response."""
        picked = (self.estimate, self.low, self.high, self.se, self.df, self.p)
        return Interval(*(float(field[position]) for field in picked))


@dataclass(frozen=True, eq=False)
class LinearModel:
    """The model y = X b + e, fitted by least squares, for judging contrasts c'b.

    Any X will do, of full rank or not: a contrast that the observations do not determine is said to be not estimable
    instead of getting a number. Two kinds of interval, both calibrated as Young (2016) proposes, in the way of
    Satterthwaite: the variance V of an estimate w'y is a sum of squares of residuals e = M y, M = I - H; with
    independent errors of equal spread as the reference it gets the bias b and the degrees of freedom that it has there,
    and the interval is estimate +- t_df * sqrt(V / b).

    *Independent observations* (no `groups`): V = sum of w_i^2 e_i^2 / (1 - h_i)^2 with the leverages h, which is HC3
    and holds whatever the spread of each observation. With D = diag(w^2 / (1 - h)^2): b = tr(M D) / w'w and
    df = tr(M D)^2 / tr((M D)^2). A plain t-interval from HC3 would be too wide in small balanced designs, where HC3 is
    the classic variance times n / (n - p); in a balanced two-level design this is the classic interval of least
    squares, exactly. An observation that the model fits perfectly whatever its value (leverage 1) says nothing about
    its own spread; a contrast that rests on one gets the classic interval, which pools the spread of all observations,
    and is marked `pooled`.

    *Observations in groups* (one seed's runs, say), independent between groups and correlated in any way within:
    V = sum over groups of (w_g' e_g)^2. With G_gh = w_g' M_gh w_h: b = tr(G) / w'w and df = tr(G)^2 / tr(G^2). Where
    every group has the same rows of X, beside a level of its own that the contrast does not touch, that is the
    t-interval of the groups' own estimates with groups - 1 degrees of freedom, exactly, whatever varies within a group.
    A contrast is marked `pooled` where observations of leverage 1 carry most of it.

    Args:
        x: shape (n, p); n may be 0.
    Source: Young 2016, Improved, nearly exact, statistical inference with robust and clustered covariance matrices
        using effective degrees of freedom corrections; Liang & Zeger 1986; Bell & McCaffrey 2002; Imbens & Kolesár
        2016, Robust standard errors in small samples.
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
        rest[np.abs(rest) < NOISE * np.abs(y).max(axis=0, initial=0.0)] = 0.0
        return rest

    def judge(
        self,
        contrasts: np.ndarray,
        y: np.ndarray,
        confidence: float = 0.95,
        groups: np.ndarray | None = None,
        step: float = 0.0,
    ) -> Judged:
        """Estimates and intervals of contrasts.

        Args:
            contrasts: shape (q, p), one contrast of the coefficients per row.
            y: finite observations, shape (n,), or (n, r) for r responses observed under the same x.
            confidence: in (0, 1).
            groups: the group of each observation, shape (n,); None, or fewer than two distinct ones: all independent.
            step: of observations that take few values (`least_step`), which may agree by chance and seem to have no
                spread: the variance of w'y is taken to be at least that of their rounding, step^2 / 12 * w'w.
        Returns: see `Judged`; NaN where a contrast is not estimable, and intervals NaN where no residual is left.
        Raises: InvalidValue if y is not finite, groups are not one per observation, or confidence is not in (0, 1).
        """
        check_confidence("LinearModel.judge", confidence)
        if not np.isfinite(y).all():
            raise invalid("LinearModel.judge", "y", "be finite", y)
        if groups is not None and np.shape(groups) != (len(self.x),):
            raise invalid("LinearModel.judge", "groups", f"have the shape ({len(self.x)},)", np.shape(groups))
        many = y[:, None] if y.ndim == 1 else y
        scale = power_of_two(many)
        many = many / scale
        estimable, w = self.estimable(contrasts), self.weights(contrasts)
        estimate = w @ many
        rounding = NOISE * np.abs(many).max(axis=0, initial=0.0) * np.abs(w).sum(axis=1, keepdims=True)
        estimate[np.abs(estimate) < rounding] = 0.0
        estimate[~estimable] = np.nan
        rest, together = self.residuals(many), None if groups is None else np.unique(groups, return_inverse=True)[1]
        if together is None or together.max(initial=0) < 1:
            variance, df, pooled = self._variances(w, rest)
        else:
            variance, df, pooled = self._group_variances(w, rest, together)
        rounded = (step / scale) ** 2 / 12 * np.einsum("ij,ij->i", w, w)[:, None]
        se = np.where(np.isnan(estimate), np.nan, np.sqrt(np.maximum(variance, rounded)))
        low, high, p = t_interval(estimate, se, df[:, None], confidence)
        with np.errstate(over="ignore"):  # an end beyond the largest number is infinite
            arrays = (estimate * scale, low * scale, high * scale, se * scale, p)
        estimate, low, high, se, p = (array[:, 0] if y.ndim == 1 else array for array in arrays)
        return Judged(estimate, low, high, se, np.where(estimable, df, np.nan), p, estimable, pooled & estimable)

    def hc3(self, contrasts: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The plain HC3 standard errors of contrasts, for comparison: no correction for bias, shape (q,).

        Args:
            contrasts: shape (q, p).
            y: finite observations, shape (n,).
        Returns: NaN where a contrast is not estimable or rests on an observation of leverage 1.
        """
        scale, w = power_of_two(y), self.weights(contrasts)
        free, rests = self._free, self._rests_on(w)
        d = np.divide(w, 1.0 - self.leverage, out=np.zeros_like(w), where=np.broadcast_to(free, w.shape))
        found = np.sqrt(d**2 @ self.residuals(y / scale) ** 2) * scale
        found[~self.estimable(contrasts) | (rests & ~free).any(axis=1)] = np.nan
        return np.asarray(found)

    @property
    def _free(self) -> np.ndarray:
        """Which observations the model does not fit perfectly whatever their value, shape (n,)."""
        found: np.ndarray = self.leverage < 1.0 - 1e-9
        return found

    @staticmethod
    def _rests_on(w: np.ndarray) -> np.ndarray:
        """Which observations have a say in each estimate, shape (q, n)."""
        found: np.ndarray = np.abs(w) > 1e-9 * np.abs(w).max(axis=1, initial=0.0, keepdims=True)
        return found

    def _variances(self, w: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of independent observations: variances (q, r), degrees of freedom (q,), and which are pooled (q,)."""
        room, free = 1.0 - self.leverage, self._free
        inverse = np.divide(1.0, room, out=np.zeros_like(room), where=free)
        pooled = (self._rests_on(w) & ~free).any(axis=1)
        d = (w * inverse) ** 2
        trace = d @ room
        df = np.full(len(w), float(self.df_resid))
        squared = np.einsum("ij,j->i", d**2, 1.0 - 2.0 * self.leverage) + self._hat_part(d)
        usable = (trace > 0) & ~pooled & (self.df_resid > 0)
        np.divide(trace**2, squared, out=df, where=usable)
        size = np.einsum("ij,ij->i", w, w)
        ratio = np.divide(size, trace, out=np.full(len(w), np.nan), where=usable)
        classic = (rest**2).sum(axis=0) / (self.df_resid or np.nan)
        return np.where(pooled[:, None], size[:, None] * classic, ratio[:, None] * (d @ rest**2)), df, pooled

    def _group_variances(
        self, w: np.ndarray, rest: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The same for observations in groups, numbered 0, 1, ..., shape (n,)."""
        u, count = self._factored[0], int(groups.max()) + 1
        v, gram = np.zeros((len(w), rest.shape[1])), np.zeros((len(w), count, count))
        shadows = np.zeros((len(w), count, self.rank))
        for group in range(count):
            own = np.flatnonzero(groups == group)
            v += (w[:, own] @ rest[own]) ** 2
            shadows[:, group] = w[:, own] @ u[own]
            gram[:, group, group] = np.einsum("qi,qi->q", w[:, own], w[:, own])
        gram -= shadows @ shadows.transpose(0, 2, 1)
        size = np.einsum("ij,ij->i", w, w)
        trace, squared = np.einsum("qgg->q", gram), np.einsum("qgh,qgh->q", gram, gram)
        usable = trace > 1e-9 * size
        ratio = np.divide(size, trace, out=np.full(len(w), np.nan), where=usable)
        df = np.divide(trace**2, squared, out=np.zeros(len(w)), where=usable)
        single = np.einsum("ij,ij->i", w[:, ~self._free], w[:, ~self._free])
        return ratio[:, None] * v, df, single > 0.5 * size

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
    y = y / power_of_two(y)
    new = columns - model.fitted(columns)
    u, size, _ = np.linalg.svd(new, full_matrices=False)
    basis = u[:, size > 1e-8 * max(1.0, float(np.abs(columns).max(initial=0.0)))]
    df, df_error = float(basis.shape[1]), float(model.df_resid - basis.shape[1])
    if df < 1 or df_error < 1:
        return FTest(np.nan, df, df_error, np.nan)
    rest = model.residuals(y)
    explained = basis.T @ rest
    pure = rest - basis @ explained
    pure[np.abs(pure) < NOISE * np.abs(y).max(initial=0.0)] = 0.0
    missed, error = float(explained @ explained) / df, float(pure @ pure) / df_error
    if error == 0.0:
        f, p = (np.inf, 0.0) if rest.any() else (np.nan, np.nan)
        return FTest(f, df, df_error, p)
    return FTest(missed / error, df, df_error, float(special.fdtrc(df, df_error, missed / error)))
