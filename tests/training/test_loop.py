import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from homeostat.errors import HomeostatError, InvalidValue, NoEffectWarning
from homeostat.training.loop import fit
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

EVERYTHING = Recipe(
    model="cnn",
    norm="batch",
    dropout=0.3,
    augment="crop+flip",
    l1=1e-4,
    l2=1e-3,
    weight_decay=0.1,
    clip_norm=1.0,
    clip_value=0.5,
    label_smoothing=0.1,
    schedule="cosine",
    warmup_epochs=1,
    epochs=5,
    batch_size=16,
    patience=4,
)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def without_time(fitted):
    metrics = {name: value for name, value in fitted.metrics.items() if name != "seconds_per_epoch"}
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in fitted.history]
    return metrics, rows


@pytest.mark.parametrize("recipe", [Recipe(epochs=15), Recipe(epochs=6, model="cnn", norm="batch")])
def test_training_learns_what_can_be_learned(image_task, recipe):
    metrics = fit(image_task, recipe).metrics
    assert metrics["test_accuracy"] > 0.9
    assert metrics["diverged"] == 0.0
    assert metrics["epochs_run"] == recipe.epochs


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("batch_size", ["full", 8, 1])
def test_every_optimizer_and_batch_size_lowers_the_loss(regression_task, optimizer, batch_size):
    recipe = Recipe(optimizer=optimizer, batch_size=batch_size, epochs=8, lr=0.003, widths=(16,))
    history = fit(regression_task, recipe).history
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_resumed_fit_equals_an_undisturbed_one_bit_for_bit(image_task, tmp_path, optimizer):
    recipe = EVERYTHING.varied({"optimizer": optimizer})
    undisturbed = fit(image_task, recipe, 3)
    for last in (0, 2, 3):

        def leave(row, last=last):
            if row["epoch"] == last:
                raise Interrupted

        with pytest.raises(Interrupted):
            fit(image_task, recipe, 3, directory=tmp_path, on_epoch=leave)
        torch.manual_seed(last)  # what the process did in between must not matter
    resumed = fit(image_task, recipe, 3, directory=tmp_path)
    assert same_weights(undisturbed.model, resumed.model)
    assert without_time(undisturbed) == without_time(resumed)
    again = fit(image_task, recipe, 3, directory=tmp_path)  # a finished fit is only measured again
    assert without_time(undisturbed) == without_time(again)


def test_looking_at_every_step_changes_nothing_and_says_what_happened(image_task):
    seen = []
    watched = fit(image_task, EVERYTHING, 1, on_step=lambda step, values: seen.append({"step": step, **values}))
    assert without_time(watched) == without_time(fit(image_task, EVERYTHING, 1))
    assert [row["step"] for row in seen] == list(range(len(seen)))
    assert all(math.isfinite(value) for row in seen for value in row.values())
    assert seen[0]["learning_rate"] < max(row["learning_rate"] for row in seen)  # the warmup


