"""The published constants of the corruptions, and what they become at another size. Not random.

Two tables: ImageNet-C's for images of 224 pixels and CIFAR-C's for 32. Each number stands as its authors' programs
have it, also where they note an oversight of their own (elastic_transform counts with a side of 244).
Source: Hendrycks & Dietterich 2019, arXiv:1903.12261; make_imagenet_c.py and make_cifar_c.py of
https://github.com/hendrycks/robustness.
"""

from __future__ import annotations

import math

Constants = tuple[float, ...]
"""What one corruption needs at one severity; `MEANINGS` names the numbers."""

MEANINGS: dict[str, tuple[str, ...]] = {
    "gaussian_noise": ("standard deviation",),
    "shot_noise": ("photons at full brightness",),
    "impulse_noise": ("share of values replaced",),
    "defocus_blur": ("radius of the disk", "sigma that softens its edge"),
    "glass_blur": ("sigma", "reach of a swap", "rounds"),
    "motion_blur": ("radius", "sigma"),
    "zoom_blur": ("zooms end before", "step between zooms"),
    "snow": ("mean", "standard deviation", "zoom", "threshold", "radius", "sigma", "share of the image kept"),
    "frost": ("weight of the image", "weight of the frost"),
    "fog": ("thickness", "decay of the plasma from one scale to the next"),
    "brightness": ("added to the value",),
    "contrast": ("factor",),
    "elastic_transform": ("height of the displacement", "its sigma", "shift of the corners"),
    "pixelate": ("share of the side kept",),
    "jpeg_compression": ("quality",),
    "speckle_noise": ("standard deviation at full brightness",),
    "gaussian_blur": ("sigma",),
    "spatter": ("mean", "standard deviation", "sigma", "threshold", "strength, of mud its sigma", "0 water, 1 mud"),
    "saturate": ("factor of the saturation", "added to it"),
}
"""The nineteen names, in ImageNet-C's order and with its four extra ones last, and what their constants mean."""

IMAGENET: dict[str, tuple[Constants, ...]] = {
    "gaussian_noise": ((0.08,), (0.12,), (0.18,), (0.26,), (0.38,)),
    "shot_noise": ((60,), (25,), (12,), (5,), (3,)),
    "impulse_noise": ((0.03,), (0.06,), (0.09,), (0.17,), (0.27,)),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": ((0.1,), (0.2,), (0.3,), (0.4,), (0.5,)),
    "contrast": ((0.4,), (0.3,), (0.2,), (0.1,), (0.05,)),
    "elastic_transform": (
        (244 * 2, 244 * 0.7, 244 * 0.1),
        (244 * 2, 244 * 0.08, 244 * 0.2),
        (244 * 0.05, 244 * 0.01, 244 * 0.02),
        (244 * 0.07, 244 * 0.01, 244 * 0.02),
        (244 * 0.12, 244 * 0.01, 244 * 0.02),
    ),
    "pixelate": ((0.6,), (0.5,), (0.4,), (0.3,), (0.25,)),
    "jpeg_compression": ((25,), (18,), (15,), (10,), (7,)),
    "speckle_noise": ((0.15,), (0.2,), (0.35,), (0.45,), (0.6,)),
    "gaussian_blur": ((1,), (2,), (3,), (4,), (6,)),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
"""For images of 224 pixels, by name and severity."""

CIFAR: dict[str, tuple[Constants, ...]] = {
    "gaussian_noise": ((0.04,), (0.06,), (0.08,), (0.09,), (0.10,)),
    "shot_noise": ((500,), (250,), (100,), (75,), (50,)),
    "impulse_noise": ((0.01,), (0.02,), (0.03,), (0.05,), (0.07,)),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": ((0.05,), (0.1,), (0.15,), (0.2,), (0.3,)),
    "contrast": ((0.75,), (0.5,), (0.4,), (0.3,), (0.15,)),
    "elastic_transform": (
        (0, 0, 32 * 0.08),
        (32 * 0.05, 32 * 0.2, 32 * 0.07),
        (32 * 0.08, 32 * 0.06, 32 * 0.06),
        (32 * 0.1, 32 * 0.04, 32 * 0.05),
        (32 * 0.1, 32 * 0.03, 32 * 0.03),
    ),
    "pixelate": ((0.95,), (0.9,), (0.85,), (0.75,), (0.65,)),
    "jpeg_compression": ((80,), (65,), (58,), (50,), (40,)),
    "speckle_noise": ((0.06,), (0.1,), (0.12,), (0.16,), (0.2,)),
    "gaussian_blur": ((0.4,), (0.6,), (0.7,), (0.8,), (1,)),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
"""For images of 32 pixels, by name and severity."""


def constants(name: str, severity: int, side: int) -> tuple[Constants, float]:
    """The constants of a corruption for images whose shorter side is `side`, and the scale of its lengths.

    The table is the one whose size is nearer on a log scale: CIFAR-C's up to 84 pixels, ImageNet-C's from 85. Lengths
    are then multiplied by the scale, side / 32 or side / 224, so at 32 and 224 pixels all is as published.

    Args:
        name: one of the nineteen.
        severity: 1 to 5.
        side: pixels, at least 1.
    Returns: the constants as published, and the scale.
    Example:
        >>> constants("gaussian_blur", 5, 32), constants("gaussian_blur", 5, 112)
        (((1,), 1.0), ((6,), 0.5))
    """
    table, size = (CIFAR, 32) if side < math.sqrt(32 * 224) else (IMAGENET, 224)
    return table[name][severity - 1], side / size
