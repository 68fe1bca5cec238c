"""Batch normalization modules: torch.nn's, on homeostat's kernels, with activation and residual. Not random."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.kernels.backend import widest_dtype
from homeostat.nn.functional.norm import batch_norm
from homeostat.nn.fused import Fused


class _BatchNorm(Fused, nn.modules.batchnorm._BatchNorm):
    _dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
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
        if input.dim() not in self._dims:
            where, dims = type(self).__name__, " or ".join(str(dim) for dim in self._dims)
            raise invalid(where, "input", f"have {dims} dimensions", input)
        if input.shape[1] != self.num_features and (self.affine or self.track_running_stats):
            raise invalid(type(self).__name__, "input", f"have {self.num_features} channels", input)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """activation(norm(input) + residual); see `homeostat.nn.functional.batch_norm`."""
        self._check_input_dim(input)
        training = self.training
        momentum: float | Tensor | None = self.momentum
        mean = variance = count = None
        if self.track_running_stats or not training:
            mean, variance = self.running_mean, self.running_var
        if training and self.track_running_stats:
            count = self.num_batches_tracked
            if momentum is None and count is not None:  # a tensor: compiled code need not wait for its value
                momentum = (count + 1).to(widest_dtype(count.device)).reciprocal()
        output = batch_norm(
            input, mean, variance, self.weight, self.bias, training or (mean is None and variance is None),
            0.0 if momentum is None else momentum, self.eps,
            activation=self.activation, residual=residual, unbiased=self.unbiased, backend=self.backend,
        )  # fmt: skip
        if count is not None:
            count.add_(1)
        return output


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """torch.nn.BatchNorm1d with activation and residual: `forward(input, residual=None)`, input (N, C) or (N, C, L).

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as torch.nn.BatchNorm1d has
            them; its state_dict fits here, and this one's there. momentum None: cumulative average.
        activation: applied after normalization and residual, by name: relu, leaky_relu, ...; or None.
        unbiased: keep the unbiased running variance, as torch does; else the population's.
        backend: numba, triton, reference, or None for the fastest that can run.
    Raises: InvalidValue for an unknown activation or backend.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    Example:
        >>> BatchNorm1d(3, activation="relu")(torch.randn(8, 3)).min() >= 0
        tensor(True)
    """

    _dims = (2, 3)


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """torch.nn.BatchNorm2d with activation and residual; see `BatchNorm1d`; input (N, C, H, W).

    Example:
        >>> layer, x = BatchNorm2d(4, activation="relu"), torch.randn(2, 4, 5, 5)
        >>> layer(x, residual=x).shape
        torch.Size([2, 4, 5, 5])
    """

    _dims = (4,)


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """torch.nn.BatchNorm3d with activation and residual; see `BatchNorm1d`; input (N, C, D, H, W).

    Example:
        >>> BatchNorm3d(4)
        BatchNorm3d(4, eps=1e-05, momentum=0.1, affine=True, ...track_running_stats=True)
    """

    _dims = (5,)
