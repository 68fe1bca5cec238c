"""`examine`: facts, a probe, a real short training, suspects, interventions; what came of it is an `Examination`.

Everything happens on copies, under seeds of its own; the user's objects and global random state are as before. A time
limit holds: what there was no time for is said in the notes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from homeostat import seeds
from homeostat.doctor.arms import Arms
from homeostat.doctor.budget import Budget, Deadline, Stopwatch
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Course, evaluating, mark_steps, predictions
from homeostat.doctor.data.baselines import measure_baselines
from homeostat.doctor.data.facts import examine_data
from homeostat.doctor.examples import Examples
from homeostat.doctor.finding import Finding, Severity, at_least
from homeostat.doctor.guard import interrupted
from homeostat.doctor.health import illness
from homeostat.doctor.judge import Charge, Say, judge
from homeostat.doctor.loss.metamorphic import LossFacts, examine_loss
from homeostat.doctor.loss.outputs import last_activation
from homeostat.doctor.network.probe import Probe, take
from homeostat.doctor.network.structure import Structure, read
from homeostat.doctor.rule import Rule
from homeostat.doctor.rules import RULES
from homeostat.doctor.score import Score, score_of
from homeostat.doctor.training import Training
from homeostat.doctor.watching.watch import watch
from homeostat.errors import HomeostatError, invalid_type

_Found = TypeVar("_Found")

_FACTS = 0.25  # of the time: data, loss, baselines
_TRIAL = 0.7  # of what is left after them: the trial; the rest is for interventions
_PROBED = 128  # examples: of fewer, whether a unit is dead cannot be told
_TARGETS = 65_536  # targets from which a task is inferred


@dataclass(eq=False)
class Examination:
    """What an examination found.

    True if something is wrong: `if hs.examine(training): ...`.
    """

    verdict: str
    """In one sentence."""
    findings: tuple[Finding, ...]
    """Errors first, then warnings, then remarks."""
    chart: Chart | None
    """All that was measured; None if not even one batch could be run."""
    seconds: float
    seed: int
    notes: tuple[str, ...] = ()
    """What could not be examined, and why."""
    arms: Arms | None = field(default=None, repr=False)
    """The trainings that were compared; `repair` goes on from them."""
    charges: tuple[Charge, ...] = field(default=(), repr=False)

    @property
    def severity(self) -> Severity | None:
        """That of the worst finding; None without any."""
        return self.findings[0].severity if self.findings else None

    @property
    def steps(self) -> int:
        """Steps of the trial."""
        return 0 if self.chart is None else self.chart.course.steps

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of a severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def __bool__(self) -> bool:
        return self.severity is not None and at_least(self.severity, "warning")

    def __str__(self) -> str:
        lines = [self.verdict, *(f"  {finding}" for finding in self.findings)]
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def examine(
    training: Training,
    budget: str | float | Budget = "30s",
    *,
    seed: int = 0,
    rules: Iterable[type[Rule]] | None = None,
    progress: Say | None = None,
) -> Examination:
    """Examine a training: what is wrong with it, by which evidence, and what would help.

    A copy is really trained, for its own whole length where the budget allows. Rules name suspects; what they suspect
    is changed on further copies, and what recovers the training is convicted. A training that works stays without
    warnings however unusual its settings are.

    Args:
        training: what the user holds; never changed.
        budget: time in all, such as "30s"; or a number of steps for every training, which gives the same findings on
            any machine.
        seed: of batches, masks and augmentation.
        rules: which rules are asked; None asks all.
        progress: called with the name of the stage and the share of it that is done.
    Returns: the findings with their evidence.
    Raises: InvalidType, InvalidValue and HomeostatError for trainings that cannot be used, with what to pass instead.
    Example:
        >>> from torch import nn, optim
        >>> import homeostat as hs
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> model, data = nn.Linear(4, 1), (x, x[:, :1])
        >>> training = hs.Training(
        ...     model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1, maximize=True), data, data,
        ...     batch_size=20, epochs=5,
        ... )
        >>> [finding.code for finding in hs.examine(training, budget=50).of("error")]
        ['OPT003']
    """
    if not isinstance(training, Training):
        raise invalid_type("examine", "training", "be a homeostat.Training", training, "Make one of your objects.")
    limit = Budget.parse(budget, "examine")
    with interrupted(limit, "examine"):
        return _Examiner(training, limit, seed, tuple(RULES if rules is None else rules), progress).run()


class _Examiner:
    """The stages of one examination, in order."""

    def __init__(
        self, training: Training, budget: Budget, seed: int, rules: tuple[type[Rule], ...], progress: Say | None
    ) -> None:
        self.given, self.budget, self.seed, self.rules = training, budget, seed, rules
        self.say: Say = progress or (lambda stage, share: None)
        self.notes: list[str] = []
        self.deadline = Deadline()

    def run(self) -> Examination:
        clock = Stopwatch()
        self.deadline = self.budget.deadline()
        self.say("reading the data", 0.0)
        training = self.given.copy()
        examples = self._examples(training)
        score = self._score(training, examples[0])
        chart, arms = self._chart(training, examples, score)
        charges = self._charges(chart)
        findings = judge(chart, charges, arms, self.deadline, self.say)
        verdict = verdict_of(chart, findings)
        return Examination(
            verdict, tuple(findings), chart, clock.passed_seconds, self.seed, tuple(self.notes), arms, tuple(charges)
        )

    def _examples(self, training: Training) -> tuple[Examples, Examples]:
        given = self.given  # what is read is kept with the user's training, so that a repair need not read again
        train = given.examples("train", self.deadline.share(_FACTS / 2))
        valid = given.examples("valid", self.deadline.share(_FACTS / 2))
        training._read = given._read
        if not train.complete:
            total = "an unknown number" if train.total is None else train.total
            self.notes.append(f"{len(train)} of {total} training examples were read")
        if not training.model.training:
            training.model.train()
            self.notes.append("the model was given in evaluation mode; it is trained in training mode")
        return train, valid

    def _score(self, training: Training, train: Examples) -> Score:
        """The judge; running one batch also tells whether the training runs at all.

        Raises: HomeostatError with what the user's model or loss raised.
        """
        batch = train.head(min(len(train), max(training.batch_size, 2), 256))
        stage = "the model"
        try:
            with seeds.isolated(self.seed, "doctor", "score"), evaluating(training.model):
                outputs = training.predict(batch.inputs)
                stage = "loss_fn"
                training.loss(outputs, batch.targets)
        except HomeostatError:
            raise
        except Exception as error:
            cure = "Inputs may be a tuple of arguments or a dict of keywords."
            if stage == "loss_fn":
                cure = "It is called with (output, target); bind further arguments with functools.partial."
            text = f"{stage} fails on a batch: {type(error).__name__}: {error}."
            raise HomeostatError(f"examine: {text} {cure}") from error
        score = score_of(training.task, outputs, train.targets[:_TARGETS], training.loss)
        if score.ignored >= 0:
            self.notes.append(f"class {score.ignored} is not judged: the loss leaves it out")
        return score

    def _arms(self, training: Training, examples: tuple[Examples, Examples], score: Score) -> Arms:
        total = training.total_steps
        steps = min(total, self.budget.steps or total)
        marks = sorted({*mark_steps(steps), *(2**k for k in range(5, 30) if 2**k < steps)})
        return Arms(training, examples, score, self.seed, marks)

    def _chart(self, training: Training, examples: tuple[Examples, Examples], score: Score) -> tuple[Chart, Arms]:
        """All that is measured, and the arms, of which the first is trained."""
        facts = self.deadline.share(_FACTS)
        train, valid = examples
        batch = train.head(min(len(train), max(training.batch_size, 2)))
        self.say("facts", 0.0)
        structure = self._try("the structure of the model", lambda: read(training.model, batch.inputs, training.output))
        probe = self._try("a probe of one batch", lambda: take(training, self._probe_batch(training, train)))
        with seeds.isolated(self.seed, "doctor", "outputs"), evaluating(training.model):
            outputs = predictions(training, batch)
        loss = self._try("the loss function", lambda: examine_loss(training, batch, outputs, score))
        score = self._judge(training, score, loss, structure)
        data = self._try("the data", lambda: examine_data(training, train, valid, score, facts.share(0.5)))
        self.say("baselines", 0.5)
        baselines = self._try("baselines", lambda: measure_baselines(train, valid, score, facts))
        arms = self._arms(training, examples, score)
        course, late = self._trial(training, arms, train)
        chart = Chart(training, train, valid, score, structure, loss, data, probe, late, course, baselines)
        chart.ill = illness(course, baselines, score, examples)
        return chart, arms

    def _judge(self, training: Training, score: Score, loss: LossFacts | None, structure: Structure | None) -> Score:
        """The judge: the loss itself where the outputs that it asks for cannot be held against targets."""
        if training.task is not None or loss is None or loss.comparable is not False:
            return score
        tail = last_activation(structure, training.model)
        if score.kind == "regression" and tail is not None and tail.bounded:
            return score  # as a sigmoid in front of a loss on logits, by mistake
        self.notes.append("outputs are not what targets are, by what the loss asks for: judged by the loss")
        return Score("other")

    def _probe_batch(self, training: Training, train: Examples) -> Examples:
        """A batch in random order: the stored one may be sorted."""
        order = torch.randperm(len(train), generator=seeds.torch_generator(self.seed, "doctor", "probe"))
        return train.select(order[: max(training.batch_size, _PROBED)])

    def _trial(self, training: Training, arms: Arms, train: Examples) -> tuple[Course, Probe | None]:
        """The unaltered arm, trained and watched."""
        arm = arms.arm()
        runner = arm.runner
        if runner is None:
            raise HomeostatError(f"examine: the training cannot be run: {arm.failed}")
        steps = max(arms.marks)
        deadline = self.deadline.share(_TRIAL)
        self.say("trial", 0.0)
        course = runner.advance(
            steps,
            deadline,
            watched=lambda copy: watch(copy.model, copy.optimizer),
            on_step=lambda step: self.say("trial", step / steps),
        )
        if not course.finished:
            self.notes.append(f"the trial made {course.steps} of the training's {course.total} steps")
        late = None
        if not course.error:
            late = self._try(
                "a probe after the trial", lambda: take(runner.training, self._probe_batch(training, train))
            )
        return course, late

    def _charges(self, chart: Chart) -> list[Charge]:
        charges = []
        for kind in self.rules:
            rule = kind()
            found = self._try(f"rule {rule.code}", lambda rule=rule: list(rule.check(chart)))  # type: ignore[misc]
            charges += [Charge(rule, suspect) for suspect in found or ()]
        return charges

    def _try(self, what: str, function: Callable[[], _Found]) -> _Found | None:
        """What could be had; a failure on somebody's unusual model costs this part of the examination, not all."""
        try:
            return function()
        except Exception as error:
            self.notes.append(f"{what} could not be examined: {type(error).__name__}: {error}")
            return None


def verdict_of(chart: Chart, findings: list[Finding]) -> str:
    """The examination in one sentence."""
    serious = [finding for finding in findings if at_least(finding.severity, "warning")]
    if not serious:
        course = chart.course
        reached = f"{course.metric} {course.score:.3g}" if math.isfinite(course.score) else "no score"
        length = "all of its training" if course.finished else f"{course.steps} of {course.total} steps"
        return f"Nothing is wrong as far as was seen: {reached} after {length}."
    first = serious[0]
    others = f", and {len(serious) - 1} more" if len(serious) > 1 else ""
    return f"{first.message.rstrip('.')} ({first.code}{others})."
