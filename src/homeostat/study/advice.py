"""The recommendation: the best predicted treatment, made as simple as the data allow.

Pure functions of the fitted model; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from homeostat.inference import NO_INTERVAL, Interval, paired_interval
from homeostat.study.effects import EffectModel, Goal, fit, oriented
from homeostat.study.factors import Level, level_text
from homeostat.study.wording import Unit, counted, setting

MOST_PREDICTED = 2**16  # combinations that are looked at; beyond, only those that the design runs
FEWEST_PAIRS = 3  # with fewer common seeds, a paired interval is wider than the model's by far


@dataclass(frozen=True)
class Recommendation:
    """Which levels to use, and why.

    The gain was looked at when the treatment was chosen, so it is a little optimistic; `confirm` is the same gain on
    the test metric, which played no part in the choice.

    Attributes:
        config: the recommended level of every factor.
        treatment: its number in the design, or None where the design does not run it and the model alone speaks for it.
        kept: the names of the factors that are not at their base level.
        reasons: one text per factor, in their order: kept, dropped or at its base, with the numbers.
        gain: response of this treatment minus that of the base treatment, in the response's own sign; exactly 0 where
            it is the base treatment, NaN where the base treatment cannot be estimated.
        confirm: the same difference of the test metric, where the response is valid_X and test_X was measured and
            the recommendation is not the base treatment; otherwise None.
        confirm_metric: the name of that test metric, or None.
        confirm_method: "paired over 5 seeds" (both treatments ran under three common seeds or more), "model", or "".
    """

    config: dict[str, Level]
    treatment: int | None
    kept: tuple[str, ...]
    reasons: list[str]
    gain: Interval
    confirm: Interval | None = None
    confirm_metric: str | None = None
    confirm_method: str = ""


def recommend(
    model: EffectModel,
    frame: pd.DataFrame,
    treatments: pd.DataFrame,
    unit: Unit,
    *,
    goal: Goal,
    margin: float = 0.0,
) -> Recommendation:
    """The treatment with the best predicted response, simplified.

    Start at the best prediction among all combinations of levels. Then, again and again, put back to its base level the
    factor whose gain is least, among those whose interval, given the other levels, does not lie beyond the margin.
    A treatment with a diverged or failed trial is not recommended, nor is one that was not run and shares two levels
    with such a treatment, unless nothing else is left.

    Args:
        model: of the response.
        frame: from `outcomes.tidy`.
        treatments: from `outcomes.treatment_table`.
        unit: of the response.
        goal, margin: see `analyze`.
    """
    search = _Search(model, treatments, unit, oriented(goal), margin)
    config = search.simplest()
    kept = tuple(factor.name for factor in model.design.factors if config[factor.name] != factor.base)
    gain = model.difference(config, model.design.base) if kept else _zero_gain(model, config)
    found = Recommendation(config, model.design.find(config), kept, search.reasons(config), gain)
    return _confirmed(found, frame, model, unit.metric) if kept else found


@dataclass(eq=False)
class _Search:
    """The steps from the best prediction to the simplest treatment that is as good, and why each was taken."""

    model: EffectModel
    treatments: pd.DataFrame
    unit: Unit
    sign: int
    margin: float
    dropped: dict[str, tuple[Level, Interval]] = field(default_factory=dict)

    def simplest(self) -> dict[str, Level]:
        config = self._best()
        while True:
            steps = []
            for factor in self.model.design.factors:
                simpler = config | {factor.name: factor.base}
                if simpler == config or not self._usable(simpler):
                    continue
                interval = self.model.difference(config, simpler)
                if not self._gains(interval):
                    steps.append((self.sign * interval.estimate, factor.name, interval, simpler))
            if not steps:
                return config
            _, name, interval, simpler = min(steps, key=lambda step: step[0])
            self.dropped[name] = (config[name], interval)
            config = simpler

    def reasons(self, config: Mapping[str, Level]) -> list[str]:
        return [self._reason(factor.name, config) for factor in self.model.design.factors]

    def _best(self) -> dict[str, Level]:
        """The combination with the best prediction among those that may be recommended."""
        design = self.model.design
        positions = self._candidates
        allowed = self._allowed(positions)
        if not allowed.any():
            return design.base
        predicted = self.sign * (self.model.rows(positions) @ self.model.linear.coefficients(self.model.y))
        best = positions[int(np.argmax(np.where(allowed, predicted, -np.inf)))]
        return {factor.name: factor.levels[place] for factor, place in zip(design.factors, best, strict=True)}

    @cached_property
    def _candidates(self) -> np.ndarray:
        design = self.model.design
        if design.combinations > MOST_PREDICTED:
            return self._run
        sizes = [len(factor.levels) for factor in design.factors]
        return np.indices(sizes).reshape(len(sizes), -1).T

    @cached_property
    def _run(self) -> np.ndarray:
        """The positions of the treatments of the design, shape (treatments, factors)."""
        design = self.model.design
        return np.array([self.model.positions(design.config(number)) for number in design.treatments.index])

    @cached_property
    def _broken(self) -> np.ndarray:
        """Diverged and failed trials per treatment."""
        return (self.treatments["diverged"] + self.treatments["failed"]).to_numpy(dtype=int)

    @cached_property
    def _tolerated(self) -> float:
        """The share of broken trials that a treatment may have: 0, or where none is without, the least there is."""
        estimable = self.model.linear.estimable(self.model.rows(self._candidates))
        if (estimable & self._clean(self._candidates, 0.0)).any():
            return 0.0
        return float(self._share[self.treatments["n"] > self.treatments["diverged"]].min(initial=1.0))

    @cached_property
    def _share(self) -> np.ndarray:
        tried = (self.treatments["n"] + self.treatments["failed"]).to_numpy(dtype=float)
        return np.divide(self._broken, tried, out=np.zeros(len(tried)), where=tried > 0)

    def _allowed(self, positions: np.ndarray) -> np.ndarray:
        """Which combinations may be recommended, shape (m,), bool."""
        estimable = self.model.linear.estimable(self.model.rows(positions))
        allowed: np.ndarray = estimable & self._clean(positions, self._tolerated)
        return allowed

    def _clean(self, positions: np.ndarray, tolerated: float) -> np.ndarray:
        """Run, with no more broken trials than tolerated; or not run, sharing no two levels with one that has any."""
        clean = np.ones(len(positions), dtype=bool)
        for broken in self._run[self._broken > 0]:
            clean &= (positions == broken).sum(axis=1) < 2
        sizes = tuple(len(factor.levels) for factor in self.model.design.factors)
        finished = (self.treatments["n"] > 0).to_numpy()
        number = {code: i for i, code in enumerate(np.ravel_multi_index(self._run.T, sizes).tolist()) if finished[i]}
        for place, code in enumerate(np.ravel_multi_index(positions.T, sizes).tolist()):
            if code in number:
                clean[place] = self._share[number[code]] <= tolerated
        return clean

    def _usable(self, config: Mapping[str, Level]) -> bool:
        return bool(self._allowed(self.model.positions(config)[None])[0])

    def _gains(self, interval: Interval) -> bool:
        """Whether an interval shows a gain beyond the margin; one that is NaN does not."""
        return min(self.sign * interval.low, self.sign * interval.high) > self.margin

    def _reason(self, name: str, config: Mapping[str, Level]) -> str:
        factor = next(factor for factor in self.model.design.factors if factor.name == name)
        if config[name] != factor.base:
            return self._kept_reason(name, config, factor.base)
        now = setting(name, factor.base)
        if name in self.dropped:
            level, interval = self.dropped[name]
            over = f"{self._gain(interval)} over {level_text(factor.base)}"
            return f"{setting(name, level)} dropped: {over}, {self._why_not(interval)}"
        others = {level: self.model.difference({**config, name: level}, config) for level in factor.levels[1:]}
        known = {level: found for level, found in others.items() if not np.isnan(found.estimate)}
        if not known:
            return f"{now} stays: too few trials gave a result to judge the other levels"
        best = max(known, key=lambda level: self.sign * known[level].estimate)
        return f"{now} stays: {level_text(best)} would give {self._gain(known[best])}"

    def _kept_reason(self, name: str, config: Mapping[str, Level], base: Level) -> str:
        now = setting(name, config[name])
        simpler = {**config, name: base}
        number = self.model.design.find(simpler)
        if number is not None and self._broken[number]:
            row: Any = self.treatments.loc[number]
            fate = f"{counted(int(row['failed']), 'trial')} failed"
            if row["diverged"]:
                fate = f"{row['diverged']} of {counted(int(row['n']), 'trial')} diverged"
            return f"{now} kept: with {level_text(base)} instead, {fate}"
        interval = self.model.difference(config, simpler)
        if np.isnan(interval.estimate) or not self._usable(simpler):
            return f"{now} kept: without it, the recipe is too close to treatments that diverged or failed"
        return f"{now} kept: {self._gain(interval)} over {level_text(base)}"

    def _gain(self, interval: Interval) -> str:
        return self.unit.gain(interval.estimate, interval.low, interval.high)

    def _why_not(self, interval: Interval) -> str:
        if np.isnan(interval.low):
            return "too few trials for an interval"
        if self.margin > 0:
            return f"no clear gain beyond the margin of {self.unit.amount(self.margin, np.nan, np.nan)}"
        return "no clear gain"


def _zero_gain(model: EffectModel, config: Mapping[str, Level]) -> Interval:
    """The gain of the base treatment over itself: nothing, if it could be estimated at all."""
    known = model.linear.estimable(model.row(config)[None])[0]
    return Interval(0.0, 0.0, 0.0, 0.0) if known else NO_INTERVAL


def _confirmed(found: Recommendation, frame: pd.DataFrame, model: EffectModel, response: str) -> Recommendation:
    """The recommendation with its gain on the test metric, from which no choice is made."""
    metric = response.replace("valid_", "test_", 1)
    if not response.startswith("valid_") or metric not in frame:
        return found
    base = model.design.find(model.design.base)
    chosen, other = (_by_seed(frame, number, metric) for number in (found.treatment, base))
    common = [seed for seed in chosen if seed in other]
    if len(common) >= FEWEST_PAIRS:
        pairs = [chosen[seed] for seed in common], [other[seed] for seed in common]
        interval, method = paired_interval(*pairs, model.confidence), f"paired over {len(common)} seeds"
    else:
        interval = fit(frame, model.design, metric, model.confidence).difference(found.config, model.design.base)
        method = "model"
    return replace(found, confirm=interval, confirm_metric=metric, confirm_method=method)


def _by_seed(frame: pd.DataFrame, treatment: int | None, metric: str) -> dict[int, float]:
    """The metric of one treatment by seed, over the trials that count."""
    own = frame[(frame["treatment"] == treatment) & (frame["outcome"] == "ok")]
    pairs = zip(own["seed"].tolist(), own[metric].tolist(), strict=True)
    return {seed: value for seed, value in pairs if np.isfinite(value)}
