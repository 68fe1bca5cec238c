"""Changes of scales and of what splits hold: what they do, that weights and optimizer stay, that twice is once."""

import copy
import pickle

import numpy as np
import pytest
import torch
from small_trainings import mlp, plane, rings
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.data import StandardizeInputs, StandardizeTargets
from homeostat.doctor.changes.rows import (
    BalanceClasses,
    DropAugmentation,
    DropNonFinite,
    DropShared,
    MatchSplits,
    Shuffle,
)
from homeostat.doctor.changes.scaling import Restore, Standardize
from homeostat.doctor.training import Training

ALL = (
    StandardizeInputs(),
    StandardizeTargets(),
    BalanceClasses(),
    DropAugmentation(),
    DropNonFinite(),
    DropShared(),
    MatchSplits("train"),
    MatchSplits("valid"),
    Shuffle(),
)


class Named(nn.Module):
    """A model that is no Sequential, and returns a dict."""

    def __init__(self, columns=3, outputs=1):
        super().__init__()
        self.hidden = nn.Linear(columns, 8)
        self.last = nn.Linear(8, outputs)

    def forward(self, x):
        return {"logits": self.last(torch.relu(self.hidden(x))), "hidden": self.hidden(x)}


def regression(model=None, scale=1.0, shift=0.0, target_scale=1.0, target_shift=0.0, **options):
    x, y = plane()
    x, y = x * scale + shift, y * target_scale + target_shift
    model = mlp(3, 1) if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loss = nn.functional.mse_loss
    options = {"batch_size": 20, "epochs": 5, **options}
    return Training(model, loss, optimizer, (x[:200], y[:200]), (x[200:], y[200:]), **options)


def classes(train, valid=None, outputs=2, **options):
    columns = 4 if not isinstance(train, tuple) else train[0][0].numel()
    model = nn.Sequential(nn.Flatten(), *mlp(columns, outputs))
    options = {"batch_size": 20, "epochs": 2, **options}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Training(
        model, nn.functional.cross_entropy, optimizer, train, rings() if valid is None else valid, **options
    )


def applied(change, given):
    new = given.copy()
    change.apply(new)
    return new


def trained(given, epochs):
    """The mean square error on the training data after a plain training."""
    x, y = given.train
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(0)).split(given.batch_size):
            given.optimizer.zero_grad()
            given.loss_fn(given.model(x[rows]), y[rows]).backward()
            given.optimizer.step()
    with torch.no_grad():
        return ((given.model(x) - y) ** 2).mean().item()


# --------------------------------------------------------------------------------------------------------------- inputs


def test_the_model_takes_raw_inputs_and_its_layers_get_standardized_ones():
    given = regression(scale=torch.tensor([1.0, 100.0, 1e-3]), shift=torch.tensor([0.0, 5000.0, 1.0]))
    new = applied(StandardizeInputs(), given)
    seen = []
    new.model.get_submodule("0").register_forward_hook(lambda module, args, output: seen.append(args[0]))
    new.model(new.train[0])
    assert torch.allclose(seen[0].mean(0), torch.zeros(3), atol=1e-3)
    assert torch.allclose(seen[0].std(0), torch.ones(3), atol=0.02)
    assert torch.equal(new.train[0], given.train[0])


def test_layers_of_a_sequential_keep_their_names_and_the_first_is_new():
    given = regression()
    new = applied(StandardizeInputs(), given)
    assert isinstance(next(iter(new.model)), Standardize)
    assert {name for name, _ in given.model.named_parameters()} == {name for name, _ in new.model.named_parameters()}


def test_images_are_standardized_by_channel():
    x = torch.rand(60, 3, 8, 8) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    y = torch.arange(60) % 2
    given = Training(
        model, nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), (x, y), None,
        batch_size=10, epochs=1,
    )  # fmt: skip
    first = applied(StandardizeInputs(), given).model[0]
    assert first.mean.shape == (1, 3, 1, 1)
    assert torch.allclose(first(x).mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(first(x).std((0, 2, 3)), torch.ones(3), atol=1e-2)


def test_constant_and_rare_columns_do_not_become_large():
    x, y = plane()
    x = torch.cat([x, torch.full((300, 1), 7.0), torch.zeros(300, 1)], 1)
    x[0, 4] = 1e-3
    model = mlp(5, 1)
    given = Training(
        model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0.1), (x, y), None, batch_size=20, epochs=1
    )
    out = applied(StandardizeInputs(), given).model[0](x)
    assert torch.isfinite(out).all()
    assert out.abs().max() <= 30.5


