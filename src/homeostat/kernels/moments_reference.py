"""Moments in plain torch, for any device and dtype: the fallback of `kernels.moments` and its truth."""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels.backend import widest_dtype


def moments(input: Tensor, bound: float) -> Tensor:
    """The moments of every set, `widest_dtype` of shape (7, sets), in the order of `homeostat.kernels.moments.Moments`.

    Args:
        input: contiguous, shape (outer, sets, inner).
    """
    outer, sets, inner = input.shape
    wide = widest_dtype(input.device)
    x = input.transpose(0, 1).reshape(sets, outer * inner).to(wide)
    finite = x.isfinite()
    count = finite.sum(1).to(wide)
    x = torch.where(finite, x, 0)
    size, mean = x.abs(), x.sum(1) / count
    largest = size.amax(1) if outer * inner else size.new_zeros(sets)
    moments = [
        count,
        mean,
        torch.where(finite, x - mean[:, None], 0).square().sum(1) / count,
        torch.where(count > 0, largest, torch.nan),
        (finite & (x == 0)).sum(1) / count,
        (size > bound).sum(1) / count,
        (~finite).sum(1).to(wide),
    ]
    return torch.stack(moments)
