"""`repair`: what the findings propose, tried together, thinned to the smallest set that keeps the gain, and proved.

The result is new objects; the user's stay as they are. What counts is the paired comparison at the end: the same seeds
without and with the changes. Random by the seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from homeostat.doctor.arms import Arm, Arms
from homeostat.doctor.budget import Budget, Deadline
from homeostat.doctor.changes.change import Change, Safety
from homeostat.doctor.examine import Examination, examine
from homeostat.doctor.judge import Charge, Say
from homeostat.doctor.prescriptions import bundles, prescriptions
from homeostat.doctor.training import Training
from homeostat.errors import invalid_type
from homeostat.inference import Interval, paired_interval

SEEDS = 3
"""Pairs of trainings behind a proof, where time allows; the first is that of the examination."""

WORTH = 0.01
"""A change is added for a gain of at least this, a point of accuracy or R², and dropped if less is lost without it."""

_EXAMINATION = 0.35  # of the time
_SEARCH = 0.6  # of what is left; the rest is for the proof


@dataclass(frozen=True)
class Applied:
    """One change that was made."""

    what: str
    where: tuple[str, ...]
    """Layer names; () for the training as a whole."""
    why: str
    """The message of the finding behind it, or that it was tried and helped."""
    diff: str
    """The same in the user's own code: lines that begin with "-" or "+"."""
    safety: Safety
    code: str = ""
    """The rule that proposed it."""

    def __str__(self) -> str:
        where = f" ({', '.join(self.where)})" if self.where else ""
        return f"{self.what}{where}: {self.why}"


@dataclass(frozen=True)
class PairedProof:
    """Trainings without and with the changes, seed by seed; -1 is a training that diverged."""

    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    """Steps of each unaltered training."""

    @property
    def gain(self) -> Interval:
        """The mean difference with its 95 % interval; infinitely wide with one seed."""
        return paired_interval(self.after, self.before)

    def __str__(self) -> str:
        gain, count = self.gain, len(self.seeds)
        before, after = (sum(values) / count for values in (self.before, self.after))
        seeds = f"{count} seeds" if count > 1 else "one seed"
        text = f"{self.metric} {before:.3g} → {after:.3g} over {seeds}, gain {gain.estimate:+.3g}"
        return f"{text} [{gain.low:.3g}, {gain.high:.3g}]" if math.isfinite(gain.low) else text


@dataclass(eq=False)
class Repair:
    """What a repair did; true if it changed anything.

    Attributes:
        training: new objects with the changes made, not trained yet; a plain copy if nothing helped.
        changes: what was changed, in the order in which it was applied.
        proof: the paired comparison; None if nothing was changed.
        before, after: the examinations of the training as given and as repaired.
        original: the user's training, as it was: taking it back is all there is to an undo.
        advice: what was found and cannot be repaired without changing code or data.
    """

    training: Training
    changes: tuple[Applied, ...]
    proof: PairedProof | None
    before: Examination
    original: Training
    advice: tuple[str, ...] = ()
    after: Examination | None = None
    seconds: float = 0.0
    arm: Arm | None = field(default=None, repr=False)

    @property
    def diff(self) -> str:
        """All changes as lines of code for the user's own program."""
        return "\n".join(change.diff for change in self.changes if change.diff)

    @property
    def verdict(self) -> str:
        """In one sentence."""
        if self.changes:
            names = "; ".join(change.what for change in self.changes)
            return f"Repaired by {len(self.changes)} change{'s' * (len(self.changes) > 1)}: {names}. {self.proof}."
        if not self.before:
            return "Nothing to repair: the examination found no warning."
        return "No repair was found that the paired comparison confirms."

    def undo(self) -> Training:
        """The training as it was given."""
        return self.original

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        lines = [self.verdict, *(f"  {change}" for change in self.changes)]
        return "\n".join([*lines, *(f"  advice: {text}" for text in self.advice)])


