"""Dropout layers: torch.nn's with the same arguments, stochastic depth, and a linear layer that drops its weights.

They have no state but their settings. Random in training: each call draws one seed from torch's generator, so that
torch.manual_seed and activation checkpointing do what they do to torch's own layers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from homeostat.nn.functional.dropout import (
    check_probability,
    drop_connect_linear,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
)


class _OnKernel(_DropoutNd):
    """What the dropout layers share: the check of p in the project's voice, and the choice of a backend."""

    backend: str | None

    def __init__(self, p: float = 0.5, inplace: bool = False, *, backend: str | None = None) -> None:
        check_probability(type(self).__name__, p)
        super().__init__(p, inplace)
        self.backend = backend

    def extra_repr(self) -> str:
        return super().extra_repr() + _shown(self.backend)


class Dropout(_OnKernel, nn.Dropout):
    """torch.nn.Dropout: drops single values. See `homeostat.nn.functional.dropout`.

    Args:
        p: the probability of dropping a value, in [0, 1].
        inplace: whether the result is also written to the input.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1].
    Example:
        >>> Dropout(0.2)
        Dropout(p=0.2, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training, self.inplace, backend=self.backend)


class Dropout1d(_OnKernel, nn.Dropout1d):
    """torch.nn.Dropout1d: drops channels of (N, C, L) or (C, L). See `homeostat.nn.functional.dropout1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout1d(input, self.p, self.training, self.inplace, backend=self.backend)


class Dropout2d(_OnKernel, nn.Dropout2d):
    """torch.nn.Dropout2d: drops channels of (N, C, H, W). See `homeostat.nn.functional.dropout2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout2d(input, self.p, self.training, self.inplace, backend=self.backend)


class Dropout3d(_OnKernel, nn.Dropout3d):
    """torch.nn.Dropout3d: drops channels of (N, C, D, H, W). See `homeostat.nn.functional.dropout3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout3d(input, self.p, self.training, self.inplace, backend=self.backend)


class DropPath(nn.Module):
    """Drops whole examples on a residual branch (stochastic depth). See `homeostat.nn.functional.drop_path`.

    Args:
        drop_prob: the probability of dropping an example, in [0, 1].
        scale_by_keep: whether the examples that stay are divided by 1 - drop_prob.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if drop_prob lies outside [0, 1].
    Source: Huang et al. 2016, arXiv:1603.09382; names and defaults are timm's.
    Example:
        >>> DropPath(0.1)
        DropPath(drop_prob=0.1)
    """

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True, *, backend: str | None = None) -> None:
        check_probability("DropPath", drop_prob, "drop_prob")
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return drop_path(input, self.drop_prob, self.training, self.scale_by_keep, backend=self.backend)

    def extra_repr(self) -> str:
        return (
            f"drop_prob={self.drop_prob}{'' if self.scale_by_keep else ', scale_by_keep=False'}{_shown(self.backend)}"
        )


class DropConnectLinear(nn.Linear):
    """torch.nn.Linear that drops weights in training. See `homeostat.nn.functional.drop_connect_linear`.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear.
        p: the probability of dropping a weight, in [0, 1]; the bias stays.
        per_example: whether every example has its own mask, or the batch one.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1].
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    Example:
        >>> DropConnectLinear(3, 2, p=0.2, per_example=True)
        DropConnectLinear(in_features=3, out_features=2, bias=True, p=0.2, per_example=True)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        per_example: bool = False,
        *,
        device: Any = None,
        dtype: Any = None,
        backend: str | None = None,
    ) -> None:
        check_probability("DropConnectLinear", p)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p = p
        self.per_example = per_example
        self.backend = backend

    def forward(self, input: Tensor) -> Tensor:
        return drop_connect_linear(
            input, self.weight, self.bias, self.p, self.training, self.per_example, backend=self.backend
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}, per_example={self.per_example}{_shown(self.backend)}"


def _shown(backend: str | None) -> str:
    return "" if backend is None else f", backend={backend!r}"
