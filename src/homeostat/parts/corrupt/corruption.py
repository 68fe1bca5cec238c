"""Corruptions of images for testing, by name and severity: the nineteen of ImageNet-C and CIFAR-C, on whole batches.

Seeded: what happens to an example is a function of the seed and of its place in the data set alone. The constants are
in `constants`, the corruptions themselves in `noise`, `blur`, `weather` and `digital`.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.parts.corrupt import blur, digital, noise, weather
from homeostat.parts.corrupt.constants import MEANINGS, Constants, constants
from homeostat.parts.corrupt.draws import Draws
from homeostat.seeds import torch_generator

CORRUPTIONS: tuple[str, ...] = tuple(MEANINGS)
"""The names: the fifteen of the benchmark, then the four that it keeps apart for choosing settings."""

SEVERITIES: tuple[int, ...] = (1, 2, 3, 4, 5)

SMALLEST = 28
"""The shorter side in pixels from which corruptions with lengths in them have an effect at every severity."""

_Corruption = Callable[[Tensor, Draws, Constants, float], Tensor]
_WORK = 1 << 22
"""How many numbers are worked on at once, counting every image as a square, which plasma is."""

_CORRUPTIONS: dict[str, _Corruption] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": weather.frost,
    "fog": weather.fog,
    "brightness": weather.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": digital.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": weather.spatter,
    "saturate": digital.saturate,
}
_ANY_SIZE = {
    "gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "brightness", "contrast", "jpeg_compression",
    "saturate",
}  # fmt: skip


@torch.no_grad()
def corrupt(images: Tensor, name: str, severity: int = 1, *, seed: int = 0, start: int = 0) -> Tensor:
    """Images as a camera in the fog, a shaking hand or a small JPEG file would have them.

    The constants are ImageNet-C's at 224 pixels and CIFAR-C's at 32; at another size those of the nearer of the two,
    on a log scale of the shorter side, with lengths in proportion. Draws are the same at every severity where the
    corruption allows it. Gray images get the luma of the colors that would be added.

    Args:
        images: (N, C, H, W) with one or three channels, uint8 or floating in [0, 1]; not changed. The shorter side
            has at least 28 pixels; any size will do for the noises, brightness, contrast, saturate and
            jpeg_compression.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        seed: any integer; the only source of randomness, together with the examples' places.
        start: the place of the first image in the data set: image n is corrupted as example start + n, whatever
            batch it is in.
    Returns: a tensor of the same shape, dtype, device and memory format. uint8 values are rounded, where the
        originals cut them off; floating values are not rounded to 256 levels, but for jpeg_compression.
    Raises: InvalidValue for an unknown name, a severity that is not 1 to 5, other shapes, values outside of [0, 1];
        InvalidType for other dtypes and for numbers that are not integers.
    Source: Hendrycks & Dietterich 2019, arXiv:1903.12261.
    Example:
        >>> images = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
        >>> corrupt(images, "brightness", 4)[0, 0, 0, 0]  # 0.2 of 255 is 51
        tensor(151, dtype=torch.uint8)
        >>> noisy = corrupt(images, "gaussian_noise", 3, seed=1)
        >>> torch.equal(noisy[1:], corrupt(images[1:], "gaussian_noise", 3, seed=1, start=1))
        True
    """
    _check(images, name, severity, seed, start)
    result = torch.empty_like(images)
    values, scale = constants(name, int(severity), min(images.shape[2:]))
    per_part = max(1, _WORK // (images.shape[1] * max(images.shape[2:]) ** 2))
    for first in range(0, len(images), per_part):  # results do not depend on the parts; memory does
        part = _unit(images[first : first + per_part])
        places = range(start + first, start + first + len(part))
        draws = Draws([torch_generator(seed, "corruption", name, place) for place in places])
        part = _CORRUPTIONS[name](part, draws, values, scale).clamp(0, 1)
        result[first : first + per_part] = part if images.is_floating_point() else (part * 255).round()
    return result


def _unit(images: Tensor) -> Tensor:
    """Images in [0, 1], contiguous, in float64 where they were that and in float32 otherwise."""
    dtype = torch.float64 if images.dtype == torch.float64 else torch.float32
    unit = images.to(dtype).contiguous()
    return unit if images.is_floating_point() else unit / 255


def _check(images: Tensor, name: str, severity: int, seed: int, start: int) -> None:
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise invalid_type("corrupt", "images", "be a tensor, uint8 or floating", images)
    if name not in CORRUPTIONS:
        raise unknown("corrupt", "corruption", name, CORRUPTIONS)
    for argument, value in (("severity", severity), ("seed", seed), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise invalid_type("corrupt", argument, "be an integer", value)
    if severity not in SEVERITIES:
        raise invalid("corrupt", "severity", "be 1, 2, 3, 4 or 5", severity, "Leave out corrupt for clean images.")
    if start < 0:
        raise invalid("corrupt", "start", "be at least 0", start, "It is the first image's place in the data set.")
    _check_images(images, name)


def _check_images(images: Tensor, name: str) -> None:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        cure = "Channels come second, and one image needs images[None]."
        raise invalid("corrupt", "images", "have shape (N, C, H, W) with one or three channels", images, cure)
    least = 1 if name in _ANY_SIZE else SMALLEST
    if min(images.shape[2:]) < least:
        cure = f"Only {', '.join(sorted(_ANY_SIZE))} apply to smaller images."
        raise invalid("corrupt", "images", f"have sides of at least {least} pixels for {name}", images, cure)
    if images.is_floating_point() and images.numel():
        low, high = (float(value) for value in torch.aminmax(images))
        if not (low >= 0 and high <= 1):
            cure = "Corrupt images before they are standardized, or clamp what exceeds by rounding."
            raise invalid("corrupt", "images", "lie in [0, 1]", f"values from {low:.4g} to {high:.4g}", cure)
