"""Hidden activations are exchanged wherever they are called, and nothing else changes."""

import copy

import pytest
import torch
from small_networks import Bare, Exponential, chain, given
from small_trainings import made
from torch import nn

from homeostat.doctor.changes.activation import Exchange, InsertActivation, SwapActivation
from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.network.structure import read
from homeostat.errors import InvalidValue

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


class Shared(nn.Module):
    """One activation module, hidden and at the output."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.act = nn.Linear(4, 8), nn.Linear(8, 2), nn.Sigmoid()

    def forward(self, x):
        return self.act(self.last(self.act(self.first(x))))


def swap(training, to, *names):
    return SwapActivation.of(read(training.model, X), to, names)


def test_modules_are_exchanged_also_custom_ones():
    model = chain(4, activation=Exponential)
    training = given(model)
    change = swap(training, "relu", "exp")
    change.apply(training)
    assert [type(model[i]) for i in (1, 3, 5)] == [nn.ReLU] * 3
    assert change.where == ("1", "3", "5")
    assert change.what == "hidden exp → relu"


def test_weights_and_the_optimizer_stay():
    model = chain(3, activation=nn.Tanh)
    training = given(model)
    held = [*model.parameters()]
    before = [p.detach().clone() for p in held]
    swap(training, "relu", "tanh").apply(training)
    assert all(new is old for new, old in zip(training.model.parameters(), held, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(held, before, strict=True))
    assert [p for group in training.optimizer.param_groups for p in group["params"]] == held


def test_only_the_named_functions_are_exchanged():
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Sigmoid(), nn.Linear(8, 2), nn.Sigmoid())
    training = given(model)
    swap(training, "relu", "sigmoid").apply(training)
    assert [type(model[i]) for i in (1, 3, 5)] == [nn.Tanh, nn.ReLU, nn.Sigmoid]


def test_mode_and_hooks_stay():
    model = chain(2).eval()
    calls = []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    training = given(model)
    swap(training, "gelu", "relu").apply(training)
    assert not model[1].training
    calls.clear()
    model(X)
    assert calls == [1]


def test_in_place_functions_are_exchanged_by_ones_out_of_place():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 2))
    training = given(model)
    swap(training, "leaky_relu", "relu").apply(training)
    assert isinstance(model[1], nn.LeakyReLU)


def test_bare_functions_are_exchanged_while_the_model_runs():
    training = given(made(Bare))
    model = training.model
    change = swap(training, "relu", "sigmoid")
    change.apply(training)
    hidden = torch.relu(model.second(torch.relu(model.first(X))))
    assert torch.equal(training.model(X), torch.sigmoid(model.last(hidden)))
    assert change.functions == (("sigmoid", 1), ("sigmoid", 2))
    assert "call 1 of sigmoid" in change.diff


def test_an_exchange_can_be_copied_and_trained():
    training = given(made(Bare))
    swap(training, "relu", "sigmoid").apply(training)
    other = training.copy()
    assert torch.equal(other.model(X), training.model(X))
    other.loss(other.predict(X), torch.zeros(16, dtype=torch.long)).backward()
    other.optimizer.step()
    assert not torch.equal(other.model(X), training.model(X))
    assert isinstance(copy.deepcopy(training.model), Exchange)


def test_a_module_that_also_makes_the_output_is_exchanged_where_it_is_hidden_alone():
    training = given(made(Shared))
    model = training.model
    swap(training, "relu", "sigmoid").apply(training)
    assert torch.equal(training.model(X), torch.sigmoid(model.last(torch.relu(model.first(X)))))


@pytest.mark.parametrize("build", [Bare, Shared, lambda: chain(3, activation=nn.Sigmoid)])
def test_twice_is_once(build):
    training = given(made(build))
    change = swap(training, "relu", "sigmoid")
    change.apply(training)
    once, layers = training.model(X), len(list(training.model.modules()))
    change.apply(training)
    assert torch.equal(training.model(X), once)
    assert len(list(training.model.modules())) == layers


def test_there_may_be_nothing_to_exchange():
    training = given(chain(3))
    assert swap(training, "relu", "sigmoid") is None
    with pytest.raises(CannotApply, match="no layer named"):
        SwapActivation("relu", ("nowhere",)).apply(training)


def test_unknown_names_are_refused():
    with pytest.raises(InvalidValue, match="relu"):
        SwapActivation("rleu", ("1",))
    with pytest.raises(InvalidValue, match="activation"):
        InsertActivation(("0",), "identity")


def test_an_activation_is_put_behind_weight_layers():
    training = given(made(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2))))
    first, second, last = training.model
    expected = last(torch.relu(second(torch.relu(first(X)))))
    change = InsertActivation(("0", "1"))
    for _ in range(2):
        change.apply(training)
        assert torch.equal(training.model(X), expected)
    assert [step.name for step in read(training.model, X).hidden] == ["relu", "relu"]
    assert change.diff == "+nn.ReLU()  # behind 0\n+nn.ReLU()  # behind 1"


def test_surgery_keeps_the_optimizer_linked():
    training = given(made(lambda: nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))))
    InsertActivation(("0",)).apply(training)
    held = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in training.model.parameters()}
