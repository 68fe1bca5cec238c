"""Maps of pixels: against PIL, torch's own interpolation and kornia."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from homeostat.parts.augment.geometric import (
    CROP_DRAWS,
    draw_boxes,
    resized_crop,
    rotate,
    rotate90,
    rotation,
    warp,
)


def pictures(n=5, channels=3, height=12, width=15, dtype=torch.float32):
    return torch.rand(n, channels, height, width, dtype=dtype, generator=torch.Generator().manual_seed(n))


def pil(image, method, *arguments, **named):
    """One uint8 image through a method of PIL."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    return torch.from_numpy(np.array(getattr(picture, method)(*arguments, **named))).permute(2, 0, 1)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1, 0.3, 0], [0, 1, 0]],
        [[1, 0, 0], [-0.27, 1, 0]],
        [[1, 0, 4], [0, 1, -3]],
        [[0.8, 0.61, -2.3], [-0.59, 0.83, 5.7]],
    ],
)
def test_a_warp_is_pil_s_affine_transform(matrix):
    x = (255 * pictures()).to(torch.uint8)
    maps = torch.tensor(matrix, dtype=torch.float64).expand(5, 2, 3)
    y = warp(x, maps, torch.tensor([7, 8, 9], dtype=torch.uint8))
    for image, warped in zip(x, y, strict=True):
        data = [number for row in matrix for number in row]
        expected = pil(image, "transform", (15, 12), Image.Transform.AFFINE, data, fillcolor=(7, 8, 9))
        assert (expected != warped).any(0).float().mean() < 0.02  # where a position falls between two pixels


def test_every_example_has_its_own_map():
    x = pictures()
    maps = torch.eye(3)[:2].repeat(5, 1, 1)
    maps[:, 0, 2] = torch.arange(5)
    y = warp(x, maps, torch.zeros(3))
    for shift in range(5):
        expected = torch.cat([x[shift, :, :, shift:], torch.zeros(3, 12, shift)], 2)
        assert torch.equal(y[shift], expected)


@pytest.mark.parametrize("angle", [-170.0, -30.0, 11.0, 60.0])
def test_rotations_turn_counterclockwise_as_pil_s_do(angle):
    x = (255 * F.interpolate(pictures(5, 3, 4, 5), (24, 31), mode="bilinear")).round()
    y = rotate(x, torch.full((5,), angle), padding_mode="constant", fill=torch.zeros(3)).round().to(torch.uint8)
    inner = slice(9, 15), slice(11, 20)
    for image, turned in zip(x.to(torch.uint8), y, strict=True):
        expected = pil(image, "rotate", angle, resample=Image.Resampling.BILINEAR)
        assert (expected[:, *inner].int() - turned[:, *inner].int()).abs().max() <= 2


@pytest.mark.parametrize("angle", [-45.0, 20.0])
def test_rotations_agree_with_kornia(angle):
    from kornia.geometry import rotate as kornia_rotate

    x, angles = pictures(), torch.tensor([angle, 0.0, 5.0, -90.0, 180.0])
    ours = rotate(x, angles, padding_mode="constant", fill=torch.zeros(3))
    torch.testing.assert_close(ours, kornia_rotate(x, angles), rtol=0, atol=1e-4)


def test_half_turns_and_whole_turns_are_exact():
    x = pictures(2, 3, 9, 9, torch.float64)
    for angle, expected in ((180.0, x.flip(2, 3)), (360.0, x), (90.0, torch.rot90(x, 1, (2, 3)))):
        y = rotate(x, torch.full((2,), angle), padding_mode="reflect", fill=torch.zeros(3))
        torch.testing.assert_close(y, expected)


def test_the_corners_of_a_rotation_are_mirrored_or_filled():
    x = torch.ones(1, 2, 16, 16)
    angle = torch.tensor([45.0])
    assert torch.allclose(rotate(x, angle, padding_mode="reflect", fill=torch.zeros(2)), x)
    filled = rotate(x, angle, padding_mode="constant", fill=torch.tensor([-1.0, 5.0]))
    assert filled[0, :, 0, 0].tolist() == [-1.0, 5.0]
    assert filled[0, :, 8, 8].tolist() == [1.0, 1.0]


def test_rotations_keep_what_is_constant_in_images_of_any_size():
    for height, width in ((1, 1), (1, 7), (2, 1), (8, 8), (5, 40)):
        x = torch.full((3, 1, height, width), 0.7)
        y = rotate(x, torch.tensor([10.0, -100.0, 37.0]), padding_mode="reflect", fill=torch.zeros(1))
        torch.testing.assert_close(y, x)


