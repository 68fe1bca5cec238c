"""What a repair is judged by: pairs of trainings, without and with its changes, under seeds that are new to the search.

Random by the seed.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from homeostat.doctor.arms import Arm, Arms, Changes, squeezed
from homeostat.doctor.budget import Deadline
from homeostat.doctor.health import MARGIN
from homeostat.doctor.judge import Say
from homeostat.inference import Interval, mean_interval

PAIRS, FEWEST_PAIRS = 5, 3
"""Pairs of trainings behind a proof, where time allows, and behind an interval at least. What they show does not decide
how many are run: an interval that is looked at after every pair until it lies above zero would not be one of 95 %."""

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


def prove(arms: Arms, changes: Changes, seed: int, deadline: Deadline, say: Say) -> PairedProof | None:
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


def confirmed(proof: PairedProof) -> bool:
    """Whether the gain's interval lies above zero; two pairs, where there was time for no more, must both gain much."""
    if len(proof.seeds) < FEWEST_PAIRS:
        return all(gain >= MARGIN for gain in proof.gains)
    return proof.gain.low > 0


def _worth_of(score: float) -> float:
    return 0.0 if math.isnan(score) else squeezed(score)
