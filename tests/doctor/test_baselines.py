"""Honest baselines: what they reach, where they do not apply, and that they disturb nothing."""

import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.baselines import Baselines, measure_baselines
from homeostat.doctor.data.flat import MOST_FEATURES, flat
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score


def split(x, y, seed=0, share=0.75):
    """Training and validation examples, drawn at random."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = int(share * len(x))
    return tuple(Examples(x[rows], y[rows], len(rows)) for rows in (order[:cut], order[cut:]))


def measured(parts, score, seconds=60.0, seed=0):
    return measure_baselines(*parts, score, Deadline(seconds), seed)


def test_digits_are_read_by_both_models_and_not_by_the_prior():
    x, y = load_digits(return_X_y=True)
    found = measured(split(x.astype("float32"), y), Score("multiclass", 10))
    assert found.prior < 0.15
    assert found.linear > 0.9
    assert found.neighbors > 0.9
    assert found.best == max(found.linear, found.neighbors)
    assert found.best_name in ("a linear model", "nearest neighbors")


def test_images_give_what_their_columns_give():
    x, y = load_digits(return_X_y=True)
    flat = measured(split(x.astype("float32"), y), Score("multiclass", 10))
    images = measured(split(x.astype("float32").reshape(-1, 1, 8, 8), y), Score("multiclass", 10))
    assert images == flat


def test_large_images_are_made_small_enough_for_small_models():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 10
    x = torch.randn(600, 3, 96, 96, generator=generator) + y[:, None, None, None] / 2
    assert flat(x).shape[1] <= MOST_FEATURES
    assert measured(split(x, y), Score("multiclass", 10)).linear > 0.5


def test_the_mean_explains_nothing_and_a_line_explains_a_line():
    x = torch.linspace(-1, 1, 200)[:, None]
    found = measured(split(x, 3e6 * x + 1e7), Score("regression", 1))
    assert found.prior == pytest.approx(0.0, abs=0.05)
    assert found.linear == pytest.approx(1.0, abs=1e-3)
    assert found.neighbors > 0.99


def test_regression_with_several_columns():
    x, y = load_diabetes(return_X_y=True)
    parts = split(x.astype("float32"), np.stack([y, -y], 1).astype("float32"))
    found = measured(parts, Score("regression", 2))
    assert 0.2 < found.linear < 0.7
    assert -0.1 < found.prior < 0.05


def test_columns_of_yes_and_no():
    bits = (torch.arange(256)[:, None] >> torch.arange(8)) & 1
    found = measured((Examples(bits.float(), bits.flip(1), 256),) * 2, Score("multilabel", 8))
    assert found.prior == pytest.approx(0.5)
    assert found.linear == 1.0
    assert found.best_name == "a linear model"


def test_token_ids_nests_and_dense_targets_have_the_prior_only():
    y = torch.arange(40) % 4
    ids = Examples(torch.arange(40)[:, None].repeat(1, 5), y, 40)
    pair = Examples((torch.rand(40, 2), torch.rand(40, 3)), y, 40)
    masks = Examples(torch.rand(40, 1, 4, 4), (torch.arange(40 * 16) % 3).reshape(40, 4, 4), 40)
    for examples, score in (
        (ids, Score("multiclass", 4)),
        (pair, Score("multiclass", 4)),
        (masks, Score("multiclass", 3, dense=True)),
    ):
        found = measured((examples, examples), score)
        assert found.prior == pytest.approx(1 / score.classes, abs=0.01)
        assert math.isnan(found.linear)
        assert math.isnan(found.neighbors)
        assert found.best == found.prior


@pytest.mark.parametrize("form", ["equal", "noisy", "scaled", "binarized"])
def test_inputs_that_are_to_be_given_back_are_no_task_for_a_line(form):
    images = torch.rand(100, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    noise = 0.2 * torch.randn(100, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    inputs = {"noisy": images + noise, "scaled": 3 * images - 1}.get(form, images)
    targets, kind = ((images > 0.5).float(), "multilabel") if form == "binarized" else (images, "regression")
    examples = Examples(inputs, targets.flatten(1), 100)
    found = measured((examples, examples), Score(kind, 16))
    assert (found.best, found.rows) == (found.prior, 100)
    turned = Examples(inputs, targets.flip(3).flatten(1), 100)
    assert measured((turned, turned), Score(kind, 16)).linear > found.prior + 0.2


def test_very_many_columns_have_the_prior_only():
    masks = (torch.arange(40 * 80 * 80) % 3 == 0).reshape(40, 80, 80)
    examples = Examples(torch.rand(40, 1, 80, 80), masks, 40)
    found = measured((examples, examples), Score("multilabel", 6400))
    assert 0.6 < found.prior < 0.7
    assert math.isnan(found.linear)


def test_an_unknown_task_has_no_baselines():
    examples = Examples(torch.rand(10, 2), torch.rand(10, 7), 10)
    found = measured((examples, examples), Score("other"))
    assert math.isnan(found.best)
    assert found.best_name == ""
    assert math.isnan(found.error(0.5))


def test_numbers_that_are_not_finite_are_endured():
    x, y = load_breast_cancer(return_X_y=True)
    x = torch.as_tensor(x.astype("float32"))
    x[::7, 3] = float("nan")
    x[::11, 5] = float("inf")
    found = measured(split(x, y), Score("binary", 2))
    assert found.linear > 0.9

    targets = torch.linspace(0, 1, 200)[:, None].clone()
    targets[::10] = float("nan")
    values = measured(split(torch.linspace(0, 1, 200)[:, None], targets), Score("regression", 1))
    assert values.linear > 0.99


def test_what_is_left_out_is_neither_learned_nor_asked():
    words = torch.tensor([[1, 1, 2], [1, 0, -100], [1, -100, -100], [2, -100, -100]])
    examples = Examples(torch.rand(4, 3), words, 4)
    assert measured((examples, examples), Score("multiclass", 3, dense=True)).prior == pytest.approx(4 / 7)

    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    truths, values = (x[:, :3] > 0).float(), 10 * x[:, :2] + 5
    missing = torch.rand(400, 3, generator=torch.Generator().manual_seed(1)) < 0.4
    columns = measured(split(x, truths.masked_fill(missing, math.nan)), Score("multilabel", 3))
    assert columns.prior < 0.65
    assert columns.linear > 0.9
    numbers = measured(split(x, values.masked_fill(missing[:, :2], math.nan)), Score("regression", 2))
    assert numbers.prior == pytest.approx(0.0, abs=0.05)
    assert numbers.linear > 0.8


@pytest.mark.parametrize("targets", [torch.zeros(30, dtype=torch.int64), torch.full((30,), 2)])
def test_a_single_class_needs_no_model(targets):
    examples = Examples(torch.rand(30, 2), targets, 30)
    found = measured((examples, examples), Score("multiclass", 3))
    assert found.prior == 1.0
    assert math.isnan(found.linear)


def test_constant_features_and_targets_are_no_reason_to_fail():
    examples = Examples(torch.ones(30, 4), torch.ones(30, 1), 30)
    found = measured((examples, examples), Score("regression", 1))
    assert found.prior == 1.0
    two = Examples(torch.ones(30, 4), torch.arange(30) % 2, 30)
    assert measured((two, two), Score("binary", 2)).linear == 0.5


def test_a_passed_deadline_leaves_the_prior():
    found = measured(split(torch.rand(100, 3), torch.arange(100) % 2), Score("binary", 2), seconds=0.0)
    assert math.isfinite(found.prior)
    assert math.isnan(found.linear)


def test_global_random_state_is_neither_read_nor_changed():
    x, y = load_digits(return_X_y=True)
    parts = split(x.astype("float32"), y)
    before = seeds.global_state()
    first = measured(parts, Score("multiclass", 10))
    assert torch.equal(seeds.global_state()["torch"], before["torch"])
    torch.manual_seed(1234)
    assert measured(parts, Score("multiclass", 10)) == first


@pytest.mark.parametrize("truth", [0.2, 0.5, 0.9])
def test_the_error_of_an_accuracy_covers_it(truth):
    rows, generator = 200, torch.Generator().manual_seed(0)
    scores = (torch.rand(1000, rows, generator=generator) < truth).float().mean(1)
    error = Baselines(0.5, kind="binary", rows=rows).error(truth)
    inside = ((scores - truth).abs() <= 1.96 * error).float().mean().item()
    assert 0.92 < inside < 0.98


def test_the_error_of_r2_is_that_of_normal_errors():
    rows, generator, noise = 200, torch.Generator().manual_seed(0), 0.7
    signal = torch.randn(1000, rows, generator=generator)
    y = signal + noise * torch.randn(1000, rows, generator=generator)
    scores = 1 - (y - signal).square().mean(1) / y.var(1, correction=0)
    error = Baselines(0.0, kind="regression", rows=rows).error(1 / (1 + noise**2))
    assert scores.std().item() == pytest.approx(error, rel=0.15)


def test_no_error_is_zero():
    assert Baselines(0.5, kind="binary", rows=10).error(1.0) > 0.05
    assert Baselines(0.5, kind="regression", rows=10).error(0.0) > 0.1
