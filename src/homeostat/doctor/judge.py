"""From suspects to findings: what stands by itself, what an intervention convicts, what is only a remark.

A suspect proposes changes. They are tried on copies (see `arms`), all under the same seed, by successive halving where
time is short; what recovers the training convicts. In a training that is not ill, a change must win clearly at the end
of the whole training before anything is called a fault. Random by the arms' seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from homeostat.doctor.arms import Arm, Arms, squeezed
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import Change
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import MEASURED_TRAIN
from homeostat.doctor.finding import Finding, Proof
from homeostat.doctor.health import ERRORS, MARGIN, illness, lags
from homeostat.doctor.rule import Rule, Suspect

AS_GOOD, PART_OF_THE_BEST = 0.5, 0.25
"""A change convicts if it gains this share of what the best change gains: half, or a quarter with strong evidence."""

HALVED = 0.5
"""In a training that is not ill, a change convicts if it at least halves the error, where that is beyond chance."""

_PART = 0.25  # of a common gain: a change without which less is lost is not needed for it
_LONG = 1.5  # times the unaltered training: such arms are left out where time is short
_FEWEST_STEPS = 30  # of an arm: less shows nothing but the first gradient

Say = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Charge:
    """A suspect, the rule that named it, and how its case ended."""

    rule: Rule
    suspect: Suspect

    @property
    def causes(self) -> tuple[str, ...]:
        return self.rule.causes if self.suspect.causes is None else self.suspect.causes


@dataclass
class Verdicts:
    """What the interventions showed."""

    proofs: dict[Change, Proof] = field(default_factory=dict)
    """Changes that recover the training."""
    refuted: set[Change] = field(default_factory=set)
    """Changes that were tried to the end and do not."""


def judge(chart: Chart, charges: Sequence[Charge], arms: Arms, deadline: Deadline, say: Say) -> list[Finding]:
    """Try what the suspects propose, and decide.

    Args:
        chart: its `course` is the unaltered arm's.
        arms: where the unaltered arm was trained already.
        deadline: no arm is begun or goes on after it.
        say: progress.
    """
    verdicts = tried(chart, charges, arms, deadline, say)
    standing = [(charge, finding_of(chart, charge, verdicts)) for charge in charges]
    return silenced([(charge, finding) for charge, finding in standing if finding is not None])


def tried(chart: Chart, charges: Sequence[Charge], arms: Arms, deadline: Deadline, say: Say) -> Verdicts:
    """The interventions, one by one on top of the repair of what is certain, and together if none helps alone."""
    verdicts = Verdicts()
    ground = _repair_of_the_certain(charges, arms)
    reached = max(arms.marks) if chart.course.ended else chart.course.steps  # what ended early is not what others must
    if ground:
        base = arms.arm(ground)
        arms.run(base, reached, deadline)
        if arms.reached(base, reached):
            _note(verdicts, chart, arms, base, ground, arms.arm(), reached)
            if chart.ill and not _ill(chart, arms, base):
                return verdicts
        else:
            ground = ()
    base = arms.arm(ground)
    if not chart.ill and not chart.course.finished and not lags(chart.course, chart.baselines):
        return verdicts  # a training that learns and has not ended proves nothing against anybody
    changes = [change for change in _proposed(charges, bool(chart.ill)) if change not in ground]
    field = {arms.arm((*ground, change)): change for change in changes[: arms.room()]}
    single = _race(arms, list(field), base, reached, deadline, say)
    _convict(verdicts, chart, charges, arms, {field[arm]: (arm, at) for arm, at in single.items()}, base, reached)
    if chart.ill and not verdicts.proofs and len(changes) > 1 and not deadline.passed:
        _try_together(verdicts, chart, arms, ground, charges, base, reached, deadline)
    return verdicts


def finding_of(chart: Chart, charge: Charge, verdicts: Verdicts) -> Finding | None:
    """The finding of one charge; None if it is dropped."""
    suspect = charge.suspect
    proof = next((verdicts.proofs[change] for change in suspect.changes if change in verdicts.proofs), None)
    stands = suspect.certainty == "certain" or proof is not None
    if suspect.certainty == "likely" and chart.ill and not stands:
        tried_all = bool(suspect.changes) and all(change in verdicts.refuted for change in suspect.changes)
        stands = not (tried_all and verdicts.proofs)  # somebody else was convicted, and this one cleared
    if not stands and suspect.certainty == "possible":
        return None
    return Finding(
        charge.rule.code,
        charge.rule.slug,
        suspect.severity if stands else "info",
        charge.causes,
        suspect.message,
        suspect.remedy,
        suspect.layer,
        dict(suspect.evidence),
        proof,
    )


def silenced(found: Iterable[tuple[Charge, Finding]]) -> list[Finding]:
    """Findings in order, those with a root cause among the others turned into remarks."""
    findings = list(found)
    standing = sorted({finding.code for _, finding in findings if finding.severity != "info"})
    result = []
    for charge, finding in findings:
        roots = [code for code in standing if code.startswith(charge.rule.requires) and code != finding.code]
        root = roots[0] if charge.rule.requires and roots else None
        if root is not None and finding.severity != "info" and finding.proof is None:
            finding = Finding(**{**vars(finding), "severity": "info", "consequence_of": root})
        result.append(finding)
    return sorted(result, key=lambda finding: finding.rank)


def _proposed(charges: Iterable[Charge], ill: bool, choice: int | None = None) -> list[Change]:
    """Changes to be tried, in order: first choices of likely suspects, of possible ones, then second choices.

    Args:
        choice: one choice of each alone, or the last of those that have fewer; None takes all.
    """
    asked = [charge.suspect for charge in charges if charge.suspect.certainty == "likely"]
    if ill:  # a deviation from custom is no fault in a training that works
        asked += [charge.suspect for charge in charges if charge.suspect.certainty == "possible"]
    asked = [suspect for suspect in asked if suspect.changes]
    if choice is not None:
        return list(dict.fromkeys(suspect.changes[min(choice, len(suspect.changes) - 1)] for suspect in asked))
    longest = max((len(suspect.changes) for suspect in asked), default=0)
    return list(
        dict.fromkeys(suspect.changes[i] for i in range(longest) for suspect in asked if i < len(suspect.changes))
    )


def _repair_of_the_certain(charges: Iterable[Charge], arms: Arms) -> tuple[Change, ...]:
    """For what is certain, the first change of each that can be made with those before it; one of a family."""
    found: tuple[Change, ...] = ()
    for charge in charges:
        if charge.suspect.certainty != "certain" or charge.suspect.severity == "info":
            continue
        for change in charge.suspect.changes:
            if change in found:
                break
            if change.family not in {other.family for other in found} and not arms.arm((*found, change)).failed:
                found = (*found, change)
                break
    return found


def _race(arms: Arms, field: list[Arm], base: Arm, steps: int, deadline: Deadline, say: Say) -> dict[Arm, int]:
    """Train the arms as far as time allows; the worse half drops out where it does not reach for all.

    Returns: how far each arm that is left was trained, in steps of the unaltered training.
    """
    running = [arm for arm in field if not arm.failed]
    reached: dict[Arm, int] = {}
    base_course = base.course
    if base_course is None or not running or steps < 1:
        return reached
    pace = base_course.seconds / max(1, base_course.steps)
    if sum(arm.stretch for arm in running) * steps * pace > deadline.left:  # many epochs would take all the time
        running = [arm for arm in running if arm.stretch <= _LONG] or running
    horizons = [mark for mark in arms.marks if min(_FEWEST_STEPS, steps) <= mark <= steps] or [steps]
    done = 0
    while running and not deadline.passed:
        stretched = sum(arm.stretch for arm in running)
        affordable = [h for h in horizons if h > done and (h - done) * stretched * pace <= deadline.left]
        goal = max(affordable) if affordable else next((h for h in horizons if h > done), steps)
        for number, arm in enumerate(running):
            say("interventions", number / len(running))
            arms.run(arm, goal, deadline)
            if arms.reached(arm, goal):
                reached[arm] = goal
            if deadline.passed:
                return reached
        done = goal
        if done >= steps:
            break
        running = sorted(running, key=lambda arm: arms.outcome(arm, done), reverse=True)
        running = running[: max(1, len(running) // 2)]
    return reached


def _convict(
    verdicts: Verdicts,
    chart: Chart,
    charges: Sequence[Charge],
    arms: Arms,
    tried: dict[Change, tuple[Arm, int]],
    base: Arm,
    steps: int,
) -> None:
    """Sort what was tried, each with its arm and how far that was trained, into what recovers and what does not."""
    suspected = {change for c in charges if c.suspect.certainty == "likely" for change in c.suspect.changes}
    gains = {
        change: _outcome(chart, arms, arm, at) - _outcome(chart, arms, base, at) for change, (arm, at) in tried.items()
    }
    best = max(gains.values(), default=0.0)
    for change, gain in gains.items():
        arm, at = tried[change]
        if chart.ill:
            clear = _recovers(chart, _outcome(chart, arms, base, at), gain)
        elif chart.course.finished:
            clear = at >= steps and _wins(chart, _scores(chart, arms, base, at), _scores(chart, arms, arm, at))
        else:  # it lags: what is ahead of its end with as many steps or fewer
            end = _outcome(chart, arms, base, steps)
            clear = _recovers(chart, end, _outcome(chart, arms, arm, at) - end)
        if clear and gain >= (PART_OF_THE_BEST if change in suspected else AS_GOOD) * best:
            verdicts.proofs[change] = _proof(arms, arm, base, change, at)
        elif at >= steps:
            verdicts.refuted.add(change)


def _recovers(chart: Chart, before: float, gain: float) -> bool:
    """Whether a gain is beyond what matters and beyond chance."""
    if chart.score.kind == "other":
        return gain > MARGIN * max(1.0, abs(before)) or (math.isinf(before) and gain > 0)
    return gain >= MARGIN and gain >= 2 * _error(chart, before, len(chart.valid))


def _wins(chart: Chart, before: tuple[float, float], after: tuple[float, float]) -> bool:
    """Whether a change wins clearly in a training that is not ill; pairs of validation and training scores.

    It must gain the margin or halve the error beyond chance, on the validation data, or on the training data at no
    cost on the others.
    """
    if chart.score.kind == "other":
        return False
    counts = len(chart.valid), min(len(chart.train), MEASURED_TRAIN)
    clear = []
    for old, new, count in zip(before, after, counts, strict=True):
        gain = new - old
        clear.append(gain >= ERRORS * _error(chart, old, count) and (gain >= MARGIN or gain >= HALVED * (1 - old)))
    return clear[0] or (clear[1] and after[0] >= before[0])


def _error(chart: Chart, score: float, count: int) -> float:
    """The standard error of a score, by chance in the examples; infinite where it is not known."""
    error = math.nan if chart.baselines is None else chart.baselines.error(min(score, 1.0), count)
    return error if math.isfinite(error) else math.inf


def _scores(chart: Chart, arms: Arms, arm: Arm, steps: int) -> tuple[float, float]:
    """Validation merit and training score at the counterpart of `steps`; -1 for one that diverged."""
    course = arm.course
    mark = None if course is None else course.at(max(1, round(steps * arm.stretch)))
    train = -1.0 if mark is None or not math.isfinite(mark.train_score) else mark.train_score
    return _outcome(chart, arms, arm, steps), train


def _outcome(chart: Chart, arms: Arms, arm: Arm, steps: int) -> float:
    """The merit of an arm; whatever is worse than a constant answer counts as that, since it is no nearer to a cure."""
    outcome = arms.outcome(arm, steps)
    prior = math.nan if chart.baselines is None else chart.baselines.prior
    return max(outcome, squeezed(prior)) if math.isfinite(prior) else outcome


def _note(
    verdicts: Verdicts, chart: Chart, arms: Arms, arm: Arm, changes: tuple[Change, ...], base: Arm, steps: int
) -> None:
    """Note for each of the changes what they did together, if it was good."""
    if _recovers(
        chart,
        _outcome(chart, arms, base, steps),
        _outcome(chart, arms, arm, steps) - _outcome(chart, arms, base, steps),
    ):
        for change in changes:
            verdicts.proofs[change] = _proof(arms, arm, base, change, steps)


def _try_together(
    verdicts: Verdicts,
    chart: Chart,
    arms: Arms,
    ground: tuple[Change, ...],
    charges: Sequence[Charge],
    base: Arm,
    steps: int,
    deadline: Deadline,
) -> None:
    """Several faults may hide each other: the first choices of all at once, the second ones, those that are safe."""
    first, second = (_proposed(charges, bool(chart.ill), choice) for choice in (0, 1))
    for proposed in (first, second, [change for change in second if change.safety == "safe"]):
        chosen: tuple[Change, ...] = ()
        for change in proposed:
            families = {other.family for other in (*ground, *chosen)}
            if change.family not in families and not arms.arm((*ground, *chosen, change)).failed:
                chosen = (*chosen, change)
        arm = arms.arm((*ground, *chosen))
        arms.run(arm, steps, deadline)
        before = _outcome(chart, arms, base, steps)
        gain = _outcome(chart, arms, arm, steps) - before
        if len(chosen) > 1 and arms.reached(arm, steps) and _recovers(chart, before, gain):
            needed = [change for change in chosen if _needed(chart, arms, arm, change, steps, gain, deadline)]
            verdicts.proofs |= {change: _proof(arms, arm, base, change, steps) for change in needed or chosen}
            return


def _needed(chart: Chart, arms: Arms, whole: Arm, change: Change, steps: int, gain: float, deadline: Deadline) -> bool:
    """Whether a good part of the gain goes without this change; what there was no time to try counts as needed."""
    rest = arms.arm(tuple(other for other in whole.changes if other != change))
    if rest.failed or deadline.passed:
        return True
    arms.run(rest, steps, deadline)
    if not arms.reached(rest, steps):
        return True
    return _outcome(chart, arms, whole, steps) - _outcome(chart, arms, rest, steps) >= _PART * gain


def _proof(arms: Arms, arm: Arm, base: Arm, change: Change, steps: int) -> Proof:
    return Proof(change.what, arms.score.name, arms.result(base, steps), arms.result(arm, steps), steps)


def _ill(chart: Chart, arms: Arms, arm: Arm) -> bool:
    course = arm.course
    return course is None or bool(illness(course, chart.baselines, chart.score, arms.examples))
