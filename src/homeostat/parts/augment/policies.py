"""RandAugment, TrivialAugment and color jitter: which operations befall an example, how strongly and in which order.

Each example has its own draws, so a batch holds all operations at once; the examples that share an operation go through
it together. Operations and magnitudes are torchvision's. Not random: uniform numbers are arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from homeostat.parts.augment import photometric
from homeostat.parts.augment.draws import below, between
from homeostat.parts.augment.geometric import rotation, warp

OPERATIONS: tuple[str, ...] = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
"""The operations of both policies, by torchvision's names."""

_MOVES = OPERATIONS[1:6]
_SIGNED = OPERATIONS[1:10]

_FACTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": photometric.adjust_brightness,
    "Color": photometric.adjust_saturation,
    "Contrast": photometric.adjust_contrast,
    "Sharpness": photometric.adjust_sharpness,
}


def randaugment(
    images: Tensor, numbers: Tensor, *, num_ops: int, magnitude: int, num_magnitude_bins: int, fill: Tensor
) -> Tensor:
    """`num_ops` operations one after the other for each example, all at one magnitude.

    Args:
        images: floating (N, C, H, W) in [0, 1], one or three channels.
        numbers: in [0, 1), (N, 2 · num_ops): for each operation, which one, and its sign.
        magnitude: which of the bins, from 0 (least) on.
        fill: (C,), what comes in from outside.
    Source: Cubuk et al. 2019, arXiv:1909.13719; operations and magnitudes of torchvision.transforms.RandAugment.
    """
    table = magnitudes("randaugment", num_magnitude_bins, *images.shape[2:])[:, magnitude]
    for turn in range(num_ops):
        which = below(numbers[:, 2 * turn], len(OPERATIONS))
        images = apply(images, which, _with_sign(table[which], which, numbers[:, 2 * turn + 1]), fill)
    return images


def trivialaugment(images: Tensor, numbers: Tensor, *, num_magnitude_bins: int, fill: Tensor) -> Tensor:
    """One operation for each example, at a magnitude of its own.

    Args:
        images, fill: as for `randaugment`.
        numbers: in [0, 1), (N, 3): which operation, which of the bins, and the sign.
    Source: Müller & Hutter 2021, arXiv:2103.10158; operations and magnitudes of torchvision's TrivialAugmentWide.
    """
    table = magnitudes("trivialaugment", num_magnitude_bins, *images.shape[2:])
    which = below(numbers[:, 0], len(OPERATIONS))
    strength = table[which, below(numbers[:, 1], num_magnitude_bins)]
    return apply(images, which, _with_sign(strength, which, numbers[:, 2]), fill)


def color_jitter(
    images: Tensor,
    numbers: Tensor,
    *,
    brightness: tuple[float, float],
    contrast: tuple[float, float],
    saturation: tuple[float, float],
    hue: tuple[float, float],
) -> Tensor:
    """Brightness, contrast, saturation and hue, by random amounts and in a random order of each example's own.

    Args:
        images: floating (N, C, H, W) in [0, 1], one or three channels.
        numbers: in [0, 1), (N, 8): the four amounts, and four numbers whose ranks are the order.
        brightness, contrast, saturation, hue: the least and the greatest factor; for hue, shares of the circle.
    Source: torchvision.transforms.ColorJitter, which draws an order per call.
    """
    functions = (
        (photometric.adjust_brightness, brightness, 1.0),
        (photometric.adjust_contrast, contrast, 1.0),
        (photometric.adjust_saturation, saturation, 1.0),
        (photometric.adjust_hue, hue, 0.0),
    )
    order = numbers[:, 4:].argsort(1)
    result = images.clone()
    for turn in range(4):
        for index, (function, bounds, neutral) in enumerate(functions):
            if bounds == (neutral, neutral):
                continue
            amount = between(numbers[:, index], bounds)
            _change(result, order[:, turn] == index, amount, function)
    return result


