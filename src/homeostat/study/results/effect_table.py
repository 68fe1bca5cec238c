"""Main effects and interactions of a study as tables: what is estimated, with which interval, and what it may be
instead.

Nothing here is random.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from homeostat.inference import NO_INTERVAL, Interval, Judged, holm, p_beyond
from homeostat.inference.lenth import lenth
from homeostat.study.design import Design, Effect, effect_name
from homeostat.study.factors import Level, level_text
from homeostat.study.results.effects import EffectModel, Goal, oriented
from homeostat.study.results.wording import listed

_STATISTICS = ["estimate", "low", "high", "se", "df", "p", "estimable"]
_LEAST_LENTH = 6  # effects of which most can be nearly zero
_MOST_PARTS = 3  # effects that are in part of an estimate, by name


def effect_table(model: EffectModel, goal: Goal, margin: float = 0.0) -> pd.DataFrame:
    """Main effects and two-factor interactions with intervals, Holm-adjusted p-values and verdicts.

    Returns: see `Analysis.effects`.
    """
    rows, contrasts = [], []
    for effect in model.effects:
        for cell in itertools.product(*(_steps(model.design, name) for name in effect)):
            steps = dict(zip(effect, cell, strict=True))
            rows.append(
                {
                    "label": _label(model.design, steps),
                    "kind": "main" if len(effect) == 1 else "interaction",
                    "factors": effect,
                    "levels": cell,
                }
            )
            contrasts.append(effect_contrast(model, steps))
    weights = np.array(contrasts)
    judged, (pure, hc3) = _judged(model, weights), model.pure_error(weights)
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame({name: getattr(judged, name) for name in _STATISTICS})], axis=1)
    table = table.assign(pure_low=pure.low, pure_high=pure.high, pure_se=hc3, pooled=judged.pooled)
    doubtful = ~_founded(table)
    table.loc[doubtful, [*_STATISTICS[:-1], "pure_low", "pure_high", "pure_se"]] = np.nan
    table.loc[doubtful, "estimable"] = False
    table["p_holm"] = holm(table["p"].to_numpy())
    table["aliases"] = [_aliases(model.design, effect) for effect in table["factors"]]
    table["partly"] = [_partly(model.design, effect) for effect in table["factors"]]
    clear = holm(p_beyond(table, margin, model.confidence)) < 1 - model.confidence
    table["verdict"] = [
        _verdict(row, goal, margin, bool(sure)) for row, sure in zip(table.itertuples(index=False), clear, strict=True)
    ]
    order = ["label", "kind", "factors", "levels", "estimate", "low", "high", "se", "df", "p", "p_holm"]
    return table[[*order, "pure_low", "pure_high", "pure_se", "pooled", "aliases", "partly", "estimable", "verdict"]]


def _judged(model: EffectModel, contrasts: np.ndarray) -> Judged:
    """The effects with intervals; of one seed by Lenth's method where the model leaves fewer degrees of freedom."""
    judged, count = model.judge_effects(contrasts), len(contrasts)
    if not by_lenth(model, count):
        return judged
    weights = model.linear.weights(contrasts)
    products, size = weights @ weights.T, float(np.diagonal(weights @ weights.T).mean())
    if not judged.estimable.all() or not np.allclose(products, size * np.eye(count), atol=1e-9 * size):
        return judged  # the estimates must be independent and equally precise
    found = lenth(judged.estimate, model.confidence, least=model.step * float(np.sqrt(size / 12)))
    p = 2 * special.stdtr(found.df, -np.abs(judged.estimate) / found.pse) if found.pse > 0 else judged.p
    low, high = judged.estimate - found.margin, judged.estimate + found.margin
    return judged._replace(low=low, high=high, se=np.full(count, found.pse), df=np.full(count, found.df), p=p)


def by_lenth(model: EffectModel, count: int) -> bool:
    """Whether so many effects of a single seed say more of the noise than what the model leaves over."""
    one_seed = len(set(model.seed.tolist())) == 1
    return one_seed and count >= _LEAST_LENTH and model.linear.df_resid < count / 3


def _founded(table: pd.DataFrame) -> np.ndarray:
    """Whether the main effects of an interaction can be estimated too, as far as the table has them; shape (rows,).

    How a technique depends on another says nothing to go by where it is not known what the technique does.
    """
    pairs = zip(table["factors"], table["levels"], table["estimable"], strict=True)
    lost = {(names[0], steps[0]) for names, steps, known in pairs if len(names) == 1 and not known}
    cells = zip(table["factors"], table["levels"], strict=True)
    return np.array([not any(end in lost for end in zip(names, steps, strict=True)) for names, steps in cells])


