"""`repair`: what the findings propose, tried together, thinned to the smallest set that keeps the gain, and proved.

The result is new objects; the user's stay as they are. What counts is the paired comparison at the end: the same seeds
without and with the changes. Random by the seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from homeostat.doctor.arms import Arm, Arms, Changes, squeezed
from homeostat.doctor.budget import Budget, Deadline, Stopwatch
from homeostat.doctor.changes.change import Change, Safety
from homeostat.doctor.examine import Examination, examine
from homeostat.doctor.guard import interrupted
from homeostat.doctor.health import MARGIN, illness
from homeostat.doctor.judge import Charge, Say
from homeostat.doctor.prescriptions import bundles, prescriptions
from homeostat.doctor.rules.generalization import BelowBaseline
from homeostat.doctor.training import Training
from homeostat.errors import invalid_type
from homeostat.inference import Interval, mean_interval

PAIRS, FEWEST_PAIRS = 5, 3
"""Pairs of trainings behind a proof, where time allows, and behind an interval at least. What they show does not decide
how many are run: an interval that is looked at after every pair until it lies above zero would not be one of 95 %."""

SEARCH_SEEDS = 3
"""Seeds by which a set of changes is judged, where a training takes little time."""

WORTH = 0.01
"""A change is worth making for a gain of at least this, a point of accuracy or R²."""

_EXAMINATION = 0.35  # of the time
_SEARCH = 0.7  # of what is left; the rest is for the proof
_SETS = 40  # of changes that a search tries
_PART = 0.7  # of the time left that one round may take
_SHARE = 0.05  # of the whole gain that one change more must bring
_FEWEST_STEPS = 30  # after which a comparison means anything
_FRESH = 1000  # seeds of proofs begin so far from that of the examination


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
    """Trainings without and with the changes, seed by seed; nan is a training that diverged."""

    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    """Steps of each unaltered training."""

    @property
    def gains(self) -> tuple[float, ...]:
        """The differences; one that diverged counts as 0, and an R² below zero is squeezed into (-1, 0)."""
        return tuple(
            _worth_of(after) - _worth_of(before) for before, after in zip(self.before, self.after, strict=True)
        )

    @property
    def gain(self) -> Interval:
        """The mean of the differences with its 95 % interval; without one where there is a single seed."""
        return mean_interval(self.gains)

    def __str__(self) -> str:
        gain, count = self.gain, len(self.seeds)
        before, after = (statistics.median(values) for values in (self.before, self.after))
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
        >>> import torch
        >>> from torch import nn, optim
        >>> import homeostat as hs
        >>> x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> model, data = nn.Linear(4, 1), (x, x[:, :1])
        >>> training = hs.Training(
        ...     model, nn.MSELoss(), optim.SGD(model.parameters(), 0.1, maximize=True), data, data,
        ...     batch_size=20, epochs=5,
        ... )
        >>> [change.what for change in hs.repair(training, budget=50).changes]
        ['minimize the loss instead of maximizing it']
    """
    if not isinstance(training, Training):
        raise invalid_type("repair", "training", "be a homeostat.Training", training, "Make one of your objects.")
    limit = Budget.parse(budget, "repair")
    with interrupted(limit, "repair"):
        return _repaired(training, limit, unsafe, seed, examination, progress or (lambda stage, share: None))


def _repaired(
    training: Training, limit: Budget, unsafe: bool, seed: int, examination: Examination | None, say: Say
) -> Repair:
    """Examined, searched, proved."""
    clock, deadline = Stopwatch(), limit.deadline()
    if examination is None:
        share = limit if limit.seconds is None else Budget(seconds=limit.seconds * _EXAMINATION)
        examination = examine(training, share, seed=seed, progress=say)
    if not examination or examination.arms is None:
        return Repair(training.copy(), (), None, examination, training, _advice(examination, ()))
    search = _Search(examination, unsafe, deadline.share(_SEARCH), say)
    arm = examination.arms.arm(search.run())
    chosen = arm.changes
    proof = _prove(examination.arms, chosen, seed, deadline, say) if chosen else None
    seconds = clock.passed_seconds
    if proof is None or not _confirmed(proof):
        return Repair(training.copy(), (), proof, examination, training, _advice(examination, ()), seconds=seconds)
    repaired = training.copy()
    for change in chosen:
        change.apply(repaired)
    changes = tuple(_applied(change, search.reasons) for change in chosen)
    advice = _advice(examination, changes)
    return Repair(repaired, changes, proof, examination, training, advice, seconds=seconds, arm=arm)


