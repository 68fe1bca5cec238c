"""The weather among the corruptions: snow, frost, fog, brightness and spatter. Random through the draws they are given.

Every function takes images (N, C, H, W) in [0, 1], the draws, the constants of `constants` and the scale by
which lengths are multiplied. A layer that does not depend on the image (flakes, plasma, drops) is made on the CPU at
the size of the table, as published, and brought to the image's size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.parts.corrupt.constants import Constants
from homeostat.parts.corrupt.draws import Draws
from homeostat.parts.corrupt.filters import gaussian, luma, motion, resized, zoomed
from homeostat.parts.corrupt.frost import frost_windows
from homeostat.parts.corrupt.liquid import water

_WATER = (175 / 255, 238 / 255, 238 / 255)
_MUD = (63 / 255, 42 / 255, 20 / 255)


def snow(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """The image is whitened and streaks of snow are added, once as drawn and once turned by 180 degrees."""
    mean, deviation, zoom, threshold, radius, sigma, kept = constants
    layer = zoomed(draws.normal(1, *_table_size(x, scale)) * deviation + mean, zoom)
    layer = torch.where(layer < threshold, 0.0, layer).clamp(0, 1)
    layer = motion(layer, radius, sigma, draws.uniform(low=-135.0, high=-45.0))
    layer = _laid_on(x, layer)
    white = torch.maximum(x, luma(x) * 1.5 + 0.5)
    return kept * x + (1 - kept) * white + layer + layer.flip(2, 3)


def frost(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """A weighted sum of the image and a window of frost."""
    kept, added = constants
    return kept * x + added * _in_channels_of(x, _laid_on(x, frost_windows(draws, *_table_size(x, scale))))


def fog(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Plasma is added, and the sum brought back to the image's brightest value."""
    thickness, decay = constants
    brightest = x.amax((1, 2, 3), keepdim=True)
    mist = _laid_on(x, _plasma(draws, *_table_size(x, scale), decay))
    return (x + thickness * mist) * brightest / (brightest + thickness)


def brightness(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """c is added to the value of hue, saturation and value. Not random; no length is involved."""
    (added,) = constants
    value = x.amax(1, keepdim=True)
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value.clamp(min=1e-12)), brighter)


def spatter(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Drops of water (severity 1 to 3) lighten the image; splashes of mud (4 and 5) cover it."""
    mean, deviation, sigma, threshold, strength, mud = constants
    liquid = gaussian(draws.normal(1, *_table_size(x, scale)) * deviation + mean, sigma)
    if not mud:
        return x + _laid_on(x, strength * water(liquid, threshold)) * _color(x, _WATER)
    cover = gaussian((liquid > threshold).to(liquid), strength)
    cover = _laid_on(x, torch.where(cover < 0.8, 0.0, cover))
    return x * (1 - cover) + cover * _color(x, _MUD)


def _table_size(x: Tensor, scale: float) -> tuple[int, int]:
    """Height and width of the images if their shorter side were the table's."""
    return round(x.shape[2] / scale), round(x.shape[3] / scale)


def _laid_on(x: Tensor, layer: Tensor) -> Tensor:
    """A layer at the size, device and dtype of images."""
    return resized(layer.to(x), x.shape[2], x.shape[3])


def _in_channels_of(x: Tensor, colors: Tensor) -> Tensor:
    return luma(colors) if x.shape[1] == 1 else colors


def _color(x: Tensor, color: tuple[float, ...]) -> Tensor:
    return _in_channels_of(x, x.new_tensor(color).view(1, 3, 1, 1))


def _plasma(draws: Draws, height: int, width: int, decay: float) -> Tensor:
    """Fractal mist between 0 and 1, shape (N, 1, height, width), by the diamond-square algorithm on a torus.

    The side is a power of two, of which the upper left is used. Each new point is the mean of its four neighbors and a
    uniform number, whose range is divided by decay² from one scale to the next. The first range is arbitrary.
    Source: Fournier, Fussell & Carpenter 1982, doi:10.1145/358523.358553.
    """
    side = 1 << (max(height, width) - 1).bit_length()
    plasma = torch.zeros(len(draws.generators), side, side, device="cpu")
    step, wobble = side, 1.0
    while step >= 2:
        half = step // 2
        corners = plasma[:, ::step, ::step]
        sums = corners + corners.roll(-1, 1)
        sums = sums + sums.roll(-1, 2)
        plasma[:, half::step, half::step] = _wobbled(draws, sums, wobble)
        middles, corners = plasma[:, half::step, half::step], plasma[:, ::step, ::step]
        sums = middles + middles.roll(1, 1) + corners + corners.roll(-1, 2)
        plasma[:, ::step, half::step] = _wobbled(draws, sums, wobble)
        sums = middles + middles.roll(1, 2) + corners + corners.roll(-1, 1)
        plasma[:, half::step, ::step] = _wobbled(draws, sums, wobble)
        step, wobble = half, wobble / decay**2
    plasma = plasma - plasma.amin((1, 2), keepdim=True)
    plasma = plasma / plasma.amax((1, 2), keepdim=True)
    return plasma[:, None, :height, :width]


def _wobbled(draws: Draws, sums: Tensor, wobble: float) -> Tensor:
    return sums / 4 + draws.uniform(*sums.shape[1:], low=-wobble, high=wobble)
