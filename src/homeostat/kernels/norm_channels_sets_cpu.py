"""What happens between the passes of batch, instance and group normalization: partial sums become parameters.

Partial sums of a unit of work are two float64 rows of `width` columns: mean and sum of squared deviations, or the two
sums of the gradient. Where rows of channels are narrow, `fold` of them make one row of width = fold * channels, and
column v belongs to channel v % channels. Merged in a fixed order, by Chan's formula. Addresses and numbers, as in
`norm_channels_loops_cpu`. Not random.

Source: Chan, Golub, LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from homeostat.kernels.launch import pointer
from homeostat.kernels.norm_channels_loops_cpu import compiled, inlined


@compiled
def merge_moments(
    partials: Any, counts: Any, units: Any, width: Any, channels: Any, tail: Any, tails: Any, totals: Any,
    size: Any, real: Any,
) -> Any:  # fmt: skip
    """Mean and sum of squared deviations of every channel, to two rows at `totals`; returns how many elements each has.

    The `tails` rows of channels at `tail` are in no unit: they are merged as they are, one element per channel.
    """
    mean, squares = _row(totals, 0, channels), _row(totals, channels, channels)
    count_of = carray(pointer(counts), (units,), np.int64)
    for c in range(channels):
        mean[c] = 0.0
        squares[c] = 0.0
    count = 0
    for unit in range(units):
        own = count_of[unit]
        if own == 0:
            continue
        for first in range(0, width, channels):
            m, q = (
                _row(partials, 2 * unit * width + first, channels),
                _row(partials, (2 * unit + 1) * width + first, channels),
            )
            share = own / (count + own)
            for c in range(channels):
                d = m[c] - mean[c]
                mean[c] += d * share
                squares[c] += q[c] + d * d * (count * share)
            count += own
    for row in range(tails):
        x = carray(pointer(tail + row * channels * size), (channels,), real)
        share = 1.0 / (count + 1)
        for c in range(channels):
            d = np.float64(x[c]) - mean[c]
            mean[c] += d * share
            squares[c] += d * d * (count * share)
        count += 1
    return count


@compiled
def moments_of_sets(totals: Any, count: Any, channels: Any, per_set: Any, mean: Any, variance: Any) -> None:
    """From the channels' totals to the mean and biased variance of sets of `per_set` channels each."""
    sets = channels // per_set
    means, squares = _row(totals, 0, channels), _row(totals, channels, channels)
    m, v = _row(mean, 0, sets), _row(variance, 0, sets)
    if per_set == 1:
        inverse = 1.0 / count
        for c in range(channels):
            m[c] = means[c]
            v[c] = squares[c] * inverse
    else:
        for s in range(sets):
            center, spread = 0.0, 0.0
            for c in range(s * per_set, (s + 1) * per_set):
                center += means[c]
            center /= per_set
            for c in range(s * per_set, (s + 1) * per_set):
                spread += squares[c] + count * (means[c] - center) * (means[c] - center)
            m[s] = center
            v[s] = spread / (count * per_set)


@compiled
def prepare(
    mean: Any, variance: Any, wide: Any, weight: Any, bias: Any, channels: Any, per_set: Any, width: Any,
    parameters: Any, totals: Any, eps: Any, size: Any, real: Any,
) -> None:  # fmt: skip
    """Center, scale and shift of every column, to three rows at `parameters`: y = (x - center) * scale + shift.

    The center is the mean rounded to `real`. What is left of the mean, and 1 / deviation, go to two rows at `totals`.
    """
    center, scale, shift = _parameters(parameters, 0, channels, width, size, real)
    rest, inverse = _row(totals, 0, channels), _row(totals, channels, channels)
    _spread(mean, wide, rest, channels, per_set, real)
    _spread(variance, wide, inverse, channels, per_set, real)
    for c in range(channels):
        inverse[c] = 1.0 / np.sqrt(inverse[c] + eps)
    for c in range(channels):
        center[c] = real(rest[c])
        rest[c] -= np.float64(center[c])
    if weight:
        w = carray(pointer(weight), (channels,), real)
        for c in range(channels):
            scale[c] = real(np.float64(w[c]) * inverse[c])
    else:
        for c in range(channels):
            scale[c] = real(inverse[c])
    if bias:
        b = carray(pointer(bias), (channels,), real)
        for c in range(channels):
            shift[c] = real(np.float64(b[c]) - rest[c] * np.float64(scale[c]))
    else:
        for c in range(channels):
            shift[c] = real(-rest[c] * np.float64(scale[c]))
    _repeat(parameters, 3, channels, width, size, real)