def test_zeros_and_ones_beside_quantities_stay():
    x, y = plane()
    x = torch.cat([x * 50, (x[:, :1] > 0).float()], 1)
    model = mlp(4, 1)
    given = Training(
        model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0.1), (x, y), None, batch_size=20, epochs=1
    )
    assert torch.equal(applied(StandardizeInputs(), given).model[0](x)[:, 3], x[:, 3])


@pytest.mark.parametrize("inputs", [torch.randint(0, 9, (40, 3)), torch.zeros(40, 3, dtype=torch.bool)])
def test_ids_and_yes_and_no_cannot_be_standardized(inputs):
    model = nn.Sequential(nn.Flatten())
    model.register_parameter("w", nn.Parameter(torch.zeros(1)))
    given = Training(
        model, lambda o, y: o.float().mean() * model.w.sum(), torch.optim.SGD(model.parameters(), 0.1),
        (inputs, torch.zeros(40)), None, batch_size=8, epochs=1,
    )  # fmt: skip
    with pytest.raises(CannotApply):
        StandardizeInputs().apply(given.copy())


def test_standardized_inputs_help_where_scales_are_unlike():
    given = regression(scale=torch.tensor([1.0, 0.01, 0.01]), shift=torch.tensor([0.0, 10.0, -10.0]))
    assert trained(applied(StandardizeInputs(), given), 5) < 0.2 * trained(given.copy(), 5)


# -------------------------------------------------------------------------------------------------------------- targets


def test_predictions_stay_in_raw_units_and_the_loss_is_that_of_standardized_ones():
    given = regression(target_scale=100.0, target_shift=5000.0)
    new = applied(StandardizeTargets(), given)
    x, y = new.train
    mean, scale = y.mean(), y.std(correction=0)
    raw = given.model(x)
    assert torch.allclose(new.model(x), raw * scale + mean, rtol=1e-4)
    assert torch.allclose(new.loss(new.model(x), y), nn.functional.mse_loss(raw, (y - mean) / scale), rtol=1e-3)


def test_standardized_targets_are_learned_sooner():
    given = regression(target_scale=100.0, target_shift=5000.0)
    assert trained(applied(StandardizeTargets(), given), 20) < 1e-3 * trained(given.copy(), 20)


def test_columns_of_targets_get_their_own_scale():
    x, y = plane()
    y = torch.cat([y, 1000 * y + 50], 1)
    model = mlp(3, 2)
    given = Training(
        model, nn.functional.mse_loss, torch.optim.SGD(model.parameters(), 0.1), (x, y), None, batch_size=20, epochs=1
    )
    last = applied(StandardizeTargets(), given).model[-1]
    assert isinstance(last, Restore)
    assert torch.allclose(last.scale, y.std(0, correction=0)[None], rtol=1e-4)


def test_class_numbers_and_equal_targets_cannot_be_standardized():
    with pytest.raises(CannotApply):
        StandardizeTargets().apply(classes(rings()).copy())
    with pytest.raises(CannotApply):
        StandardizeTargets().apply(regression(target_scale=0.0).copy())


@pytest.mark.parametrize("change", [StandardizeInputs(), StandardizeTargets()])
def test_models_of_other_classes_keep_what_else_they_return(change):
    given = regression(Named())
    new = applied(change, given)
    out = new.model(new.train[0])
    assert set(out) == {"logits", "hidden"}
    assert new.predict(new.train[0]).shape == (200, 1)


# ---------------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("make", [mlp, Named])
@pytest.mark.parametrize("change", [StandardizeInputs(), StandardizeTargets()])
def test_weights_optimizer_mode_and_dtype_stay(change, make):
    given = regression(make(3, 1).double())
    given.with_data("train", tuple(part.double() for part in given.train))
    given.with_data("valid", tuple(part.double() for part in given.valid))
    given.model.eval()
    before = copy.deepcopy(dict(given.model.state_dict()))
    new = applied(change, given)
    held = {id(p) for group in new.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in new.model.parameters()}
    after = list(new.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(after, given.model.parameters(), strict=True))
    assert not new.model.training
    assert not any(module.training for module in new.model.modules())
    assert new.predict(new.train[0]).dtype == torch.float64
    assert all(torch.equal(before[name], value) for name, value in given.model.state_dict().items())


