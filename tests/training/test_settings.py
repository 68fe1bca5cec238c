"""Every part as a setting of a recipe: it acts, on what it should act on, and leaves the rest of a fit alone."""

import math
import warnings
from typing import get_args

import pytest
import torch
from quick_fits import quick, weights
from torch import nn

from homeostat import nn as fast
from homeostat.errors import HomeostatError, InvalidValue, NoEffectWarning
from homeostat.parts import activation, dropout, init, norm
from homeostat.training.inputs import Inputs
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.objective import Objective
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"mix": "mixup"},
        {"mix": "cutmix"},
        {"l1_proximal": 0.5},
        {"clip_adaptive": 0.001},
        {"dropout": 0.4, "dropout_kind": "channel"},
        {"dropout": 0.4, "dropout_kind": "alpha"},
        {"dropout": 0.4, "dropout_kind": "gaussian"},
        {"dropout": 0.4, "dropout_kind": "connect"},
        {"dropout": 0.4, "dropout_schedule": "ramp"},
        {"dropout": 0.4, "dropout_schedule": "early"},
        {"init": "he"},
        {"init": "xavier"},
        {"init": "lsuv"},
        {"init": "trunc_normal"},
    ],
    ids=lambda change: "-".join(str(value) for value in change.values()),
)
def test_a_setting_changes_what_is_learned_and_nothing_breaks(color_task, change):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(color_task, quick(**change), 0)
    assert fitted.metrics["diverged"] == 0
    plain = {key: value for key, value in change.items() if key == "dropout"}
    assert not torch.equal(weights(fitted), weights(fit(color_task, quick(**plain), 0)))


def test_a_resumed_fit_with_every_setting_equals_an_undisturbed_one(color_task, tmp_path):
    recipe = Recipe(
        epochs=4, batch_size=16, widths=(8,), norm="batch", dropout=0.3, dropout_schedule="ramp", mix="mixup",
        clip_adaptive=0.01, l1_proximal=1e-3, gl_alpha=1e6, pq_alpha=1e6, up_strips=3, strip=2,
        bn_statistics="pooled", adapt="bn", corruption="gaussian_noise:3", augment="crop+flip",
    )  # fmt: skip

    class Stop(Exception):
        pass

    def stop_after_two(row):
        if row["epoch"] == 1:
            raise Stop

    whole = fit(color_task, recipe, 5)
    with pytest.raises(Stop):
        fit(color_task, recipe, 5, directory=tmp_path, on_epoch=stop_after_two)
    resumed = fit(color_task, recipe, 5, directory=tmp_path)
    assert torch.equal(weights(resumed), weights(whole))
    same = {name: value for name, value in whole.metrics.items() if name != "seconds_per_epoch"}
    assert same == {name: value for name, value in resumed.metrics.items() if name != "seconds_per_epoch"}


@pytest.mark.parametrize("schedule", ["ramp", "early"])
def test_a_finished_fit_that_is_opened_again_predicts_the_same(color_task, tmp_path, schedule):
    """As after a kill between the last checkpoint and the report: no epoch is left that would set probabilities."""
    recipe = quick(dropout=0.4, dropout_schedule=schedule, mc_samples=4, patience=9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoEffectWarning)  # early has switched dropout off
        first, again = (fit(color_task, recipe, 0, directory=tmp_path) for _ in range(2))
    assert first.metrics == again.metrics
    assert [module.p for module in first.model.modules() if isinstance(module, fast.Dropout)] == [0.4]


def test_a_schedule_leaves_a_given_model_with_its_own_probabilities(color_task):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8), nn.Dropout(0.4), nn.Linear(8, 3))
    fit(color_task, Recipe(epochs=3, dropout_schedule="early"), model=model)
    assert model[2].p == 0.4

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(color_task, Recipe(epochs=3, dropout_schedule="ramp"), model=model, on_epoch=stop)
    assert model[2].p == 0.4


