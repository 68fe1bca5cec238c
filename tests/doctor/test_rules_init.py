"""INI: each rule finds the planted fault of the weights by measuring, and is silent on healthy initializations."""

import math

import pytest
import torch
from small_networks import chain, charted, given, glorot, he, narrow, suspects
from small_trainings import made, plane
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.rules.init import (
    BackwardFactor,
    DuplicatedWeights,
    ForwardFactor,
    LargeBias,
    OutputScale,
    WeightScale,
)

ALL = [BackwardFactor, DuplicatedWeights, ForwardFactor, LargeBias, OutputScale, WeightScale]


def orthogonal(weight):
    nn.init.orthogonal_(weight, 2**0.5)


def zero_last(model):
    with torch.no_grad():
        model[-1].weight.zero_()
    return model


class Sequences(nn.Module):
    """Reads the inputs as sequences of numbers."""

    def __init__(self, kind=nn.LSTM, **options):
        super().__init__()
        self.rnn = kind(1, 16, batch_first=True, **options)
        self.head = nn.Linear(16 * (1 + self.rnn.bidirectional), 2)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(2))[0][:, -1])


class Own(nn.Module):
    """A linear layer of somebody's own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        he(self.weight)

    def forward(self, x):
        return F.linear(x, self.weight)


class Positions(nn.Module):
    """Adds a table that begins with zeros, of which most rows are never used."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(64, 16))

    def forward(self, x):
        return (x.reshape(len(x), 2, 16) + self.table[:2]).flatten(1)


class Zeros(nn.Module):
    """A residual branch and a last layer that begin with zeros: at first no gradient arrives at the branch."""

    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.branch, self.head = (
            *(nn.Linear(4, 16), nn.Linear(16, 16)),
            *(nn.Linear(16, 16), nn.Linear(16, 2)),
        )
        for layer in (self.branch, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(torch.relu(self.inner(x))))


HEALTHY = {
    "he": chain,
    "he, deep": lambda: chain(20, 32),
    "glorot, tanh, deep": lambda: chain(20, 32, nn.Tanh, glorot),
    "orthogonal": lambda: chain(6, 32, init=orthogonal),
    "torch's default": lambda: made(lambda: nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))),
    "a last layer of zeros": lambda: zero_last(chain(3)),
    "zeros behind each other": lambda: made(Zeros),
    "recurrent": lambda: made(Sequences),
    "layers of one's own": lambda: made(lambda: nn.Sequential(Own(4, 32), nn.ReLU(), Own(32, 2))),
    "a table of zeros": lambda: made(lambda: nn.Sequential(nn.Linear(4, 32), Positions(), nn.ReLU(), nn.Linear(32, 2))),
    "one output": lambda: chain(2, outputs=2),
    "normalized": lambda: made(
        lambda: nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_initializations_are_not_suspected(name):
    chart = charted(given(HEALTHY[name]()))
    assert [(rule.code, each.message) for rule in ALL for each in rule().check(chart)] == []


def test_ini001_units_that_stay_copies_are_certain():
    (found,) = suspects(DuplicatedWeights, given(chain(3, init=lambda w: nn.init.constant_(w, 0.1))))[:1]
    assert found.certainty == "certain"
    assert found.layer == "0"
    assert found.changes[0].layers[0] == "0"
    assert "same gradients" in found.message


def test_ini001_units_that_part_in_time_are_likely():
    model = chain(4)
    with torch.no_grad():
        model[2].weight.fill_(0.1)
    (found,) = suspects(DuplicatedWeights, given(model))
    assert (found.certainty, found.layer) == ("likely", "2")


def test_ini001_equal_weights_with_biases_of_their_own_are_likely():
    model = chain(4)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(0.1)
            layer.bias.uniform_(-0.3, 0.3)
    (found,) = suspects(DuplicatedWeights, given(model))
    assert (found.certainty, found.layer) == ("likely", "0")


def test_ini001_weights_of_zero_behind_a_rectifier_are_certain():
    (found,) = suspects(DuplicatedWeights, given(chain(3, init=nn.init.zeros_)))
    assert found.certainty == "certain"


def constant(build, value=0.05):
    model = made(build)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


@pytest.mark.parametrize("value", [0.05, 0.0])
@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_ini001_recurrent_units_that_are_alike_are_certain(kind, value):
    model = constant(lambda: Sequences(kind, num_layers=2, bidirectional=True), value)
    training = given(model)
    (found,) = suspects(DuplicatedWeights, training)
    assert (found.certainty, found.layer) == ("certain", "rnn")
    assert "of the 32 units" in found.message
    copy = training.copy()
    found.changes[0].apply(copy)
    assert suspects(DuplicatedWeights, copy) == []


def test_ini001_layers_of_ones_own_and_bare_parameters_are_looked_at():
    (found,) = suspects(DuplicatedWeights, given(constant(lambda: nn.Sequential(Own(4, 16), nn.ReLU(), Own(16, 2)))))
    assert (found.certainty, found.layer) == ("certain", "0")

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Parameter(torch.empty(4, 16)), nn.Parameter(torch.empty(16, 2))

        def forward(self, x):
            return torch.relu(x @ self.first) @ self.last

    training = given(constant(ByHand))
    (found,) = suspects(DuplicatedWeights, training)
    assert (found.certainty, found.layer) == ("certain", "first")
    copy = training.copy()
    found.changes[0].apply(copy)
    assert suspects(DuplicatedWeights, copy) == []


def test_ini001_dropout_parts_twins():
    model = made(lambda: nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2)))
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight.fill_(0.1)
            layer.bias.zero_()
    assert [found.certainty for found in suspects(DuplicatedWeights, given(model))] == ["likely"]


