"""Which treatments cannot be told from the best one, and gains that hold whichever treatment was picked.

Multiple comparisons with the best (Hsu), from the treatments' own runs, seed by seed. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from homeostat.inference import NO_INTERVAL, Interval
from homeostat.study.factors import Level
from homeostat.study.results.effects import EffectModel, Goal, oriented

_MOST_RIVALS = 32  # the best-looking treatments with which every treatment is compared


def best_set(model: EffectModel, goal: Goal) -> pd.DataFrame:
    """Every treatment against the best of the others: the set of those that may be the best.

    A treatment is out where another one is clearly better, each of the treatments - 1 comparisons with the best one
    being made at that share of the level (Bonferroni). So the treatment that is truly best is in the set in at least
    95 % of studies, whatever seeds do to treatments and however much these differ in spread; quantiles of the
    studentized maximum, which assume that they do not, would save 3 to 6 % of width. `low` and `high` are the
    simultaneous confidence intervals of Hsu for a treatment's mean minus the best mean of the others: 0 is an end where
    the treatment is clearly not the best, or clearly is.

    Returns: index treatment; columns estimate (in the response's sign; NaN without a result), low, high, in_set (False
        without a result; True where there are no intervals, as under a single seed).
    Source: Hsu 1984, Constrained simultaneous confidence intervals for multiple comparisons with the best.
    """
    table = pd.DataFrame(np.nan, index=model.design.treatments.index, columns=["estimate", "low", "high"])
    table["in_set"] = False
    means = model.means
    if means is None:
        return table
    sign, numbers, count = oriented(goal), np.array(means.numbers), len(means.numbers)
    table.loc[numbers, "in_set"] = True
    if count < 2:
        return table
    level = _shared(model.confidence, count)
    values = sign * (means.contrasts(np.eye(count)) @ means.linear.coefficients(model.y))
    rivals = np.argsort(-values, kind="stable")[:_MOST_RIVALS]
    estimates, highs, lows = (np.full((count, len(rivals)), np.nan) for _ in range(3))
    for place, rival in enumerate(rivals):
        weights = np.eye(count) - np.eye(count)[rival]
        judged = means.linear.judge(means.contrasts(weights), sign * model.y, level, model.seed, model.step)
        estimates[:, place], lows[:, place], highs[:, place] = judged.estimate, judged.low, judged.high
        for column in (estimates, lows, highs):
            column[rival, place] = np.inf  # nothing is its own rival
    highs, lows = np.where(np.isnan(highs), np.inf, highs), np.where(np.isnan(lows), -np.inf, lows)
    inside = highs.min(axis=1) > 0
    upper = np.maximum(highs.min(axis=1), 0.0)
    others = inside[rivals][None] & (numbers[:, None] != numbers[rivals][None])
    lower = np.minimum(np.where(others, lows, np.inf).min(axis=1), 0.0)
    if not set(np.flatnonzero(inside)) <= set(rivals.tolist()):
        lower = np.full(count, -np.inf)  # the best may be one that was not compared
    ends = np.sort(sign * np.column_stack([lower, upper]), axis=1)
    table.loc[numbers, ["low", "high"]] = np.where(np.isfinite(ends), ends, np.nan)
    table.loc[numbers, "estimate"] = sign * np.nanmin(estimates, axis=1)
    table.loc[numbers, "in_set"] = inside
    return table


def simultaneous_gain(model: EffectModel, config: Mapping[str, Level]) -> Interval:
    """The measured gain over the base treatment with an interval that holds whichever treatment was picked, and why.

    The plain interval is that of one comparison decided beforehand; of the treatment that looked best it holds a little
    less often. This one shares the level among all treatments that could have been picked; it is wider. NaN where one
    of the two was not run or has no result.
    """
    means, base = model.means, model.design.find(model.design.base)
    if means is None or base not in means.numbers or len(means.numbers) < 2:
        return NO_INTERVAL
    contrast = means.difference(model.design.find(config), base)
    level = 1 - (1 - model.confidence) / (len(means.numbers) - 1)
    return means.linear.judge(contrast, model.y, level, model.seed, model.step).at(0)


def _shared(confidence: float, count: int) -> float:
    """The confidence of a two-sided interval of which one side has the best treatment's share of the level."""
    return 1 - 2 * (1 - confidence) / max(count - 1, 2)
