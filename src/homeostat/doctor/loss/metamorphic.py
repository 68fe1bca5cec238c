"""Metamorphic tests of a user's loss function: what it does to outputs and targets, found by calling it.

Nothing is read off a name or source. A batch is doubled, targets are exchanged, outputs are moved toward their targets
and away, shifted over classes and over the batch, saturated; the loss and its gradient answer. Where the loss cannot be
called so (it draws numbers, keeps lists, wants one batch size), a fact is None. Findings are made of facts in
`rules.loss`. Not random: probes have a fixed stream, and global random state stays as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.doctor.loss.black_box import BlackBox, Reading, choose_box
from homeostat.doctor.loss.comparison import aims_at_targets, counts_numbers
from homeostat.doctor.loss.facts import LossFacts
from homeostat.doctor.loss.identify import Match, match
from homeostat.doctor.loss.known import LOG_RATES, Expects, Known
from homeostat.doctor.loss.layout import Layout, layout_of
from homeostat.doctor.loss.outputs import Seen, look
from homeostat.doctor.loss.probes import MOST_OUTPUTS, in_unit, interior, positive, probe_batches, spread, unit

if TYPE_CHECKING:
    from homeostat.doctor.examples import Examples
    from homeostat.doctor.score import Score
    from homeostat.doctor.training import Training

_Fact = TypeVar("_Fact")

__all__ = ["LossFacts", "examine_loss"]

_SAME = 1e-4  # relative change that rounding explains, in single precision, with sums over a batch
_EQUAL = 1e-6  # the same for sums in another order; a loss in which one term dwarfs the targets is above it somewhere
_FAR = (1.0, 3.0, 10.0, 30.0, 100.0, 1e3)  # how far outputs are moved toward targets, in probabilities or logits
_SHIFTS = (
    1.0,
    -3.0,
    10.0,
)  # added to outputs; beyond +-5 every loss on probabilities or margins has changed its branch
_SATURATED = 100.0  # a logit beyond which exp overflows or vanishes in single precision: exp(±100)
_UNDECIDED = 0.5  # agreement: 1 and -1 for a loss on scores of classes


def examine_loss(training: Training, batch: Examples, outputs: Tensor, score: Score) -> LossFacts:
    """Test the loss of a training.

    Args:
        training: its loss is asked, and left as it was; its training targets help out where the batch has few.
        batch: training examples.
        outputs: the model's for this batch, shape (N, ...).
        score: says what kind of task it is and where outputs count classes.
    """
    with seeds.isolated(0, "doctor", "loss tests"):
        return _examined(training, batch, outputs, score)


def _examined(training: Training, batch: Examples, outputs: Tensor, score: Score) -> LossFacts:
    few = max(2, MOST_OUTPUTS // max(1, outputs[:1].numel()))
    outputs, batch = outputs.detach()[:few], batch.head(few)
    layout = layout_of(outputs, batch.targets, score.class_dim if score.kind == "multiclass" else None)
    seen = look(outputs, layout.axis if layout.form in ("index", "one-hot") else None)
    own = BlackBox(training.loss_fn, outputs.dtype if outputs.is_floating_point() else torch.float32)
    here = own.read(outputs, batch.targets)
    tests = None
    for sample, targets in probe_batches(training, outputs, batch.targets, layout):
        tests = _Tests(training, sample, targets, layout, score)
        if tests.probes:
            flat = _flat(here, outputs, batch.targets, tests)
            return tests.facts(here.value, seen, flat, own)
    if tests is None:
        return LossFacts(here.value, layout, seen, error="there are no targets, or too many outputs")
    uses, detached = tests.dead()
    return LossFacts(
        here.value,
        layout,
        seen,
        error=tests.error,
        penalizes=tests.penalizes,
        uses_outputs=uses,
        detached=detached,
    )


class _Tests:
    """One loss on one small batch."""

    def __init__(self, training: Training, outputs: Tensor, targets: Tensor, layout: Layout, score: Score) -> None:
        self.outputs, self.targets, self.layout, self.score = outputs, targets, layout, score
        inside = [interior(outputs, targets, layout, seed) for seed in range(3)]
        self.candidates = [*inside, spread(outputs, targets, 0), positive(outputs), unit(outputs, targets, layout, 1)]
        self.box = choose_box(training.loss_fn, inside[0], targets)
        self.penalizes = self.box.penalizes(outputs, targets)
        readings = [self.box.read(candidate, targets) for candidate in self.candidates]
        self.readings = readings
        moving = [(probe, reading) for probe, reading in zip(self.candidates, readings, strict=True) if reading.moves]
        self.moving = [(probe, _gradient(reading.gradient)) for probe, reading in moving]
        self.probes = [probe for probe, _ in self.moving[:3]]
        self.gradients = [gradient for _, gradient in self.moving[:3]]
        self.error = next((reading.error for reading in readings if reading.error), "")

    @property
    def classified(self) -> bool:
        """Whether the task has right and wrong answers."""
        return self.score.kind in ("multiclass", "binary", "multilabel") and self.layout.form != "unlike"

    def dead(self) -> tuple[bool | None, bool]:
        """Of a loss without any gradient: whether it uses outputs, and whether its value depends on them anyway."""
        values = [reading.value for reading in self.readings if reading.answered and math.isfinite(reading.value)]
        if len(values) < 2 or self.penalizes:
            return None, False
        constant = max(values) - min(values) <= _SAME * max(1e-12, abs(max(values)))
        return False, not constant

    def facts(self, value: float, seen: Seen, flat: float | None, own: BlackBox) -> LossFacts:
        """All facts of a loss with gradients."""
        found = match(self.box, self.outputs, self.targets, self.layout)
        shifts = (_asked(self.shifts) or ()) if self.classified else ()
        uses_targets = _asked(self.uses_targets)
        paired = _asked(self.paired) if uses_targets else None
        ignored, coupled = _asked(self.ignored), _asked(self.coupled)
        agreement = _asked(self.agreement)
        alone = uses_targets and paired
        broken = uses_targets is False or paired is False or coupled or ignored is not None
        return LossFacts(
            value,
            self.layout,
            seen,
            match=found,
            meant=found.known if found is not None else self.meant() if broken else None,
            expects=found.known.expects if found is not None else self.expects(shifts),
            penalizes=self.penalizes,
            uses_outputs=True,
            uses_targets=None if self.penalizes and not uses_targets else uses_targets,
            ignored=ignored,
            paired=paired,
            broadcast=self.box.broadcasts(self.probes[0], self.targets),
            coupled=coupled,
            growth=_asked(self.growth),
            agreement=agreement,
            comparable=_asked(lambda: self.comparable(found, agreement, coupled)) if alone else None,
            shifts=shifts,
            unbounded=_asked(self.unbounded),
            floor=_asked(self.floor),
            aims=_asked(self.aims),
            blind=_asked(self.blind),
            flat=flat,
            overflows=_asked(lambda: self.overflows(own, found.known.expects if found is not None else None)) or (),
        )

    def meant(self) -> Known | None:
        """The known loss on batches in which all targets are equal, if it is the same for two targets."""
        names = []
        for row in (0, len(self.targets) - 1):
            equal = self.targets[row : row + 1].expand_as(self.targets).contiguous()
            found = match(self.box, self.outputs, equal, self.layout)
            names.append(None if found is None else found.known)
        return names[0] if names[0] is names[1] else None

    def uses_targets(self) -> bool | None:
        """Whether any gradient changes with other targets; None where the batch has only one target."""
        others = [self.targets.roll(1, 0), self.targets[:1].expand_as(self.targets).contiguous()]
        if all(torch.equal(other, self.targets) for other in others):
            return None
        known = False
        for probe, gradient in self.moving:
            for other in others:
                reading = self.box.read(probe, other)
                if reading.usable:
                    known = True
                    if _distance(_gradient(reading.gradient), gradient) > _EQUAL:
                        return True
        return False if known else None

    def paired(self) -> bool | None:
        """Whether exchanging targets changes the loss."""
        rolled = self.targets.roll(1, 0)
        if torch.equal(rolled, self.targets):
            return None
        for probe, gradient in self.moving:
            before, after = self.box.read(probe, self.targets), self.box.read(probe, rolled)
            if not (before.usable and after.usable):
                return None
            moved = abs(after.value - before.value) / max(abs(before.value), 1e-12)
            if max(moved, _distance(_gradient(after.gradient), gradient)) > _EQUAL:
                return True
        return False

    def ignored(self) -> float | None:
        """The truth value whose examples never have a gradient while the others do."""
        if self.layout.form != "same" or not self.classified:
            return None
        goals = self.layout.rows(self.outputs, self.targets)[1].reshape(-1)
        silent = torch.stack([(gradient == 0).reshape(-1) for gradient in self.gradients]).all(0)
        values = goals.unique().tolist()
        if len(values) != 2:
            return None
        quiet = [value for value in values if bool(silent[goals == value].all())]
        return float(quiet[0]) if len(quiet) == 1 else None

    def coupled(self) -> bool | None:
        """Whether the profile of the first half's gradients depends on the second half."""
        half = len(self.outputs) // 2
        if half < 2:
            return None
        probe, other = self.probes[0], self.probes[-1].flip(0)
        if len(self.probes) == 1:
            other = probe.flip(0)
        mixed = torch.cat([probe[:half], other[half:]])
        goals = torch.cat([self.targets[:half], self.targets[half:].flip(0)])
        first, second = self.gradients[0][:half], self.box.read(mixed, goals)
        if not second.usable:
            return None
        profile = _gradient(second.gradient)[:half]
        if not (first.norm() > 0 and profile.norm() > 0):
            return None
        return _distance(profile / profile.norm(), first / first.norm()) > 10 * _SAME

    def growth(self) -> float | None:
        """The gradient per example in a doubled batch, times two, over that in the batch."""
        probe, gradient = self.probes[0], self.gradients[0]
        doubled = self.box.read(torch.cat([probe, probe]), torch.cat([self.targets, self.targets]))
        if not doubled.usable:
            return None
        return float(2 * _gradient(doubled.gradient)[: len(probe)].norm() / gradient.norm())

    def agreement(self) -> float | None:
        """Whether the loss falls toward the targets: by the slope, and by a step half the way."""
        if self.layout.form == "unlike":
            return None
        falls = rises = count = 0
        for probe, gradient in zip(self.probes, self.gradients, strict=True):
            way = self.layout.one_hot(probe, self.targets).to(probe.device) - probe
            slopes = (gradient * way).reshape(len(probe), -1).sum(1)
            step = self.box.read(probe + 0.5 * way, self.targets).value - self.box.read(probe, self.targets).value
            falls += int((slopes < 0).sum()) if step <= 0 else 0
            rises += int((slopes > 0).sum()) if step >= 0 else 0
            count += len(slopes)
        return (falls - rises) / count

    def comparable(self, found: Match | None, agreement: float | None, coupled: bool | None) -> bool | None:
        """Whether outputs can be held against targets once the model is trained."""
        if self.score.kind == "regression" and self.layout.form == "same" and not coupled:
            if found is not None and found.known.name == LOG_RATES and float(self.targets.min()) >= 0:
                return False
            return aims_at_targets(self.box, self.outputs, self.targets, self.layout)
        if self.score.kind == "multiclass" and self.layout.form == "index":
            if self.penalizes and agreement is not None and abs(agreement) < _UNDECIDED:
                return False  # the loss has weights of its own, which make classes of the outputs
            return counts_numbers(self.box, self.moving, self.targets)
        return None

    def shifts(self) -> tuple[int, ...]:
        """Axes along which a constant may be added."""
        probe = self.probes[0]
        free = torch.randn(probe.shape, generator=seeds.torch_generator(0, "loss", "shift"), dtype=torch.float64)
        base = self.box.read(probe, self.targets).value
        axes = [axis for axis in range(probe.dim()) if probe.shape[axis] > 1]
        return tuple(axis for axis in axes if self._may_shift(axis, probe, free.to(probe.device), base))

    def _may_shift(self, axis: int, probe: Tensor, free: Tensor, base: float) -> bool:
        """Whether loss and gradient stay, near and far: among balanced classes many losses do for small shifts."""
        along = free.mean(axis, keepdim=True) * math.sqrt(probe.shape[axis])
        along = along + along.sign()  # no shift is small
        for size in _SHIFTS:
            there = self.box.read(probe + size * along, self.targets)
            elsewhere = self.box.read(probe + size * free, self.targets)
            if not (there.usable and elsewhere.usable):
                return False
            turned = _distance(_gradient(there.gradient), self.gradients[0])
            if abs(there.value - base) > _SAME * abs(elsewhere.value - base) or turned > 10 * _SAME:
                return False
        return True

    def _toward(self, scale: float) -> float:
        """The loss where outputs are right and as large as `scale`; nan where that cannot be asked."""
        goal = self.layout.one_hot(self.outputs, self.targets).to(self.outputs.device)
        if self.layout.form == "same":
            goal = goal if float(self.targets.min()) < 0 else 2 * goal - 1
        return self.box.read(goal * scale, self.targets).value

    def unbounded(self) -> bool | None:
        """Whether outputs that are right can lower the loss for ever."""
        if not self.classified:
            return None
        near, far, further = (self._toward(scale) for scale in (1.0, 1e3, 1e6))
        if not (math.isfinite(far) and math.isfinite(further)):
            return None
        middle = self.readings[0].value
        scale = (
            max(abs(value - far) for value in (near, middle) if math.isfinite(value)) if math.isfinite(middle) else 1
        )
        return further < far - 1e-2 * max(scale, 1e-12)

    def floor(self) -> float | None:
        """How much of the loss perfect outputs within [0, 1] leave."""
        if not self.classified or (self.layout.form == "same" and not in_unit(self.targets)):
            return None
        goal = self.layout.one_hot(self.outputs, self.targets).to(self.outputs.device)
        goal = (goal + 1) / 2 if float(goal.min()) < 0 else goal
        columns = self.outputs.shape[self.layout.axis] if self.layout.form in ("index", "one-hot") else 2
        perfect = self.box.read(goal, self.targets).value
        undecided = self.box.read(torch.full_like(goal, 1 / columns), self.targets).value
        reached = [value for value in (perfect, *map(self._toward, _FAR)) if math.isfinite(value)]
        if not (math.isfinite(perfect) and math.isfinite(undecided)) or undecided - min(reached) <= 1e-9:
            return None
        return (perfect - min(reached)) / (undecided - min(reached))

    def aims(self) -> bool | None:
        """Whether the gradient vanishes at the targets."""
        if self.layout.form != "same":
            return None
        there = self.box.read(self.layout.one_hot(self.outputs, self.targets).to(self.outputs.device), self.targets)
        if not there.usable:
            return None
        return bool(_gradient(there.gradient).norm() <= 1e-2 * self.gradients[0].norm())

    def expects(self, shifts: tuple[int, ...]) -> Expects | None:
        """What an unknown loss on classes takes: a softmax inside wants logits, an end beyond [0, 1] probabilities."""
        if not self.classified:
            return None
        if self.layout.form in ("index", "one-hot") and self.layout.axis in shifts:
            return "logits"
        beyond = self.box.read(spread(self.outputs, self.targets, 0), self.targets)
        if not beyond.usable:
            return "probabilities" if self.readings[0].usable else None
        goal = self.layout.one_hot(self.outputs, self.targets).to(self.outputs.device)
        below = (spread(self.outputs, self.targets, 0) < 0) & (goal > 0.5)
        silent = _gradient(beyond.gradient)[below] == 0
        return "probabilities" if below.any() and bool(silent.all()) else None

    def blind(self) -> float | None:
        """How much of the outputs near their targets gets no gradient at all."""
        if self.score.kind != "regression" or self.layout.form != "same":
            return None
        silent = [
            reading.gradient == 0 for reading in self.readings[:3] if reading.usable and reading.gradient is not None
        ]
        return float(torch.stack(silent).double().mean()) if silent else None

    def overflows(self, own: BlackBox, expects: Expects | None) -> tuple[str, ...]:
        """Extreme outputs that a network can give and the loss cannot take."""
        if not self.classified:
            return ()
        goal = self.layout.one_hot(self.outputs, self.targets).to(self.outputs)
        goal = (goal + 1) / 2 if float(goal.min()) < 0 else goal
        wrong = goal.roll(1, self.layout.axis) if self.layout.form in ("index", "one-hot") else 1 - goal
        if expects == "probabilities":
            name, extremes = "a probability of exactly 0 or 1", [goal, wrong]
        elif expects == "logits":
            name, extremes = f"a logit of {_SATURATED:g}", [_SATURATED * (2 * each - 1) for each in (goal, wrong)]
        else:
            return ()
        readings = [own.read(extreme, self.targets) for extreme in extremes]
        return (name,) if any(reading.answered and not reading.usable for reading in readings) else ()


