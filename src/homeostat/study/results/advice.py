"""The recommendation: the best predicted treatment, made as simple as the data allow.

Pure functions of the fitted model; nothing here is random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from homeostat.inference import NO_INTERVAL, Interval, holm, p_beyond
from homeostat.study.factors import Factor, Level, level_text
from homeostat.study.results.best import simultaneous_gain
from homeostat.study.results.effects import EffectModel, Goal, fit, oriented
from homeostat.study.results.outcomes import divergence_by_level
from homeostat.study.results.wording import Unit, counted, listed, setting

MOST_PREDICTED = 2**16  # combinations that are looked at; beyond, only those that the design runs


@dataclass(frozen=True)
class Recommendation:
    """Which levels to use, and why.

    The gain is the one that a reader finds in the table of treatments: the recommended treatment's runs against those
    of the base treatment, seed by seed, whatever the model says. It was looked at when the treatment was chosen, so it
    is a little optimistic, and its interval covers 93 to 99 % (docs/statistics.md); `gain_of_any` is the same with an
    interval that holds whichever treatment was picked. `predicted` is what all trials together say of it, by the model
    of two-factor interactions, where that model fits: more precise, and as good as that model. `confirm` is the same
    gain on the test metric, which played no part in the choice; the runs are the same, though, so what was luck in them
    is luck there too.

    Attributes:
        config: the recommended level of every factor.
        treatment: its number in the design, or None where the design does not run it and the model alone speaks for it.
        kept: the names of the factors that are not at their base level.
        reasons: one text per factor, in their order: kept, dropped or at its base, with the numbers.
        gain: response of this treatment minus that of the base treatment, in the response's own sign; exactly 0 where
            it is the base treatment, NaN where one of the two gave no result.
        gain_method: "direct" (measured, both ran), "model" (one of the two was not run, or runs were not repeated), "".
        gain_of_any: `best.simultaneous_gain` of a recommendation that was run; None for the base treatment.
        predicted: the gain by the model; None where the model does not fit or is `gain` already.
        confirm: the same difference of the test metric, where the response is valid_X and test_X was measured and
            the recommendation is not the base treatment; otherwise None.
        confirm_metric: the name of that test metric, or None.
        confirm_method: as `gain_method`.
    """

    config: dict[str, Level]
    treatment: int | None
    kept: tuple[str, ...]
    reasons: list[str]
    gain: Interval
    gain_method: str = ""
    gain_of_any: Interval | None = None
    predicted: Interval | None = None
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
    """The treatment with the best response, simplified.

    Start at the best of all combinations of levels, as far as the model fits, and where it does not at the best of
    those that were run. Then, again and again, put back to its base level the factor whose gain is least, among those
    that bring no clear gain given the other levels; where nothing is left to put back, take up a level that does bring
    one. Clear is a gain beyond the margin by Holm's adjustment over as many comparisons as there are levels other than
    base levels: whoever looks at five techniques finds one with an interval beyond zero by chance too often.
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
    kept = tuple(factor.name for factor in model.design.factors if config.get(factor.name, factor.base) != factor.base)
    number, reasons = model.design.find(config), search.reasons(config)
    if not kept:
        return Recommendation(config, number, kept, reasons, _zero_gain(model, config))
    gain, method = _gain_over_base(model, config, treatments)
    predicted = model.modelled(config, model.design.base) if method == "direct" and not model.direct else None
    of_any = simultaneous_gain(model, config) if method == "direct" else None
    found = Recommendation(config, number, kept, reasons, gain, method, of_any, predicted)
    return _confirmed(found, frame, model, unit.metric, treatments)


