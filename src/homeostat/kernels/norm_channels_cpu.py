"""Batch, instance and group normalization compiled for the CPU: how the passes are laid out and launched.

Channels last and (N, C) are rows of channels; narrow rows are folded, so that one loop covers several. Channels first
are runs of positions. Both are native. Small inputs do all phases in one serial launch. Not random.
"""

from __future__ import annotations

import math
import threading
from functools import lru_cache

import torch
from torch import Tensor

from homeostat.kernels.allocation import empty_like
from homeostat.kernels.launch import threads_for
from homeostat.kernels.layout import dense, dense_like
from homeostat.kernels.memory_cpu import passes_the_cache
from homeostat.kernels.norm_channels_passes_cpu import (
    APPLY,
    GRADIENT,
    MERGE,
    MERGE_SUMS,
    MOMENTS,
    PREPARE,
    PREPARE_GRADIENT,
    SUMS,
    TOTAL,
    backward,
    forward,
    update,
)

_UNIT = 32768  # elements of a unit of work: some hundred rows, so that few float64 sums are left to merge
_UNITS = 64  # at most: they divide evenly among threads
_MERGED = 65536  # float64 sums to merge, at most, where rows are wide
_FOLDED = 128  # columns that narrow rows are folded to, at least: then loops over columns are long enough
_STRIP = 512  # columns of a piece, at most: its parameters stay in the first level of the cache
_CHUNK = 4096  # positions of a run, at most

_SMALL = 16384  # float64 numbers of scratch memory that are kept
_NOTHING = {dtype: torch.empty(0, dtype=dtype, device="cpu") for dtype in (torch.float32, torch.float64)}
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.float64)}


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
    shape = (x.shape[0], groups) if groups else x.shape[1]
    if not x.numel():
        zero = torch.zeros(shape, dtype=torch.float64, device="cpu")
        return empty_like(x), zero, zero.clone()
    mean = torch.empty(shape, dtype=torch.float64, device="cpu")
    variance = torch.empty_like(mean)
    phases = (MOMENTS, MERGE | PREPARE, APPLY)
    return _forward(phases, x, last, mean, variance, weight, bias, residual, groups, eps, slope), mean, variance


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
    x, last = dense(input)
    if not x.numel():
        return empty_like(x)
    mean, variance = _statistics_like(x, mean, variance)
    return _forward((PREPARE, APPLY), x, last, mean, variance, weight, bias, residual, 0, eps, slope)


