"""The model of a study: what its trials say of contrasts of treatments, with intervals that count seeds.

Every effect is a contrast of means, written down from its definition, so that two levels or more, full factorials,
fractions and designs that are no regular ones, complete studies and those with holes go through the same few lines.
Which contrasts there are, and the tables of them, is in `effect_table`. Nothing here is random.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from homeostat.inference import NO_INTERVAL, FTest, Interval, Judged, LinearModel, lack_of_fit, least_step
from homeostat.study.design import Design, Effect
from homeostat.study.factors import Level, level_text
from homeostat.study.results.means import MOST_MEANS, TreatmentMeans

Goal = Literal["maximize", "minimize"]

AVERAGED = -1  # in place of a level's position: the average over the levels of that factor that gave results
ABSENT = -2  # in place of the position of a nested factor's level: the treatment is without it


@dataclass(frozen=True, eq=False)
class EffectModel:
    """response = seed + the effects that the design is meant to estimate and can tell apart.

    Those are the main effects and two-factor interactions of a factorial, or what `Design.model` names for a design
    that is no regular one. Columns are sum-coded with the base at -1 (`Factor.coding`), seeds too, so that a prediction
    without block columns is the average over the seeds. Of effects that the design cannot tell apart the first has
    columns, and so has an interaction only where the treatments determine it beside all the others.

    Three questions, three answers. *Effects* average over the other factors; they are contrasts of the treatments' own
    means, so that they hold whether this model fits or not. *Comparisons* of two configurations come from this model,
    in which every trial counts, as long as it fits, and from the two treatments themselves where it does not
    (`direct`): interactions of three factors make a model of two wrong about particular combinations. *The measured
    difference* of two treatments (`measured`) never uses this model.

    The seeds are what is repeated, so every interval counts seeds: in a complete study it is the t-interval of the
    estimates from each seed alone, with seeds - 1 degrees of freedom, which holds whatever a seed does to a technique
    and however much treatments differ in spread (`LinearModel`, groups). `pure_error` has the narrower intervals that
    count runs, for comparison: they hold only where seeds do the same to all treatments. One seed is judged by those.

    Attributes:
        design: the design of the study.
        treatment, seed, y: of the trials that count, shape (n,) each.
        confidence: of every interval.
        step: the least by which two results differ, see `step_of`; 0 where they may differ by any amount.
    """

    design: Design
    treatment: np.ndarray
    seed: np.ndarray
    y: np.ndarray
    confidence: float = 0.95
    step: float = 0.0

    @cached_property
    def effects(self) -> tuple[Effect, ...]:
        """The effects that have columns."""
        apart = self.design.estimated
        blocks = [np.ones((len(self.design.treatments), 1)), *map(self.design.columns, apart)]
        owner = np.repeat(np.arange(len(blocks)), [block.shape[1] for block in blocks])
        known = LinearModel(np.hstack(blocks)).estimable(np.eye(len(owner)))
        return tuple(e for place, e in enumerate(apart, start=1) if len(e) == 1 or known[owner == place].all())

    @cached_property
    def live(self) -> dict[str, list[int]]:
        """The positions of the levels that gave a result, per factor; all of them where the factor has none that did.

        A level under which every trial diverged has no mean to enter an average; without this, one such level would
        leave no effect of any other factor to be estimated.
        """
        held = self.treatment_positions[self.treatment]
        found = {}
        for place, factor in enumerate(self.design.factors):
            found[factor.name] = sorted(set(held[:, place].tolist()) - {ABSENT}) or list(range(len(factor.levels)))
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
        """Whether factors interact in ways that this model leaves out: this model against the treatments' means."""
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
        return len(self.y) > 1 and bool((self.y == self.y[0]).all())

    def positions(self, config: Mapping[str, Level]) -> np.ndarray:
        """The positions of a configuration's levels, shape (factors,); a factor left out is averaged.

        A nested factor is absent where the configuration says that its parent is at another level.
        """
        found = []
        for factor in self.design.factors:
            parent, level = factor.within or ("", None)
            if parent in config and config[parent] != level:
                found.append(ABSENT)
            else:
                found.append(factor.levels.index(config[factor.name]) if factor.name in config else AVERAGED)
        return np.array(found)

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the model matrix for the mean over seeds.

        Args:
            positions: of the levels, shape (m, factors), integers, or AVERAGED, or ABSENT.
        Returns: shape (m, coefficients). The columns are products of functions of distinct factors, so the average of a
            row over the levels of a factor is the row of the average.
        """
        coded = {}
        for place, factor in enumerate(self.design.factors):
            averaged = factor.coding[self.live[factor.name]].mean(axis=0)
            coded[factor.name] = np.vstack([factor.coding, 0 * averaged, averaged])[positions[:, place]]
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
        return self.linear.judge(contrasts, self.y, self.confidence, self.seed, self.step)

    def judge_effects(self, contrasts: np.ndarray) -> Judged:
        """The same contrasts as sums of the treatments' own means, where seeds repeat treatments.

        The weights of the means are those of least squares with one observation per treatment. Where every treatment
        has the same seeds, the estimates are those of this model, and their intervals hold no lack of fit. Without
        repetition, or where only this model connects the treatments, it judges.
        """
        linear, weights = self._in_means(contrasts)
        return linear.judge(weights, self.y, self.confidence, self.seed, self.step)

    def pure_error(self, contrasts: np.ndarray) -> tuple[Judged, np.ndarray]:
        """The same estimates with intervals that count runs as independent, and their plain HC3 standard errors (q,).

        They are narrower than those of `judge_effects`, and too narrow where a technique acts differently from seed to
        seed: in a study of 32 treatments, where that varies twice as much as single runs, they cover two thirds.
        """
        linear, weights = self._in_means(contrasts)
        return linear.judge(weights, self.y, self.confidence, step=self.step), linear.hc3(weights, self.y)

    def by_seed(self, contrasts: np.ndarray) -> np.ndarray:
        """What each seed alone says of the contrasts: shape (seeds, q), the seeds in the order of the design.

        A seed that lacks results of some treatments says what this model makes of the others, and NaN where they do not
        determine it. Of a complete study the mean over the seeds is the estimate of `judge_effects`, and its t-interval
        the interval.
        """
        found = np.full((len(self.design.seeds), len(contrasts)), np.nan)
        for place, seed in enumerate(self.design.seeds):
            own = self.seed == seed
            cells = LinearModel(self.rows(self.treatment_positions[self.treatment[own]]))
            known = cells.estimable(contrasts)
            found[place, known] = cells.weights(contrasts[known]) @ self.y[own]
        return found

    def _in_means(self, contrasts: np.ndarray) -> tuple[LinearModel, np.ndarray]:
        """The least squares that judges effects, and the contrasts in its coefficients."""
        means = self.means
        if means is None or means.linear.df_resid < 1:
            return self.linear, contrasts
        cells = LinearModel(self.rows(self.treatment_positions[means.numbers]))
        weights = means.contrasts(cells.weights(contrasts))
        told = cells.estimable(contrasts) & means.linear.estimable(weights)
        if (self.linear.estimable(contrasts) & ~told).any():
            return self.linear, contrasts
        weights[~told] = means.row(None)
        return means.linear, weights

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
        return self.means.linear.judge(contrast, self.y, self.confidence, self.seed, self.step).at(0)

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
        """The configuration at these positions, shape (factors,), without nested factors that are absent."""
        named = zip(self.design.factors, positions, strict=True)
        return {factor.name: factor.levels[place] for factor, place in named if place != ABSENT}

    def changed(self, config: Mapping[str, Level], changes: Mapping[str, Level]) -> dict[str, Level]:
        """A configuration with other levels of some factors; nested factors come and go with their parents."""
        base = {factor.name: factor.base for factor in self.design.factors}
        return self.levels(self.positions({**base, **config, **changes}))

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
            return table, np.nan if (self.y == self.y[0]).all() else float(fitted.rsquared)

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
    y = own[metric].to_numpy(dtype=float)
    return EffectModel(design, treatment, seed, y, confidence, step_of(treatment, y, confidence))


def step_of(treatment: np.ndarray, y: np.ndarray, confidence: float) -> float:
    """The step of results that take few values, by which they may agree by chance; 0 where seeds change nothing.

    That seeds change nothing is seen where every treatment gives the same under all its seeds. One repetition may do
    so by chance, in half of the cases say; as many as leave less than 1 - `confidence` of that do not.
    """
    repeated = len(y) - len(np.unique(treatment))
    if same_under_every_seed(treatment, y) and 0.5**repeated < 1 - confidence:
        return 0.0
    return least_step(y)


def same_under_every_seed(treatment: np.ndarray, y: np.ndarray) -> bool:
    """Whether treatments were repeated, and each gave the same every time."""
    values = pd.Series(y).groupby(treatment)
    return bool((values.size() > 1).any() and (values.max() == values.min()).all())


def oriented(goal: Goal) -> int:
    """+1 where more of the response is better, -1 where less is."""
    return 1 if goal == "maximize" else -1
