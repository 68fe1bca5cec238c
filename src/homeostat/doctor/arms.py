"""Interventions: copies of one training, each with something changed, trained under the same seed and compared.

All arms see the same batches, masks and augmentation, so that what differs is what was changed. An arm that lasts
longer by its change (more epochs, smaller batches) is compared at the same share of its own training. Random by seed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import CannotApply, Change
from homeostat.doctor.course import Course, Mark, Runner, evaluating
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score, boundary_of
from homeostat.doctor.training import Training

Changes: TypeAlias = tuple[Change, ...]

MOST_BYTES = 1 << 31  # of models that are held at once
FEW = 30  # of so few validation examples a share says little: the training examples are counted with them


@dataclass(eq=False)
class Arm:
    """One altered copy, and what became of it."""

    changes: Changes
    runner: Runner | None = None
    """None where it could not be made, or was dropped."""
    course: Course | None = None
    failed: str = ""
    """Why it could not be made."""
    stretch: float = 1.0
    """How many of its steps go with one of the unaltered training."""


@dataclass
class Arms:
    """Makes, trains and remembers the arms of one training.

    Args:
        training: never changed.
        examples: of training and of validation, as the training has them.
        score: the judge.
        seed: of every arm.
        marks: steps of the unaltered training after which all are measured.
    """

    training: Training
    examples: tuple[Examples, Examples]
    score: Score
    seed: int
    marks: Sequence[int]
    _known: dict[Changes, Arm] = field(default_factory=dict)

    def arm(self, changes: Sequence[Change] = ()) -> Arm:
        """The arm with these changes, in their proper order; made when it is first asked for."""
        key = tuple(sorted(changes, key=lambda change: change.place))
        if key not in self._known:
            self._known[key] = self._made(key)
        return self._known[key]

    def run(self, arm: Arm, steps: int, deadline: Deadline) -> Course | None:
        """Train an arm to the counterpart of `steps` steps of the unaltered training; None where it cannot be made."""
        if arm.failed or self.reached(arm, steps):
            return arm.course
        if arm.runner is None:  # it was dropped, and begins again
            made = self._made(arm.changes)
            arm.runner, arm.course = made.runner, made.course
        if arm.runner is None:
            return None
        return arm.runner.advance(_due(arm, steps), deadline)

    def under(self, seed: int) -> Arms:
        """The same arms under another seed, none of them trained."""
        return Arms(self.training, self.examples, self.score, seed, self.marks)

    def drop(self, arm: Arm) -> None:
        """Let go of an arm's model; what happened to it stays known."""
        arm.runner = None
        if arm.course is not None:
            arm.course.model = None

    def room(self) -> int:
        """How many arms may be held at once: with gradients and two moments each parameter is there four times."""
        held = 4 * sum(parameter.nbytes for parameter in self.training.model.parameters())
        return max(2, MOST_BYTES // max(1, held))

    def outcome(self, arm: Arm, steps: int) -> float:
        """How good the arm was at the counterpart of `steps`, in [-1, 1] for a score; -1 if it diverged before."""
        course = arm.course
        if course is None:
            return -math.inf
        return merit(course, _due(arm, steps), self.score, self.examples)

    def result(self, arm: Arm, steps: int) -> float:
        """The validation score at the counterpart of `steps`; nan if training diverged before, or ended in an error."""
        course, due = arm.course, _due(arm, steps)
        if course is None or course.error or (course.diverged is not None and course.diverged < due):
            return math.nan
        mark = course.at(due)
        return math.nan if mark is None else mark.valid_score

    def reached(self, arm: Arm, steps: int) -> bool:
        """Whether the arm was trained that far, or cannot go further."""
        course = arm.course
        return course is not None and (course.ended or course.steps >= _due(arm, steps))

    def _made(self, changes: Changes) -> Arm:
        training = self.training.copy()
        try:
            for change in changes:
                change.apply(training)
        except CannotApply as error:
            return Arm(changes, failed=str(error))
        except Exception as error:
            # A change that fails on somebody's module must not end the examination.
            return Arm(changes, failed=f"{type(error).__name__}: {error}")
        stretch = training.total_steps / max(1, self.training.total_steps)
        marks = [round(step * stretch) for step in self.marks]
        examples = (training.examples("train"), training.examples("valid"))
        try:
            score = _score_for(training, examples[0], self.score)
        except Exception as error:
            return Arm(changes, failed=f"{type(error).__name__}: {error}")
        runner = Runner(training, examples, score, seed=self.seed, marks=marks)
        return Arm(changes, runner, runner.course, stretch=stretch)


def _due(arm: Arm, steps: int) -> int:
    return max(1, round(steps * arm.stretch))


def merit(course: Course, step: int, score: Score, examples: tuple[Examples, Examples]) -> float:
    """One number for how good a course was at a step; R² below zero is squeezed into (-1, 0)."""
    if course.error or (course.diverged is not None and course.diverged < step):
        return -1.0 if score.kind != "other" else -math.inf
    mark = course.at(step)
    if mark is None:
        return -1.0
    value = _pooled(mark, len(examples[0]), len(examples[1]))
    return squeezed(value) if score.kind == "regression" else (value if math.isfinite(value) else -1.0)


def squeezed(r2: float) -> float:
    """R² as it is from 0 to 1; below, how much worse than the mean it is, in (-1, 0).

    Example:
        >>> squeezed(0.8), squeezed(-1.0), squeezed(float("nan"))
        (0.8, -0.5, -1.0)
    """
    if not math.isfinite(r2):
        return -1.0
    return r2 if r2 >= 0 else 1.0 / (1.0 - r2) - 1.0


def _pooled(mark: Mark, train: int, valid: int) -> float:
    if valid >= FEW:
        return mark.valid_score
    return (mark.train_score * train + mark.valid_score * valid) / (train + valid)


def _score_for(training: Training, examples: Examples, score: Score) -> Score:
    """The judge for an altered training: its outputs may mean something else than before."""
    if score.kind not in ("binary", "multilabel"):
        return score
    batch = examples.head(64)
    with evaluating(training.model):
        outputs = training.predict(batch.inputs)
    return replace(score, boundary=boundary_of(outputs, batch.targets, training.loss, score.no))
