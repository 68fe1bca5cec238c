"""Dropout compiled for the GPU: every element is read and written once, and the draws are made in between.

Single elements: a program draws for four examples at a time, which share a counter, and holds a run of positions of
each. Channels and rows: one draw per unit, and dropped units are not even read.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.dropout_reference import layout, threshold
from homeostat.kernels.launch_gpu import REALS, beside, bits, halves, launch, real
from homeostat.kernels.philox_gpu import draw, draw_four, stream

_BLOCKS = (1024, 512, 256)  # positions of four examples that a program takes
_TILE = 4096  # elements that a program takes where units are dropped


def dropout(input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.dropout.dropout`."""
    form = layout(input, dims)
    last = form is not torch.contiguous_format
    x = input.contiguous(memory_format=form)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    limit = threshold(p)
    if limit >> 32:  # p is 1, or so near that no word is large enough
        return y.zero_()
    draws = (*stream(seed), limit, bits(1 / (1 - p)))
    if dims == x.dim():
        _launch_elements(x, y, draws, example, position, last)
    else:
        _launch_units(x, y, draws, dims, example, position, last)
    return y


def _launch_elements(x: Tensor, y: Tensor, draws: tuple[int, ...], example: int, position: int, last: bool) -> None:
    examples, positions = x.shape[0], x.numel() // x.shape[0]
    lead, quads = example % 4, triton.cdiv(example % 4 + examples, 4)
    block = next((b for b in _BLOCKS if positions % b == 0), _BLOCKS[0])
    real_type = REALS.get(x.dtype, tl.float32)
    common = {"warps": min(max(block * x.element_size() // 512, 1), 8), "BLOCK": block}  # a thread takes 16 bytes a row
    if positions == 1:
        launch(
            _singles, triton.cdiv(4 * quads, 4 * block), x, x, y, examples, *draws, lead, example // 4,
            *halves(position), REAL=real_type, **common,
        )  # fmt: skip
        return
    flat = positions % block != 0 and positions < 4 * block
    blocks = triton.cdiv(positions, block)
    wide = positions >= 1 << 31 or position >> 32 != (position + positions - 1) >> 32
    launch(
        _elements, triton.cdiv(quads * positions, block) if flat else quads * blocks, x, x, y, examples, positions,
        x.shape[1] if last else 1, blocks, *draws, lead, example // 4,
        *halves(position), REAL=real_type, LAST=last, FLAT=flat, WIDE=wide, **common,
    )  # fmt: skip


def _launch_units(
    x: Tensor, y: Tensor, draws: tuple[int, ...], dims: int, example: int, position: int, last: bool
) -> None:
    examples, units = x.shape[0], x.shape[1:dims].numel()
    inner = x.numel() // (examples * units)
    last = last and units > 1
    width = units if last else inner
    columns = min(_TILE // 4 if last else _TILE, triton.next_power_of_2(width))
    rows = _TILE // columns
    tiles, strips = triton.cdiv(inner if last else examples * units, rows), triton.cdiv(width, columns)
    launch(
        _units_last if last else _units, (examples if last else 1) * tiles * strips, x, x, y, examples, units, inner,
        tiles, strips, *draws, example, position, REAL=REALS.get(x.dtype, tl.float32), WIDE=units >= 1 << 30,
        ROWS=rows, COLUMNS=columns,
    )  # fmt: skip


@triton.jit(
    do_not_specialize=[
        "examples",
        "channels",
        "blocks",
        "key",
        "key_high",
        "number",
        "limit",
        "scale",
        "lead",
        "first_quad",
        "low",
        "high",
    ]
)
def _elements(
    x, y, examples: tl.int64, positions: tl.int64, channels: tl.int32, blocks: tl.int32, key: tl.int32,
    key_high: tl.int32, number: tl.int32, limit: tl.int64, scale: tl.int64, lead: tl.int32, first_quad: tl.int64,
    low: tl.int32, high: tl.int32,
    REAL: tl.constexpr, LAST: tl.constexpr, FLAT: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y (examples, positions): BLOCK positions of four examples.

    LAST: the memory holds positions with their channels last. FLAT: positions are few, and a program's places run on
    into the next four examples. WIDE: positions pass a multiple of 2**32, or their number does not fit 31 bits.
    """
    pid = tl.program_id(0)
    if FLAT:
        size = positions.to(tl.int32)
        within = pid % size * BLOCK
        quad = (pid // size).to(tl.int64) * BLOCK + within // size
        at = within % size + tl.arange(0, BLOCK)
        further = at // size
        at -= further * size
        offset = further * (4 * size) + at
        row = 4 * (quad + further) - lead
    else:
        quad = (pid // blocks).to(tl.int64)
        start = (pid % blocks).to(tl.int64) * BLOCK if WIDE else pid % blocks * BLOCK
        at = start + tl.arange(0, BLOCK)
        further = 0
        offset = at
        row = 4 * quad - lead
    base = (4 * quad - lead) * positions
    m0, m1 = _present(at, row, examples, positions), _present(at, row + 1, examples, positions)
    m2, m3 = _present(at, row + 2, examples, positions), _present(at, row + 3, examples, positions)
    x0, y0 = x + base, y + base
    x1, y1 = x0 + positions, y0 + positions
    x2, y2 = x1 + positions, y1 + positions
    x3, y3 = x2 + positions, y2 + positions
    v0, v1 = tl.load(x0 + offset, mask=m0), tl.load(x1 + offset, mask=m1)
    v2, v3 = tl.load(x2 + offset, mask=m2), tl.load(x3 + offset, mask=m3)
    at = at if WIDE else beside(at, v0)
    if LAST:
        count = positions if WIDE else positions.to(tl.int32)
        at = at % channels * (count // channels) + at // channels
    if WIDE:
        at += (high.to(tl.int64) << 32) + low.to(tl.uint32)
        high = at >> 32
    else:
        at = tl.add(at.to(tl.uint32), low.to(tl.uint32), sanitize_overflow=False)
    w0, w1, w2, w3 = draw_four(at, high, first_quad + quad + further, key, key_high, number)
    tl.store(y0 + offset, _kept(v0, w0, limit, scale, REAL), mask=m0)
    tl.store(y1 + offset, _kept(v1, w1, limit, scale, REAL), mask=m1)
    tl.store(y2 + offset, _kept(v2, w2, limit, scale, REAL), mask=m2)
    tl.store(y3 + offset, _kept(v3, w3, limit, scale, REAL), mask=m3)


@triton.jit(do_not_specialize=["key", "key_high", "number", "limit", "scale", "first_quad", "low", "high"])
def _singles(
    x, y, examples: tl.int64, key: tl.int32, key_high: tl.int32, number: tl.int32, limit: tl.int64, scale: tl.int64,
    lead: tl.int32, first_quad: tl.int64, low: tl.int32, high: tl.int32, REAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y (examples,): one position each, so that the four words of a counter lie side by side."""
    pid = tl.program_id(0).to(tl.int64)
    offset = 4 * BLOCK * pid - lead + tl.arange(0, 4 * BLOCK)
    inside = (offset >= 0) & (offset < examples)
    value = tl.load(x + offset, mask=inside)
    quad = first_quad + pid * BLOCK + tl.arange(0, BLOCK)
    w0, w1, w2, w3 = draw_four(low, high, quad, key, key_high, number)
    words = tl.reshape(tl.join(tl.join(w0, w2), tl.join(w1, w3)), (4 * BLOCK,))
    tl.store(y + offset, _kept(value, words, limit, scale, REAL), mask=inside)


@triton.jit(
    do_not_specialize=[
        "examples",
        "tiles",
        "strips",
        "key",
        "key_high",
        "number",
        "limit",
        "scale",
        "example",
        "position",
    ]
)
def _units(
    x, y, examples: tl.int64, units: tl.int64, inner: tl.int64, tiles: tl.int32, strips: tl.int32, key: tl.int32,
    key_high: tl.int32, number: tl.int32, limit: tl.int64, scale: tl.int64, example: tl.int64, position: tl.int64,
    REAL: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x, y (examples, units, inner): ROWS units, COLUMNS of their elements."""
    pid = tl.program_id(0)
    first = (pid // strips).to(tl.int64) * ROWS
    image = first // units
    local = (first - image * units) + tl.arange(0, ROWS)
    size = units
    if not WIDE:
        local, size = local.to(tl.int32), units.to(tl.int32)
    further = local // size
    word = draw(position + (local - further * size), example + image + further, key, key_high, number)
    row = first + tl.arange(0, ROWS)
    column = (pid % strips).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    keep = (word >= limit.to(tl.uint32)) & (row < examples * units)
    offset = row[:, None] * inner + column[None, :]
    inside = (row < examples * units)[:, None] & (column < inner)[None, :]
    value = tl.load(x + offset, mask=inside & keep[:, None], other=0).to(REAL) * real(scale, REAL)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(
    do_not_specialize=[
        "examples",
        "tiles",
        "strips",
        "key",
        "key_high",
        "number",
        "limit",
        "scale",
        "example",
        "position",
    ]
)
def _units_last(
    x, y, examples: tl.int64, units: tl.int64, inner: tl.int64, tiles: tl.int32, strips: tl.int32, key: tl.int32,
    key_high: tl.int32, number: tl.int32, limit: tl.int64, scale: tl.int64, example: tl.int64, position: tl.int64,
    REAL: tl.constexpr, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x, y (examples, inner, units): of one example, COLUMNS units and ROWS of their elements."""
    pid = tl.program_id(0)
    image = (pid // (tiles * strips)).to(tl.int64)
    row = (pid // strips % tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = pid % strips * COLUMNS + tl.arange(0, COLUMNS)
    keep = draw(position + column, example + image, key, key_high, number) >= limit.to(tl.uint32)
    offset = image * inner * units + row[:, None] * units + column[None, :]
    inside = (row < inner)[:, None] & (column < units)[None, :]
    value = tl.load(x + offset, mask=inside)
    value = tl.where(keep[None, :], value.to(REAL) * real(scale, REAL), 0)
    tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _present(at, row, examples, positions):
    return at < tl.where((row >= 0) & (row < examples), positions, 0)


@triton.jit
def _kept(value, word, limit, scale, REAL: tl.constexpr):
    kept = tl.where(word >= limit.to(tl.uint32), value.to(REAL) * real(scale, REAL), 0)
    return kept.to(value.dtype)
