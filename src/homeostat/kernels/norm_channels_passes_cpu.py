"""The passes of batch, instance and group normalization over the units of a tensor: two compiled kernels.

A unit is a range of rows of channels (cut into strips where they are wide), or a chunk of the positions of an example
(every channel's a run of its own); a piece is a strip of a unit, or a run. Batch normalization takes the phases one by
one over all pieces, because they need sums over all; instance and group normalization take an example through all of
them. Second passes run backwards: what was read last is still in the cache. Units depend on shapes alone, and so do
results. Not random.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from homeostat.kernels.launch import Fields, kernel, pointer, share
from homeostat.kernels.memory_cpu import fence
from homeostat.kernels.norm_channels_loops_cpu import (
    apply_rows,
    apply_run,
    gradient_rows,
    gradient_run,
    inlined,
    moments_of_rows,
    moments_of_run,
    sums_of_rows,
    sums_of_run,
)
from homeostat.kernels.norm_channels_sets_cpu import (
    merge_moments,
    merge_sums,
    moments_of_sets,
    parameter_gradients,
    prepare,
    prepare_gradient,
)

GEOMETRY = (
    "examples rows tails channels per_set groups example width strip strips units positions chunk chunks pieces "
    "stride counts totals parameters lanes"
)
_FORWARD = Fields(f"phases x keep y weight bias mean variance wide scratch slots past {GEOMETRY}", "eps fall limit")
_BACKWARD = Fields(
    "phases g x keep masked dx weight bias mean variance wide sums weight_grad bias_grad scratch slots past "
    + GEOMETRY,
    "eps slope floor limit inverse_count",
)

MOMENTS, MERGE, PREPARE, APPLY = 1, 2, 4, 8
_RUNS = 32  # neighbors that are taken in order, when a pass runs backwards

SUMS, MERGE_SUMS, PREPARE_GRADIENT, GRADIENT, TOTAL = 1, 2, 4, 8, 16


@kernel(_FORWARD)
def forward(real: Any) -> Any:
    record, size = _FORWARD.record, np.dtype(real).itemsize

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        slot, _ = share(a, a.slots)
        own = a.scratch + slot * a.stride
        if a.groups:
            begin, end = share(a, a.examples)
            for example in range(begin, end):
                _forward_pieces(a, example, 0, a.pieces, own, own + a.lanes, size, real)
        else:
            begin, end = share(a, a.pieces)
            _forward_pieces(a, 0, begin, end, a.scratch, own + a.lanes, size, real)
        if a.past:
            fence()

    return run


@inlined
def _forward_pieces(a: Any, example: Any, begin: Any, end: Any, scratch: Any, lanes: Any, size: Any, real: Any) -> None:
    """The phases asked for, on pieces begin..end of one example, or of the whole batch."""
    offset, sets = example * a.example, a.channels // a.per_set
    mean, variance = a.mean + example * sets * 8, a.variance + example * sets * 8
    tail = a.rows * a.width * size
    if a.phases & MOMENTS:
        for piece in range(begin, end):
            _moments_of_piece(a, piece, a.x + offset, scratch, lanes, size, real)
    if a.phases & MERGE:
        totals = scratch + a.totals
        count = merge_moments(
            scratch, scratch + a.counts, a.units, a.width, a.channels, a.x + offset + tail, a.tails, totals, size, real
        )
        moments_of_sets(totals, count, a.channels, a.per_set, mean, variance)
    if a.phases & PREPARE:
        prepare(
            mean, variance, a.wide, a.weight, a.bias, a.channels, a.per_set, a.width, scratch + a.parameters,
            scratch + a.totals, a.eps, size, real,
        )  # fmt: skip
    if a.phases & APPLY:
        if a.tails and end == a.pieces:
            _apply_rows(a, offset + tail, 1, a.tails * a.channels, 0, scratch, size, real)
        group = _RUNS if a.chunk else 1
        for last in range(end, begin, -group):
            for piece in range(max(begin, last - group), last):
                _apply_piece(a, piece, offset, scratch, size, real)


@inlined
def _moments_of_piece(a: Any, piece: Any, x: Any, scratch: Any, lanes: Any, size: Any, real: Any) -> None:
    if a.chunk:
        unit, c, at, length = _run(a, piece, size)
        mean, squares = moments_of_run(x + at, length, real)
        partial = carray(pointer(scratch + 16 * unit * a.width), (2 * a.width,), np.float64)
        partial[c] = mean
        partial[a.width + c] = squares
        count, is_first = length, c == 0
    else:
        unit, at, count, column, width = _block(a, piece, size)
        partial_at = scratch + 16 * unit * a.width + 8 * column
        moments_of_rows(x + at, count, width, a.width * size, lanes, partial_at, partial_at + 8 * a.width, size, real)
        is_first = column == 0
    if is_first:
        carray(pointer(scratch + a.counts), (a.units,), np.int64)[unit] = count


@inlined
def _apply_piece(a: Any, piece: Any, offset: Any, scratch: Any, size: Any, real: Any) -> None:
    if a.chunk:
        _, c, at, length = _run(a, piece, size)
        at += offset
        parameters = carray(pointer(scratch + a.parameters), (3 * a.width,), real)
        keep = a.keep + at if a.keep else 0
        apply_run(
            a.x + at, keep, a.y + at, length, parameters[c], parameters[a.width + c], parameters[2 * a.width + c],
            real(a.fall), real(a.limit), a.past, size, real,
        )  # fmt: skip
    else:
        _, at, count, column, width = _block(a, piece, size)
        _apply_rows(a, offset + at, count, width, column, scratch, size, real)


@inlined
def _apply_rows(a: Any, at: Any, count: Any, width: Any, column: Any, scratch: Any, size: Any, real: Any) -> None:
    keep = a.keep + at if a.keep else 0
    gap = a.width * size
    apply_rows(
        a.x + at, keep, a.y + at, count, width, gap, scratch + a.parameters + column * size, gap,
        real(a.fall), real(a.limit), a.past, size, real,
    )  # fmt: skip


@inlined
def _run(a: Any, piece: Any, size: Any) -> Any:
    """Channels first: unit (a chunk of the positions of an example), channel, place in bytes, length."""
    unit, c = piece // a.channels, piece % a.channels
    start = unit % a.chunks * a.chunk
    at = (unit // a.chunks * a.channels + c) * a.positions + start
    return unit, c, at * size, min(a.chunk, a.positions - start)


@inlined
def _block(a: Any, piece: Any, size: Any) -> Any:
    """Channels last: unit (a range of rows), place in bytes, number of rows, first column, number of columns."""
    unit, column = piece // a.strips, piece % a.strips * a.strip
    first, last = a.rows * unit // a.units, a.rows * (unit + 1) // a.units
    return unit, (first * a.width + column) * size, last - first, column, min(a.strip, a.width - column)


@kernel(_BACKWARD)
def backward(real: Any) -> Any:
    record, size = _BACKWARD.record, np.dtype(real).itemsize

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        slot, _ = share(a, a.slots)
        own = a.scratch + slot * a.stride
        if a.groups:
            if a.phases & ~TOTAL:
                begin, end = share(a, a.examples)
                for example in range(begin, end):
                    _backward_pieces(a, example, 0, a.pieces, own, own, size, real)
        else:
            begin, end = share(a, a.pieces)
            _backward_pieces(a, 0, begin, end, a.scratch, own, size, real)
        if a.phases & TOTAL:
            parameter_gradients(a.sums, a.examples, a.channels, a.weight_grad, a.bias_grad, real)
        if a.past:
            fence()

    return run


@inlined
def _backward_pieces(a: Any, example: Any, begin: Any, end: Any, scratch: Any, own: Any, size: Any, real: Any) -> None:
    """The phases asked for, on pieces begin..end of one example, or of the whole batch.

    Before the sums every thread prepares parameters of its own; afterwards the first thread's serve all.
    """
    offset, sets = example * a.example, a.channels // a.per_set
    mean, variance = a.mean + example * sets * 8, a.variance + example * sets * 8
    sums = a.sums + example * a.channels * 16
    tail = a.rows * a.width * size
    if a.phases & (SUMS | PREPARE_GRADIENT):
        prepare(
            mean, variance, a.wide, a.weight, a.bias, a.channels, a.per_set, a.width, own + a.parameters,
            own + a.totals, a.eps, size, real,
        )  # fmt: skip
    if a.phases & SUMS:
        for piece in range(begin, end):
            _sums_of_piece(a, piece, offset, scratch, own, size, real)
        if a.tails and end == a.pieces:
            extra = carray(pointer(scratch + 16 * a.units * a.width), (2 * a.width,), np.float64)
            for column in range(2 * a.width):
                extra[column] = 0.0
            _sums_of_rows(a, offset + tail, 1, a.tails * a.channels, 0, a.units, scratch, own, size, real)
    if a.phases & MERGE_SUMS:
        units = a.units + (1 if a.tails else 0)
        merge_sums(scratch, units, a.width, a.channels, scratch + a.totals, sums)
    if a.phases & PREPARE_GRADIENT:
        prepare_gradient(
            sums, a.inverse_count, a.channels, a.per_set, a.width, scratch + a.parameters, scratch + a.totals,
            size, real,
        )  # fmt: skip
    if a.phases & GRADIENT:
        if a.tails and end == a.pieces:
            _gradient_rows(a, offset + tail, 1, a.tails * a.channels, 0, scratch, size, real)
        group = _RUNS if a.chunk else 1
        for last in range(end, begin, -group):
            for piece in range(max(begin, last - group), last):
                _gradient_of_piece(a, piece, offset, scratch, size, real)


@inlined
def _sums_of_piece(a: Any, piece: Any, offset: Any, scratch: Any, own: Any, size: Any, real: Any) -> None:
    if a.chunk:
        unit, c, at, length = _run(a, piece, size)
        at += offset
        p = carray(pointer(own + a.parameters), (3 * a.width,), real)
        keep, masked = (a.keep + at, a.masked + at) if a.keep else (0, 0)
        partial = carray(pointer(scratch + 16 * unit * a.width), (2 * a.width,), np.float64)
        first, second = sums_of_run(
            a.g + at, a.x + at, keep, masked, length, p[c], p[a.width + c], p[2 * a.width + c],
            real(a.slope), real(a.floor), real(a.limit), a.past, real,
        )  # fmt: skip
        partial[c] = first
        partial[a.width + c] = second
    else:
        unit, at, count, column, width = _block(a, piece, size)
        _sums_of_rows(a, offset + at, count, width, column, unit, scratch, own, size, real)


@inlined
def _sums_of_rows(
    a: Any, at: Any, count: Any, width: Any, column: Any, unit: Any, scratch: Any, own: Any, size: Any, real: Any
) -> None:
    keep, masked = (a.keep + at, a.masked + at) if a.keep else (0, 0)
    gap, partial = a.width * size, scratch + 16 * unit * a.width + 8 * column
    sums_of_rows(
        a.g + at, a.x + at, keep, masked, count, width, gap, own + a.parameters + column * size, gap, own + a.lanes,
        partial, partial + 8 * a.width, real(a.slope), real(a.floor), real(a.limit), a.past, size, real,
    )  # fmt: skip


@inlined
def _gradient_of_piece(a: Any, piece: Any, offset: Any, scratch: Any, size: Any, real: Any) -> None:
    if a.chunk:
        _, c, at, length = _run(a, piece, size)
        at += offset
        p, w = carray(pointer(scratch + a.parameters), (5 * a.width,), real), a.width
        g, slope, floor, limit = _before_activation(a, real)
        gradient_run(
            g + at, a.x + at, a.dx + at, length, p[c], p[w + c], p[2 * w + c], p[3 * w + c], p[4 * w + c],
            slope, floor, limit, a.past, size, real,
        )  # fmt: skip
    else:
        _, at, count, column, width = _block(a, piece, size)
        _gradient_rows(a, offset + at, count, width, column, scratch, size, real)


@inlined
def _gradient_rows(a: Any, at: Any, count: Any, width: Any, column: Any, scratch: Any, size: Any, real: Any) -> None:
    g, slope, floor, limit = _before_activation(a, real)
    gap = a.width * size
    gradient_rows(
        g + at, a.x + at, a.dx + at, count, width, gap, scratch + a.parameters + column * size, gap,
        slope, floor, limit, a.past, size, real,
    )  # fmt: skip


@inlined
def _before_activation(a: Any, real: Any) -> Any:
    """The gradient to go on with, and how to mask it: the one that the sums have written needs no mask any more."""
    if a.keep:
        return a.masked, real(1), real(-np.inf), real(np.inf)
    return a.g, real(a.slope), real(a.floor), real(a.limit)


_UPDATE = Fields("running_mean running_var mean variance channels", "momentum correction")


@kernel(_UPDATE)
def update(real: Any) -> Any:
    record = _UPDATE.record

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        mean, variance = _column(a.mean, a.channels, np.float64), _column(a.variance, a.channels, np.float64)
        own_mean, own_variance = _column(a.running_mean, a.channels, real), _column(a.running_var, a.channels, real)
        keep = 1.0 - a.momentum  # in float64: a difference of both would round off a new value that is far smaller
        for c in range(a.channels):
            own_mean[c] = real(keep * own_mean[c] + a.momentum * mean[c])
        for c in range(a.channels):
            own_variance[c] = real(keep * own_variance[c] + a.momentum * (variance[c] * a.correction))

    return run


@inlined
def _column(address: Any, length: Any, real: Any) -> Any:
    return carray(pointer(address), (length,), real)