def statistics(input: Tensor) -> Tensor:
    """See `homeostat.kernels.norm_channels.statistics`."""
    x, last = dense(input)
    result = x.new_zeros((3, x.shape[1]), dtype=torch.float64)
    count = x.numel() // x.shape[1]
    if count:
        _forward((MOMENTS, MERGE), x, last, result[1], result[2], None, None, None, 0, 0.0, 1.0)
        result[0] = count
        result[2] *= count
    return result


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
    """See `homeostat.kernels.norm_channels_reference.gradient`."""
    x, last = dense(input)
    count = x.numel() // x.shape[1]
    share = 1 / max(count // x.shape[0] if groups and count else count, 1)
    return _backward(grad, x, last, mean, variance, weight, bias, output, groups, eps, slope, share)


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
    """See `homeostat.kernels.norm_channels_reference.affine_gradient`."""
    x, last = dense(input)
    mean, variance = _statistics_like(x, mean, variance)
    return _backward(grad, x, last, mean, variance, weight, bias, output, 0, eps, slope, 0.0)


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
    sums = x.new_zeros((2, x.shape[1]), dtype=torch.float64)
    masked = _NOTHING[x.dtype] if output is None else empty_like(x)
    if x.numel():
        keep = None if output is None else dense_like(output, x, last)
        places = (dense_like(grad, x, last), x, keep, masked, None)
        count, mean, squares = statistics.double().contiguous()
        given = (mean, squares / count, weight, bias)
        _launch_backward((SUMS, MERGE_SUMS), places, last, given, (sums, None, None), 0, eps, slope, 0.0)
    return sums, masked


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
    x, last = dense(input)
    dx = empty_like(x)
    if x.numel():
        places = (dense_like(grad, x, last), x, None, None, dx)
        count, mean, squares = statistics.double().contiguous()
        given = (mean, squares / count, weight, bias)
        phases, share = (PREPARE_GRADIENT, GRADIENT), 1 / float(count[0])
        _launch_backward(phases, places, last, given, (sums.double().contiguous(), None, None), 0, eps, slope, share)
    return dx


def _forward(
    phases: tuple[int, ...],
    x: Tensor,
    last: bool,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
) -> Tensor:
    """Run phases of the forward kernel; returns the output, without content where APPLY is not among them."""
    y = empty_like(x) if APPLY in phases else x
    keep = None if residual is None else dense_like(residual, x, last)
    weight, bias = _contiguous(weight), _contiguous(bias)
    dtype, elements = x.dtype, x.numel()
    geometry, parts, row_bytes, words = _geometry(x.shape, last, groups, x.element_size())
    threads = threads_for(elements, parts)
    scratch = _scratch(threads * words)
    place = y.data_ptr()
    past = passes_the_cache(place, elements * x.element_size(), row_bytes)
    arguments = (
        x.data_ptr(), _address(keep), place, _address(weight), _address(bias), mean.data_ptr(), variance.data_ptr(),
        mean.dtype is torch.float64, scratch.data_ptr(), threads, past, *geometry,
        eps, 0.0 - slope, math.inf if slope else _LARGEST[dtype],
    )  # fmt: skip
    if threads == 1 or groups:
        forward(dtype, threads, sum(phases), *arguments)
    else:
        for phase in phases:
            forward(dtype, threads if phase in (MOMENTS, APPLY) else 1, phase, *arguments)
    return y


def _backward(
    grad: Tensor,
    x: Tensor,
    last: bool,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
    share: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All gradients; share: 1 / elements of a channel that the statistics are computed from, 0 for constants."""
    channels = x.shape[1]
    if not x.numel():
        return empty_like(x), x.new_zeros(channels), x.new_zeros(channels), empty_like(x)
    dx, weight_grad, bias_grad = empty_like(x), x.new_empty(channels), x.new_empty(channels)
    keep = None if output is None else dense_like(output, x, last)
    masked = _NOTHING[x.dtype] if keep is None else empty_like(x)
    _launch_backward(
        (SUMS, MERGE_SUMS | PREPARE_GRADIENT | TOTAL, GRADIENT), (dense_like(grad, x, last), x, keep, masked, dx), last,
        (mean, variance, weight, bias), (None, weight_grad, bias_grad), groups, eps, slope, share,
    )  # fmt: skip
    return dx, weight_grad, bias_grad, masked


def _launch_backward(
    phases: tuple[int, ...],
    places: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    last: bool,
    given: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    totals: tuple[Tensor | None, Tensor | None, Tensor | None],
    groups: int,
    eps: float,
    slope: float,
    share: float,
) -> None:
    """Run phases of the backward kernel on (grad, input, output, masked, input_grad) and what belongs to channels."""
    g, x, keep, masked, dx = places
    mean, variance, weight, bias = given
    sums, weight_grad, bias_grad = totals
    weight, bias = _contiguous(weight), _contiguous(bias)
    dtype, elements = x.dtype, x.numel()
    geometry, parts, row_bytes, words = _geometry(x.shape, last, groups, x.element_size())
    threads = threads_for(elements, parts)
    words *= threads
    scratch = _scratch(words if sums is not None else words + (x.shape[0] if groups else 1) * 2 * x.shape[1])
    place = _address(dx)
    past = passes_the_cache(place, elements * x.element_size(), row_bytes)
    arguments = (
        g.data_ptr(), x.data_ptr(), _address(keep), _address(masked), place, _address(weight), _address(bias),
        mean.data_ptr(), variance.data_ptr(), mean.dtype is torch.float64,
        scratch.data_ptr() + 8 * words if sums is None else sums.data_ptr(), _address(weight_grad),
        _address(bias_grad), scratch.data_ptr(), threads, past, *geometry,
        eps, slope, -math.inf if slope == 1 else 0.0, math.inf if slope else _LARGEST[dtype], share,
    )  # fmt: skip
    if threads == 1:
        backward(dtype, 1, sum(phases), *arguments)
    elif groups:
        backward(dtype, threads, sum(phases) & ~TOTAL, *arguments)
        backward(dtype, 1, TOTAL, *arguments)
    else:
        for phase in phases:
            backward(dtype, threads if phase in (SUMS, GRADIENT) else 1, phase, *arguments)


def update_running(
    running_mean: Tensor, running_var: Tensor, mean: Tensor, variance: Tensor, momentum: float, correction: float
) -> None:
    """See `homeostat.kernels.norm_channels.update_running`; all of them contiguous."""
    torch.autograd.graph.increment_version((running_mean, running_var))
    update(
        running_mean.dtype, 1, running_mean.data_ptr(), running_var.data_ptr(), mean.data_ptr(), variance.data_ptr(),
        running_mean.numel(), momentum, correction,
    )  # fmt: skip


_kept = threading.local()


def _scratch(words: int) -> Tensor:
    """Memory for `words` float64 numbers; a small one is kept, by every Python thread, from one call to the next."""
    if words > _SMALL:
        return torch.empty(words, dtype=torch.float64, device="cpu")
    try:
        return _kept.scratch
    except AttributeError:
        _kept.scratch = torch.empty(_SMALL, dtype=torch.float64, device="cpu")
        return _kept.scratch


@lru_cache(maxsize=4096)
def _geometry(shape: torch.Size, last: bool, groups: int, size: int) -> tuple[tuple[int, ...], int, int, int]:
    """How an input is cut into units.

    Returns: the kernels' fields, how many parts threads can share, bytes of a row, words of scratch per thread.
    """
    examples, channels = shape[:2]
    positions = math.prod(shape[2:])
    sets = 1 if groups else examples  # examples that share their statistics
    if last:
        rows = sets * positions
        fold = _fold(channels)
        width, rows, tails = fold * channels, rows // fold, rows % fold
        strip = min(width, _STRIP)
        strips = -(-width // strip)
        units = min(rows, max(1, min(rows * width // _UNIT, _UNITS, _MERGED // width)))
        chunk = chunks = positions = 0
        pieces, row_bytes = units * strips, width * size
    else:
        rows = tails = strips = strip = 0
        width = channels
        chunk = -(-positions // -(-positions // _CHUNK))
        chunk = min(positions, -(-chunk // 16) * 16)
        chunks = -(-positions // chunk)
        units = sets * chunks
        pieces, row_bytes = units * channels, positions * size
    offsets, words = [], 0
    for needed in (2 * width * (units + 1), units, 2 * channels, 5 * width, 3 * strip):
        offsets.append(8 * words)
        words += -(-needed // 8) * 8
    geometry = (
        examples if groups else 1, rows, tails, channels, channels // groups if groups else 1, groups,
        math.prod(shape[1:]) * size, width, strip, strips, units, positions, chunk, chunks, pieces, 8 * words,
        *offsets[1:],
    )  # fmt: skip
    return geometry, examples if groups else pieces, row_bytes, words


def _fold(channels: int) -> int:
    """How many rows make one, so that loops over columns are long and fill whole vectors."""
    fold = 16 // math.gcd(channels, 16)
    if fold * channels > _STRIP:
        return 1
    while fold * channels < _FOLDED:
        fold *= 2
    return fold


def _statistics_like(x: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Given statistics in a dtype that kernels read: x's or float64."""
    if mean.dtype != variance.dtype or mean.dtype not in (x.dtype, torch.float64):
        mean, variance = mean.double(), variance.double()
    return mean.contiguous(), variance.contiguous()


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