def test_ini001_the_change_draws_these_layers_anew():
    training = given(chain(3, init=lambda w: nn.init.constant_(w, 0.1)))
    change = suspects(DuplicatedWeights, training)[0].changes[0]
    copy = training.copy()
    change.apply(copy)
    assert suspects(DuplicatedWeights, copy) == []


@pytest.mark.parametrize(
    ("std", "cause"), [(0.05, "vanishing_gradient"), (1.6, "exploding_gradient")], ids=["small", "large"]
)
def test_ini002_and_ini003_a_factor_from_layer_to_layer(std, cause):
    training = given(chain(12, 16, init=lambda w: nn.init.normal_(w, std=std)))
    chart = charted(training)
    for rule in (ForwardFactor, BackwardFactor):
        (found,) = rule().check(chart)
        assert found.certainty == "likely"
        assert found.causes == ("bad_init_scale", cause)
    forward = next(iter(ForwardFactor().check(chart))).evidence["factor"]
    assert forward == pytest.approx(std * math.sqrt(16 / 2), rel=0.3)


def test_ini002_and_ini003_say_nothing_about_few_layers():
    chart = charted(given(chain(3, init=narrow)))
    assert not [found for rule in (ForwardFactor, BackwardFactor) for found in rule().check(chart)]


def test_ini002_the_size_of_inputs_does_not_count():
    training = given(chain(12, 32))
    training.with_data("train", (training.train[0] * 1000, training.train[1]))
    assert suspects(ForwardFactor, training) == []


@pytest.mark.parametrize("std", [0.01, 3.0])
def test_ini004_weights_beyond_every_scheme(std):
    (found,) = suspects(WeightScale, given(chain(3, init=lambda w: nn.init.normal_(w, std=std))))
    assert found.certainty == "likely"
    assert ("larger" in found.message) == (std > 1)
    assert (found.evidence["product"] > 1) == (std > 1)


def test_ini004_where_the_output_is_normalized_the_size_of_weights_does_not_count():
    def build():
        model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
        nn.init.normal_(model[0].weight, std=50.0)
        return model

    assert suspects(WeightScale, given(made(build))) == []


def test_ini005_large_first_outputs():
    model = chain(3)
    with torch.no_grad():
        model[-1].weight.mul_(60)
    (found,) = suspects(OutputScale, given(model))
    assert found.layer == "4"
    assert found.evidence["prior"] == pytest.approx(math.log(2), rel=0.1)
    assert found.evidence["loss"] > 8 * found.evidence["prior"]


def test_ini005_targets_far_from_zero_are_another_matter():
    def far(count=300, seed=0):
        x, y = plane(count, seed)
        return x, y + 1000

    training = given(chain(3, inputs=3, outputs=1), data=far, loss=F.mse_loss, lr=1e-6)
    assert suspects(OutputScale, training) == []


def test_ini006_large_biases_are_possible():
    model = chain(3)
    with torch.no_grad():
        model[0].bias.fill_(1000.0)
    found = suspects(LargeBias, given(model))
    assert [each.certainty for each in found] == ["possible"]
    assert found[0].layer == "0"


def test_what_was_not_measured_is_not_judged():
    chart = charted(given(chain()))
    chart.probe = chart.structure = chart.late = None
    assert [found for rule in ALL for found in rule().check(chart)] == []
