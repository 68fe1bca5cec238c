"""Changes that replace modules: what killed other fixers is a test each. Then momentum and modes."""

import copy

import pytest
import torch
from small_trainings import made, mlp, rings, training
from torch import nn

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.norm import AddNorm, BatchNormMomentum, TrainMode
from homeostat.errors import InvalidValue
from homeostat.parts.norm import is_norm, norm_kind


def images(count=64):
    x = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return x, torch.arange(count) % 2


class Net(nn.Module):
    """Convolutions with batch normalization, and a head of Linear layers with one of its own kind."""

    def __init__(self, norm=nn.BatchNorm2d, inplace=True):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.bn1 = norm(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = norm(8)
        self.relu = nn.ReLU(inplace=inplace)
        self.hidden = nn.Linear(8, 16)
        self.bn3 = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)

    def forward(self, x):
        x = self.relu(self.bn1(self.stem(x)))
        x = self.relu(self.bn2(self.conv(x)))
        return self.head(self.relu(self.bn3(self.hidden(x.mean((2, 3))))))


def net_training(build=Net, optimizer=None, **options):
    model = made(build)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2, generator=torch.Generator().manual_seed(1))
            nn.init.uniform_(module.bias, -1, 1, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9) if optimizer is None else optimizer(model)
    return training(model, optimizer, data=lambda *args: images(), **options)


def trains(given):
    """One step; every trainable parameter is in the optimizer once, and moves."""
    held = [id(p) for group in given.optimizer.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in given.model.parameters() if p.requires_grad}
    before = [p.detach().clone() for p in given.model.parameters()]
    given.optimizer.zero_grad()
    x, y = given.train
    given.loss(given.predict(x), y).backward()
    given.optimizer.step()
    return [not torch.equal(a, b) for a, b in zip(before, given.model.parameters(), strict=True)]


def altered(given, change):
    """A copy with the change, which is idempotent and leaves the original as it was."""
    before = copy.deepcopy(given.model.state_dict())
    new = given.copy()
    change.apply(new)
    modules = [type(module) for module in new.model.modules()]
    parameters = [id(p) for p in new.model.parameters()]
    change.apply(new)
    assert [type(module) for module in new.model.modules()] == modules
    assert [id(p) for p in new.model.parameters()] == parameters
    assert all(torch.equal(before[name], value) for name, value in given.model.state_dict().items())
    assert {id(p) for p in new.model.parameters()}.isdisjoint(id(p) for p in given.model.parameters())
    return new


@pytest.mark.parametrize("kind", ["batch", "layer", "group", "rms"])
def test_normalization_is_put_behind_every_hidden_layer_and_trained(kind):
    given = training()
    change = AddNorm.of(given, kind)
    new = altered(given, change)
    assert [norm_kind(module) for module in new.model.modules() if is_norm(module)] == [kind, kind]
    moved = dict(zip([name for name, _ in new.model.named_parameters()], trains(new), strict=True))
    assert all(moves for name, moves in moved.items() if kind != "batch" or not name.endswith("layer.bias"))
    assert change.what == f"{kind} normalization behind every hidden weight layer"
    assert change.safety == "unsafe"


def test_the_optimizer_is_not_left_with_parameters_of_replaced_layers():
    def adam(model):
        norms = [p for m in model.modules() if is_norm(m) for p in m.parameters()]
        rest = [p for p in model.parameters() if not any(p is n for n in norms)]
        return torch.optim.Adam([{"params": rest, "lr": 0.01}, {"params": norms, "lr": 0.002}])

    given = net_training(optimizer=adam)
    trains(given)
    new = given.copy()
    state = new.optimizer.state[new.model.stem.weight]["exp_avg"]
    AddNorm.of(new, "group").apply(new)
    assert new.optimizer.state[new.model.stem.weight]["exp_avg"] is state
    assert len(new.optimizer.state) == 8
    assert {id(p) for p in new.optimizer.param_groups[1]["params"]} == {
        id(p) for m in new.model.modules() if is_norm(m) for p in m.parameters()
    }
    assert [group["lr"] for group in new.optimizer.param_groups] == [0.01, 0.002]
    assert all(trains(new))


def test_group_normalization_works_on_features_without_positions():
    given = training(mlp(norm=nn.BatchNorm1d))
    new = altered(given, AddNorm.of(given, "group"))
    assert norm_kind(new.model[1]) == "group"
    assert new.predict(rings(5)[0]).shape == (5, 2)
    assert all(trains(new))


@pytest.mark.parametrize("frozen", ["weights", "mode", "both"])
def test_a_frozen_batch_norm_stays_frozen(frozen):
    given = net_training()
    if frozen != "mode":
        given.model.bn1.requires_grad_(False)
    if frozen != "weights":
        given.model.bn1.eval()
    new = altered(given, AddNorm.of(given, "group"))
    assert all(p.requires_grad == (frozen == "mode") for p in new.model.bn1.parameters())
    assert new.model.bn1.training == (frozen == "weights")
    assert new.model.bn2.training
    trainable = {id(p) for p in new.model.parameters() if p.requires_grad}
    assert {id(p) for group in new.optimizer.param_groups for p in group["params"]} >= trainable
    assert all(p.requires_grad for p in new.model.bn2.parameters())


