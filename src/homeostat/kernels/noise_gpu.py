"""Gaussian noise compiled for the GPU: a program draws for a run of positions of four examples, which share words."""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.kernels.launch_gpu import REALS, bits, launch, real
from homeostat.kernels.philox_gpu import draw_four, stream

_BLOCK = 512  # positions of four examples that a program takes


def add_noise(input: Tensor, seed: Tensor, std: float, example: int) -> Tensor:
    """See `homeostat.kernels.noise.add_noise`."""
    last = input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last)
    x = input.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    examples, positions = x.shape[0], x.numel() // x.shape[0]
    channels = x.shape[1] if x.dim() == 4 and not last else 1
    quads, blocks = triton.cdiv(example % 4 + examples, 4), triton.cdiv(positions, _BLOCK)
    launch(
        _add, quads * blocks, x, x, y, examples, positions, channels, blocks, *stream(seed), bits(std), example % 4,
        example // 4, REAL=REALS.get(x.dtype, tl.float32), BYTES=x.dtype == torch.uint8, BLOCK=_BLOCK,
    )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["key", "key_high", "number", "std", "lead", "quad", "examples", "blocks"])
def _add(
    x, y, examples: tl.int64, positions: tl.int64, channels: tl.int64, blocks: tl.int32, key: tl.int32,
    key_high: tl.int32, number: tl.int32, std: tl.int64, lead: tl.int32, quad: tl.int64, REAL: tl.constexpr,
    BYTES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """x, y (examples, positions); of a position in memory, `channels` is how many rows lie one after the other."""
    row = (tl.program_id(0) // blocks).to(tl.int64)
    place = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < positions
    space = positions // channels
    channel = place // space
    position = (place - channel * space) * channels + channel
    w0, w1, w2, w3 = draw_four(position, position >> 32, (quad + row) + tl.zeros_like(position), key, key_high, number)
    z0, z1 = _normals(w0, w1)
    z2, z3 = _normals(w2, w3)
    scale = real(std, REAL)
    first = 4 * row - lead
    _put(x, y, first, z0, scale, place, inside, examples, positions, REAL, BYTES)
    _put(x, y, first + 1, z1, scale, place, inside, examples, positions, REAL, BYTES)
    _put(x, y, first + 2, z2, scale, place, inside, examples, positions, REAL, BYTES)
    _put(x, y, first + 3, z3, scale, place, inside, examples, positions, REAL, BYTES)


@triton.jit
def _normals(a, b):
    """Two words into two normal numbers, see `noise_reference`.

    The quadrant is the angle's upper bits, so that the sine needs no general reduction, which would not stay in
    registers; within π/4 it is a polynomial, as in `noise_cpu`.
    """
    uniform = ((a >> 1).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10  # 2**-31
    radius = tl.sqrt(-2.0 * tl.log(uniform))
    quadrant = tl.add(b, 0x20000000, sanitize_overflow=False) >> 30
    rest = tl.sub(b, quadrant << 30, sanitize_overflow=False)
    t = rest.to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09  # π / 2 / 2**30
    square = t * t
    sine = ((-1.9515295891e-4 * square + 8.3321608736e-3) * square - 1.6666654611e-1) * square * t + t
    cosine = (2.443315711809948e-5 * square - 1.388731625493765e-3) * square + 4.166664568298827e-2
    cosine = cosine * square * square - 0.5 * square + 1.0
    swapped = (quadrant & 1) != 0
    first, second = tl.where(swapped, sine, cosine), tl.where(swapped, cosine, sine)
    first = tl.where(((quadrant + 1) & 2) != 0, -first, first)
    second = tl.where((quadrant & 2) != 0, -second, second)
    return radius * first, radius * second


@triton.jit
def _put(
    x, y, example, normal, scale, place, inside, examples, positions, REAL: tl.constexpr, BYTES: tl.constexpr
):  # fmt: skip
    """One example's sums."""
    example += tl.zeros_like(place)
    mask = inside & (example >= 0) & (example < examples)
    at = example * positions + place
    value = tl.load(x + at, mask=mask, other=0).to(REAL) + scale * normal.to(REAL)
    if BYTES:
        value = tl.minimum(tl.maximum(value, 0.0), 255.0)
        whole = value.to(tl.int32)
        rest = value - whole.to(REAL)
        up = (rest > 0.5) | ((rest == 0.5) & ((whole & 1) == 1))  # half to even, as torch.round
        tl.store(y + at, (whole + up.to(tl.int32)).to(tl.uint8), mask=mask)
    else:
        tl.store(y + at, value, mask=mask)