@dataclass(eq=False)
class _Search:
    """The steps from the best prediction to the simplest treatment that is as good, and why each was taken."""

    model: EffectModel
    treatments: pd.DataFrame
    unit: Unit
    sign: int
    margin: float
    dropped: dict[str, tuple[dict[str, Level], Interval]] = field(default_factory=dict)

    def simplest(self) -> dict[str, Level]:
        config, seen = self._best(), []
        while config not in seen:
            seen.append(config)
            while (simpler := self._simpler(config)) is not None:
                config = simpler
            config = self._better(config) or config
        return config

    def reasons(self, config: Mapping[str, Level]) -> list[str]:
        return [self._reason(factor.name, config) for factor in self.model.design.factors]

    @cached_property
    def family(self) -> int:
        """How many comparisons are judged together: one for each level that is not a base level."""
        return sum(len(factor.levels) - 1 for factor in self.model.design.factors)

    def _simpler(self, config: dict[str, Level]) -> dict[str, Level] | None:
        """The configuration with one factor less that loses least, or None where each of them clearly loses."""
        options = [self.model.changed(config, {name: self._bases[name]}) for name in self._on(config)]
        options = [option for option in options if self._usable(option)] or self._much_simpler(config)
        gains = [self.model.difference(config, option) for option in options]
        doubtful = [place for place, clear in enumerate(self._clear(gains)) if not clear]
        if not doubtful:
            return None
        least = min(doubtful, key=lambda place: _size(self.sign * gains[place].estimate))
        for name in self._on(config):
            if options[least].get(name) != config[name]:
                self.dropped[name] = (config, gains[least])
        return options[least]

    def _much_simpler(self, config: Mapping[str, Level]) -> list[dict[str, Level]]:
        """The treatments with several factors less, for fractions and where those with one less diverged."""
        own, run = self.model.positions(config), self.model.treatment_positions
        less = ((run == own) | ((own > 0) & (run <= 0))).all(axis=1) & (run != own).any(axis=1)
        found = [self.model.levels(row) for row in run[less]]
        return [other for other in found if self._usable(other)]

    def _better(self, config: dict[str, Level]) -> dict[str, Level] | None:
        """The configuration with one level changed that gains most, or None where none clearly gains."""
        options = [
            self.model.changed(config, {**_opening(factor, config), factor.name: level})
            for factor in self.model.design.factors
            for level in factor.levels
            if level not in (config.get(factor.name, factor.base), factor.base)
        ]
        options = [option for option in options if self._usable(option)]
        gains = [self.model.difference(option, config) for option in options]
        sure = [place for place, clear in enumerate(self._clear(gains)) if clear]
        return options[max(sure, key=lambda place: self.sign * gains[place].estimate)] if sure else None

    def _on(self, config: Mapping[str, Level]) -> list[str]:
        return [name for name, base in self._bases.items() if config.get(name, base) != base]

    @cached_property
    def _bases(self) -> dict[str, Level]:
        """The base level of every factor, nested ones too."""
        return {factor.name: factor.base for factor in self.model.design.factors}

    def _clear(self, gains: Sequence[Interval]) -> list[bool]:
        """Which gains are clear, judged together; comparisons that are not made count as showing nothing."""
        confidence = self.model.confidence
        p = [float(p_beyond(gain, self.margin, confidence)) if self.sign * gain.estimate > 0 else 1.0 for gain in gains]
        family = np.array([*p, *[1.0] * (self.family - len(p))])
        return [bool(clear) for clear in (holm(np.where(np.isnan(family), 1.0, family)) < 1 - confidence)[: len(p)]]

    def _best(self) -> dict[str, Level]:
        """The combination with the best response among those that may be recommended."""
        positions = self._candidates
        allowed = self._allowed(positions)
        if not allowed.any():
            return self.model.design.base
        predicted = np.where(allowed, self.sign * self.model.predicted(positions), -np.inf)
        rounding = 1e-9 * np.abs(self.model.y).max()
        as_good = np.flatnonzero(predicted >= predicted.max() - rounding)
        simplest = as_good[np.argmin((positions[as_good] > 0).sum(axis=1))]  # of those that tie, the nearest to base
        return self.model.levels(positions[int(simplest)])

    @cached_property
    def _candidates(self) -> np.ndarray:
        design = self.model.design
        if self.model.direct or design.combinations > MOST_PREDICTED:
            return self.model.treatment_positions
        sizes = [len(factor.levels) for factor in design.factors]
        every = np.indices(sizes).reshape(len(sizes), -1).T
        if all(factor.within is None for factor in design.factors):
            return every
        present = [self.model.positions(self.model.levels(row)) for row in every]
        return np.unique(present, axis=0)

    @cached_property
    def _broken(self) -> np.ndarray:
        """Diverged and failed trials per treatment."""
        return (self.treatments["diverged"] + self.treatments["failed"]).to_numpy(dtype=int)

    @cached_property
    def _tolerated(self) -> float:
        """The share of broken trials that a treatment may have: 0, or where none is without, the least there is."""
        known = np.isfinite(self.model.predicted(self._candidates))
        if (known & self._clean(self._candidates, 0.0)).any():
            return 0.0
        return float(self._share[self.treatments["n"] > self.treatments["diverged"]].min(initial=1.0))

    @cached_property
    def _share(self) -> np.ndarray:
        tried = (self.treatments["n"] + self.treatments["failed"]).to_numpy(dtype=float)
        return np.divide(self._broken, tried, out=np.zeros(len(tried)), where=tried > 0)

    def _allowed(self, positions: np.ndarray) -> np.ndarray:
        """Which combinations may be recommended, shape (m,), bool."""
        known = np.isfinite(self.model.predicted(positions))
        allowed: np.ndarray = known & self._clean(positions, self._tolerated)
        return allowed

    def _clean(self, positions: np.ndarray, tolerated: float) -> np.ndarray:
        """Run, with no more broken trials than tolerated; or not run, sharing no two levels with one that has any."""
        run = self.model.treatment_positions
        clean = np.ones(len(positions), dtype=bool)
        for broken in run[self._broken > 0]:
            clean &= ((positions == broken) & (broken >= 0)).sum(axis=1) < 2
        finished = (self.treatments["n"] > 0).to_numpy()
        number = {tuple(row): i for i, row in enumerate(run.tolist()) if finished[i]}
        for place, row in enumerate(positions.tolist()):
            if tuple(row) in number:
                clean[place] = self._share[number[tuple(row)]] <= tolerated
        return clean

    def _usable(self, config: Mapping[str, Level]) -> bool:
        return bool(self._allowed(self.model.positions(config)[None])[0])

    def _reason(self, name: str, config: Mapping[str, Level]) -> str:
        factor = next(factor for factor in self.model.design.factors if factor.name == name)
        if name not in config and factor.within is not None:
            return f"{name} is not there: it belongs to {setting(*factor.within)}"
        if config[name] != factor.base:
            return self._kept_reason(name, config, factor.base)
        now = setting(name, factor.base)
        gone = self._gone(name)
        if self.model.constant:
            return f"{now} stays: {gone.removeprefix('; ') or 'every trial gives the same response'}"
        if name in self.dropped:
            before, interval = self.dropped[name]
            company = [other for other in self.dropped if other != name and self.dropped[other][0] is before]
            alone = f" over {level_text(factor.base)}" if not company else f" together with {listed(company)}"
            return (
                f"{setting(name, before[name])} dropped: {self._gain(interval)}{alone}, {self._why_not(interval)}{gone}"
            )
        changed = {level: self.model.changed(config, {name: level}) for level in factor.levels[1:]}
        others = {level: self.model.difference(other, config) for level, other in changed.items()}
        known = {level: found for level, found in others.items() if not np.isnan(found.estimate)}
        if not known and self.model.direct and self.model.design.kind == "fractional":
            return f"{now} stays: the same with another level was not run"
        if not known and gone:
            return f"{now} stays: {gone.removeprefix('; ')}"
        if not known:
            return f"{now} stays: too few trials gave a result to judge the other levels"
        best = max(known, key=lambda level: self.sign * known[level].estimate)
        doubt = f", {self._why_not(known[best])}" if self.sign * known[best].estimate > 0 else ""
        return f"{now} stays: {level_text(best)} would give {self._gain(known[best])}{doubt}{gone}"

    def _gone(self, name: str) -> str:
        """The levels other than the base at which every finished trial diverged, as a clause; "" without any."""
        table = divergence_by_level(self.treatments, name)
        told = [
            f"{level_text(level)} diverged in {diverged} of {counted(of, 'trial')}"
            for level, (diverged, of) in table.items()
            if diverged == of > 0 and level != self.model.design.base[name]
        ]
        return "".join(f"; {text}" for text in told)

    def _kept_reason(self, name: str, config: Mapping[str, Level], base: Level) -> str:
        now = setting(name, config[name])
        simpler = self.model.changed(config, {name: base})
        number = self.model.design.find(simpler)
        if number is not None and self._broken[number]:
            row: Any = self.treatments.loc[number]
            fate = f"{counted(int(row['failed']), 'trial')} failed"
            if row["diverged"]:
                fate = f"{row['diverged']} of {counted(int(row['n']), 'trial')} diverged"
            return f"{now} kept: with {level_text(base)} instead, {fate}"
        interval = self.model.difference(config, simpler)
        if self.model.direct and number is None:
            return f"{now} kept: the same without it was not run, and what was run with less is clearly worse"
        if np.isnan(interval.estimate) or not self._usable(simpler):
            return f"{now} kept: without it, the treatment is too close to treatments that diverged or failed"
        return f"{now} kept: {self._gain(interval)} over {level_text(base)}"

    def _gain(self, interval: Interval) -> str:
        text = self.unit.gain(interval.estimate, interval.low, interval.high)
        return text if self.sign > 0 else f"{text} (lower is better)"

    def _why_not(self, interval: Interval) -> str:
        """Why a gain is not enough, in words that do not contradict the interval beside them."""
        if np.isnan(interval.low):
            return "too few trials for an interval"
        over = min(self.sign * interval.low, self.sign * interval.high)
        if over > self.margin:
            return f"not clear among {self.family} comparisons"
        if self.margin > 0:
            return f"no clear gain beyond the margin of {self.unit.amount(self.margin, np.nan, np.nan)}"
        return "no clear gain"