class _Search:
    """From single changes to the set that helps most: the best start, then one change more at a time, then fewer.

    Where a training takes little time, every set is judged by several seeds, so that a lucky one does not win.
    """

    def __init__(self, examination: Examination, unsafe: bool, deadline: Deadline, say: Say) -> None:
        if examination.arms is None or examination.chart is None:
            raise ValueError("an examination without arms")
        self.chart = examination.chart
        self.deadline, self.say, self.unsafe = deadline, say, unsafe
        self.first = examination.arms
        self.steps = max(self.first.marks)
        self.fields = [self.first, *(self.first.under(self.first.seed + k) for k in range(1, self._seeds()))]
        self.reasons = {c: charge for charge in reversed(examination.charges) for c in charge.suspect.changes}
        self.standing = {finding.code for finding in examination.findings if finding.severity != "info"}

    def run(self) -> Changes:
        """The best set of changes that was found; the empty one if none is better."""
        best = self._start()
        while not self.deadline.passed:
            more = self._one_more(best)
            if self._merit(more) < self._merit(best) + self._worth(best):
                break
            best = more
        return self._thinned(best)

    def _start(self) -> Changes:
        """Nothing, what the findings propose, or a bundle of remedies: the first that is as good as the best."""
        certain = self._together(self._proposed({"certain"}))
        standing = self._together([*certain, *self._proposed({"certain", "likely", "possible"}, self.standing)])
        starts = [(), certain, standing, *(self._together([*certain, *bundle]) for bundle in bundles(self.chart))]
        starts = list(dict.fromkeys(starts))
        if self._cost(starts) > _PART * self.deadline.left:
            return self._first_cure(starts)
        best = self._best(starts)
        if self._merit(best) == -math.inf:  # none came to its end
            return max(starts, key=self._lead)
        enough = self._merit(best) - self._worth(best)
        return next((changes for changes in starts if self._merit(changes) >= enough), best)

    def _first_cure(self, sets: list[Changes]) -> Changes:
        """Where time is short: one set after the other to its end, until one makes the training well."""
        for number, changes in enumerate(sets):
            self.say("repair", number / len(sets))
            if self._train(changes, self.steps) and changes and not self._ill(changes):
                return changes
            if self.deadline.passed:
                break
        return max(sets, key=self._lead)

    def _lead(self, changes: Changes) -> float:
        """How far a set is ahead of the unaltered training where both were trained last."""
        base, arm = self.first.arm(), self.first.arm(changes)
        step = common_mark(self.first, base, arm)
        return self.first.outcome(arm, step) - self.first.outcome(base, step) if step else 0.0

    def _ill(self, changes: Changes) -> bool:
        course = self.first.arm(changes).course
        return course is None or bool(illness(course, self.chart.baselines, self.chart.score, self.first.examples))

    def _one_more(self, ground: Changes) -> Changes:
        """The best set with one change more, or with one in the place of another of its family."""
        candidates = self._proposed({"certain", "likely", "possible"}) + self._allowed(prescriptions(self.chart))
        sets = [
            (*(other for other in ground if other.family != change.family), change)
            for change in dict.fromkeys(candidates)
            if change not in ground
        ]
        return self._best(sets) if sets else ground

    def _best(self, sets: list[Changes]) -> Changes:
        """Train all, as far as time allows, and take the best; the worse half drops out where time is short.

        What is taken may not have come to its end, and has no merit then.
        """
        running = [changes for changes in sets if not self.first.arm(changes).failed][: self.first.room()]
        horizons = [mark for mark in self.first.marks if 4 * mark >= self.steps]
        for goal in horizons:
            last = goal == horizons[-1]
            if not last and self._cost(running) <= _PART * self.deadline.left:
                continue  # time for all of them to the end
            for number, changes in enumerate(running):
                self.say("repair", number / max(1, len(running)))
                self._train(changes, goal)
            running = sorted(running, key=lambda changes: self._merit(changes, goal), reverse=True)
            if last or self.deadline.passed:
                break
            kept = max(1, len(running) // 2)
            for changes in running[kept:]:
                self._drop(changes)
            running = running[:kept]
        return running[0] if running else ()

    def _thinned(self, changes: Changes) -> Changes:
        """Without the changes that the gain does not depend on; those that alter the model go first."""
        enough = self._merit(changes) - self._worth(changes)
        for change in sorted(changes, key=lambda change: change.safety == "safe"):
            fewer = tuple(other for other in changes if other != change)
            if self._train(fewer, self.steps) and self._merit(fewer) >= enough:
                changes = fewer
        return changes

    def _worth(self, changes: Changes) -> float:
        """What a change must gain to be worth making: a point, or a twentieth of what was gained in all."""
        prior = math.nan if self.chart.baselines is None else self.chart.baselines.prior
        ground = max(self._merit(()), squeezed(prior)) if math.isfinite(prior) else self._merit(())
        return max(WORTH, _SHARE * (self._merit(changes) - ground))

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

    def _together(self, changes: Iterable[Change]) -> Changes:
        """As many of the changes as fit together, one of each family."""
        found: Changes = ()
        for change in self._allowed(changes):
            taken = {other.family for other in found}
            if change.family not in taken and not self.first.arm((*found, change)).failed:
                found = (*found, change)
        return found

    def _train(self, changes: Changes, steps: int) -> bool:
        """Train the arms of a set under every seed; whether all got that far."""
        for arms in self.fields:
            arm = arms.arm(changes)
            arms.run(arm, steps, self.deadline)
            if arm.failed or not arms.reached(arm, steps):
                return False
        return True

    def _drop(self, changes: Changes) -> None:
        for arms in self.fields:
            arms.drop(arms.arm(changes))

    def _merit(self, changes: Changes, steps: int | None = None) -> float:
        """The mean over seeds; nothing counts that was not trained that far under all."""
        due = self.steps if steps is None else steps
        pairs = [(arms, arms.arm(changes)) for arms in self.fields]
        if not all(arms.reached(arm, due) for arms, arm in pairs):
            return -math.inf
        return sum(arms.outcome(arm, due) for arms, arm in pairs) / len(pairs)

    def _cost(self, sets: list[Changes]) -> float:
        """Seconds to train all sets to the end."""
        pairs = [arms.arm(changes) for changes in sets for arms in self.fields]
        return self._pace() * sum(
            0.0 if arm.course is None or arm.course.ended else max(0.0, self.steps * arm.stretch - arm.course.steps)
            for arm in pairs
        )

    def _pace(self) -> float:
        """Seconds per step of the unaltered training."""
        course = self.chart.course
        return course.seconds / max(1, len(course.losses))

    def _seeds(self) -> int:
        """So many that the customary number of sets can be trained under each."""
        whole = self._pace() * self.steps * _SETS
        return int(max(1, min(SEARCH_SEEDS, self.deadline.left / max(whole, 1e-6))))


def _prove(arms: Arms, changes: Changes, seed: int, deadline: Deadline, say: Say) -> PairedProof | None:
    """Pairs under seeds that the search has not seen, as many as there is time for.

    Where there is time for none, the pair by which the changes were found is all there is.
    """
    steps = max(arms.marks)
    pairs: list[tuple[int, float, float]] = []
    proof = _pair_of_the_search(arms, changes)
    for number in range(PAIRS):
        say("proof", number / PAIRS)
        fresh = arms.under(seed + _FRESH + number)
        before, after = fresh.arm(), fresh.arm(changes)
        for one in (before, after):
            fresh.run(one, steps, deadline)
        if not (fresh.reached(before, steps) and fresh.reached(after, steps)):
            break
        pairs.append((fresh.seed, fresh.result(before, steps), fresh.result(after, steps)))
        seeds, befores, afters = (tuple(column) for column in zip(*pairs, strict=True))
        proof = PairedProof(arms.score.name, befores, afters, seeds, steps)
    return proof


def _pair_of_the_search(arms: Arms, changes: Changes) -> PairedProof | None:
    before, after = arms.arm(), arms.arm(changes)
    step = common_mark(arms, before, after)
    if not step:
        return None
    return PairedProof(arms.score.name, (arms.result(before, step),), (arms.result(after, step),), (arms.seed,), step)


def common_mark(arms: Arms, first: Arm, second: Arm) -> int:
    """The last step at which both arms were measured; 0 if there is none that tells anything."""
    found = [mark for mark in arms.marks if arms.reached(first, mark) and arms.reached(second, mark)]
    return max((mark for mark in found if mark >= min(_FEWEST_STEPS, max(arms.marks))), default=0)


def _confirmed(proof: PairedProof) -> bool:
    """Whether the gain's interval lies above zero; two pairs, where there was time for no more, must both gain much."""
    if len(proof.seeds) < FEWEST_PAIRS:
        return all(gain >= MARGIN for gain in proof.gains)
    return proof.gain.low > 0


def _worth_of(score: float) -> float:
    return 0.0 if math.isnan(score) else squeezed(score)


def _applied(change: Change, reasons: dict[Change, Charge]) -> Applied:
    charge = reasons.get(change)
    why = "tried as a customary remedy, and it helped" if charge is None else charge.suspect.message
    code = "" if charge is None else charge.rule.code
    return Applied(change.what, change.where, why, change.diff, change.safety, code)


def _advice(examination: Examination, changes: Sequence[Applied]) -> tuple[str, ...]:
    """The remedies of findings that no change took care of; that it was ill is no advice once it is repaired."""
    done = {change.code for change in changes} | ({BelowBaseline.code} if changes else set())
    found = [f for f in examination.findings if f.severity != "info" and f.code not in done and f.remedy]
    return tuple(dict.fromkeys(f"{finding.code}: {finding.remedy}" for finding in found))
