"""Effects: the linear model of a study, and main effects and interactions as contrasts of means.

Every effect is a contrast of means, written down from its definition, so that two levels or more, full factorials and
fractions, complete studies and those with holes go through the same few lines. Nothing here is random.
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

from homeostat.inference import NO_INTERVAL, FTest, Interval, Judged, LinearModel, holm, lack_of_fit, p_beyond
from homeostat.study.design import Design, Effect, effect_name
from homeostat.study.factors import Level, level_text
from homeostat.study.means import MOST_MEANS, TreatmentMeans

Goal = Literal["maximize", "minimize"]

AVERAGED = -1  # in place of a level's position: the average over the levels of that factor that gave results
_STATISTICS = ["estimate", "low", "high", "se", "df", "p", "estimable"]


@dataclass(frozen=True, eq=False)
class EffectModel:
    """response = seed + main effects + the two-factor interactions that the design can tell apart.

    Columns are sum-coded with the base at -1 (`Factor.coding`), seeds too, so that a prediction without block
    columns is the average over the seeds. Of effects that the design cannot tell apart the first has columns.

    Three questions, three answers. *Effects* average over the other factors; they are contrasts of the treatments' own
    means, with pure error, so that they hold whether this model fits or not. *Comparisons* of two configurations come
    from this model, in which every trial counts, as long as it fits, and from the two treatments themselves where it
    does not (`direct`): interactions of three factors make a model of two wrong about particular combinations, and its
    intervals too sure. *The measured difference* of two treatments (`measured`) never uses this model.

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
        held = self.treatment_positions[self.treatment]
        found = {}
        for place, factor in enumerate(self.design.factors):
            found[factor.name] = sorted(set(held[:, place].tolist())) or list(range(len(factor.levels)))
        return found

    @cached_property
    def linear(self) -> LinearModel:
        """The fitted model, for judging contrasts."""
        own = self.rows(self.treatment_positions[self.treatment])
        own[:, 1 : 1 + self._blocks.shape[1]] = self._blocks
        return LinearModel(own)

    @cached_property
    def means(self) -> TreatmentMeans | None:
        """The model of the treatments' means; None where nothing has a result or too many treatments have."""
        found = TreatmentMeans(self.treatment, self._blocks)
        return found if 0 < len(found.numbers) <= MOST_MEANS else None

    @cached_property
    def lack_of_fit(self) -> FTest:
        """Whether three or more factors interact: this model against the treatments' means."""
        if self.means is None:
            return FTest(np.nan, np.nan, np.nan, np.nan)
        return lack_of_fit(self.linear, self.means.linear.x, self.y)

    def slopes(self, factor: str) -> FTest:
        """Whether a factor acts differently from seed to seed: seed × factor, added to the treatments' means."""
        if self.means is None:
            return FTest(np.nan, np.nan, np.nan, np.nan)
        own = self.design.columns((factor,))[self.treatment]
        columns = np.einsum("ni,nj->nij", own, self._blocks).reshape(len(own), -1)
        return lack_of_fit(self.means.linear, columns, self.y)

    @property
    def direct(self) -> bool:
        """Whether configurations are compared by their own runs alone, because this model does not fit."""
        return self.lack_of_fit.p < 1 - self.confidence

    @property
    def constant(self) -> bool:
        """Whether two or more trials gave results, and all the same one: nothing can be told from it."""
        return len(self.y) > 1 and bool(np.ptp(self.y) == 0)

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
        """Estimates and intervals of contrasts of the coefficients, shape (q, coefficients), as this model has them."""
        return self.linear.judge(contrasts, self.y, self.confidence)

    def judge_effects(self, contrasts: np.ndarray) -> Judged:
        """The same contrasts as sums of the treatments' own means, with pure error, where seeds repeat treatments.

        The weights of the means are those of least squares with one observation per treatment. Where every treatment
        has the same seeds, the estimates are those of this model, and their intervals hold no lack of fit. Without
        repetition, or where only this model connects the treatments, it judges.
        """
        means = self.means
        if means is None or means.linear.df_resid < 1:
            return self.judge(contrasts)
        cells = LinearModel(self.rows(self.treatment_positions[means.numbers]))
        weights = means.contrasts(cells.weights(contrasts))
        told = cells.estimable(contrasts) & means.linear.estimable(weights)
        if (self.linear.estimable(contrasts) & ~told).any():
            return self.judge(contrasts)
        weights[~told] = means.row(None)
        return means.linear.judge(weights, self.y, self.confidence)

    def difference(self, config: Mapping[str, Level], other: Mapping[str, Level]) -> Interval:
        """The response of one configuration minus that of another: by this model, or measured where it does not fit."""
        return self.measured(config, other) if self.direct else self.modelled(config, other)

    def modelled(self, config: Mapping[str, Level], other: Mapping[str, Level]) -> Interval:
        """The response that this model predicts for one configuration minus that for another."""
        return self.judge((self.row(config) - self.row(other))[None]).at(0)

    def measured(self, config: Mapping[str, Level], other: Mapping[str, Level]) -> Interval:
        """The mean of one treatment minus that of another, seed by seed; NaN where one of them has no result."""
        if self.means is None:
            return NO_INTERVAL
        contrast = self.means.difference(self.design.find(config), self.design.find(other))
        return self.means.linear.judge(contrast, self.y, self.confidence).at(0)

    def predicted(self, positions: np.ndarray) -> np.ndarray:
        """The response of configurations, shape (m,), by what `difference` goes by; NaN where that cannot tell.

        Args:
            positions: of the levels, shape (m, factors).
        """
        if self.direct and self.means is not None:
            numbers = [self.design.find(self.levels(row)) for row in positions]
            linear, rows = self.means.linear, np.vstack([self.means.row(number) for number in numbers])
        else:
            linear, rows = self.linear, self.rows(positions)
        return np.where(linear.estimable(rows), rows @ linear.coefficients(self.y), np.nan)

    def levels(self, positions: np.ndarray) -> dict[str, Level]:
        """The configuration at these positions, shape (factors,)."""
        return {factor.name: factor.levels[place] for factor, place in zip(self.design.factors, positions, strict=True)}

    def coefficients(self) -> tuple[pd.DataFrame, float]:
        """The coefficients by statsmodels with HC3 errors, and R².

        Returns: a table (index name; coefficient, se, t, p), NaN for a coefficient that the trials do not determine and
            for errors that HC3 cannot give, where single runs decide; and R², NaN where the response does not vary.
        """
        from statsmodels.regression.linear_model import OLS  # half a second that the trials need not wait for
        from statsmodels.tools.sm_exceptions import SingularMatrixWarning

        columns = ["coefficient", "se", "t", "p"]
        index = pd.Index(self._names, name="name", dtype=object)
        table = pd.DataFrame(np.nan, index=index, columns=columns)
        if not len(self.y):
            return table, np.nan
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", SingularMatrixWarning)  # what is not determined is masked below
            fitted = OLS(self.y, self.linear.x).fit()
            table["coefficient"] = fitted.params
            if self.linear.df_resid > 0 and self.linear.leverage.max() < 1 - 1e-9:
                robust = fitted.get_robustcov_results("HC3", use_t=True)
                table["se"], table["t"], table["p"] = robust.bse, robust.tvalues, robust.pvalues
            table[~self.linear.estimable(np.eye(len(index)))] = np.nan
            return table, float(fitted.rsquared) if np.ptp(self.y) > 0 else np.nan

    @cached_property
    def treatment_positions(self) -> np.ndarray:
        """The positions of the levels of every treatment of the design, shape (treatments, factors)."""
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
    judged = model.judge_effects(np.array(contrasts))
    table = pd.concat([pd.DataFrame(rows), pd.DataFrame({name: getattr(judged, name) for name in _STATISTICS})], axis=1)
    table["p_holm"] = holm(table["p"].to_numpy())
    table["aliases"] = [_aliases(model.design, effect) for effect in table["factors"]]
    clear = holm(p_beyond(judged, margin, model.confidence)) < 1 - model.confidence
    table["verdict"] = [
        _verdict(row, goal, margin, bool(sure)) for row, sure in zip(table.itertuples(index=False), clear, strict=True)
    ]
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
    rows, found = [], []
    for factor in model.design.factors:
        for base, level in _steps(model.design, factor.name):
            label = _label(model.design, {factor.name: (base, level)})
            rows.append({"label": label, "factor": factor.name, "base": base, "level": level})
            found.append(model.difference({**around, factor.name: level}, {**around, factor.name: base}))
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
    return config, model.difference(config, model.design.base)


def oriented(goal: Goal) -> int:
    """+1 where more of the response is better, -1 where less is."""
    return 1 if goal == "maximize" else -1


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
