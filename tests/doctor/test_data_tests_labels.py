"""What the doctor knows of labels before training: whether they belong to their inputs, and to augmented ones."""

import math

import pytest
import torch
from data_examples import LONG, TEN, examples, normal, shuffled

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.augmentation import examine_augmentation
from homeostat.doctor.data.labels import count_classes, examine_labels
from homeostat.doctor.score import Score


def test_labels_that_belong_to_their_inputs(digits):
    x, y = digits
    found = examine_labels(examples(x[:1300], y[:1300]), examples(x[1300:], y[1300:]), TEN, LONG)
    assert found.train.z > 20
    assert found.valid.z > 20
    assert found.transfer.strength > 0.7
    assert found.wrong_share < 0.05
    assert found.renumbered - found.straight < 0.05


def test_labels_shuffled_in_one_split(digits):
    x, y = digits
    found = examine_labels(examples(x[:1300], shuffled(y[:1300])), examples(x[1300:], y[1300:]), TEN, LONG)
    assert abs(found.train.z) < 4
    assert found.valid.z > 20


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_the_share_of_wrong_labels_is_estimated(digits, share):
    x, y = digits
    wrong = torch.rand(1300, generator=torch.Generator().manual_seed(1)) < share
    noisy = torch.where(wrong, torch.randint(0, 10, (1300,), generator=torch.Generator().manual_seed(2)), y[:1300])
    found = examine_labels(examples(x[:1300], noisy), examples(x[1300:], y[1300:]), TEN, LONG)
    # neighbors outvote few wrong labels and follow many: the estimate is rough, and no larger than it should be by much
    assert 0.5 * share < found.wrong_share < share + 0.15


def test_classes_numbered_in_another_way(digits):
    x, y = digits
    found = examine_labels(examples(x[:1300], y[:1300]), examples(x[1300:], 9 - y[1300:]), TEN, LONG)
    assert found.straight < 0.3
    assert found.renumbered > 0.85


def test_relations_of_values_and_of_columns():
    x = normal(600, 5)
    y = x[:, :2] * 1e4
    found = examine_labels(examples(x[:400], y[:400]), examples(x[400:], y[400:]), Score("regression", 2), LONG)
    assert min(found.train.z, found.valid.z) > 6
    yes = (x > 0).long()
    found = examine_labels(examples(x[:400], yes[:400]), examples(x[400:], yes[400:]), Score("multilabel", 5), LONG)
    assert min(found.train.z, found.valid.z) > 6
    assert math.isnan(found.wrong_share)


@pytest.mark.parametrize("seed", range(5))
def test_no_relation_is_found_in_noise(seed):
    x, y = normal(400, 6, seed), torch.randint(0, 3, (400,), generator=torch.Generator().manual_seed(seed + 99))
    found = examine_labels(examples(x[:250], y[:250]), examples(x[250:], y[250:]), Score("multiclass", 3), LONG)
    assert max(found.train.z, found.valid.z, found.train_all.z) < 5


def test_classes_are_counted():
    facts = count_classes(
        examples(normal(100, 1), torch.tensor([0] * 90 + [1] * 10)),
        examples(normal(100, 1), torch.tensor([0] * 40 + [2] * 60)),
        Score("multiclass", 3),
    )
    assert facts.train == (90, 10, 0)
    assert facts.ratio == 9
    assert facts.prior == 0.9
    assert facts.prior_valid == 0.4
    assert facts.missing == (2,)
    assert facts.shift == pytest.approx(0.6)


# --------------------------------------------------------------------------------------------------------- augmentation


def flipped_half(images):
    over = torch.rand(len(images)) < 0.5
    return torch.where(over[:, None, None, None], images.flip(2, 3), images)


def moved(images):
    return torch.roll(images, tuple(torch.randint(-1, 2, (2,)).tolist()), (2, 3))


def noise(images):
    return torch.randn_like(images)


def test_augmentations_are_told_apart(pictures):
    train, _ = pictures
    fine = examine_augmentation(moved, train, TEN, LONG)
    assert fine.clean > 0.8
    assert min(fine.kept, fine.left) > 0.8 * fine.clean
    assert fine.swapped is None or min(fine.swapped.shares) < 0.2

    swapping = examine_augmentation(flipped_half, train, TEN, LONG)
    assert {swapping.swapped.first, swapping.swapped.second} == {6, 9}
    assert min(swapping.swapped.shares) > 0.2

    nothing = examine_augmentation(noise, train, TEN, LONG)
    assert nothing.left < 0.2


def test_augmentation_of_values_and_of_columns():
    x = normal(800, 6)
    y = x[:, :1] - x[:, 1:2]
    split = examples(x, y)
    kept = examine_augmentation(lambda v: v + 0.05 * torch.randn_like(v), split, Score("regression", 1), LONG)
    lost = examine_augmentation(torch.rand_like, split, Score("regression", 1), LONG)
    assert kept.left > 0.8
    assert lost.left < 0.1


def test_augmentation_that_makes_nan_or_fails_or_takes_too_long(pictures):
    train, _ = pictures
    assert examine_augmentation(lambda x: x / 0, train, TEN, LONG).nonfinite > 0.5
    assert examine_augmentation(moved, train, TEN, Deadline(0.0)) is None
    with pytest.raises(RuntimeError):
        examine_augmentation(lambda x: x @ x[:1, :1, :1, :3], train, TEN, LONG)


def test_augmentation_leaves_inputs_and_random_state(digits):
    train = examples(*digits)
    before, state = train.inputs.clone(), seeds.global_state()["torch"]
    first = examine_augmentation(lambda x: x.add_(torch.rand(1)), train, TEN, LONG)
    assert torch.equal(train.inputs, before)
    assert torch.equal(seeds.global_state()["torch"], state)
    torch.manual_seed(99)
    assert examine_augmentation(lambda x: x.add_(torch.rand(1)), train, TEN, LONG) == first
