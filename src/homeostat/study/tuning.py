"""Nuisance factors: every treatment at its own best level of what is not in question, such as the learning rate.

What is compared are the *scientific* factors. A *nuisance* factor must be tuned to compare them fairly: with one
learning rate for all, the treatment wins that it happens to suit. Everything else is *fixed*, and the conclusion holds
for that. So every treatment is run at every level of the nuisance factors under every seed, is given the level at which
its validation metric is best in the mean over seeds, and is judged by its test metric there: the choice saw no test
data. It did see the runs, though, and a run that was lucky on validation data is a little lucky on test data too; for
how much, each seed is also judged at the level that the other seeds choose. Pure functions; nothing here is random but
the order of trials, a pure function of the design.

Source: Godbole, Dahl, Gilmer, Shallue & Nado 2023, Deep Learning Tuning Playbook (scientific, nuisance and fixed
    hyperparameters).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from homeostat import seeds as streams
from homeostat.errors import invalid
from homeostat.study.design import Design
from homeostat.study.factors import Factor, Level, as_factors, level_text
from homeostat.study.results.effect_table import effect_table
from homeostat.study.results.effects import Goal, fit, oriented
from homeostat.study.results.outcomes import metric_names, tidy
from homeostat.study.results.wording import counted, listed, metric_words, settings
from homeostat.study.state.ledger import Row

Setting = dict[str, Level]

TUNED, LEFT_OUT = "tuned", "chosen by other seeds"  # names of columns of `Tuning.dependence`
_MOST = 5  # effects that are named in a warning
_LEAST = 3  # seeds with which each can be judged at the level that the others choose


@dataclass(frozen=True, eq=False)
class Grid:
    """The levels of the nuisance factors, crossed; nested ones are refused.

    Attributes:
        factors: the nuisance factors.
        settings: every combination of their levels, the first factor varying slowest.
    """

    factors: tuple[Factor, ...]

    @property
    def settings(self) -> list[Setting]:
        names = [factor.name for factor in self.factors]
        levels = itertools.product(*(factor.levels for factor in self.factors))
        return [dict(zip(names, row, strict=True)) for row in levels]

    def rows(self, design: Design) -> list[Row]:
        """All trials as (treatment, seed, config), seed by seed, those of each seed in random order."""
        found: list[Row] = []
        every = [(number, setting) for number in design.treatments.index for setting in self.settings]
        for seed in design.seeds:
            for place in streams.numpy_generator(0, "run order, tuned", seed).permutation(len(every)):
                number, setting = every[place]
                found.append((int(number), seed, {**design.config(number), **setting}))
        return found

    def places(self, trials: pd.DataFrame) -> np.ndarray:
        """Which of `settings` each trial has, shape (trials,)."""
        number = {tuple(setting.values()): place for place, setting in enumerate(self.settings)}
        levels = zip(*(trials[factor.name] for factor in self.factors), strict=True)
        return np.array([number[row] for row in levels], dtype=int)

    def describe(self, design: Design) -> str:
        """How many trials the study has with it."""
        held = " × ".join(f"{len(factor.levels)} of {factor.name}" for factor in self.factors)
        total = counted(design.trials * len(self.settings), "trial")
        return f"Each at {counted(len(self.settings), 'level')} ({held}), to be judged at its best: {total}."

    def to_dict(self) -> dict[str, list[Level]]:
        """As plain data that JSON holds exactly."""
        return {factor.name: list(factor.levels) for factor in self.factors}


@dataclass(frozen=True, eq=False)
class Tuning:
    """What tuning found.

    Attributes:
        metric: by which levels were chosen.
        judged: the metric by which treatments are judged: the test metric that belongs to it, or itself.
        trials: one row per treatment and seed, at the level of the treatment; as `analyze` takes them.
        chosen: index treatment; the nuisance factors; `metric` (mean over seeds) and n (seeds with a result).
        dependence: one row per effect and way to set the nuisance factors ("tuned", "chosen by other seeds", "lr=0.1",
            ...): label, way, estimate, low, high, verdict.
        usual: the setting for a treatment that was not run: the best in the mean over all treatments.
        warnings: what limits the conclusions.
    """

    metric: str
    judged: str
    trials: pd.DataFrame
    chosen: pd.DataFrame
    dependence: pd.DataFrame
    usual: Setting
    warnings: list[str]

    def setting(self, treatment: int | None) -> Setting:
        """The nuisance levels of a treatment; those that suit most of them for one that was not run."""
        if treatment is None:
            return dict(self.usual)
        held: Any = self.chosen.loc[treatment]
        return {name: held[name] for name in self.usual}


def as_grid(tune: Mapping[str, Sequence[Level]] | Iterable[Factor | str] | None, design: Design) -> Grid | None:
    """The nuisance factors from a mapping or texts such as "lr=0.01,0.1"; None where there are none.

    Raises: InvalidValue for a nested one, or one that is a factor of the design too; what `as_factors` raises.
    """
    if tune is None:
        return None
    found = as_factors(tune)
    for factor in found:
        if factor.within is not None:
            raise invalid("Study", f"tune {factor.name!r}", "not be nested", str(factor))
        if factor.name in {other.name for other in design.factors}:
            cure = "A factor is either compared or tuned."
            raise invalid("Study", f"tune {factor.name!r}", "be no factor of the study", factor.name, cure)
    return Grid(found)


def tuned(
    trials: pd.DataFrame, design: Design, grid: Grid, *, metric: str, goal: Goal = "maximize", leave_out: bool = False
) -> pd.DataFrame:
    """The trials of each treatment at its best nuisance level: one row per treatment and seed, without those columns.

    Best is the level at which fewest trials were lost (not finite, diverged, failed, or not run), and of these the one
    whose mean of `metric` over the seeds is best; of ties the first.

    Args:
        trials: one row per treatment, seed and setting, with a column per nuisance factor.
        leave_out: choose the level for each seed by the other seeds alone.
    """
    places = grid.places(trials)
    values = oriented(goal) * _values(trials, design, grid, metric)
    if leave_out:
        best = np.column_stack([_best(np.delete(values, seed, axis=2)) for seed in range(values.shape[2])])
    else:
        best = np.repeat(_best(values)[:, None], values.shape[2], axis=1)
    number = {seed: place for place, seed in enumerate(design.seeds)}
    own = best[trials["treatment"].to_numpy(), [number[seed] for seed in trials["seed"]]]
    names = [factor.name for factor in grid.factors]
    return trials[places == own].drop(columns=names).reset_index(drop=True)


def tune(
    trials: pd.DataFrame, design: Design, grid: Grid, *, metric: str, goal: Goal = "maximize", margin: float = 0.0
) -> Tuning:
    """Choose a nuisance level for every treatment, and see how much the effects depend on that.

    Args:
        trials: one row per treatment, seed and setting, with a column per nuisance factor and per metric.
        metric: by which levels are chosen; where it is valid_X and there is a test_X, that is what is judged.
        goal, margin: see `analyze`.
    """
    every, places = grid.settings, grid.places(trials)
    values = _values(trials, design, grid, metric)
    best = _best(oriented(goal) * values)
    chosen = pd.DataFrame([every[place] for place in best], index=design.treatments.index, dtype=object)
    own = values[np.arange(len(best)), best]
    chosen[metric], chosen["n"] = _means(own), np.isfinite(own).sum(axis=1)
    judged = judged_by(metric, trials)
    ways = {TUNED: tuned(trials, design, grid, metric=metric, goal=goal)}
    if len(design.seeds) >= _LEAST:
        ways[LEFT_OUT] = tuned(trials, design, grid, metric=metric, goal=goal, leave_out=True)
    for place, setting in enumerate(every):
        ways[settings(setting)] = trials[places == place].drop(columns=list(setting))
    found = [_effects(way, design, judged, goal, margin).assign(way=name) for name, way in ways.items()]
    dependence = pd.concat(found, ignore_index=True)[["label", "way", "estimate", "low", "high", "verdict"]]
    pooled = values.transpose(1, 0, 2).reshape(1, len(every), -1)
    usual = every[int(_best(oriented(goal) * pooled)[0])]
    said = [*_judging(grid, metric, judged), *_edges(grid, chosen), *_dependent(dependence)]
    return Tuning(metric, judged, ways[TUNED], chosen, dependence, usual, said)


def judged_by(metric: str, trials: pd.DataFrame) -> str:
    """The metric that judges treatments whose levels `metric` chose: the test metric that belongs to it, or itself."""
    test = f"test_{metric.removeprefix('valid_')}"
    return test if metric.startswith("valid_") and test in trials else metric


def _values(trials: pd.DataFrame, design: Design, grid: Grid, metric: str) -> np.ndarray:
    """The metric of every treatment, setting and seed, in that order; NaN where the trial is lost or was not run."""
    places = grid.places(trials)
    plain = trials.drop(columns=[factor.name for factor in grid.factors])
    number = {seed: place for place, seed in enumerate(design.seeds)}
    found = np.full((len(design.treatments), len(grid.settings), len(design.seeds)), np.nan)
    for place in range(len(grid.settings)):
        frame = tidy(plain[places == place], design, metric, metric_names(plain, design))
        if metric in frame:
            own = frame[frame["outcome"] == "ok"]
            seeds = [number[seed] for seed in own["seed"]]
            found[own["treatment"].to_numpy(dtype=int), place, seeds] = own[metric].to_numpy(dtype=float)
    return found


def _best(values: np.ndarray) -> np.ndarray:
    """The setting with the fewest values lost, then the greatest mean, then the first, shape (treatments,).

    Args:
        values: shape (treatments, settings, seeds), more being better.
    """
    lost, means = np.isnan(values).sum(axis=2), _means(values)
    fewest = np.where(lost == lost.min(axis=1, keepdims=True), np.nan_to_num(means, nan=-np.inf), -np.inf)
    found: np.ndarray = np.argmax(fewest, axis=1)
    return found


def _means(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where all is."""
    count = np.isfinite(values).sum(axis=-1)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = np.nansum(values, axis=-1) / count
    return found


