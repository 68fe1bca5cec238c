"""Copies are trained under seeds of their own, compared at equal steps, and nothing of the user's is touched."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.arms import Arms, squeezed
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.change import CannotApply, Change
from homeostat.doctor.course import Runner, mark_steps
from homeostat.doctor.score import score_of
from homeostat.doctor.training import Training

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(120, 3, generator=GENERATOR)
Y = (X @ torch.tensor([[1.0], [-2.0], [0.5]])).contiguous()


def make(loss_fn=F.mse_loss, model=None, lr=0.05, **settings):
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.1), nn.ReLU(), nn.Linear(8, 1))
    settings = {"batch_size": 20, "epochs": 5, **settings}
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return Training(model, loss_fn, optimizer, (X[:80], Y[:80]), (X[80:], Y[80:]), **settings)


def runner_of(training, seed=0):
    examples = training.examples("train"), training.examples("valid")
    return Runner(training, examples, score_of(None, Y[:8], Y), seed=seed, marks=mark_steps(20))


def test_a_course_measures_what_happened():
    course = runner_of(make().copy()).advance(20, Deadline())
    assert (course.steps, course.total, course.finished) == (20, 20, True)
    assert [mark.step for mark in course.marks] == mark_steps(20)
    assert course.marks[-1].epoch == 5.0
    assert course.losses[-1] < 0.5 * course.losses[0]
    assert course.score > 0.7


def test_going_on_equals_not_having_stopped():
    whole, parts = runner_of(make().copy()), runner_of(make().copy())
    whole.advance(20, Deadline())
    parts.advance(7, Deadline())
    torch.rand(5)
    parts.advance(20, Deadline())
    assert whole.course.losses == parts.course.losses
    assert whole.course.score == parts.course.score


def test_a_course_leaves_global_random_state_and_the_users_model_alone():
    training = make()
    before = [p.clone() for p in training.model.parameters()]
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    runner_of(training.copy()).advance(5, Deadline())
    assert torch.equal(torch.rand(2), wanted)
    assert all(torch.equal(a, b) for a, b in zip(before, training.model.parameters(), strict=True))


def test_divergence_is_a_result():
    course = runner_of(make(lr=1e6).copy()).advance(20, Deadline())
    assert course.diverged is not None
    assert course.finished
    assert math.isnan(course.score)


def test_what_the_users_code_raises_ends_the_course():
    def fails(output, target):
        if output.requires_grad:
            raise RuntimeError("no such kernel")
        return F.mse_loss(output, target)

    course = runner_of(make(fails).copy()).advance(20, Deadline())
    assert (course.error, course.ended) == ("RuntimeError: no such kernel", True)


def test_a_course_stops_at_the_deadline():
    assert runner_of(make(epochs=500).copy()).advance(2000, Deadline(0)).steps == 1


def test_a_batch_of_one_is_left_out_with_batch_normalization():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    training = make(model=model, batch_size=79)
    course = runner_of(training.copy()).advance(5, Deadline())
    assert (course.error, course.steps) == ("", 5)


def test_frozen_layers_stay_in_evaluation_mode():
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model[1].eval()
    runner = runner_of(make(model=model).copy())
    runner.advance(20, Deadline())
    assert not runner.training.model[1].training
    assert torch.equal(runner.training.model[1].running_mean, torch.zeros(8))


@pytest.mark.parametrize(("clip", "all_steps"), [(1e-3, True), (1e6, False), (("value", 1e-4), True)])
def test_clipped_steps_are_counted(clip, all_steps):
    course = runner_of(make(clip=clip).copy()).advance(20, Deadline())
    assert course.clipped == (20 if all_steps else 0)


@dataclass(frozen=True)
class Faster(Change):
    factor: float

    slug: ClassVar[str] = "faster"
    family: ClassVar[str] = "rate"
    safety: ClassVar[str] = "safe"

    def apply(self, training):
        if self.factor < 0:
            raise CannotApply("no rate is negative")
        training.optimizer.param_groups[0]["lr"] = 0.05 * self.factor

    what = "faster"
    diff = ""


@dataclass(frozen=True)
class Longer(Faster):
    def apply(self, training):
        training.epochs = 10


def arms_of(training):
    examples = training.examples("train"), training.examples("valid")
    return Arms(training, examples, score_of(None, Y[:8], Y), 0, mark_steps(20))


def test_arms_differ_by_their_changes_alone():
    arms = arms_of(make(lr=0.001))
    base, same, faster = arms.arm(), arms.arm([Faster(0.02)]), arms.arm([Faster(1)])
    for arm in (base, same, faster):
        arms.run(arm, 20, Deadline())
    assert base.course.losses == same.course.losses
    assert arms.outcome(faster, 20) > arms.outcome(base, 20) + 0.3
    assert arms.arm([Faster(1)]) is faster


def test_a_longer_training_is_compared_at_the_same_share():
    arms = arms_of(make())
    arm = arms.arm([Longer(1)])
    course = arms.run(arm, 10, Deadline())
    assert (arm.stretch, course.steps) == (2.0, 20)
    assert arms.reached(arm, 10)
    assert not arms.reached(arm, 20)


def test_a_change_that_cannot_be_made_is_an_arm_that_failed():
    arms = arms_of(make())
    arm = arms.arm([Faster(-1)])
    assert arm.failed == "no rate is negative"
    assert arms.run(arm, 20, Deadline()) is None
    assert arms.outcome(arm, 20) == -math.inf


@pytest.mark.parametrize(("r2", "merit"), [(1.0, 1.0), (0.0, 0.0), (-9.0, -0.9), (-math.inf, -1.0), (math.nan, -1.0)])
def test_r2_below_zero_is_squeezed(r2, merit):
    assert squeezed(r2) == pytest.approx(merit)
