"""The group normalization module: torch.nn's, on homeostat's kernels, with activation and residual. Not random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.nn.functional.norm import group_norm
from homeostat.nn.fused import Fused


class GroupNorm(Fused, nn.GroupNorm):
    """torch.nn.GroupNorm with activation and residual: `forward(input, residual=None)`, input (N, C) or (N, C, ...).

    Args:
        num_groups, num_channels, eps, affine, device, dtype, bias: as torch.nn.GroupNorm has them; its state_dict
            fits here, and this one's there.
        activation, backend: as in `homeostat.nn.BatchNorm1d`.
    Raises: InvalidValue where num_groups does not divide num_channels, for an unknown activation or backend.
    Source: Wu and He 2018, arXiv:1803.08494.
    Example:
        >>> GroupNorm(2, 6, activation="silu")(torch.randn(2, 6, 5)).shape
        torch.Size([2, 6, 5])
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        backend: str | None = None,
    ) -> None:
        if num_groups < 1 or num_channels % num_groups:
            condition = f"be positive and divide num_channels, {num_channels}"
            raise invalid(type(self).__name__, "num_groups", condition, num_groups)
        super().__init__(num_groups, num_channels, eps, affine, device=device, dtype=dtype)
        if affine and not bias:
            self.register_parameter("bias", None)
        self._fuse(activation, backend)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); see `homeostat.nn.functional.group_norm`."""
        if self.affine and input.dim() > 1 and input.shape[1] != self.num_channels:
            raise invalid(type(self).__name__, "input", f"have {self.num_channels} channels", input)
        return group_norm(
            input, self.num_groups, self.weight, self.bias, self.eps,
            activation=self.activation, residual=residual, backend=self.backend,
        )  # fmt: skip
