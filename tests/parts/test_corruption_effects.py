"""What each corruption does, against moments, other libraries and the definition written out."""

import colorsys
import io
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from homeostat.parts.corrupt import SEVERITIES, blur, corrupt, digital, filters, weather
from homeostat.parts.corrupt.constants import CIFAR, IMAGENET, constants
from homeostat.parts.corrupt.draws import Draws
from homeostat.parts.corrupt.frost import SHEETS, frost_windows
from homeostat.parts.corrupt.liquid import water

BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "gaussian_blur")


def draws(n=2, seed=0):
    return Draws([torch.Generator().manual_seed(1000 * seed + k) for k in range(n)])


def rough(n=2, channels=3, height=32, width=32, seed=0):
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def flat(value, n=64, side=32):
    return torch.full((n, 3, side, side), value, dtype=torch.float64)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_gaussian_noise_has_its_deviation(severity):
    deviation = CIFAR["gaussian_noise"][severity - 1][0]
    noise = corrupt(flat(0.5), "gaussian_noise", severity, seed=1) - 0.5
    n = noise.numel()
    assert abs(noise.mean()) < 5 * deviation / math.sqrt(n)
    assert abs(noise.std() - deviation) < 5 * deviation / math.sqrt(2 * n)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_shot_noise_has_the_variance_of_counted_photons(severity):
    photons, x = CIFAR["shot_noise"][severity - 1][0], 0.25
    noisy = corrupt(flat(x), "shot_noise", severity, seed=1)
    rate, n = photons * x, noisy.numel()
    assert abs(noisy.mean() - x) < 5 * math.sqrt(x / photons / n)
    error_of_variance = math.sqrt((rate + 2 * rate**2) / n) / photons**2  # fourth moment of a Poisson number
    assert abs(noisy.var() - x / photons) < 5 * error_of_variance
    torch.testing.assert_close(noisy * photons, (noisy * photons).round())


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("side", "table", "n"), [(32, CIFAR, 64), (224, IMAGENET, 2)])
def test_impulse_noise_replaces_its_share_with_black_and_white(side, table, n, severity):
    share = table["impulse_noise"][severity - 1][0]
    noisy = corrupt(flat(0.5, n, side), "impulse_noise", severity, seed=1)
    for value, expected in ((0.0, share / 2), (1.0, share / 2), (0.5, 1 - share)):
        found = (noisy == value).double().mean()
        assert abs(found - expected) < 5 * math.sqrt(expected * (1 - expected) / noisy.numel())


@pytest.mark.parametrize("severity", SEVERITIES)
def test_speckle_noise_grows_with_brightness(severity):
    for value in (0.2, 0.5):
        deviation = CIFAR["speckle_noise"][severity - 1][0] * value
        noisy = corrupt(flat(value), "speckle_noise", severity, seed=1)
        assert abs(noisy.std() - deviation) < 5 * deviation / math.sqrt(2 * noisy.numel())


def test_neighboring_values_and_examples_have_independent_noise():
    noise = (corrupt(flat(0.5), "gaussian_noise", 1) - 0.5) / 0.04
    pairs = {
        "channels": (noise[:, 0], noise[:, 1]),
        "columns": (noise[..., 1:], noise[..., :-1]),
        "rows": (noise[:, :, 1:], noise[:, :, :-1]),
        "examples": (noise[1:], noise[:-1]),
    }
    for name, (one, other) in pairs.items():
        assert abs((one * other).mean()) < 5 / math.sqrt(one.numel()), name


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from([*BLURS, "elastic_transform", "pixelate", "contrast"]),
    severity=st.sampled_from(SEVERITIES),
    height=st.integers(28, 100),
    width=st.integers(28, 100),
    value=st.integers(0, 255),
)
def test_a_constant_image_stays_constant(name, severity, height, width, value):
    images = torch.full((1, 3, height, width), value, dtype=torch.uint8)
    assert torch.equal(corrupt(images, name, severity), images)
    torch.testing.assert_close(corrupt(images / 255, name, severity), images / 255, atol=2e-6, rtol=0)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [32, 64, 224])
