"""SIG: each rule finds the planted fault of signals and activations, and is silent on healthy networks."""

import math

import pytest
import torch
from small_networks import Bare, Exponential, chain, charted, given, glorot, he, narrow, suspects
from small_trainings import made
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.rules.functions import MissingActivation, UnsuitedActivation
from homeostat.doctor.rules.signal import (
    ConstantOutputs,
    DeadUnits,
    ExplodingActivations,
    NonFinite,
    RankCollapse,
    SaturatedUnits,
    VanishingActivations,
)

ALL = [
    *(ConstantOutputs, DeadUnits, ExplodingActivations, NonFinite, RankCollapse, SaturatedUnits, VanishingActivations),
    *(MissingActivation, UnsuitedActivation),
]

HEALTHY = {
    "relu": chain,
    "tanh": lambda: chain(8, 32, nn.Tanh, glorot),
    "gelu": lambda: chain(6, 32, nn.GELU),
    "leaky": lambda: chain(6, 32, nn.LeakyReLU),
    "deep relu": lambda: chain(15, 64),
    "one layer": lambda: chain(1),
    "batch norm": lambda: made(
        lambda: nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    ),
    "bottleneck": lambda: made(lambda: nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_are_not_suspected(name):
    chart = charted(given(HEALTHY[name](), lr=0.01), 40)
    assert [(rule.code, each.message) for rule in ALL for each in rule().check(chart)] == []


def test_sig001_signals_that_die_out():
    (found,) = suspects(VanishingActivations, given(chain(8, init=narrow)))
    assert found.causes == ("vanishing_gradient", "bad_init_scale")
    assert found.evidence["ratio"] < 1e-4


def test_sig001_squashing_functions_are_named_where_they_are_the_cause():
    (found,) = suspects(VanishingActivations, given(chain(14, 8, nn.Sigmoid, glorot)))
    assert found.causes == ("vanishing_gradient", "wrong_hidden_activation")
    assert "sigmoid → relu" in found.changes[0].what


def test_sig002_signals_that_grow():
    (found,) = suspects(ExplodingActivations, given(chain(6, init=nn.init.normal_)))
    assert found.causes == ("exploding_gradient", "bad_init_scale")
    assert found.evidence["ratio"] > 30


def test_sig003_a_dead_layer_is_certain():
    model = chain(4)
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    (found,) = suspects(DeadUnits, given(model))
    assert (found.certainty, found.severity, found.layer) == ("certain", "error", "3")
    assert "relu → leaky_relu" in found.changes[0].what


class Around(nn.Module):
    """A dead rectifier on a way around which there is another: a gate, or a side branch."""

    def __init__(self, join):
        super().__init__()
        self.join = join
        self.first, self.live = nn.Linear(4, 16), nn.ReLU()
        self.inner, self.dead, self.outer = nn.Linear(16, 2), nn.ReLU(), nn.Linear(2, 16)
        self.last = nn.Linear(16 if join == "gate" else 32, 2)
        with torch.no_grad():
            self.inner.bias.fill_(-100.0)

    def forward(self, x):
        x = self.live(self.first(x))
        side = self.outer(self.dead(self.inner(x)))
        return self.last(x * torch.sigmoid(side) if self.join == "gate" else torch.cat([x, side], 1))


@pytest.mark.parametrize("join", ["gate", "side branch"])
def test_sig003_a_dead_layer_with_a_way_around_it_cuts_nothing_off(join):
    (found,) = suspects(DeadUnits, given(made(lambda: Around(join))))
    assert (found.certainty, found.severity, found.layer) == ("likely", "warning", "dead")
    assert "nothing before" not in found.message


def test_sig003_many_dead_units_are_likely():
    model = chain(4)
    with torch.no_grad():
        model[2].bias[:13] = -100.0
    (found,) = suspects(DeadUnits, given(model))
    assert (found.certainty, found.severity) == ("likely", "warning")
    assert found.evidence["dead"] >= 0.75


def test_sig003_units_that_die_while_training_are_found_after_the_trial():
    training = given(chain(4), lr=30.0)
    found = suspects(DeadUnits, training, 30)
    assert found
    assert found[0].evidence["when"] == "after the trial"
    assert found[0].certainty == "certain"  # no gradient is left that could bring them back


def test_sig003_leaky_units_do_not_die():
    model = chain(4, activation=nn.LeakyReLU)
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    assert suspects(DeadUnits, given(model)) == []


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid, nn.Hardsigmoid])
def test_sig004_saturation_of_any_function(activation):
    found = suspects(SaturatedUnits, given(chain(3, 32, activation, lambda w: nn.init.normal_(w, std=30.0))))
    assert [each.certainty for each in found] == ["likely"]
    assert found[0].evidence["saturated"] > 0.5


