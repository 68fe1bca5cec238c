"""Moments of a tensor, or of its channels, in one pass over memory: for watching a network while it trains.

Checks and choice of the backend; the arithmetic is in `moments_cpu`, `_gpu` and `_reference`. No gradient. Not random.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation, widest_dtype
from homeostat.kernels.operator import Operator


class Moments(NamedTuple):
    """What `moments` returns: tensors of shape () or, per channel, (channels,); views of one, float64 (MPS: float32).

    Of a set without finite values, all but the counts are NaN.
    """

    count: Tensor  # type: ignore[assignment]  # and not tuple's method
    """How many values are finite; the statistics are over these."""
    mean: Tensor
    variance: Tensor
    """Biased, with 1/n."""
    abs_max: Tensor
    zeros: Tensor
    """The share of values that are 0."""
    beyond: Tensor
    """The share of values x with |x| > bound."""
    nonfinite: Tensor
    """How many values are NaN or infinite."""


def moments(input: Tensor, *, dim: int | None = None, bound: float = math.inf, backend: str | None = None) -> Moments:
    """Count, mean, variance, largest magnitude, share of zeros, share beyond a bound and number of NaN and infinities.

    Args:
        input: floating, any shape and layout; only its values are used, no gradient passes.
        dim: the dimension to keep, one set of values for each of its indices (1: channels); None: one set in all.
        bound: values of larger magnitude are counted as beyond.
        backend: numba, triton or reference; None chooses.
    Returns: the moments, on the input's device.
    Raises: InvalidType for a tensor that is not floating, InvalidValue for a dim it does not have or a bound below 0.
    Source: Chan, Golub and LeVeque 1979, STAN-CS-79-773 (merging).
    Example:
        >>> watched = moments(torch.tensor([[0.0, 4.0], [2.0, float("nan")]]), bound=3)
        >>> watched.mean.item(), watched.nonfinite.item(), round(watched.beyond.item(), 2)
        (2.0, 1.0, 0.33)
    """
    if not input.dtype.is_floating_point:
        raise invalid_type("moments", "input", "be a floating tensor", input, "Convert it first, e.g. with .float().")
    if not bound >= 0:
        raise invalid("moments", "bound", "be a number >= 0", bound)
    if dim is None:
        return Moments(*moments_of(input.detach(), None, bound, backend)[:, 0].unbind())
    dims = input.dim()
    if not -dims <= dim < dims:
        raise invalid("moments", "dim", f"lie in [{-dims}, {dims - 1}]", dim, "None takes the whole tensor as one set.")
    return Moments(*moments_of(input.detach(), dim % dims, bound, backend).unbind())


def _compute(input: Tensor, dim: int | None, bound: float, backend: str | None) -> Tensor:
    module = implementation("moments", choose("moments", input, backend))
    exact = bound if input.dtype is torch.float64 else _rounded_down(float(bound))
    return module.moments(_in_memory_order(input, dim), exact)


@lru_cache(maxsize=128)
def _rounded_down(bound: float) -> float:
    """The largest float32 that is at most `bound`: the same float32 values are larger."""
    nearest = torch.tensor(bound, dtype=torch.float32, device="cpu")
    return (nearest if nearest.item() <= bound else nearest.nextafter(torch.full_like(nearest, -torch.inf))).item()


def _in_memory_order(input: Tensor, dim: int | None) -> Tensor:
    """The values as they lie in memory, shape (outer, sets, inner): a view, unless the tensor has gaps or overlaps."""
    x = input
    if not x.is_contiguous():
        order = sorted(range(x.dim()), key=x.stride, reverse=True)
        x = x.permute(order)
        dim = dim if dim is None else order.index(dim)
    if dim is None:
        return x.contiguous().reshape(1, 1, -1)
    outer, inner = x.shape[:dim].numel(), x.shape[dim + 1 :].numel()
    return x.contiguous().reshape(outer, x.shape[dim], inner)


def _shape(input: Tensor, dim: int | None, *_: Any) -> Tensor:
    return input.new_empty((7, 1 if dim is None else input.shape[dim]), dtype=widest_dtype(input.device))


moments_of = Operator("moments(Tensor input, int? dim, float bound, str? backend) -> Tensor", _compute, _shape)
