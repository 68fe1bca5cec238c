"""Normalization of rows compiled for the GPU: rows that fit are read once, with their sums made in registers.

A row's mean is corrected by the mean of what remains after subtracting it, so that it has the digits of a pair of
numbers, and deviations are taken from both. Longer rows are read again, in chunks. Gradients of weight and bias are
summed over runs of examples, whose lengths depend on the shape alone, and then over the runs.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.launch_gpu import REALS, bits, launch, real

LONGEST = 8192  # values of a row that a program holds
_TILE = 2048  # values of short rows that a program takes
_CHUNK = 4096  # values of a long row that a program takes at a time
_COLUMNS = 128  # of long rows, that a program sums over examples


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
    x = input.contiguous()
    statistics = torch.empty(2, x.numel() // length if length else 0, dtype=torch.float64, device=x.device)
    mean, variance = statistics
    y = normalize_runs(x, weight, bias, residual, mean, variance, length, groups, 1, eps, center, slope)
    return y, statistics


def normalize_runs(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    length: int,
    groups: int,
    repeat: int,
    eps: float,
    center: bool,
    slope: float,
) -> Tensor:
    """For a contiguous x; each value of weight and bias belongs to `repeat` neighbors. Writes mean and variance."""
    y = torch.empty_like(x)
    if x.numel():
        block, tile = _tile(length)
        launch(
            _normalize, triton.cdiv(mean.numel(), tile), x, x, y, *contiguous(weight, bias, residual), mean, variance,
            mean.numel(), length, groups, repeat, bits(eps), bits(slope), bits(1 / length), warps=_warps(block * tile),
            REAL=REALS.get(x.dtype, tl.float32), CENTER=center, RECTIFIED=slope != 1, PER_ROW=groups > 1,
            REPEATED=repeat > 1, ROWS=tile, BLOCK=block, LONG=length > LONGEST,
        )  # fmt: skip
    return y


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
    x, d = contiguous(input, grad)
    dx, dr = torch.empty_like(x), x.new_empty(0) if output is None else torch.empty_like(x)
    affine = affine and (weight is not None or bias is not None)
    examples = x.numel() // (length * groups) if length else 0
    block, tile = _tile(length)
    runs, steps = _runs(triton.cdiv(examples, tile), groups)
    fused = affine and length <= LONGEST
    parts = runs if fused else min(triton.cdiv(examples, 16), 64)
    partial = torch.empty(2, parts if affine else 0, groups * length, dtype=_wide(x), device=x.device)
    tensors = (x, d, *contiguous(weight, bias, output), statistics)
    numbers = (examples, length, groups, bits(eps), bits(slope), bits(1 / length if length else 0))
    settings: dict[str, Any] = {"REAL": REALS.get(x.dtype, tl.float32), "CENTER": center, "RECTIFIED": slope != 1}
    if x.numel():
        launch(
            _gradient, runs * groups, x, *tensors, dx, dr, partial, *numbers, steps, runs,
            warps=_warps(2 * block * tile), **settings, FUSED=fused, ROWS=tile, BLOCK=block, LONG=length > LONGEST,
        )  # fmt: skip
        if affine and not fused:
            launch(
                _parameter_sums, parts * groups * triton.cdiv(length, _COLUMNS), x, *tensors, partial, *numbers, parts,
                warps=8, **settings, ROWS=16, BLOCK=_COLUMNS,
            )  # fmt: skip
    sums = partial.sum(1) if affine else None
    return dx, _parameter(sums, 0, weight, x), _parameter(sums, 1, bias, x), dr


def contiguous(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Every tensor, or None, in row-major memory."""
    return tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)


