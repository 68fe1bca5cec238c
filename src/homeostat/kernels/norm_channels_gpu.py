"""Batch, instance and group normalization on the GPU: how the passes of `norm_channels_passes_gpu` are laid out.

Three launches each way: sums of tiles, their merging, and the writing. A tile is positions by channels, with the longer
side along the memory; a program goes over as many tiles as the shape says, never as many as the device has room for.
Groups of channels that lie together in memory and fit a program are normalized as rows, in one launch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.launch_gpu import REALS, bits, launch
from homeostat.kernels.layout import dense, dense_like
from homeostat.kernels.norm_channels_passes_gpu import apply, apply_gradient, merge, merge_sums, moments, sums
from homeostat.kernels.norm_rows_gpu import LONGEST, contiguous, normalize_runs

_TILE = 4096  # elements that a program holds at a time
_SMALLEST = 1024  # elements of a tile, where runs of positions are shorter than that
_WIDEST = 128  # channels of a tile, where they lie together
_PROGRAMS = 1024  # where there are more tiles than this, a program takes several ...
_STEPS = 64  # ... but no more than this


def normalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels.normalize`."""
    x, last = dense(input)
    examples, channels = x.shape[:2]
    shape = (examples, groups) if groups else (channels,)
    if not x.numel():
        zero = torch.zeros(shape, dtype=torch.float64, device=x.device)
        return torch.empty_like(x), zero, zero.clone()
    mean = torch.empty(shape, dtype=torch.float64, device=x.device)
    variance = torch.empty_like(mean)
    length = x.numel() // (examples * max(groups, 1))
    if groups and length <= LONGEST and x.is_contiguous():
        residual = None if residual is None else residual.contiguous()
        settings = (length, groups, x.shape[2:].numel(), eps, True, slope)
        return normalize_runs(x, weight, bias, residual, mean, variance, *settings), mean, variance
    _moments(x, last, groups, mean, variance, None)
    return _apply(x, last, mean, variance, weight, bias, residual, groups, eps, slope), mean, variance


def affine(
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
) -> Tensor:
    """See `homeostat.kernels.norm_channels.affine`."""
    return _apply(*dense(input), mean, variance, weight, bias, residual, 0, eps, slope)


def gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    groups: int,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels_reference`."""
    x, last = dense(input)
    partial, masked = _sums(grad, x, last, weight, bias, output, mean, variance, groups, eps, slope)
    totals, dw, db = _parameter_gradients(partial, x, weight, bias)
    share = mean.numel() / x.numel() if x.numel() else 0.0
    if groups:
        totals = torch.empty(2, mean.numel(), dtype=torch.float64, device=x.device)
        _merge_sums(partial, totals, None, None, weight, x.shape[1], groups)
    if output is not None:
        grad, slope = masked, 1.0
    settings = (mean, variance, weight, bias, totals, None, groups, eps, slope, share)
    return _apply_gradient(grad, x, last, *settings), dw, db, masked


def affine_gradient(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels_reference`."""
    x, last = dense(input)
    partial, masked = _sums(grad, x, last, weight, bias, output, mean, variance, 0, eps, slope)
    _, dw, db = _parameter_gradients(partial, x, weight, bias)
    if output is not None:
        grad, slope = masked, 1.0
    settings = (mean, variance, weight, bias, None, None, 0, eps, slope, 0.0)
    return _apply_gradient(grad, x, last, *settings), dw, db, masked


def statistics(input: Tensor) -> Tensor:
    """See `homeostat.kernels.norm_channels.statistics`."""
    x, last = dense(input)
    found = torch.zeros(3, x.shape[1], dtype=torch.float64, device=x.device)
    if x.numel():
        _moments(x, last, 0, found[1], None, found)
    return found


def gradient_sums(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels.gradient_sums`."""
    x, last = dense(input)
    variance = statistics[2] / statistics[0]
    partial, masked = _sums(grad, x, last, weight, bias, output, statistics[1], variance, 0, eps, slope)
    return _parameter_gradients(partial, x, None, None)[0], masked


