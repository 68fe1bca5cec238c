"""Augmentation in plain torch, for any device and dtype: what `kernels.augment` falls back to and is tested against.

Example n draws its word k, k = 0..4, at place (n, k) of `philox_reference`: crop row, crop column, flip, cutout row,
cutout column. An integer below a count is word * count div 2**32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels import philox_reference
from homeostat.kernels.dropout_reference import threshold

DRAWS = 5


def augment_batch(
    input: Tensor, seed: Tensor, table: Tensor | None, fill: Tensor, rows: int, columns: int, reflect: bool,
    flip: float, cutout: int, example: int,
) -> Tensor:  # fmt: skip
    """See `homeostat.kernels.augment.augment_batch`."""
    channels = input.shape[1]
    source, covered = _places(input, seed, rows, columns, reflect, flip, cutout, example)
    # a pixel's channels lie together: one index_select over pixels is faster than indexing images by row and column
    pixels = input.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, source.view(-1))
    if table is not None:
        pixels = table[torch.arange(channels, device=input.device), pixels.long()]
    images = torch.where(covered[..., None], fill, pixels.view(*source.shape, channels))
    return images.permute(0, 3, 1, 2)


def gradient(
    grad: Tensor, seed: Tensor, rows: int, columns: int, reflect: bool, flip: float, cutout: int, example: int
) -> Tensor:
    """The gradient with respect to floating images: every pixel collects what its copies received."""
    n, channels, height, width = grad.shape
    source, covered = _places(grad, seed, rows, columns, reflect, flip, cutout, example)
    visible = torch.where(covered[..., None], 0, grad.permute(0, 2, 3, 1)).reshape(-1, channels)
    pixels = visible.new_zeros(visible.shape).index_add(0, source.view(-1), visible)
    return pixels.view(n, height, width, channels).permute(0, 3, 1, 2)


def _places(
    input: Tensor, seed: Tensor, rows: int, columns: int, reflect: bool, flip: float, cutout: int, example: int
) -> tuple[Tensor, Tensor]:
    """Which pixel of the batch every pixel of the result shows, and whether the fill covers it; both (N, H, W)."""
    n, _, height, width = input.shape
    words = philox_reference.words(seed, n, DRAWS, example).to(input.device)
    row, inside_row = _cropped(height, words[:, 0], rows)
    column, inside_column = _cropped(width, words[:, 1], columns)
    flipped = (words[:, 2] < threshold(flip))[:, None]
    column = torch.where(flipped, column.flip(1), column)
    inside_column = torch.where(flipped, inside_column.flip(1), inside_column)
    image = torch.arange(n, device=input.device)[:, None, None]
    source = (image * height + row[:, :, None]) * width + column[:, None, :]
    covered = _cut(height, words[:, 3], cutout)[:, :, None] & _cut(width, words[:, 4], cutout)[:, None, :]
    if not reflect:
        covered = covered | ~(inside_row[:, :, None] & inside_column[:, None, :])
    return source, covered


def _cropped(size: int, words: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """Along one axis, the source of every position (a mirrored one outside the image), and whether it is inside."""
    position = torch.arange(size, device=words.device) + below(words, 2 * padding + 1)[:, None] - padding
    mirrored = (size - 1) - ((size - 1) - position.abs()).abs()
    return mirrored.clamp(min=0), (position >= 0) & (position < size)


def _cut(size: int, words: Tensor, length: int) -> Tensor:
    """Along one axis, whether a position lies in the square whose center was drawn."""
    first = below(words, size)[:, None] - length // 2
    position = torch.arange(size, device=words.device)
    return (position >= first) & (position < first + length)


def below(words: Tensor, count: int) -> Tensor:
    """Integers in 0..count-1, uniform as the words are, up to count / 2**32."""
    return words * count >> 32
