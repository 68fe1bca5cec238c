"""What a claim is: a sentence of the lectures, an experiment on it, and a criterion that was fixed before it ran.

An experiment is a callable (config, seed) -> metrics, run for every combination of levels under every seed, by the
workers and in the ledger of a study. A judge turns its trials into a verdict, a drawing into a figure; both are pure
functions of the trials. Nothing here is random.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from homeostat.errors import invalid
from homeostat.inference import Interval, mean_interval
from homeostat.page.svg import Picture
from homeostat.study.factors import Level

Word: TypeAlias = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Setup:
    """How an experiment is run, quickly or in full.

    Attributes:
        data: what it is run on, for people: "digits, 1,347 examples; 20 epochs".
        factors: what is varied; every combination is run, the first levels are the base.
        seeds: how many.
        settings: further keyword arguments of the experiment.
    """

    data: str
    factors: Mapping[str, Sequence[Level]]
    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What the data say of a hypothesis.

    Attributes:
        word: "holds", "fails" or "undecided", by the claim's criterion.
        number: the number that decides, with its unit and interval: "+1.3 points [0.9, 1.7]".
        says: a sentence or two: what was seen; where it is undecided, what would decide it.
    """

    word: Word
    number: str
    says: str


class Runs:
    """The trials of an experiment, for judges and drawings.

    Attributes:
        trials: one row per trial that ended well: the levels by name (dtype object), seed, and the metrics.
        curves: what trials reported, one row per trial and epoch, with the levels beside; may be empty.
        setup: how they were run.
    """

    def __init__(self, trials: pd.DataFrame, curves: pd.DataFrame, setup: Setup) -> None:
        self.trials, self.curves, self.setup = trials, curves, setup

    def where(self, **levels: Level) -> pd.DataFrame:
        """The trials with these levels."""
        return _where(self.trials, levels)

    def by_seed(self, metric: str, **levels: Level) -> pd.Series[float]:
        """A metric by seed, the mean over its trials with these levels; NaN unless all of them are finite."""
        trials = self.where(**levels).groupby("seed")[metric]
        means = trials.agg(lambda own: own.astype(float).mean(skipna=False))
        return means.where(np.isfinite(means) & (trials.size() == trials.size().max()))

    def values(self, metric: str, **levels: Level) -> pd.Series[float]:
        """The same where there has to be a value.

        Raises: InvalidValue where no trial has one.
        """
        found = self.by_seed(metric, **levels)
        if not found.notna().any():
            raise invalid("Runs.values", "levels", f"be those of trials with a finite {metric}", dict(levels))
        return found

    def mean(self, metric: str, **levels: Level) -> Interval:
        """A metric's mean over seeds with its 95 % interval."""
        return seed_mean(self.values(metric, **levels))

    def difference(self, metric: str, first: Mapping[str, Level], second: Mapping[str, Level]) -> Interval:
        """Mean of first minus second over seeds, paired, with its 95 % interval; as `seed_mean` where one lacks it."""
        return seed_mean(self.by_seed(metric, **first) - self.by_seed(metric, **second))


def _where(frame: pd.DataFrame, levels: Mapping[str, Level]) -> pd.DataFrame:
    chosen = pd.Series(True, index=frame.index)
    for name, level in levels.items():
        chosen &= frame[name] == level
    return frame[chosen]


@dataclass(frozen=True)
class Claim:
    """A sentence of the lectures as an experiment.

    Attributes:
        id: its name, words of small letters and digits with hyphens; also of the folder that it is kept in.
        sentence: what the lecture says.
        source: lecture and slide: "002, Initialization vs. optimization".
        hypothesis: what should be seen if it is right, in one sentence.
        criterion: from what on it holds or fails, fixed before anything ran.
        experiment: callable (config, seed, **settings) -> metrics; with a parameter `trial` it may report epochs. At
            module level, so that workers find it.
        judge: the verdict of the runs, by the criterion.
        draw: the figure of the runs.
        quick, full: how it is run on embedded data in less than a minute on two cores, and with time.
        literature: what others measured or said against it, and how their set-up differs; "" where nothing.
    """

    id: str
    sentence: str
    source: str
    hypothesis: str
    criterion: str
    experiment: Callable[..., Mapping[str, float]]
    judge: Callable[[Runs], Verdict]
    draw: Callable[[Runs], Picture]
    quick: Setup
    full: Setup
    literature: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.id):
            raise invalid("Claim", "id", "be words of small letters and digits, with hyphens between", self.id)


def decided(interval: Interval, threshold: float = 0.0) -> Word:
    """Whether a number is beyond a threshold: "holds" with the whole interval above it, "fails" with all of it below.

    Example:
        >>> decided(Interval(2.0, 1.0, 3.0)), decided(Interval(2.0, -1.0, 5.0)), decided(Interval(-2.0, -3.0, -1.0))
        ('holds', 'undecided', 'fails')
    """
    if interval.low > threshold:
        return "holds"
    return "fails" if interval.high < threshold else "undecided"


def inside(interval: Interval, low: float, high: float) -> Word:
    """Whether a number lies within bounds: "holds" with its whole interval in them, "fails" with none of it.

    Example:
        >>> inside(Interval(1.0, 0.9, 1.1), 0.8, 1.2), inside(Interval(1.0, 0.5, 1.1), 0.8, 1.2)
        ('holds', 'undecided')
    """
    if low <= interval.low and interval.high <= high:
        return "holds"
    return "fails" if interval.low > high or interval.high < low else "undecided"


def between(best: float | None, tried: Iterable[float]) -> bool:
    """Whether the best of some levels has others on both sides: beyond an end there may be a better one.

    Example:
        >>> between(0.1, [0.01, 0.1, 1.0]), between(1.0, [0.01, 0.1, 1.0]), between(None, [0.01, 0.1, 1.0])
        (True, False, False)
    """
    return best in sorted(set(tried))[1:-1]


