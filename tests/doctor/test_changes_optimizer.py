"""Changes of the optimizer and the schedule: what they alter, what they keep, and that twice is once."""

import copy

import pytest
import torch
from small_trainings import made, mlp, training
from torch import nn

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.held import trainable_of
from homeostat.doctor.changes.optimizer import (
    AddParameters,
    Minimize,
    ScaleLearningRate,
    SetEps,
    SetMomentum,
    SwapOptimizer,
    UseClip,
)
from homeostat.doctor.changes.schedule import BatchSize, MoreEpochs
from homeostat.errors import InvalidValue


def grouped(kind=torch.optim.Adam, **options):
    """A training with two groups of different rates, whose optimizer has taken a step."""
    model = mlp()
    groups = [{"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.01}]
    groups += [{"params": [*model[2].parameters(), *model[4].parameters()], "lr": 0.01}]
    given = training(model, kind(groups, **options))
    x, y = given.train
    given.loss(given.predict(x), y).backward()
    given.optimizer.step()
    return given


def rates(given):
    return [group["lr"] for group in given.optimizer.param_groups]


def steps(given):
    """Take a step: the optimizer moves exactly the model's parameters."""
    before = [parameter.detach().clone() for parameter in given.model.parameters()]
    given.optimizer.zero_grad()
    x, y = given.train
    given.loss(given.predict(x), y).backward()
    given.optimizer.step()
    return [not torch.equal(old, new) for old, new in zip(before, given.model.parameters(), strict=True)]


CHANGES = {
    "rate": lambda given: ScaleLearningRate.of(given, 0.1),
    "minimize": Minimize.of,
    "swap": lambda given: SwapOptimizer.of(given, "sgd"),
    "parameters": AddParameters.of,
    "eps": lambda given: SetEps.of(given, 1e-4),
    "momentum": lambda given: SetMomentum.of(given, 0.5),
    "clip": lambda given: UseClip(1.0),
    "epochs": lambda given: MoreEpochs.of(given, 4),
    "batch": lambda given: BatchSize.of(given, 7),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_leaves_weights_and_groups_is_idempotent_hashable_and_says_what_it_does(name):
    given = grouped()
    change = CHANGES[name](given)
    altered = given.copy()
    weights = copy.deepcopy(altered.model.state_dict())
    change.apply(altered)
    once = copy.deepcopy((settings(altered), altered.batch_size, altered.epochs, altered.clip))
    change.apply(altered)
    assert (settings(altered), altered.batch_size, altered.epochs, altered.clip) == once
    assert all(torch.equal(weights[key], value) for key, value in altered.model.state_dict().items())
    assert [len(group["params"]) for group in altered.optimizer.param_groups] == [2, 4]
    assert all(steps(altered))
    assert hash(change) == hash(CHANGES[name](given))
    assert change.what
    assert all(line[0] in "+- " for line in change.diff.splitlines())
    assert any(line.startswith("+") for line in change.diff.splitlines())
    assert rates(given) == [0.1, 0.01]


def settings(given):
    return [
        {key: value for key, value in group.items() if key != "params"} for group in given.optimizer.param_groups
    ]  # fmt: skip


def test_every_group_keeps_its_own_rate_times_the_factor_and_its_state():
    given = grouped()
    first = given.optimizer.state[next(given.model.parameters())]["exp_avg"].clone()
    change = ScaleLearningRate.of(given, 10)
    change.apply(given)
    assert rates(given) == pytest.approx([1.0, 0.1])
    assert torch.equal(given.optimizer.state[next(given.model.parameters())]["exp_avg"], first)
    assert change.what == "learning rate 0.1, 0.01 → 1, 0.1"
    assert '+optimizer.param_groups[1]["lr"] = 0.1' in change.diff


def test_a_rate_that_is_a_tensor_stays_one():
    model = mlp()
    given = training(model, torch.optim.Adam(model.parameters(), torch.tensor(0.01), foreach=False, capturable=False))
    ScaleLearningRate.of(given, 10).apply(given)
    (rate,) = rates(given)
    assert isinstance(rate, torch.Tensor)
    assert float(rate) == pytest.approx(0.1)


def test_a_rate_of_0_begins_from_what_a_scheduler_left_or_from_what_is_customary():
    given = grouped()
    torch.optim.lr_scheduler.LambdaLR(given.optimizer, lambda step: step / 10)
    assert rates(given) == [0.0, 0.0]
    change = ScaleLearningRate.of(given, 10)
    assert change.what == "learning rate 0 → 1, 0.1"
    assert '+optimizer.param_groups[1]["lr"] = 0.1' in change.diff
    for _ in range(2):
        change.apply(given)
        assert rates(given) == pytest.approx([1.0, 0.1])
    for kind, usual in ((torch.optim.SGD, 0.01), (torch.optim.Adagrad, 0.01), (torch.optim.AdamW, 0.001)):
        model = mlp()
        given = training(model, kind(model.parameters(), lr=0.0))
        ScaleLearningRate.of(given, 0.1).apply(given)
        assert rates(given) == pytest.approx([0.1 * usual])


@pytest.mark.parametrize(("before", "after"), [((0.0, 0.0), (1e-3, 1e-3)), ((0.0, 0.1), (0.0, 1e-3))])
def test_another_optimizer_gives_a_rate_to_groups_that_all_have_none(before, after):
    given = grouped()
    for group, rate in zip(given.optimizer.param_groups, before, strict=True):
        group["lr"] = rate
    change = SwapOptimizer.of(given, "adamw")
    for _ in range(2):
        change.apply(given)
        assert rates(given) == pytest.approx(after)


def test_a_rate_is_not_carried_over_to_another_optimizer():
    given = grouped()
    change = ScaleLearningRate.of(given, 0.1)
    SwapOptimizer.of(given, "sgd").apply(given)
    with pytest.raises(CannotApply, match="the rate was that of Adam"):
        change.apply(given)


@pytest.mark.parametrize("sign", [{"maximize": True}, {}])
def test_minimizing_turns_maximize_off_and_a_rate_around(sign):
    given = grouped(torch.optim.SGD, **sign)
    if not sign:
        given.optimizer.param_groups[1]["lr"] = -0.01
    Minimize.of(given).apply(given)
    assert rates(given) == [0.1, 0.01]
    assert not any(group["maximize"] for group in given.optimizer.param_groups)


def test_another_optimizer_keeps_groups_decay_names_and_the_ratio_of_rates():
    model = mlp()
    named = list(model.named_parameters())
    groups = [{"params": named[:2], "lr": 0.5, "weight_decay": 0.01}, {"params": named[2:], "lr": 0.05}]
    given = training(model, torch.optim.SGD(groups, momentum=0.9))
    SwapOptimizer.of(given, "adam").apply(given)
    assert type(given.optimizer) is torch.optim.Adam
    assert rates(given) == pytest.approx([1e-3, 1e-4])
    assert [group["weight_decay"] for group in given.optimizer.param_groups] == [0.01, 0]
    assert given.optimizer.param_groups[1]["param_names"] == [name for name, _ in named[2:]]
    assert all(steps(given))
    with pytest.raises(InvalidValue, match=r"unknown optimizer 'adm'\. Did you mean 'adam'"):
        SwapOptimizer("adm")


def test_parameters_that_were_left_out_join_a_group_and_the_others_keep_their_state():
    model = mlp()
    given = training(model, torch.optim.Adam(model[4].parameters(), 0.01))
    assert steps(given) == [False] * 4 + [True] * 2
    state = given.optimizer.state[model[4].weight]["exp_avg"]
    change = AddParameters.of(given)
    assert change.where == ("0", "2")
    change.apply(given)
    assert all(steps(given))
    assert given.optimizer.state[model[4].weight]["exp_avg"] is state
    assert len(given.optimizer.param_groups[0]["params"]) == 6


def test_biases_join_the_group_without_decay():
    model = mlp()
    groups = [{"params": [model[4].weight], "weight_decay": 0.1}, {"params": [model[4].bias]}]
    given = training(model, torch.optim.SGD(groups, 0.1))
    AddParameters.of(given).apply(given)
    assert [[p.ndim for p in group["params"]] for group in given.optimizer.param_groups] == [[2, 2, 2], [1, 1, 1]]


def test_frozen_parameters_stay_out():
    model = mlp()
    model[0].requires_grad_(False)
    given = training(model, torch.optim.SGD(model[4].parameters(), 0.1))
    AddParameters.of(given).apply(given)
    assert len(given.optimizer.param_groups[0]["params"]) == 4


def test_stale_parameters_are_exchanged_in_their_groups():
    old, model = mlp(), mlp()
    groups = [{"params": old[0].parameters(), "lr": 0.5}, {"params": [*old[2].parameters(), *old[4].parameters()]}]
    given = training(model, torch.optim.SGD(groups, 0.1))
    AddParameters.of(given).apply(given)
    assert given.optimizer.param_groups[0]["params"][0] is model[0].weight
    assert [len(group["params"]) for group in given.optimizer.param_groups] == [2, 4]
    assert rates(given) == [0.5, 0.1]
    assert all(steps(given))


class Listed(nn.Module):
    """Its layers are in a plain list and a dict, which `parameters()` does not look into."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 8), nn.ReLU()]
        self.heads = {"out": nn.Linear(8, 2)}
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.scale * self.heads["out"](x)


def test_modules_in_plain_lists_and_dicts_are_found_and_trained():
    model = made(Listed)
    names = [name for name, _ in trainable_of(model)]
    assert names == ["scale", "layers.0.weight", "layers.0.bias", "heads.out.weight", "heads.out.bias"]
    given = training(model, torch.optim.SGD(model.parameters(), 0.1))
    altered = given.copy()
    AddParameters.of(given).apply(altered)
    weight = altered.model.layers[0].weight
    before = weight.detach().clone()
    steps(altered)
    assert not torch.equal(before, weight)
    assert weight is not model.layers[0].weight


def test_eps_and_momentum_need_an_optimizer_that_has_them():
    given = grouped(torch.optim.SGD)
    with pytest.raises(CannotApply, match="SGD has no eps"):
        SetEps.of(given, 1e-8).apply(given)
    given = grouped(torch.optim.Adagrad)
    with pytest.raises(CannotApply, match="Adagrad has no momentum"):
        SetMomentum.of(given, 0.9).apply(given)


def test_momentum_zero_does_without_nesterov():
    given = grouped(torch.optim.SGD, momentum=0.9, nesterov=True)
    SetMomentum.of(given, 0.0).apply(given)
    assert all(steps(given))


def test_epochs_and_batches():
    given = training(epochs=10, batch_size=20)
    MoreEpochs.of(given, 0.25).apply(given)
    BatchSize.of(given, 50).apply(given)
    assert (given.epochs, given.batch_size, given.total_steps) == (2, 50, 2 * 8)
    assert MoreEpochs(0.01, 10).after == 1
