"""Changes of what splits hold: which examples, in which order, on which scale, whatever holds them."""

import numpy as np
import pytest
import torch
from changed_trainings import applied, classes, regression
from small_trainings import rings
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.rows import (
    BalanceClasses,
    DropAugmentation,
    DropNonFinite,
    DropShared,
    MatchSplits,
    Shuffle,
)
from homeostat.doctor.training import Training


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
    np.random.seed(1)
    first = applied(BalanceClasses(), classes((x, y), (x, y), 3)).train[0]
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(applied(BalanceClasses(), classes((x, y), (x, y), 3)).train[0], first)