def test_gaussian_blur_is_scipys(side, severity):
    x = rough(1, 3, side, side + 3)
    (sigma,), scale = constants("gaussian_blur", severity, side)
    expected = ndimage.gaussian_filter(x.numpy(), (0, 0, sigma * scale, sigma * scale), mode="nearest", truncate=4)
    np.testing.assert_allclose(corrupt(x, "gaussian_blur", severity).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("side", [32, 224])
def test_defocus_blur_averages_over_the_published_disk(side, severity):
    (radius, softness), _ = constants("defocus_blur", severity, side)
    line = np.arange(-14, 15)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    reach = 1 if radius <= 8 else 2
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * softness**2))
    disk = ndimage.correlate1d(ndimage.correlate1d(disk, weights, 0), weights, 1)
    x = rough(1, 1, side, side)
    expected = ndimage.correlate(x[0, 0].numpy(), disk / disk.sum(), mode="mirror")
    np.testing.assert_allclose(corrupt(x, "defocus_blur", severity)[0, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [0.38, 0.43, 0.875, 0.99, 1.01, 1.7, 2.6])
@pytest.mark.parametrize(("radius", "softness"), [(0.3, 0.4), (1, 0.2), (1.5, 0.1), (3, 0.1), (6, 0.5), (10, 0.5)])
def test_the_disks_variance_is_in_proportion(radius, softness, scale):
    def variance(kernel):
        assert kernel.sum() == pytest.approx(1)
        assert kernel.min() >= 0
        return (kernel * (np.arange(len(kernel)) - len(kernel) // 2) ** 2).sum()

    published = blur._disk(radius, softness)
    scaled = variance(blur._scaled(published, scale))
    assert scaled == pytest.approx(scale**2 * variance(published), rel=0.12)  # sampled at whole pixels


@pytest.mark.parametrize("angle", [-45.0, -10.0, 0.0, 33.0, 90.0, -135.0])
def test_motion_blur_is_imagemagicks_sum_along_a_line(angle):
    x, radius, sigma = rough(1, 1, 12, 15), 5, 2.0
    image, total, weights = x[0, 0].numpy(), 0.0, []
    height, width = image.shape
    for step in range(2 * radius + 1):
        weights.append(math.exp(-(step**2) / (2 * sigma**2)))
        down = math.ceil(step * math.sin(math.radians(angle)) - 0.5)
        right = math.ceil(step * math.cos(math.radians(angle)) - 0.5)
        rows, columns = np.arange(height) + down, np.arange(width) + right
        total = total + weights[-1] * image[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    found = filters.motion(x, radius, sigma, torch.tensor([angle]))
    np.testing.assert_allclose(found[0, 0].numpy(), total / sum(weights), atol=1e-12)


def test_directions_of_motion_are_uniform():
    point = torch.zeros(400, 1, 61, 61, dtype=torch.float64)
    point[:, :, 30, 30] = 1
    streaks = corrupt(point, "motion_blur", 5)
    line = torch.arange(61.0, dtype=torch.float64) - 30
    down, right = (streaks * line[:, None]).sum((1, 2, 3)), (streaks * line).sum((1, 2, 3))
    assert (right < 0).all()  # each place reads what lies to its right
    angles = torch.atan2(-down, -right).rad2deg()
    assert abs(angles.mean()) < 5 * 90 / math.sqrt(12 * 400)
    assert angles.abs().max() < 47
    assert angles.abs().max() > 40


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (41, 28), (96, 96)])
def test_zoom_blur_is_scipys_zoom(height, width, severity):
    x = rough(1, 1, height, width)
    (end, step), _ = constants("zoom_blur", severity, min(height, width))
    image, total, zooms = x[0, 0].numpy(), x[0, 0].numpy(), np.arange(1, end, step)
    for zoom in zooms:
        rows, columns = math.ceil(height / zoom), math.ceil(width / zoom)
        top, left = (height - rows) // 2, (width - columns) // 2
        large = ndimage.zoom(image[top : top + rows, left : left + columns], zoom, order=1)
        top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
        total = total + large[top : top + height, left : left + width]
    found = corrupt(x, "zoom_blur", severity)[0, 0].numpy()
    np.testing.assert_allclose(found, total / (len(zooms) + 1), atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    height=st.integers(10, 20),
    width=st.integers(10, 20),
    reach=st.integers(1, 4),
    rounds=st.integers(1, 3),
    scale=st.sampled_from([0.43, 0.875, 1.0, 2.0]),
)
def test_swaps_are_those_of_the_loop(height, width, reach, rounds, scale):
    limit, same = math.ceil(reach * scale), draws(2)
    assume(min(height, width) > 2 * limit)
    found = blur._shuffled(draws(2), height, width, reach, scale, rounds)
    order = torch.arange(height * width).view(height, width).repeat(2, 1, 1).numpy()
    for _ in range(rounds):
        shape = (2, height - 2 * limit, width - 2 * limit)
        away = same.integers(-reach, reach, *shape).double() * scale + same.uniform(*shape)
        away = away.floor().clamp(-limit, limit - 1).long().numpy()
        for n in range(2):
            for i, h in enumerate(range(height - limit, limit, -1)):
                for j, w in enumerate(range(width - limit, limit, -1)):
                    other = h + away[n, 0, i, j], w + away[n, 1, i, j]
                    order[n, h, w], order[n][other] = order[n][other], order[n, h, w]
    np.testing.assert_array_equal(found.view(2, height, width).numpy(), order)
    np.testing.assert_array_equal(found.sort(1).values[0], np.arange(height * width))


def test_brightness_and_saturate_are_those_of_colorsys():
    pixels = torch.cat([rough(1, 3, 32, 31), torch.zeros(1, 3, 32, 1), torch.full((1, 3, 32, 1), 0.4)], 3)
    colors = pixels[0].flatten(1).T.tolist()
    for side, table in ((32, CIFAR), (33, CIFAR)):
        assert min(pixels.shape[2:]) <= side
        for severity in SEVERITIES:
            (added,), (factor, more) = table["brightness"][severity - 1], table["saturate"][severity - 1]
            bright, saturated = [], []
            for color in colors:
                hue, saturation, value = colorsys.rgb_to_hsv(*color)
                bright.append(colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1)))
                saturated.append(colorsys.hsv_to_rgb(hue, min(saturation * factor + more, 1), value))
            for name, expected in (("brightness", bright), ("saturate", saturated)):
                found = corrupt(pixels, name, severity)[0].flatten(1).T.numpy()
                np.testing.assert_allclose(found, expected, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("severity", SEVERITIES)
def test_contrast_scales_differences_to_the_mean(severity):
    x = 0.3 + 0.4 * rough()
    y = corrupt(x, "contrast", severity)
    torch.testing.assert_close(y.mean((2, 3)), x.mean((2, 3)))
    torch.testing.assert_close(y.std((2, 3)), x.std((2, 3)) * CIFAR["contrast"][severity - 1][0])


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (224, 224), (37, 51), (100, 91)])
def test_pixelate_is_pillows_box_filter(height, width, severity):
    x = rough(1, 1, height, width).float()
    (share,), _ = constants("pixelate", severity, min(height, width))
    small = Image.fromarray(x[0, 0].numpy()).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    expected = np.asarray(small.resize((width, height), Image.Resampling.BOX))
    np.testing.assert_allclose(corrupt(x, "pixelate", severity)[0, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_compression_is_a_jpeg_file(mode):
    images = (rough(2, 3 if mode == "RGB" else 1) * 255).round().to(torch.uint8)
    for severity in SEVERITIES:
        found = corrupt(images, "jpeg_compression", severity)
        for image, result in zip(images, found, strict=True):
            file = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy(), mode=None).save(
                file, "JPEG", quality=CIFAR["jpeg_compression"][severity - 1][0]
            )
            decoded = np.asarray(Image.open(file)).reshape(32, 32, -1)
            np.testing.assert_array_equal(result.permute(1, 2, 0).numpy(), decoded)


def test_fractional_places_are_read_as_scipy_reads_them():
    x, generator = rough(1, 1, 20, 30), np.random.default_rng(0)
    rows, columns = (torch.from_numpy(generator.uniform(-9, size + 8, (1, 20, 30))) for size in (20, 30))
    for align_corners, mode in ((True, "mirror"), (False, "reflect")):
        found = digital._read(x, rows, columns, align_corners=align_corners)
        expected = ndimage.map_coordinates(x[0, 0].numpy(), [rows[0], columns[0]], order=1, mode=mode)
        np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-12)


