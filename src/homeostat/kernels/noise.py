"""Gaussian noise added to a batch in one pass over memory. Checks, choice of the backend, gradient.

The arithmetic is in `noise_cpu`, `_gpu` and `_reference`. Random: a draw is a pure function of a seed and of its place,
see `noise_reference`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation
from homeostat.kernels.dropout import check_place, check_seed
from homeostat.kernels.operator import Operator


def _compute(input: Tensor, seed: Tensor, std: float, example: int, backend: str | None) -> Tensor:
    _check(input, seed, std, example)
    # Bytes become floats on the way: that can be done wherever floats can.
    kind = input if input.dtype != torch.uint8 else input[:0].float()
    module = implementation("noise", choose("add_noise", kind, backend))
    output: Tensor = module.add_noise(input, seed, std, example)
    like = torch.empty_like(input)
    return output if output.stride() == like.stride() else like.copy_(output)


def _check(input: Tensor, seed: Tensor, std: float, example: int) -> None:
    if input.dtype != torch.uint8 and not input.dtype.is_floating_point:
        raise invalid_type("add_noise", "input", "be uint8 or floating", input)
    if not input.dim():
        raise invalid("add_noise", "input", "have a first dimension, the examples", input)
    check_seed("add_noise", seed)
    if not (math.isfinite(std) and std >= 0):
        raise invalid("add_noise", "std", "be finite and at least 0", std)
    check_place("add_noise", 0.0, example, input.shape[0], 0)


def _shape(input: Tensor, seed: Tensor, std: float, example: int, backend: str | None) -> Tensor:
    _check(input, seed, std, example)
    return torch.empty_like(input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """What is added does not depend on the input: the gradient needs nothing."""


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad, None, None, None, None


add_noise = Operator(
    "add_noise(Tensor input, Tensor seed, float std, int example, str? backend) -> Tensor",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
)
"""The input plus independent draws of N(0, std²).

The normal numbers have the precision of float32, whatever the input's, and go up to 6.66 standard deviations. Every
backend, memory format, number of threads and division of the batch gives the same ones, to rounding. A sum in uint8 is
rounded and kept in 0..255.

Args:
    input: uint8 or floating, (N, ...).
    seed: the stream, int64 of shape (2,) on the CPU; `homeostat.kernels.dropout.draw_seed` makes one.
    std: the standard deviation in the input's own unit; finite, at least 0.
    example: index of the first example, where the input is a part of a larger batch.
    backend: see `homeostat.kernels.backend`; None chooses.
Returns: a new tensor like the input.
Raises: InvalidValue, InvalidType for arguments outside of what is said above.
Source: Box & Muller 1958, doi:10.1214/aoms/1177706645; Salmon et al. 2011, doi:10.1145/2063384.2063405.
"""