def repair(
    training: Training,
    budget: str | float | Budget = "2m",
    *,
    unsafe: bool = True,
    seed: int = 0,
    examination: Examination | None = None,
    progress: Say | None = None,
) -> Repair:
    """Repair a training, and prove by paired runs that the repair helps.

    Args:
        training: never changed; the repair is made of new objects.
        budget: time in all, such as "2m"; or a number of steps for every training.
        unsafe: False leaves out changes after which the model computes another function of the same weights (other
            activations, normalization, new initial weights, standardized inputs).
        seed: of the examination and the first pair; the others derive from it.
        examination: one made before of the same training; None makes one.
        progress: called with the name of the stage and the share of it that is done.
    Returns: the repaired training with what was changed and the proof; unchanged where nothing helps.
    Raises: as `examine`.
    Example:
        >>> from torch import nn, optim
        >>> import homeostat as hs
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> model, data = nn.Linear(4, 1), (x, x[:, :1])
        >>> training = hs.Training(
        ...     model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1, maximize=True), data, data,
        ...     batch_size=20, epochs=5,
        ... )
        >>> [change.what for change in hs.repair(training, budget=50).changes]
        ['minimize instead of maximize']
    """
    if not isinstance(training, Training):
        raise invalid_type("repair", "training", "be a homeostat.Training", training, "Make one of your objects.")
    limit = Budget.parse(budget, "repair")
    deadline = limit.deadline()
    say: Say = progress or (lambda stage, share: None)
    if examination is None:
        share = limit if limit.seconds is None else Budget(seconds=limit.seconds * _EXAMINATION)
        examination = examine(training, share, seed=seed, progress=progress)
    if not examination or examination.arms is None:
        return Repair(training.copy(), (), None, examination, training, _advice(examination, ()))
    search = _Search(examination, unsafe, deadline.share(_SEARCH), say)
    arm = search.run()
    proof = None if not arm.changes else _prove(examination, arm, seed, deadline, say)
    if proof is None or not _confirmed(proof):
        return Repair(training.copy(), (), proof, examination, training, _advice(examination, ()))
    repaired = training.copy()
    for change in arm.changes:
        change.apply(repaired)
    changes = tuple(_applied(change, search.reasons) for change in arm.changes)
    advice = _advice(examination, changes)
    return Repair(repaired, changes, proof, examination, training, advice, arm=arm)