@compiled
def merge_sums(partials: Any, units: Any, width: Any, channels: Any, totals: Any, sums: Any) -> None:
    """Sum of d and of d * normalized input of every channel, to two float64 rows at `sums`."""
    s1, s2 = _row(sums, 0, channels), _row(sums, channels, channels)
    rest, inverse = _row(totals, 0, channels), _row(totals, channels, channels)
    for c in range(2 * channels):
        _row(sums, 0, 2 * channels)[c] = 0.0
    for unit in range(units):
        for first in range(0, width, channels):
            t = _row(partials, 2 * unit * width + first, channels)
            q = _row(partials, (2 * unit + 1) * width + first, channels)
            for c in range(channels):
                s1[c] += t[c]
                s2[c] += q[c]
    for c in range(channels):
        s2[c] = (s2[c] - rest[c] * s1[c]) * inverse[c]


@compiled
def prepare_gradient(
    sums: Any, inverse_count: Any, channels: Any, per_set: Any, width: Any, parameters: Any, totals: Any,
    size: Any, real: Any,
) -> None:  # fmt: skip
    """Tilt and level of every column, to two rows after those of `prepare`; 0 for inverse_count 0: constant statistics.

    The gradient of a set: dx = (w d - mean(w d) - xhat mean(w d xhat)) / deviation.
    """
    _, scale, _ = _parameters(parameters, 0, channels, width, size, real)
    tilt, level, _ = _parameters(parameters, 3, channels, width, size, real)
    rest, inverse = _row(totals, 0, channels), _row(totals, channels, channels)
    s1, s2 = _row(sums, 0, channels), _row(sums, channels, channels)
    if inverse_count == 0.0:
        for c in range(channels):
            tilt[c] = real(0)
        for c in range(channels):
            level[c] = real(0)
    elif per_set == 1:
        for c in range(channels):
            along = np.float64(scale[c]) * inverse_count
            across = along * s2[c] * inverse[c]
            tilt[c] = real(-across)
            level[c] = real(rest[c] * across - along * s1[c])
    else:
        for first in range(0, channels, per_set):
            along, across = 0.0, 0.0
            for c in range(first, first + per_set):
                along += np.float64(scale[c]) * s1[c]
                across += np.float64(scale[c]) * s2[c]
            along *= inverse_count / per_set
            across *= inverse_count / per_set * inverse[first]
            for c in range(first, first + per_set):
                tilt[c] = real(-across)
                level[c] = real(rest[c] * across - along)
    _repeat(parameters + 3 * width * size, 2, channels, width, size, real)


@compiled
def parameter_gradients(sums: Any, examples: Any, channels: Any, weight_grad: Any, bias_grad: Any, real: Any) -> None:
    """Gradients of weight and bias from the sums of all examples."""
    dw, db = carray(pointer(weight_grad), (channels,), real), carray(pointer(bias_grad), (channels,), real)
    total = _row(sums, 0, 2 * channels)
    for example in range(1, examples):
        own = _row(sums, 2 * example * channels, 2 * channels)
        for c in range(2 * channels):
            total[c] += own[c]
    for c in range(channels):
        db[c] = real(total[c])
    for c in range(channels):
        dw[c] = real(total[channels + c])


@inlined
def _row(address: Any, first: Any, length: Any) -> Any:
    """`length` float64 numbers from the one with index `first`."""
    return carray(pointer(address + first * 8), (length,), np.float64)


@inlined
def _parameters(parameters: Any, first: Any, channels: Any, width: Any, size: Any, real: Any) -> Any:
    """The first `channels` columns of three rows of parameters, from row `first`."""
    gap = width * size
    at = parameters + first * gap
    return (
        carray(pointer(at), (channels,), real),
        carray(pointer(at + gap), (channels,), real),
        carray(pointer(at + 2 * gap), (channels,), real),
    )


@inlined
def _spread(values: Any, wide: Any, target: Any, channels: Any, per_set: Any, real: Any) -> None:
    """One value per set, float64 (wide) or of `real`, to every channel of the set."""
    if not wide:
        narrow = carray(pointer(values), (channels,), real)
        for c in range(channels):
            target[c] = np.float64(narrow[c])
    elif per_set == 1:
        own = carray(pointer(values), (channels,), np.float64)
        for c in range(channels):
            target[c] = own[c]
    else:
        for s in range(channels // per_set):
            value = carray(pointer(values + 8 * s), (1,), np.float64)[0]
            for c in range(s * per_set, (s + 1) * per_set):
                target[c] = value


@inlined
def _repeat(parameters: Any, rows: Any, channels: Any, width: Any, size: Any, real: Any) -> None:
    """Fill `rows` rows of `width` columns with copies of their first `channels`."""
    for row in range(rows):
        values = carray(pointer(parameters + row * width * size), (channels,), real)
        for first in range(channels, width, channels):
            copies = carray(pointer(parameters + (row * width + first) * size), (channels,), real)
            for c in range(channels):
                copies[c] = values[c]
