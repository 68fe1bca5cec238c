"""Maximum pooling as a module. Not random."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from homeostat.nn.functional.pooling import max_pool2d


class MaxPool2d(nn.MaxPool2d):
    """torch.nn.MaxPool2d, faster where it halves both sides; see `homeostat.nn.functional.max_pool2d`.

    Args: as in torch.
    Example:
        >>> import torch
        >>> MaxPool2d(2)(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    def forward(self, input: Tensor) -> Any:
        """(N, C, H, W) -> (N, C, H', W')."""
        return max_pool2d(
            input, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode, self.return_indices
        )