def _effects(trials: pd.DataFrame, design: Design, metric: str, goal: Goal, margin: float) -> pd.DataFrame:
    frame = tidy(trials, design, metric, metric_names(trials, design))
    return effect_table(fit(frame, design, metric), goal, margin)


def _judging(grid: Grid, metric: str, judged: str) -> list[str]:
    names = listed([factor.name for factor in grid.factors])
    if judged == metric:
        return [
            f"Each treatment is judged at the {names} that suits it best by {metric_words(metric)}, and by the same "
            "metric: its mean is a little optimistic, the more so the more levels there are. An objective that returns "
            "valid_X and test_X is judged by test_X."
        ]
    return [
        f"Each treatment has the {names} that suits it best by {metric_words(metric)}, and is judged by "
        f"{metric_words(judged)}. That had no part in choosing {names}; it had one in which treatment is recommended, "
        "whose gain is therefore a little optimistic."
    ]


def _edges(grid: Grid, chosen: pd.DataFrame) -> list[str]:
    """Levels at an end of what was tried: the best may lie beyond."""
    found = []
    for factor in grid.factors:
        numbers = [level for level in factor.levels if isinstance(level, int | float) and not isinstance(level, bool)]
        if len(numbers) < len(factor.levels) or len(numbers) < _LEAST:
            continue
        for end, word in ((min(numbers), "smallest"), (max(numbers), "largest")):
            count = sum(level == end for level in chosen[factor.name])
            if count:
                does = "does" if count == 1 else "do"
                found.append(
                    f"{count} of {counted(len(chosen), 'treatment')} {does} best at the {word} {factor.name} that was "
                    f"tried, {level_text(end)}: there may be a better one beyond."
                )
    return found


def _dependent(dependence: pd.DataFrame) -> list[str]:
    """The effects that a study with fixed levels would have judged otherwise."""
    words: dict[str, dict[str, str]] = {}
    for label, way, verdict in zip(dependence["label"], dependence["way"], dependence["verdict"], strict=True):
        words.setdefault(label, {})[way] = verdict
    told = []
    for label, verdicts in words.items():
        fixed = {way: verdict for way, verdict in verdicts.items() if way not in (TUNED, LEFT_OUT)}
        others = [f"{way}: {verdict}" for way, verdict in fixed.items() if verdict != verdicts[TUNED]]
        if others:
            told.append(f"{label} (tuned: {verdicts[TUNED]}; {', '.join(others)})")
    if not told:
        return []
    more = [f"{len(told) - _MOST} more"] if len(told) > _MOST else []
    return [f"At fixed levels the conclusion would have been another for {listed([*told[:_MOST], *more])}."]
