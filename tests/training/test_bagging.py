import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset

from homeostat.errors import InvalidValue
from homeostat.training.bagging import bag
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

QUICK = Recipe(epochs=3, widths=(16,), batch_size=16)


def outputs_of(bagged, x):
    with torch.no_grad():
        return torch.stack([member.model(bagged.task.prepare(x)) for member in bagged.members])


def test_members_learn_from_bootstrap_samples_and_are_averaged(image_task):
    calls = []
    bagged = bag(image_task, QUICK, 3, seed=1, progress=lambda number, member: calls.append((number, member)))
    assert [number for number, _ in calls] == [0, 1, 2]
    assert [member for _, member in calls] == bagged.members
    assert all(len(indices) == 97 and len(indices.unique()) < 80 for indices in bagged.drawn)
    assert not torch.equal(bagged.drawn[0], bagged.drawn[1])
    x, y = image_task.test.head(40)
    p = outputs_of(bagged, x).softmax(2).mean(0)
    torch.testing.assert_close(bagged.predict(x).mean, p)
    torch.testing.assert_close(bagged.ensemble(image_task.prepare(x)), p)
    assert bagged.metrics["test_accuracy"] == pytest.approx((p.argmax(1) == y).double().mean().item())
    assert bagged.metrics["test_loss"] == pytest.approx(F.nll_loss(p.log(), y).item(), rel=1e-4)
    singles = [member.metrics["test_loss"] for member in bagged.members]
    assert bagged.metrics["members_test_loss"] == pytest.approx(sum(singles) / 3)
    assert bagged.metrics["test_loss"] <= sum(singles) / 3  # Jensen's inequality: -log is convex
    assert bagged.metrics["diverged"] == 0
    assert "3 members" in repr(bagged)


def test_the_out_of_bag_estimate_uses_members_that_did_not_see_an_example(image_task):
    bagged = bag(image_task, QUICK, 3, seed=2)
    x, y = image_task.train.head(97)
    p = outputs_of(bagged, x).softmax(2)
    right = losses = count = 0
    for example in range(97):
        unseen = [p[k, example] for k in range(3) if example not in bagged.drawn[k].tolist()]
        if unseen:
            mean = torch.stack(unseen).mean(0)
            right += int(mean.argmax() == y[example])
            losses -= math.log(mean[y[example]])
            count += 1
    assert bagged.metrics["oob_share"] == pytest.approx(count / 97)
    assert 0.5 < count / 97 < 0.95  # 1 - (1 - 1/e)³ = 0.75
    assert bagged.metrics["oob_accuracy"] == pytest.approx(right / count)
    assert bagged.metrics["oob_loss"] == pytest.approx(losses / count, rel=1e-4)


def test_it_is_a_function_of_the_seed(image_task):
    first = bag(image_task, QUICK, 2, seed=3)
    torch.manual_seed(7)
    random = torch.get_rng_state()
    second, other = bag(image_task, QUICK, 2, seed=3), bag(image_task, QUICK, 2, seed=4)
    assert torch.equal(random, torch.get_rng_state())
    assert first.metrics == second.metrics
    assert all(torch.equal(a, b) for a, b in zip(first.drawn, second.drawn, strict=True))
    assert not torch.equal(first.drawn[0], other.drawn[0])
    # more members begin with the same ones
    assert torch.equal(bag(image_task, QUICK, 3, seed=3).drawn[1], first.drawn[1])


def test_regression(regression_task):
    bagged = bag(regression_task, QUICK, 3)
    x, y = regression_task.test.head(20)
    mean = outputs_of(bagged, x).mean(0).squeeze(1)
    assert bagged.metrics["test_rmse"] == pytest.approx((mean - y).square().mean().sqrt().item(), rel=1e-5)
    prediction = bagged.predict(x)
    assert prediction.kind == "regression"
    torch.testing.assert_close(prediction.mean.squeeze(1), mean)
    torch.testing.assert_close(bagged.ensemble(regression_task.prepare(x)).squeeze(1), mean)
    assert bagged.metrics["test_loss"] <= bagged.metrics["members_test_loss"]  # (.)² is convex


def test_binary_logits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(90, 2, generator=generator)
    y = (x.sum(1) > 0).float()
    task = Task(data=((x[:50], y[:50]), (x[50:70], y[50:70]), (x[70:], y[70:])), loss="bce_with_logits")
    bagged = bag(task, QUICK, 3)
    p = outputs_of(bagged, x[70:]).sigmoid().mean(0).squeeze(1)
    assert bagged.metrics["test_loss"] == pytest.approx(F.binary_cross_entropy(p, y[70:]).item(), rel=1e-4)
    torch.testing.assert_close(bagged.predict(x[70:]).mean.squeeze(1), p)


class Squares(Dataset):
    def __init__(self, count, start=0):
        self.count, self.start = count, start

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(self.start + index)
        return torch.rand(2, generator=generator) + index % 2, index % 2


def test_datasets_with_a_model_of_ones_own():
    def build():
        return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    task = Task(data=(Squares(40), Squares(20, 100), Squares(20, 200)), model=build, classes=["even", "odd"])
    bagged = bag(task, Recipe(epochs=2, batch_size=8), 2)
    assert 0 <= bagged.metrics["oob_accuracy"] <= 1
    assert bagged.predict(torch.rand(3, 2)).mean.shape == (3, 2)


def test_a_sample_may_lack_a_class():
    x = torch.randn(21, 2, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1] * 10 + [2])
    task = Task(data=((x, y), (x, y), (x, y)))
    bagged = bag(task, QUICK, 4)
    assert any(20 not in indices for indices in bagged.drawn)
    assert bagged.predict(x).mean.shape == (21, 3)


def test_standardization_is_that_of_the_whole_training_split(image_task):
    bagged = bag(image_task, QUICK, 2)
    assert bagged.task is image_task
    assert image_task.standardization is not None
    loss = bagged.members[0].metrics["test_loss"]
    x, y = image_task.test.head(40)
    assert F.cross_entropy(outputs_of(bagged, x)[0], y).item() == pytest.approx(loss, rel=1e-4)


def test_a_diverged_member_is_not_hidden(regression_task):
    bagged = bag(regression_task, Recipe(optimizer="sgd", lr=1e6, weight_decay=0.0, epochs=3, widths=(16,)), 2)
    assert bagged.metrics["diverged"] == 1
    assert math.isnan(bagged.metrics["test_rmse"])


class Endless(IterableDataset):
    def __iter__(self):
        yield from ((torch.rand(2), index % 2) for index in range(16))


def test_mistakes(image_task):
    for m in (1, 0, 2.5, True):
        with pytest.raises(InvalidValue, match="m must"):
            bag(image_task, QUICK, m)
    module = nn.Linear(2, 2)
    x, y = torch.randn(20, 2), torch.arange(20) % 2
    with pytest.raises(InvalidValue, match="the same module twice"):
        bag(Task(data=((x, y), (x, y), (x, y)), model=lambda: module), Recipe(epochs=1), 2)
    stream = DataLoader(Endless(), batch_size=4)
    with pytest.raises(InvalidValue, match="drawn from with replacement"):
        bag(Task(data=(stream, stream, stream), model=lambda: nn.Linear(2, 2), classes=2), Recipe(epochs=1), 2)
