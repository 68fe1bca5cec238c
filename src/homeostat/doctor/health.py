"""Whether a training is ill, whatever the cause: judged by what it reached, never by its settings.

A network that cannot do what a class prior, a linear model or the nearest neighbors do on the same data has something
wrong with it, and so has one that diverges, or that after many passes has not learned its own training examples at all.
Nothing here is random.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from homeostat.doctor.arms import merit
from homeostat.doctor.course import Course
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score

if TYPE_CHECKING:
    from homeostat.doctor.data.baselines import Baselines

MARGIN = 0.05
"""The least difference of accuracy or R² that matters here: what benchmarks/doctor.py calls repaired is within it."""

WORTH = 0.01
"""A change is worth making for a gain of at least this, a point of accuracy or R²."""

ERRORS = 3.0
"""So many standard errors of a score are chance."""

MANY_PASSES = 10.0
"""After so many passes, and MANY_STEPS steps, a network that can learn does better than a constant."""

MANY_STEPS = 100
_PART_OF_A_PASS = 0.5
_FEW_STEPS = 50
_LEARNED = 0.98  # of the first loss; a loss that is above it has hardly fallen
_NEAR_PRIOR = 0.02
_SURE = 2.0  # standard errors above a constant answer


def illness(course: Course, baselines: Baselines | None, score: Score, examples: tuple[Examples, Examples]) -> str:
    """Why the training is ill, in a sentence with numbers; empty if nothing shows that it is."""
    if course.error:
        return f"It stops with an error: {course.error}"
    if course.diverged is not None:
        return f"The loss is not finite after {course.diverged} steps."
    if not course.marks or score.kind == "other":
        return _stuck(course)
    if not math.isfinite(course.score):
        return f"Its outputs are not finite after {course.steps} steps."
    found = merit(course, course.steps, score, examples)
    if baselines is None or not math.isfinite(baselines.best):
        return _stuck(course)
    margin = max(MARGIN, ERRORS * baselines.error(baselines.best))
    what = f"{score.name} {course.score:.3g} after {course.steps} steps"
    whole = f"{what}, all of its training, against"
    signal = baselines.best > baselines.prior + margin
    if course.finished and signal and course.score < baselines.best - margin and found < baselines.best - margin:
        return f"It ends below {baselines.best_name}: {whole} {baselines.best:.3g}."
    if course.finished and course.score < baselines.prior - margin and found < baselines.prior - margin:
        return f"It ends below a constant answer: {whole} {baselines.prior:.3g}."
    passed = course.marks[-1].epoch >= _PART_OF_A_PASS and course.steps >= MANY_STEPS
    if signal and passed and max(course.score, course.train_score) <= baselines.prior + _NEAR_PRIOR:
        best = f"{baselines.best:.3g} for {baselines.best_name}"
        return f"It has not learned: {what}, against {baselines.prior:.3g} for a constant answer and {best}."
    reached = course.score >= baselines.best - margin
    better = course.score > baselines.prior + _SURE * baselines.error(baselines.prior)
    return "" if reached and better else _stuck(course)  # where little is left to learn, the loss need not fall


def lags(course: Course, baselines: Baselines | None) -> bool:
    """Whether a training that had no time to end is behind the baselines after a good part of a pass.

    That is no illness: it may catch up. But a change that is ahead of it in as many steps tells something.
    """
    if course.finished or not course.marks or baselines is None or not math.isfinite(baselines.best):
        return False
    margin = max(MARGIN, ERRORS * baselines.error(baselines.best))
    passed = course.marks[-1].epoch >= _PART_OF_A_PASS and course.steps >= _FEW_STEPS
    return passed and course.score < baselines.best - margin


def _stuck(course: Course) -> str:
    """Whether the loss has not fallen in many passes over the training data."""
    if course.steps < MANY_STEPS or not course.marks or course.marks[-1].epoch < MANY_PASSES:
        return ""
    tenth = max(1, course.steps // 10)
    first, last = statistics.median(course.losses[:tenth]), statistics.median(course.losses[-tenth:])
    start = course.marks[0].train_loss
    if last >= _LEARNED * first and last >= _LEARNED * start > 0:
        passes = f"{course.marks[-1].epoch:.0f} passes"
        return f"The loss has not fallen in {passes}: it began with {start:.4g} and is {last:.4g}."
    return ""
