"""Moments compiled for the CPU.

Where the values of a set are neighbors in memory, `_runs` takes them chunk by chunk; where sets are neighbors, as
channels are in channels_last, `_columns` takes many side by side. Both hand parts of sets to `_finish`. Sums are made
in the input's precision over a chunk that is in the cache, and in float64 beyond. A chunk with NaN or infinity, or one
whose squares overflow, is done again with care. How sets are cut into parts is a function of the shape alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.norm_rows_cpu import merged

_CHUNK = 2048
"""Neighbors in memory whose sums are made in one go."""

_PILOT = 64
"""Values, and ..."""

_ROWS, _PILOT_ROWS = 64, 8
"""... rows of columns, the same: sums are made of deviations from the mean of the first few."""

_TILE = 256
"""Columns that are done side by side."""

_PARTS = 64
"""Pieces of work that are enough for every thread to have its share."""

_SHORT = 64
"""Runs of fewer neighbors are taken as columns."""


def moments(input: Tensor, bound: float) -> Tensor:
    """See `homeostat.kernels.moments_reference.moments`."""
    outer, sets, inner = input.shape
    size, dtype = input.numel(), input.dtype
    output = torch.empty((7, sets), dtype=torch.float64, device="cpu")
    if not size:
        output.fill_(torch.nan)
        output[0], output[6] = 0, 0
        return output
    if inner >= _SHORT or outer == 1:
        pieces = outer * -(-inner // _CHUNK)
        per = max(8, -(-pieces * sets // _PARTS))
        parts = -(-pieces // per)
        partial = torch.empty((parts, 7, sets), dtype=torch.float64, device="cpu")
        threads = threads_for(size, parts * sets)
        _runs(dtype, threads, input.data_ptr(), partial.data_ptr(), outer, sets, inner, per, parts, bound)
        columns, inner = sets, 1
    else:
        columns = sets * inner
        columns *= max(1, min(outer, _TILE // columns))  # several rows side by side make one wide row
        rows = -(-size // columns)
        tiles = -(-columns // _TILE)
        per = max(_ROWS, -(-rows * tiles // _PARTS))
        parts = -(-rows // per)
        partial = torch.empty((parts, 7, columns), dtype=torch.float64, device="cpu")
        scratch = torch.empty((parts * tiles, 6, _TILE), dtype=dtype, device="cpu")
        threads = threads_for(size, parts * tiles)
        places = (input.data_ptr(), partial.data_ptr(), scratch.data_ptr())
        _columns(dtype, threads, *places, size, columns, rows, per, parts, tiles, bound)
    threads = threads_for(partial.numel(), sets)
    _finish(torch.float64, threads, partial.data_ptr(), output.data_ptr(), parts, columns, sets, inner)
    return output


@njit(inline="always")
def _careful(x: Any, n: Any, stride: Any, bound: Any) -> Any:
    """Count, mean, sum of squared deviations, largest, zeros, beyond of the finite ones of n values; in float64."""
    count, mean, m2, largest, zeros, beyond = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(n):
        value = np.float64(x[i * stride])
        if np.isfinite(value):
            count += 1.0
            delta = value - mean
            mean += delta / count
            m2 += delta * (value - mean)
            largest = max(largest, abs(value))
            zeros += value == 0
            beyond += abs(value) > bound
    return count, mean, m2, largest, zeros, beyond


_RUNS = Fields("x partial outer sets inner per parts", "bound")


@kernel(_RUNS)
def _runs(real: Any) -> Any:
    record, size, zero, one = _RUNS.record, np.dtype(real).itemsize, real(0), real(1)
    most = np.finfo(real).max
    whole = np.uint32 if size == 4 else np.uint64
    mask, infinite = whole((1 << (8 * size - 1)) - 1), whole(np.array(np.inf, real).view(whole))

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        chunks = (a.inner + _CHUNK - 1) // _CHUNK
        bound = real(a.bound)
        begin, end = share(a, a.parts * a.sets)
        for unit in range(begin, end):
            part, chosen = unit // a.sets, unit % a.sets
            count, mean, m2, largest, zeros, beyond, bad = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for piece in range(part * a.per, min(a.outer * chunks, (part + 1) * a.per)):
                offset = piece % chunks * _CHUNK
                at = a.x + ((piece // chunks * a.sets + chosen) * a.inner + offset) * size
                n = min(_CHUNK, a.inner - offset)
                x, bits = carray(pointer(at), (n,), real), carray(pointer(at), (n,), whole)
                about, first, second, none, out, top = zero, zero, zero, zero, zero, whole(0)
                for i in range(min(n, _PILOT)):
                    about += x[i]
                about /= real(min(n, _PILOT))
                for i in range(n):
                    d = x[i] - about
                    first += d
                    second += d * d
                    none += one if x[i] == zero else zero
                    out += one if abs(x[i]) > bound else zero
                    top = max(top, whole(bits[i] & mask))  # without the sign, bits are in the order of magnitudes
                if top >= infinite or not (second <= most):
                    count_, mean_, m2_, largest_, zeros_, beyond_ = _careful(x, n, 1, a.bound)
                    bad += n - count_
                else:
                    shift = np.float64(first) / n
                    count_, mean_ = np.float64(n), np.float64(about) + shift
                    m2_ = np.float64(second) - shift * np.float64(first)
                    zeros_, beyond_ = np.float64(none), np.float64(out)
                    pattern = whole(top)
                    largest_ = np.float64(pattern.view(real))
                if count_ > 0:
                    mean, m2, count = merged(mean, m2, count, mean_, m2_, count_)
                zeros += zeros_
                beyond += beyond_
                largest = max(largest, largest_)
            results = carray(pointer(a.partial + 8 * part * 7 * a.sets), (7 * a.sets,), np.float64)
            results[chosen], results[a.sets + chosen], results[2 * a.sets + chosen] = count, mean, m2
            results[3 * a.sets + chosen], results[4 * a.sets + chosen] = largest, zeros
            results[5 * a.sets + chosen], results[6 * a.sets + chosen] = beyond, bad

    return run


_COLUMNS = Fields("x partial scratch size columns rows per parts tiles", "bound")


@kernel(_COLUMNS)
def _columns(real: Any) -> Any:
    record, size, zero, one = _COLUMNS.record, np.dtype(real).itemsize, real(0), real(1)
    most = np.finfo(real).max

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        bound, tail = real(a.bound), a.size - (a.rows - 1) * a.columns
        begin, end = share(a, a.parts * a.tiles)
        for unit in range(begin, end):
            left = unit % a.tiles * _TILE
            columns = min(_TILE, a.columns - left)
            # of one array with fixed distances, so that it is known not to overlap: about, first, second, ...
            s = carray(pointer(a.scratch + unit * 6 * _TILE * size), (6 * _TILE,), real)
            results = carray(pointer(a.partial + unit // a.tiles * 7 * a.columns * 8), (7 * a.columns,), np.float64)
            for k in range(7):
                for i in range(columns):
                    results[k * a.columns + left + i] = 0.0
            row, last = unit // a.tiles * a.per, min(a.rows, (unit // a.tiles + 1) * a.per)
            while row < last:
                m, n = min(_ROWS, last - row), columns
                if row + m == a.rows and tail < a.columns:  # the last row is shorter, and done alone
                    m, n = (m - 1, n) if m > 1 else (1, min(n, tail - left))
                few = min(m, _PILOT_ROWS)
                for i in range(6 * _TILE):
                    s[i] = zero
                for r in range(row, row + few):
                    x = carray(pointer(a.x + (r * a.columns + left) * size), (max(n, 0),), real)
                    for i in range(n):
                        s[i] += x[i]
                for i in range(_TILE):
                    s[i] /= real(few)
                for r in range(row, row + m):
                    x = carray(pointer(a.x + (r * a.columns + left) * size), (max(n, 0),), real)
                    for i in range(n):
                        value, d = x[i], x[i] - s[i]
                        s[_TILE + i] += d
                        s[2 * _TILE + i] += d * d
                        s[3 * _TILE + i] += one if value == zero else zero
                        s[4 * _TILE + i] += one if abs(value) > bound else zero
                        top = s[5 * _TILE + i]
                        s[5 * _TILE + i] = abs(value) if abs(value) > top else top
                unsound = zero
                for i in range(_TILE):
                    unsound += zero if s[2 * _TILE + i] <= most else one
                if unsound == zero:
                    for i in range(n):
                        at = left + i
                        shift = np.float64(s[_TILE + i]) / m
                        m2 = np.float64(s[2 * _TILE + i]) - shift * np.float64(s[_TILE + i])
                        mean, count = np.float64(s[i]) + shift, np.float64(m)
                        results[a.columns + at], results[2 * a.columns + at], results[at] = merged(
                            results[a.columns + at], results[2 * a.columns + at], results[at], mean, m2, count
                        )
                        results[3 * a.columns + at] = max(results[3 * a.columns + at], np.float64(s[5 * _TILE + i]))
                        results[4 * a.columns + at] += np.float64(s[3 * _TILE + i])
                        results[5 * a.columns + at] += np.float64(s[4 * _TILE + i])
                else:
                    for i in range(n):
                        at = left + i
                        x = carray(pointer(a.x + (row * a.columns + at) * size), ((m - 1) * a.columns + 1,), real)
                        count, mean, m2, largest, zeros, beyond = _careful(x, m, a.columns, a.bound)
                        if count > 0:
                            results[a.columns + at], results[2 * a.columns + at], results[at] = merged(
                                results[a.columns + at], results[2 * a.columns + at], results[at], mean, m2, count
                            )
                        results[3 * a.columns + at] = max(results[3 * a.columns + at], largest)
                        results[4 * a.columns + at] += zeros
                        results[5 * a.columns + at] += beyond
                        results[6 * a.columns + at] += m - count
                row += m

    return run


_FINISH = Fields("partial output parts columns sets inner")


@kernel(_FINISH)
def _finish(real: Any) -> Any:
    """Merge the parts of every set; column j is of set j // inner % sets."""
    record = _FINISH.record

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        output = carray(pointer(a.output), (7 * a.sets,), np.float64)
        begin, end = share(a, a.sets)
        for chosen in range(begin, end):
            count, total, m2, largest, zeros, beyond, bad = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for turn in range(2):
                for part in range(a.parts):
                    p = carray(pointer(a.partial + part * 7 * a.columns * 8), (7 * a.columns,), np.float64)
                    for first in range(chosen * a.inner, a.columns, a.sets * a.inner):
                        for j in range(first, first + a.inner):
                            if turn == 0:
                                count += p[j]
                                total += p[j] * p[a.columns + j]
                                largest = max(largest, p[3 * a.columns + j])
                                zeros += p[4 * a.columns + j]
                                beyond += p[5 * a.columns + j]
                                bad += p[6 * a.columns + j]
                            else:
                                away = p[a.columns + j] - total / count
                                m2 += p[2 * a.columns + j] + (p[j] * away * away if p[j] > 0 else 0.0)
            output[chosen], output[a.sets + chosen], output[2 * a.sets + chosen] = count, total / count, m2 / count
            output[3 * a.sets + chosen] = largest if count > 0 else np.nan
            output[4 * a.sets + chosen], output[5 * a.sets + chosen] = zeros / count, beyond / count
            output[6 * a.sets + chosen] = bad

    return run
