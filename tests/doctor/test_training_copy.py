"""A training is copied whole: model, optimizer and functions linked to each other, the user's objects untouched."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.training import Training
from homeostat.errors import HomeostatError

X, Y = torch.arange(24.0).reshape(8, 3) / 10, torch.arange(8.0).reshape(8, 1) / 5


def make(model=None, loss_fn=F.mse_loss, optimizer=None, **settings):
    model = model or nn.Linear(3, 1)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Training(model, loss_fn, optimizer, (X, Y), (X, Y), **{"batch_size": 4, "epochs": 2, **settings})


def step(training):
    training.optimizer.zero_grad()
    training.loss(training.predict(X), Y).backward()
    training.optimizer.step()


def state_of(training):
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def test_the_copys_optimizer_trains_the_copys_model():
    training = make()
    before = state_of(training)
    copy = training.copy()
    step(copy)
    assert all(torch.equal(before[name], value) for name, value in training.model.state_dict().items())
    assert not torch.equal(before["weight"], copy.model.weight)
    assert copy.optimizer.state
    assert not training.optimizer.state


def test_state_and_groups_of_the_optimizer_are_copied():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    groups = [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[1].parameters(), "weight_decay": 0.1}]
    training = make(model, optimizer=torch.optim.Adam(groups, lr=0.01))
    step(training)
    copy = training.copy()
    assert [group["lr"] for group in copy.optimizer.param_groups] == [0.5, 0.01]
    first = copy.model[0].weight
    assert copy.optimizer.param_groups[0]["params"][0] is first
    assert copy.optimizer.state[first]["step"] == 1
    step(training)
    step(copy)
    assert torch.equal(training.model[0].weight, first)


def test_an_optimizer_with_attributes_of_its_own_is_copied():
    model = nn.Linear(3, 1)
    copy = make(model, optimizer=torch.optim.LBFGS(model.parameters(), max_iter=2)).copy()
    before = copy.model.weight.clone()

    def closure():
        copy.optimizer.zero_grad()
        loss = copy.loss(copy.predict(X), Y)
        loss.backward()
        return loss

    copy.optimizer.step(closure)
    assert not torch.equal(before, copy.model.weight)


GLOBAL_MODEL = nn.Linear(3, 1)


def loss_with_global_penalty(output, target):
    return F.mse_loss(output, target) + sum(p.square().sum() for p in GLOBAL_MODEL.parameters())


def calls_another(output, target):
    return loss_with_global_penalty(output, target)


class Penalized:
    """A loss that is an object and holds the model."""

    def __init__(self, model):
        self.model = model

    def __call__(self, output, target):
        return F.mse_loss(output, target) + self.model.weight.square().sum()

    def method(self, output, target):
        return self(output, target)


def closure_over(model):
    return lambda output, target: F.mse_loss(output, target) + model.weight.square().sum()


def partial_of(model):
    return functools.partial(lambda output, target, weight: F.mse_loss(output, target) + weight.square().sum(),
                             weight=model.weight)  # fmt: skip


def default_of(model):
    return lambda output, target, held=model: F.mse_loss(output, target) + held.weight.square().sum()


def keyword_default_of(model):
    return lambda output, target, *, held=model: F.mse_loss(output, target) + held.weight.square().sum()


def dict_of(model):
    parameters = dict(model.named_parameters())
    return lambda output, target: F.mse_loss(output, target) + parameters["weight"].square().sum()


def nest_of(model):
    groups = [{"all": {("first", parameter)}} for parameter in model.parameters()]
    return lambda output, target: (
        F.mse_loss(output, target) + sum(parameter.square().sum() for group in groups for _, parameter in group["all"])
    )


class Trainer:
    """Not callable, with a callback that leads back to it."""

    def __init__(self, model):
        self.model = model
        self.callback = lambda: self

    def compute_loss(self, output, target):
        assert self.callback() is self
        return F.mse_loss(output, target) + self.model.weight.square().sum()


def closure_over_a_trainer(model):
    trainer = Trainer(model)
    return lambda output, target: trainer.callback().compute_loss(output, target)


@dataclass(frozen=True, slots=True)
class Slotted:
    model: nn.Module

    def penalty(self, output, target):
        return F.mse_loss(output, target) + self.model.weight.square().sum()


def namespace_of(model):
    held = SimpleNamespace(model=model)
    return lambda output, target: F.mse_loss(output, target) + held.model.weight.square().sum()


def data_beside(model):
    held = list(range(100_000))
    return lambda output, target: F.mse_loss(output, target) + (model.weight * (len(held) > 1)).square().sum()


@pytest.mark.parametrize(
    "loss_of",
    [
        closure_over,
        partial_of,
        Penalized,
        lambda model: Penalized(model).method,
        lambda model: loss_with_global_penalty,
        lambda model: calls_another,
        default_of,
        keyword_default_of,
        dict_of,
        nest_of,
        lambda model: Trainer(model).compute_loss,
        closure_over_a_trainer,
        lambda model: Slotted(model).penalty,
        namespace_of,
        data_beside,
    ],
    ids=[
        *("closure", "partial", "object", "method", "global", "global of a global", "default", "keyword default"),
        *("dict", "nest", "trainer", "closure over a trainer", "slots", "namespace", "data beside"),
    ],
)
def test_a_loss_that_holds_the_model_holds_the_copy_afterwards(loss_of):
    training = make(GLOBAL_MODEL, loss_of(GLOBAL_MODEL))
    copy = training.copy()
    with torch.no_grad():
        copy.model.weight.zero_()
        copy.model.bias.zero_()
    assert copy.loss(copy.predict(X), Y) == F.mse_loss(torch.zeros(8, 1), Y)
    copy.loss(copy.predict(X), Y).backward()
    assert GLOBAL_MODEL.weight.grad is None
    assert copy.model.weight.grad is not None


def test_a_loss_that_holds_nothing_stays_itself():
    training = make()
    assert training.copy().loss_fn is F.mse_loss


def test_what_a_loss_uses_besides_the_model_collects_no_gradients_of_copies():
    scale, weights = torch.ones((), requires_grad=True), torch.ones(1)
    copy = make(loss_fn=lambda output, target: (scale * weights * (output - target)).square().mean()).copy()
    copy.loss(copy.predict(X), Y).backward()
    assert scale.grad is None
    held = dict(zip(copy.loss_fn.__code__.co_freevars, copy.loss_fn.__closure__, strict=True))
    assert held["weights"].cell_contents is weights


def test_functions_share_the_copy_of_what_they_share_and_the_users_stays_as_it_was():
    trainer = Trainer(nn.Linear(3, 1))
    model = trainer.model
    given = make(model, trainer.compute_loss, augment=lambda x: trainer and x)
    copy = given.copy()
    held = copy.augment.__closure__[0].cell_contents
    assert held is copy.loss_fn.__self__ is held.callback()
    assert held.model is copy.model
    assert trainer.model is model
    assert trainer.callback() is trainer


class Fixed(int):
    """Holds the model and cannot be made without a value of its own."""

    def __call__(self, output, target):
        return F.mse_loss(output, target) + self.model.weight.square().sum()


def test_what_leads_to_the_model_and_cannot_be_copied_is_named():
    loss = Fixed(3)
    loss.model = nn.Linear(3, 1)
    with pytest.raises(HomeostatError, match="Fixed, which refers to the model, cannot be copied"):
        make(loss.model, loss).copy()


def test_shared_parameters_stay_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1))
    model[1].weight = model[0].weight
    copy = make(model).copy()
    assert copy.model[1].weight is copy.model[0].weight


def test_a_model_that_cannot_be_copied_is_refused_with_a_way_out():
    model = nn.Linear(3, 1)
    model.cache = model(X)
    with pytest.raises(HomeostatError, match=r"cannot be copied.*detached"):
        make(model).copy()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "mlp"}, "model must be a torch.nn.Module"),
        ({"loss_fn": 3}, "loss_fn must be callable"),
        ({"optimizer": "adam"}, "optimizer must be a torch.optim.Optimizer"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": None}, "batch_size must be a whole number"),
        ({"task": "classification"}, "unknown task"),
        ({"clip": -1}, "clip must be a positive norm"),
        ({"augment": "crop"}, "augment must be a function or None"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    model = nn.Linear(3, 1)
    given = {"model": model, "loss_fn": F.mse_loss, "optimizer": torch.optim.SGD(model.parameters(), 0.1)}
    given |= {"train": (X, Y), "valid": None, "batch_size": 4, "epochs": 1, **change}
    with pytest.raises(HomeostatError, match=message):
        Training(**given)


class ReturnsPair(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x):
        return self.linear(x), {"hidden": x}


@pytest.mark.parametrize("output", [0, lambda returned: returned[0]])
def test_output_picks_what_the_loss_takes(output):
    assert make(ReturnsPair(), output=output).predict(X).shape == (8, 1)


def test_without_output_a_tuple_is_refused_with_what_to_pass():
    with pytest.raises(HomeostatError, match="Pass output="):
        make(ReturnsPair()).predict(X)


def test_a_loss_without_reduction_is_refused():
    training = make(loss_fn=lambda output, target: (output - target) ** 2)
    with pytest.raises(HomeostatError, match=r"one number.*loss\.mean"):
        training.loss(training.predict(X), Y)