def _tile(length: int) -> tuple[int, int]:
    """The number of columns and of rows that a program holds at a time."""
    if length > LONGEST:
        return _CHUNK, 1
    block = triton.next_power_of_2(max(length, 1))
    return block, max(1, _TILE // block)


def _warps(elements: int) -> int:
    return min(max(triton.next_power_of_2(elements) // 512, 4), 32)


def _runs(tiles: int, groups: int) -> tuple[int, int]:
    """How many runs the examples of a group are cut into, and how many tiles are in a run."""
    steps = max(1, min(tiles * groups // 1024, 64))
    return triton.cdiv(tiles, steps), steps


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _parameter(sums: Tensor | None, index: int, parameter: Tensor | None, x: Tensor) -> Tensor:
    if sums is None or parameter is None:
        return x.new_empty(0)
    return sums[index].to(parameter.dtype).view(parameter.shape)


@triton.jit
def rectified(value, z, slope, REAL: tl.constexpr):
    """The value where z > 0 or NaN; elsewhere `slope` times it, and exactly 0 for the slope 0."""
    factor = real(slope, REAL)
    return tl.where(z <= 0, tl.where(factor == 0, 0, factor * value), value)


@triton.jit
def deviation(value, mean, REAL: tl.constexpr):
    """value - mean, where the float64 mean broadcasts against the value and has more digits than it."""
    high = mean.to(REAL)
    low = (mean - high.to(tl.float64)).to(REAL)
    return (value - high) - low


@triton.jit(do_not_specialize=["rows", "groups", "repeat", "eps", "slope", "inverse"])
def _normalize(
    x, y, weight, bias, residual, means, variances, rows: tl.int64, length: tl.int64, groups: tl.int32,
    repeat: tl.int32, eps: tl.int64, slope: tl.int64, inverse: tl.int64, REAL: tl.constexpr, CENTER: tl.constexpr,
    RECTIFIED: tl.constexpr, PER_ROW: tl.constexpr, REPEATED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
    LONG: tl.constexpr,
):  # fmt: skip
    """x, y, residual (rows, length); weight, bias (groups * length / repeat,); means (rows,)."""
    start = tl.program_id(0).to(tl.int64) * ROWS
    row = start + tl.arange(0, ROWS)
    present = row < rows
    column = tl.arange(0, BLOCK)
    begin = row[:, None] * length
    first = ((start % groups).to(tl.int32) + tl.arange(0, ROWS)) % groups * (length // repeat)
    inside = present[:, None] & (column < length)[None, :]
    value = tl.load(x + begin + column[None, :], mask=inside, other=0).to(REAL)
    share = real(inverse, REAL)
    high, low = tl.zeros((ROWS,), REAL), tl.zeros((ROWS,), REAL)
    if LONG:
        if CENTER:
            high = tl.sum(value, 1) / BLOCK
        rest, squares = tl.zeros((ROWS, BLOCK), REAL), tl.zeros((ROWS, BLOCK), REAL)
        for chunk in range(tl.cdiv(length, BLOCK)):
            at = chunk * BLOCK + column
            inside = present[:, None] & (at < length)[None, :]
            value = tl.load(x + begin + at[None, :], mask=inside, other=0).to(REAL)
            value = tl.where(inside, value - high[:, None], 0)
            rest += value
            squares += value * value
        variance = tl.sum(squares, 1) * share
        if CENTER:
            low = tl.sum(rest, 1) * share
            variance = tl.maximum(variance - low * low, 0, propagate_nan=tl.PropagateNan.ALL)
        scale = tl.rsqrt(variance + real(eps, REAL))
        for chunk in range(tl.cdiv(length, BLOCK)):
            at = chunk * BLOCK + column
            inside = present[:, None] & (at < length)[None, :]
            value = tl.load(x + begin + at[None, :], mask=inside, other=0).to(REAL)
            z = ((value - high[:, None]) - low[:, None]) * scale[:, None]
            _write(
                y,
                z,
                weight,
                bias,
                residual,
                begin,
                first,
                at,
                length,
                repeat,
                inside,
                slope,
                REAL,
                RECTIFIED,
                PER_ROW,
                REPEATED,
            )
    else:
        if CENTER:
            high = tl.sum(value, 1) * share
            value = tl.where(inside, value - high[:, None], 0)
            low = tl.sum(value, 1) * share
            value = tl.where(inside, value - low[:, None], 0)
        variance = tl.sum(value * value, 1) * share
        z = value * tl.rsqrt(variance + real(eps, REAL))[:, None]
        _write(
            y,
            z,
            weight,
            bias,
            residual,
            begin,
            first,
            column,
            length,
            repeat,
            inside,
            slope,
            REAL,
            RECTIFIED,
            PER_ROW,
            REPEATED,
        )
    tl.store(means + row, high.to(tl.float64) + low.to(tl.float64), mask=present)
    tl.store(variances + row, variance.to(tl.float64), mask=present)


@triton.jit
def _write(
    y, z, weight, bias, residual, begin, first, column, length, repeat, inside, slope,
    REAL: tl.constexpr, RECTIFIED: tl.constexpr, PER_ROW: tl.constexpr, REPEATED: tl.constexpr,
):  # fmt: skip
    """Weight, bias, residual and activation of one tile of standardized values, and out."""
    channel = column // repeat if REPEATED else column
    if weight is not None:
        z *= _parameters(weight, first, channel, column < length, inside, PER_ROW).to(REAL)
    if bias is not None:
        z += _parameters(bias, first, channel, column < length, inside, PER_ROW).to(REAL)
    if residual is not None:
        z += tl.load(residual + begin + column[None, :], mask=inside, other=0).to(REAL)
    if RECTIFIED:
        z = rectified(z, z, slope, REAL)
    tl.store(y + begin + column[None, :], z.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _parameters(parameter, first, channel, wanted, inside, PER_ROW: tl.constexpr):
    """The values of weight or bias that belong to a tile: a row of them, or one row per row."""
    if PER_ROW:
        values = tl.load(parameter + first[:, None] + channel[None, :], mask=inside, other=0)
    else:
        values = tl.load(parameter + channel, mask=wanted, other=0)[None, :]
    return values


@triton.jit(do_not_specialize=["examples", "groups", "eps", "slope", "inverse", "steps", "runs"])
def _gradient(
    x, grad, weight, bias, output, statistics, dx, masked, partial, examples: tl.int64, length: tl.int64,
    groups: tl.int32, eps: tl.int64, slope: tl.int64, inverse: tl.int64, steps: tl.int32, runs: tl.int32,
    REAL: tl.constexpr, CENTER: tl.constexpr, RECTIFIED: tl.constexpr, FUSED: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr, LONG: tl.constexpr,
):  # fmt: skip
    """A run of the examples of one group. partial (2, runs, groups * length): what the run adds to dw and db."""
    group = tl.program_id(0) % groups
    run = (tl.program_id(0) // groups).to(tl.int64)
    column = tl.arange(0, BLOCK)
    share = real(inverse, REAL)
    dw, db = tl.zeros((ROWS, BLOCK), REAL), tl.zeros((ROWS, BLOCK), REAL)
    for step in range(steps):
        example = (run * steps + step) * ROWS + tl.arange(0, ROWS)
        present = example < examples
        row = example * groups + group
        mean, scale = _statistics(statistics, row, present, examples * groups, eps, REAL, CENTER)
        first, second = tl.zeros((ROWS,), REAL), tl.zeros((ROWS,), REAL)
        if LONG:
            for chunk in range(tl.cdiv(length, BLOCK)):
                at = chunk * BLOCK + column
                d, z = _before(
                    x, grad, weight, bias, output, row, present, at, group, length, mean, scale, slope, REAL, RECTIFIED
                )
                d = _weighted(d, weight, group, at, length, REAL)
                first += tl.sum(d, 1)
                second += tl.sum(d * z, 1)
            for chunk in range(tl.cdiv(length, BLOCK)):
                at = chunk * BLOCK + column
                d, z = _before(
                    x, grad, weight, bias, output, row, present, at, group, length, mean, scale, slope, REAL, RECTIFIED
                )
                place = row[:, None] * length + at[None, :]
                inside = present[:, None] & (at < length)[None, :]
                if output is not None:
                    tl.store(masked + place, d.to(masked.dtype.element_ty), mask=inside)
                d = _weighted(d, weight, group, at, length, REAL) - z * (second * share)[:, None]
                d = d - (first * share)[:, None] if CENTER else d
                tl.store(dx + place, (d * scale[:, None]).to(dx.dtype.element_ty), mask=inside)
        else:
            d, z = _before(
                x, grad, weight, bias, output, row, present, column, group, length, mean, scale, slope, REAL, RECTIFIED
            )
            place = row[:, None] * length + column[None, :]
            inside = present[:, None] & (column < length)[None, :]
            if output is not None:
                tl.store(masked + place, d.to(masked.dtype.element_ty), mask=inside)
            if FUSED:
                dw += d * z
                db += d
            d = _weighted(d, weight, group, column, length, REAL)
            second = tl.sum(d * z, 1) * share
            if CENTER:
                d -= (tl.sum(d, 1) * share)[:, None]
            tl.store(dx + place, ((d - z * second[:, None]) * scale[:, None]).to(dx.dtype.element_ty), mask=inside)
    if FUSED:
        at = partial + (run * groups + group) * length + column
        tl.store(at, tl.sum(dw, 0), mask=column < length)
        tl.store(at + runs * groups * length, tl.sum(db, 0), mask=column < length)


@triton.jit(do_not_specialize=["examples", "groups", "eps", "slope", "inverse", "parts"])
def _parameter_sums(
    x, grad, weight, bias, output, statistics, partial, examples: tl.int64, length: tl.int64, groups: tl.int32,
    eps: tl.int64, slope: tl.int64, inverse: tl.int64, parts: tl.int32,
    REAL: tl.constexpr, CENTER: tl.constexpr, RECTIFIED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """For long rows: what one part of the examples adds to BLOCK values of dw and db."""
    strips = tl.cdiv(length, BLOCK).to(tl.int32)
    part = (tl.program_id(0) // (groups * strips)).to(tl.int64)
    group = tl.program_id(0) // strips % groups
    column = (tl.program_id(0) % strips).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dw, db = tl.zeros((ROWS, BLOCK), REAL), tl.zeros((ROWS, BLOCK), REAL)
    for tile in range(part, tl.cdiv(examples, ROWS), parts):
        example = tile * ROWS + tl.arange(0, ROWS)
        present = example < examples
        row = example * groups + group
        mean, scale = _statistics(statistics, row, present, examples * groups, eps, REAL, CENTER)
        d, z = _before(
            x, grad, weight, bias, output, row, present, column, group, length, mean, scale, slope, REAL, RECTIFIED
        )
        dw += d * z
        db += d
    at = partial + (part * groups + group) * length + column
    tl.store(at, tl.sum(dw, 0), mask=column < length)
    tl.store(at + parts * groups * length, tl.sum(db, 0), mask=column < length)


@triton.jit
def _statistics(statistics, row, present, rows, eps, REAL: tl.constexpr, CENTER: tl.constexpr):
    """The mean, float64, and the inverse deviation of every row."""
    variance = tl.load(statistics + rows + row, mask=present, other=1)
    mean = tl.load(statistics + row, mask=present, other=0)
    return mean, tl.rsqrt(variance.to(REAL) + real(eps, REAL))


@triton.jit
def _before(
    x, grad, weight, bias, output, row, present, column, group, length, mean, scale, slope,
    REAL: tl.constexpr, RECTIFIED: tl.constexpr,
):  # fmt: skip
    """The gradient before the activation, 0 outside, and the standardized values, of one tile."""
    inside = present[:, None] & (column < length)[None, :]
    place = row[:, None] * length + column[None, :]
    d = tl.load(grad + place, mask=inside, other=0).to(REAL)
    z = deviation(tl.load(x + place, mask=inside, other=0).to(REAL), mean[:, None], REAL) * scale[:, None]
    if RECTIFIED:
        if output is not None:
            sign = tl.load(output + place, mask=inside, other=0).to(REAL)
        else:
            sign = _weighted(z, weight, group, column, length, REAL)
            if bias is not None:
                sign += tl.load(bias + group * length + column, mask=column < length, other=0).to(REAL)[None, :]
        d = rectified(d, sign, slope, REAL)
    return d, z


@triton.jit
def _weighted(value, weight, group, column, length, REAL: tl.constexpr):
    if weight is not None:
        value *= tl.load(weight + group * length + column, mask=column < length, other=0).to(REAL)[None, :]
    return value
