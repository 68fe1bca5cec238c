"""Rules of the optimizer: each finds its planted fault by evidence, and is silent where a training works."""

import math
from types import SimpleNamespace

import pytest
import torch
from small_trainings import chart_of, made, mlp, plane, suspects, training
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.network.step import examine_step
from homeostat.doctor.rules.holdings import (
    CoupledDecay,
    MissingParameters,
    MissingZeroGrad,
    PenaltyDominates,
    StaleParameters,
)
from homeostat.doctor.rules.optimizer import ExtremeMomentum, Maximizing, UnsuitedEps, UnsuitedOptimizer
from homeostat.doctor.rules.rate import LearningRateTooHigh, LearningRateTooLow, UnsuitedBatchSize
from homeostat.doctor.trend import Trend, trend_of
from homeostat.errors import InvalidValue

ALL = [
    *(CoupledDecay, MissingParameters, MissingZeroGrad, PenaltyDominates, StaleParameters, ExtremeMomentum, Maximizing),
    *(UnsuitedEps, UnsuitedOptimizer, LearningRateTooHigh, LearningRateTooLow, UnsuitedBatchSize),
]


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr, **options)


def adam(model, lr=0.01, **options):
    return torch.optim.Adam(model.parameters(), lr, **options)


def with_optimizer(make, **options):
    model = mlp()
    return training(model, make(model), **options)


SICK = chart_of(with_optimizer(lambda model: adam(model, 3.0, weight_decay=5.0), epochs=2))
HEALTHY = {
    "momentum": training,
    "adam": lambda: with_optimizer(adam),
    "adamw": lambda: with_optimizer(lambda model: torch.optim.AdamW(model.parameters(), 0.01)),
    "large steps": lambda: with_optimizer(lambda model: sgd(model, 1.0)),
    "regression": lambda: training(mlp(3, 1), data=plane, loss=F.mse_loss, lr=0.01),
    "rmsprop": lambda: with_optimizer(lambda model: torch.optim.RMSprop(model.parameters(), 0.005, weight_decay=1e-4)),
    "likelihood": lambda: with_optimizer(
        lambda model: sgd(model, maximize=True), loss=lambda out, y: -F.cross_entropy(out, y), epochs=20
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_training_that_works_is_neither_certainly_nor_likely_at_fault(name):
    chart = chart_of(HEALTHY[name]())
    assert not chart.ill
    assert chart.course.score > 0.85
    found = [suspect for rule in ALL for suspect in rule().check(chart) if suspect.severity != "info"]
    assert [suspect.message for suspect in found if suspect.certainty != "possible"] == []


@pytest.mark.parametrize("rule", ALL)
def test_every_rule_has_its_page_and_its_suspects_have_what_a_finding_needs(rule):
    for section in (
        "What it checks",
        "Why it hurts",
        "Threshold and its source",
        "False alarms",
        "Repair and its safety",
    ):
        assert f"{section}:" in rule.__doc__
    assert rule.code.startswith("OPT")
    for suspect in rule().check(SICK):
        assert suspect.message.endswith(".")
        assert suspect.remedy.endswith(".")


@pytest.mark.parametrize("lr", [30.0, 1e4])
def test_a_rate_that_makes_the_loss_jump_or_diverge_is_likely_too_high(lr):
    (found,) = suspects(LearningRateTooHigh, with_optimizer(lambda model: sgd(model, lr, momentum=0.9)))
    assert found.certainty == "likely"
    assert "lr_too_high" in found.causes
    assert found.changes[0].factor == (0.1 if lr == 30 else 1e-4)


def test_curvature_is_measured_where_a_training_is_ill_and_gradient_descent_has_a_limit():
    chart = chart_of(with_optimizer(lambda model: sgd(model, 100.0)))
    (found,) = LearningRateTooHigh().check(chart)
    assert found.evidence["curvature_over_limit"] > 6
    assert "times what gradient descent stands" in found.message
    chart.ill = ""
    (found,) = LearningRateTooHigh().check(chart)
    assert "curvature_over_limit" not in found.evidence


def test_divergence_before_the_first_step_is_not_laid_on_the_rate():
    given = training()
    with torch.no_grad():
        given.model[0].weight[0, 0] = math.nan
    assert suspects(LearningRateTooHigh, given) == []


def test_a_rate_too_low_leaves_weights_in_place_and_the_loss_falling():
    given = training(mlp(3, 1), data=plane, loss=F.mse_loss, lr=2e-5, epochs=20)
    (found,) = suspects(LearningRateTooLow, given)
    assert found.certainty == "likely"
    assert found.evidence["moved"] < 0.03
    assert [change.factor for change in found.changes] == [100.0, 10.0]


def test_a_rate_of_0_is_certain_and_names_what_a_scheduler_left():
    given = with_optimizer(lambda model: sgd(model, 0.0), epochs=2)
    (found,) = suspects(LearningRateTooLow, given)
    assert (found.certainty, found.severity) == ("certain", "error")
    assert found.changes[0].what == "learning rate 0 → 0.01"
    assert suspects(LearningRateTooHigh, given) == []
    given = with_optimizer(adam, epochs=2)
    torch.optim.lr_scheduler.LambdaLR(given.optimizer, lambda step: step / 10)
    (found,) = suspects(LearningRateTooLow, given)
    assert (found.certainty, found.severity) == ("certain", "warning")
    assert "initial_lr=0.01" in found.message
    assert found.changes[0].what == "learning rate 0 → 0.01"
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[4].parameters()}]
    found = suspects(LearningRateTooLow, training(model, torch.optim.SGD(groups, 0.1, momentum=0.9)))
    assert "certain" not in {suspect.certainty for suspect in found}


