"""The blurs among the corruptions: defocus, glass, motion, zoom and Gaussian. Random through the draws they are given.

Every function takes images (N, C, H, W) in [0, 1], the draws, the constants of `constants` and the scale by
which lengths are multiplied. A constant image stays as it is.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from homeostat.parts.corrupt.constants import Constants
from homeostat.parts.corrupt.draws import Draws
from homeostat.parts.corrupt.filters import correlated, gaussian, motion, zoomed


def defocus_blur(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """The average over a disk with a softened edge, as of a lens out of focus. Not random."""
    radius, softness = constants
    return correlated(x, _scaled(_disk(radius, softness), scale))


def glass_blur(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Gaussian, then neighboring pixels change places, then Gaussian again, as through frosted glass."""
    sigma, reach, rounds = constants
    x = gaussian(x, sigma * scale)
    order = _shuffled(draws, x.shape[2], x.shape[3], int(reach), scale, int(rounds)).to(x.device)
    places = order[:, None].expand(-1, x.shape[1], -1)
    return gaussian(x.flatten(2).gather(2, places).view_as(x), sigma * scale)


def motion_blur(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Every image drawn out in a direction between -45 and 45 degrees."""
    radius, sigma = constants
    return motion(x, radius * scale, sigma * scale, draws.uniform(low=-45.0, high=45.0))


def zoom_blur(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """The average of the image and enlargements of its middle. Not random; zooms are factors and need no scale."""
    end, step = constants
    zooms = np.arange(1, end, step).tolist()  # its length is part of what was published: 1.06 is in, 1.16 is not
    total = x
    for factor in zooms:
        total = total + zoomed(x, factor)
    return total / (len(zooms) + 1)


def gaussian_blur(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """A Gaussian, cut off at 4 sigma. Not random."""
    (sigma,) = constants
    return gaussian(x, sigma * scale)


def _disk(radius: float, softness: float) -> np.ndarray:
    """A disk that sums to 1, its edge softened by a Gaussian of 3 pixels' width, of 5 where the radius exceeds 8.

    The original's array ends where the disk does and mirrors what the Gaussian spreads across its edge, which makes
    images 1 % brighter at two severities; here there is room around the disk.
    """
    half = 1 if radius <= 8 else 2
    reach = math.floor(radius) + half
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    weights = np.exp(-0.5 * (np.arange(-half, half + 1) / softness) ** 2)
    blur = sum(weight * np.eye(len(line), k=k) for k, weight in zip(range(-half, half + 1), weights, strict=True))
    disk = blur @ disk @ blur
    return np.asarray(disk / disk.sum())


def _scaled(disk: np.ndarray, scale: float) -> np.ndarray:
    """A disk with scale² times the variance of this one, which is what counts where it is hardly larger than a pixel.

    Pixels at its edge count by the part that lies in it, found by 256 points each, and being squares add a variance of
    1/12. Below a variance of 1/2 a disk would be one pixel; there, 3 × 3 pixels have the variance.
    """
    if scale == 1:
        return disk
    variance = scale**2 * float((disk * (np.arange(len(disk)) - len(disk) // 2) ** 2).sum())
    if variance < 0.5:
        line = np.array([variance / 2, 1 - variance, variance / 2])
        return line[:, None] * line
    radius = 2 * math.sqrt(variance - 1 / 12)
    size = 2 * math.ceil(radius) + 1
    points = (np.arange(16 * size) + 0.5) / 16 - size / 2
    inside = points[:, None] ** 2 + points**2 <= radius**2
    shares = inside.reshape(size, 16, size, 16).mean((1, 3))
    return np.asarray(shares / shares.sum())


def _shuffled(draws: Draws, height: int, width: int, reach: int, scale: float, rounds: int) -> Tensor:
    """Where each pixel's content comes from after all swaps, (N, height · width), on the CPU.

    From the lower right to the upper left, row by row, every pixel changes places with one that is -reach to reach - 1
    rows and columns away. A scaled distance is rounded up or down at random, so that its mean is the scaled one. Swaps
    that cannot touch one another are made at once: those whose columns are 2 · reach further for every row they are
    apart, which keeps the order of all that can.
    """
    limit = math.ceil(reach * scale)
    rows, columns, n = height - 2 * limit, width - 2 * limit, len(draws.generators)
    order = torch.arange(height * width, device="cpu").repeat(n, 1)
    down, across = (torch.arange(size - limit, limit, -1, device="cpu") for size in (height, width))
    places = down[:, None] * width + across
    for _ in range(rounds):
        away = draws.integers(-reach, reach, 2, rows, columns).double() * scale
        away = (away + draws.uniform(2, rows, columns)).floor().clamp(-limit, limit - 1).long()
        partners = places + away[:, 0] * width + away[:, 1]
        for wave in range((rows - 1) * 2 * limit + columns):
            first = max(0, -((columns - 1 - wave) // (2 * limit)))
            row = torch.arange(first, min(rows - 1, wave // (2 * limit)) + 1, device="cpu")
            column = wave - 2 * limit * row
            here, there = places[row, column].expand(n, -1), partners[:, row, column]
            mine, theirs = order.gather(1, here), order.gather(1, there)
            order.scatter_(1, there, mine).scatter_(1, here, theirs)
    return order