def test_what_a_step_says_is_what_it_did(regression_task):
    recipe = Recipe(optimizer="sgd", momentum=0.0, lr=0.1, epochs=1, batch_size="full", clip_norm=0.01, l2=0.5)
    seen = []
    model = nn.Linear(regression_task.input_shape[0], 1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    fit(regression_task, recipe, 0, model=model, on_step=lambda step, values: seen.append(values))
    size = math.sqrt(sum(float((value**2).sum()) for value in before))
    moved = math.sqrt(
        sum(float(((a - b.detach()) ** 2).sum()) for a, b in zip(before, model.parameters(), strict=True))
    )
    (row,) = seen
    assert float(row["weight_norm"]) == pytest.approx(size, rel=1e-6)
    assert float(row["update_ratio"]) == pytest.approx(moved / size, rel=1e-4)
    assert moved == pytest.approx(0.1 * 0.01, rel=1e-4)  # clipped, but
    assert float(row["gradient_norm"]) > 0.01  # the norm is that from before
    assert row["learning_rate"] == 0.1


def test_the_seed_alone_decides(image_task):
    torch.manual_seed(0)
    first = fit(image_task, EVERYTHING, 1)
    torch.manual_seed(12345)
    assert without_time(first) == without_time(fit(image_task, EVERYTHING, 1))
    assert without_time(first) != without_time(fit(image_task, EVERYTHING, 2))


def test_global_random_state_is_left_as_it_was(image_task):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    fit(image_task, EVERYTHING.varied({"epochs": 1, "warmup_epochs": 0}), 1)
    assert torch.equal(torch.rand(3), expected)


def test_a_directory_of_another_fit_is_refused(image_task, tmp_path):
    fit(image_task, Recipe(epochs=1), 0, directory=tmp_path)
    for recipe, seed in ((Recipe(epochs=2), 0), (Recipe(epochs=1), 1)):
        with pytest.raises(InvalidValue, match="directory must hold checkpoints of this recipe, seed and task"):
            fit(image_task, recipe, seed, directory=tmp_path)


def test_divergence_is_a_result(image_task):
    diverged = fit(image_task, Recipe(optimizer="sgd", lr=1e8, epochs=5))
    assert diverged.stopped == "diverged"
    assert diverged.metrics["diverged"] == 1.0
    assert diverged.metrics["epochs_run"] < 5
    assert "diverged" in repr(diverged)
    assert math.isnan(diverged.metrics["test_accuracy"])


def test_early_stopping_restores_the_best_weights(regression_task):
    recipe = Recipe(epochs=60, lr=0.05, patience=2, widths=(64, 64))
    stopped = fit(regression_task, recipe)
    losses = [row["valid_loss"] for row in stopped.history]
    assert stopped.stopped == "patience"
    assert len(losses) < 60
    assert stopped.metrics["best_epoch"] == losses.index(min(losses))
    assert stopped.metrics["valid_loss"] == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize("ending", [Interrupted, KeyboardInterrupt])
def test_the_best_weights_are_restored_when_training_is_cut_short(regression_task, ending):
    model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 1))
    best = {}

    def watch(row):
        if not best or row["valid_loss"] < best["loss"]:
            best.update(loss=row["valid_loss"], state={k: v.clone() for k, v in model.state_dict().items()})
        if row["epoch"] == 12:
            raise ending

    with pytest.raises(ending):
        fit(regression_task, Recipe(epochs=40, lr=0.3, patience=40), model=model, on_epoch=watch)
    assert all(torch.equal(tensor, best["state"][name]) for name, tensor in model.state_dict().items())


def test_after_divergence_the_best_weights_are_what_is_measured(regression_task):
    # The rate grows with the warm-up until the quadratic's stability limit is passed.
    recipe = Recipe(optimizer="sgd", momentum=0.0, lr=1e4, warmup_epochs=30, epochs=30, patience=30, batch_size="full")
    diverged = fit(regression_task, recipe, model=nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 1)))
    assert diverged.metrics["diverged"] == 1.0
    assert math.isfinite(diverged.metrics["valid_loss"])


def test_the_monitor_may_be_the_metric(image_task):
    recipe = Recipe(epochs=12, patience=1, monitor="valid_metric")
    stopped = fit(image_task, recipe)
    accuracies = [row["valid_accuracy"] for row in stopped.history]
    assert stopped.metrics["valid_accuracy"] == pytest.approx(max(accuracies))


def hand_trained(model, task, steps, step):
    x, y = task.prepare(task.train.x), task.train.y
    for _ in range(steps):
        model.zero_grad()
        nn.functional.mse_loss(model(x).squeeze(1), y).backward()
        with torch.no_grad():
            step(model)