def test_dead_networks_are_not_laid_on_the_rate():
    given = training(lr=1e-3)
    with torch.no_grad():
        given.model[0].bias.fill_(-1e3)
        given.model[2].bias.fill_(-1e3)
        given.model[4].weight.zero_()
        given.model[4].bias.zero_()
        given.model[4].requires_grad_(False)
    assert suspects(LearningRateTooLow, given) == []


class Turn(torch.autograd.Function):
    """The identity, whose gradient has the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Turned(nn.Module):
    def forward(self, x):
        return Turn.apply(x)


@pytest.mark.parametrize("how", ["maximize", "negative", "inside"])
def test_stepping_up_the_loss_is_certain_however_it_comes_about(how):
    given = training(epochs=3)
    (group,) = given.optimizer.param_groups
    if how == "maximize":
        group["maximize"] = True
    elif how == "negative":
        group["lr"] = -0.1
    else:
        given.model = nn.Sequential(given.model, Turned())
    (found,) = suspects(Maximizing, given)
    assert (found.certainty, found.severity) == ("certain", "error")
    assert {"gradient_sign_flipped", "lr_negative", "loss_diverging"} <= set(found.causes)
    assert len(found.changes) == (how != "inside")
    assert suspects(LearningRateTooHigh, given) == []


def test_decay_of_weights_that_fit_is_no_step_up_the_loss():
    def exact(count=300, seed=0):
        x, _ = plane(count, seed)
        return x, x @ torch.tensor([[1.0], [-2.0], [0.5]])

    model = nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.999, -1.998, 0.4995]]))
        model.bias.zero_()
    given = training(model, sgd(model, 0.01, weight_decay=0.01), data=exact, loss=F.mse_loss)
    assert suspects(Maximizing, given, steps=5) == []
    assert examine_step(given, given.examples("train")).rise < -0.9
    given.optimizer.param_groups[0]["maximize"] = True
    assert examine_step(given, given.examples("train")).rise > 0.9


def test_the_loss_itself_says_whether_it_is_meant_to_rise():
    given = with_optimizer(lambda model: sgd(model, maximize=True), loss=lambda out, y: -F.cross_entropy(out, y))
    chart = chart_of(given, steps=3)
    chart.ill = "too short to tell"
    facts = SimpleNamespace(agreement=-1.0)
    chart.loss = facts
    assert list(Maximizing().check(chart)) == []
    facts.agreement = 1.0
    assert len(list(Maximizing().check(chart))) == 1


def test_eps_above_the_gradients_and_eps_of_nothing():
    (found,) = suspects(UnsuitedEps, with_optimizer(lambda model: adam(model, eps=10.0)), steps=5)
    assert (found.certainty, found.causes) == ("possible", ("lr_too_low",))
    model = mlp()
    with torch.no_grad():
        model[0].bias[0] = -1e3  # a dead unit has a gradient of exactly zero
    (found,) = suspects(UnsuitedEps, training(model, adam(model, eps=0.0)), steps=5)
    assert (found.certainty, found.severity) == ("certain", "error")
    assert suspects(UnsuitedEps, with_optimizer(adam), steps=5) == []
    assert suspects(UnsuitedEps, with_optimizer(lambda model: torch.optim.Adadelta(model.parameters())), steps=5) == []


def test_coupled_decay_is_a_remark():
    (found,) = suspects(CoupledDecay, with_optimizer(lambda model: adam(model, weight_decay=0.01)), steps=5)
    assert (found.certainty, found.severity) == ("certain", "info")
    for make in (adam, lambda m: torch.optim.AdamW(m.parameters()), lambda m: sgd(m, weight_decay=0.01)):
        assert suspects(CoupledDecay, with_optimizer(make), steps=5) == []


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw", "loss"])
def test_a_penalty_that_outweighs_the_loss_is_likely(kind):
    model = mlp()
    loss = None
    optimizer = sgd(model)
    if kind == "loss":

        def loss(output, target):
            return F.cross_entropy(output, target) + 3 * sum(p.square().sum() for p in model.parameters())

    elif kind == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), 0.003, weight_decay=100.0)
    else:
        optimizer = (sgd if kind == "sgd" else adam)(model, weight_decay=1.0)
    (found,) = suspects(PenaltyDominates, training(model, optimizer, loss=loss, epochs=2))
    assert found.certainty == "likely"
    assert found.evidence["ratio_at_start"] > 0.5
    assert found.changes[0].in_loss == (kind == "loss")


def test_a_loss_with_parameters_of_its_own_is_no_penalty():
    class Centers(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, target):
            return F.cross_entropy(self.scale * output, target) + self.scale.square()

    loss = Centers()
    model = mlp()
    given = training(model, torch.optim.SGD([*model.parameters(), *loss.parameters()], 0.1), loss=loss)
    facts = examine_step(given, given.examples("train"))
    assert math.isnan(facts.penalty)
    assert (facts.missing, facts.stale, facts.held) == ((), 0, 6)


def test_an_optimizer_of_another_model_is_certain():
    model, other = mlp(), mlp()
    chart = chart_of(training(model, sgd(other)))
    (stale,), (missing,) = StaleParameters().check(chart), MissingParameters().check(chart)
    assert (stale.certainty, stale.severity, missing.severity) == ("certain", "error", "error")
    assert stale.evidence == {"stale": 6, "held": 0, "missing": 6}
    assert chart.course.marks[0].train_loss == chart.course.marks[-1].train_loss


def test_old_parameters_beside_all_of_the_models_own_are_a_remark():
    model, other = mlp(), mlp()
    given = training(model, torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1))
    (found,) = suspects(StaleParameters, given, steps=5)
    assert (found.severity, found.changes) == ("info", ())


def test_layers_left_out_are_a_warning_and_a_feature_extractor_a_remark():
    model = mlp()
    given = training(model, torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], 0.1, momentum=0.9))
    (found,) = suspects(MissingParameters, given)
    assert (found.certainty, found.severity) == ("certain", "warning")
    assert "2.weight, 2.bias" in found.message
    given = training(model, sgd(model[4], momentum=0.9), epochs=20)
    (found,) = suspects(MissingParameters, given)
    assert found.severity == "info"
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    assert suspects(MissingParameters, training(model, sgd(model[4])), steps=5) == []


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()]
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_layers_in_a_plain_list_are_found_in_the_graph():
    model = made(Listed)
    (found,) = suspects(MissingParameters, training(model, sgd(model)))
    assert (found.severity, found.evidence["hidden"]) == ("warning", 4)
    assert "plain lists" in found.message


def test_missing_zero_grad_is_for_watch_and_has_a_page_here():
    assert suspects(MissingZeroGrad, training(), steps=5) == []
    assert "watch" in MissingZeroGrad.__doc__


def test_kind_momentum_and_batch_size_are_only_ever_possible():
    (found,) = suspects(ExtremeMomentum, with_optimizer(lambda model: sgd(model, momentum=0.995)), steps=5)
    assert (found.certainty, found.changes[0].momentum) == ("possible", 0.9)
    (found,) = suspects(ExtremeMomentum, with_optimizer(lambda model: adam(model, betas=(0.99, 0.5))), steps=5)
    assert "without a bound" in found.message
    assert suspects(ExtremeMomentum, with_optimizer(adam), steps=5) == []
    (found,) = suspects(UnsuitedOptimizer, with_optimizer(lambda model: torch.optim.Rprop(model.parameters())), steps=5)
    assert (found.certainty, found.changes[0].name) == ("possible", "adam")
    assert suspects(UnsuitedOptimizer, with_optimizer(adam), steps=5) == []
    (found,) = suspects(UnsuitedBatchSize, training(batch_size=400, epochs=5))
    assert (found.certainty, found.changes[0].batch_size) == ("possible", 50)
    (found,) = suspects(UnsuitedBatchSize, training(batch_size=1, epochs=1))
    assert found.causes[0] == "batch_size_too_small"
    assert suspects(UnsuitedBatchSize, training()) == []


def test_the_step_is_measured_and_nothing_changes_by_it():
    given = training(epochs=1)
    state = torch.random.get_rng_state()
    weights = [p.detach().clone() for p in given.model.parameters()]
    facts = examine_step(given, given.examples("train"))
    assert facts.rise == pytest.approx(-1, abs=1e-3)
    assert facts.ascent == pytest.approx(-1, abs=1e-3)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, given.model.parameters(), strict=True))
    assert not given.optimizer.state
    x, y = given.examples("train").inputs, given.examples("train").targets
    whole = training(batch_size=400, epochs=1)
    facts = examine_step(whole, whole.examples("train").head(256))
    assert facts.total_gradient > 0
    assert len(x) == len(y) == 400


def test_an_optimizer_that_wants_a_closure_is_asked_too():
    given = with_optimizer(lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2))
    assert examine_step(given, given.examples("train")).rise < 0


def test_a_model_that_fails_gives_no_facts():
    def fails(output, target):
        raise InvalidValue("no")

    assert examine_step(training(loss=fails), training().examples("train")) is None


def test_trends_of_losses():
    assert math.isnan(Trend().progress)
    chart = chart_of(training(epochs=2))
    trend = trend_of(chart.course)
    assert trend.progress > 0.1
    assert trend.start == chart.course.marks[0].train_loss
    assert trend.fall > 0
    chart.course.marks.clear()
    chart.course.losses[:] = [1.0] * 50
    assert (trend_of(chart.course).fall, trend_of(chart.course).certainty) == (0.0, 0.0)
    chart.course.losses[:] = [2.0 - 0.01 * step for step in range(100)]
    trend = trend_of(chart.course)
    assert trend.fall == pytest.approx(0.2 / 1.305, rel=1e-6)
    assert trend.certainty > 3
    assert not trend.steady
