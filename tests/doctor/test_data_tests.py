"""What the doctor knows of data before training: scale, splits, rows, and all facts at once."""

import pytest
import torch
from data_examples import LONG, TEN, examples, normal, shuffled
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from small_trainings import mlp
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.facts import examine_data
from homeostat.doctor.data.rows import find_overlap, rows_in_both, stored_order
from homeostat.doctor.data.scale import count_nonfinite, input_scale, target_scale
from homeostat.doctor.data.splits import compare_splits
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.doctor.training import Training

# ---------------------------------------------------------------------------------------------------------------- scale


def test_scale_of_what_is_normalized():
    scale = input_scale(examples(normal(1000, 5)))
    assert scale.form == "real"
    assert scale.normalized
    assert scale.rms == pytest.approx(1.0, abs=0.05)
    assert scale.ratio < 1.2


def test_scale_far_from_zero_and_of_unlike_columns():
    x = normal(1000, 4) * torch.tensor([0.01, 0.1, 1.0, 100.0]) + torch.tensor([0.0, 5.0, 50.0, 500.0])
    scale = input_scale(examples(x))
    assert not scale.normalized
    assert scale.ratio == pytest.approx(1e4, rel=0.1)
    assert scale.offset > 5
    assert scale.large_std == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize(
    ("inputs", "form"),
    [
        (torch.randint(0, 255, (20, 1, 8, 8), dtype=torch.uint8), "bytes"),
        (torch.randint(0, 5000, (20, 12)), "tokens"),
        (torch.rand(20, 3) > 0.5, "binary"),
        ((torch.rand(20, 3) > 0.5).float(), "binary"),
        ((torch.rand(20, 3), torch.rand(20, 3)), "none"),
    ],
)
def test_inputs_that_need_no_scaling_are_recognized(inputs, form):
    assert input_scale(Examples(inputs, torch.zeros(20), 20)).form == form


def test_zeros_and_ones_beside_quantities_are_left_out():
    x = torch.cat([1000 * normal(500, 1), (normal(500, 6, seed=1) > 2).float()], 1)
    scale = input_scale(examples(x))
    assert scale.binary == 6
    assert scale.typical_std == pytest.approx(1000, rel=0.1)
    assert scale.ratio == 1.0


def test_pixels_share_a_scale_though_border_pixels_hardly_vary(digits):
    scale = input_scale(examples(digits[0]))
    assert scale.shared
    assert scale.constant > 0
    assert scale.ratio == 1.0


@pytest.mark.parametrize("whole", [torch.arange(256.0)[:, None] * torch.ones(1, 3), torch.arange(100.0)[:, None]])
def test_whole_numbers_divided_by_their_range_twice_are_recognized(whole):
    span = whole.max() - whole.min()
    assert input_scale(examples(shuffled(whole) / span / span)).divided_twice
    assert not input_scale(examples(shuffled(whole) / span)).divided_twice
    assert not input_scale(examples(shuffled(whole))).divided_twice


def test_target_scale():
    y = torch.stack([normal(500, 1)[:, 0] * 100 + 1000, normal(500, 1, 1)[:, 0]], 1)
    scale = target_scale(examples(normal(500, 2), y), Score("regression", 2))
    assert scale.std == pytest.approx(100, rel=0.1)
    assert scale.least_std == pytest.approx(1, rel=0.1)
    assert scale.mean == pytest.approx(1000, rel=0.02)
    assert target_scale(examples(normal(5, 2)), TEN) is None


def test_numbers_that_are_not_finite_are_counted_by_example():
    x, y = normal(50, 3), normal(50, 1)
    x[3] = float("nan")
    x[7, 1] = float("inf")
    y[9] = float("-inf")
    found = count_nonfinite(examples(x, y), examples(normal(20, 3)))
    assert (found.train_inputs, found.train_targets, found.valid_inputs, found.valid_targets) == (2, 1, 0, 0)
    assert found.total == 3


