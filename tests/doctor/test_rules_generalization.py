"""Rules of generalization: by heart, too little, ended too early, held back; and the baselines that settle it."""

import pytest
import torch
from small_trainings import chart_of, made, mlp, plane, rings, seeded, suspects, training
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.course import Mark
from homeostat.doctor.data.baselines import Baselines
from homeostat.doctor.prescriptions import prescriptions
from homeostat.doctor.rules.generalization import (
    BelowBaseline,
    DropoutInEvaluation,
    Overfitting,
    StrongDecay,
    StrongDropout,
    TooFewEpochs,
    Underfitting,
)

ALL = [Overfitting, Underfitting, TooFewEpochs, StrongDropout, StrongDecay, BelowBaseline, DropoutInEvaluation]


def noisy(count=60, seed=0):
    """Labels that only half follow the inputs, few of them, in many dimensions."""
    x = torch.randn(count, 30, generator=seeded(seed))
    flips = torch.rand(count, generator=seeded(seed + 1)) < 0.25
    return x, ((x[:, 0] > 0) ^ flips).long()


@pytest.mark.parametrize("rule", ALL)
def test_every_rule_has_its_page(rule):
    for section in (
        "What it checks",
        "Why it hurts",
        "Threshold and its source",
        "False alarms",
        "Repair and its safety",
    ):
        assert f"{section}:" in rule.__doc__
    assert rule.code.startswith("GEN")


@pytest.mark.parametrize("how", ["plain", "dropout", "decay", "by heart"])
def test_a_training_that_works_is_neither_certainly_nor_likely_at_fault(how):
    model = mlp()
    if how == "dropout":
        layers = [nn.Linear(4, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 2)]
        model = made(lambda: nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4 if how == "decay" else 0)
    chart = chart_of(training(model, optimizer, epochs=100 if how == "by heart" else 20))
    assert not chart.ill
    found = [suspect for rule in ALL for suspect in rule().check(chart)]
    assert [suspect.message for suspect in found if suspect.certainty != "possible"] == []


def test_examples_learned_by_heart_at_the_cost_of_others():
    given = training(mlp(30, 2, width=128), data=noisy, epochs=60)
    chart = chart_of(given)
    chart.course.marks.insert(3, Mark(5, 1.0, 0.8, chart.course.score + 0.3, 0.5, 0.5))
    (found,) = Overfitting().check(chart)
    assert chart.course.train_score == 1.0
    assert found.certainty == "likely"
    assert found.causes is None
    stop, decay, dropout = found.changes
    assert stop.after == round(60 * 5 / given.total_steps)
    assert (decay.slug, dropout.slug) == ("add-decay", "add-dropout")
    chart.training.valid = None
    assert list(Overfitting().check(chart)) == []


def test_a_gap_alone_is_no_overfitting():
    chart = chart_of(training(mlp(30, 2, width=128), data=noisy, epochs=60))
    chart.ill = ""
    best = max(mark.valid_score for mark in chart.course.marks)
    if best - chart.course.score <= 0.05:
        assert list(Overfitting().check(chart)) == []
    chart.course.marks[:] = [mark._replace(valid_score=0.7) for mark in chart.course.marks]
    assert list(Overfitting().check(chart)) == []


def test_a_network_that_learns_nothing_underfits():
    (found,) = suspects(Underfitting, training(lr=1e-7))
    assert found.certainty == "likely"
    assert found.causes == ("underfitting", "loss_not_decreasing")
    assert suspects(Underfitting, training()) == []


def test_a_training_that_ends_while_its_loss_falls():
    given = training(mlp(3, 1), data=plane, loss=F.mse_loss, lr=2e-4, epochs=3)
    (found,) = suspects(TooFewEpochs, given)
    assert (found.certainty, [change.after for change in found.changes]) == ("possible", [12, 30])
    (found,) = suspects(TooFewEpochs, training(epochs=2, lr=1e-5))
    assert found.evidence["moved"] < 0.1
    assert suspects(TooFewEpochs, training(mlp(3, 1), data=plane, loss=F.mse_loss, lr=0.02, epochs=60)) == []
    assert suspects(TooFewEpochs, given, steps=5) == []


def test_dropout_that_leaves_nothing():
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.9), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.9)]
    given = training(made(lambda: nn.Sequential(*layers, nn.Linear(16, 2))))
    chart = chart_of(given)
    (found,) = StrongDropout().check(chart)
    assert found.evidence["kept"] == pytest.approx(0.01)
    assert [change.probabilities[0][1] for change in found.changes] == pytest.approx([0.0, 0.225])
    chart.course.marks[-1] = chart.course.marks[-1]._replace(train_score=0.5)
    assert next(StrongDropout().check(chart)).certainty == "likely"
    given.model[2].p = given.model[5].p = 0.1
    assert list(StrongDropout().check(chart)) == []


class ByHand(nn.Module):
    """Calls dropout as a function."""

    def __init__(self, p, follows=True):
        super().__init__()
        self.first, self.last = nn.Linear(4, 32), nn.Linear(32, 2)
        self.p, self.follows = p, follows

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(F.dropout(x, self.p, self.training) if self.follows else F.dropout(x, self.p))


def test_dropout_that_is_called_as_a_function_is_seen():
    chart = chart_of(training(made(lambda: ByHand(0.95))))
    (found,) = StrongDropout().check(chart)
    assert found.evidence["largest"] == 0.95
    assert [change.what for change in found.changes] == ["dropout 0.95 → 0", "dropout 0.95 → 0.2375"]
    assert any(change.slug == "set-dropout" for change in prescriptions(chart))
    assert suspects(StrongDropout, training(made(lambda: ByHand(0.1)))) == []
    assert list(DropoutInEvaluation().check(chart)) == []


def test_dropout_that_goes_on_in_evaluation():
    (found,) = suspects(DropoutInEvaluation, training(made(lambda: ByHand(0.5, follows=False))), steps=20)
    assert (found.certainty, found.evidence["largest"]) == ("likely", 0.5)
    assert [change.slug for change in found.changes] == ["follow-mode"]


def test_weights_that_shrink_instead_of_learning():
    model = mlp()
    given = training(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5))
    assert suspects(StrongDecay, given) == []  # it outweighs the loss from the start: OPT006
    chart = chart_of(training(model, torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-3), epochs=2))
    with torch.no_grad():
        for parameter in chart.course.model.parameters():
            parameter.mul_(0.3)
    chart.ill = "R² 0.1 after 40 steps."
    (found,) = StrongDecay().check(chart)
    assert found.evidence["length_left"] < 0.5
    assert [change.factor for change in found.changes] == [0.0, 0.01]
    assert StrongDecay.requires == ("OPT006",)
    assert suspects(StrongDecay, training(lr=1e-7)) == []


def test_below_the_baselines_is_certain_and_has_no_cause():
    chart = chart_of(training(lr=1e-7))
    (found,) = BelowBaseline().check(chart)
    assert (found.certainty, found.severity, found.message) == ("certain", "warning", chart.ill)
    assert BelowBaseline.causes == ()
    assert found.evidence["baseline"] == chart.baselines.best
    chart.ill, chart.baselines = "", Baselines(0.5)
    assert list(BelowBaseline().check(chart)) == []
    assert rings(2)[1].dtype == torch.int64