def test_soft_thresholds_make_exact_zeros(color_task):
    dense, sparse = (fit(color_task, quick(l1_proximal=strength), 0).model for strength in (0.0, 0.3))
    assert not any((p == 0).any() for p in dense.parameters() if p.ndim > 1)
    assert sum(int((p == 0).sum()) for p in sparse.parameters() if p.ndim > 1) > 100


def test_mixed_targets_are_probabilities_of_the_two_classes(color_task):
    inputs = Inputs(color_task, quick(mix="mixup"), CPU)
    x, y = color_task.train.head(12)
    mixed, targets = inputs.for_training(x, y, torch.Generator(), torch.Generator().manual_seed(0))
    assert mixed.shape == (12, 3, 28, 28)
    assert targets.shape == (12, 3)
    assert torch.allclose(targets.sum(1), torch.ones(12))
    assert bool(((targets > 0).sum(1) <= 2).all())


def test_augmenting_does_not_change_which_examples_are_mixed(color_task):
    x, y = color_task.train.head(12)

    def targets(**settings):
        streams = (torch.Generator().manual_seed(seed) for seed in (1, 2))
        return Inputs(color_task, quick(mix="mixup", **settings), CPU).for_training(x, y, *streams)[1]

    assert torch.equal(targets(), targets(augment="crop+flip"))


def test_numbers_to_be_predicted_are_mixed_too(regression_task):
    assert fit(regression_task, Recipe(mix="mixup", epochs=1)).metrics["diverged"] == 0


def test_class_numbers_are_not_mixed_for_an_unknown_loss():
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    own = {"loss": nn.functional.cross_entropy, "metric": "accuracy", "goal": "maximize"}
    with pytest.raises(InvalidValue, match="mix must be none for class numbers and a loss of your own"):
        fit(Task(data=((x, y), None, None), classes=3, **own), Recipe(mix="mixup", epochs=1))


def test_cutmix_needs_images():
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    with pytest.raises(InvalidValue, match="cutmix"):
        fit(Task(data=((x, y), None, None)), Recipe(mix="cutmix", epochs=1))


@pytest.mark.parametrize(
    ("settings", "ending"),
    [({"gl_alpha": 1e-6}, "gl"), ({"pq_alpha": 1e-9, "strip": 2}, "pq"), ({"up_strips": 1, "strip": 1}, "up")],
)
def test_a_stopping_rule_ends_training_and_keeps_the_best(regression_task, settings, ending):
    """A learning rate at which the loss of full-batch descent rises again."""
    recipe = Recipe(optimizer="sgd", momentum=0.0, lr=0.7, batch_size="full", epochs=200, widths=(8,), **settings)
    fitted = fit(regression_task, recipe, 0)
    losses = [row["valid_loss"] for row in fitted.history]
    assert fitted.stopped == ending
    assert len(losses) < 200
    assert fitted.metrics["valid_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_schedule_sets_the_probability_of_every_dropout_layer(color_task):
    seen = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 28 * 28, 8), nn.Dropout(0.4), fast.Dropout(0.2), nn.Linear(8, 3))
    recipe = Recipe(epochs=3, dropout_schedule="ramp")
    fit(color_task, recipe, model=model, on_epoch=lambda row: seen.append((model[2].p, model[3].p)))
    assert seen == [pytest.approx((0.0, 0.0)), pytest.approx((0.2, 0.1)), pytest.approx((0.4, 0.2))]


def test_branches_are_skipped_more_often_the_deeper_they_are(color_task):
    model = build_model(color_task, Recipe(model="resnet", depth=14, drop_path=0.3), 0)
    rates = [module.drop_prob for module in model.modules() if isinstance(module, fast.DropPath)]
    assert rates == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])  # and none around the first
    same = build_model(color_task, Recipe(model="resnet", depth=14), 0)
    x = color_task.sample(4)[0]
    assert torch.allclose(model.eval()(x), same.eval()(x), atol=1e-6)


