"""GRD: each rule finds the planted fault of gradients, and is silent on healthy networks."""

import pytest
import torch
from small_networks import chain, charted, given, glorot, narrow, suspects
from small_trainings import made
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.rules.gradient import (
    AlwaysClipped,
    Disconnected,
    ExplodingGradient,
    Frozen,
    TurnedGradient,
    VanishingGradient,
    ZeroGradient,
)

ALL = [AlwaysClipped, Disconnected, ExplodingGradient, Frozen, TurnedGradient, VanishingGradient, ZeroGradient]


class Cut(nn.Module):
    """Everything before the last layer is cut off from the loss."""

    def __init__(self, before=2):
        super().__init__()
        self.body, self.head = chain(before, outputs=16), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.body(x).detach())


class Spare(nn.Module):
    """Has a layer that does not run."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = chain(2), nn.Linear(8, 8)

    def forward(self, x):
        return self.used(x)


def zero_last(model):
    with torch.no_grad():
        model[-1].weight.zero_()
    return model


HEALTHY = {
    "relu": chain,
    "deep tanh": lambda: chain(20, 32, nn.Tanh, glorot),
    "deep relu": lambda: chain(20, 64),
    "a last layer of zeros": lambda: zero_last(chain(3)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_networks_are_not_suspected(name):
    chart = charted(given(HEALTHY[name](), lr=0.01), 40)
    assert [(rule.code, each.message) for rule in ALL for each in rule().check(chart)] == []


def test_grd001_sigmoids_take_the_gradient():
    (found,) = suspects(VanishingGradient, given(chain(10, 16, nn.Sigmoid, glorot)))
    assert found.certainty == "likely"
    assert found.causes == ("vanishing_gradient", "wrong_hidden_activation")
    assert found.evidence["weights"] < 5e-3


def test_grd001_small_weights_take_it_too():
    (found,) = suspects(VanishingGradient, given(chain(8, init=narrow)))
    assert found.causes is None


def test_grd002_an_infinite_gradient_of_a_finite_loss_is_certain():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = chain(3)

        def forward(self, x):
            return (self.inner(x) * 0).sqrt()

    found = suspects(ExplodingGradient, given(made(Root)))
    assert [(each.certainty, each.severity) for each in found] == [("certain", "error")]


def test_grd002_gradients_that_grow_on_their_way_back():
    (found,) = suspects(ExplodingGradient, given(chain(8, init=lambda w: nn.init.normal_(w, std=3.0))))
    assert found.certainty == "likely"
    assert found.evidence["ratio"] > 1e4


def test_grd003_layers_that_are_cut_off_are_likely():
    (found,) = suspects(Disconnected, given(made(lambda: Cut(3))))
    assert found.certainty == "likely"
    assert found.evidence["share"] > 0.5


def test_grd003_nothing_that_gets_a_gradient_is_certain():
    (found,) = suspects(Disconnected, given(chain(), loss=lambda out, y: (out.argmax(1) != y).float().mean()))
    assert (found.certainty, found.severity) == ("certain", "error")


def test_grd003_layers_that_do_not_run_are_a_remark():
    (found,) = suspects(Disconnected, given(made(Spare)))
    assert found.severity == "info"
    assert "spare.weight" in found.message


def frozen(*names):
    model = chain(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] not in names)
    return model


@pytest.mark.parametrize(
    ("names", "certainty"), [(("0",), "possible"), (("0", "2"), "likely"), (("0", "2", "4"), "certain")]
)
def test_grd004_frozen_weights(names, certainty):
    model = frozen(*names)
    found = suspects(Frozen, given(model))
    assert [each.certainty for each in found] == [certainty]


def test_grd004_the_change_trains_them():
    model = frozen("0", "2")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = given(model, optimizer=torch.optim.SGD(trained, 0.1))
    copy = training.copy()
    suspects(Frozen, training)[0].changes[0].apply(copy)
    assert all(parameter.requires_grad for parameter in copy.model.parameters())
    assert len([p for group in copy.optimizer.param_groups for p in group["params"]]) == 6
    assert not all(parameter.requires_grad for parameter in training.model.parameters())


def test_grd005_no_gradient_at_all_is_certain():
    (found,) = suspects(ZeroGradient, given(chain(), loss=lambda out, y: F.cross_entropy(0 * out, y)))
    assert (found.certainty, found.severity) == ("certain", "error")


def test_grd005_a_satisfied_loss_is_no_fault():
    assert suspects(ZeroGradient, given(chain(), loss=lambda out, y: 0 * out.sum())) == []


@pytest.mark.parametrize(("bound", "count"), [(1e-6, 1), (1e6, 0)])
def test_grd006_a_bound_that_always_holds_is_possible(bound, count):
    found = suspects(AlwaysClipped, given(chain(), clip=bound), 30)
    assert [each.certainty for each in found] == ["possible"] * count


@pytest.mark.parametrize(("bound", "count"), [(1e-6, 1), (1e6, 0)])
def test_grd007_clipping_by_value_turns_the_gradient(bound, count):
    found = suspects(TurnedGradient, given(chain(), clip=("value", bound)))
    assert [each.certainty for each in found] == ["possible"] * count
    assert all(each.changes[0].kind == "norm" for each in found)


def test_what_was_not_measured_is_not_judged():
    chart = charted(given(chain()))
    chart.probe = chart.structure = chart.late = None
    assert [found for rule in ALL for found in rule().check(chart)] == []
