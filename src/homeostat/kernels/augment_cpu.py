"""Augmentation compiled for the CPU: an image's columns are worked out once, then all its rows follow the same list."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.philox_cpu import HALF, LOW, philox

_FIELDS = Fields(
    "x y table fill seed examples channels height width x_image x_channel x_row x_column x_size rows columns reflect "
    "flip cutout example"
)


def augment_batch(
    input: Tensor, seed: Tensor, table: Tensor | None, fill: Tensor, rows: int, columns: int, reflect: bool,
    flip: float, cutout: int, example: int,
) -> Tensor:  # fmt: skip
    """See `homeostat.kernels.augment.augment_batch`. Any strides are read as they are."""
    y = torch.empty(input.shape, dtype=fill.dtype, device="cpu", memory_format=torch.channels_last)
    if not y.numel():
        return y
    table = table if table is None else table.contiguous()
    fill, seed = fill.contiguous(), seed.contiguous()
    _augment(
        fill.dtype, threads_for(y.numel(), len(input)), input.data_ptr(), y.data_ptr(),
        0 if table is None else table.data_ptr(), fill.data_ptr(), seed.data_ptr(), *input.shape, *input.stride(),
        input.element_size(), rows, columns, reflect, threshold(flip), cutout, example,
    )  # fmt: skip
    return y


@kernel(_FIELDS)
def _augment(real: Any) -> Any:
    record, size = _FIELDS.record, np.dtype(real).itemsize

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        channels, height, width = a.channels, a.height, a.width
        table = carray(pointer(a.table), (channels * 256,), real)
        fill = carray(pointer(a.fill), (channels,), real)
        extent = (width - 1) * a.x_column + (channels - 1) * a.x_channel + 1
        places = np.empty(width, np.uint64)
        begin, end = share(a, a.examples)
        for n in range(begin, end):
            row_shift, first, last, top, bottom, left, right = _plan(a, n, places)
            for i in range(height):
                y = carray(pointer(a.y + (n * height + i) * width * channels * size), (width * channels,), real)
                position = i + row_shift
                if not (a.reflect or 0 <= position < height):
                    _cover(y, fill, 0, width, channels)
                    continue
                row = pointer(a.x + (n * a.x_image + _mirrored(position, height) * a.x_row) * a.x_size)
                if a.table:
                    _look_up(y, carray(row, (extent,), np.uint8), table, places, channels, a.x_channel)
                else:
                    _copy(y, carray(row, (extent,), real), places, channels, a.x_channel)
                if not a.reflect:
                    _cover(y, fill, 0, first, channels)
                    _cover(y, fill, last, width, channels)
                if top <= i < bottom:
                    _cover(y, fill, left, right, channels)

    return run


@njit(forceinline=True)
def _look_up(y: Any, x: Any, table: Any, places: Any, channels: Any, x_channel: Any) -> None:
    """A row of values; one and three channels are written out."""
    c1, c2 = np.uint64(x_channel), np.uint64(2 * x_channel)
    if channels == 1:
        for j in range(len(places)):
            y[j] = table[x[places[j]]]
    elif channels == 3:
        for j in range(len(places)):
            place, k = places[j], np.uint64(3 * j)
            y[k] = table[x[place]]
            y[k + np.uint64(1)] = table[np.uint64(256) + x[place + c1]]
            y[k + np.uint64(2)] = table[np.uint64(512) + x[place + c2]]
    else:
        for c in range(channels):
            for j in range(len(places)):
                value = x[places[j] + np.uint64(c * x_channel)]
                y[np.uint64(j * channels + c)] = table[np.uint64(256 * c) + value]


@njit(forceinline=True)
def _copy(y: Any, x: Any, places: Any, channels: Any, x_channel: Any) -> None:
    """A row as it is; one and three channels are written out."""
    c1, c2 = np.uint64(x_channel), np.uint64(2 * x_channel)
    if channels == 1:
        for j in range(len(places)):
            y[j] = x[places[j]]
    elif channels == 3:
        for j in range(len(places)):
            place, k = places[j], np.uint64(3 * j)
            y[k] = x[place]
            y[k + np.uint64(1)] = x[place + c1]
            y[k + np.uint64(2)] = x[place + c2]
    else:
        for c in range(channels):
            for j in range(len(places)):
                y[np.uint64(j * channels + c)] = x[places[j] + np.uint64(c * x_channel)]


@njit(forceinline=True)
def _cover(y: Any, fill: Any, begin: Any, end: Any, channels: Any) -> None:
    for j in range(begin, end):
        for c in range(channels):
            y[np.uint64(j * channels + c)] = fill[np.uint64(c)]


@njit
def _plan(a: Any, n: Any, places: Any) -> Any:
    """What happens to example n: the shift of its rows; the columns that are inside the image; the rows and columns of
    the square. Writes to `places` where in a row each column comes from, in elements.
    """
    width = a.width
    row_shift = _below(a, n, 0, 2 * a.rows + 1) - a.rows
    shift = _below(a, n, 1, 2 * a.columns + 1) - a.columns
    flipped = _word(a, n, 2) < np.uint64(a.flip)
    top = _below(a, n, 3, a.height) - a.cutout // 2
    left = _below(a, n, 4, width) - a.cutout // 2
    for j in range(width):
        position = (width - 1 - j if flipped else j) + shift
        places[j] = np.uint64(max(0, _mirrored(position, width)) * a.x_column)
    first, last = min(width, max(0, -shift)), max(0, width - max(0, shift))
    if flipped:
        first, last = width - last, width - first
    bottom, right = min(a.height, top + a.cutout), min(width, left + a.cutout)
    return row_shift, first, last, max(0, top), bottom, max(0, left), right


@njit(forceinline=True)
def _mirrored(position: Any, size: Any) -> Any:
    return size - 1 - abs(size - 1 - abs(position))


@njit
def _below(a: Any, n: Any, position: Any, count: Any) -> Any:
    return np.int64(_word(a, n, position) * np.uint64(count) >> HALF)


@njit
def _word(a: Any, n: Any, position: Any) -> Any:
    """The draw of one place, see `philox_reference.words`."""
    key = carray(pointer(a.seed), (2,), np.uint64)
    number = np.uint64(a.example + n)
    quad, within = number >> np.uint64(2), number & np.uint64(3)
    r0, r1, r2, r3 = philox(np.uint64(position), np.uint64(0), quad, key[1] & LOW, key[0] & LOW, key[0] >> HALF)
    low, high = (r1 if within & np.uint64(1) else r0), (r3 if within & np.uint64(1) else r2)
    return high if within & np.uint64(2) else low