def near(interval: Interval, margin: float) -> Word:
    """Whether a number is zero to within a margin."""
    return inside(interval, -margin, margin)


_MANY = 1000


def more(word: Word, *intervals: Interval, threshold: float = 0.0) -> str:
    """What would decide an undecided verdict: with how many seeds these intervals would not hold the threshold.

    Example:
        >>> more("undecided", Interval(1.0, -1.0, 3.0, df=4))
        ' With this estimate and spread, about 20 seeds would decide it.'
        >>> more("undecided", Interval(0.01, -1.0, 1.02, df=4))
        ' Even 1,000 seeds would not decide it with this estimate and spread: another set-up might.'
        >>> more("holds", Interval(1.0, 0.5, 1.5))
        ''
    """
    if word != "undecided":
        return ""
    if any(np.isnan(each.low) and (np.isnan(each.estimate) or each.df > 0) for each in intervals):
        return " Runs that diverged or never got there leave it open: other rates or longer training would decide it."
    seeds = 0.0
    for each in intervals:
        if decided(each, threshold) == "undecided":
            distance, half = abs(each.estimate - threshold), (each.high - each.low) / 2
            if np.isfinite(half):
                seeds = max(seeds, (each.df + 1) * (half / distance) ** 2 if distance else np.inf)
    if not seeds:
        return " More seeds would decide it."
    if seeds > _MANY:
        return f" Even {_MANY:,} seeds would not decide it with this estimate and spread: another set-up might."
    return f" With this estimate and spread, about {seeds:.0f} seeds would decide it."


def said(word: Word, number: str, says: str, *intervals: Interval) -> Verdict:
    """A verdict that ends, where it is open, with what would decide it, if anything, for these intervals against 0."""
    return Verdict(word, number, says + more(word, *intervals))


def seed_mean(values: pd.Series[float]) -> Interval:
    """The mean over seeds with its interval; without bounds if a seed has no value, as where it diverged.

    What the other seeds say is then no more than what can be said of those that survive.

    Example:
        >>> seed_mean(pd.Series([1.0, 2.0, 3.0, np.nan]))[:3]
        (2.0, nan, nan)
    """
    known = values[np.isfinite(values)].to_numpy(dtype=float)
    found = mean_interval(known)
    return found if len(known) == len(values) else Interval(found.estimate, np.nan, np.nan, df=found.df)


def ratio(first: pd.Series[float], second: pd.Series[float]) -> Interval:
    """The geometric mean of first / second over seeds, with its 95 % interval; as `seed_mean` where one lacks it."""
    above, below = (values.where(values > 0).map(np.log) for values in (first, second))
    found = seed_mean(above - below)
    return Interval(float(np.exp(found.estimate)), float(np.exp(found.low)), float(np.exp(found.high)), df=found.df)


def all_of(words: Sequence[Word]) -> Word:
    """The verdict of a hypothesis with several parts: it fails with any of them, and holds with all.

    Example:
        >>> all_of(["holds", "undecided"]), all_of(["undecided", "fails"]), all_of(["holds", "holds"])
        ('undecided', 'fails', 'holds')
    """
    if "fails" in words:
        return "fails"
    return "undecided" if "undecided" in words else "holds"


def settled(*parts: tuple[Word, str]) -> tuple[Word, str]:
    """The verdict of a hypothesis with several parts, and the number of the first part that makes it what it is.

    Example:
        >>> settled(("holds", "+3 points"), ("fails", "12 epochs")), settled(("holds", "+3 points"), ("holds", "12"))
        (('fails', '12 epochs'), ('holds', '+3 points'))
    """
    word = all_of([word for word, _ in parts])
    return word, next(number for own, number in parts if own == word)


def within(errors: pd.Series[float], tolerance: float) -> Word:
    """The verdict of an identity: whether every error is at most the tolerance; NaN is not, and none is undecided."""
    if errors.empty:
        return "undecided"
    return "holds" if bool((errors <= tolerance).all()) else "fails"


def tiny(number: float) -> str:
    """What rounding leaves: "1.3e-15", or 0."""
    return f"{number:.1e}" if number else "0"


def points(interval: Interval) -> str:
    """A difference of shares in percentage points: "+1.3 points [0.9, 1.7]"; with two digits where one hides a sign.

    Example:
        >>> points(Interval(0.013, 0.009, 0.017)), points(Interval(0.00036, -0.00019, 0.00092))
        ('+1.3 points [0.9, 1.7]', '+0.04 points [−0.02, 0.09]')
    """
    if np.isnan(interval.low):
        known = "" if np.isnan(interval.estimate) else f"{100 * interval.estimate:+.1f} points, "
        return f"{known}no interval".replace("-", "−")
    shares = [100 * number for number in (interval.estimate, interval.low, interval.high)]
    digits = 2 if any(0.005 <= abs(share) < 0.05 for share in shares) else 1
    estimate, low, high = (f"{share:.{digits}f}" for share in shares)
    sign = "" if estimate.startswith("-") else "+"
    return f"{sign}{estimate} points [{low}, {high}]".replace("-", "−")


def directed(interval: Interval, up: str, down: str) -> tuple[Interval, str]:
    """A difference that is not negative, and the word for its direction: nothing is then lower by less than nothing.

    Example:
        >>> directed(Interval(-0.012, -0.016, -0.007), "lower", "higher")[1]
        'higher'
    """
    return (negated(interval), down) if interval.estimate < 0 else (interval, up)


def negated(interval: Interval) -> Interval:
    """The same difference, taken the other way around."""
    return Interval(-interval.estimate, -interval.high, -interval.low, df=interval.df)