# --------------------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("load", [load_iris, load_wine, load_breast_cancer, load_digits])
@pytest.mark.parametrize("seed", range(4))
def test_random_halves_of_real_data_do_not_differ(load, seed):
    x = shuffled(torch.as_tensor(load(return_X_y=True)[0].astype("float32")), seed)
    found = compare_splits(examples(x[: len(x) // 2]), examples(x[len(x) // 2 :]))
    assert found.gross == 0


def test_heavy_tails_do_not_count_as_another_scale():
    for seed in range(10):
        x = normal(1000, 8, seed).mul(1.5).exp()
        assert compare_splits(examples(x[:700]), examples(x[700:])).gross == 0


@pytest.mark.parametrize("factor", [255.0, 1 / 255.0])
def test_one_factor_for_all_features_is_found(pictures, factor):
    train, valid = pictures
    found = compare_splits(train, examples(valid.inputs * factor))
    assert found.gross == found.features == 1
    assert found.factor == pytest.approx(factor, rel=0.05)


def test_standardized_against_raw():
    x = normal(400, 6) * torch.tensor([1, 3, 10, 30, 100, 300.0]) + 50
    found = compare_splits(examples((x - x.mean(0))[:200] / x.std(0)), examples(x[200:]))
    assert found.gross >= 5
    assert not found.common


@pytest.mark.parametrize(
    ("name", "turn"),
    [
        ("transposed", lambda x: x.transpose(2, 3)),
        ("turned upside down", lambda x: x.flip(2)),
        ("mirrored", lambda x: x.flip(3)),
        ("inverted", lambda x: 1 - x),
    ],
)
def test_images_turned_over_in_one_split_are_found(pictures, name, turn):
    train, valid = pictures
    assert compare_splits(train, valid).turned == ""
    assert compare_splits(train, examples(turn(valid.inputs))).turned == name


def test_channels_in_another_order_are_found():
    x = normal(600, 3 * 36).reshape(600, 3, 6, 6) + torch.tensor([0.0, 0.3, 0.9])[:, None, None]
    assert compare_splits(examples(x[:300]), examples(x[300:])).turned == ""
    assert compare_splits(examples(x[:300]), examples(x[300:].flip(1))).turned == "channels reversed"


# ----------------------------------------------------------------------------------------------------------------- rows


def test_shared_rows_are_found_and_repeats_by_nature_are_not_counted():
    x = normal(500, 3)
    found = find_overlap(examples(x[:400]), examples(torch.cat([x[:30], x[400:]])), Score("regression", 1))
    assert found.shared == pytest.approx(30 / 130)
    assert found.excess == found.shared
    assert found.natural == 0

    coarse = torch.randint(0, 300, (1000, 1), generator=torch.Generator().manual_seed(0)).float()
    natural = find_overlap(examples(coarse[:800]), examples(coarse[800:]), Score("regression", 1))
    assert natural.shared > 0.8
    assert natural.excess < 3 * natural.error + 0.02


def test_identical_splits_and_small_spaces_are_recognized():
    bits = ((torch.arange(64)[:, None] >> torch.arange(6)) & 1).float()
    found = find_overlap(examples(bits), examples(bits[shuffled(torch.arange(64))]), Score("multilabel", 6))
    assert found.identical
    assert found.small_space
    assert not find_overlap(examples(normal(64, 6)), examples(normal(20, 6, 1)), Score("regression", 1)).small_space


def test_rows_of_nests_are_compared_whole():
    train = Examples({"a": normal(40, 2), "b": torch.arange(40)[:, None]}, torch.zeros(40), 40)
    valid = Examples({"a": normal(40, 2), "b": torch.arange(40)[:, None].flip(0)}, torch.zeros(40), 40)
    assert not rows_in_both(train, valid).any()
    assert rows_in_both(train, train).all()


def test_contradicting_labels():
    x = normal(100, 2).repeat(2, 1)
    y = torch.cat([torch.zeros(100), torch.zeros(100)]).long()
    y[150:160] = 1
    found = find_overlap(examples(x, y), examples(normal(50, 2, 1)), Score("binary", 2))
    assert found.contradicting == pytest.approx(20 / 200)


def test_stored_order():
    y = torch.arange(1000) // 100
    alike = stored_order(examples(normal(1000, 2), y), TEN, 32)
    assert alike.alike > 0.8
    assert alike.z > 8
    mixed = stored_order(examples(normal(1000, 2), shuffled(y)), TEN, 32)
    assert abs(mixed.alike) < 0.05
    assert mixed.z < 4
    values = torch.linspace(0, 1, 1000)[:, None]
    assert stored_order(examples(normal(1000, 2), values), Score("regression", 1), 20).alike > 0.9
    assert stored_order(examples(normal(40, 2), torch.zeros(40, 1)), Score("regression", 1), 4) is None


# ------------------------------------------------------------------------------------------------------------ all of it


def training(train, valid, **options):
    model = mlp(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Training(
        model, nn.functional.cross_entropy, optimizer, train, valid, epochs=2, **{"batch_size": 32, **options}
    )


def facts_of(given, seconds=60.0, score=TEN):
    return examine_data(given, given.examples("train"), given.examples("valid"), score, Deadline(seconds))


def test_all_facts_of_a_healthy_training(digits):
    x, y = digits
    facts = facts_of(training((x[:1300], y[:1300]), (x[1300:], y[1300:])))
    assert facts.distinct_targets == (3, 3)
    assert facts.finite.total == 0
    assert facts.order is None
    assert facts.augmentation is None
    assert facts.labels is not None
    assert facts.classes.ratio < 1.5


def test_a_loader_without_shuffling_has_an_order(digits):
    x, y = digits
    order = y.argsort()
    loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=32)
    facts = facts_of(training(loader, (x, y), batch_size=None))
    assert facts.order.alike > 0.8


def test_a_deadline_that_passed_leaves_what_is_cheap(digits):
    x, y = digits
    facts = facts_of(training((x[:1300], y[:1300]), (x[1300:], y[1300:])), seconds=0.0)
    assert facts.inputs.form == "real"
    assert facts.labels is None
    assert facts.overlap is None


def test_validation_that_is_the_training_data_asks_for_no_labels(digits):
    facts = facts_of(training(digits, None))
    assert facts.overlap.identical
    assert facts.labels is None


def test_data_of_all_kinds_are_endured():
    y = torch.arange(60) % 3
    for inputs in (
        torch.full((60, 4), float("nan")),
        torch.zeros(60, 4),
        torch.rand(60, 4) * 1e38,
        torch.rand(60, 4, dtype=torch.float64) * 1e300,
        torch.randint(0, 9, (60, 5)),
        torch.rand(60),
        torch.rand(60, 2, 3, 4, 5),
        torch.rand(60, 0),
        {"a": torch.rand(60, 2), "b": torch.randint(0, 5, (60, 3))},
    ):
        split = Examples(inputs, y, 60)
        given = training((inputs, y), None)
        facts = examine_data(given, split, split.select(torch.arange(59)), Score("multiclass", 3), LONG)
        assert facts.classes.ratio == 1.0


def test_targets_that_were_lost():
    x = normal(80, 64)
    train, valid = examples(x, torch.zeros(80, dtype=torch.int64)), examples(x, torch.arange(80) % 10)
    facts = examine_data(training((x, x), None), train, valid, TEN, LONG)
    assert facts.distinct_targets == (1, 3)
