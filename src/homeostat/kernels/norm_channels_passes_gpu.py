"""The passes of normalization by channels on the GPU: moments and sums of tiles, their merging, and the writing.

x is (examples, channels, positions), or with LAST (examples, positions, channels); a tile is HEIGHT positions by WIDTH
channels. Statistics are per channel, index c, or with GROUPED per example n and group, index n * groups + c div
(channels div groups). Then tiles belong to the units of work of one example each; else to one unit of all.

Deviations are summed from the mean of a program's first tile: that has a fair share of what it sums, so however far the
values lie from zero, the sum of squares loses no more than a factor of the number of tiles in float32's precision.
Programs' results are merged in float64, in order, by Chan's formula.
Source: Chan et al. 1983, doi:10.1080/00031305.1983.10483115; Ioffe and Szegedy 2015, arXiv:1502.03167.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from homeostat.kernels.launch_gpu import real
from homeostat.kernels.norm_rows_gpu import deviation, rectified


@triton.jit(do_not_specialize=["examples", "groups", "tiles", "steps", "runs", "strips"])
def moments(
    x, partial, examples: tl.int64, channels: tl.int64, positions: tl.int64, groups: tl.int32, tiles: tl.int64,
    steps: tl.int32, runs: tl.int32, strips: tl.int32,
    REAL: tl.constexpr, LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """partial (3, units * runs, channels): first mean, what the mean is beyond it, sum of squared deviations."""
    row = tl.program_id(0) // strips
    unit, run = (row // runs).to(tl.int64), (row % runs).to(tl.int64)
    c = (tl.program_id(0) % strips).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    begin, end = run * steps, tl.minimum((run + 1) * steps, tiles)
    at, inside, count = locate(begin, unit, c, channels, positions, LAST, HEIGHT)
    value = tl.load(x + at, mask=inside, other=0).to(REAL)
    first = tl.sum(value, 0) / count.to(REAL)
    value = tl.where(inside, value - first[None, :], 0)
    total, squares = value, value * value
    for tile in range(begin + 1, end):
        at, inside, more = locate(tile, unit, c, channels, positions, LAST, HEIGHT)
        value = tl.load(x + at, mask=inside, other=0).to(REAL)
        value = tl.where(inside, value - first[None, :], 0)
        total += value
        squares += value * value
        count += more
    rest = tl.sum(total, 0)
    beyond = rest / count.to(REAL)
    size = tl.num_programs(0).to(tl.int64) // strips * channels
    own = partial + row.to(tl.int64) * channels + c
    tl.store(own, first, mask=c < channels)
    tl.store(own + size, beyond, mask=c < channels)
    tl.store(own + 2 * size, tl.sum(squares, 0) - rest * beyond, mask=c < channels)


@triton.jit(do_not_specialize=["examples", "groups", "tiles", "channels", "positions", "steps", "runs", "rows", "sets"])
def merge(
    partial, means, variances, found, examples: tl.int64, channels: tl.int64, positions: tl.int64, groups: tl.int32,
    tiles: tl.int64, steps: tl.int32, runs: tl.int32, rows: tl.int64, sets: tl.int64,
    HEIGHT: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of one set, count, mean, sum of squared deviations (found, (3, sets), or None), and variance (or None)."""
    index = tl.program_id(0).to(tl.int64)
    items = runs * (channels // groups) if GROUPED else rows
    count, mean = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, items, BLOCK):
        at, run, inside, _ = _item(begin + tl.arange(0, BLOCK), index, items, channels, groups, runs, GROUPED)
        share = tl.where(inside, _counted(run, tiles, steps, positions, HEIGHT), 0).to(tl.float64)
        value = tl.load(partial + at, mask=inside, other=0).to(tl.float64)
        value += tl.load(partial + rows * channels + at, mask=inside, other=0).to(tl.float64)
        count += share
        mean += share * value
    total = tl.sum(count, 0)
    center = tl.sum(mean, 0) / total
    squares = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, items, BLOCK):
        at, run, inside, _ = _item(begin + tl.arange(0, BLOCK), index, items, channels, groups, runs, GROUPED)
        share = tl.where(inside, _counted(run, tiles, steps, positions, HEIGHT), 0).to(tl.float64)
        value = tl.load(partial + at, mask=inside, other=0).to(tl.float64) - center
        value += tl.load(partial + rows * channels + at, mask=inside, other=0).to(tl.float64)
        squares += tl.load(partial + 2 * rows * channels + at, mask=inside, other=0).to(tl.float64)
        squares += tl.where(inside, share * value * value, 0)
    around = tl.maximum(tl.sum(squares, 0), 0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(means + index, center)
    if variances is not None:
        tl.store(variances + index, around / total)
    if found is not None:
        tl.store(found + index, total)
        tl.store(found + 2 * sets + index, around)


@triton.jit(do_not_specialize=["examples", "groups", "tiles", "strips", "eps", "slope"])
def apply(
    x, y, residual, means, variances, weight, bias, examples: tl.int64, channels: tl.int64, positions: tl.int64,
    groups: tl.int32, tiles: tl.int32, strips: tl.int32, eps: tl.int64, slope: tl.int64,
    GROUPED: tl.constexpr, RECTIFIED: tl.constexpr, REAL: tl.constexpr, LAST: tl.constexpr, HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """y = activation((x - mean) / deviation * weight + bias + residual), one tile."""
    example, tile, c = _own(tiles, strips, LAST, WIDTH)
    at, inside = _tile(example, tile * HEIGHT, c, channels, positions, LAST, HEIGHT)
    value = tl.load(x + at, mask=inside, other=0).to(REAL)
    mean, scale = _statistics(means, variances, example, c, channels, groups, eps, REAL, GROUPED)
    z = deviation(value, mean[None, :], REAL) * _weighted(scale, weight, c, channels, REAL)[None, :]
    if bias is not None:
        z += tl.load(bias + c, mask=c < channels, other=0).to(REAL)[None, :]
    if residual is not None:
        z += tl.load(residual + at, mask=inside, other=0).to(REAL)
    if RECTIFIED:
        z = rectified(z, z, slope, REAL)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["examples", "groups", "tiles", "steps", "runs", "strips", "eps", "slope"])
def sums(
    x, grad, output, means, variances, weight, bias, masked, partial, examples: tl.int64, channels: tl.int64,
    positions: tl.int64, groups: tl.int32, tiles: tl.int64, steps: tl.int32, runs: tl.int32, strips: tl.int32,
    eps: tl.int64, slope: tl.int64, GROUPED: tl.constexpr, RECTIFIED: tl.constexpr, REAL: tl.constexpr,
    LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """partial (2, units * runs, channels): sums of d and of d * xhat, d the gradient before the activation (masked)."""
    row = tl.program_id(0) // strips
    unit, run = (row // runs).to(tl.int64), (row % runs).to(tl.int64)
    c = (tl.program_id(0) % strips).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    mean, scale = _statistics(means, variances, unit, c, channels, groups, eps, REAL, GROUPED)
    first, second = tl.zeros((HEIGHT, WIDTH), REAL), tl.zeros((HEIGHT, WIDTH), REAL)
    for tile in range(run * steps, tl.minimum((run + 1) * steps, tiles)):
        at, inside, _ = locate(tile, unit, c, channels, positions, LAST, HEIGHT)
        d = tl.load(grad + at, mask=inside, other=0).to(REAL)
        z = deviation(tl.load(x + at, mask=inside, other=0).to(REAL), mean[None, :], REAL) * scale[None, :]
        if RECTIFIED:
            if output is not None:
                d = rectified(d, tl.load(output + at, mask=inside, other=0).to(REAL), slope, REAL)
            else:
                d = rectified(d, _affine(z, weight, bias, c, channels, REAL), slope, REAL)
        if output is not None:
            tl.store(masked + at, d.to(masked.dtype.element_ty), mask=inside)
        first += d
        second += d * z
    own = partial + row.to(tl.int64) * channels + c
    tl.store(own, tl.sum(first, 0), mask=c < channels)
    own += tl.num_programs(0).to(tl.int64) // strips * channels
    tl.store(own, tl.sum(second, 0), mask=c < channels)


@triton.jit(do_not_specialize=["rows", "channels", "groups", "runs", "sets"])
def merge_sums(
    partial, totals, dw, db, weight, rows: tl.int64, channels: tl.int64, groups: tl.int32, runs: tl.int32,
    sets: tl.int64, GROUPED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """totals (2, sets): the partial sums of one set, weighted if weight is given; without it also as dw and db."""
    index = tl.program_id(0).to(tl.int64)
    items = runs * (channels // groups) if GROUPED else rows
    first, second = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, items, BLOCK):
        at, _, inside, c = _item(begin + tl.arange(0, BLOCK), index, items, channels, groups, runs, GROUPED)
        one = tl.load(partial + at, mask=inside, other=0).to(tl.float64)
        two = tl.load(partial + rows * channels + at, mask=inside, other=0).to(tl.float64)
        if weight is not None:
            factor = tl.load(weight + c, mask=inside, other=0).to(tl.float64)
            one *= factor
            two *= factor
        first += one
        second += two
    one, two = tl.sum(first, 0), tl.sum(second, 0)
    tl.store(totals + index, one)
    tl.store(totals + sets + index, two)
    if dw is not None:
        tl.store(db + index, one.to(db.dtype.element_ty))
        tl.store(dw + index, two.to(dw.dtype.element_ty))


@triton.jit(do_not_specialize=["examples", "groups", "tiles", "strips", "eps", "slope", "share"])
def apply_gradient(
    x, grad, dx, means, variances, weight, bias, totals, counts, examples: tl.int64, channels: tl.int64,
    positions: tl.int64, groups: tl.int32, tiles: tl.int32, strips: tl.int32, eps: tl.int64, slope: tl.int64,
    share: tl.int64, GROUPED: tl.constexpr, RECTIFIED: tl.constexpr, REAL: tl.constexpr, LAST: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """dx = (weight * d - mean of (weight * d) - xhat * mean of (weight * d * xhat)) / deviation, one tile.

    totals (2, sets): the sums that those means are of, without weight if they are per channel; None for 0. The number
    of values in a set is counts[c], or 1 / share for all.
    """
    example, tile, c = _own(tiles, strips, LAST, WIDTH)
    at, inside = _tile(example, tile * HEIGHT, c, channels, positions, LAST, HEIGHT)
    value = tl.load(x + at, mask=inside, other=0).to(REAL)
    d = tl.load(grad + at, mask=inside, other=0).to(REAL)
    mean, scale = _statistics(means, variances, example, c, channels, groups, eps, REAL, GROUPED)
    z = deviation(value, mean[None, :], REAL) * scale[None, :]
    if RECTIFIED:
        d = rectified(d, _affine(z, weight, bias, c, channels, REAL), slope, REAL)
    if GROUPED:
        d *= _weighted(tl.full((WIDTH,), 1, REAL), weight, c, channels, REAL)[None, :]
    else:
        scale = _weighted(scale, weight, c, channels, REAL)
    if totals is not None:
        index = _index(example, c, channels, groups, GROUPED)
        part = 1 / tl.load(counts + c, mask=c < channels, other=1) if counts is not None else real(share, tl.float64)
        size = examples * groups if GROUPED else channels
        first = (tl.load(totals + index, mask=c < channels, other=0) * part).to(REAL)
        second = (tl.load(totals + size + index, mask=c < channels, other=0) * part).to(REAL)
        d -= first[None, :] + z * second[None, :]
    tl.store(dx + at, (d * scale[None, :]).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def _own(tiles, strips, LAST: tl.constexpr, WIDTH: tl.constexpr):
    """Which example, tile of positions and channels a program writes: neighbors in memory one after the other."""
    pid = tl.program_id(0)
    if LAST:
        tile = pid // strips % tiles
        strip = pid % strips
    else:
        tile = pid % tiles
        strip = pid // tiles % strips
    example = (pid // (tiles * strips)).to(tl.int64)
    return example, tile.to(tl.int64), strip.to(tl.int64) * WIDTH + tl.arange(0, WIDTH)


@triton.jit
def locate(tile, unit, c, channels, positions, LAST: tl.constexpr, HEIGHT: tl.constexpr):
    """Offsets of a tile's elements, which of them exist, and how many of its positions do."""
    along = tl.cdiv(positions, HEIGHT)
    further = tile // along
    begin = (tile - further * along) * HEIGHT
    at, inside = _tile(unit + further, begin, c, channels, positions, LAST, HEIGHT)
    return at, inside, tl.minimum(positions - begin, HEIGHT)


@triton.jit
def _tile(example, begin, c, channels, positions, LAST: tl.constexpr, HEIGHT: tl.constexpr):
    """Offsets of a tile's elements, and which of them exist."""
    s = begin + tl.arange(0, HEIGHT)
    inside = (s < positions)[:, None] & (c < channels)[None, :]
    if LAST:
        at = example * channels * positions + s[:, None] * channels + c[None, :]
    else:
        at = example * channels * positions + s[:, None] + c[None, :] * positions
    return at, inside


@triton.jit
def _index(example, c, channels, groups, GROUPED: tl.constexpr):
    """The number of the set that a channel of an example belongs to."""
    return example * groups + c // (channels // groups) if GROUPED else c


@triton.jit
def _statistics(means, variances, example, c, channels, groups, eps, REAL: tl.constexpr, GROUPED: tl.constexpr):
    """Mean, float64, and inverse deviation of every channel of a tile."""
    index = _index(example, c, channels, groups, GROUPED)
    mean = tl.load(means + index, mask=c < channels, other=0).to(tl.float64)
    variance = tl.load(variances + index, mask=c < channels, other=1).to(REAL)
    return mean, tl.rsqrt(variance + real(eps, REAL))


@triton.jit
def _weighted(value, weight, c, channels, REAL: tl.constexpr):
    if weight is not None:
        value *= tl.load(weight + c, mask=c < channels, other=0).to(REAL)
    return value


@triton.jit
def _affine(z, weight, bias, c, channels, REAL: tl.constexpr):
    if weight is not None:
        z *= tl.load(weight + c, mask=c < channels, other=0).to(REAL)[None, :]
    if bias is not None:
        z += tl.load(bias + c, mask=c < channels, other=0).to(REAL)[None, :]
    return z


@triton.jit
def _item(item, index, items, channels, groups, runs, GROUPED: tl.constexpr):
    """Of a partial result number `item` of a set: its offset, run, whether it exists, and its channel."""
    inside = item < items
    if GROUPED:
        each = channels // groups
        run = item // each
        c = index % groups * each + item % each
        at = (index // groups * runs + run) * channels + c
    else:
        run = item
        c = index + tl.zeros_like(item)
        at = item * channels + index
    return at, run, inside, c


@triton.jit
def _counted(run, tiles, steps, positions, HEIGHT: tl.constexpr):
    """How many positions a run of tiles has."""
    begin = run.to(tl.int64) * steps
    end = tl.minimum(begin + steps, tiles)
    return _positions(end, positions, HEIGHT) - _positions(begin, positions, HEIGHT)


@triton.jit
def _positions(tile, positions, HEIGHT: tl.constexpr):
    """How many positions the tiles before this one have."""
    along = tl.cdiv(positions, HEIGHT)
    return tile // along * positions + tl.minimum(tile % along * HEIGHT, positions)