def _flat(here: Reading, outputs: Tensor, targets: Tensor, tests: _Tests) -> float | None:
    """Share of the wrongly predicted rows that get no gradient at the outputs the model gives now."""
    layout, score = tests.layout, tests.score
    if not here.usable or layout.form == "unlike":
        return None
    rows, goals = layout.rows(outputs, targets)
    gradient = layout.rows(_gradient(here.gradient), targets)[0]
    live = tests.box.read(interior(outputs, targets, layout, 0), targets)  # targets that are to be ignored have none
    if not live.usable:
        return None
    if layout.form in ("index", "one-hot"):
        wrong = rows.argmax(1) != layout.labels(targets)
    elif score.kind in ("binary", "multilabel"):
        wrong = ((rows > score.boundary) != (goals > (0.0 if goals.min() < 0 else 0.5))).any(1)
    else:
        wrong = (rows - goals).abs().mean(1) > 0.5 * goals.std(correction=0)
    wrong &= layout.rows(_gradient(live.gradient), targets)[0].abs().sum(1) > 0
    return float((gradient[wrong].abs().sum(1) == 0).double().mean()) if bool(wrong.any()) else None


def _asked(test: Callable[[], _Fact]) -> _Fact | None:
    """What a test finds; None where outputs or targets are not what it takes them for."""
    try:
        return test()
    except (RuntimeError, ValueError, IndexError):
        return None


def _gradient(gradient: Tensor | None) -> Tensor:
    """A gradient that is known to be there."""
    if gradient is None:
        raise RuntimeError("a reading without gradient was taken for one with")
    return gradient


def _distance(one: Tensor, other: Tensor) -> float:
    """The relative difference of two gradients."""
    scale = max(float(one.norm()), float(other.norm()), 1e-300)
    return float((one - other).norm()) / scale