def linear():
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def test_weight_decay_is_decoupled_and_spares_the_bias(regression_task):
    lr, decay = 0.05, 0.3

    def step(model):
        model.weight.mul_(1 - lr * decay).sub_(lr * model.weight.grad)
        model.bias.sub_(lr * model.bias.grad)

    expected = linear()
    hand_trained(expected, regression_task, 4, step)
    recipe = Recipe(optimizer="sgd", momentum=0.0, lr=lr, weight_decay=decay, batch_size="full", epochs=4)
    found = fit(regression_task, recipe, model=linear()).model
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


def test_penalties_act_through_the_gradient_and_before_clipping(regression_task):
    lr, l1, l2, bound = 0.05, 0.1, 0.2, 0.7

    def step(model):
        model.weight.grad += l1 * model.weight.sign() + l2 * model.weight
        nn.utils.clip_grad_norm_(model.parameters(), bound)
        for parameter in model.parameters():
            parameter.sub_(lr * parameter.grad)

    expected = linear()
    hand_trained(expected, regression_task, 4, step)
    settings = {"l1": l1, "l2": l2, "clip_norm": bound}
    recipe = Recipe(optimizer="sgd", momentum=0.0, lr=lr, batch_size="full", epochs=4, **settings)
    found = fit(regression_task, recipe, model=linear()).model
    torch.testing.assert_close(found.weight, expected.weight)


def test_adamw_is_torchs(regression_task):
    expected = linear()
    optimizer = torch.optim.AdamW(
        [{"params": [expected.weight]}, {"params": [expected.bias], "weight_decay": 0.0}], lr=0.01, weight_decay=0.01
    )
    hand_trained(expected, regression_task, 5, lambda model: optimizer.step())
    found = fit(regression_task, Recipe(lr=0.01, batch_size="full", epochs=5), model=linear()).model
    torch.testing.assert_close(found.weight, expected.weight)
    torch.testing.assert_close(found.bias, expected.bias)


def test_clipping_that_never_acted_warns(regression_task):
    with pytest.warns(NoEffectWarning, match=r"clip_norm=1e\+06 never acted"):
        fit(regression_task, Recipe(epochs=1, clip_norm=1e6))


def test_bfloat16_trains(image_task):
    assert fit(image_task, Recipe(epochs=8, precision="bfloat16")).metrics["valid_accuracy"] > 0.8


class Items(Dataset):
    """A map-style dataset whose transform draws from torch's global generator."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        x, y = self.source.batch(torch.tensor([index]))
        return x[0] + 0.01 * torch.randn(3), y[0]


@pytest.mark.parametrize("wrap", [Items, lambda source: DataLoader(Items(source), batch_size=8, shuffle=True)])
def test_datasets_and_loaders_are_resumed_bit_for_bit_too(regression_task, tmp_path, wrap):
    task = Task(data=tuple(wrap(split) for split in regression_task.data), model=lambda: nn.Linear(3, 1), loss="mse")
    recipe = Recipe(epochs=3, lr=0.05)
    undisturbed = fit(task, recipe, 1)

    def leave(row):
        raise Interrupted

    with pytest.raises(Interrupted):
        fit(task, recipe, 1, directory=tmp_path, on_epoch=leave)
    assert same_weights(undisturbed.model, fit(task, recipe, 1, directory=tmp_path).model)


def test_a_frozen_model_is_refused(regression_task):
    with pytest.raises(HomeostatError, match="no trainable parameters"):
        fit(regression_task, model=nn.Linear(3, 1).requires_grad_(False))


def test_augmentation_of_vectors_is_refused(regression_task):
    with pytest.raises(HomeostatError, match="crop"):
        fit(regression_task, Recipe(augment="crop", epochs=1))


def test_a_directory_that_cannot_be_written_is_refused_before_any_epoch(regression_task, tmp_path):
    (tmp_path / "file").write_text("")
    epochs = []
    with pytest.raises(HomeostatError, match="cannot write to"):
        fit(regression_task, Recipe(epochs=1), directory=tmp_path / "file" / "below", on_epoch=epochs.append)
    assert epochs == []