@pytest.mark.parametrize("change", ALL, ids=lambda change: change.slug)
def test_twice_is_once(change):
    x, y = plane()
    given = regression(Named(), augment=lambda x: x, shuffle=False, target_scale=30.0)
    given.with_data("train", (x[:200] * 40, y[:200]))
    if isinstance(change, BalanceClasses):
        given = classes((x, (x[:, 0] > 1).long()))
    once = applied(change, given)
    twice = applied(change, once)
    first, second = once.examples("train"), twice.examples("train")
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.targets, second.targets)
    assert torch.equal(once.predict(first.inputs), twice.predict(first.inputs))
    assert once.loss(once.predict(first.inputs), first.targets) == twice.loss(
        twice.predict(first.inputs), first.targets
    )


@pytest.mark.parametrize("change", ALL, ids=lambda change: change.slug)
def test_changes_say_what_they_are(change):
    assert change.what
    assert all(line[0] in "+-" for line in change.diff.splitlines())
    assert hash(change) == hash(copy.copy(change))


def test_a_changed_training_can_be_copied_and_its_model_saved():
    new = regression(Named(), target_scale=50.0)
    for change in (StandardizeInputs(), StandardizeTargets()):
        change.apply(new)
    again = pickle.loads(pickle.dumps(new.model))
    x = new.train[0]
    assert torch.equal(again(x)["logits"], new.model(x)["logits"])
    other = new.copy()
    assert torch.equal(other.predict(x), new.predict(x))
    assert other.model is not new.model


# ----------------------------------------------------------------------------------------------------------------- rows


def rare():
    """120 examples of one class, 20 of another, 4 of a third."""
    x = torch.arange(144.0)[:, None].repeat(1, 4)
    return x, torch.tensor([0] * 120 + [1] * 20 + [2] * 4)


