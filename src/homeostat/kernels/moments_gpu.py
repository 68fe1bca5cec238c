"""Moments compiled for the GPU: one pass over memory, then one program per set that merges what the others found.

Every lane of a program sums deviations from the first finite value it met, which lies within a few deviations of its
mean or is outweighed; so no digits are lost far from zero, and values that are not finite do no harm. Lanes are merged
in the input's precision about their common mean, programs in float64, by Chan's formula and in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.launch_gpu import REALS, bits, launch, real
from homeostat.kernels.norm_channels_passes_gpu import locate

_TILE = 2048  # elements that a program holds at a time
_WIDEST = 128  # sets of a tile, where they lie together
_PROGRAMS = 1024  # where there are more tiles than this, a program takes several ...
_STEPS = 64  # ... but no more than this


def moments(input: Tensor, bound: float) -> Tensor:
    """See `homeostat.kernels.moments_reference.moments`."""
    outer, sets, inner = input.shape
    found = torch.empty(7, sets, dtype=torch.float64, device=input.device)
    if not input.numel():
        found.fill_(torch.nan)[[0, 6]] = 0
        return found
    last = inner == 1
    examples, positions = (1, outer) if last else (outer, inner)
    if last:
        width = min(triton.next_power_of_2(sets), _WIDEST)
        height = _TILE // width
    else:
        height = min(triton.next_power_of_2(positions), _TILE)
        width = min(triton.next_power_of_2(sets), _TILE // height)
    strips, tiles = triton.cdiv(sets, width), examples * triton.cdiv(positions, height)
    steps = max(1, min(tiles * strips // _PROGRAMS, _STEPS))
    runs = triton.cdiv(tiles, steps)
    real_type = REALS.get(input.dtype, tl.float32)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    partial = torch.empty(7, runs, sets, dtype=wide, device=input.device)
    launch(
        _moments, runs * strips, input, input, partial, sets, positions, tiles, steps, strips, bits(bound), warps=8,
        REAL=real_type, LAST=last, HEIGHT=height, WIDTH=width,
    )  # fmt: skip
    launch(_merge, sets, input, partial, found, runs, sets, outer * inner, BLOCK=256)
    return found


@triton.jit(do_not_specialize=["tiles", "steps", "strips", "bound"])
def _moments(
    x, partial, sets: tl.int64, positions: tl.int64, tiles: tl.int64, steps: tl.int32, strips: tl.int32,
    bound: tl.int64, REAL: tl.constexpr, LAST: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """partial (7, runs, sets): count, mean and what it is beyond that, squares, largest, zeros, beyond the bound."""
    run = (tl.program_id(0) // strips).to(tl.int64)
    c = (tl.program_id(0) % strips).to(tl.int64) * WIDTH + tl.arange(0, WIDTH)
    limit = real(bound, REAL)
    start = tl.zeros((HEIGHT, WIDTH), REAL)
    total, squares, largest = start, start, start
    counts = tl.zeros((HEIGHT, WIDTH), tl.int32)  # 10 bits each: how many values are finite, zero, beyond the bound
    for tile in range(run * steps, tl.minimum((run + 1) * steps, tiles)):
        at, inside, _ = locate(tile, 0, c, sets, positions, LAST, HEIGHT)
        value = tl.load(x + at, mask=inside, other=float("nan")).to(REAL)
        size = tl.abs(value)
        finite = size < float("inf")
        start = tl.where(finite & (counts & 1023 == 0), value, start)
        value = tl.where(finite, value, 0)
        rest = tl.where(finite, value - start, 0)
        total += rest
        squares += rest * rest
        largest = tl.where(finite, tl.maximum(largest, size), largest)
        counts += tl.where(finite, 1, 0) + tl.where(size == 0, 1 << 10, 0)
        counts += tl.where(finite & (size > limit), 1 << 20, 0)
    count = (counts & 1023).to(REAL)
    shift = total / tl.maximum(count, 1)
    number = tl.sum(count, 0)
    some = tl.maximum(number, 1)
    mean = tl.sum(count * start, 0) / some
    away = tl.where(count > 0, (start - mean[None, :]) + shift, 0)
    more = tl.sum(count * away, 0) / some
    away = tl.where(count > 0, away - more[None, :], 0)
    around = tl.sum(squares - total * shift + count * away * away, 0)
    own = partial + run * sets + c
    size = tl.num_programs(0).to(tl.int64) // strips * sets
    mask = c < sets
    tl.store(own, number, mask=mask)
    tl.store(own + size, mean, mask=mask)
    tl.store(own + 2 * size, more, mask=mask)
    tl.store(own + 3 * size, around, mask=mask)
    tl.store(own + 4 * size, tl.max(largest, 0), mask=mask)
    tl.store(own + 5 * size, tl.sum(counts >> 10 & 1023, 0).to(REAL), mask=mask)
    tl.store(own + 6 * size, tl.sum(counts >> 20, 0).to(REAL), mask=mask)


@triton.jit(do_not_specialize=["runs", "sets", "values"])
def _merge(partial, found, runs: tl.int64, sets: tl.int64, values: tl.int64, BLOCK: tl.constexpr):
    """found (7, sets): one set's moments."""
    index = tl.program_id(0).to(tl.int64)
    item = tl.arange(0, BLOCK)
    size = runs * sets
    count, mean = tl.zeros((BLOCK,), tl.float64), tl.zeros((BLOCK,), tl.float64)
    largest, zeros, beyond = count, count, count
    for begin in range(0, runs, BLOCK):
        own = partial + (begin + item).to(tl.int64) * sets + index
        mask = begin + item < runs
        number = tl.load(own, mask=mask, other=0).to(tl.float64)
        value = tl.load(own + size, mask=mask, other=0).to(tl.float64)
        value += tl.load(own + 2 * size, mask=mask, other=0).to(tl.float64)
        count += number
        mean += number * value
        largest = tl.maximum(largest, tl.load(own + 4 * size, mask=mask, other=0).to(tl.float64))
        zeros += tl.load(own + 5 * size, mask=mask, other=0).to(tl.float64)
        beyond += tl.load(own + 6 * size, mask=mask, other=0).to(tl.float64)
    total = tl.sum(count, 0)
    center = tl.sum(mean, 0) / total
    squares = tl.zeros((BLOCK,), tl.float64)
    for begin in range(0, runs, BLOCK):
        own = partial + (begin + item).to(tl.int64) * sets + index
        mask = begin + item < runs
        value = tl.load(own + size, mask=mask, other=0).to(tl.float64) - center
        value += tl.load(own + 2 * size, mask=mask, other=0).to(tl.float64)
        squares += tl.load(own + 3 * size, mask=mask, other=0).to(tl.float64)
        squares += tl.load(own, mask=mask, other=0).to(tl.float64) * value * value
    tl.store(found + index, total)
    tl.store(found + sets + index, center)
    tl.store(found + 2 * sets + index, tl.maximum(tl.sum(squares, 0), 0) / total)
    tl.store(found + 3 * sets + index, tl.where(total > 0, tl.max(largest, 0), float("nan")))
    tl.store(found + 4 * sets + index, tl.sum(zeros, 0) / total)
    tl.store(found + 5 * sets + index, tl.sum(beyond, 0) / total)
    tl.store(found + 6 * sets + index, values - total)
