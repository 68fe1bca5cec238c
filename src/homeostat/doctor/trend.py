"""What the losses of a course show: falling still, flat, rising, jumping, swinging. Nothing here is random."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homeostat.doctor.course import Course

FEWEST = 10
"""Of fewer losses nothing is said."""

_ENOUGH = 3  # marks in the second half, to tell a course from a pair of points


@dataclass(frozen=True)
class Trend:
    """Numbers about the losses of the steps; nan where there are too few."""

    start: float = math.nan
    """The loss before the first step, over many examples where it was measured."""
    end: float = math.nan
    """The mean of the last fifth."""
    fall: float = math.nan
    """What the last fifth of training took off the loss, as a share of its magnitude before: on the same examples where
    it was measured on them, else by the means of two fifths of batches."""
    certainty: float = math.nan
    """The difference of the two fifths' means in its standard errors."""
    steady: bool = False
    """Whether the loss on the same examples fell from mark to mark all through the second half."""
    peak: float = math.nan
    """The largest mean over a short window in the first half, over the loss before the first step."""
    swing: float = math.nan
    """Over the marks of the second half, how far the loss on fixed examples went up and down in all, over its mean."""

    @property
    def progress(self) -> float:
        """The share of the first loss that is gone at the end; below 0 if the loss has risen."""
        return (self.start - self.end) / abs(self.start) if self.start else math.nan


def trend_of(course: Course) -> Trend:
    """The trend of a course."""
    losses = course.losses[: course.steps]
    marked = [mark.train_loss for mark in course.marks if math.isfinite(mark.train_loss)]
    if len(losses) < FEWEST:
        return Trend()
    start = marked[0] if marked and course.marks[0].step == 0 else losses[0]
    before, last = _fifth(losses, 3), _fifth(losses, 4)
    fall = statistics.fmean(before) - statistics.fmean(last)
    error = math.sqrt(statistics.pvariance(before) / len(before) + statistics.pvariance(last) / len(last))
    scale = abs(statistics.fmean(before))
    late = _late(course)
    return Trend(
        start=start,
        end=statistics.fmean(last),
        fall=_fall_of_marks(course) if len(late) >= _ENOUGH else fall / scale if scale > 0 else 0.0,
        certainty=fall / error if error > 0 else 0.0 if fall == 0 else math.copysign(math.inf, fall),
        steady=len(late) >= _ENOUGH and all(a > b for a, b in itertools.pairwise(late)),
        peak=_peak(losses) / abs(start) if start else math.nan,
        swing=_swing(course),
    )


def known(**values: Any) -> dict[str, Any]:
    """Evidence without numbers that could not be had.

    Example:
        >>> known(loss=0.5, peak=math.nan, layers=3)
        {'loss': 0.5, 'layers': 3}
    """
    return {name: value for name, value in values.items() if not isinstance(value, float) or math.isfinite(value)}


def _fifth(values: Sequence[float], number: int) -> Sequence[float]:
    count = len(values)
    return values[number * count // 5 : (number + 1) * count // 5]


def _peak(losses: Sequence[float]) -> float:
    """The largest mean of a few neighbors, so that one hard batch is no peak."""
    half = losses[: max(FEWEST, len(losses) // 2)]
    width = min(len(half), max(3, len(losses) // 100))
    sums = sum(half[:width])
    largest = sums
    for index in range(width, len(half)):
        sums += half[index] - half[index - width]
        largest = max(largest, sums)
    return largest / width


def _late(course: Course) -> list[float]:
    """The losses on fixed examples in the second half; empty if one is not finite."""
    late = [mark.train_loss for mark in course.marks if mark.step >= course.steps / 2]
    return late if all(map(math.isfinite, late)) else []


def _fall_of_marks(course: Course) -> float:
    """From the last mark before the last fifth to the end."""
    before = [mark.train_loss for mark in course.marks if mark.step <= 0.8 * course.steps][-1]
    return (before - course.marks[-1].train_loss) / abs(before) if before else 0.0


def _swing(course: Course) -> float:
    """The way up and down beyond the way from first to last, over the mean."""
    late = _late(course)
    if len(late) < _ENOUGH:
        return math.nan
    way = sum(abs(a - b) for a, b in itertools.pairwise(late)) - abs(late[0] - late[-1])
    mean = statistics.fmean(map(abs, late))
    return way / mean if mean > 0 else 0.0
