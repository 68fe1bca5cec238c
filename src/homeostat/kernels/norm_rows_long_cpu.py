"""Normalization of rows too long for the cache, compiled for the CPU: in chunks of columns that any thread may do.

Each direction takes three launches of one kernel: sums of every chunk, their merging, and writing. The chunks are those
of `norm_rows_cpu`, and so are the results.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray
from torch import Tensor

from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.norm_rows_cpu import (
    CHUNK,
    PILOT,
    accumulate,
    descend,
    express,
    merged,
    moments,
    pilot,
    rectify,
    standardization,
    sums,
)


def normalize(
    places: tuple[int, ...], x: Tensor, rows: int, length: int, groups: int, center: bool, eps: float, slope: float
) -> None:
    """Output and statistics; `places` are the first fields of `_FORWARD`."""
    chunks = -(-length // CHUNK)
    partial = torch.empty((2, rows, chunks), dtype=torch.float64, device="cpu")
    threads = threads_for(x.numel(), rows * chunks)
    for phase in range(3):
        _forward(
            x.dtype, threads, *places, partial.data_ptr(), rows, length, groups, center, chunks, phase, eps, slope
        )  # fmt: skip


def gradient(
    places: tuple[int, ...], x: Tensor, examples: int, length: int, groups: int, center: bool, eps: float, slope: float
) -> None:
    """The gradients; `places` are the first fields of `_BACKWARD`."""
    chunks = -(-length // CHUNK)
    partial = torch.empty((2, examples * groups, chunks), dtype=torch.float64, device="cpu")
    threads = threads_for(x.numel(), groups * chunks)
    for phase in range(3):
        _backward(
            x.dtype, threads, *places, partial.data_ptr(), examples, length, groups, center, chunks, phase, eps, slope
        )  # fmt: skip


_FORWARD = Fields("x weight bias residual y statistics partial rows length groups center chunks phase", "eps slope")


@kernel(_FORWARD)
def _forward(real: Any) -> Any:
    record, size, zero, one = _FORWARD.record, np.dtype(real).itemsize, real(0), real(1)
    relu, leaky = real(0), real(-np.inf)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        mean = carray(pointer(a.statistics), (a.rows,), np.float64)
        variance = carray(pointer(a.statistics + 8 * a.rows), (a.rows,), np.float64)
        means = carray(pointer(a.partial), (a.rows * a.chunks,), np.float64)
        squares = carray(pointer(a.partial + 8 * a.rows * a.chunks), (a.rows * a.chunks,), np.float64)
        slope = real(a.slope)
        floor = relu if slope == zero else leaky
        begin, end = share(a, a.rows if a.phase == 1 else a.rows * a.chunks)
        for unit in range(begin, end):
            if a.phase == 1:
                m, m2, count = 0.0, 0.0, 0.0
                for chunk in range(a.chunks):
                    at = unit * a.chunks + chunk
                    m, m2, count = merged(
                        m, m2, count, means[at], squares[at], np.float64(min(CHUNK, a.length - chunk * CHUNK))
                    )
                mean[unit], variance[unit] = m, m2 * (1 / a.length)
                continue
            row, offset = unit // a.chunks, unit % a.chunks * CHUNK
            n, at = min(CHUNK, a.length - offset), (row * a.length + offset) * size
            x = carray(pointer(a.x + at), (n,), real)
            if a.phase == 0:
                about = pilot(x, n, real(1 / min(n, PILOT)), a.center)
                means[unit], squares[unit] = moments(x, n, about, 1 / n, a.center)
                continue
            high, scale, shift = standardization(mean[row], variance[row], a.eps, real)
            column = (row % a.groups * a.length + offset) * size
            w, b = carray(pointer(a.weight + column), (n,), real), carray(pointer(a.bias + column), (n,), real)
            r, y = carray(pointer(a.residual + at), (n,), real), carray(pointer(a.y + at), (n,), real)
            express(x, w, b, r, y, n, (high, scale, shift, slope, floor, zero, one), a.residual != 0)

    return run


_BACKWARD = Fields(
    "g x weight bias y statistics dx dr dw db partial examples length groups center chunks phase", "eps slope"
)


@kernel(_BACKWARD)
def _backward(real: Any) -> Any:
    record, size, zero, one = _BACKWARD.record, np.dtype(real).itemsize, real(0), real(1)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        rows = a.examples * a.groups
        mean = carray(pointer(a.statistics), (rows,), np.float64)
        variance = carray(pointer(a.statistics + 8 * rows), (rows,), np.float64)
        firsts = carray(pointer(a.partial), (rows * a.chunks,), np.float64)
        seconds = carray(pointer(a.partial + 8 * rows * a.chunks), (rows * a.chunks,), np.float64)
        slope = real(a.slope)
        units = rows if a.phase == 1 else a.groups * a.chunks
        begin, end = share(a, units)
        for unit in range(begin, end):
            if a.phase == 1:
                first, second = 0.0, 0.0
                for at in range(unit * a.chunks, (unit + 1) * a.chunks):
                    first += firsts[at]
                    second += seconds[at]
                firsts[unit * a.chunks] = first / a.length if a.center else 0.0
                seconds[unit * a.chunks] = second / a.length
                continue
            group, chunk = unit // a.chunks, unit % a.chunks
            n, column = min(CHUNK, a.length - chunk * CHUNK), (group * a.length + chunk * CHUNK) * size
            w, b = carray(pointer(a.weight + column), (n,), real), carray(pointer(a.bias + column), (n,), real)
            dw, db = carray(pointer(a.dw + column), (n,), real), carray(pointer(a.db + column), (n,), real)
            if a.phase == 2 and a.dw:
                for i in range(n):
                    dw[i] = zero
                for i in range(n):
                    db[i] = zero
            for row in range(group, rows, a.groups):
                at = row * a.length * size + chunk * CHUNK * size
                numbers = standardization(mean[row], variance[row], a.eps, real)
                x, dx = carray(pointer(a.x + at), (n,), real), carray(pointer(a.dx + at), (n,), real)
                g, y = carray(pointer(a.g + at), (n,), real), carray(pointer(a.y + at), (n,), real)
                d = carray(pointer(a.g + at if slope == one else (a.dr + at if a.y else a.dx + at)), (n,), real)
                if a.phase == 0:
                    if slope != one:
                        rectify(g, x, w, b, y, n, numbers, slope, zero, a.y != 0, d)
                    first, second = sums(d, x, w, n, numbers, zero)
                    firsts[row * a.chunks + chunk], seconds[row * a.chunks + chunk] = first, second
                    continue
                if a.dw:
                    accumulate(d, x, n, numbers, dw, db)
                first, second = real(firsts[row * a.chunks]), real(seconds[row * a.chunks])
                if slope != one and a.y == 0:  # d is dx: only under one name is it known to be the same
                    descend(dx, x, w, n, numbers, first, second, dx)
                else:
                    descend(d, x, w, n, numbers, first, second, dx)

    return run
