"""Normalization of rows compiled for the CPU.

Where an example (`groups` rows) fits the cache, one thread does all of it: `_forward`, `_backward`. Longer examples are
cut into chunks of columns that any thread may do, in `norm_rows_long_cpu`. Gradients of weight and bias are summed per
block of examples, a function of the shape alone, so the number of threads does not change them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from homeostat.kernels.allocation import empty_like
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for

CHUNK = 1024
"""Values whose sums are taken in the precision of the input; more are merged in float64."""

PILOT = 64
"""Values whose mean is subtracted before sums are taken."""

_LONG = 16384
"""The size of the largest example that is done in one go."""

_MANY = 32
"""Pieces of work that are enough for every thread to have its share."""

_BLOCK = 64
"""The most examples whose weight gradients are added one after the other."""

_PIECE = 256
"""Columns whose parts are merged by one thread."""


def normalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.norm_rows.norm_rows`."""
    x, size, columns = input.contiguous(), input.numel(), length * groups
    y = empty_like(x)
    if not size:
        return y, torch.empty((2, 0), dtype=torch.float64, device="cpu")
    rows = size // length
    statistics = torch.empty((2, rows), dtype=torch.float64, device="cpu")
    w = constant(1.0, columns, x.dtype) if weight is None else weight.contiguous()
    b = constant(0.0, columns, x.dtype) if bias is None else bias.contiguous()
    r = residual if residual is None else residual.contiguous()
    places = (
        x.data_ptr(), w.data_ptr(), b.data_ptr(), 0 if r is None else r.data_ptr(), y.data_ptr(), statistics.data_ptr()
    )  # fmt: skip
    if length > _LONG and rows < _MANY:
        from homeostat.kernels import norm_rows_long_cpu

        norm_rows_long_cpu.normalize(places, x, rows, length, groups, center, eps, slope)
    else:
        _forward(x.dtype, threads_for(size, rows), *places, rows, length, groups, center, eps, slope)
    return y, statistics


def gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    statistics: Tensor,
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_rows.norm_rows_gradient`."""
    g, x, size, columns = grad.contiguous(), input.contiguous(), input.numel(), length * groups
    w = constant(1.0, columns, x.dtype) if weight is None else weight.contiguous()
    b = constant(0.0, columns, x.dtype) if bias is None else bias.contiguous()
    y = output if output is None else output.contiguous()
    dx = empty_like(x)
    dr = torch.empty(0, dtype=x.dtype, device="cpu") if y is None else empty_like(y)
    dw, db = torch.empty_like(w) if affine else dr, torch.empty_like(b) if affine else dr
    places: tuple[int, ...] = (
        g.data_ptr(), x.data_ptr(), w.data_ptr(), b.data_ptr(), 0 if y is None else y.data_ptr(),
        statistics.data_ptr(), dx.data_ptr(), dr.data_ptr(),
    )  # fmt: skip
    shape = (size // columns if size else 0, length, groups)
    if not size:
        dw.zero_(), db.zero_()
    elif columns > _LONG:
        from homeostat.kernels import norm_rows_long_cpu

        places += (dw.data_ptr(), db.data_ptr()) if affine else (0, 0)
        norm_rows_long_cpu.gradient(places, x, *shape, center, eps, slope)
    else:
        _in_blocks(places, x, dw, db, *shape, center, eps, slope, affine)
    return (
        dx, dw if affine and weight is not None else torch.empty(0, dtype=x.dtype, device="cpu"),
        db if affine and bias is not None else torch.empty(0, dtype=x.dtype, device="cpu"), dr,
    )  # fmt: skip


def _in_blocks(
    places: tuple[int, ...],
    x: Tensor,
    dw: Tensor,
    db: Tensor,
    examples: int,
    length: int,
    groups: int,
    center: bool,
    eps: float,
    slope: float,
    affine: bool,
) -> None:
    """The gradients where examples fit the cache; blocks of examples have their own parts of dw and db."""
    size, columns = x.numel(), length * groups
    per = _BLOCK if size <= 4 * _LONG else min(_BLOCK, max(4, -(-examples // _MANY)))
    blocks, shape = -(-examples // per), (examples, length, groups, per, center, eps, slope)
    if not affine:
        _backward(x.dtype, threads_for(size, blocks), *places, 0, 0, 0, *shape)
    elif blocks == 1:
        _backward(x.dtype, 1, *places, dw.data_ptr(), db.data_ptr(), 0, *shape)
    else:
        parts = torch.empty((blocks, 2, columns), dtype=x.dtype, device="cpu")
        first, stride = parts.data_ptr(), columns * x.itemsize
        _backward(x.dtype, threads_for(size, blocks), *places, first, first + stride, 2 * stride, *shape)
        threads = threads_for(parts.numel(), 2 * (-(-columns // _PIECE)))
        _merge(x.dtype, threads, first, dw.data_ptr(), db.data_ptr(), blocks, columns)


@lru_cache(maxsize=32)
def constant(value: float, size: int, dtype: torch.dtype) -> Tensor:
    """What stands in for a weight or bias that is absent: fewer kernels, and a load from the cache costs nothing."""
    return torch.full((size,), value, dtype=dtype, device="cpu")


@njit(inline="always")
def pilot(x: Any, n: Any, few: Any, center: Any) -> Any:
    """The mean of the first PILOT values, or of all if they are fewer; `few` is one over their number."""
    about = few - few
    if center:
        for i in range(min(n, PILOT)):
            about += x[i]
    return about * few


@njit(inline="always")
def moments(x: Any, n: Any, about: Any, inverse: Any, center: Any) -> Any:
    """Mean and sum of squared deviations of n values, float64, given their `pilot` and 1 / n.

    One pass over deviations from the pilot. That is at most sqrt(n / PILOT) standard deviations off, whatever the
    values, so that the sums lose no more than a factor of 1 + n / PILOT of their last digit.
    Source: shifted data, Chan, Golub and LeVeque 1983, doi:10.1080/00031305.1983.10483115.
    """
    first, second = about - about, about - about
    for i in range(n):
        d = x[i] - about
        first += d
        second += d * d
    if not second < np.inf:
        return _exact_moments(x, n, inverse, center)
    if not center:
        return 0.0, np.float64(second)
    shift = np.float64(first) * inverse
    return np.float64(about) + shift, np.float64(second) - shift * np.float64(first)


@njit
def _exact_moments(x: Any, n: Any, inverse: Any, center: Any) -> Any:
    """The same in float64, for values whose squares or sums are too large for their own type."""
    mean, m2 = 0.0, 0.0
    if center:
        for i in range(n):
            mean += np.float64(x[i])
        mean *= inverse
    for i in range(n):
        d = np.float64(x[i]) - mean
        m2 += d * d
    return mean, m2


@njit(inline="always")
def merged(mean: Any, m2: Any, count: Any, mean_: Any, m2_: Any, count_: Any) -> Any:
    """Mean, sum of squared deviations and count of two sets together: Chan et al. 1979, STAN-CS-79-773."""
    delta, part = mean_ - mean, count_ / (count + count_)
    return mean + delta * part, m2 + m2_ + delta * delta * count * part, count + count_


@njit(inline="always")
def standardization(mean: Any, variance: Any, eps: Any, real: Any) -> Any:
    """(high, scale, shift) with (x - mean) / sqrt(variance + eps) = (x - high) * scale + shift, as `real` numbers.

    high is the mean, rounded: x - high loses no digits, and shift makes good for the rounding.
    """
    factor = 1 / np.sqrt(variance + eps)
    high = real(mean)
    return high, real(factor), real((np.float64(high) - mean) * factor)


@njit(inline="always")
def express(x: Any, w: Any, b: Any, r: Any, y: Any, n: Any, numbers: Any, added: Any) -> Any:
    """The output of one row, or of a part of it."""
    high, scale, shift, slope, floor, zero, one = numbers
    if added:
        for i in range(n):
            z = ((x[i] - high) * scale + shift) * w[i] + b[i] + r[i]
            low = slope * z
            y[i] = z if not (z < zero) else (low if low > floor else floor)
    elif slope == one:
        for i in range(n):
            y[i] = ((x[i] - high) * scale + shift) * w[i] + b[i]
    else:
        for i in range(n):
            z = ((x[i] - high) * scale + shift) * w[i] + b[i]
            low = slope * z
            y[i] = z if not (z < zero) else (low if low > floor else floor)


_FORWARD = Fields("x weight bias residual y statistics rows length groups center", "eps slope")


@kernel(_FORWARD)
def _forward(real: Any) -> Any:
    record, size, zero, one = _FORWARD.record, np.dtype(real).itemsize, real(0), real(1)
    relu, leaky = real(0), real(-np.inf)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        mean = carray(pointer(a.statistics), (a.rows,), np.float64)
        variance = carray(pointer(a.statistics + 8 * a.rows), (a.rows,), np.float64)
        slope = real(a.slope)
        floor = relu if slope == zero else leaky  # 0 * -inf is NaN, relu(-inf) is 0
        few, inverse = real(1 / min(a.length, PILOT)), 1 / min(a.length, CHUNK)
        per_value = 1 / a.length
        begin, end = share(a, a.rows)
        n, following = a.length, zero
        for row in range(begin, end):
            at, column = row * n * size, row % a.groups * n * size
            x, y = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), real)
            about = following if row > begin else pilot(x, n, few, a.center)
            m, m2 = moments(x, min(n, CHUNK), about, inverse, a.center)
            count = np.float64(min(n, CHUNK))
            for offset in range(CHUNK, n, CHUNK):
                some = min(CHUNK, n - offset)
                part = carray(pointer(a.x + at + offset * size), (some,), real)
                about = pilot(part, some, real(1 / min(some, PILOT)), a.center)
                m_, m2_ = moments(part, some, about, 1 / some, a.center)
                m, m2, count = merged(m, m2, count, m_, m2_, np.float64(some))
            if row + 1 < end:  # early, so that memory works on the next row while this one is written
                following = pilot(carray(pointer(a.x + at + n * size), (n,), real), n, few, a.center)
            mean[row], variance[row] = m, m2 * per_value
            high, scale, shift = standardization(m, m2 * per_value, a.eps, real)
            w, b = carray(pointer(a.weight + column), (n,), real), carray(pointer(a.bias + column), (n,), real)
            r = carray(pointer(a.residual + at), (n,), real)
            express(x, w, b, r, y, n, (high, scale, shift, slope, floor, zero, one), a.residual != 0)

    return run


@njit(inline="always")
def rectify(
    g: Any, x: Any, w: Any, b: Any, y: Any, n: Any, numbers: Any, slope: Any, zero: Any, given: Any, d: Any
) -> Any:
    """The gradient before the activation, into d; its side is read off the output y, where given."""
    high, scale, shift = numbers
    if given:
        if slope == zero:
            for i in range(n):
                d[i] = zero if y[i] <= zero else g[i]
        else:
            for i in range(n):
                d[i] = slope * g[i] if y[i] <= zero else g[i]
    elif slope == zero:
        for i in range(n):
            d[i] = zero if ((x[i] - high) * scale + shift) * w[i] + b[i] <= zero else g[i]
    else:
        for i in range(n):
            d[i] = slope * g[i] if ((x[i] - high) * scale + shift) * w[i] + b[i] <= zero else g[i]


@njit(inline="always")
def sums(d: Any, x: Any, w: Any, n: Any, numbers: Any, zero: Any) -> Any:
    """The sums of d * w, and of that times the normalized x."""
    high, scale, shift = numbers
    first, second = zero, zero
    for i in range(n):
        e = d[i] * w[i]
        first += e
        second += e * ((x[i] - high) * scale + shift)
    return first, second


@njit(inline="always")
def accumulate(d: Any, x: Any, n: Any, numbers: Any, dw: Any, db: Any) -> Any:
    """Add this row's part to the gradients of weight and bias; with more arrays, the loop would not vectorize."""
    high, scale, shift = numbers
    for i in range(n):
        dw[i] += d[i] * ((x[i] - high) * scale + shift)
        db[i] += d[i]


@njit(inline="always")
def descend(d: Any, x: Any, w: Any, n: Any, numbers: Any, first: Any, second: Any, dx: Any) -> Any:
    """The gradient of the input, given the means of the two sums."""
    high, scale, shift = numbers
    constant, factor = first + shift * second, scale * second
    for i in range(n):
        dx[i] = (d[i] * w[i] - constant - (x[i] - high) * factor) * scale


_BACKWARD = Fields("g x weight bias y statistics dx dr dw db stride examples length groups per center", "eps slope")


@kernel(_BACKWARD)
def _backward(real: Any) -> Any:
    """dw and db are the first block's; those of later blocks follow at the stride."""
    record, size, zero, one = _BACKWARD.record, np.dtype(real).itemsize, real(0), real(1)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        rows, n, columns, slope = a.examples * a.groups, a.length, a.length * a.groups, real(a.slope)
        mean = carray(pointer(a.statistics), (rows,), np.float64)
        variance = carray(pointer(a.statistics + 8 * rows), (rows,), np.float64)
        inverse = real(1 / n)
        begin, end = share(a, (a.examples + a.per - 1) // a.per)
        for unit in range(begin, end):
            dws, dbs = a.dw + unit * a.stride, a.db + unit * a.stride
            if a.dw:
                dw, db = carray(pointer(dws), (columns,), real), carray(pointer(dbs), (columns,), real)
                for i in range(columns):
                    dw[i] = zero
                for i in range(columns):
                    db[i] = zero
            last = min(a.examples, (unit + 1) * a.per) * a.groups
            for row in range(unit * a.per * a.groups, last):
                at, column = row * n * size, row % a.groups * n * size
                numbers = standardization(mean[row], variance[row], a.eps, real)
                g, x = carray(pointer(a.g + at), (n,), real), carray(pointer(a.x + at), (n,), real)
                dx, w = carray(pointer(a.dx + at), (n,), real), carray(pointer(a.weight + column), (n,), real)
                d = carray(pointer(a.g + at if slope == one else (a.dr + at if a.y else a.dx + at)), (n,), real)
                if slope != one:
                    b, y = carray(pointer(a.bias + column), (n,), real), carray(pointer(a.y + at), (n,), real)
                    rectify(g, x, w, b, y, n, numbers, slope, zero, a.y != 0, d)
                first, second = sums(d, x, w, n, numbers, zero)
                first = first * inverse if a.center else zero
                second *= inverse
                if a.dw:
                    dw, db = carray(pointer(dws + column), (n,), real), carray(pointer(dbs + column), (n,), real)
                    accumulate(d, x, n, numbers, dw, db)
                if slope != one and a.y == 0:  # d is dx: only under one name is it known to be the same
                    descend(dx, x, w, n, numbers, first, second, dx)
                else:
                    descend(d, x, w, n, numbers, first, second, dx)

    return run


_MERGE = Fields("parts dw db blocks columns")


@kernel(_MERGE)
def _merge(real: Any) -> Any:
    """Sums the blocks' parts in pairs, pairs of pairs, and so on: vectorized and accurate."""
    record, size = _MERGE.record, np.dtype(real).itemsize

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        pieces = (a.columns + _PIECE - 1) // _PIECE
        begin, end = share(a, 2 * pieces)
        for unit in range(begin, end):
            offset = unit % pieces * _PIECE
            n, at = min(_PIECE, a.columns - offset), (unit // pieces * a.columns + offset) * size
            step = 1
            while step < a.blocks:
                for first in range(0, a.blocks - step, 2 * step):
                    p = carray(pointer(a.parts + first * 2 * a.columns * size + at), (n,), real)
                    q = carray(pointer(a.parts + (first + step) * 2 * a.columns * size + at), (n,), real)
                    for i in range(n):
                        p[i] += q[i]
                step *= 2
            to = a.db if unit >= pieces else a.dw
            if to:
                p = carray(pointer(a.parts + at), (n,), real)
                y = carray(pointer(to + offset * size), (n,), real)
                for i in range(n):
                    y[i] = p[i]

    return run