def magnitudes(policy: str, bins: int, height: int, width: int) -> Tensor:
    """The magnitude of every operation at every bin: float64 (operations, bins).

    Shears are slopes, translations pixels, rotations degrees; factors of brightness and its like are 1 + magnitude;
    posterize counts bits; solarize is the threshold in [0, 1].

    Args:
        policy: "randaugment", or "trivialaugment", whose ranges are wider.
    Example:
        >>> magnitudes("randaugment", 31, 32, 32)[:, 9][[1, 5, 6]]
        tensor([0.0900, 9.0000, 0.2700], dtype=torch.float64)
    """
    wide = policy == "trivialaugment"
    share = torch.arange(bins, dtype=torch.float64, device="cpu") / max(1, bins - 1)
    shear, degrees, factor, lost = (0.99, 135.0, 0.99, 6) if wide else (0.3, 30.0, 0.9, 4)
    across, down = (32.0, 32.0) if wide else (150 / 331 * width, 150 / 331 * height)
    greatest = [0, shear, shear, across, down, degrees, factor, factor, factor, factor, 0, 0, 0, 0]
    table = share.new_tensor(greatest)[:, None] * share
    table[3:5] = (table[3:5] + 1e-6).trunc()  # whole pixels, also where a product is just below one
    table[OPERATIONS.index("Posterize")] = 8 - (lost * share).round()
    table[OPERATIONS.index("Solarize")] = 1 - share
    return table


def apply(images: Tensor, which: Tensor, magnitude: Tensor, fill: Tensor) -> Tensor:
    """Each example's operation, by its index in OPERATIONS, at its magnitude; both (N,), on the CPU.

    Example:
        >>> image, brighter = torch.full((1, 1, 2, 2), 0.25), torch.tensor([OPERATIONS.index("Brightness")])
        >>> apply(image, brighter, torch.tensor([0.6]), torch.zeros(1)).unique()
        tensor([0.4000])
    """
    result = images.clone()
    moves = (which > 0) & (which <= len(_MOVES))
    matrix = _matrix(which, magnitude, *images.shape[2:])
    _change(result, moves, matrix, lambda x, m: warp(x, m, fill))
    for name, function in _FACTORS.items():
        _change(result, which == OPERATIONS.index(name), 1 + magnitude, function)
    _change(result, which == OPERATIONS.index("Posterize"), magnitude, photometric.posterize)
    _change(result, which == OPERATIONS.index("Solarize"), magnitude, photometric.solarize)
    _change(result, which == OPERATIONS.index("AutoContrast"), magnitude, lambda x, _: photometric.autocontrast(x))
    _change(result, which == OPERATIONS.index("Equalize"), magnitude, lambda x, _: photometric.equalize(x))
    return result


def _change(images: Tensor, mask: Tensor, amounts: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    """In place, apply a function of images and their amounts to those examples that the mask (N,) chooses."""
    chosen = mask.nonzero()[:, 0]
    if len(chosen):
        there = chosen.to(images.device)
        images[there] = function(images[there], amounts[chosen])


def _with_sign(magnitude: Tensor, which: Tensor, numbers: Tensor) -> Tensor:
    """The magnitude, or where its operation has two directions, its negative with probability 1/2."""
    signed = (which > 0) & (which <= len(_SIGNED))
    return torch.where(signed & (numbers < 0.5), -magnitude, magnitude)


def _matrix(which: Tensor, magnitude: Tensor, height: int, width: int) -> Tensor:
    """The maps of the operations that move pixels, (N, 2, 3), the identity for all others."""
    degrees = torch.where(which == OPERATIONS.index("Rotate"), magnitude, 0)
    matrix = rotation(degrees.double(), height, width)
    for name, sign, at in (
        ("ShearX", 1, (0, 1)),
        ("ShearY", 1, (1, 0)),
        ("TranslateX", -1, (0, 2)),
        ("TranslateY", -1, (1, 2)),
    ):
        matrix[:, at[0], at[1]] += torch.where(which == OPERATIONS.index(name), sign * magnitude, 0)
    return matrix
