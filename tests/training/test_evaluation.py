"""What a recipe does where a fit is measured: statistics, corruption, adaptation, averages over masks."""

import pytest
import torch
from quick_fits import quick, weights
from torch import nn

from homeostat import nn as fast
from homeostat.errors import InvalidValue, NoEffectWarning
from homeostat.training.inputs import corrupted
from homeostat.training.loop import fit
from homeostat.training.objective import Objective
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, x, y):
        self.x, self.y = x.float() / 255, y

    def __iter__(self):
        return iter(zip(self.x, self.y, strict=True))


@pytest.mark.parametrize("estimator", ["minibatch", "pooled"])
def test_statistics_measured_after_training_replace_the_running_ones(color_task, estimator):
    running = fit(color_task, quick(norm="batch"), 0)
    measured = fit(color_task, quick(norm="batch", bn_statistics=estimator), 0)
    assert torch.equal(weights(running), weights(measured))
    means = [next(m for m in f.model.modules() if isinstance(m, fast.BatchNorm2d)) for f in (running, measured)]
    x = color_task.prepare(color_task.train.head(48)[0])
    exact = running.model[0](x).mean((0, 2, 3))
    assert torch.allclose(means[1].running_mean, exact, atol=1e-4)
    assert not torch.allclose(means[0].running_mean, exact, atol=1e-4)
    assert running.history[-1]["valid_loss"] == measured.history[-1]["valid_loss"]
    assert running.metrics["valid_loss"] != measured.metrics["valid_loss"]


def test_corruption_reaches_validation_and_test_images_alone(color_task):
    other = corrupted(color_task, "gaussian_noise:5")
    assert other.train is color_task.train
    assert corrupted(color_task, "gaussian_noise:5") is other
    for split in ("valid", "test"):
        clean, noisy = getattr(color_task, split), getattr(other, split)
        assert torch.equal(clean.y, noisy.y)
        assert not torch.equal(clean.x, noisy.x)
        assert noisy.x.dtype == torch.uint8
    assert not torch.equal(other.valid.x, other.test.x)
    assert other.standardization is color_task.standardization


def test_corruptions_that_were_used_last_are_kept_within_bounds(color_task, monkeypatch):
    names = ["contrast:1", "contrast:2", "contrast:3"]
    first = [corrupted(color_task, name) for name in names]
    assert all(corrupted(color_task, name) is task for name, task in zip(names, first, strict=True))
    monkeypatch.setattr("homeostat.training.inputs._KEPT", first[0].valid.x.nbytes * 4)  # two tasks of two equal splits
    corrupted(color_task, names[0])
    corrupted(color_task, "contrast:4")
    assert corrupted(color_task, names[0]) is first[0]
    assert corrupted(color_task, names[1]) is not first[1]


def test_corruption_leaves_training_alone_and_costs_accuracy(color_task):
    clean, noisy = (fit(color_task, quick(corruption=name), 0) for name in ("none", "gaussian_noise:5"))
    assert torch.equal(weights(clean), weights(noisy))
    assert noisy.metrics["test_loss"] > clean.metrics["test_loss"]
    assert noisy.metrics["train_loss"] == clean.metrics["train_loss"]


def test_corruption_needs_pixels(regression_task):
    with pytest.raises(InvalidValue, match="corruption must be none unless the data are uint8 images"):
        fit(regression_task, Recipe(corruption="fog:3", epochs=1))


@pytest.mark.parametrize("adapt", ["bn", "tent"])
def test_adaptation_changes_predictions_and_not_the_model(color_task, adapt):
    settings = {"norm": "batch", "corruption": "contrast:5"}
    plain, adapted = (fit(color_task, quick(adapt=kind, **settings), 0) for kind in ("none", adapt))
    assert torch.equal(weights(plain), weights(adapted))
    for name, buffer in plain.model.named_buffers():
        assert torch.equal(buffer, adapted.model.get_buffer(name)), name
    assert adapted.metrics["test_loss"] != plain.metrics["test_loss"]
    assert adapted.metrics["train_loss"] == plain.metrics["train_loss"]


@pytest.mark.parametrize("adapt", ["bn", "tent"])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_examples_that_come_alone_adapt_with_others(color_task, adapt, size):
    """A stream's own batches, the last one of one example."""
    splits = ((color_task.train.head(count), size) for count, size in ((48, 8), (17, size), (17, size)))
    loaders = tuple(torch.utils.data.DataLoader(Stream(*pair), batch_size=size) for pair, size in splits)
    task = Task(data=loaders, classes=3, default_model="cnn")
    fitted = fit(task, quick(norm="batch", adapt=adapt), 0)
    assert all(torch.tensor(fitted.metrics[name]).isfinite() for name in ("valid_loss", "test_loss"))


def test_every_example_is_measured_once_when_adapting(color_task):
    """A user's DataLoader may leave out the last batch of training, and of nothing else."""
    data = torch.utils.data
    pairs = [data.TensorDataset(x.float() / 255, y) for x, y in (color_task.train.head(n) for n in (48, 45, 45))]
    seen = []

    def metric(outputs, targets):
        seen.append(len(targets))
        return 0.0

    loaders = tuple(data.DataLoader(pair, batch_size=32, shuffle=True, drop_last=True) for pair in pairs)
    task = Task(data=loaders, classes=3, default_model="cnn", metric=metric, goal="minimize")
    fit(task, quick(norm="batch", adapt="bn"), 0)
    assert seen[-2:] == [45, 45]


def test_a_split_of_one_example_cannot_adapt(color_task):
    x, y = color_task.train.head(3)
    task = Task(data=((x, y), (x[:1], y[:1]), (x, y)), classes=3, default_model="cnn")
    with pytest.raises(InvalidValue, match="adapt must be none for this validation and test split"):
        Objective(task).check([{"adapt": "bn", "norm": "batch"}])


def test_tent_without_scales_and_shifts_says_so_and_predicts_as_the_model_does(color_task):
    def build():
        return nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))

    task = Task(data=color_task.data, model=build, name="patterns")
    with pytest.warns(NoEffectWarning, match="no batch normalization with a scale or shift"):
        tent = fit(task, Recipe(epochs=1, adapt="tent"), 0)
    assert tent.metrics["test_loss"] == fit(task, Recipe(epochs=1), 0).metrics["test_loss"]


def test_averaging_over_masks_changes_final_predictions_alone(color_task):
    one, many = (fit(color_task, quick(dropout=0.5, mc_samples=samples), 0) for samples in (0, 16))
    assert torch.equal(weights(one), weights(many))
    assert one.history[-1]["valid_loss"] == many.history[-1]["valid_loss"]
    assert one.metrics["test_loss"] != many.metrics["test_loss"]


def test_entropy_needs_classes(regression_task):
    with pytest.raises(InvalidValue, match="adapt must not be tent unless the loss is cross_entropy"):
        Objective(regression_task).check([{"adapt": "tent"}])