@pytest.mark.parametrize("kind", ["group", "layer", "batch", "instance"])
def test_an_in_place_relu_behind_a_new_layer_does_not_break_the_backward_pass(kind):
    given = net_training(lambda: Net(nn.InstanceNorm2d) if kind == "batch" else Net())
    if kind == "instance":
        with pytest.raises(CannotApply, match=r"apply to every layer, also to 'bn3' \(BatchNorm1d\)"):
            AddNorm.of(given, kind).apply(given)
        return
    new = altered(given, AddNorm.of(given, kind))
    moved = trains(new)
    assert sum(moved) >= len(moved) - 2  # a bias in front of normalization over positions may have no gradient


def test_scale_and_shift_are_taken_over():
    given = net_training()
    new = altered(given, AddNorm.of(given, "group"))
    for name in ("bn1", "bn2", "bn3"):
        old, replaced = getattr(given.model, name), getattr(new.model, name)
        assert not torch.equal(old.weight, torch.ones_like(old.weight))
        assert torch.equal(replaced.weight, old.weight)
        assert torch.equal(replaced.bias, old.bias)


class SharedNorm(Net):
    """One batch norm under two names."""

    def __init__(self):
        super().__init__()
        self.bn2 = self.bn1


def test_a_shared_batch_norm_is_one_layer_afterwards_too():
    given = net_training(SharedNorm)
    new = altered(given, AddNorm.of(given, "group"))
    assert new.model.bn1 is new.model.bn2
    assert norm_kind(new.model.bn1) == "group"
    assert all(trains(new))


class OwnNorm(nn.BatchNorm2d):
    """A subclass, as libraries have them."""


def test_subclasses_of_batch_norm_are_replaced_and_followed():
    given = net_training(lambda: Net(OwnNorm))
    assert AddNorm.of(given, "group").before == ("OwnNorm", "BatchNorm1d")
    new = altered(given, AddNorm.of(given, "group"))
    assert not any(norm_kind(module) == "batch" for module in new.model.modules())
    assert BatchNormMomentum.of(given, 0.5).layers == ("bn1", "bn2", "bn3")


def test_layers_in_evaluation_mode_are_not_turned_to_training():
    given = training()
    given.model.eval()
    given.model[2].train()
    new = altered(given, AddNorm.of(given, "batch"))
    modes = {name: module.training for name, module in new.model.named_modules() if is_norm(module)}
    assert modes == {"0.after": False, "2.after": True}
    assert not new.model[0].training


def test_dtype_and_hooks_are_kept():
    given = net_training()
    seen = []
    given.model.double()
    given.model.bn1.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    given.train = given.train[0].double(), given.train[1]
    new = altered(given, AddNorm.of(given, "group"))
    assert {p.dtype for p in new.model.parameters()} == {torch.float64}
    seen.clear()
    new.predict(given.train[0])
    assert seen == ["GroupNorm"]


def test_tied_weights_stay_tied():
    given = training(mlp(4, 4))
    given.model[4].weight = nn.Parameter(given.model[4].weight.detach().clone())
    tied = mlp(8, 8, width=8)
    tied[4].weight = tied[2].weight
    given = training(tied, data=lambda *args: (torch.randn(20, 8), torch.zeros(20, dtype=torch.long)))
    new = altered(given, AddNorm.of(given, "layer"))
    assert new.model[4].weight is new.model[2].weight


def test_what_cannot_be_normalized_is_refused():
    given = training(nn.Sequential(nn.Linear(4, 2)))
    with pytest.raises(CannotApply, match="output layers"):
        AddNorm.of(given, "batch").apply(given)
    with pytest.raises(InvalidValue, match="unknown kind 'none'"):
        AddNorm("none")


def test_momentum_is_set_where_layers_train_and_statistics_are_kept_where_none_were():
    given = net_training()
    model = given.model
    model.bn1.momentum, model.bn2.momentum = 0.0, None
    model.bn2.eval()
    model.bn3 = nn.BatchNorm1d(16, track_running_stats=False)
    given.optimizer.add_param_group({"params": model.bn3.parameters()})
    change = BatchNormMomentum.of(given, 0.1)
    assert change.layers == change.where == ("bn1", "bn3")
    assert change.what == "momentum of batch normalization 0, (not tracking) → 0.1"
    new = given.copy()
    change.apply(new)
    change.apply(new)
    assert (new.model.bn1.momentum, new.model.bn2.momentum, new.model.bn3.momentum) == (0.1, None, 0.1)
    new.predict(given.train[0])
    assert bool(new.model.bn1.running_mean.any())
    assert bool(new.model.bn3.running_mean.any())
    assert not bool(new.model.bn2.running_mean.any())
    with pytest.raises(CannotApply, match="no batch normalization that trains"):
        BatchNormMomentum.of(training(), 0.1).apply(training())


def test_training_mode_for_named_layers_or_the_whole_model():
    given = net_training()
    given.model.eval()
    TrainMode(("bn1",)).apply(given)
    assert [given.model.bn1.training, given.model.bn2.training, given.model.training] == [True, False, False]
    TrainMode().apply(given)
    assert all(module.training for module in given.model.modules())
    with pytest.raises(CannotApply, match="no layer named 'bn9'"):
        TrainMode(("bn9",)).apply(given)


def test_layers_are_found_in_a_model_that_was_put_into_another():
    given = net_training()
    given.model.bn1.momentum = 0.0
    change = BatchNormMomentum.of(given, 0.1)
    new = given.copy()
    new.model = nn.Sequential(nn.Identity(), new.model)
    change.apply(new)
    assert new.model[1].bn1.momentum == 0.1