def _opening(factor: Factor, config: Mapping[str, Level]) -> dict[str, Level]:
    """The level of another factor that a nested one needs, where the configuration has not got it."""
    return {} if factor.name in config or factor.within is None else dict([factor.within])


def _size(gain: float) -> float:
    """A gain to be compared with others; one that is not known is the least of all."""
    return -np.inf if np.isnan(gain) else gain


def _zero_gain(model: EffectModel, config: Mapping[str, Level]) -> Interval:
    """The gain of the base treatment over itself: nothing, if it could be estimated at all."""
    known = np.isfinite(model.predicted(model.positions(config)[None]))[0]
    return Interval(0.0, 0.0, 0.0, 0.0) if known else NO_INTERVAL


def _gain_over_base(model: EffectModel, config: Mapping[str, Level], treatments: pd.DataFrame) -> tuple[Interval, str]:
    """What was measured; the model's word only where a treatment was not run, or no run repeated for an interval."""
    base = model.design.base
    measured = model.measured(config, base)
    if not np.isnan(measured.low) or model.direct:
        return measured, "direct"
    for number in (model.design.find(config), model.design.find(base)):
        if number is not None and np.isnan(measured.estimate):
            row: Any = treatments.loc[number]
            if 0 < row["diverged"] == row["n"]:  # it ran and has no response: no model can give it one
                return NO_INTERVAL, ""
    return model.modelled(config, base), "model"


def _confirmed(
    found: Recommendation, frame: pd.DataFrame, model: EffectModel, response: str, treatments: pd.DataFrame
) -> Recommendation:
    """The recommendation with its gain on the test metric, from which no choice is made."""
    metric = response.replace("valid_", "test_", 1)
    if not response.startswith("valid_") or metric not in frame:
        return found
    test = fit(frame, model.design, metric, model.confidence)
    interval, method = _gain_over_base(test, found.config, treatments)
    return replace(found, confirm=interval, confirm_metric=metric, confirm_method=method)