@pytest.mark.parametrize("model", ["mlp", "cnn", "plain", "alexnet"])
def test_other_models_have_no_branches_to_skip(color_task, model):
    with pytest.raises(InvalidValue, match="drop_path must be 0 unless the model is resnet"):
        build_model(color_task, Recipe(model=model, drop_path=0.1), 0)


@pytest.mark.parametrize("name", ["alexnet", "inception"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_published_networks_train(color_task, name, norm):
    fitted = fit(color_task, Recipe(model=name, norm=norm, epochs=1, batch_size=16, dropout=0.1), 0)
    assert fitted.metrics["diverged"] == 0


@pytest.mark.parametrize("residual", ["scaled", "zero", "fixup"])
def test_residual_branches_are_initialized_as_asked(color_task, residual):
    build = {"model": "resnet", "norm": "none", "init": "he"}
    x = color_task.sample(8)[0]
    sizes = {
        kind: build_model(color_task, Recipe(**build, residual=kind), 0).eval()(x).detach().square().mean().item()
        for kind in ("keep", residual)
    }
    assert sizes[residual] < sizes["keep"]


def test_a_recipe_knows_the_names_that_the_parts_know():
    def choices(key):
        return {word for word in get_args(Recipe.model_fields[key].annotation) if isinstance(word, str)}

    assert choices("init") == {"keep", *init.SCHEMES, *init.AWARE}
    assert choices("dropout_kind") == {"keep", "connect", *dropout.KINDS}
    assert choices("dropout_schedule") == set(dropout.SCHEDULES)
    assert choices("dropout_where") == set(dropout.PLACES)
    assert choices("norm") == {"keep", *norm.NORMS}
    assert choices("activation") == {"keep", *activation.ACTIVATIONS}
    residual = get_args(Recipe.model_fields["residual"].annotation)
    assert set(get_args(residual[0])) == set(init.RESIDUALS)


def test_the_gain_of_an_initialization_is_a_setting(color_task):
    stds = [
        build_model(color_task, Recipe(model="mlp", init="he_normal", init_gain=gain), 0)[1].weight.std().item()
        for gain in (None, 1.0, 2.0)
    ]
    assert stds[1] / stds[0] == pytest.approx(math.sqrt(1 / 2), rel=1e-5)
    assert stds[2] / stds[1] == pytest.approx(2, rel=1e-5)


def test_residual_needs_an_initialization():
    with pytest.raises(InvalidValue, match="residual must be left out where init is keep"):
        Recipe(residual="zero")


def test_a_model_that_draws_while_it_runs_is_initialized_by_the_seed_alone(color_task):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 28 * 28, 3)

        def forward(self, input):
            return self.layer(input.flatten(1) + torch.randn(3 * 28 * 28))

    task = Task(data=color_task.data, model=Noisy)
    first = build_model(task, Recipe(init="lsuv"), 0)
    before = torch.get_rng_state()
    assert torch.equal(build_model(task, Recipe(init="lsuv"), 0).layer.weight, first.layer.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "fogg:3"}, "Did you mean 'fog'"),
        ({"corruption": "fog"}, "a name and a severity from 1 to 5"),
        ({"corruption": "fog:6"}, "a name and a severity from 1 to 5"),
        ({"mc_samples": 3, "adapt": "bn"}, "mc_samples must be 0 where adapt is not none"),
        ({"mix_alpha": 0.0}, "mix_alpha"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"up_strips": 0}, "up_strips"),
        ({"gl_alpha": float("inf")}, "finite"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message):
    with pytest.raises(HomeostatError, match=message):
        Recipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": "cutmix", "model": "mlp"}, None),
        ({"augment": "sobel"}, None),
        ({"augment": "randaugment+crop+cutout"}, None),
        ({"model": "mlp", "drop_path": 0.1}, "drop_path"),
        ({"model": "alexnet", "widths": (8,)}, "widths"),
    ],
)
def test_a_study_checks_every_setting_before_it_starts(color_task, settings, message):
    objective = Objective(color_task, Recipe())
    if message is None:
        objective.check([settings])
    else:
        with pytest.raises(InvalidValue, match=message):
            objective.check([settings])