def test_a_map_and_its_inverse_are_the_identity():
    there, back = rotation(torch.tensor([33.0]), 8, 20)[0], rotation(torch.tensor([-33.0]), 8, 20)[0]
    bottom = torch.tensor([[0.0, 0.0, 1.0]])
    both = torch.cat([there, bottom]) @ torch.cat([back, bottom])
    torch.testing.assert_close(both, torch.eye(3), rtol=0, atol=1e-5)


def test_quarter_turns_are_rot90_example_by_example():
    x, turns = pictures(6, 2, 7, 7), torch.tensor([0, 1, 2, 3, 4, 7])
    y = rotate90(x, turns)
    for n, turn in enumerate(turns.tolist()):
        assert torch.equal(y[n], torch.rot90(x[n], turn, (1, 2)))


@settings(deadline=None, max_examples=40)
@given(data=st.data(), height=st.integers(1, 20), width=st.integers(1, 20))
def test_a_resized_crop_is_torch_s_interpolation_of_the_crop(data, height, width):
    n, dtype = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([torch.float32, torch.float64]))
    x = pictures(n, 2, height, width, dtype)
    heights = [data.draw(st.integers(1, height)) for _ in range(n)]
    widths = [data.draw(st.integers(1, width)) for _ in range(n)]
    tops = [data.draw(st.integers(0, height - h)) for h in heights]
    lefts = [data.draw(st.integers(0, width - w)) for w in widths]
    y = resized_crop(x, *(torch.tensor(numbers) for numbers in (tops, lefts, heights, widths)))
    for i, (t, s, h, w) in enumerate(zip(tops, lefts, heights, widths, strict=True)):
        expected = F.interpolate(x[i : i + 1, :, t : t + h, s : s + w], (height, width), mode="bilinear")
        torch.testing.assert_close(y[i : i + 1], expected, rtol=0, atol=1e-5)


def uniform(n, count=CROP_DRAWS, seed=0):
    return torch.rand(n, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_boxes_have_the_areas_and_shapes_that_were_asked_for():
    scale, ratio, side = (0.2, 0.5), (0.5, 2.0), 1000
    top, left, height, width = draw_boxes(uniform(4000), side, side, scale, ratio)
    area, log_ratio = height * width / side**2, (width / height).log()
    assert 0.199 < area.min() < 0.21
    assert 0.49 < area.max() < 0.501
    # uniform, and uniform in the logarithm: mean and standard error of each, boxes of this size always fit
    assert abs(area.mean() - 0.35) < 5 * 0.3 / math.sqrt(12 * 4000)
    assert abs(log_ratio.mean()) < 5 * 2 * math.log(2) / math.sqrt(12 * 4000)
    assert log_ratio.abs().max() < math.log(2) + 0.01
    for first, length in ((top, height), (left, width)):
        assert first.min() >= 0
        assert (first + length).max() <= side
        share = first / (side - length)
        assert abs(share.mean() - 0.5) < 5 / math.sqrt(12 * 4000)


def box_by_box(numbers, height, width, scale, ratio):
    """The same for one example, in the words of the definition."""
    for k in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * numbers[k])
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * numbers[10 + k])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(numbers[20] * (height - h + 1)), int(numbers[21] * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 40), (40, 8), (3, 3), (1, 1), (1, 30)])
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.95, 1.0)])
def test_boxes_are_drawn_as_torchvision_defines_it(height, width, scale):
    numbers = uniform(300)
    boxes = torch.stack(draw_boxes(numbers, height, width, scale, (3 / 4, 4 / 3)), 1)
    expected = [box_by_box(row, height, width, scale, (3 / 4, 4 / 3)) for row in numbers.tolist()]
    assert boxes.tolist() == [list(box) for box in expected]


def test_gradients_reach_the_images():
    x = pictures(2, 1, 4, 5, torch.float64).requires_grad_()
    angles, box = torch.tensor([10.0, 77.0]), torch.tensor([1, 2])
    for mode in ("reflect", "constant"):
        fill = torch.zeros(1, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda z, m=mode, f=fill: rotate(z, angles, padding_mode=m, fill=f), x)
    assert torch.autograd.gradcheck(lambda z: resized_crop(z, box, box, box, box), x)
    maps = rotation(angles, 4, 5)
    assert torch.autograd.gradcheck(lambda z: warp(z, maps, torch.zeros(1, dtype=torch.float64)), x)
