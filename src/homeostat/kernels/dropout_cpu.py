"""Dropout compiled for the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.philox_cpu import HALF, LOW, philox

_BLOCK = 2048  # positions per unit of work: long enough to vectorize, short enough to divide evenly among threads

_DROP = Fields("x y examples positions seed threshold example position", "scale")


def dropout(input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.dropout.dropout`."""
    x = input.contiguous()
    y = torch.empty_like(x)
    if not x.numel():
        return y
    if p == 1:
        return y.zero_()
    examples, positions = x.shape[0], x.numel() // x.shape[0]
    units = -(-examples // 4) * -(-positions // _BLOCK)
    _drop(
        x.dtype, threads_for(x.numel(), units), x.data_ptr(), y.data_ptr(), examples, positions, seed.data_ptr(),
        threshold(p), example, position, 1 / (1 - p),
    )  # fmt: skip
    return y


@kernel(_DROP)
def _drop(real: Any) -> Any:
    record, size, zero = _DROP.record, np.dtype(real).itemsize, real(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale = np.uint64(a.threshold), real(a.scale)
        blocks = (a.positions + _BLOCK - 1) // _BLOCK
        begin, end = share(a, a.examples // 4 * blocks)
        for unit in range(begin, end):
            quad, offset = unit // blocks, unit % blocks * _BLOCK
            n = min(_BLOCK, a.positions - offset)
            at, row = (quad * 4 * a.positions + offset) * size, a.positions * size
            x0, y0 = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), real)
            x1, y1 = carray(pointer(a.x + at + row), (n,), real), carray(pointer(a.y + at + row), (n,), real)
            x2, y2 = carray(pointer(a.x + at + 2 * row), (n,), real), carray(pointer(a.y + at + 2 * row), (n,), real)
            x3, y3 = carray(pointer(a.x + at + 3 * row), (n,), real), carray(pointer(a.y + at + 3 * row), (n,), real)
            e = np.uint64(a.position + offset)
            for i in range(n):
                r0, r1, r2, r3 = philox(e + np.uint64(i), e >> HALF, np.uint64(quad), stream, k0, k1)
                y0[i] = x0[i] * scale if r0 >= limit else zero
                y1[i] = x1[i] * scale if r1 >= limit else zero
                y2[i] = x2[i] * scale if r2 >= limit else zero
                y3[i] = x3[i] * scale if r3 >= limit else zero

    return run
