"""The effects by other methods, beside the ones that are judged: where they disagree, look at the runs.

None of these decides anything. The bootstrap is random, by a stream of its own; everything else is not.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd

from homeostat import seeds as streams
from homeostat.inference import Interval
from homeostat.inference.intervals import power_of_two
from homeostat.inference.robust import interquartile_difference
from homeostat.study.results.effect_table import effect_contrast
from homeostat.study.results.effects import EffectModel, step_of

NEAR = 0.1  # a rate is near 0 or 1 where a treatment's mean is
_MOST_RUNS = 2000  # for the mixed model, which takes seconds beyond


def crosschecks(model: EffectModel, effects: pd.DataFrame, *, rate: bool) -> pd.DataFrame:
    """Every effect by every other method that applies.

    - "independent runs": the same estimate with the interval that counts runs (`EffectModel.pure_error`). It is
      narrower, and right where seeds do the same to all treatments.
    - "mixed model": seeds as random intercepts, and every main effect random over seeds, by restricted maximum
      likelihood (statsmodels), with its Wald interval, which is too narrow with few seeds.
    - "log odds": where the response is a rate and a treatment's mean lies below 0.1 or above 0.9, the same analysis of
      log(y / (1 - y)), in its own unit. Near 0 and 1 differences shrink; there it may say of an interaction that it is
      none.
    - "interquartile mean": of all runs at the level minus at the base level, what seeds give to all taken out, with a
      stratified bootstrap over the runs of each treatment. Single odd runs do not move it. Main effects only.

    Args:
        model: of the response.
        effects: from `effect_table`.
        rate: whether the response is one.
    Returns: columns label, method, estimate, low, high; rows by effect, then by method. Empty where nothing was
        repeated.
    """
    rows = []
    judged = effects[effects["estimable"]]
    if model.means is None or model.means.linear.df_resid < 1 or model.constant:
        judged = judged.iloc[:0]
    contrasts = [
        effect_contrast(model, dict(zip(names, steps, strict=True)))
        for names, steps in zip(judged["factors"], judged["levels"], strict=True)
    ]
    if contrasts:
        weights = np.array(contrasts)
        size = float(power_of_two(model.y))  # so that squares do not overflow
        unit = replace(model, y=model.y / size)
        found = [
            ("independent runs", list(_independent(judged))),
            ("mixed model", [_times(interval, size) for interval in _mixed(unit, weights)]),
            ("log odds", list(_log_odds(model, weights)) if rate else []),
            ("interquartile mean", [_times(interval, size) for interval in _interquartile(unit, judged)]),
        ]
        for place, label in enumerate(judged["label"]):
            rows += [(label, name, *own[place][:3]) for name, own in found if own and not np.isnan(own[place].estimate)]
    return pd.DataFrame(rows, columns=["label", "method", "estimate", "low", "high"])


def _times(interval: Interval, size: float) -> Interval:
    return Interval(*(end * size for end in interval[:3]))


def _independent(effects: pd.DataFrame) -> Iterator[Interval]:
    for estimate, low, high in effects[["estimate", "pure_low", "pure_high"]].itertuples(index=False):
        yield Interval(estimate, low, high)


def _mixed(model: EffectModel, contrasts: np.ndarray) -> Iterator[Interval]:
    """By statsmodels' MixedLM; nothing where it does not converge."""
    seeds = sorted(set(model.seed.tolist()))
    if len(seeds) < 3 or len(model.y) > _MOST_RUNS:
        return
    from scipy import special
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec  # half a second

    fixed = slice(1, len(seeds))  # the columns of the seeds, which are random here
    x = np.delete(model.rows(model.treatment_positions[model.treatment]), fixed, axis=1)
    own, names = np.delete(contrasts, fixed, axis=1), [effect[0] for effect in model.effects if len(effect) == 1]
    blocks = [model.design.columns((name,))[model.treatment] for name in names]
    labels = [[f"{name} {place}" for place in range(block.shape[1])] for name, block in zip(names, blocks, strict=True)]
    columns = [[label] * len(seeds) for label in labels]
    slopes = VCSpec(names, columns, [[block[model.seed == seed] for seed in seeds] for block in blocks])
    scale, center = float(np.abs(model.y - model.y[0]).max()), float(model.y.mean())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # a variance of zero is an answer; what did not converge is left out
        try:
            y, intercepts = (model.y - center) / scale, np.ones((len(x), 1))
            fitted = MixedLM(y, x, model.seed, intercepts, exog_vc=slopes).fit(reml=True)
            covariance = fitted.cov_params()[: x.shape[1], : x.shape[1]]
        except (np.linalg.LinAlgError, ValueError):
            return
    variance = np.einsum("qi,ij,qj->q", own, covariance, own)
    if not fitted.converged or not (variance > 0).all():
        return
    half = special.ndtri(0.5 + model.confidence / 2) * np.sqrt(variance) * scale
    for estimate, reach in zip(own @ fitted.fe_params * scale, half, strict=True):
        yield Interval(float(estimate), float(estimate - reach), float(estimate + reach))


def _log_odds(model: EffectModel, contrasts: np.ndarray) -> Iterator[Interval]:
    means = pd.Series(model.y).groupby(model.treatment).mean()
    if ((model.y < 0) | (model.y > 1)).any() or not ((means < NEAR) | (means > 1 - NEAR)).any():
        return
    distance = np.minimum(model.y, 1 - model.y)
    least = distance[distance > 0].min(initial=0.5) / 2  # stands for 0 and for 1, half of what could be told from them
    clipped = np.clip(model.y, least, 1 - least)
    odds = np.log(clipped / (1 - clipped))
    judged = replace(model, y=odds, step=step_of(model.treatment, odds, model.confidence)).judge_effects(contrasts)
    yield from (judged.at(place) for place in range(len(contrasts)))


def _interquartile(model: EffectModel, effects: pd.DataFrame) -> Iterator[Interval]:
    means = model.means
    if means is None:
        return
    blocks = means.blocks @ means.linear.coefficients(model.y)[-means.blocks.shape[1] :] if means.blocks.size else 0.0
    level_with_all = model.y - blocks
    runs = {number: level_with_all[model.treatment == number] for number in means.numbers}
    for names, steps in zip(effects["factors"], effects["levels"], strict=True):
        if len(names) > 1:
            yield Interval(np.nan, np.nan, np.nan)
            continue
        held = model.design.treatments[names[0]]
        sides = [[runs[number] for number in means.numbers if held[number] == level] for level in steps[0]]
        generator = streams.numpy_generator(0, "crosschecks", names[0], str(steps[0][1]))
        yield interquartile_difference(sides[1], sides[0], generator, model.confidence)
