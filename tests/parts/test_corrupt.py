"""What a user may rely on for every corruption: shapes, seeds, batches, sizes, errors."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.corrupt import CORRUPTIONS, SEVERITIES, corrupt

RANDOM = set(CORRUPTIONS) - {
    "defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression", "gaussian_blur", "saturate",
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs():
    names = ("china.jpg", "flower.jpg")
    return torch.stack([torch.tensor(load_sample_image(name)) for name in names]).permute(0, 3, 1, 2)


def crops(photographs, height, width=None, n=4, channels=3):
    """uint8 pieces of photographs, four different ones, then again."""
    width = width or height
    pieces = [photographs[k % 2, :, 60 * (k // 2) : 360, 90 * (k // 2) : 400] for k in range(4)]
    small = [F.interpolate(piece[None].float(), (height, width), mode="bilinear", antialias=True) for piece in pieces]
    images = torch.cat(small).round().clamp(0, 255).to(torch.uint8)
    images = images if channels == 3 else images.float().mean(1, keepdim=True).to(torch.uint8)
    return images[torch.arange(n) % 4]


@settings(deadline=None, max_examples=80)
@given(
    name=st.sampled_from(CORRUPTIONS),
    severity=st.sampled_from(SEVERITIES),
    n=st.integers(0, 3),
    channels=st.sampled_from([1, 3]),
    height=st.integers(28, 100),
    width=st.integers(28, 100),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    channels_last=st.booleans(),
)
def test_shape_dtype_range_and_memory_format_stay(name, severity, n, channels, height, width, dtype, channels_last):
    images = torch.randint(0, 256, (n, channels, height, width), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8) if dtype == torch.uint8 else (images / 255).to(dtype)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = images.contiguous(memory_format=layout)
    before = images.clone()
    result = corrupt(images, name, severity, seed=1)
    assert (result.shape, result.dtype, result.device) == (images.shape, images.dtype, images.device)
    assert result.stride() == images.stride()
    assert torch.equal(images, before)
    if n and dtype.is_floating_point:
        assert result.min() >= 0
        assert result.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize(("height", "width"), [(28, 28), (32, 32), (31, 45), (64, 64), (96, 70)])
def test_an_image_is_the_same_bit_for_bit_in_any_batch(photographs, name, height, width):
    for images in (crops(photographs, height, width, 7), crops(photographs, height, width, 7) / 255):
        whole = corrupt(images, name, 3, seed=5, start=100)
        parts = [(0, 1), (1, 3), (3, 7)]
        split = torch.cat([corrupt(images[a:b], name, 3, seed=5, start=100 + a) for a, b in parts])
        assert torch.equal(whole, split)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_number_of_threads_changes_no_bit(photographs, name):
    before = torch.get_num_threads()
    for side in (32, 64, 224):
        images, results = crops(photographs, side, n=1) / 255, []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(corrupt(images, name, 4))
            torch.set_num_threads(before)
        assert torch.equal(*results), side


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_size_works_in_gray_and_color_at_every_severity(photographs, name):
    for height, width in [(28, 28), (32, 32), (28, 57), (64, 64), (96, 96), (224, 224)]:
        for channels in (1, 3):
            images = crops(photographs, height, width, 1, channels)
            for severity in SEVERITIES if height < 224 else (5,):
                result = corrupt(images, name, severity)
                unchanged = name == "saturate" and channels == 1 and severity < 4
                assert torch.equal(result, images) == unchanged, (height, width, channels, severity)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_only_the_seed_and_the_place_matter(photographs, name):
    images = crops(photographs, 32)[:1].repeat(4, 1, 1, 1)
    first = corrupt(images, name, 4, seed=2)
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert torch.equal(corrupt(images, name, 4, seed=2), first)
    assert torch.equal(states[0], torch.get_rng_state())
    np.testing.assert_array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert torch.equal(corrupt(images, name, 4, seed=3), first) == (name not in RANDOM)
    assert torch.equal(first[0], first[1]) == (name not in RANDOM)
    assert torch.equal(corrupt(images, name, 4, seed=2, start=1)[:3], first[1:])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_dtypes_agree(photographs, name):
    images = crops(photographs, 40)
    single = corrupt(images / 255, name, 4)
    whole = corrupt(images, name, 4)
    assert (whole / 255 - single).abs().max() <= 0.5001 / 255
    torch.testing.assert_close(corrupt(images.double() / 255, name, 4), single.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", [28, 32, 64, 96, 224])
@pytest.mark.parametrize(
    "name",
    ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "zoom_blur", "gaussian_blur",
     "brightness", "contrast", "pixelate", "jpeg_compression"],
)  # fmt: skip
def test_a_higher_severity_is_further_from_the_original(photographs, name, side):
    images = crops(photographs, side)
    distances = [(corrupt(images, name, s).float() - images.float()).abs().mean() for s in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[4] > 1.2 * distances[0]


@pytest.mark.parametrize(
    ("name", "side"),
    [("snow", 32), ("fog", 32), ("motion_blur", 224), ("glass_blur", 224), ("spatter", 224)],
)
def test_so_it_is_where_the_published_constants_rise_at_one_size_only(photographs, name, side):
    images = crops(photographs, side, n=12)
    distances = [(corrupt(images, name, s).float() - images.float()).abs().mean() for s in SEVERITIES]
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    "name",
    ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur", "snow", "frost", "fog", "brightness",
     "contrast", "elastic_transform", "pixelate", "spatter", "saturate"],
)  # fmt: skip
def test_a_gray_image_gets_the_luma_of_what_a_color_image_gets(photographs, name):
    gray = crops(photographs, 32, channels=1) / 255 * 0.3  # so dark that nothing is clipped
    for severity in SEVERITIES:
        color = corrupt(gray.expand(-1, 3, -1, -1), name, severity)
        assert name == "snow" or color.max() < 1
        luma = (color * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
        torch.testing.assert_close(corrupt(gray, name, severity), luma, atol=1e-5, rtol=0)


def test_large_batches_are_worked_off_in_parts_that_do_not_show(photographs, monkeypatch):
    images = crops(photographs, 32, n=9)
    whole = corrupt(images, "snow", 3)
    monkeypatch.setattr("homeostat.parts.corrupt.corruption._WORK", 3 * 32 * 32 * 2)
    assert torch.equal(corrupt(images, "snow", 3), whole)


def test_noises_and_colors_apply_to_images_of_any_size():
    images = torch.rand(2, 1, 8, 8)
    for name in ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast"):
        assert not torch.equal(corrupt(images, name, 5), images)
    with pytest.raises(InvalidValue, match=r"sides of at least 28 pixels for fog.*gaussian_noise"):
        corrupt(images, "fog", 1)


def test_numpy_integers_count_as_integers():
    images = torch.rand(1, 1, 28, 28)
    result = corrupt(images, "gaussian_noise", np.int64(2), seed=np.int64(3), start=np.int64(4))
    assert torch.equal(result, corrupt(images, "gaussian_noise", 2, seed=3, start=4))


def test_gradients_end_here():
    assert not corrupt(torch.rand(1, 3, 32, 32, requires_grad=True), "contrast").requires_grad


def test_the_public_name():
    assert hs.corrupt is corrupt


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"name": "gausian_noise"},
            InvalidValue,
            r"unknown corruption 'gausian_noise'\. Did you mean 'gaussian_noise'",
        ),
        ({"name": "Fog"}, InvalidValue, "Did you mean 'fog'"),
        ({"name": None}, InvalidValue, "unknown corruption None"),
        ({"severity": 0}, InvalidValue, "severity must be 1, 2, 3, 4 or 5, but got 0"),
        ({"severity": 6}, InvalidValue, "severity must be 1, 2, 3, 4 or 5, but got 6"),
        ({"severity": 2.5}, InvalidType, "severity must be an integer"),
        ({"severity": "3"}, InvalidType, "severity must be an integer"),
        ({"severity": True}, InvalidType, "severity must be an integer"),
        ({"seed": None}, InvalidType, "seed must be an integer"),
        ({"start": -1}, InvalidValue, "start must be at least 0"),
        ({"start": 0.0}, InvalidType, "start must be an integer"),
        ({"images": np.zeros((1, 3, 32, 32), np.uint8)}, InvalidType, "images must be a tensor"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.int64)}, InvalidType, "uint8 or floating"),
        ({"images": torch.zeros(1, 3, 32, 32, dtype=torch.bool)}, InvalidType, "uint8 or floating"),
        ({"images": torch.zeros(3, 32, 32)}, InvalidValue, r"one image needs images\[None\]"),
        ({"images": torch.zeros(1, 32, 32, 3)}, InvalidValue, "Channels come second"),
        ({"images": torch.zeros(1, 2, 32, 32)}, InvalidValue, "one or three channels"),
        ({"images": torch.zeros(1, 3, 27, 64)}, InvalidValue, "at least 28 pixels"),
        ({"images": torch.full((1, 3, 32, 32), 1.5)}, InvalidValue, "values from 1.5 to 1.5.*before they are standard"),
        ({"images": torch.full((1, 3, 32, 32), -0.1)}, InvalidValue, r"lie in \[0, 1\]"),
        ({"images": torch.full((1, 3, 32, 32), float("nan"))}, InvalidValue, r"lie in \[0, 1\]"),
    ],
)
def test_errors(arguments, error, message):
    complete = {"images": torch.zeros(1, 3, 32, 32), "name": "fog", **arguments}
    with pytest.raises(error, match=message):
        corrupt(**complete)
