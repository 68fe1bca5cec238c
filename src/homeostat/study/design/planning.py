"""What a study will see and cost, before anything runs: power, seeds, time. Nothing here is random.

An effect is judged as the analysis judges it: each seed gives one estimate of it, a sum of the treatments with the
weights of least squares, and their mean has a t-interval with seeds - 1 degrees of freedom. A study of one seed is
judged by the residuals of its model instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from homeostat.errors import invalid, invalid_type
from homeostat.inference import LinearModel
from homeostat.page.text import duration, roughly
from homeostat.study.design.design import Design
from homeostat.study.design.model import Effect, effect_name
from homeostat.study.factors import Factor, level_text
from homeostat.study.results.wording import counted

MOST_SEEDS = 1000  # that a plan looks for
POWER, CONFIDENCE = 0.8, 0.95


@dataclass(frozen=True, eq=False)
class Plan:
    """What a design will see and cost.

    Attributes:
        design: what is planned.
        delta: the effect that is to be seen, in the response's unit; None: not said.
        spread: the standard deviation of runs of one treatment under different seeds, beyond what a seed does to all
            treatments; None: not known.
        seconds: of one trial; None: not known.
        workers: how many trials run at once.
        power: the probability with which the effect is to be seen.
        frame: one row per effect that is estimated. Columns: label, kind ("main" or "interaction"); variance, that of
            the estimate from one seed, in units of spread²; with a spread, detectable: the effect that the design's
            seeds see with that power; with a delta too, power: that of seeing it with the design's seeds; seeds: how
            many it takes; seeds_family: how many it takes where it must stand among all rows (Bonferroni's bound on
            Holm's adjustment). NaN where there is no answer or it takes more than 1,000.
    """

    design: Design
    delta: float | None
    spread: float | None
    seconds: float | None
    workers: int
    power: float
    frame: pd.DataFrame

    @property
    def time(self) -> float:
        """The seconds that all trials take together on these workers; NaN where those of a trial are not known."""
        return math.nan if self.seconds is None else -(-self.design.trials // self.workers) * self.seconds

    def __str__(self) -> str:
        return "\n".join([self.design.describe(), *self._sees(), self._takes()])

    def _sees(self) -> list[str]:
        if self.spread is None:
            cure = "give it, or a pilot study with a few treatments and two or more seeds"
            return [f"How many seeds are needed is not known without the spread between runs of a treatment: {cure}."]
        seeds = counted(len(self.design.seeds), "seed")
        chance = f"with probability {self.power:g}"
        found = self._detectable()
        lines = [f"With {seeds} and a spread of {self.spread:.3g}, seen {chance}: {found}."]
        if self.delta is not None:
            lines.append(f"To see {self.delta:.3g} {chance}: {self._needed('seeds')}.")
            family = f"among all {counted(len(self.frame), 'effect')} together"
            lines.append(f"So that it stands {family}, after Holm's adjustment: {self._needed('seeds_family')}.")
        return lines

    def _takes(self) -> str:
        if self.seconds is None:
            return "How long it takes is not known without the time of a trial: give it, or a pilot study."
        workers = counted(self.workers, "worker")
        each = f"{counted(self.design.trials, 'trial')} of {duration(self.seconds)} each on {workers}"
        return f"It takes about {roughly(self.time)}: {each}."

    def _detectable(self) -> str:
        found = self._largest("detectable", "every effect", "every main effect", "every interaction")
        return ", ".join(f"{what} of {size:.3g}" if np.isfinite(size) else f"{what}: none" for what, size in found)

    def _needed(self, column: str) -> str:
        parts = []
        for what, number in self._largest(column, "every effect", "every main effect", "every interaction"):
            trials = len(self.design.treatments) * number
            count = (
                f"{int(number)} seeds ({int(trials):,} trials)" if np.isfinite(number) else f"more than {MOST_SEEDS}"
            )
            parts.append(f"{count} for {what}")
        return ", ".join(parts)

    def _largest(self, column: str, both: str, main: str, interaction: str) -> list[tuple[str, float]]:
        """The largest number of a column among main effects and among interactions; once where they agree."""
        groups = self.frame.groupby("kind", sort=False)[column]
        found = [(main if kind == "main" else interaction, float(own.max(skipna=False))) for kind, own in groups]
        same = len(found) > 1 and np.isclose(found[0][1], found[1][1], equal_nan=True)
        return [(both, found[0][1])] if same else found


def plan(
    design: Design,
    *,
    delta: float | None = None,
    spread: float | None = None,
    seconds: float | None = None,
    workers: int = 1,
    power: float = POWER,
    confidence: float = CONFIDENCE,
) -> Plan:
    """What a design will see with its seeds, how many it takes to see an effect, and how long that takes.

    Args:
        design: what is planned.
        delta: the effect that is to be seen, in the response's unit: a difference of means for a main effect, half a
            difference of differences for an interaction.
        spread: the standard deviation of runs of one treatment under different seeds, beyond what a seed does to all
            treatments; from a pilot, see `pilot.read_pilot`.
        seconds: of one trial.
        workers: how many trials run at once.
        power: the probability with which delta is to be seen, in (0, 1).
        confidence: of the intervals that must leave out zero, in (0, 1).
    Raises: InvalidValue for numbers that are not positive, or a power or confidence outside (0, 1).
    Source: the power of the t-test by the noncentral t distribution; Lenth 2001, Some practical guidelines for
        effective sample size determination.
    Example:
        >>> from homeostat.study.design import full_factorial
        >>> found = plan(full_factorial({"norm": ["none", "batch"], "dropout": [0, 0.5]}), delta=0.01, spread=0.008)
        >>> found.frame[["label", "seeds"]].to_numpy().tolist()
        [['norm', 8.0], ['dropout', 8.0], ['norm × dropout', 8.0]]
    """
    for name, value in (("delta", delta), ("spread", spread), ("seconds", seconds), ("workers", workers)):
        _check_positive(name, value)
    for name, share in (("power", power), ("confidence", confidence)):
        if not 0 < share < 1:
            raise invalid("plan", name, "lie in (0, 1)", share)
    frame = _variances(design)
    if spread is not None:
        alpha, count = 1 - confidence, len(design.seeds)
        scale = spread * np.sqrt(frame["variance"].to_numpy())
        single = len(design.treatments) - _coefficients(design) if count == 1 else count - 1
        frame["detectable"] = scale * np.sqrt(1 / count) * noncentrality(np.array(single), alpha, power)
        if delta is not None:
            frame["power"] = power_of_t(delta / scale * np.sqrt(count), np.array(single), alpha)
            frame["seeds"] = _seeds_needed(delta / scale, alpha, power)
            frame["seeds_family"] = _seeds_needed(delta / scale, alpha / max(1, len(frame)), power)
    return Plan(design, delta, spread, seconds, workers, power, frame)


def power_of_t(noncentral: np.ndarray, df: np.ndarray, alpha: float) -> np.ndarray:
    """The probability that |t| exceeds its two-sided critical value, NaN where df is not positive.

    Args:
        noncentral: the effect in standard errors, >= 0.
        df, alpha: of the test.
    Example:
        >>> float(power_of_t(np.array(0.0), np.array(9.0), 0.05).round(6))
        0.05
    """
    df = np.where(df > 0, df, np.nan)
    edge = special.stdtrit(df, 1 - alpha / 2)
    below_edges = [np.nan_to_num(special.nctdtr(df, noncentral, x)) for x in (edge, -edge)]  # NaN: too small a number
    return np.where(np.isnan(df), np.nan, 1 - below_edges[0] + below_edges[1])


def noncentrality(df: np.ndarray, alpha: float, power: float) -> np.ndarray:
    """The effect in standard errors that is seen with this power: the inverse of `power_of_t`, by halving."""
    edge = special.stdtrit(np.maximum(df, 1), 1 - alpha / 2)
    low, high = np.zeros(np.shape(df)), 8 * edge + 10
    for _ in range(60):
        middle = (low + high) / 2
        enough = power_of_t(middle, df, alpha) >= power
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(np.asarray(df) > 0, high, np.nan)


def _variances(design: Design) -> pd.DataFrame:
    """Every step of every effect that is estimated, and the variance of its estimate from one seed."""
    blocks = [np.ones((len(design.treatments), 1)), *(design.columns(effect) for effect in design.estimated)]
    model, ends = LinearModel(np.hstack(blocks)), np.cumsum([block.shape[1] for block in blocks])
    factors = {factor.name: factor for factor in design.factors}
    rows, contrasts = [], []
    for place, effect in enumerate(design.estimated):
        for cell in itertools.product(*(range(1, len(factors[name].levels)) for name in effect)):
            contrast = np.zeros(ends[-1])
            contrast[ends[place] : ends[place + 1]] = _contrast(effect, cell, factors)
            rows.append({"label": _label(effect, cell, factors), "kind": "main" if len(effect) == 1 else "interaction"})
            contrasts.append(contrast)
    weights, known = model.weights(np.array(contrasts)), model.estimable(np.array(contrasts))
    return pd.DataFrame(rows).assign(variance=(weights**2).sum(axis=1))[known].reset_index(drop=True)


def _contrast(effect: Effect, cell: tuple[int, ...], factors: Mapping[str, Factor]) -> np.ndarray:
    """From base to these levels: a difference of means, or half a difference of differences."""
    found = np.ones(1)
    for name, place in zip(effect, cell, strict=True):
        found = np.kron(found, factors[name].coding[place] - factors[name].coding[0])
    return found / 2 ** (len(effect) - 1)


def _label(effect: Effect, cell: tuple[int, ...], factors: Mapping[str, Factor]) -> str:
    if all(len(factors[name].levels) == 2 for name in effect):
        return effect_name(effect)
    steps = zip(effect, cell, strict=True)
    return effect_name(tuple(f"{name}: {level_text(factors[name].levels[place])}" for name, place in steps))


def _coefficients(design: Design) -> int:
    return 1 + sum(design.columns(effect).shape[1] for effect in design.estimated)


def _seeds_needed(ratio: np.ndarray, alpha: float, power: float) -> np.ndarray:
    """The fewest seeds, two or more, that see an effect of `ratio` standard errors of one seed, by halving."""
    distinct, back = np.unique(ratio.round(12), return_inverse=True)
    few, enough = np.ones(len(distinct)), np.full(len(distinct), MOST_SEEDS + 1.0)
    while (enough - few > 1).any():
        middle = np.floor((few + enough) / 2)
        seen = power_of_t(distinct * np.sqrt(middle), middle - 1, alpha) >= power
        few, enough = np.where(seen, few, middle), np.where(seen, middle, enough)
    return np.where(enough > MOST_SEEDS, np.nan, enough)[back]


def _check_positive(name: str, value: float | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise invalid_type("plan", name, "be a number", value)
    if not (math.isfinite(value) and value > 0):
        raise invalid("plan", name, "be finite and above 0", value)
