"""Changes of scales: what they do; of every change of data, that weights and optimizer stay and that twice is once."""

import copy
import pickle

import pytest
import torch
from changed_trainings import applied, classes, regression
from small_trainings import mlp, plane, rings
from torch import nn

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
