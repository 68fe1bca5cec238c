"""Dropout layers: torch.nn's with the same arguments, multiplication by normal noise, and stochastic depth.

They have no state but their settings, which are the class's until a layer has its own: one of torch's layers that is
given such a class (`homeostat.use`) has them all. Random in training: each call draws one seed from torch's generator,
so that torch.manual_seed and activation checkpointing do what they do to torch's own layers.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from homeostat.errors import invalid
from homeostat.nn.functional.dropout import (
    check_mode,
    check_probability,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
)
from homeostat.nn.functional.noise import alpha_dropout, feature_alpha_dropout, gaussian_dropout


class _OnKernel(_DropoutNd):
    """What the dropout layers share: the check of p in the project's voice, and the choice of a backend."""

    backend: str | None = None

    def __init__(self, p: float = 0.5, inplace: bool = False, *, backend: str | None = None) -> None:
        check_probability(type(self).__name__, p)
        super().__init__(p, inplace)
        self.backend = backend

    def extra_repr(self) -> str:
        return super().extra_repr() + _shown(self.backend)


class _Masking(_OnKernel):
    """The layers that zero units: in training they scale the others, or in evaluation all."""

    mode: str = "inverted"

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, mode: str = "inverted", backend: str | None = None
    ) -> None:
        check_mode(type(self).__name__, mode)
        super().__init__(p, inplace, backend=backend)
        self.mode = mode

    def extra_repr(self) -> str:
        mode = "" if self.mode == "inverted" else f", mode={self.mode!r}"
        return f"{_DropoutNd.extra_repr(self)}{mode}{_shown(self.backend)}"


class Dropout(_Masking, nn.Dropout):
    """torch.nn.Dropout: drops single values. See `homeostat.nn.functional.dropout`.

    Args:
        p: the probability of dropping a value, in [0, 1].
        inplace: whether the result is also written to the input.
        mode: "inverted", torch's: training divides by 1 - p, evaluation is the identity. "scaled": training only
            zeroes, and evaluation multiplies by 1 - p, which `homeostat.absorb_dropout_scale_` can put into weights.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1], for an unknown mode.
    Example:
        >>> Dropout(0.2)
        Dropout(p=0.2, inplace=False)
        >>> Dropout(0.25, mode="scaled")
        Dropout(p=0.25, inplace=False, mode='scaled')
    """

    def forward(self, input: Tensor) -> Tensor:
        return dropout(input, self.p, self.training, self.inplace, mode=self.mode, backend=self.backend)


class Dropout1d(_Masking, nn.Dropout1d):
    """torch.nn.Dropout1d: drops channels of (N, C, L) or (C, L). See `homeostat.nn.functional.dropout1d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout1d(input, self.p, self.training, self.inplace, mode=self.mode, backend=self.backend)


class Dropout2d(_Masking, nn.Dropout2d):
    """torch.nn.Dropout2d: drops channels of (N, C, H, W). See `homeostat.nn.functional.dropout2d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout2d(input, self.p, self.training, self.inplace, mode=self.mode, backend=self.backend)


class Dropout3d(_Masking, nn.Dropout3d):
    """torch.nn.Dropout3d: drops channels of (N, C, D, H, W). See `homeostat.nn.functional.dropout3d`."""

    def forward(self, input: Tensor) -> Tensor:
        return dropout3d(input, self.p, self.training, self.inplace, mode=self.mode, backend=self.backend)


class AlphaDropout(_OnKernel, nn.AlphaDropout):
    """torch.nn.AlphaDropout: for SELU networks. See `homeostat.nn.functional.alpha_dropout`.

    Args:
        p: the probability of dropping a value, in [0, 1].
        inplace: taken and not used, as in torch.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1].
    Source: Klambauer et al. 2017, arXiv:1706.02515.
    Example:
        >>> AlphaDropout(0.1)
        AlphaDropout(p=0.1, inplace=False)
    """

    def forward(self, input: Tensor) -> Tensor:
        return alpha_dropout(input, self.p, self.training, backend=self.backend)


class FeatureAlphaDropout(_OnKernel, nn.FeatureAlphaDropout):
    """torch.nn.FeatureAlphaDropout: the same for channels. See `homeostat.nn.functional.feature_alpha_dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        return feature_alpha_dropout(input, self.p, self.training, backend=self.backend)


class GaussianDropout(_OnKernel):
    """Multiplies by normal noise in training, Keras' layer. See `homeostat.nn.functional.gaussian_dropout`.

    Args:
        p: the noise has mean 1 and variance p / (1 - p); in [0, 1).
        inplace: whether the result is also written to the input.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1).
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, section 10.
    Example:
        >>> GaussianDropout(0.2)
        GaussianDropout(p=0.2, inplace=False)
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, *, backend: str | None = None) -> None:
        super().__init__(p, inplace, backend=backend)
        if p == 1:
            raise invalid("GaussianDropout", "p", "lie in [0, 1)", p, "The variance of the noise is p / (1 - p).")

    def forward(self, input: Tensor) -> Tensor:
        return gaussian_dropout(input, self.p, self.training, self.inplace, backend=self.backend)


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


def _shown(backend: str | None) -> str:
    return "" if backend is None else f", backend={backend!r}"
