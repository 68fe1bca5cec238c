"""Filters that several corruptions share: weighted neighbors, Gaussian, motion, zoom, luma, change of size. Not random.

An image's result is the same bit for bit in any batch and with any number of threads: neighbors are added one by one
in a fixed order, where convolutions, matrix products and torch's interpolation choose their way by size and threads.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue weigh in a gray value (ITU-R BT.601)."""


def luma(x: Tensor) -> Tensor:
    """Images (N, 3, H, W) as gray ones (N, 1, H, W); gray ones as they are."""
    if x.shape[1] == 1:
        return x
    red, green, blue = (weight * x[:, channel : channel + 1] for channel, weight in enumerate(LUMA))
    return red + green + blue


def resized(layer: Tensor, height: int, width: int) -> Tensor:
    """Layers (N, C, h, w) at another size, linearly and without aliasing; the same where the size is the same."""
    if layer.shape[2:] == (height, width):
        return layer
    return F.interpolate(layer, (height, width), mode="bilinear", antialias=True)


def gaussian(x: Tensor, sigma: float) -> Tensor:
    """Images after a Gaussian that is cut off at 4 sigma; beyond the border is the border's value."""
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return x
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for pad, dim in (([0, 0, reach, reach], 2), ([reach, reach, 0, 0], 3)):
        padded, size = F.pad(x, pad, mode="replicate"), x.shape[dim]
        x = torch.zeros_like(x)
        for offset, weight in enumerate(weights.tolist()):
            x.add_(padded.narrow(dim, offset, size), alpha=weight)
    return x


def correlated(x: Tensor, kernel: np.ndarray) -> Tensor:
    """The sum of an image's neighbors, weighted by an odd-sized square kernel; the border is a mirror."""
    reach, (height, width) = kernel.shape[0] // 2, x.shape[2:]
    padded = F.pad(x, [reach] * 4, mode="reflect")
    total = torch.zeros_like(x)
    for row, column in zip(*np.nonzero(kernel), strict=True):
        total.add_(padded[:, :, row : row + height, column : column + width], alpha=float(kernel[row, column]))
    return total


def motion(x: Tensor, radius: float, sigma: float, angles: Tensor) -> Tensor:
    """Images drawn out in a direction of their own, as ImageMagick's motion blur does it.

    The average of 2 ⌈radius⌉ + 1 copies, each a pixel further along the angle and weighted by one half of a Gaussian;
    beyond the border is the border's value.

    Args:
        x: (N, C, H, W).
        radius, sigma: pixels.
        angles: (N,), degrees from the direction of rows towards that of columns.
    """
    steps = np.arange(2 * math.ceil(radius) + 1)
    weights = np.exp(-0.5 * (steps / sigma) ** 2)
    weights /= weights.sum()
    reach, (height, width) = len(steps), x.shape[2:]
    padded = F.pad(x, [reach] * 4, mode="replicate")
    blurred = []
    for image, angle in zip(padded, np.deg2rad(angles.double().numpy()), strict=True):
        total = torch.zeros_like(x[0])
        for step, weight in zip(steps, weights.tolist(), strict=True):
            top = reach + math.ceil(step * math.sin(angle) - 0.5)
            left = reach + math.ceil(step * math.cos(angle) - 0.5)
            total.add_(image[:, top : top + height, left : left + width], alpha=weight)
        blurred.append(total)
    return torch.stack(blurred)


def zoomed(x: Tensor, factor: float) -> Tensor:
    """The middle of images, enlarged to their size by linear interpolation; factor of at least 1."""
    for dim in (2, 3):
        size = x.shape[dim]
        kept = math.ceil(size / factor)
        large = round(kept * factor)
        places = (np.arange(size) + (large - size) // 2) * ((kept - 1) / (large - 1))
        lower = np.minimum(places.astype(int), kept - 2)
        share = torch.from_numpy(places - lower).to(x).view(-1, *[1] * (3 - dim))
        first = torch.from_numpy(lower + (size - kept) // 2).to(x.device)
        near, far = x.index_select(dim, first), x.index_select(dim, first + 1)
        x = near + (far - near) * share
    return x