class Wrapped(Dataset):
    """A Dataset that is not a TensorDataset."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def sources(x, y):
    return {
        "tensors": (x, y),
        "dataset": Wrapped(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=20, shuffle=True),
        "in order": DataLoader(TensorDataset(x, y), batch_size=20),
    }


def held(source):
    """All (inputs, targets) that a split gives, whatever holds them."""
    if isinstance(source, tuple):
        return source
    pairs = list(source.dataset) if isinstance(source, DataLoader) else [source[i] for i in range(len(source))]
    return torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "in order"])
def test_classes_are_drawn_evenly_and_keep_their_inputs(kind):
    x, y = rare()
    new = applied(BalanceClasses(), classes(sources(x, y)[kind], (x, y), outputs=3))
    got_x, got_y = held(new.train)
    assert got_y.bincount().tolist() == [48, 48, 48]
    assert torch.equal(y[got_x[:, 0].long()], got_y)
    assert torch.equal(new.examples("train").targets.bincount(), got_y.bincount())
    assert len(set(got_x[got_y == 1, 0].tolist())) == 20


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "in order"])
def test_examples_that_are_not_finite_are_left_out(kind):
    x, y = rare()
    x[5, 2] = float("nan")
    x[7, 0] = float("inf")
    new = applied(DropNonFinite(), classes(sources(x, y)[kind], (x, y), outputs=3))
    for split in ("train", "valid"):
        inputs, _ = held(getattr(new, split))
        assert len(inputs) == 142
        assert torch.isfinite(inputs).all()
    assert new.examples("train").complete


def test_nothing_is_left_out_of_finite_data():
    given = classes(rings())
    assert applied(DropNonFinite(), given).train is given.train


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "in order"])
def test_shared_examples_are_left_out_of_validation(kind):
    x, y = rare()
    new = applied(DropShared(), classes((x[:100], y[:100]), sources(x[80:], y[80:])[kind], outputs=3))
    assert len(held(new.valid)[0]) == 44
    with pytest.raises(CannotApply):
        DropShared().apply(classes((x, y), (x, y), outputs=3).copy())


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "in order"])
@pytest.mark.parametrize("side", ["train", "valid"])
def test_splits_are_brought_together(kind, side):
    x, y = rings(600)
    x = x.abs()
    splits = {"train": (x[:400], y[:400]), "valid": (x[400:], y[400:])}
    splits[side] = sources(splits[side][0] * 255, splits[side][1])[kind]
    new = applied(MatchSplits(side), classes(splits["train"], splits["valid"]))
    wanted = x[:400] if side == "train" else x[400:]
    got = held(getattr(new, side))[0]
    assert torch.allclose(got / wanted.clamp_min(1e-6), torch.ones(()), atol=0.15)
    other = "valid" if side == "train" else "train"
    assert torch.equal(held(getattr(new, other))[0], splits[other][0])


def test_one_column_that_differs_is_the_one_that_is_changed():
    x, y = rings(600)
    moved = x[400:].clone()
    moved[:, 2] = moved[:, 2] * 50 + 300
    new = applied(MatchSplits("valid"), classes((x[:400], y[:400]), (moved, y[400:])))
    got = held(new.valid)[0]
    assert torch.allclose(got[:, 2].std(), x[:400, 2].std(), rtol=0.01)
    assert torch.allclose(got[:, [0, 1, 3]], moved[:, [0, 1, 3]])


@pytest.mark.parametrize("last", [False, True])
def test_images_are_turned_back(last):
    x = torch.randn(300, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + torch.arange(6.0)[:, None] / 5
    y = torch.arange(300) % 2
    first, second = x[:150], x[150:]
    turned = second.flip(2)
    if last:
        first, second, turned = (part.permute(0, 2, 3, 1) for part in (first, second, turned))
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 2))
    given = Training(
        model, nn.functional.cross_entropy, torch.optim.SGD(model.parameters(), 0.1),
        (first, y[:150]), (turned, y[150:]), batch_size=10, epochs=1,
    )  # fmt: skip
    assert torch.equal(applied(MatchSplits("valid"), given).valid[0], second)


def test_splits_that_agree_stay():
    given = classes(rings(), rings(200, 5))
    assert applied(MatchSplits(), given).train is given.train


def test_shuffling_makes_the_loader_shuffle():
    x, y = rare()
    given = classes(DataLoader(TensorDataset(x, y), batch_size=16, drop_last=True), (x, y), 3, batch_size=None)
    assert not given.shuffle
    new = applied(Shuffle(), given)
    assert new.shuffle
    assert new.train.batch_size == 16
    assert new.train.drop_last
    assert not torch.equal(torch.cat([y for _, y in new.train]), y[:144])
    assert not given.shuffle
    assert applied(Shuffle(), classes((x, y), (x, y), 3, shuffle=False)).shuffle


def test_augmentation_is_dropped():
    given = classes(rings(), augment=lambda x: x * 0)
    assert applied(DropAugmentation(), given).augment is None
    assert given.augment is not None


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*rare(), strict=True))


@pytest.mark.parametrize("change", [BalanceClasses(), Shuffle()], ids=lambda change: change.slug)
def test_streams_and_samplers_of_ones_own_are_left_alone(change):
    x, y = rare()
    stream = classes(DataLoader(Stream(), batch_size=16), (x, y), 3, batch_size=16, shuffle=False)
    with pytest.raises(CannotApply):
        change.apply(stream.copy())
    sampler = torch.utils.data.WeightedRandomSampler([1.0] * 144, 144)
    loader = DataLoader(TensorDataset(x, y), batch_size=16, sampler=sampler)
    own = classes(loader, (x, y), 3, batch_size=None, shuffle=False)
    with pytest.raises(CannotApply):
        change.apply(own.copy())


def test_regression_has_no_classes_to_balance():
    with pytest.raises(CannotApply):
        BalanceClasses().apply(regression().copy())


def test_balancing_is_the_same_whatever_the_global_seed():
    x, y = rare()
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    first = applied(BalanceClasses(), classes((x, y), (x, y), 3)).train[0]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert torch.equal(applied(BalanceClasses(), classes((x, y), (x, y), 3)).train[0], first)
