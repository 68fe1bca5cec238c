"""How the channels of a tensor (N, C, ...) lie in memory: last (rows of channels) or first (runs of positions).

Kernels have loops for both. Not random.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channels_are_last(tensor: Tensor) -> bool:
    """Whether the tensor is dense with its channels innermost: (N, C), or the memory format channels_last.

    Example:
        >>> channels_are_last(torch.ones(2, 3)), channels_are_last(torch.ones(2, 3, 4))
        (True, False)
    """
    dims = tensor.dim()
    if dims == 2:
        return tensor.is_contiguous()
    if tensor.is_contiguous():
        return tensor.numel() == tensor.shape[0] * tensor.shape[1]
    if dims == 4:
        return tensor.is_contiguous(memory_format=torch.channels_last)
    return tensor.movedim(1, -1).is_contiguous()


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The memory format in which a tensor (N, C, H, W) lies: channels_last, or contiguous for every other one."""
    return torch.channels_last if channels_are_last(tensor) else torch.contiguous_format


def dense(tensor: Tensor) -> tuple[Tensor, bool]:
    """The tensor, or a copy of it in the nearest layout that kernels know; and whether its channels are last."""
    last = channels_are_last(tensor)
    if last or tensor.is_contiguous():
        return tensor, last
    if tensor.dim() > 2 and tensor.stride(1) == 1:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1), True
    tensor = tensor.contiguous()
    return tensor, channels_are_last(tensor)


def dense_like(tensor: Tensor, other: Tensor, last: bool) -> Tensor:
    """The tensor, or a copy of it, in the layout of `other`, which `dense` has returned together with `last`."""
    if tensor.stride() == other.stride() or (not last and tensor.is_contiguous()):
        return tensor
    return torch.empty_like(other, dtype=tensor.dtype).copy_(tensor)
