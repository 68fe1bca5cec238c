"""Instance normalization modules: torch.nn's, on homeostat's kernels, with activation and residual. Not random."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.nn.functional.norm import instance_norm
from homeostat.nn.fused import Fused


class _InstanceNorm(Fused, nn.modules.instancenorm._InstanceNorm):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        unbiased: bool = True,
        backend: str | None = None,
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        if affine and not bias:
            self.register_parameter("bias", None)
        self.unbiased = unbiased
        self._fuse(activation, backend)

    def _check_input_dim(self, input: Tensor) -> None:
        unbatched = self._get_no_batch_dim()
        if input.dim() not in (unbatched, unbatched + 1):
            condition = f"have {unbatched + 1} dimensions, or {unbatched} without a batch"
            raise invalid(type(self).__name__, "input", condition, input)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); see `homeostat.nn.functional.instance_norm`."""
        self._check_input_dim(input)
        unbatched = self._get_no_batch_dim()
        channels = input.shape[input.dim() - unbatched]
        if channels != self.num_features:
            if self.affine or self.track_running_stats:
                raise invalid(type(self).__name__, "input", f"have {self.num_features} channels", input)
            text = f"{type(self).__name__}: the input has {channels} channels, num_features is {self.num_features}."
            warnings.warn(f"{text} Without affine parameters it has no effect.", stacklevel=2)
        if input.dim() == unbatched:
            residual = None if residual is None else residual.unsqueeze(0)
            return self._normalize(input.unsqueeze(0), residual).squeeze(0)
        return self._normalize(input, residual)

    def _normalize(self, input: Tensor, residual: Tensor | None) -> Tensor:
        return instance_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias,
            self.training or not self.track_running_stats, 0.0 if self.momentum is None else self.momentum, self.eps,
            activation=self.activation, residual=residual, unbiased=self.unbiased, backend=self.backend,
        )  # fmt: skip


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d with activation and residual: `forward(input, residual=None)`, (N, C, L) or (C, L).

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as torch.nn.InstanceNorm1d has
            them; its state_dict fits here, and this one's there.
        activation, unbiased, backend: as in `homeostat.nn.BatchNorm1d`.
    Raises: InvalidValue for an unknown activation or backend.
    Source: Ulyanov et al. 2016, arXiv:1607.08022.
    Example:
        >>> InstanceNorm1d(3, activation="relu")(torch.randn(2, 3, 8)).min() >= 0
        tensor(True)
    """


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d with activation and residual; see `InstanceNorm1d`; input (N, C, H, W) or (C, H, W)."""


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d with activation and residual; see `InstanceNorm1d`; (N, C, D, H, W) or (C, D, H, W)."""
