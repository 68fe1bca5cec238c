"""Effects: the linear model of a study, and main effects and interactions as contrasts of its predictions.

Every effect is a contrast of predicted means, written down from its definition, so that two levels or more, full
factorials and fractions, complete studies and those with holes go through the same few lines. Nothing here is random.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from statsmodels.regression.linear_model import OLS
from statsmodels.tools.sm_exceptions import SingularMatrixWarning

from homeostat.inference import Interval, Judged, LinearModel, holm
from homeostat.study.design import Design, Effect, effect_name
from homeostat.study.factors import Level, level_text

Goal = Literal["maximize", "minimize"]

AVERAGED = -1  # in place of a level's position: the average over the levels of that factor that gave results
_STATISTICS = ["estimate", "low", "high", "se", "df", "p", "estimable"]


@dataclass(frozen=True, eq=False)
class EffectModel:
    """response = seed + main effects + the two-factor interactions that the design can tell apart.

    Columns are sum-coded with the base at -1 (`Factor.coding`), seeds too, so that a prediction without block
    columns is the average over the seeds. Of effects that the design cannot tell apart the first has columns.

    Attributes:
        design: the design of the study.
        treatment, seed, y: of the trials that count, shape (n,) each.
        confidence: of every interval.
    """

    design: Design
    treatment: np.ndarray
    seed: np.ndarray
    y: np.ndarray
    confidence: float = 0.95

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """The effects that have columns."""
        hidden = {effect for group in self.design.alias_sets for effect, _ in group[1:]}
        return tuple(effect for effect in self.design.effects if effect not in hidden)

    @cached_property
    def live(self) -> dict[str, list[int]]:
        """The positions of the levels that gave a result, per factor; all of them where the factor has none that did.

        A level under which every trial diverged has no mean to enter an average; without this, one such level would
        leave no effect of any other factor to be estimated.
        """
        held = self._positions[self.treatment]
        found = {}
        for place, factor in enumerate(self.design.factors):
            found[factor.name] = sorted(set(held[:, place].tolist())) or list(range(len(factor.levels)))
        return found

    @cached_property
    def linear(self) -> LinearModel:
        """The fitted model, for judging contrasts."""
        own = self.rows(self._positions[self.treatment])
        own[:, 1 : 1 + self._blocks.shape[1]] = self._blocks
        return LinearModel(own)

    def positions(self, config: Mapping[str, Level]) -> np.ndarray:
        """The positions of a configuration's levels, shape (factors,); a factor left out is averaged."""
        return np.array(
            [
                factor.levels.index(config[factor.name]) if factor.name in config else AVERAGED
                for factor in self.design.factors
            ]
        )

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the model matrix for the mean over seeds.

        Args:
            positions: of the levels, shape (m, factors), integers, or AVERAGED.
        Returns: shape (m, coefficients). The columns are products of functions of distinct factors, so the average of a
            row over the levels of a factor is the row of the average.
        """
        coded = {}
        for place, factor in enumerate(self.design.factors):
            table = np.vstack([factor.coding, factor.coding[self.live[factor.name]].mean(axis=0)])
            coded[factor.name] = table[positions[:, place]]
        parts = [np.ones((len(positions), 1)), np.zeros((len(positions), self._blocks.shape[1]))]
        for effect in self.effects:
            block = np.ones((len(positions), 1))
            for name in effect:
                width = block.shape[1] * coded[name].shape[1]
                block = np.einsum("mi,mj->mij", block, coded[name]).reshape(len(positions), width)
            parts.append(block)
        return np.hstack(parts)

    def row(self, config: Mapping[str, Level]) -> np.ndarray:
        """The row of one configuration, shape (coefficients,); a factor left out is averaged over its levels."""
        found: np.ndarray = self.rows(self.positions(config)[None])[0]
        return found

    def judge(self, contrasts: np.ndarray) -> Judged:
        """Estimates and intervals of contrasts of the coefficients, shape (q, coefficients)."""
        return self.linear.judge(contrasts, self.y, self.confidence)

    def difference(self, config: Mapping[str, Level], other: Mapping[str, Level]) -> Interval:
        """The predicted response of one configuration minus that of another."""
        return self.judge((self.row(config) - self.row(other))[None]).at(0)

    def coefficients(self) -> tuple[pd.DataFrame, float]:
        """The coefficients by statsmodels with HC3 errors, and R².

        Returns: a table (index name; coefficient, se, t, p), NaN for a coefficient that the trials do not determine and
            for errors that HC3 cannot give, where single runs decide; and R², NaN where the response does not vary.
        """
        columns = ["coefficient", "se", "t", "p"]
        index = pd.Index(self._names, name="name", dtype=object)
        table = pd.DataFrame(np.nan, index=index, columns=columns)
        if not len(self.y):
            return table, np.nan
        with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularMatrixWarning)  # what is not determined is masked below
            fitted = OLS(self.y, self.linear.x).fit()
            table["coefficient"] = fitted.params
            if self.linear.df_resid > 0 and self.linear.leverage.max() < 1 - 1e-9:
                robust = fitted.get_robustcov_results("HC3", use_t=True)
                table["se"], table["t"], table["p"] = robust.bse, robust.tvalues, robust.pvalues
            table[~self.linear.estimable(np.eye(len(index)))] = np.nan
            return table, float(fitted.rsquared) if np.ptp(self.y) > 0 else np.nan

    @cached_property
    def _positions(self) -> np.ndarray:
        return np.array([self.positions(self.design.config(number)) for number in self.design.treatments.index])

    @cached_property
    def _present(self) -> list[int]:
        """The seeds that have at least one trial that counts."""
        return [seed for seed in self.design.seeds if (self.seed == seed).any()]

    @cached_property
    def _blocks(self) -> np.ndarray:
        """The block columns, shape (n, seeds - 1)."""
        count = len(self._present)
        if count < 2:
            return np.zeros((len(self.y), 0))
        places = np.array([self._present.index(seed) for seed in self.seed])
        return np.vstack([-np.ones(count - 1), np.eye(count - 1)])[places]

    @cached_property
    def _names(self) -> list[str]:
        names = ["intercept", *(f"seed {seed}" for seed in self._present[1:])]
        levels = {factor.name: factor.levels[1:] for factor in self.design.factors}
        for effect in self.effects:
            cells = itertools.product(*(levels[name] for name in effect))
            names += [
                " × ".join(f"{name}[{level_text(level)}]" for name, level in zip(effect, cell, strict=True))
                for cell in cells
            ]
        return names


def fit(frame: pd.DataFrame, design: Design, metric: str, confidence: float = 0.95) -> EffectModel:
    """The model of a metric on the trials that are "ok" and where it is finite.

    Args:
        frame: from `outcomes.tidy`.
    """
    if metric not in frame:
        frame = frame.iloc[:0].assign(**{metric: 0.0})
    own = frame[(frame["outcome"] == "ok") & np.isfinite(frame[metric].to_numpy(dtype=float))]
    treatment, seed = own["treatment"].to_numpy(dtype=int), own["seed"].to_numpy(dtype=int)
    return EffectModel(design, treatment, seed, own[metric].to_numpy(dtype=float), confidence)


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
    table = pd.concat([pd.DataFrame(rows), _judged_frame(model, contrasts)], axis=1)
    table["p_holm"] = holm(table["p"].to_numpy())
    table["aliases"] = [_aliases(model.design, effect) for effect in table["factors"]]
    table["verdict"] = [_verdict(row, goal, margin, 1 - model.confidence) for row in table.itertuples(index=False)]
    order = ["label", "kind", "factors", "levels", "estimate", "low", "high", "se", "df", "p", "p_holm"]
    return table[[*order, "aliases", "estimable", "verdict"]]


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
    rows, contrasts = [], []
    for factor in model.design.factors:
        for base, level in _steps(model.design, factor.name):
            label = _label(model.design, {factor.name: (base, level)})
            rows.append({"label": label, "factor": factor.name, "base": base, "level": level})
            contrasts.append(model.row({**around, factor.name: level}) - model.row({**around, factor.name: base}))
    cells = {key: pd.Series([row[key] for row in rows], dtype=object) for key in ("label", "factor", "base", "level")}
    return pd.concat([pd.DataFrame(cells), _judged_frame(model, contrasts)], axis=1)


def everything_on(model: EffectModel, effects: pd.DataFrame, goal: Goal) -> tuple[dict[str, Level], Interval]:
    """The gain over the base treatment with every factor at its best level other than the base."""
    config: dict[str, Level] = {}
    for factor in model.design.factors:
        own = effects[[names == (factor.name,) for names in effects["factors"]]]
        gains = oriented(goal) * own["estimate"].to_numpy()
        best = int(np.argmax(np.where(np.isnan(gains), -np.inf, gains)))
        config[factor.name] = own["levels"].iloc[best][0][1]
    return config, model.difference(config, model.design.base)


def oriented(goal: Goal) -> int:
    """+1 where more of the response is better, -1 where less is."""
    return 1 if goal == "maximize" else -1


def _judged_frame(model: EffectModel, contrasts: list[np.ndarray]) -> pd.DataFrame:
    judged = model.judge(np.array(contrasts))
    return pd.DataFrame({name: getattr(judged, name) for name in _STATISTICS})


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


def _verdict(row: Any, goal: Goal, margin: float, alpha: float) -> str:
    if not row.estimable:
        return "not estimable"
    better, worse = ("helps", "hurts") if row.kind == "main" else ("strengthens", "weakens")
    ends = sorted((oriented(goal) * row.low, oriented(goal) * row.high))
    if row.p_holm < alpha and ends[0] > margin:
        return better
    return worse if row.p_holm < alpha and ends[1] < -margin else "no clear effect"
