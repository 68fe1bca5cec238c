"""Changes of decay, penalties inside the loss, and dropout: gradients, groups, idempotency, evaluation."""

import copy

import pytest
import torch
from small_trainings import made, mlp, rings, training
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.dropping import FollowMode
from homeostat.doctor.changes.places import find
from homeostat.doctor.changes.regularization import (
    AddDecay,
    AddDropout,
    DecoupleDecay,
    ExemptDecay,
    ScaledPenalty,
    ScalePenalty,
    SetDropout,
)


def decayed(kind=torch.optim.SGD, **options):
    model = mlp(norm=nn.BatchNorm1d)
    groups = [{"params": model[0].parameters(), "weight_decay": 0.2}]
    groups += [{"params": [p for m in model[1:] for p in m.parameters()], "weight_decay": 0.01}]
    return training(model, kind(groups, 0.1, **options))


def decays(given):
    return [group.get("weight_decay") for group in given.optimizer.param_groups]


def gradient(given):
    """Of the loss of all training examples with respect to the weights."""
    given.optimizer.zero_grad()
    x, y = given.train
    given.loss(given.predict(x), y).backward()
    return [p.grad.clone() for p in given.model.parameters()]


def dropping():
    layers = [nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.8), nn.Linear(32, 32), nn.ReLU(), nn.Dropout(0.4)]
    return made(lambda: nn.Sequential(*layers, nn.Linear(32, 2)))


class ByHand(nn.Module):
    """Calls dropout as a function; with `always` in evaluation too."""

    def __init__(self, always=False):
        super().__init__()
        self.always, self.layer = always, nn.Dropout(0.5)
        self.first, self.last = nn.Linear(4, 400), nn.Linear(400, 2)

    def forward(self, x):
        x = self.layer(F.dropout(self.first(x), 0.8, self.training))
        return self.last(F.dropout(x, 0.1) if self.always else x)


