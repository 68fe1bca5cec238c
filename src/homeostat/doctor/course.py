"""A copy of a training, really trained for a while: the loss of every step, scores at marks, vitals if asked for.

Order, masks and augmentation come from the seed alone, so that two courses under one seed differ by what was changed
and nothing else. The training given is trained: pass a copy.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.held import needs_closure
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.doctor.training import Training

if TYPE_CHECKING:
    from homeostat.doctor.watching.vitals import Vitals

_CHUNK = 1024  # examples evaluated at once
_MOST = 2000  # validation examples that are measured at the end: a standard error of at most 0.011
_FEWER = 1000  # at a mark on the way
MEASURED_TRAIN = 500  # training examples at any mark
_MARKS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)  # shares of the steps: denser where more happens


class Mark(NamedTuple):
    """What was measured after some steps, in evaluation mode."""

    step: int
    epoch: float
    train_score: float
    valid_score: float
    train_loss: float
    valid_loss: float


@dataclass
class Course:
    """What happened while training."""

    total: int
    """Steps of the user's own whole training."""
    batch_size: int
    metric: str
    losses: list[float] = field(default_factory=list)
    """The loss of each step's batch, before the step."""
    marks: list[Mark] = field(default_factory=list)
    diverged: int | None = None
    """The step whose loss was not finite."""
    clipped: int = 0
    """Steps whose gradient was clipped."""
    seconds: float = 0.0
    vitals: Vitals | None = None
    model: nn.Module | None = None
    """As trained."""
    error: str = ""
    """What the model, the loss or the optimizer raised; training ended there."""

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.losses) if self.diverged is None else self.diverged

    @property
    def finished(self) -> bool:
        """Whether the user's whole training was done, or could not go on."""
        return self.ended or self.steps >= self.total

    @property
    def score(self) -> float:
        """The last validation score; nan if it diverged."""
        return self.marks[-1].valid_score if self.marks and self.diverged is None else math.nan

    @property
    def train_score(self) -> float:
        return self.marks[-1].train_score if self.marks and self.diverged is None else math.nan

    @property
    def ended(self) -> bool:
        """Whether it cannot go on."""
        return self.diverged is not None or bool(self.error)

    def at(self, step: int) -> Mark | None:
        """The last mark at or before a step."""
        return next((mark for mark in reversed(self.marks) if mark.step <= step), None)


def mark_steps(total: int) -> list[int]:
    """The steps after which a training of `total` steps is measured.

    Example:
        >>> mark_steps(100)
        [0, 5, 10, 20, 35, 50, 75, 100]
    """
    return sorted({round(share * total) for share in _MARKS})


