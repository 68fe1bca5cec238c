"""Colors, blur and edges: against PIL, whose operations these are, kornia and SciPy."""

import colorsys

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d
from kornia.filters import sobel as kornia_sobel
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from homeostat.parts.augment import photometric

FACTORS = [0.0, 0.3, 1.0, 1.9]


def pictures(n=4, channels=3, height=17, width=14):
    """Pixels in 0..255, smooth enough to have structure, of low contrast in the second image."""
    generator = torch.Generator().manual_seed(channels)
    x = torch.nn.functional.interpolate(torch.rand(n, channels, 5, 5, generator=generator), (height, width))
    x = (255 * (0.8 * x + 0.2 * torch.rand(x.shape, generator=generator))).to(torch.uint8)
    x[1] = 100 + x[1] // 5
    return x


def by_pil(images, function):
    """uint8 images, one by one, through a function of PIL images."""
    results = []
    for image in images:
        array = image.permute(1, 2, 0).numpy()
        picture = Image.fromarray(array if array.shape[2] == 3 else array[..., 0])
        result = torch.from_numpy(np.array(function(picture)))
        results.append(result.permute(2, 0, 1) if result.ndim == 3 else result[None])
    return torch.stack(results)


def levels(images):
    return (255 * images).round().int()


def all_of(value, images):
    return torch.full((len(images),), value)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize(
    ("function", "enhancement"),
    [
        (photometric.adjust_brightness, ImageEnhance.Brightness),
        (photometric.adjust_contrast, ImageEnhance.Contrast),
        (photometric.adjust_saturation, ImageEnhance.Color),
        (photometric.adjust_sharpness, ImageEnhance.Sharpness),
    ],
)
def test_factors_mean_what_they_mean_in_pil(function, enhancement, factor, channels):
    x = pictures(channels=channels)
    ours = levels(function(x / 255, all_of(factor, x)))
    theirs = by_pil(x, lambda picture: enhancement(picture).enhance(factor)).int()
    # PIL rounds gray, the mean and what is smoothed to whole levels, and the result down
    assert (ours - theirs).abs().max() <= (1 if factor <= 1 else 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_what_counts_in_levels_is_pil_s_exactly(channels):
    x = pictures(channels=channels)
    for bits in range(1, 9):
        ours = levels(photometric.posterize(x / 255, all_of(bits, x)))
        assert torch.equal(ours, by_pil(x, lambda picture, b=bits: ImageOps.posterize(picture, b)).int())
    for threshold in (0, 1, 128, 200, 255):
        ours = levels(photometric.solarize(x / 255, all_of(threshold / 255, x)))
        assert torch.equal(ours, by_pil(x, lambda picture, t=threshold: ImageOps.solarize(picture, t)).int())
    assert torch.equal(levels(photometric.equalize(x / 255)), by_pil(x, ImageOps.equalize).int())
    ours = levels(photometric.autocontrast(x / 255))
    assert (ours - by_pil(x, ImageOps.autocontrast).int()).abs().max() <= 1  # PIL rounds down


@pytest.mark.parametrize("shape", [(3, 3), (40, 40), (1, 1), (2, 200)])
def test_equalize_is_pil_s_for_few_and_many_levels(shape):
    generator = torch.Generator().manual_seed(0)
    for top in (1, 2, 4, 256):
        x = (torch.randint(0, top, (3, 3, *shape), generator=generator) * (255 // max(1, top - 1))).to(torch.uint8)
        assert torch.equal(levels(photometric.equalize(x / 255)), by_pil(x, ImageOps.equalize).int())


def test_hue_turns_as_in_the_standard_library():
    x = torch.rand(6, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[0] = x[0, :1]  # gray has no hue to turn
    shifts = torch.tensor([0.3, 0.0, 0.5, -0.5, 0.1, -0.25], dtype=torch.float64)
    y = photometric.adjust_hue(x, shifts)
    for image, turned, shift in zip(x, y, shifts.tolist(), strict=True):
        for old, new in zip(image.flatten(1).T.tolist(), turned.flatten(1).T.tolist(), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*old)
            assert new == pytest.approx(colorsys.hsv_to_rgb((h + shift) % 1, s, v), abs=1e-5)


def test_every_example_has_its_own_amount():
    x = pictures() / 255
    amounts = torch.tensor([0.2, 0.7, 1.0, 1.6])
    for function in (
        photometric.adjust_brightness, photometric.adjust_contrast, photometric.adjust_saturation,
        photometric.adjust_sharpness, photometric.adjust_hue, photometric.solarize,
    ):  # fmt: skip
        y = function(x, amounts)
        for n in range(4):
            assert torch.equal(y[n : n + 1], function(x[n : n + 1], amounts[n : n + 1]))


def test_a_factor_of_one_changes_nothing():
    x = pictures() / 255
    one = torch.ones(4)
    for function in (
        photometric.adjust_brightness, photometric.adjust_contrast, photometric.adjust_saturation,
        photometric.adjust_sharpness,
    ):  # fmt: skip
        assert torch.equal(function(x, one), x)
    torch.testing.assert_close(photometric.adjust_hue(x, torch.zeros(4)), x, rtol=0, atol=1e-5)
    assert torch.equal(levels(photometric.posterize(x, all_of(8, x))), levels(x))


def test_gray_is_what_the_standard_says_and_gray_images_stay():
    x = torch.eye(3).view(3, 3, 1, 1)
    assert photometric.to_grayscale(x).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
    gray = pictures(channels=1) / 255
    assert torch.equal(photometric.to_grayscale(gray), gray)
    assert torch.equal(photometric.adjust_saturation(gray, torch.zeros(4)), gray)
    assert torch.equal(photometric.adjust_hue(gray, torch.full((4,), 0.3)), gray)


def test_constant_images_stay_constant():
    x = torch.full((2, 3, 8, 9), 0.4)
    assert torch.equal(photometric.autocontrast(x), x)
    assert torch.equal(photometric.equalize(x), x)
    torch.testing.assert_close(photometric.gaussian_blur(x, torch.tensor([0.1, 2.0]), 2.0), x)
    assert not photometric.sobel(x).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blur_is_kornia_s(dtype):
    x = torch.rand(5, 3, 21, 18, dtype=dtype, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.5, 1.0, 1.7, 2.0], dtype=dtype)
    theirs = gaussian_blur2d(x, (13, 13), sigma[:, None].expand(-1, 2), "reflect")
    torch.testing.assert_close(photometric.gaussian_blur(x, sigma, 2.0), theirs, rtol=0, atol=1e-6)


def test_blur_is_scipy_s_also_where_the_image_is_small():
    x = torch.rand(1, 1, 30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = photometric.gaussian_blur(x, torch.tensor([1.5]), 1.5)
    rows = ndimage.gaussian_filter1d(x[0, 0].numpy(), 1.5, 0, mode="mirror", radius=5)
    both = ndimage.gaussian_filter1d(rows, 1.5, 1, mode="mirror", radius=3)
    np.testing.assert_allclose(y[0, 0].numpy(), both, atol=1e-6)
    for shape in ((1, 1), (1, 9), (2, 2)):
        assert photometric.gaussian_blur(torch.rand(2, 1, *shape), torch.tensor([0.5, 2.0]), 2.0).shape[2:] == shape


def test_edges_are_kornia_s_twice_as_bright_up_to_one():
    x = pictures() / 255
    expected = (2 * kornia_sobel(x, eps=0)).clamp(max=1)
    torch.testing.assert_close(photometric.sobel(x), expected, rtol=0, atol=1e-6)
    step = torch.zeros(1, 1, 5, 6)
    step[..., 3:] = 1
    assert photometric.sobel(step)[0, 0, 2].tolist() == [0, 0, 1, 1, 0, 0]


def test_a_result_stays_within_black_and_white():
    x = pictures() / 255
    for function, amounts in (
        (photometric.adjust_brightness, (0.0, 5.0)), (photometric.adjust_contrast, (0.0, 9.0)),
        (photometric.adjust_saturation, (0.0, 9.0)), (photometric.adjust_sharpness, (0.0, 9.0)),
        (photometric.adjust_hue, (-0.5, 0.5)),
    ):  # fmt: skip
        for amount in amounts:
            y = function(x, all_of(amount, x))
            assert y.min() >= 0
            assert y.max() <= 1