def test_the_affine_map_moves_three_points_as_asked():
    rows, columns = torch.arange(24.0, dtype=torch.float64)[:, None], torch.arange(40.0, dtype=torch.float64)
    corners = torch.tensor([[[3.0, -2.0], [3.0, -2.0], [3.0, -2.0]], [[1.0, 2.0], [0.0, -1.0], [2.0, 0.0]]])
    down, right = digital._affine(corners, rows, columns)
    torch.testing.assert_close(down[0], (rows + 2).expand(24, 40), atol=1e-9, rtol=0)
    torch.testing.assert_close(right[0], (columns - 3).expand(24, 40), atol=1e-9, rtol=0)
    for (x, y), (dx, dy) in zip([(28, 20), (28, 4), (12, 4)], [(1, 2), (0, -1), (2, 0)], strict=True):
        assert down[1, y + dy, x + dx] == pytest.approx(y)
        assert right[1, y + dy, x + dx] == pytest.approx(x)


def test_displacements_are_in_proportion_to_the_size():
    ramp = torch.arange(96.0, dtype=torch.float64).expand(1, 1, 96, 96) / 100  # reads off horizontal displacements
    still = (3.2, 1.28, 0.0)
    moved = {}
    for side in (32, 64):
        x = ramp[..., :side, :side].expand(200, -1, -1, -1)
        away = digital.elastic_transform(x, draws(200), still, side / 32) - x
        inner = away[..., side // 4 : -side // 4, side // 4 : -side // 4]
        moved[side] = float(inner.std()) * 100
    kernel = ndimage.gaussian_filter(np.eye(41)[20], 1.28, truncate=3)
    assert moved[32] == pytest.approx(3.2 * (kernel**2).sum() / math.sqrt(3), rel=0.05)
    assert moved[64] == pytest.approx(2 * moved[32], rel=0.1)  # a little less, for smoothing between pixels


def test_plasma_spans_the_whole_range_and_rough_plasma_is_rough():
    smooth, wild = (weather._plasma(draws(30), 64, 64, decay) for decay in (3.0, 1.4))
    for plasma in (smooth, wild):
        assert (plasma.amin((1, 2, 3)) == 0).all()
        assert (plasma.amax((1, 2, 3)) == 1).all()
    steps = [float((plasma[..., 1:] - plasma[..., :-1]).abs().mean()) for plasma in (smooth, wild)]
    assert steps[1] > 3 * steps[0]


@pytest.mark.parametrize("severity", SEVERITIES)
def test_fog_keeps_the_brightest_value_as_its_limit(severity):
    x = 0.7 * rough(4)
    foggy = corrupt(x, "fog", severity)
    assert (foggy.amax((1, 2, 3)) <= x.amax((1, 2, 3))).all()
    assert (corrupt(torch.zeros(1, 3, 32, 32), "fog", severity) == 0).all()
    thickness = CIFAR["fog"][severity - 1][0]
    brightest = x.amax((1, 2, 3), keepdim=True)
    mist = (foggy * (brightest + thickness) / brightest - x) / thickness
    torch.testing.assert_close(mist[:, 0], mist[:, 1], atol=1e-6, rtol=0)
    assert mist.min() > -1e-6
    assert mist.max() < 1 + 1e-6


@pytest.mark.parametrize("severity", SEVERITIES)
def test_snow_on_black_is_the_same_upside_down(severity):
    snowy = corrupt(torch.zeros(8, 3, 32, 40), "snow", severity)
    torch.testing.assert_close(snowy, snowy.flip(2, 3))
    kept = CIFAR["snow"][severity - 1][6]
    assert snowy.min() >= (1 - kept) * 0.5 - 1e-6
    assert snowy.max() > 0.3


@pytest.mark.parametrize("severity", SEVERITIES)
def test_frost_is_a_weighted_sum(severity):
    kept, added = CIFAR["frost"][severity - 1]
    dark, bright = torch.zeros(500, 3, 32, 32), torch.full((500, 3, 32, 32), 0.1)
    frosty = corrupt(dark, "frost", severity, seed=4)
    torch.testing.assert_close(corrupt(bright, "frost", severity, seed=4) - frosty, kept * bright, atol=1e-6, rtol=0)
    means = frosty.mean((2, 3)) / added
    sheets = torch.tensor(SHEETS)
    error = means.std(0) / math.sqrt(len(means))
    assert ((means.mean(0) - sheets.mean(0)).abs() < 5 * error).all()


def test_frost_beyond_a_sheet_is_mirrored():
    window = frost_windows(draws(3), 40, 700)
    assert window.shape == (3, 3, 40, 700)
    assert window.std((1, 2, 3)).min() > 0.03


@pytest.mark.parametrize("severity", SEVERITIES)
def test_spatter_lightens_with_water_and_covers_with_mud(severity):
    x = 0.3 + 0.2 * rough(20).float()
    y = corrupt(x, "spatter", severity)
    if severity <= 3:
        assert (y >= x).all()
        extra = y - x
        torch.testing.assert_close(extra[:, 1], extra[:, 2], atol=1e-6, rtol=0)
        torch.testing.assert_close(extra[:, 0] * 238, extra[:, 1] * 175, atol=1e-4, rtol=0)
    else:
        mud = torch.tensor([63.0, 42.0, 20.0]).view(3, 1, 1) / 255
        cover = (x - y) / (x - mud)
        torch.testing.assert_close(cover[:, 0], cover[:, 2], atol=1e-5, rtol=0)
        assert cover.max() <= 1 + 1e-5
        assert ((cover < 1e-5) | (cover > 0.8 - 1e-5)).all()
    assert 0.001 < float((y != x).float().mean()) < 0.6


def test_water_is_where_the_liquid_has_edges():
    liquid = torch.zeros(3, 1, 32, 32)
    liquid[1, :, 10:20, 10:20] = 0.8
    shine = water(liquid, 0.5)
    assert (shine[[0, 2]] == 0).all()  # no liquid, and no division by zero
    assert shine[1].max() == 1
    shine[1, :, 10:20, 10:20] = 0
    assert (shine == 0).all()
