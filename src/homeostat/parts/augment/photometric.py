"""What an image's values become: brightness, color, sharpness, blur, edges; for every example by numbers of its own.

Names and meaning are those of torchvision.transforms.functional; a factor of 1 leaves an image as it is. Images are
floating, (N, C, H, W), within [0, 1], with one or three channels where color matters; results stay within [0, 1].
Where a definition counts in levels (`posterize`, `equalize`), they are the 256 of uint8. Not random: the numbers are
arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from homeostat.kernels.backend import widest_dtype
from homeostat.parts.augment.draws import per_example

LUMA = (0.299, 0.587, 0.114)
"""What red, green and blue count for in gray (ITU-R BT.601)."""


def to_grayscale(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B, one channel; gray images as they are.

    Example:
        >>> to_grayscale(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def adjust_brightness(images: Tensor, factor: Tensor) -> Tensor:
    """factor · x, kept in [0, 1]; factor (N,).

    Example:
        >>> adjust_brightness(torch.full((1, 1, 1, 1), 0.4), torch.tensor([1.5]))
        tensor([[[[0.6000]]]])
    """
    return (images * per_example(factor, images)).clamp(0, 1)


def adjust_contrast(images: Tensor, factor: Tensor) -> Tensor:
    """m + factor · (x - m) with m the mean of the image in gray, kept in [0, 1]; factor (N,)."""
    # in float64 the mean does not depend on the order of the sum, and so not on the batch; Apple's GPUs have none
    wide = widest_dtype(images.device)
    mean = to_grayscale(images).mean((1, 2, 3), keepdim=True, dtype=wide).to(images.dtype)
    return _blend(images, mean, factor)


def adjust_saturation(images: Tensor, factor: Tensor) -> Tensor:
    """g + factor · (x - g) with g the image in gray, kept in [0, 1]; factor (N,). Gray images stay as they are."""
    return images if images.shape[1] == 1 else _blend(images, to_grayscale(images), factor)


def adjust_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N,), as a share of the circle of colors, in [-1/2, 1/2]. Gray images stay as they are.

    Example:
        >>> red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> adjust_hue(red, torch.tensor([1 / 3])).flatten().round(decimals=3)
        tensor([0., 1., 0.])
    """
    if images.shape[1] == 1:
        return images
    from kornia.color import hsv_to_rgb, rgb_to_hsv

    hue, saturation, value = rgb_to_hsv(images).unbind(1)
    hue = torch.remainder(hue + 2 * math.pi * per_example(shift, images)[:, 0], 2 * math.pi)
    turned: Tensor = hsv_to_rgb(torch.stack([hue, saturation, value], 1))
    return turned.clamp(0, 1)


def adjust_sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """s + factor · (x - s) with s the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13, kept in [0, 1].

    The outermost pixels stay as they are; factor (N,): 0 is smooth, 2 sharp.
    """
    height, width = images.shape[2:]
    if min(height, width) < 3:
        return images
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    inner = images[:, :, 1:-1, 1:-1]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    result = images.clone()
    result[:, :, 1:-1, 1:-1] = _blend(inner, smooth, factor)
    return result


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` (N,) of the 8 bits of every value.

    Example:
        >>> (255 * posterize(torch.tensor([100, 200]).view(1, 1, 1, 2) / 255, torch.tensor([1]))).round().flatten()
        tensor([  0., 128.])
    """
    step = per_example(2.0 ** (8 - bits), images)
    return ((images * 255).round() / step).floor() * step / 255


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """1 - x where x is at least the threshold (N,), in [0, 1]."""
    return torch.where(images >= per_example(threshold, images), 1 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel so that its least value is 0 and its greatest 1; constant channels stay as they are."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / torch.where(high > low, high - low, 1), images).clamp(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Give every channel's 256 levels equal shares of the pixels, as far as can be, as PIL.ImageOps.equalize does."""
    n, channels, height, width = images.shape
    levels = (images * 255).round().long().clamp(0, 255).view(n * channels, height * width)
    row = torch.arange(n * channels, device=images.device)[:, None]
    counts = torch.bincount((levels + 256 * row).flatten(), minlength=256 * n * channels).view(-1, 256)
    last = counts.gather(1, levels.amax(1, keepdim=True))
    step = (height * width - last) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp(min=1)).clamp(max=255)
    equal = (table.gather(1, levels).to(images.dtype) / 255).view(images.shape)
    return torch.where((step > 0).view(n, channels, 1, 1), equal, images)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur every image by a Gaussian of deviation `sigma` (N,), in pixels; mirrored at the border.

    The kernel reaches as far as 3 deviations of the `largest` sigma that there can be, and not beyond the image.

    Example:
        >>> spot = torch.eye(5).view(1, 1, 5, 5)[:, :, 2:3]
        >>> gaussian_blur(spot, torch.tensor([0.5]), 0.5).flatten().round(decimals=2)
        tensor([0.0000, 0.1100, 0.7900, 0.1100, 0.0000])
    """
    for dim in (2, 3):
        reach = min(math.ceil(3 * largest), images.shape[dim] - 1)
        distance = torch.arange(reach + 1, device=sigma.device) / sigma.double()[:, None]
        # rounded, so that no weight depends on how many there are, as it may where exp works on several at once
        weights = (-0.5 * distance.square()).exp().float().to(images.dtype)
        weights = weights / (2 * weights.sum(1, keepdim=True) - 1)
        images = _convolved(images, weights, dim)
    return images


def _convolved(images: Tensor, weights: Tensor, dim: int) -> Tensor:
    """The images convolved along one dimension with symmetric weights: (N, reach + 1), from the center outward."""
    reach, size = weights.shape[1] - 1, images.shape[dim]
    padded = pad(images, (reach, reach, 0, 0) if dim == 3 else (0, 0, reach, reach), mode="reflect")
    result = per_example(weights[:, 0], images) * images
    # sums of products, one after the other: a convolution's rounding depends on how many examples there are
    for step in range(1, reach + 1):
        both = padded.narrow(dim, reach - step, size) + padded.narrow(dim, reach + step, size)
        result = result + both.mul_(per_example(weights[:, step], images))
    return result


def sobel(images: Tensor) -> Tensor:
    """The length of each channel's gradient by Sobel's filters, at most 1: a step from 0 to 1 becomes 1.

    Source: Sobel & Feldman 1968 (the filters [1, 2, 1] ⊗ [-1, 0, 1], here divided by 4); the border is repeated.
    """
    padded = pad(images, (1, 1, 1, 1), mode="replicate")
    down = padded[:, :, 2:] - padded[:, :, :-2]
    across = padded[..., 2:] - padded[..., :-2]
    vertical = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    horizontal = across[:, :, :-2] + 2 * across[:, :, 1:-1] + across[:, :, 2:]
    square = (horizontal.square() + vertical.square()) / 16
    # where it is 0, the root has no derivative: there it is 0 too
    return torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0).clamp(max=1)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    f = per_example(factor, images)
    return (f * images + (1 - f) * other).clamp(0, 1)
