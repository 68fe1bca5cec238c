"""The search of a repair: which of the changes that were proposed, or are customary, make the training well together.

Every set of changes is a training of its own, on copies, under the same seeds. Random by the seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from homeostat.doctor.arms import Changes, squeezed
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import Change
from homeostat.doctor.examine import Examination
from homeostat.doctor.health import WORTH, illness
from homeostat.doctor.judge import Say
from homeostat.doctor.prescriptions import bundles, long_bundle, prescriptions
from homeostat.doctor.proof import common_mark

SEARCH_SEEDS = 3
"""Seeds by which a set of changes is judged, where a training takes little time."""

_SETS = 40  # of changes that a search tries
_PART = 0.7  # of the time left that one round may take
_HALVING = 0.5  # of the time of all to the end: all a quarter of the way, half of them on to half, a quarter to the end
_SHARE = 0.05  # of the whole gain that one change more must bring


class Search:
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
        most = math.inf if self.chart.score.kind == "other" else 1.0
        while not self.deadline.passed and self._merit(best) + self._worth(best) <= most:
            more = self._one_more(best)
            if self._merit(more) < self._merit(best) + self._worth(best):
                break
            best = more
        best = self._thinned(best)
        return best if self._learns(best) else self._lengthened(best)

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

    def _lengthened(self, best: Changes) -> Changes:
        """The textbook's network, trained for many steps where they are few, and thinned; if it is better."""
        if self.deadline.passed or not (bundle := long_bundle(self.chart)):
            return best
        changes = self._together([*self._proposed({"certain"}), *bundle])
        better = self._train(changes, self.steps) and self._merit(changes) >= self._merit(best) + self._worth(best)
        return self._thinned(changes) if better else best

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

    def _learns(self, changes: Changes) -> bool:
        """Whether a set is well, as far as can be seen, and better than a constant answer."""
        return not self._ill(changes) and self._merit(changes) >= self._constant() + WORTH

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
        running = self._affordable(running)
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

    def _affordable(self, sets: list[Changes]) -> list[Changes]:
        """The first sets, as many as there is time to train by halves: half of them so far, half of those further."""
        costs = itertools.accumulate(_HALVING * self._cost([changes]) for changes in sets)
        count = sum(cost <= _PART * self.deadline.left for cost in costs)
        return sets[: max(2, count)]

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
        return max(WORTH, _SHARE * (self._merit(changes) - max(self._merit(()), self._constant())))

    def _constant(self) -> float:
        """The worth of a constant answer; less than anything where that is not known."""
        prior = math.nan if self.chart.baselines is None else self.chart.baselines.prior
        return squeezed(prior) if math.isfinite(prior) else -math.inf

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
