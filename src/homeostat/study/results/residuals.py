"""What the model of a study leaves unexplained, run by run, and the runs that lie far off. Nothing here is random."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import special

from homeostat.study.results.effects import EffectModel

_LEVEL = 0.01  # of the outlier test: one false alarm in a hundred studies


def residual_table(model: EffectModel) -> pd.DataFrame:
    """The runs with what the model of effects makes of them, and how far each lies from its own treatment and seed.

    Returns: columns treatment, seed, fitted and residual (of the model of main effects and interactions, seeds
        included) and studentized: the distance from what the other runs of its treatment and its seed lead to expect,
        in standard errors (externally studentized residual of the treatments' means); NaN where a run cannot be judged.
    """
    table, scale = pd.DataFrame({"treatment": model.treatment, "seed": model.seed}), _scale(model)
    with np.errstate(over="ignore"):
        fitted, rest = (of(model.y / scale) * scale for of in (model.linear.fitted, model.linear.residuals))
    return table.assign(fitted=fitted, residual=rest, studentized=_studentized(model))


def outliers(model: EffectModel) -> pd.DataFrame:
    """The runs that lie too far off to be chance, by Bonferroni's outlier test, farthest first; see `residual_table`.

    Source: Cook & Weisberg 1982, Residuals and influence in regression, 2.2.2.
    """
    table = residual_table(model)
    size, df = table["studentized"].abs(), _df(model) - 1
    if df < 2 or not size.notna().any():
        return table.iloc[:0]
    p = 2 * special.stdtr(df, -size.to_numpy())
    far = table[p * int(size.notna().sum()) < _LEVEL]
    return far.loc[size[far.index].sort_values(ascending=False, kind="stable").index]


def _scale(model: EffectModel) -> float:
    """The largest response, so that squares do not overflow."""
    return float(np.abs(model.y).max(initial=0.0)) or 1.0


def _df(model: EffectModel) -> int:
    return 0 if model.means is None else model.means.linear.df_resid


def _studentized(model: EffectModel) -> np.ndarray:
    found, df = np.full(len(model.y), np.nan), _df(model)
    if model.means is None or df < 2:
        return found
    linear = model.means.linear
    rest, room = linear.residuals(model.y / _scale(model)), 1 - linear.leverage
    judged = room > 1e-9
    own = rest[judged] ** 2 / room[judged]
    others = np.maximum(rest @ rest - own, 0.0) / (df - 1)  # the variance without the run itself
    with np.errstate(divide="ignore", invalid="ignore"):
        found[judged] = np.where(rest[judged] == 0, 0.0, rest[judged] / np.sqrt(others * room[judged]))
    return found
