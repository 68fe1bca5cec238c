"""Layer norm and RMS norm as modules, fused with an activation and the addition of a residual. Not random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homeostat.nn.functional.layer_norm import layer_norm, rms_norm
from homeostat.nn.fused import Fused


class LayerNorm(Fused, nn.LayerNorm):
    """torch.nn.LayerNorm on homeostat's kernels, with an activation and a residual.

    Parameters, state_dict and defaults are torch's; see `homeostat.nn.functional.layer_norm` for the formula.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as in torch.
        activation: a name from `homeostat.nn.activation.ACTIVATIONS`, applied last.
        backend: numba, triton or reference; None chooses for every input.
    Raises: InvalidValue for an unknown activation or backend.
    Source: Ba et al. 2016, arXiv:1607.06450.
    Example:
        >>> LayerNorm(8, activation="relu")
        LayerNorm((8,), eps=1e-05, elementwise_affine=True, bias=True, activation='relu')
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._fuse(activation, backend)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The normalized input, scaled and shifted, plus the residual, activated."""
        return layer_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.bias,
            self.eps,
            activation=self.activation,
            residual=residual,
            backend=self.backend,
        )


class RMSNorm(Fused, nn.RMSNorm):
    """torch.nn.RMSNorm on homeostat's kernels, with an activation and a residual.

    Parameters, state_dict and defaults are torch's; see `homeostat.nn.functional.rms_norm` for the formula.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as in torch.
        activation: a name from `homeostat.nn.activation.ACTIVATIONS`, applied last.
        backend: numba, triton or reference; None chooses for every input.
    Raises: InvalidValue for an unknown activation or backend.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    Example:
        >>> RMSNorm(8)
        RMSNorm((8,), eps=None, elementwise_affine=True)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._fuse(activation, backend)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The input over its root mean square, scaled, plus the residual, activated."""
        return rms_norm(
            input,
            self.normalized_shape,
            self.weight,
            self.eps,
            activation=self.activation,
            residual=residual,
            backend=self.backend,
        )