class Runner:
    """One training in progress: it can go on where it stopped, with the same draws as if it had not.

    Args:
        training: a copy; it is trained in place.
        examples: of training and of validation, on the model's device.
        seed: of order, masks and augmentation.
        marks: steps after which scores are taken; where training stops, they are taken too.
    """

    def __init__(
        self, training: Training, examples: tuple[Examples, Examples], score: Score, *, seed: int, marks: Iterable[int]
    ) -> None:
        self.training = training
        self.course = Course(training.total_steps, training.batch_size, score.name, model=training.model)
        self._examples, self._score, self._seed = examples, score, seed
        self._marks = frozenset(marks)
        self._batches = batches(training, examples[0], seed)
        self._random: dict[str, Any] | None = None

    def advance(
        self,
        steps: int,
        deadline: Deadline,
        watched: Callable[[Training], Any] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> Course:
        """Train until `steps` steps are done in all, or until the deadline.

        Args:
            watched: makes a context that watches the training and has `vitals`, such as `watch`.
            on_step: called with the number of steps done.
        Returns: what happened so far. What the user's code raises ends the course, as its `error`.
        """
        course = self.course
        start = time.monotonic()
        context = watched(self.training) if watched is not None else nullcontext()
        with seeds.isolated(self._seed, "doctor", "course"), context as watch:
            if self._random is not None:
                seeds.set_global_state(self._random)
            try:
                self._run(steps, deadline, on_step or (lambda step: None))
            except Exception as error:  # the user's code, on the user's data: what it says is the result
                course.error = f"{type(error).__name__}: {error}"
            self._random = seeds.global_state()
        course.vitals = getattr(watch, "vitals", course.vitals)
        course.seconds += time.monotonic() - start
        return course

    def _run(self, steps: int, deadline: Deadline, on_step: Callable[[int], None]) -> None:
        course = self.course
        if 0 in self._marks and not course.marks:
            self._mark(_FEWER)
        while course.steps < steps and not course.ended:
            loss, clipped = _step(self.training, next(self._batches))
            course.losses.append(loss)
            course.clipped += clipped
            if not math.isfinite(loss):
                course.diverged = len(course.losses) - 1
                return
            if course.steps in self._marks and course.steps < steps:
                self._mark(_FEWER)
            on_step(course.steps)
            if deadline.passed:
                break
        if not course.marks or course.marks[-1].step < course.steps:
            self._mark()

    def _mark(self, most: int = _MOST) -> None:
        step = self.course.steps
        per_epoch = self.training.steps_per_epoch(self._examples[0].total or len(self._examples[0]))
        self.course.marks.append(measure(self.training, self._examples, self._score, step, step / per_epoch, most))


def batches(training: Training, examples: Examples, seed: int) -> Iterator[Examples]:
    """Training batches without end, epoch after epoch; the order of an epoch depends on (seed, epoch) alone.

    A batch of one example is left out where batch normalization could not train on it, as most programs do.
    """
    count, size = len(examples), training.batch_size
    alone = any(isinstance(module, _BatchNorm) and module.training for module in training.model.modules())
    epoch = 0
    while True:
        order = torch.arange(count)
        if training.shuffle:
            order = torch.randperm(count, generator=seeds.torch_generator(seed, "doctor", "order", epoch))
        for start in range(0, count, size):
            rows = order[start : start + size]
            if len(rows) > 1 or not alone or count == 1 or size == 1:
                yield examples.select(rows)
        epoch += 1


def measure(
    training: Training,
    examples: tuple[Examples, Examples],
    score: Score,
    step: int = 0,
    epoch: float = 0.0,
    most: int = _MOST,
) -> Mark:
    """Scores and losses of the model as it is, in evaluation mode, on at most `most` validation examples."""
    with evaluating(training.model):
        train, train_loss = _measured(training, examples[0].head(MEASURED_TRAIN), score)
        valid, valid_loss = _measured(training, examples[1].head(most), score)
    return Mark(step, epoch, train, valid, train_loss, valid_loss)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients for a while; every module gets its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predictions(training: Training, examples: Examples) -> Tensor:
    """The outputs for examples, in the model's present mode."""
    parts = [examples.slice(start, start + _CHUNK) for start in range(0, len(examples), _CHUNK)]
    return torch.cat([training.predict(part.inputs) for part in parts])


def _measured(training: Training, examples: Examples, score: Score) -> tuple[float, float]:
    """Score, and loss as the mean over batches of the training's size."""
    outputs = predictions(training, examples)
    size = min(training.batch_size, len(examples))
    starts = range(0, len(examples) - size + 1, size)
    losses = [training.loss(outputs[i : i + size], examples.targets[i : i + size]).item() for i in starts]
    loss = sum(losses) / len(losses)
    return (-loss if score.kind == "other" else score.of(outputs, examples.targets)), loss


def _step(training: Training, batch: Examples) -> tuple[float, bool]:
    """One step of the optimizer; the loss before it, and whether the gradient was clipped."""
    optimizer = training.optimizer
    inputs = batch.inputs if training.augment is None else training.augment(batch.inputs)
    clipped = False

    def closure() -> float:
        nonlocal clipped
        optimizer.zero_grad()
        loss = training.loss(training.predict(inputs), batch.targets)
        value = loss.item()
        if math.isfinite(value):
            loss.backward()
            clipped = _clip(training)
        return value

    if needs_closure(optimizer):
        first: list[float] = []
        optimizer.step(lambda: first.append(closure()) or first[-1])  # type: ignore[func-returns-value]
        return first[0], clipped
    value = closure()
    if math.isfinite(value):
        optimizer.step()
    return value, clipped


def _clip(training: Training) -> bool:
    """Clip the gradients as the training says; whether that changed any."""
    if training.clip is None:
        return False
    kind, bound = training.clip
    parameters = [p for group in training.optimizer.param_groups for p in group["params"] if p.grad is not None]
    if kind == "norm":
        return bool(torch.nn.utils.clip_grad_norm_(parameters, bound) > bound)
    changed = any(bool((p.grad.abs() > bound).any()) for p in parameters)
    torch.nn.utils.clip_grad_value_(parameters, bound)
    return changed