def effect_contrast(model: EffectModel, steps: Mapping[str, tuple[Level, Level]]) -> np.ndarray:
    """The contrast of an effect: of one step from base to level, or half the difference of a difference for two.

    Args:
        steps: (base, level) of one factor or two; all other factors are averaged over their levels that gave results.
    """
    total = np.zeros(model.linear.x.shape[1])
    for ends in itertools.product((0, 1), repeat=len(steps)):
        sign = (-1) ** (len(steps) - sum(ends))
        total += sign * model.row({name: step[end] for (name, step), end in zip(steps.items(), ends, strict=True)})
    return total / 2 ** (len(steps) - 1)


def conditional_effects(model: EffectModel, around: Mapping[str, Level]) -> pd.DataFrame:
    """What each level that is not a base level changes when every other factor stays as in `around`.

    Returns: columns label, factor, base, level, estimate, low, high, se, df, p, estimable.
    """
    rows, found = [], []
    for factor in model.design.factors:
        for base, level in _steps(model.design, factor.name):
            label = _label(model.design, {factor.name: (base, level)})
            rows.append({"label": label, "factor": factor.name, "base": base, "level": level})
            one, two = (model.changed(around, {factor.name: end}) for end in (level, base))
            found.append(model.difference(one, two) if factor.name in one else NO_INTERVAL)  # nested, and absent here
    cells = {key: pd.Series([row[key] for row in rows], dtype=object) for key in ("label", "factor", "base", "level")}
    table = pd.concat([pd.DataFrame(cells), pd.DataFrame(found)], axis=1)
    return table.assign(estimable=table["estimate"].notna())


def everything_on(model: EffectModel, effects: pd.DataFrame, goal: Goal) -> tuple[dict[str, Level], Interval]:
    """The gain over the base treatment with every factor at its best level other than the base."""
    config: dict[str, Level] = {}
    for factor in model.design.factors:
        own = effects[[names == (factor.name,) for names in effects["factors"]]]
        gains = oriented(goal) * own["estimate"].to_numpy()
        best = int(np.argmax(np.where(np.isnan(gains), -np.inf, gains)))
        config[factor.name] = own["levels"].iloc[best][0][1]
    config = model.changed(config, {})
    return config, model.difference(config, model.design.base)


def _steps(design: Design, name: str) -> list[tuple[Level, Level]]:
    factor = next(factor for factor in design.factors if factor.name == name)
    return [(factor.base, level) for level in factor.levels[1:]]


def _label(design: Design, steps: Mapping[str, tuple[Level, Level]]) -> str:
    if len(steps) > 1 and all(len(_steps(design, name)) == 1 for name in steps):
        return effect_name(tuple(steps))
    return effect_name(tuple(f"{name}: {level_text(a)} → {level_text(b)}" for name, (a, b) in steps.items()))


def _aliases(design: Design, effect: Effect) -> str:
    for group in design.alias_sets:
        if group[0][0] == effect:
            return ", ".join(("" if sign > 0 else "−") + effect_name(other) for other, sign in group[1:])
    return ""


def _partly(design: Design, effect: Effect) -> str:
    """Which effects that are not estimated are in part of an estimate, the largest parts first: "0.33 b × c".

    What cannot be told apart at all is told elsewhere. See `Design.alias_matrix` for factors of three levels and more.
    """
    if effect_name(effect) not in design.alias_matrix.index:
        return ""
    row = design.alias_matrix.loc[effect_name(effect)]
    aliases = {effect_name(other) for group in design.alias_sets for other, _ in group if group[0][0] == effect}
    shares = zip(row.index.astype(str), row.to_numpy(dtype=float).tolist(), strict=True)
    parts = [(name, share) for name, share in shares if abs(share) > 0.005 and name not in aliases]
    parts.sort(key=lambda part: -round(abs(part[1]), 6))
    told = [f"{'−' * (share < 0)}{abs(share):.2g} {name}" for name, share in parts[:_MOST_PARTS]]
    more = [f"{len(parts) - _MOST_PARTS} more"] if len(parts) > _MOST_PARTS else []
    return listed([*told, *more])


def _verdict(row: Any, goal: Goal, margin: float, clear: bool) -> str:
    """The words for an effect; `clear` is whether it lies beyond the margin by all the tests of the table together."""
    if not row.estimable:
        return "not estimable"
    better, worse = ("helps", "hurts") if row.kind == "main" else ("strengthens", "weakens")
    ends = sorted((oriented(goal) * row.low, oriented(goal) * row.high))
    if margin > 0 and -margin <= ends[0] and ends[1] <= margin:
        return "within the margin"
    if not (ends[0] > 0 or ends[1] < 0):
        return "no clear effect"
    words = better if ends[0] > 0 else worse
    return words if clear else f"perhaps {words}"
