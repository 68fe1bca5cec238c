"""Dropout compiled for the CPU.

`_rows` and `_scattered_rows` take four examples at a time, as Philox has it: one counter serves all four, and each
example is a run of its own in memory, which vectorizes. `_singles` pays for four draws to use one: it serves the one
to three examples before and after the fours, and short rows. Draws that several values share are made for the places
alone, by the same kernels; then `_runs` or `_columns` apply them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from homeostat.kernels.allocation import empty_like
from homeostat.kernels.dropout_reference import layout, threshold
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.philox_cpu import HALF, LOW, philox

_BLOCK = 2048  # values per run and unit of work: long enough to vectorize, short enough to divide among threads
_SHORT = 32  # rows below this length are not worth loops of their own

_UNSIGNED: dict[int, Any] = {4: np.uint32, 8: np.uint64}  # the integers as wide as a real number of so many bytes

_DROP = Fields("x y examples positions channels seed threshold example position", "scale")
_APPLY = Fields("x y factors examples repeats columns")


def dropout(input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.dropout.dropout`."""
    form = layout(input, dims)
    x = input.contiguous(memory_format=form)
    y = empty_like(x)
    count, limit = x.numel(), threshold(p)
    if limit >> 32 or not count:
        return y.zero_()
    channels = 1 if form is torch.contiguous_format else x.shape[1]
    draw = (seed.contiguous(), limit, example, position, 1 / (1 - p))
    places = x.shape[:dims].numel()
    if places == count:
        _each(x, y, channels, *draw)
        return y
    ones = torch.ones(x.shape[0], places // x.shape[0], dtype=x.dtype, device="cpu")
    factors = torch.empty_like(ones)
    _each(ones, factors, 1, *draw)
    shared = count // places
    examples, repeats, columns = (places, 1, shared) if channels == 1 or dims == 1 else (x.shape[0], shared, channels)
    apply = _runs if repeats == 1 else _columns
    threads = threads_for(count, count // _BLOCK)
    apply(x.dtype, threads, x.data_ptr(), y.data_ptr(), factors.data_ptr(), examples, repeats, columns)
    return y


def _each(
    x: Tensor, y: Tensor, channels: int, seed: Tensor, limit: int, example: int, position: int, scale: float
) -> None:
    """Drop single values; `channels` is how many channels are last in memory, 1 if positions are."""
    examples = x.shape[0]
    positions = x.numel() // examples
    fours = positions >= _SHORT and position >> 32 == position + positions - 1 >> 32
    head = min(-example % 4, examples) if fours else examples
    tail = examples - (examples - head) % 4
    rows = _rows if channels == 1 else _scattered_rows
    for drop, begin, end, each in ((_singles, 0, head, 1), (rows, head, tail, 4), (_singles, tail, examples, 1)):
        if begin == end:
            continue
        at, count = begin * positions * x.element_size(), end - begin
        threads = threads_for(count * positions, max(1, count * positions // (each * _BLOCK)))
        drop(
            x.dtype, threads, x.data_ptr() + at, y.data_ptr() + at, count, positions, channels, seed.data_ptr(),
            limit, example + begin, position, scale,
        )  # fmt: skip


@kernel(_DROP)
def _rows(real: Any) -> Any:
    """Examples come in fours, positions follow one another in memory and agree in their upper word."""
    record, size = _DROP.record, np.dtype(real).itemsize
    bits = _UNSIGNED[size]
    none = bits(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale = np.uint32(a.threshold), real(a.scale)
        blocks = (a.positions + _BLOCK - 1) // _BLOCK
        begin, end = share(a, a.examples // 4 * blocks)
        for unit in range(begin, end):
            row, offset = unit // blocks * 4, unit % blocks * _BLOCK
            quad, n = np.uint64((a.example + row) // 4), min(_BLOCK, a.positions - offset)
            at, step = (row * a.positions + offset) * size, a.positions * size
            x0, y0 = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            x1, y1 = carray(pointer(a.x + at + step), (n,), real), carray(pointer(a.y + at + step), (n,), bits)
            at += 2 * step
            x2, y2 = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            x3, y3 = carray(pointer(a.x + at + step), (n,), real), carray(pointer(a.y + at + step), (n,), bits)
            e = np.uint64(a.position + offset)
            for i in range(n):
                r0, r1, r2, r3 = philox(e + np.uint64(i), e >> HALF, quad, stream, k0, k1)
                y0[i] = real(x0[i] * scale).view(bits) & (none - bits(np.uint32(r0) >= limit))
                y1[i] = real(x1[i] * scale).view(bits) & (none - bits(np.uint32(r1) >= limit))
                y2[i] = real(x2[i] * scale).view(bits) & (none - bits(np.uint32(r2) >= limit))
                y3[i] = real(x3[i] * scale).view(bits) & (none - bits(np.uint32(r3) >= limit))

    return run


@kernel(_DROP)
def _scattered_rows(real: Any) -> Any:
    """The same, but channels follow one another in memory: a table says which position is where."""
    record, size = _DROP.record, np.dtype(real).itemsize
    bits = _UNSIGNED[size]
    none = bits(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale, upper = np.uint32(a.threshold), real(a.scale), np.uint64(a.position) >> HALF
        blocks = (a.positions + _BLOCK - 1) // _BLOCK
        table, filled = np.empty(_BLOCK, np.uint32), -1
        begin, end = share(a, a.examples // 4 * blocks)
        for unit in range(begin, end):
            row, offset = unit % (a.examples // 4) * 4, unit // (a.examples // 4) * _BLOCK
            quad, n = np.uint64((a.example + row) // 4), min(_BLOCK, a.positions - offset)
            if offset != filled:
                _fill(table, n, offset, a.channels, a.positions // a.channels, a.position)
                filled = offset
            at, step = (row * a.positions + offset) * size, a.positions * size
            x0, y0 = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            x1, y1 = carray(pointer(a.x + at + step), (n,), real), carray(pointer(a.y + at + step), (n,), bits)
            at += 2 * step
            x2, y2 = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            x3, y3 = carray(pointer(a.x + at + step), (n,), real), carray(pointer(a.y + at + step), (n,), bits)
            for i in range(n):
                r0, r1, r2, r3 = philox(np.uint64(table[i]), upper, quad, stream, k0, k1)
                y0[i] = real(x0[i] * scale).view(bits) & (none - bits(np.uint32(r0) >= limit))
                y1[i] = real(x1[i] * scale).view(bits) & (none - bits(np.uint32(r1) >= limit))
                y2[i] = real(x2[i] * scale).view(bits) & (none - bits(np.uint32(r2) >= limit))
                y3[i] = real(x3[i] * scale).view(bits) & (none - bits(np.uint32(r3) >= limit))

    return run


@kernel(_DROP)
def _singles(real: Any) -> Any:
    """Any examples, either order of memory: a unit is a part of one long row or several short ones."""
    record, size = _DROP.record, np.dtype(real).itemsize
    bits = _UNSIGNED[size]
    none = bits(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale = np.uint32(a.threshold), real(a.scale)
        rows, length = max(1, _BLOCK // a.positions), min(_BLOCK, a.positions)
        groups, space = (a.examples + rows - 1) // rows, a.positions // a.channels
        table, owner, filled = np.empty(_BLOCK, np.uint64), np.empty(_BLOCK, np.uint64), -1
        begin, end = share(a, groups * ((a.positions + length - 1) // length))
        for unit in range(begin, end):
            row, offset = unit % groups * rows, unit // groups * length
            n = min(length, a.positions - offset)
            if offset != filled:
                for k in range(rows):
                    _fill(table[k * n :], n, offset, a.channels, space, a.position)
                    owner[k * n : (k + 1) * n] = k
                filled = offset
            at, n = (row * a.positions + offset) * size, n * min(rows, a.examples - row)
            x, y = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            start = np.uint64(a.example + row)
            for i in range(n):
                e, g = table[i], start + owner[i]
                r0, r1, r2, r3 = philox(e, e >> HALF, g >> np.uint64(2), stream, k0, k1)
                lower, upper = r1 if g & np.uint64(1) else r0, r3 if g & np.uint64(1) else r2
                r = np.uint32(upper if g & np.uint64(2) else lower)
                y[i] = real(x[i] * scale).view(bits) & (none - bits(r >= limit))

    return run


@njit
def _fill(table: Any, n: Any, offset: Any, channels: Any, space: Any, position: Any) -> None:
    """The positions of the values at offset, offset + 1, ... of an example whose channels are last in memory."""
    channel, e = offset % channels, np.uint64(position + offset // channels)
    if channels == 1:
        for i in range(n):
            table[i] = e + np.uint64(i)
        return
    for i in range(n):
        table[i] = e + np.uint64(channel * space)  # cut off where the table holds lower words
        channel += 1
        if channel == channels:
            channel, e = 0, e + np.uint64(1)


@kernel(_APPLY)
def _runs(real: Any) -> Any:
    """One factor for every `columns` values that follow one another."""
    record, size, zero = _APPLY.record, np.dtype(real).itemsize, real(0)
    bits = _UNSIGNED[size]
    none = bits(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        rows, length = max(1, _BLOCK // a.columns), min(_BLOCK, a.columns)
        blocks = (a.columns + length - 1) // length
        factors, tile = carray(pointer(a.factors), (a.examples,), real), np.empty(_BLOCK, real)
        begin, end = share(a, (a.examples + rows - 1) // rows * blocks)
        for unit in range(begin, end):
            first, offset = unit // blocks * rows, unit % blocks * length
            at, n = (first * a.columns + offset) * size, min(length, a.columns - offset)
            for row in range(min(rows, a.examples - first)):
                part, factor = tile[row * n : (row + 1) * n], factors[first + row]
                for i in range(n):
                    part[i] = factor
            n *= min(rows, a.examples - first)
            x, y = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            for i in range(n):
                y[i] = real(x[i] * tile[i]).view(bits) & (none - bits(tile[i] != zero))

    return run


@kernel(_APPLY)
def _columns(real: Any) -> Any:
    """Every example has `repeats` rows of `columns` values, and a factor for each column."""
    record, size, zero = _APPLY.record, np.dtype(real).itemsize, real(0)
    bits = _UNSIGNED[size]
    none = bits(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        rows = max(1, min(a.repeats, _BLOCK // a.columns))
        blocks = (a.repeats + rows - 1) // rows
        tile, filled = np.empty(rows * a.columns, real), -1
        begin, end = share(a, a.examples * blocks)
        for unit in range(begin, end):
            example, first = unit // blocks, unit % blocks * rows
            if example != filled:
                factors = carray(pointer(a.factors + example * a.columns * size), (a.columns,), real)
                for row in range(rows):
                    tile[row * a.columns : (row + 1) * a.columns] = factors
                filled = example
            at, n = (example * a.repeats + first) * a.columns * size, min(rows, a.repeats - first) * a.columns
            x, y = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), bits)
            for i in range(n):
                y[i] = real(x[i] * tile[i]).view(bits) & (none - bits(tile[i] != zero))

    return run
