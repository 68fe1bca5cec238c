"""RandAugment, TrivialAugment, color jitter: torchvision's operations and numbers, and one draw per example."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from homeostat.parts.augment import make_augment, photometric
from homeostat.parts.augment.policies import OPERATIONS, apply, color_jitter, magnitudes, randaugment, trivialaugment

# torchvision 0.20, transforms/autoaugment.py: least and greatest magnitude of RandAugment and of TrivialAugmentWide,
# for images 40 pixels high and 80 wide, and whether an operation has two directions
PUBLISHED = {
    "Identity": ((0, 0), (0, 0), False),
    "ShearX": ((0, 0.3), (0, 0.99), True),
    "ShearY": ((0, 0.3), (0, 0.99), True),
    "TranslateX": ((0, 150 / 331 * 80), (0, 32), True),
    "TranslateY": ((0, 150 / 331 * 40), (0, 32), True),
    "Rotate": ((0, 30), (0, 135), True),
    "Brightness": ((0, 0.9), (0, 0.99), True),
    "Color": ((0, 0.9), (0, 0.99), True),
    "Contrast": ((0, 0.9), (0, 0.99), True),
    "Sharpness": ((0, 0.9), (0, 0.99), True),
    "Posterize": ((8, 4), (8, 2), False),
    "Solarize": ((255, 0), (255, 0), False),
    "AutoContrast": ((0, 0), (0, 0), False),
    "Equalize": ((0, 0), (0, 0), False),
}


@pytest.mark.parametrize(("policy", "column"), [("randaugment", 0), ("trivialaugment", 1)])
def test_magnitudes_are_the_published_ones(policy, column):
    table = magnitudes(policy, 31, 40, 80)
    assert tuple(PUBLISHED) == OPERATIONS
    for row, (name, published) in zip(table, PUBLISHED.items(), strict=True):
        expected = np.linspace(*published[column], 31)
        if name.startswith("Translate"):
            expected = np.trunc(expected + 1e-6)
        elif name == "Posterize":
            bits = published[column][0] - published[column][1]
            expected = 8 - np.round(np.arange(31) / (30 / bits))
        elif name == "Solarize":
            expected = expected / 255
        np.testing.assert_allclose(row.numpy(), expected, atol=1e-12)


def pictures(n=6, channels=3, height=20, width=26):
    generator = torch.Generator().manual_seed(1)
    x = torch.nn.functional.interpolate(torch.rand(n, channels, 5, 6, generator=generator), (height, width))
    return (255 * x).to(torch.uint8)


def by_pil(picture, name, magnitude):
    """An operation in the words of the reference implementation of both papers."""
    size, affine = picture.size, Image.Transform.AFFINE
    moves = {
        "ShearX": (1, magnitude, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, magnitude, 1, 0),
        "TranslateX": (1, 0, -magnitude, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -magnitude),
    }
    factors = {
        "Brightness": ImageEnhance.Brightness, "Color": ImageEnhance.Color, "Contrast": ImageEnhance.Contrast,
        "Sharpness": ImageEnhance.Sharpness,
    }  # fmt: skip
    if name in moves:
        return picture.transform(size, affine, moves[name])
    if name in factors:
        return factors[name](picture).enhance(1 + magnitude)
    return {
        "Identity": lambda: picture,
        "Rotate": lambda: picture.rotate(magnitude),
        "Posterize": lambda: ImageOps.posterize(picture, int(magnitude)),
        "Solarize": lambda: ImageOps.solarize(picture, round(255 * magnitude)),
        "AutoContrast": lambda: ImageOps.autocontrast(picture),
        "Equalize": lambda: ImageOps.equalize(picture),
    }[name]()


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_pil_s(name, policy):
    x = pictures()
    index = OPERATIONS.index(name)
    for level in (0, 9, 19, 30):
        for sign in (1, -1) if PUBLISHED[name][2] else (1,):
            magnitude = sign * float(magnitudes(policy, 31, 20, 26)[index, level])
            which = torch.full((6,), index)
            ours = apply(x / 255, which, torch.full((6,), magnitude, dtype=torch.float64), torch.zeros(3))
            for image, result in zip(x, (255 * ours).round().int(), strict=True):
                picture = Image.fromarray(image.permute(1, 2, 0).numpy())
                theirs = torch.from_numpy(np.array(by_pil(picture, name, magnitude))).permute(2, 0, 1).int()
                # PIL rounds between the steps of an enhancement; where a position falls between two pixels, either is
                apart = (result - theirs).abs().amax(0) > 2
                assert apart.float().mean() < (0.03 if name in ("Rotate", "ShearX", "ShearY") else 0.002)


def test_a_batch_of_different_operations_is_what_each_does_alone():
    n = 4 * len(OPERATIONS)
    x = pictures(n) / 255
    which = torch.arange(n) % len(OPERATIONS)
    magnitude = torch.where(which == OPERATIONS.index("Posterize"), 3.0, 0.3)
    together = apply(x, which, magnitude, torch.zeros(3))
    alone = [apply(x[i : i + 1], which[i : i + 1], magnitude[i : i + 1], torch.zeros(3)) for i in range(n)]
    assert torch.equal(together, torch.cat(alone))


def numbers_of(n, count, seed=0):
    return torch.rand(n, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_randaugment_applies_its_operations_one_after_the_other_with_signs():
    x, fill = pictures(60) / 255, torch.zeros(3)
    numbers = numbers_of(60, 4)
    y = randaugment(x, numbers, num_ops=2, magnitude=9, num_magnitude_bins=31, fill=fill)
    table = magnitudes("randaugment", 31, 20, 26)[:, 9]
    for i, row in enumerate(numbers.tolist()):
        image = x[i : i + 1]
        for which, sign in ((row[0], row[1]), (row[2], row[3])):
            index = int(which * 14)
            signed = PUBLISHED[OPERATIONS[index]][2] and sign < 0.5
            magnitude = table[index : index + 1] * (-1 if signed else 1)
            image = apply(image, torch.tensor([index]), magnitude, fill)
        assert torch.equal(y[i : i + 1], image)


def test_trivialaugment_draws_operation_and_magnitude_for_each_example():
    x, fill = pictures(60) / 255, torch.zeros(3)
    numbers = numbers_of(60, 3)
    y = trivialaugment(x, numbers, num_magnitude_bins=31, fill=fill)
    table = magnitudes("trivialaugment", 31, 20, 26)
    for i, (which, level, sign) in enumerate(numbers.tolist()):
        index = int(which * 14)
        signed = PUBLISHED[OPERATIONS[index]][2] and sign < 0.5
        magnitude = table[index, int(level * 31)].view(1) * (-1 if signed else 1)
        assert torch.equal(y[i : i + 1], apply(x[i : i + 1], torch.tensor([index]), magnitude, fill))


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment"])
def test_one_batch_holds_many_operations(name):
    x = pictures(1).expand(400, -1, -1, -1)
    augment = make_augment(name, num_ops=1)
    y = augment(x, torch.Generator().manual_seed(0))
    distinct = len(torch.unique(y.flatten(1), dim=0))
    assert distinct > (15 if name == "randaugment" else 100)
    # Identity and whatever else leaves this image as it is
    same = (y == x).flatten(1).all(1).float().mean().item()
    assert 1 / 14 - 5 * math.sqrt(13 / 14**2 / 400) < same < 0.35


def test_color_jitter_is_its_four_changes_in_an_order_of_each_example_s_own():
    x, numbers = pictures(50) / 255, numbers_of(50, 8)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.6, 1.4), "saturation": (0.6, 1.4), "hue": (-0.1, 0.1)}
    y = color_jitter(x, numbers, **ranges)
    functions = (
        photometric.adjust_brightness, photometric.adjust_contrast, photometric.adjust_saturation,
        photometric.adjust_hue,
    )  # fmt: skip
    orders = set()
    for i, row in enumerate(numbers.tolist()):
        order = sorted(range(4), key=lambda k, r=row: r[4 + k])
        orders.add(tuple(order))
        image = x[i : i + 1]
        for k in order:
            low, high = list(ranges.values())[k]
            image = functions[k](image, torch.tensor([low + (high - low) * row[k]], dtype=torch.float64))
        torch.testing.assert_close(y[i : i + 1], image, rtol=0, atol=1e-6)
    assert len(orders) > 15  # of 24


def test_color_jitter_without_ranges_is_the_identity():
    x, numbers = pictures() / 255, numbers_of(6, 8)
    nothing = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "saturation": (1.0, 1.0), "hue": (0.0, 0.0)}
    assert torch.equal(color_jitter(x, numbers, **nothing), x)
