"""Augmentation of image batches in one pass over memory: crop, flip, cutout, and uint8 turned into normalized floats.

Checks, choice of the backend, gradient; the arithmetic is in `augment_cpu`, `_gpu` and `_reference`.
Random: what happens to an example is a pure function of a seed and of its index, see `augment_reference`. Its crop,
flip and cutout have draws of their own, so that calls which differ in one of them share the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels.backend import choose, implementation, widest_dtype
from homeostat.kernels.operator import Operator

PADDING_MODES: tuple[str, ...] = ("reflect", "constant")
"""What a crop finds outside the image: its mirror image, or the fill."""

Numbers = float | Sequence[float] | Tensor

_EXAMPLES = 2**34  # a word of the counter holds n div 4


def augment(
    images: Tensor,
    seed: Tensor,
    *,
    crop: int | tuple[int, int] = 0,
    padding_mode: str = "reflect",
    flip: float = 0.0,
    cutout: int = 0,
    fill: Numbers = 0.0,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    example: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Crop, flip and cut out at random, then normalize: a uint8 batch becomes float32 in one pass.

    Args:
        images: (N, C, H, W), any strides. uint8 becomes float32, by a table of its 256 values; floating images keep
            their dtype, take a pass of their own for mean and std, and gradients flow.
        seed: int64 of shape (2,), key and stream, on the CPU; `homeostat.kernels.dropout.draw_seed` makes one.
        crop: pixels by which a window of the original size can move, in rows and columns or (rows, columns).
        padding_mode: "reflect" mirrors the image at its border, "constant" puts the fill there.
        flip: probability of mirroring left and right, after the crop.
        cutout: side of a square in pixels that the fill covers, after the flip; its center is uniform over the image,
            and what sticks out is cut off. 0 for none.
        fill: one number or one per channel, in the unit of the result: 0 is the mean of normalized images.
        mean, std: the result is (x - mean) / std; one number or one per channel, in the unit of the images (0..255 for
            uint8; constants for pixels in 0..1 are to be multiplied by 255). None for 0 and 1.
        example: index of the first example, where the batch is a part of a larger one.
        backend: "numba", "triton", "reference", or None for the fastest.
    Returns: (N, C, H, W) in channels_last memory; the same bits from every backend.
    Raises: InvalidType, InvalidValue for anything that cannot be used, before memory is written.
    Source: DeVries & Taylor 2017, arXiv:1708.04552 (cutout); Salmon et al. 2011, doi:10.1145/2063384.2063405 (draws).
    Example:
        >>> images = torch.full((2, 3, 32, 32), 130, dtype=torch.uint8)
        >>> augment(images, torch.tensor([1, 2]), crop=4, flip=0.5, mean=128.0, std=64.0)[0, 0, 0, :2]
        tensor([0.0312, 0.0312])
    """
    _check_images(images, seed)
    channels = images.shape[1]
    rows, columns = _check_crop(crop, padding_mode, images)
    _check_numbers(flip, cutout, example, len(images))
    fills = _per_channel("fill", fill, channels, images.device)
    means = None if mean is None else _per_channel("mean", mean, channels, images.device)
    deviations = None if std is None else _per_channel("std", std, channels, images.device)
    if images.dtype == torch.uint8:
        values = torch.arange(256.0, device=images.device).expand(channels, 256)
        table = _normalized(values, means, deviations, (-1, 1)).contiguous()
    else:
        images, table = _normalized(images, means, deviations, (-1, 1, 1)), None
    fills = fills.to(torch.float32 if table is not None else images.dtype)
    return augment_batch(
        images, seed, table, fills, rows, columns, padding_mode == "reflect", float(flip), cutout, example, backend
    )


