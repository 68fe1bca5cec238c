"""What a repair is judged by: pairs of trainings, without and with its changes, under seeds that are new to the search.

Random by the seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from homeostat.doctor.arms import Arm, Arms, Changes, squeezed
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.baselines import Baselines
from homeostat.doctor.health import MARGIN, WORTH, illness
from homeostat.doctor.judge import Say
from homeostat.inference import Interval, mean_interval

PAIRS, FEWEST_PAIRS = 5, 3
"""Pairs of trainings behind a proof, where time allows, and behind an interval at least. What they show does not decide
how many are run: an interval that is looked at after every pair until it lies above zero would not be one of 95 %."""

BEYOND = 2.0
"""So many standard errors of a score a gain must have. Seeds are new in every pair; the validation examples are those
by which the changes were chosen."""

_FEWEST_STEPS = 30  # after which a comparison means anything
_FRESH = 1000  # seeds of proofs begin so far from that of the examination


@dataclass(frozen=True)
class PairedProof:
    """Trainings without and with the changes, seed by seed; nan is a training that diverged."""

    metric: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    seeds: tuple[int, ...]
    steps: int
    """Steps of each unaltered training."""
    floor: float = 0.0
    """What a constant answer is worth, in [-1, 1]."""
    error: float = 0.0
    """The standard error of the score before, by chance in the validation examples; 0 where it is not known."""
    ill: str = ""
    """Why the training with the changes is ill under at least half of the seeds; empty if it is not."""
    fresh: bool = True
    """False for the pair by which the changes were found, where there was time for no other."""

    @property
    def gains(self) -> tuple[float, ...]:
        """The differences; whatever is worse than a constant answer, or diverged, counts as that."""
        before, after = (_worths(scores, self.floor) for scores in (self.before, self.after))
        return tuple(high - low for low, high in zip(before, after, strict=True))

    @property
    def floored(self) -> bool:
        """Whether a score is worse than a constant answer, and counts as that."""
        return min(map(squeezed, (*self.before, *self.after))) < self.floor

    @property
    def gain(self) -> Interval:
        """The mean of the differences with its 95 % interval; without one where there is a single seed."""
        return mean_interval(self.gains)

    def __str__(self) -> str:
        gain, count = self.gain, len(self.seeds)
        seeds = f"{count} seeds" if count > 1 else "one seed" if self.fresh else "the seed it was found with"
        over = " over a constant answer" if self.floored else ""
        scores = f"{self.metric} {_middle(self.before)} → {_middle(self.after)}"
        text = f"{scores} over {seeds}, gain{over} {gain.estimate:+.3g}"
        return f"{text} [{gain.low:.3g}, {gain.high:.3g}]" if math.isfinite(gain.low) else text


def prove(
    arms: Arms,
    baselines: Baselines | None,
    changes: Changes,
    seed: int,
    deadline: Deadline,
    say: Say,
    *,
    same_data: bool = False,
) -> PairedProof | None:
    """Pairs under seeds that the search has not seen, as many as there is time for.

    Where there is time for none, the pair by which the changes were found is all there is.

    Args:
        same_data: validation is the training data: all that is to be learned, and no sample that chance has drawn.
    """
    steps = max(arms.marks)
    fields: list[Arms] = []
    for number in range(PAIRS):
        say("proof", number / PAIRS)
        field = arms.under(seed + _FRESH + number)
        pair = field.arm(), field.arm(changes)
        for one in pair:
            field.run(one, steps, deadline)
            field.drop(one)
        if not all(field.reached(one, steps) for one in pair):
            break
        fields.append(field)
    if fields:
        return _proof(fields, baselines, changes, steps, same_data=same_data)
    step = common_mark(arms, arms.arm(), arms.arm(changes))
    return _proof([arms], baselines, changes, step, same_data=same_data, fresh=False) if step else None


def common_mark(arms: Arms, first: Arm, second: Arm) -> int:
    """The last step at which both arms were measured; 0 if there is none that tells anything."""
    found = [mark for mark in arms.marks if arms.reached(first, mark) and arms.reached(second, mark)]
    return max((mark for mark in found if mark >= min(_FEWEST_STEPS, max(arms.marks))), default=0)


def confirmed(proof: PairedProof) -> bool:
    """Whether the gain is worth a change, beyond chance in the validation examples, and its interval above zero.

    One or two pairs, where there was time for no more, have no interval: each must gain much.
    """
    chance = BEYOND * proof.error
    if len(proof.seeds) < FEWEST_PAIRS:
        return min(proof.gains) >= max(MARGIN, chance)
    return proof.gain.low > 0 and proof.gain.estimate >= max(WORTH, chance)


def _proof(
    fields: Sequence[Arms],
    baselines: Baselines | None,
    changes: Changes,
    step: int,
    *,
    same_data: bool,
    fresh: bool = True,
) -> PairedProof:
    """What the pairs showed after so many steps; each field has trained both."""
    score = fields[0].score
    before, after = (tuple(field.result(field.arm(part), step) for field in fields) for part in ((), changes))
    floor = _floor(baselines, score.kind)
    error = 0.0 if same_data or baselines is None else baselines.error(statistics.fmean(_worths(before, floor)))
    ills = [ill for field in fields if (ill := _illness(field, baselines, changes))]
    return PairedProof(
        score.name,
        before,
        after,
        tuple(field.seed for field in fields),
        step,
        floor,
        error if math.isfinite(error) else 0.0,
        ills[0] if 2 * len(ills) >= len(fields) else "",
        fresh=fresh,
    )


def _floor(baselines: Baselines | None, kind: str) -> float:
    """The worth of a constant answer; where that is not known, of nothing right or of the mean, which have 0."""
    if baselines is not None and math.isfinite(baselines.prior):
        return squeezed(baselines.prior)
    return -1.0 if kind == "other" else 0.0


def _illness(arms: Arms, baselines: Baselines | None, changes: Changes) -> str:
    course = arms.arm(changes).course
    return "" if course is None else illness(course, baselines, arms.score, arms.examples)


def _worths(scores: Sequence[float], floor: float) -> list[float]:
    return [max(floor, squeezed(score)) for score in scores]


def _middle(scores: Sequence[float]) -> str:
    """The median, the lower of two; what diverged is below all."""
    middle = sorted(scores, key=squeezed)[(len(scores) - 1) // 2]
    return "diverged" if math.isnan(middle) else f"{middle:.3g}"