CHANGES = {
    "scale": (decayed, lambda given: ScalePenalty.of(given, 0.1)),
    "add": (decayed, lambda given: AddDecay.of(given, 0.05)),
    "decouple": (lambda: decayed(torch.optim.Adam), DecoupleDecay.of),
    "exempt": (decayed, ExemptDecay.of),
    "dropout": (lambda: training(dropping()), lambda given: SetDropout.of(given, 0.5)),
    "functions": (lambda: training(made(ByHand)), lambda given: SetDropout.of(given, 0.5, functions=(0.8,))),
    "new dropout": (training, lambda given: AddDropout(0.5)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_change_is_safe_idempotent_and_keeps_the_optimizer_whole(name):
    build, change_of = CHANGES[name]
    given = build()
    gradient(given)
    given.optimizer.step()
    change, altered = change_of(given), given.copy()
    assert change.safety == "safe"
    change.apply(altered)
    once = copy.deepcopy(
        [{k: v for k, v in group.items() if k != "params"} for group in altered.optimizer.param_groups]
    )
    change.apply(altered)
    twice = [{k: v for k, v in group.items() if k != "params"} for group in altered.optimizer.param_groups]
    assert once == twice
    held = [id(p) for group in altered.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in altered.model.parameters())
    assert len(altered.optimizer.state) == len(given.optimizer.state)
    x = rings(10)[0]
    assert torch.equal(given.model.eval()(x), altered.model.eval()(x))
    assert hash(change) == hash(change_of(given))
    assert change.what
    assert all(line[0] in "+-" for line in change.diff.splitlines())


def test_the_decay_of_every_group_is_scaled():
    given = decayed()
    change = ScalePenalty.of(given, 0.01)
    change.apply(given)
    assert decays(given) == pytest.approx([0.002, 0.0001])
    assert change.what == "weight decay 0.2, 0.01 → 0.002, 0.0001"
    ScalePenalty.of(given, 0).apply(given)
    assert decays(given) == [0, 0]


@pytest.mark.parametrize("factor", [0.0, 0.1, 1.0])
def test_a_penalty_inside_the_loss_is_scaled_in_the_gradient_alone(factor):
    model = mlp()

    def penalized(strength):
        def loss(output, target):
            return F.cross_entropy(output, target) + strength * sum(p.square().sum() for p in model.parameters())

        return loss

    given, wanted = training(model, loss=penalized(3.0)), training(model, loss=penalized(3.0 * factor))
    altered = given.copy()
    ScalePenalty.of(given, factor, in_loss=True).apply(altered)
    ScalePenalty.of(given, factor, in_loss=True).apply(altered)
    assert isinstance(altered.loss_fn, ScaledPenalty)
    for found, expected in zip(gradient(altered), gradient(wanted), strict=True):
        torch.testing.assert_close(found, expected)
    x, y = given.train
    torch.testing.assert_close(altered.loss(altered.predict(x), y), given.loss(given.predict(x), y))
    with torch.no_grad():
        altered.model[0].weight.zero_()  # the penalty follows the copy's weights, not the user's
    assert gradient(altered)[0].abs().max() < gradient(given)[0].abs().max()


def test_a_copy_of_a_scaled_penalty_follows_its_own_copy_of_the_model():
    model = mlp()
    given = training(
        model, loss=lambda out, y: F.cross_entropy(out, y) + sum(p.square().sum() for p in model.parameters())
    )
    ScalePenalty.of(given, 0.5, in_loss=True).apply(given)
    other = given.copy()
    with torch.no_grad():
        for p in other.model.parameters():
            p.zero_()
    x, y = given.train
    assert other.loss(other.predict(x), y).item() == pytest.approx(0.6931, abs=1e-4)


def test_new_decay_spares_biases_and_normalization():
    given = training(mlp(norm=nn.BatchNorm1d))
    AddDecay.of(given, 0.05).apply(given)
    by_dims = {p.ndim: group["weight_decay"] for group in given.optimizer.param_groups for p in group["params"]}
    assert by_dims == {2: 0.05, 1: 0.0}


def test_stronger_decay_is_not_weakened_by_adding_some():
    given = decayed()
    AddDecay.of(given, 0.05).apply(given)
    assert sorted(set(decays(given))) == [0.0, 0.05, 0.2]


def test_exempt_parameters_take_their_state_and_names_along():
    model = mlp(norm=nn.BatchNorm1d)
    given = training(model, torch.optim.Adam(model.named_parameters(), 0.01, weight_decay=0.1))
    gradient(given)
    given.optimizer.step()
    state = given.optimizer.state[model[1].weight]["exp_avg"]
    ExemptDecay.of(given).apply(given)
    kept, spared = given.optimizer.param_groups
    assert (kept["weight_decay"], spared["weight_decay"], spared["lr"]) == (0.1, 0.0, 0.01)
    assert [p.ndim for p in kept["params"]] == [2, 2, 2]
    assert kept["param_names"] == ["0.weight", "3.weight", "6.weight"]
    assert "1.weight" in spared["param_names"]
    assert given.optimizer.state[model[1].weight]["exp_avg"] is state
    given.optimizer.load_state_dict(given.optimizer.state_dict())


def test_decoupled_decay_is_that_of_adamw():
    given, model = decayed(torch.optim.Adam), mlp(norm=nn.BatchNorm1d)
    groups = [{"params": model[0].parameters(), "weight_decay": 0.2}]
    groups += [{"params": [p for m in model[1:] for p in m.parameters()], "weight_decay": 0.01}]
    wanted = training(model, torch.optim.AdamW(groups, 0.1))
    DecoupleDecay.of(given).apply(given)
    for each in (given, wanted):
        for _ in range(3):
            gradient(each)
            each.optimizer.step()
    for found, expected in zip(given.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected)
    with pytest.raises(CannotApply, match="SGD has no decoupled form"):
        DecoupleDecay.of(decayed()).apply(decayed())


class Dropping(nn.Module):
    """What drops without being a dropout layer."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True)
        self.rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.6, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        x = x.unsqueeze(1)
        return self.head(self.rnn(x + self.attention(x, x, x)[0])[0][:, 0])


def test_every_kind_of_dropout_is_scaled_by_name():
    given = training(made(Dropping))
    change = SetDropout.of(given, 0.5)
    change.apply(given)
    assert (given.model.attention.dropout, given.model.rnn.dropout) == (0.15, 0.3)
    assert change.where == ("attention", "rnn")
    assert change.what == "dropout 0.3, 0.6 → 0.15, 0.3"
    gradient(given)
    given = training(dropping())
    SetDropout.of(given, 0.0, layers=("5",)).apply(given)
    assert [given.model[2].p, given.model[5].p] == [0.8, 0.0]
    with pytest.raises(CannotApply, match="no dropout layer"):
        SetDropout.of(training(), 0.5).apply(training())


def test_dropout_functions_are_called_with_another_probability():
    given = training(made(ByHand))
    change = SetDropout.of(given, 0.5, functions=(0.8, 0.8))
    change.apply(given)
    kept = []
    find(given.model, "last").register_forward_hook(lambda _, args, __: kept.append((args[0] != 0).float().mean()))
    given.model.train()(rings(50)[0])
    given.model.eval()(rings(50)[0])
    assert [share.item() for share in kept] == pytest.approx([0.6 * 0.75, 1.0], abs=0.03)
    assert change.what == "dropout 0.5, 0.8 → 0.25, 0.4"
    assert "F.dropout(x, 0.4, self.training)" in change.diff


def test_dropout_functions_follow_the_mode():
    given, x = training(made(lambda: ByHand(always=True))), rings(50)[0]
    assert not torch.equal(given.model.eval()(x), given.model(x))
    wanted = given.model.last(given.model.first(x))
    change = FollowMode((0.1,))
    for _ in range(2):
        change.apply(given)
        assert torch.equal(given.model.eval()(x), wanted)
        assert not torch.equal(given.model.train()(x), given.model(x))
    assert change.safety == "unsafe"
    assert change.diff.endswith("F.dropout(x, 0.1, self.training)")


def test_new_dropout_stands_in_front_of_hidden_layers():
    given = training()
    AddDropout(0.5).apply(given)
    found = [name for name, module in given.model.named_modules() if isinstance(module, nn.Dropout)]
    assert len(found) == 2
    assert all(dict(given.model.named_modules())[name].training for name in found)