def _check_images(images: Tensor, seed: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise invalid_type("augment", "images", "be a tensor", images)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise invalid_type("augment", "images", "be uint8 or floating", images, "Convert them with .to(torch.uint8).")
    if images.dim() != 4:
        cure = "Give one image a first dimension of 1." if images.dim() == 3 else ""
        raise invalid("augment", "images", "have four dimensions (N, C, H, W)", images, cure)
    if not all(images.shape[1:]):
        raise invalid("augment", "images", "have at least one channel, row and column", images)
    if not isinstance(seed, Tensor) or seed.dtype != torch.int64:
        cure = "homeostat.kernels.dropout.draw_seed(generator) makes one."
        raise invalid_type("augment", "seed", "be an int64 tensor", seed, cure)
    if seed.shape != (2,) or seed.device.type != "cpu":
        raise invalid("augment", "seed", "have shape (2,), key and stream, and be on the CPU", seed)


def _check_crop(crop: int | tuple[int, int], padding_mode: str, images: Tensor) -> tuple[int, int]:
    pair = crop if isinstance(crop, tuple) else (crop, crop)
    if not (len(pair) == 2 and all(_is_integer(p) and p >= 0 for p in pair)):
        raise invalid("augment", "crop", "be a number of pixels of at least 0, or two, (rows, columns)", crop)
    if padding_mode not in PADDING_MODES:
        raise unknown("augment", "padding_mode", padding_mode, PADDING_MODES)
    height, width = images.shape[2:]
    if padding_mode == "reflect" and (pair[0] >= height or pair[1] >= width):
        cure = "A mirror image has no more pixels; padding_mode='constant' may go further."
        raise invalid("augment", "crop", f"be smaller than the image ({height} x {width})", crop, cure)
    return pair


def _check_numbers(flip: float, cutout: int, example: int, count: int) -> None:
    if isinstance(flip, bool) or not isinstance(flip, int | float):
        raise invalid_type("augment", "flip", "be a number", flip, "flip is the probability of mirroring: 0.5.")
    if not 0 <= flip <= 1:
        raise invalid("augment", "flip", "lie in [0, 1]", flip, "flip is the probability of mirroring.")
    for name, number in (("cutout", cutout), ("example", example)):
        if not _is_integer(number) or number < 0:
            raise invalid("augment", name, "be an integer of at least 0", number)
    if example + count > _EXAMPLES:
        raise invalid("augment", "example", "leave all examples below 2**34, which have draws of their own", example)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _per_channel(name: str, value: Numbers, channels: int, device: torch.device) -> Tensor:
    """One number per channel, `widest_dtype`, on the images' device."""
    given: Any = value.tolist() if isinstance(value, Tensor) else value
    try:
        numbers = [float(number) for number in given] if hasattr(given, "__len__") else [float(given)]
    except (TypeError, ValueError):
        raise invalid_type("augment", name, "be a number or one per channel", value) from None
    if not all(math.isfinite(number) for number in numbers):
        raise invalid("augment", name, "be finite", value)
    if len(numbers) not in (1, channels):
        raise invalid("augment", name, f"have one number or one per channel ({channels})", value)
    if name == "std" and not all(number > 0 for number in numbers):
        raise invalid("augment", name, "be positive", value, "A channel that never varies needs no scaling: give it 1.")
    return torch.tensor(numbers * (channels // len(numbers)), dtype=widest_dtype(device), device=device)


def _normalized(x: Tensor, mean: Tensor | None, std: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    """(x - mean) / std in x's own precision: the same numbers for a table of values as for images of them."""
    if mean is not None:
        x = x - mean.to(x.dtype).view(shape)
    if std is not None:
        x = x / std.to(x.dtype).view(shape)
    return x


def _compute(
    input: Tensor, seed: Tensor, table: Tensor | None, fill: Tensor, rows: int, columns: int, reflect: bool,
    flip: float, cutout: int, example: int, backend: str | None,
) -> Tensor:  # fmt: skip
    # The fill has the dtype of the result. Bytes that stay bytes are only moved: that can be done wherever floats can.
    result = fill if fill.dtype != torch.uint8 else fill.float()
    module = implementation("augment", choose("augment", result, backend))
    return module.augment_batch(input, seed, table, fill, rows, columns, reflect, flip, cutout, example)


def _shape(input: Tensor, seed: Tensor, table: Tensor | None, fill: Tensor, *_: Any) -> Tensor:
    return torch.empty(input.shape, dtype=fill.dtype, device=input.device, memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.settings = inputs[4:10]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return augment_gradient(grad, ctx.saved_tensors[0], *ctx.settings), *(None,) * 10


def _compute_gradient(grad: Tensor, *settings: Any) -> Tensor:
    from homeostat.kernels import augment_reference

    return augment_reference.gradient(grad, *settings)


def _shape_gradient(grad: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(grad, memory_format=torch.channels_last)


def _setup_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.settings = inputs[2:]


def _second_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """What is linear has itself as its derivative: the images' own way, with zeros for the fill."""
    fill = grad.new_zeros(grad.shape[1])
    return augment_batch(grad, ctx.saved_tensors[0], None, fill, *ctx.settings, None), *(None,) * 7


augment_batch = Operator(
    "augment_batch(Tensor input, Tensor seed, Tensor? table, Tensor fill, int rows, int columns, bool reflect, "
    "float flip, int cutout, int example, str? backend) -> Tensor",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
)
"""The operator itself, unchecked: uint8 images through `table` (C, 256), or without a table images as they are; `fill`
(C,) has the dtype of the result, and both are on the images' device. rows and columns: how far a crop can move."""

augment_gradient = Operator(
    "augment_gradient(Tensor grad, Tensor seed, int rows, int columns, bool reflect, float flip, int cutout, "
    "int example) -> Tensor",
    _compute_gradient,
    _shape_gradient,
    setup=_setup_gradient,
    gradient=_second_gradient,
)
"""The gradient of `augment_batch` with respect to floating images: plain torch on every device, for it is rare."""
