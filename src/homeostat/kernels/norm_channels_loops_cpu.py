"""The inner loops of batch, instance and group normalization: rows of channels, and runs of positions.

`*_rows` work on rows of `width` channels, `stride` bytes apart, with parameters per column; `*_run` on the contiguous
positions of one channel, with one set of parameters. Everything but float64 totals is an address or a number.
`real` is the element type and `size` its bytes. `keep` is the residual's, output's or another optional address, or 0.

Sums are made in lanes of `real` over a block that stays in the cache, and then added up in float64. The activation
multiplies what is below 0 by `slope` (`fall` is -slope, and never -0). `limit`, the largest finite number for slope 0
and infinity otherwise, keeps 0 * inf out of it. `floor` is 0, or -inf for slope 1, where every gradient passes.
Not random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from homeostat.kernels.launch import FASTMATH, pointer
from homeostat.kernels.memory_cpu import AHEAD, prefetch, write

LANES = 8192
"""Elements of a block of rows: they stay in the first level of the cache between two passes."""

SEGMENT = 512
"""Elements of a run between two requests for what is ahead."""

compiled = njit(fastmath=FASTMATH, error_model="numpy", no_cpython_wrapper=True)
inlined = njit(inline="always")
"""Compiled once, and called; or made a part of what calls it: every level of calls multiplies the time to compile."""


@compiled
def moments_of_rows(
    x: Any, rows: Any, width: Any, stride: Any, lanes: Any, mean: Any, squares: Any, size: Any, real: Any
) -> None:
    """Mean and sum of squared deviations of every column, to the float64 addresses `mean` and `squares`."""
    s = carray(pointer(lanes), (width,), real)
    t = carray(pointer(lanes + width * size), (width,), real)
    q = carray(pointer(lanes + 2 * width * size), (width,), real)
    m, m2 = carray(pointer(mean), (width,), np.float64), carray(pointer(squares), (width,), np.float64)
    for c in range(width):
        m[c] = 0.0
        m2[c] = 0.0
    block = max(4, LANES // width)
    for first in range(0, rows, block):
        n = min(block, rows - first)
        at = x + first * stride
        _sum_rows(at, n, width, stride, s, size, real)
        _deviations_of_rows(at, n, width, stride, s, t, q, real)
        inverse, share = 1.0 / n, n / (first + n)
        spread = 0.0
        for c in range(width):
            d = np.float64(s[c]) + np.float64(t[c]) * inverse - m[c]
            own = np.float64(q[c]) - np.float64(t[c]) * np.float64(t[c]) * inverse
            m[c] += d * share
            m2[c] += own + d * d * (first * share)
            spread += own * 0.0
        if spread != 0.0:  # infinite or not a number: the lanes may have been too narrow
            _exact_moments_of_rows(x, rows, width, stride, m, m2, real)
            break


@inlined
def _sum_rows(x: Any, rows: Any, width: Any, stride: Any, s: Any, size: Any, real: Any) -> None:
    """The mean of every column, to s."""
    for c in range(width):
        s[c] = real(0)
    for r in range(0, rows - 3, 4):
        at = x + r * stride
        x0, x1 = carray(pointer(at), (width,), real), carray(pointer(at + stride), (width,), real)
        x2, x3 = carray(pointer(at + 2 * stride), (width,), real), carray(pointer(at + 3 * stride), (width,), real)
        for i in range(0, 4 * width * size, 64):
            prefetch(at + AHEAD + i)
        for c in range(width):
            s[c] += (x0[c] + x1[c]) + (x2[c] + x3[c])
    for r in range(rows // 4 * 4, rows):
        x0 = carray(pointer(x + r * stride), (width,), real)
        for c in range(width):
            s[c] += x0[c]
    inverse = real(1.0 / rows)
    for c in range(width):
        s[c] *= inverse


@inlined
def _deviations_of_rows(x: Any, rows: Any, width: Any, stride: Any, s: Any, t: Any, q: Any, real: Any) -> None:
    """Sum of deviations from s, and of their squares, to t and q."""
    for c in range(width):
        t[c] = real(0)
    for c in range(width):
        q[c] = real(0)
    for r in range(0, rows - 3, 4):
        at = x + r * stride
        x0, x1 = carray(pointer(at), (width,), real), carray(pointer(at + stride), (width,), real)
        x2, x3 = carray(pointer(at + 2 * stride), (width,), real), carray(pointer(at + 3 * stride), (width,), real)
        for c in range(width):
            d0, d1, d2, d3 = x0[c] - s[c], x1[c] - s[c], x2[c] - s[c], x3[c] - s[c]
            t[c] += (d0 + d1) + (d2 + d3)
            q[c] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)
    for r in range(rows // 4 * 4, rows):
        x0 = carray(pointer(x + r * stride), (width,), real)
        for c in range(width):
            d0 = x0[c] - s[c]
            t[c] += d0
            q[c] += d0 * d0


@inlined
def _exact_moments_of_rows(x: Any, rows: Any, width: Any, stride: Any, m: Any, m2: Any, real: Any) -> None:
    """The same in float64, for numbers whose squares or sums are too large for `real`."""
    for c in range(width):
        total, squares = 0.0, 0.0
        for r in range(rows):
            total += np.float64(carray(pointer(x + r * stride), (width,), real)[c])
        mean = total / rows
        for r in range(rows):
            d = np.float64(carray(pointer(x + r * stride), (width,), real)[c]) - mean
            squares += d * d
        m[c], m2[c] = mean, squares


@compiled
def apply_rows(
    x: Any, keep: Any, y: Any, rows: Any, width: Any, stride: Any, parameters: Any, gap: Any,
    fall: Any, limit: Any, past: Any, size: Any, real: Any,
) -> None:  # fmt: skip
    """y = activation((x - center) * scale + shift + residual); the three parameters are `gap` bytes apart."""
    center = carray(pointer(parameters), (width,), real)
    scale = carray(pointer(parameters + gap), (width,), real)
    shift = carray(pointer(parameters + 2 * gap), (width,), real)
    zero = real(0)
    for r in range(rows):
        at = r * stride
        x0, y0 = carray(pointer(x + at), (width,), real), carray(pointer(y + at), (width,), real)
        for i in range(0, width * size, 64):
            prefetch(x + at + AHEAD + i)
        if keep:
            r0 = carray(pointer(keep + at), (width,), real)
            if past:
                for c in range(width):
                    z = ((x0[c] - center[c]) * scale[c] + shift[c]) + r0[c]
                    f = fall * min(-z, limit)
                    write(y0, c, f if z < zero else z)
            else:
                for c in range(width):
                    z = ((x0[c] - center[c]) * scale[c] + shift[c]) + r0[c]
                    f = fall * min(-z, limit)
                    y0[c] = f if z < zero else z
        elif past:
            for c in range(width):
                z = (x0[c] - center[c]) * scale[c] + shift[c]
                f = fall * min(-z, limit)
                write(y0, c, f if z < zero else z)
        else:
            for c in range(width):
                z = (x0[c] - center[c]) * scale[c] + shift[c]
                f = fall * min(-z, limit)
                y0[c] = f if z < zero else z


@compiled
def sums_of_rows(
    g: Any, x: Any, keep: Any, masked: Any, rows: Any, width: Any, stride: Any, parameters: Any, gap: Any,
    lanes: Any, first_sum: Any, second_sum: Any, slope: Any, floor: Any, limit: Any, past: Any, size: Any, real: Any,
) -> None:  # fmt: skip
    """Sum of d and of d * (x - center) of every column in float64, where d is the gradient before the activation.

    With an output in `keep`, its sign says where the activation was negative, and d is written to `masked`.
    """
    center = carray(pointer(parameters), (width,), real)
    scale = carray(pointer(parameters + gap), (width,), real)
    shift = carray(pointer(parameters + 2 * gap), (width,), real)
    t, q = carray(pointer(lanes), (width,), real), carray(pointer(lanes + width * size), (width,), real)
    s1, s2 = carray(pointer(first_sum), (width,), np.float64), carray(pointer(second_sum), (width,), np.float64)
    zero = real(0)
    for c in range(width):
        s1[c] = 0.0
        s2[c] = 0.0
    block = max(4, LANES // width)
    for first in range(0, rows, block):
        for c in range(width):
            t[c] = zero
        for c in range(width):
            q[c] = zero
        for r in range(first, min(first + block, rows)):
            at = r * stride
            x0, g0 = carray(pointer(x + at), (width,), real), carray(pointer(g + at), (width,), real)
            for i in range(0, width * size, 64):
                prefetch(x + at + AHEAD + i)
                prefetch(g + at + AHEAD + i)
            if keep:
                y0, d0 = carray(pointer(keep + at), (width,), real), carray(pointer(masked + at), (width,), real)
                for i in range(0, width * size, 64):
                    prefetch(keep + at + AHEAD + i)
                if past:
                    for c in range(width):
                        f = slope * min(max(g0[c], -limit), limit)
                        d = f if y0[c] <= zero else g0[c]
                        write(d0, c, d)
                        t[c] += d
                        q[c] += d * (x0[c] - center[c])
                else:
                    for c in range(width):
                        f = slope * min(max(g0[c], -limit), limit)
                        d = f if y0[c] <= zero else g0[c]
                        d0[c] = d
                        t[c] += d
                        q[c] += d * (x0[c] - center[c])
            else:
                for c in range(width):
                    e = x0[c] - center[c]
                    f = slope * min(max(g0[c], -limit), limit)
                    d = f if e * scale[c] + shift[c] <= floor else g0[c]
                    t[c] += d
                    q[c] += d * e
        for c in range(width):
            s1[c] += np.float64(t[c])
            s2[c] += np.float64(q[c])


@compiled
def gradient_rows(
    g: Any, x: Any, dx: Any, rows: Any, width: Any, stride: Any, parameters: Any, gap: Any,
    slope: Any, floor: Any, limit: Any, past: Any, size: Any, real: Any,
) -> None:  # fmt: skip
    """dx = d * scale + (x - center) * tilt + level, where d is the gradient before the activation."""
    center = carray(pointer(parameters), (width,), real)
    scale = carray(pointer(parameters + gap), (width,), real)
    shift = carray(pointer(parameters + 2 * gap), (width,), real)
    tilt = carray(pointer(parameters + 3 * gap), (width,), real)
    level = carray(pointer(parameters + 4 * gap), (width,), real)
    for r in range(rows):
        at = r * stride
        x0, g0 = carray(pointer(x + at), (width,), real), carray(pointer(g + at), (width,), real)
        dx0 = carray(pointer(dx + at), (width,), real)
        for i in range(0, width * size, 64):
            prefetch(x + at + AHEAD + i)
            prefetch(g + at + AHEAD + i)
        if past:
            for c in range(width):
                e = x0[c] - center[c]
                f = slope * min(max(g0[c], -limit), limit)
                d = f if e * scale[c] + shift[c] <= floor else g0[c]
                write(dx0, c, d * scale[c] + (e * tilt[c] + level[c]))
        else:
            for c in range(width):
                e = x0[c] - center[c]
                f = slope * min(max(g0[c], -limit), limit)
                d = f if e * scale[c] + shift[c] <= floor else g0[c]
                dx0[c] = d * scale[c] + (e * tilt[c] + level[c])


@compiled
def moments_of_run(x: Any, n: Any, real: Any) -> Any:
    """Mean and sum of squared deviations of n numbers."""
    x0 = carray(pointer(x), (n,), real)
    s, t, q = real(0), real(0), real(0)
    for i in range(n):
        s += x0[i]
    s *= real(1.0 / n)
    for i in range(n):
        d = x0[i] - s
        t += d
        q += d * d
    mean, squares = np.float64(s) + np.float64(t) / n, np.float64(q) - np.float64(t) * np.float64(t) / n
    if squares * 0.0 == 0.0:
        return mean, squares
    total, squares = 0.0, 0.0  # infinite or not a number: the lanes may have been too narrow
    for i in range(n):
        total += np.float64(x0[i])
    mean = total / n
    for i in range(n):
        squares += (np.float64(x0[i]) - mean) * (np.float64(x0[i]) - mean)
    return mean, squares


@compiled
def apply_run(
    x: Any, keep: Any, y: Any, length: Any, center: Any, scale: Any, shift: Any, fall: Any, limit: Any, past: Any,
    size: Any, real: Any,
) -> None:  # fmt: skip
    """y = activation((x - center) * scale + shift + residual)."""
    zero = real(0)
    for first in range(0, length, SEGMENT):
        n, at = min(SEGMENT, length - first), first * size
        x0, y0 = carray(pointer(x + at), (n,), real), carray(pointer(y + at), (n,), real)
        for i in range(0, n * size, 64):
            prefetch(x + at + AHEAD + i)
        if keep:
            r0 = carray(pointer(keep + at), (n,), real)
            for i in range(0, n * size, 64):
                prefetch(keep + at + AHEAD + i)
            if past:
                for i in range(n):
                    z = ((x0[i] - center) * scale + shift) + r0[i]
                    f = fall * min(-z, limit)
                    write(y0, i, f if z < zero else z)
            else:
                for i in range(n):
                    z = ((x0[i] - center) * scale + shift) + r0[i]
                    f = fall * min(-z, limit)
                    y0[i] = f if z < zero else z
        elif past:
            for i in range(n):
                z = (x0[i] - center) * scale + shift
                f = fall * min(-z, limit)
                write(y0, i, f if z < zero else z)
        else:
            for i in range(n):
                z = (x0[i] - center) * scale + shift
                f = fall * min(-z, limit)
                y0[i] = f if z < zero else z


@compiled
def sums_of_run(
    g: Any, x: Any, keep: Any, masked: Any, n: Any, center: Any, scale: Any, shift: Any,
    slope: Any, floor: Any, limit: Any, past: Any, real: Any,
) -> Any:  # fmt: skip
    """Sum of d and of d * (x - center); as `sums_of_rows`."""
    zero = real(0)
    t, q = zero, zero
    x0, g0 = carray(pointer(x), (n,), real), carray(pointer(g), (n,), real)
    if keep:
        y0, d0 = carray(pointer(keep), (n,), real), carray(pointer(masked), (n,), real)
        if past:
            for i in range(n):
                f = slope * min(max(g0[i], -limit), limit)
                d = f if y0[i] <= zero else g0[i]
                write(d0, i, d)
                t += d
                q += d * (x0[i] - center)
        else:
            for i in range(n):
                f = slope * min(max(g0[i], -limit), limit)
                d = f if y0[i] <= zero else g0[i]
                d0[i] = d
                t += d
                q += d * (x0[i] - center)
    else:
        for i in range(n):
            e = x0[i] - center
            f = slope * min(max(g0[i], -limit), limit)
            d = f if e * scale + shift <= floor else g0[i]
            t += d
            q += d * e
    return np.float64(t), np.float64(q)


@compiled
def gradient_run(
    g: Any, x: Any, dx: Any, length: Any, center: Any, scale: Any, shift: Any, tilt: Any, level: Any,
    slope: Any, floor: Any, limit: Any, past: Any, size: Any, real: Any,
) -> None:  # fmt: skip
    """dx = d * scale + (x - center) * tilt + level."""
    for first in range(0, length, SEGMENT):
        n, at = min(SEGMENT, length - first), first * size
        x0, g0 = carray(pointer(x + at), (n,), real), carray(pointer(g + at), (n,), real)
        dx0 = carray(pointer(dx + at), (n,), real)
        for i in range(0, n * size, 64):
            prefetch(x + at + AHEAD + i)
            prefetch(g + at + AHEAD + i)
        if past:
            for i in range(n):
                e = x0[i] - center
                f = slope * min(max(g0[i], -limit), limit)
                d = f if e * scale + shift <= floor else g0[i]
                write(dx0, i, d * scale + (e * tilt + level))
        else:
            for i in range(n):
                e = x0[i] - center
                f = slope * min(max(g0[i], -limit), limit)
                d = f if e * scale + shift <= floor else g0[i]
                dx0[i] = d * scale + (e * tilt + level)
