"""DropConnect per example, compiled for the CPU: weights are masked in parts that stay in the cache, and used at once.

Four examples share a counter, so a part of a weight's row is masked for the four together. What a unit of work writes
no other unit writes, and its sums have a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray
from torch import Tensor

from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.launch import Fields, Kernel, kernel, pointer, share, threads_for
from homeostat.kernels.philox_cpu import HALF, LOW, philox

_PART = 512  # weights of a row that are masked at a time: four times that stays in the first cache
_OUTPUTS = 16  # rows of the weight in a unit of the product

_FIELDS = Fields("x w y examples rows inputs outputs seed threshold example position", "scale")


def product(input: Tensor, weight: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect`."""
    output = input.new_zeros(*input.shape[:-1], weight.shape[0])
    units = (len(input) // 4 + 1) * -(-len(weight) // _OUTPUTS)
    _launch(_product, units, (input, weight, output), seed, p, example, position)
    return output


def input_gradient(grad: Tensor, weight: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect_input`."""
    input = grad.new_zeros(*grad.shape[:-1], weight.shape[1])
    units = (len(grad) // 4 + 1) * -(-weight.shape[1] // _PART)
    _launch(_input_gradient, units, (input, weight, grad), seed, p, example, position)
    return input


def weight_gradient(grad: Tensor, input: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect_weight`."""
    weight = grad.new_zeros(grad.shape[-1], input.shape[-1])
    units = len(weight) * -(-weight.shape[1] // _PART)
    _launch(_weight_gradient, units, (input, weight, grad), seed, p, example, position)
    return weight


def _launch(
    run: Kernel, units: int, tensors: tuple[Tensor, ...], seed: Tensor, p: float, example: int, position: int
) -> None:
    """Run on x (N, T, I), w (O, I), y (N, T, O), of which one is the result and zero."""
    x, w, y = (tensor.contiguous() for tensor in tensors)
    limit = threshold(p)
    if limit >> 32 or not (x.numel() and w.numel()):
        return
    seed = seed.contiguous()
    run(
        x.dtype, threads_for(len(x) * w.numel(), units), x.data_ptr(), w.data_ptr(), y.data_ptr(), *x.shape, len(w),
        seed.data_ptr(), limit, example, position, 1 / (1 - p),
    )  # fmt: skip


@kernel(_FIELDS)
def _product(real: Any) -> Any:
    record, size, zero = _FIELDS.record, np.dtype(real).itemsize, real(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale, masked = np.uint32(a.threshold), real(a.scale), np.empty((4, _PART), real)
        m0, m1, m2, m3 = masked[0], masked[1], masked[2], masked[3]
        first, blocks = a.example // 4, (a.outputs + _OUTPUTS - 1) // _OUTPUTS
        begin, end = share(a, ((a.example + a.examples + 3) // 4 - first) * blocks)
        for unit in range(begin, end):
            quad, start = first + unit // blocks, unit % blocks * _OUTPUTS
            low, high = max(4 * quad, a.example), min(4 * quad + 4, a.example + a.examples)
            for o in range(start, min(start + _OUTPUTS, a.outputs)):
                for offset in range(0, a.inputs, _PART):
                    n, at = min(_PART, a.inputs - offset), o * a.inputs + offset
                    w, e = carray(pointer(a.w + at * size), (n,), real), np.uint64(a.position + at)
                    for i in range(n):
                        c = e + np.uint64(i)
                        r0, r1, r2, r3 = philox(c, c >> HALF, np.uint64(quad), stream, k0, k1)
                        m0[i] = w[i] if np.uint32(r0) >= limit else zero
                        m1[i] = w[i] if np.uint32(r1) >= limit else zero
                        m2[i] = w[i] if np.uint32(r2) >= limit else zero
                        m3[i] = w[i] if np.uint32(r3) >= limit else zero
                    for g in range(low, high):
                        mask = masked[g - 4 * quad]
                        for t in range((g - a.example) * a.rows, (g - a.example + 1) * a.rows):
                            x = carray(pointer(a.x + (t * a.inputs + offset) * size), (n,), real)
                            y = carray(pointer(a.y + (t * a.outputs + o) * size), (1,), real)
                            total = zero
                            for i in range(n):
                                total += x[i] * mask[i]
                            y[0] += total * scale

    return run


@kernel(_FIELDS)
def _input_gradient(real: Any) -> Any:
    record, size, zero = _FIELDS.record, np.dtype(real).itemsize, real(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale, masked = np.uint32(a.threshold), real(a.scale), np.empty((4, _PART), real)
        m0, m1, m2, m3 = masked[0], masked[1], masked[2], masked[3]
        first, parts = a.example // 4, (a.inputs + _PART - 1) // _PART
        begin, end = share(a, ((a.example + a.examples + 3) // 4 - first) * parts)
        for unit in range(begin, end):
            quad, offset = first + unit // parts, unit % parts * _PART
            low, high = max(4 * quad, a.example), min(4 * quad + 4, a.example + a.examples)
            n = min(_PART, a.inputs - offset)
            for o in range(a.outputs):
                at = o * a.inputs + offset
                w, e = carray(pointer(a.w + at * size), (n,), real), np.uint64(a.position + at)
                for i in range(n):
                    c = e + np.uint64(i)
                    r0, r1, r2, r3 = philox(c, c >> HALF, np.uint64(quad), stream, k0, k1)
                    m0[i] = w[i] if np.uint32(r0) >= limit else zero
                    m1[i] = w[i] if np.uint32(r1) >= limit else zero
                    m2[i] = w[i] if np.uint32(r2) >= limit else zero
                    m3[i] = w[i] if np.uint32(r3) >= limit else zero
                for g in range(low, high):
                    mask = masked[g - 4 * quad]
                    for t in range((g - a.example) * a.rows, (g - a.example + 1) * a.rows):
                        x = carray(pointer(a.x + (t * a.inputs + offset) * size), (n,), real)
                        factor = carray(pointer(a.y + (t * a.outputs + o) * size), (1,), real)[0] * scale
                        for i in range(n):
                            x[i] += factor * mask[i]

    return run


@kernel(_FIELDS)
def _weight_gradient(real: Any) -> Any:
    record, size, zero = _FIELDS.record, np.dtype(real).itemsize, real(0)

    def run(block: Any) -> None:
        a = carray(block, (1,), record)[0]
        key = carray(pointer(a.seed), (2,), np.uint64)
        k0, k1, stream = key[0] & LOW, key[0] >> HALF, key[1] & LOW
        limit, scale, outer = np.uint32(a.threshold), real(a.scale), np.empty((4, _PART), real)
        s0, s1, s2, s3 = outer[0], outer[1], outer[2], outer[3]
        first, last, parts = a.example // 4, (a.example + a.examples + 3) // 4, (a.inputs + _PART - 1) // _PART
        begin, end = share(a, a.outputs * parts)
        for unit in range(begin, end):
            o, offset = unit // parts, unit % parts * _PART
            n, at = min(_PART, a.inputs - offset), o * a.inputs + offset
            w, e = carray(pointer(a.w + at * size), (n,), real), np.uint64(a.position + at)
            for quad in range(first, last):
                for g in range(4 * quad, 4 * quad + 4):
                    part = outer[g - 4 * quad]
                    part[:] = zero
                    if a.example <= g < a.example + a.examples:
                        for t in range((g - a.example) * a.rows, (g - a.example + 1) * a.rows):
                            x = carray(pointer(a.x + (t * a.inputs + offset) * size), (n,), real)
                            factor = carray(pointer(a.y + (t * a.outputs + o) * size), (1,), real)[0] * scale
                            for i in range(n):
                                part[i] += factor * x[i]
                for i in range(n):
                    c = e + np.uint64(i)
                    r0, r1, r2, r3 = philox(c, c >> HALF, np.uint64(quad), stream, k0, k1)
                    lower = (s0[i] if np.uint32(r0) >= limit else zero) + (s1[i] if np.uint32(r1) >= limit else zero)
                    upper = (s2[i] if np.uint32(r2) >= limit else zero) + (s3[i] if np.uint32(r3) >= limit else zero)
                    w[i] += lower + upper

    return run
