"""DropConnect per example in plain torch, one example's mask at a time: fallback and truth for `kernels.drop_connect`.

float16 and bfloat16 compute in float32 and round once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.philox_reference import words


def product(input: Tensor, weight: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect`."""
    x, w = _wide(input), _wide(weight)
    y = x.new_empty(*x.shape[:-1], len(w))
    for n in range(len(x)):
        y[n] = x[n] @ _dropped(w, seed, p, example + n, position).T
    return y.to(input.dtype)


def input_gradient(grad: Tensor, weight: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect_input`."""
    g, w = _wide(grad), _wide(weight)
    x = g.new_empty(*g.shape[:-1], w.shape[1])
    for n in range(len(g)):
        x[n] = g[n] @ _dropped(w, seed, p, example + n, position)
    return x.to(grad.dtype)


def weight_gradient(grad: Tensor, input: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.drop_connect.drop_connect_weight`."""
    g, x = _wide(grad), _wide(input)
    w = g.new_zeros(g.shape[-1], x.shape[-1])
    for n in range(len(g)):
        w += _dropped(g[n].T @ x[n], seed, p, example + n, position)
    return w.to(grad.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.element_size() < 4 else tensor


def _dropped(matrix: Tensor, seed: Tensor, p: float, example: int, position: int) -> Tensor:
    """The matrix (O, I) as one example sees it."""
    keep = words(seed, 1, matrix.numel(), example, position).reshape(matrix.shape).to(matrix.device) >= threshold(p)
    return torch.where(keep, matrix * (1 / (1 - p) if p < 1 else 0.0), 0.0)
