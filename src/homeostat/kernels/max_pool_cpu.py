"""Maximum pooling by 2x2 compiled for the CPU, for channels that follow one another in memory.

A unit of the work is a row of windows: two rows of the input, each window two runs of 2 C values. Windows have few
channels, too few for tests of whether six arrays overlap to pay, without which no compiler vectorizes the gradient's
loop: `_spread_block` and `_spread_one` say by themselves what is read before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic
from torch import Tensor

from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for

_POOL = Fields("x y places rows windows height width channels")
_BLOCK = 64  # bytes that are spread at once: a line of the cache


def pool(input: Tensor) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.max_pool.max_pool`."""
    examples, channels, height, width = input.shape
    size = (examples, channels, height // 2, width // 2)
    output = torch.empty(size, dtype=input.dtype, device="cpu", memory_format=torch.channels_last)
    places = torch.empty_like(output, dtype=torch.uint8)
    _run(_pool, input, output, places)
    return output, places


def spread(grad: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """See `homeostat.kernels.max_pool.max_pool_spread`."""
    size = (*grad.shape[:2], height, width)
    output = torch.empty(size, dtype=grad.dtype, device="cpu", memory_format=torch.channels_last)
    if height % 2 or width % 2:
        output.zero_()
    _run(_spread, output, grad, places)
    return output


def _run(loop: Any, large: Tensor, small: Tensor, places: Tensor) -> None:
    """One row of windows after the other, divided among threads."""
    examples, channels, height, width = large.shape
    rows = examples * (height // 2)
    threads = threads_for(large.numel(), rows)
    sizes = (rows, width // 2, height, width, channels)
    loop(large.dtype, threads, large.data_ptr(), small.data_ptr(), places.data_ptr(), *sizes)


@njit(inline="always")
def _top(a: Any, row: Any, size: Any) -> Any:
    """The address at which the two rows of the input begin that a row of windows covers."""
    half = a.height // 2
    return a.x + (row // half * a.height + row % half * 2) * a.width * a.channels * size


@kernel(_POOL)
def _pool(real: Any) -> Any:
    record, size = _POOL.record, np.dtype(real).itemsize

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        line = a.width * a.channels
        begin, end = share(a, a.rows)
        for row in range(begin, end):
            top = _top(a, row, size)
            for window in range(a.windows):
                left, at = top + window * 2 * a.channels * size, (row * a.windows + window) * a.channels
                x0 = carray(pointer(left), (a.channels,), real)
                x1 = carray(pointer(left + a.channels * size), (a.channels,), real)
                x2 = carray(pointer(left + line * size), (a.channels,), real)
                x3 = carray(pointer(left + (line + a.channels) * size), (a.channels,), real)
                y = carray(pointer(a.y + at * size), (a.channels,), real)
                places = carray(pointer(a.places + at), (a.channels,), np.uint8)
                for c in range(a.channels):
                    most, place = x0[c], np.uint8(0)
                    value = x1[c]
                    larger = (value > most) | (value != value)
                    most, place = (value if larger else most), (np.uint8(1) if larger else place)
                    value = x2[c]
                    larger = (value > most) | (value != value)
                    most, place = (value if larger else most), (np.uint8(2) if larger else place)
                    value = x3[c]
                    larger = (value > most) | (value != value)
                    y[c] = value if larger else most
                    places[c] = np.uint8(3) if larger else place

    return run


@kernel(_POOL)
def _spread(real: Any) -> Any:
    """The input's gradient is `x`, the output's `y`."""
    record, size = _POOL.record, np.dtype(real).itemsize
    lanes = _BLOCK // size
    zero = real(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        line = a.width * a.channels
        begin, end = share(a, a.rows)
        for row in range(begin, end):
            top = _top(a, row, size)
            for window in range(a.windows):
                at, x = (row * a.windows + window) * a.channels, top + window * 2 * a.channels * size
                y, places, next_x, next_line = a.y + at * size, a.places + at, a.channels * size, line * size
                c = 0
                while c + lanes <= a.channels:
                    _spread_block(zero, y + c * size, places + c, x + c * size, next_x, next_line)
                    c += lanes
                while c < a.channels:
                    _spread_one(zero, y + c * size, places + c, x + c * size, next_x, next_line)
                    c += 1

    return run


def _spreading(nbytes: int) -> Callable[..., Any]:
    """A function that spreads so many bytes of adjacent channels over their windows, or one value for 0."""

    @intrinsic
    def spread(
        typing_context: Any, zero: Any, y: Any, places: Any, x: Any, next_x: Any, next_line: Any
    ) -> Any:  # zero says which type the values have
        bits = zero.bitwidth
        count = 8 * nbytes // bits or 1
        value, code = (ir.VectorType(ir.IntType(width), count) for width in (bits, 8))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _, y, places, x, next_x, next_line = arguments
            grad = builder.load(builder.inttoptr(y, value.as_pointer()), align=1)
            place = builder.load(builder.inttoptr(places, code.as_pointer()), align=1)
            below = builder.add(x, next_line)
            for number, address in enumerate((x, builder.add(x, next_x), below, builder.add(below, next_x))):
                here = builder.icmp_unsigned("==", place, ir.Constant(code, [number] * count))
                kept = builder.select(here, grad, ir.Constant(value, None))
                builder.store(kept, builder.inttoptr(address, value.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(zero, *(types.int64,) * 5), codegen

    return spread


_spread_block, _spread_one = _spreading(_BLOCK), _spreading(0)