def input_gradient(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sums: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """See `homeostat.kernels.norm_channels.input_gradient`."""
    count, mean, squares = statistics.contiguous()
    x, last = dense(input)
    settings = (mean, squares / count, weight, bias, sums.contiguous(), count, 0, eps, slope, 0.0)
    return _apply_gradient(grad, x, last, *settings)


class _Plan(NamedTuple):
    """How a tensor is cut into tiles and runs of tiles; a function of the shape alone."""

    numbers: tuple[int, ...]  # examples, channels, positions, groups, tiles of a unit, tiles of a run
    constants: dict[str, Any]
    units: int  # sets of examples with statistics of their own: 1 or the examples
    runs: int  # programs along the tiles of a unit
    strips: int  # programs along the channels
    warps: int
    tiles: int  # along the positions of an example


def _plan(x: Tensor, last: bool, groups: int) -> _Plan:
    examples, channels, positions = x.shape[0], x.shape[1], x.shape[2:].numel()
    if last and not groups:
        examples, positions = 1, examples * positions
    if last:
        width = min(triton.next_power_of_2(channels), _WIDEST)
        height = _TILE // width
    else:
        height = min(triton.next_power_of_2(positions), _TILE)
        width = min(triton.next_power_of_2(channels), max(16, _SMALLEST // height), _TILE // height)
    strips, tiles = triton.cdiv(channels, width), triton.cdiv(positions, height)
    units = examples if groups else 1
    total = examples // units * tiles
    steps = max(1, min(units * total * strips // _PROGRAMS, _STEPS))
    constants = {"REAL": REALS.get(x.dtype, tl.float32), "LAST": last, "HEIGHT": height, "WIDTH": width}
    numbers = (examples, channels, positions, groups, total, steps)
    warps = max(1, height * width // 512)
    return _Plan(numbers, constants, units, triton.cdiv(total, steps), strips, warps, tiles)


def _moments(x: Tensor, last: bool, groups: int, mean: Tensor, variance: Tensor | None, found: Tensor | None) -> None:
    """Mean and biased variance of every set; in `found`, (3, sets), count, mean and sum of squared deviations."""
    plan = _plan(x, last, groups)
    rows, channels = plan.units * plan.runs, x.shape[1]
    partial = torch.empty(3, rows, channels, dtype=_wide(x), device=x.device)
    launch(
        moments,
        rows * plan.strips,
        x,
        x,
        partial,
        *plan.numbers,
        plan.runs,
        plan.strips,
        warps=plan.warps,
        **plan.constants,
    )
    launch(
        merge, mean.numel(), x, partial, mean, variance, found, *plan.numbers, plan.runs, rows, mean.numel(),
        HEIGHT=plan.constants["HEIGHT"], GROUPED=groups > 0, BLOCK=256,
    )  # fmt: skip


def _apply(
    x: Tensor, last: bool, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None,
    residual: Tensor | None, groups: int, eps: float, slope: float,
) -> Tensor:  # fmt: skip
    y = torch.empty_like(x)
    if x.numel():
        residual = None if residual is None else dense_like(residual, x, last)
        plan = _plan(x, last, groups)
        launch(
            apply, plan.numbers[0] * plan.tiles * plan.strips, x, x, y, residual,
            *contiguous(mean, variance, weight, bias), *plan.numbers[:4], plan.tiles, plan.strips, bits(eps),
            bits(slope), warps=plan.warps, GROUPED=groups > 0,
            RECTIFIED=slope != 1, **plan.constants,
        )  # fmt: skip
    return y


def _sums(
    grad: Tensor, x: Tensor, last: bool, weight: Tensor | None, bias: Tensor | None, output: Tensor | None,
    mean: Tensor, variance: Tensor, groups: int, eps: float, slope: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Per run and channel the sums of d and d * xhat, (2, runs, channels), and the gradient before the activation."""
    grad = dense_like(grad, x, last)
    masked = x.new_empty(0) if output is None else torch.empty_like(x)
    if not x.numel():
        return torch.zeros(2, 0, x.shape[1], dtype=_wide(x), device=x.device), torch.empty_like(masked)
    plan = _plan(x, last, groups)
    rows = plan.units * plan.runs
    partial = torch.empty(2, rows, x.shape[1], dtype=_wide(x), device=x.device)
    output = None if output is None else dense_like(output, x, last)
    launch(
        sums, rows * plan.strips, x, x, grad, output, *contiguous(mean, variance, weight, bias), masked, partial,
        *plan.numbers, plan.runs, plan.strips, bits(eps), bits(slope), warps=plan.warps, GROUPED=groups > 0,
        RECTIFIED=slope != 1, **plan.constants,
    )  # fmt: skip
    return partial, masked


def _parameter_gradients(
    partial: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The sums of every channel, float64 (2, channels), and the gradients of weight and bias."""
    channels = x.shape[1]
    totals = torch.empty(2, channels, dtype=torch.float64, device=x.device)
    dw = torch.empty(channels, dtype=(x if weight is None else weight).dtype, device=x.device)
    db = torch.empty(channels, dtype=(x if bias is None else bias).dtype, device=x.device)
    if channels:
        _merge_sums(partial, totals, dw, db, None, channels, 0)
    return totals, dw, db


def _merge_sums(
    partial: Tensor, totals: Tensor, dw: Tensor | None, db: Tensor | None, weight: Tensor | None, channels: int,
    groups: int,
) -> None:  # fmt: skip
    """The sums of every channel, or (groups > 0) those of every set, weighted by the channels' weights."""
    sets, rows = totals.shape[1], partial.shape[1]
    runs = rows * groups // sets if groups else rows
    launch(
        merge_sums, sets, partial, partial, totals, dw, db, *contiguous(weight), rows, channels, groups, runs, sets,
        GROUPED=groups > 0, BLOCK=256,
    )  # fmt: skip


def _apply_gradient(
    grad: Tensor, x: Tensor, last: bool, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None,
    totals: Tensor | None, count: Tensor | None, groups: int, eps: float, slope: float, share: float,
) -> Tensor:  # fmt: skip
    dx = torch.empty_like(x)
    if x.numel():
        plan = _plan(x, last, groups)
        launch(
            apply_gradient, plan.numbers[0] * plan.tiles * plan.strips, x, x, dense_like(grad, x, last), dx,
            *contiguous(mean, variance, weight, bias), totals, count, *plan.numbers[:4], plan.tiles, plan.strips,
            bits(eps), bits(slope), bits(share), warps=plan.warps, GROUPED=groups > 0,
            RECTIFIED=slope != 1, **plan.constants,
        )  # fmt: skip
    return dx


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
