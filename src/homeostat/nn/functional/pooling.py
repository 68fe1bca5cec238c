"""Maximum pooling on homeostat's kernel where there is one for it. Not random."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as torch_functional
from torch.overrides import has_torch_function_unary

from homeostat.kernels.max_pool import is_compiled, max_pool
from homeostat.kernels.operator import is_eager

Size = int | tuple[int, int]


def max_pool2d(
    input: Tensor,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """torch.nn.functional.max_pool2d, the same bits forward and backward, and faster where it halves both sides.

    The kernel serves windows of 2x2 side by side in eager code on a CPU, where the channels of float32 or float64 are
    last in memory (torch.channels_last). All else is handed to torch, which compilers and exporters then see.

    Args: as in torch.
    Returns: a tensor (N, C, H', W'), with return_indices a pair, as in torch.
    Example:
        >>> import torch
        >>> max_pool2d(torch.arange(16.0).reshape(1, 1, 4, 4), 2)
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """
    halves = _is(kernel_size, 2) and (stride is None or _is(stride, 2)) and _is(padding, 0) and _is(dilation, 1)
    if halves and not ceil_mode and not return_indices and input.dim() == 4 and _is_served(input):
        return max_pool(input, None)[0]
    whole: Any = torch_functional.max_pool2d
    return whole(input, kernel_size, stride, padding, dilation, ceil_mode, return_indices)


def _is(size: Size, number: int) -> bool:
    return size == number or size == (number, number)


def _is_served(input: Tensor) -> bool:
    plain = not has_torch_function_unary(input) and is_eager(input)
    return plain and min(input.shape) > 0 and min(input.shape[2:]) > 1 and is_compiled(input)
