"""Dropout: checks, choice of the backend, gradient. The arithmetic is in `dropout_cpu`, `_gpu` and `_reference`.

Random: a mask is a pure function of a seed and of each unit's place, see `philox_reference`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from homeostat.kernels.backend import choose
from homeostat.kernels.operator import Operator


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """A fresh stream: int64 (key, number), drawn from `generator` or from torch's own on the CPU."""
    return torch.empty(2, dtype=torch.int64).random_(generator=generator)


def _compute(
    input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int, backend: str | None
) -> Tensor:
    module = _implementation(choose("dropout", input, backend))
    return module.dropout(input, seed, p, dims, example, position)


def _implementation(backend: str) -> ModuleType:
    if backend == "numba":
        from homeostat.kernels import dropout_cpu

        return dropout_cpu
    from homeostat.kernels import dropout_reference

    return dropout_reference


def _shape(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.settings = inputs[2:]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The same units of the gradient are dropped: linear, so this serves derivatives of every order."""
    return dropout(grad, ctx.saved_tensors[0], *ctx.settings), None, None, None, None, None, None


dropout = Operator(
    "dropout(Tensor input, Tensor seed, float p, int dims, int example, int position, str? backend) -> Tensor",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
)