def test_sig004_a_sure_output_is_not_saturated():
    model = nn.Sequential(*chain(3, outputs=1), nn.Sigmoid())
    with torch.no_grad():
        model[4].weight.mul_(1000)

    def loss(p, y):
        return F.binary_cross_entropy(p[:, 0], y.float())

    assert suspects(SaturatedUnits, given(model, loss=loss)) == []


def test_sig005_softmax_over_one_unit_is_certain():
    model = nn.Sequential(*chain(3, outputs=1), nn.Softmax(1))

    def loss(p, y):
        return F.mse_loss(p[:, 0], y.float())

    (found,) = suspects(ConstantOutputs, given(model, loss=loss))
    assert (found.certainty, found.layer) == ("certain", "5")
    assert "wrong_output_activation" in found.causes


def test_sig005_outputs_that_are_the_same_for_all_after_training():
    model = chain(4)
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    (found,) = suspects(ConstantOutputs, given(model))
    assert found.certainty == "likely"


def test_sig005_a_last_layer_of_zeros_learns():
    model = chain(3)
    with torch.no_grad():
        model[-1].weight.zero_()
    assert suspects(ConstantOutputs, given(model), 40) == []


def test_sig005_targets_that_are_all_alike_may_have_constant_outputs():
    model = chain(3)
    with torch.no_grad():
        model[-1].weight.zero_()
    training = given(model)
    training.with_data("train", (training.train[0], torch.ones_like(training.train[1])))
    training.optimizer.param_groups[0]["lr"] = 0.0
    assert suspects(ConstantOutputs, training) == []


def test_sig006_one_direction_is_all_that_is_left():
    found = suspects(RankCollapse, given(chain(30, 3)))
    assert [each.certainty for each in found] == ["likely"]
    assert "rank_collapse" in (found[0].causes or RankCollapse.causes)


def test_sig007_the_first_layer_that_overflows_is_named():
    (found,) = suspects(NonFinite, given(chain(6, 16, Exponential)))
    assert (found.certainty, found.severity) == ("certain", "error")
    assert "wrong_hidden_activation" in found.causes
    assert "exp → relu" in found.changes[0].what


def test_sig007_weights_of_infinity_are_not_the_activations_fault():
    model = chain(3)
    with torch.no_grad():
        model[2].weight.fill_(math.inf)
    (found,) = suspects(NonFinite, given(model))
    assert found.layer == "2"
    assert found.causes is None


def test_sig008_a_network_without_any_activation_is_likely_a_linear_model():
    (found,) = suspects(MissingActivation, given(chain(3, activation=nn.Identity)))
    assert found.certainty == "likely"
    assert found.changes[0].after == ("0", "2")


def test_sig008_one_missing_activation_is_possible():
    model = made(lambda: nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)))
    (found,) = suspects(MissingActivation, given(model))
    assert (found.certainty, found.layer) == ("possible", "0")


def test_sig009_a_sigmoid_is_possible():
    (found,) = suspects(UnsuitedActivation, given(chain(2, 16, nn.Sigmoid)))
    assert found.certainty == "possible"


def test_sig009_many_sigmoids_are_likely():
    (found,) = suspects(UnsuitedActivation, given(chain(8, 8, nn.Sigmoid, he)))
    assert found.certainty == "likely"
    assert found.causes == ("wrong_hidden_activation", "vanishing_gradient")


@pytest.mark.parametrize(("activation", "name"), [(Exponential, "exp"), (lambda: nn.Softmax(1), "softmax")])
def test_sig009_explosive_functions_and_hidden_softmax_are_likely(activation, name):
    (found,) = suspects(UnsuitedActivation, given(chain(3, 4, activation)))
    assert found.certainty == "likely"
    assert found.evidence["function"] == name


def test_sig009_the_output_activation_is_not_judged():
    (found,) = suspects(UnsuitedActivation, given(made(Bare)))
    assert found.changes[0].functions == (("sigmoid", 1), ("sigmoid", 2))


def test_what_was_not_measured_is_not_judged():
    chart = charted(given(chain()))
    chart.probe = chart.structure = chart.late = None
    assert [found for rule in ALL for found in rule().check(chart)] == []