class _Search:
    """From single changes to the set that helps most: the best start, then one change more at a time, then fewer."""

    def __init__(self, examination: Examination, unsafe: bool, deadline: Deadline, say: Say) -> None:
        if examination.arms is None or examination.chart is None:
            raise ValueError("an examination without arms")
        self.arms: Arms = examination.arms
        self.chart = examination.chart
        self.steps = max(self.arms.marks)
        self.deadline, self.say, self.unsafe = deadline, say, unsafe
        self.reasons = {c: charge for charge in reversed(examination.charges) for c in charge.suspect.changes}
        self.standing = {finding.code for finding in examination.findings if finding.severity != "info"}
        self.rounds = 0

    def run(self) -> Arm:
        """The best arm that was found; the unaltered one if none is better."""
        best = self._start()
        while not self.deadline.passed:
            more = self._one_more(best)
            if more is None or self._merit(more) < self._merit(best) + WORTH:
                break
            best = more
        return self._thinned(best)

    def _start(self) -> Arm:
        """The best of: nothing, what the standing findings propose, and the bundles of customary remedies."""
        certain = self._together(self._proposed({"certain"}))
        standing = self._together([*certain, *self._proposed({"certain", "likely", "possible"}, self.standing)])
        starts = [(), certain, standing, *(self._together([*certain, *bundle]) for bundle in bundles(self.chart))]
        arms = [self.arms.arm(changes) for changes in dict.fromkeys(starts)]
        return self._best(arms)

    def _one_more(self, ground: Arm) -> Arm | None:
        """The best arm with one change more, or with one in the place of another of its family."""
        self.rounds += 1
        candidates = self._proposed({"certain", "likely", "possible"}) + self._allowed(prescriptions(self.chart))
        arms = []
        for change in dict.fromkeys(candidates):
            if change not in ground.changes:
                kept = tuple(other for other in ground.changes if other.family != change.family)
                arms.append(self.arms.arm((*kept, change)))
        return self._best(arms) if arms else None

    def _best(self, arms: Sequence[Arm]) -> Arm:
        """Train all, as far as time allows, and take the best; the worse half drops out where time is short."""
        running = [arm for arm in arms if not arm.failed]
        pace = self._pace()
        horizons = [mark for mark in self.arms.marks if mark > 0]
        for index, goal in enumerate(horizons):
            last = index == len(horizons) - 1
            cost = sum(self._missing(arm, self.steps) for arm in running) * pace
            if not last and cost <= 0.7 * self.deadline.left:
                continue  # time for all of them to the end
            if not last and goal * 4 < self.steps:
                continue
            for number, arm in enumerate(running):
                self.say("repair", number / max(1, len(running)))
                self.arms.run(arm, goal, self.deadline)
            ranked = sorted(running, key=lambda arm: self._merit(arm, goal), reverse=True)
            if last or self.deadline.passed:
                return ranked[0] if ranked else self.arms.arm()
            running = ranked[: max(1, len(ranked) // 2)]
        return running[0] if running else self.arms.arm()

    def _thinned(self, arm: Arm) -> Arm:
        """Without the changes that no gain depends on."""
        for change in reversed(arm.changes):
            fewer = self.arms.arm(tuple(other for other in arm.changes if other != change))
            self.arms.run(fewer, self.steps, self.deadline)
            reached = not fewer.failed and self.arms.reached(fewer, self.steps)
            if reached and self._merit(fewer) >= self._merit(arm) - WORTH:
                arm = fewer
        return arm

    def _proposed(self, certainties: set[str], codes: set[str] | None = None) -> list[Change]:
        """What suspects propose: first choices first."""
        charges = [
            charge
            for charge in dict.fromkeys(self.reasons.values())
            if charge.suspect.certainty in certainties and (codes is None or charge.rule.code in codes)
        ]
        rank = {"certain": 0, "likely": 1, "possible": 2}
        charges.sort(key=lambda charge: rank[charge.suspect.certainty])
        longest = max((len(charge.suspect.changes) for charge in charges), default=0)
        found = [c.suspect.changes[i] for i in range(longest) for c in charges if i < len(c.suspect.changes)]
        return self._allowed(dict.fromkeys(found))

    def _allowed(self, changes: Iterable[Change]) -> list[Change]:
        return [change for change in changes if self.unsafe or change.safety == "safe"]

    def _together(self, changes: Iterable[Change]) -> tuple[Change, ...]:
        """As many of the changes as fit together, one of each family."""
        found: tuple[Change, ...] = ()
        for change in self._allowed(changes):
            taken = {other.family for other in found}
            if change.family not in taken and not self.arms.arm((*found, change)).failed:
                found = (*found, change)
        return found

    def _merit(self, arm: Arm, steps: int | None = None) -> float:
        return self.arms.outcome(arm, self.steps if steps is None else steps)

    def _missing(self, arm: Arm, steps: int) -> float:
        course = arm.course
        return 0.0 if course is None or course.ended else max(0.0, steps * arm.stretch - course.steps)

    def _pace(self) -> float:
        """Seconds per step of the unaltered training."""
        course = self.chart.course
        return course.seconds / max(1, course.steps)


def _prove(examination: Examination, arm: Arm, seed: int, deadline: Deadline, say: Say) -> PairedProof | None:
    """The pairs of the proof: that of the search, and as many under other seeds as there is time for."""
    known = examination.arms
    if known is None:
        return None
    steps = max(known.marks)
    plain = known.arm()
    pairs: list[tuple[int, float, float]] = []
    for number in range(SEEDS):
        arms = known if number == 0 else Arms(known.training, known.examples, known.score, seed + number, [0, steps])
        pair = (plain, arm) if number == 0 else (arms.arm(), arms.arm(arm.changes))
        say("proof", number / SEEDS)
        for one in pair:
            arms.run(one, steps, deadline)
        if not all(arms.reached(one, steps) for one in pair):
            break
        pairs.append((seed + number, arms.outcome(pair[0], steps), arms.outcome(pair[1], steps)))
    if not pairs:
        return None
    numbers, before, after = zip(*pairs, strict=True)
    return PairedProof(known.score.name, before, after, numbers, steps)


def _confirmed(proof: PairedProof) -> bool:
    """Whether every pair gained, and the mean gain is worth it; an interval needs more pairs than there is time for."""
    gains = [after - before for before, after in zip(proof.before, proof.after, strict=True)]
    return all(gain > 0 for gain in gains) and sum(gains) / len(gains) >= WORTH


def _applied(change: Change, reasons: dict[Change, Charge]) -> Applied:
    charge = reasons.get(change)
    why = "tried as a customary remedy, and it helped" if charge is None else charge.suspect.message
    code = "" if charge is None else charge.rule.code
    return Applied(change.what, change.where, why, change.diff, change.safety, code)


def _advice(examination: Examination, changes: Sequence[Applied]) -> tuple[str, ...]:
    """The remedies of findings that no change took care of."""
    done = {change.code for change in changes}
    found = [f for f in examination.findings if f.severity != "info" and f.code not in done and f.remedy]
    return tuple(dict.fromkeys(f"{finding.code}: {finding.remedy}" for finding in found))
