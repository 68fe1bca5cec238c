"""Augmentation compiled for the GPU: every pixel of the result finds its source, and is written once, channels last."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.launch_gpu import launch
from homeostat.kernels.philox_gpu import draw, stream

_BLOCK = 1024  # elements that a program writes


def augment_batch(
    input: Tensor, seed: Tensor, table: Tensor | None, fill: Tensor, rows: int, columns: int, reflect: bool,
    flip: float, cutout: int, example: int,
) -> Tensor:  # fmt: skip
    """See `homeostat.kernels.augment.augment_batch`."""
    n, channels, height, width = input.shape
    y = torch.empty((n, height, width, channels), dtype=fill.dtype, device=input.device).permute(0, 3, 1, 2)
    if not y.numel():
        return y
    blocks = triton.cdiv(channels * height * width, _BLOCK)
    launch(
        _augment, n * blocks, input, input, y, None if table is None else table.contiguous(), fill.contiguous(),
        *input.stride(), height, blocks, *stream(seed), rows, columns, threshold(flip), cutout, example,
        REFLECT=reflect, CHANNELS=channels, WIDTH=width, BLOCK=_BLOCK,
    )  # fmt: skip
    return y


@triton.jit(
    do_not_specialize=["key", "key_high", "number", "rows", "columns", "flip", "cutout", "example", "height", "blocks"]
)
def _augment(
    x, y, table, fill, along_n: tl.int64, along_c: tl.int64, along_h: tl.int64, along_w: tl.int64, height: tl.int32,
    blocks: tl.int32, key: tl.int32, key_high: tl.int32, number: tl.int32, rows: tl.int32, columns: tl.int32,
    flip: tl.int64, cutout: tl.int32, example: tl.int64, REFLECT: tl.constexpr, CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x (n, CHANNELS, height, WIDTH) with strides; table (CHANNELS, 256); fill (CHANNELS,); y channels last.

    BLOCK elements of one image. Its five draws are crop row and column, flip, cutout row and column.
    """
    image = (tl.program_id(0) // blocks).to(tl.int64)
    place = tl.arange(0, 8).to(tl.int64)
    words = draw(place, example + image + tl.zeros_like(place), key, key_high, number).to(tl.uint64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = element < height * (WIDTH * CHANNELS)
    pixel = element // CHANNELS
    c = element - pixel * CHANNELS
    r = pixel // WIDTH
    s = pixel - r * WIDTH
    top, left = _below(words, place, 3, height) - cutout // 2, _below(words, place, 4, WIDTH) - cutout // 2
    covered = (r >= top) & (r < top + cutout) & (s >= left) & (s < left + cutout)
    flipped = _word(words, place, 2).to(tl.int64) < flip
    s = tl.where(flipped, WIDTH - 1 - s, s)
    r += _below(words, place, 0, 2 * rows + 1) - rows
    s += _below(words, place, 1, 2 * columns + 1) - columns
    if not REFLECT:
        covered |= (r < 0) | (r >= height) | (s < 0) | (s >= WIDTH)
    r, s = _mirrored(r, height), _mirrored(s, WIDTH)
    source = x + image * along_n + c * along_c + r * along_h + s * along_w
    value = tl.load(source, mask=inside, other=0)
    if table is not None:
        value = tl.load(table + c * 256 + value.to(tl.int32), mask=inside, other=0)
    value = tl.where(covered, tl.load(fill + c), value)
    tl.store(y + image * (height * (WIDTH * CHANNELS)) + element, value, mask=inside)


@triton.jit
def _word(words, place, index: tl.constexpr):
    """The draw at one place, out of all of them."""
    return tl.sum(tl.where(place == index, words, 0), 0)


@triton.jit
def _below(words, place, index: tl.constexpr, count):
    """An integer in 0..count-1, uniform up to count / 2**32."""
    return (_word(words, place, index) * count >> 32).to(tl.int32)


@triton.jit
def _mirrored(at, size):
    """The position inside, where one outside finds its mirror image."""
    return tl.maximum((size - 1) - tl.abs((size - 1) - tl.abs(at)), 0)
