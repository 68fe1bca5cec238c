"""Gaussian noise compiled for the CPU: four examples at a time, whose normal numbers come out of one counter.

Logarithm, sine and cosine are written out as polynomials, because those of the C library do not vectorize.
Source of the polynomials: Moshier's Cephes library (logf, sinf, cosf), https://www.netlib.org/cephes/.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from homeostat.kernels.allocation import empty_like
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for
from homeostat.kernels.philox_cpu import HALF, LOW, philox

_BLOCK = 1024  # positions of four examples: short enough for the words to stay in the nearest cache

_FIELDS = Fields("x y examples runs length step seed example", "std")

_f = np.float32
_HALF, _ONE, _TWO = _f(0.5), _f(1.0), _f(2.0)
_SCALE = _f(2.0**-31)
_TURN = _f(math.pi / 2 / 2**30)  # the angle of a word's lower 30 bits
_ROOT = _f(math.sqrt(2))
_LN2_HIGH, _LN2_LOW = _f(0.693359375), _f(-2.12194440e-4)
_L0, _L1, _L2 = _f(7.0376836292e-2), _f(-1.1514610310e-1), _f(1.1676998740e-1)
_L3, _L4, _L5 = _f(-1.2420140846e-1), _f(1.4249322787e-1), _f(-1.6668057665e-1)
_L6, _L7, _L8 = _f(2.0000714765e-1), _f(-2.4999993993e-1), _f(3.3333331174e-1)
_S0, _S1, _S2 = _f(-1.9515295891e-4), _f(8.3321608736e-3), _f(-1.6666654611e-1)
_C0, _C1, _C2 = _f(2.443315711809948e-5), _f(-1.388731625493765e-3), _f(4.166664568298827e-2)


def add_noise(input: Tensor, seed: Tensor, std: float, example: int) -> Tensor:
    """See `homeostat.kernels.noise.add_noise`."""
    n = input.shape[0]
    runs, length = 1, input.shape[1:].numel()
    x = input.contiguous()
    if input.dim() == 4:
        channels = input.shape[1]
        if input.is_contiguous(memory_format=torch.channels_last):
            x = input.contiguous(memory_format=torch.channels_last)
        else:
            runs, length = channels, length // max(1, channels)
    y = empty_like(x)
    if x.numel():
        threads = threads_for(x.numel(), -(-n // 4) * runs)
        address, seed = x.data_ptr(), seed.contiguous()
        _add(x.dtype, threads, address, y.data_ptr(), n, runs, length, runs, seed.data_ptr(), example, std)
    return y


@kernel(_FIELDS)
def _add(real: Any) -> Any:
    """Every example has `runs` runs of `length` values; value i of run r has position r + i * step."""
    record, size = _FIELDS.record, np.dtype(real).itemsize
    add = _add_to_bytes if real is np.uint8 else _add_to_reals

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        words, normals = np.empty((4, _BLOCK), np.uint32), np.empty((4, _BLOCK), np.float32)
        first, blocks = a.example // 4, (a.length + _BLOCK - 1) // _BLOCK
        quads = (a.example + a.examples + 3) // 4 - first
        begin, end = share(a, quads * a.runs * blocks)
        for unit in range(begin, end):
            offset, row = unit % blocks * _BLOCK, unit // blocks
            number, quad = row % a.runs, first + row // a.runs
            n = min(_BLOCK, a.length - offset)
            _draw(words, n, number + offset * a.step, a.step, quad, key)
            _shape(words[0], words[1], normals[0], normals[1], n)
            _shape(words[2], words[3], normals[2], normals[3], n)
            for k in range(4):
                example = 4 * quad + k - a.example
                if 0 <= example < a.examples:
                    at = ((example * a.runs + number) * a.length + offset) * size
                    x, y = carray(pointer(a.x + at), (n,), real), carray(pointer(a.y + at), (n,), real)
                    add(x, y, normals[k], a.std, n)

    return run


@njit
def _draw(words: Any, n: Any, position: Any, step: Any, quad: Any, key: Any) -> None:
    w0, w1, w2, w3 = words[0], words[1], words[2], words[3]
    start, stride, q = np.uint64(position), np.uint64(step), np.uint64(quad)
    stream, k0, k1 = key[1] & LOW, key[0] & LOW, key[0] >> HALF
    for i in range(n):
        e = start + np.uint64(i) * stride
        r0, r1, r2, r3 = philox(e & LOW, e >> HALF, q, stream, k0, k1)
        w0[i], w1[i], w2[i], w3[i] = r0, r1, r2, r3


@njit
def _shape(radii: Any, angles: Any, first: Any, second: Any, n: Any) -> None:
    """Two words per place into two normal numbers."""
    for i in range(n):
        u = (_f(np.int32(radii[i] >> np.uint32(1))) + _HALF) * _SCALE
        radius = _f(math.sqrt(-_TWO * _log(u)))
        cosine, sine = _circle(angles[i])
        first[i] = radius * cosine
        second[i] = radius * sine


@njit(inline="always")
def _log(u: Any) -> Any:
    """The logarithm of a float32 in (0, 1]: of the mantissa in [√½, √2) by a polynomial, plus the exponent's."""
    bits = _f(u).view(np.int32)
    exponent = (bits >> np.int32(23)) - np.int32(127)
    mantissa = np.int32(bits & np.int32(0x7FFFFF) | np.int32(0x3F800000)).view(np.float32)
    above = mantissa > _ROOT
    t = (mantissa * _HALF if above else mantissa) - _ONE
    e = _f(exponent) + (_ONE if above else _f(0.0))
    p = (((_L0 * t + _L1) * t + _L2) * t + _L3) * t + _L4
    p = (((p * t + _L5) * t + _L6) * t + _L7) * t + _L8
    square = t * t
    return t + (p * t * square + e * _LN2_LOW - _HALF * square) + e * _LN2_HIGH


@njit(inline="always")
def _circle(word: Any) -> Any:
    """Cosine and sine of 2π word / 2**32: the quadrant from the upper bits, the rest, within π/4, by polynomials."""
    quadrant = (word + np.uint32(0x20000000)) >> np.uint32(30)
    t = _f(np.int32(word - (quadrant << np.uint32(30)))) * _TURN
    square = t * t
    sine = ((_S0 * square + _S1) * square + _S2) * square * t + t
    cosine = ((_C0 * square + _C1) * square + _C2) * square * square - _HALF * square + _ONE
    swapped = (quadrant & np.uint32(1)) != np.uint32(0)
    a, b = (sine if swapped else cosine), (cosine if swapped else sine)
    left = ((quadrant + np.uint32(1)) & np.uint32(2)) != np.uint32(0)
    below = (quadrant & np.uint32(2)) != np.uint32(0)
    return (-a if left else a), (-b if below else b)


@njit
def _add_to_reals(x: Any, y: Any, normals: Any, std: Any, n: Any) -> None:
    scale = y.dtype.type(std)
    for i in range(n):
        y[i] = x[i] + scale * normals[i]


@njit
def _add_to_bytes(x: Any, y: Any, normals: Any, std: Any, n: Any) -> None:
    scale, top, zero = _f(std), _f(255.0), _f(0.0)
    for i in range(n):
        value = _f(np.rint(_f(x[i]) + scale * normals[i]))
        y[i] = np.uint8(np.int32(min(max(value, zero), top)))
