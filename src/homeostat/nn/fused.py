"""What normalization modules on kernels have beyond torch.nn's: settings of the fused kernel, and their display."""

from __future__ import annotations

from torch import nn

from homeostat.errors import unknown
from homeostat.kernels import BACKENDS
from homeostat.nn.activation import split


class Fused(nn.Module):
    """A mixin in front of one of torch.nn's normalization modules.

    The settings are the class's until a module has its own: one of torch's modules that is given this class
    (`homeostat.use`) has them all.
    """

    activation: str | None = None
    backend: str | None = None
    unbiased: bool = True

    def _fuse(self, activation: str | None, backend: str | None) -> None:
        where = type(self).__name__
        split(where, activation)
        if backend is not None and backend not in BACKENDS:
            raise unknown(where, "backend", backend, BACKENDS)
        self.activation, self.backend = activation, backend

    def extra_repr(self) -> str:
        """torch's text, and what differs from torch."""
        text = str(super().extra_repr())
        if self.activation is not None:
            text += f", activation={self.activation!r}"
        if not self.unbiased:
            text += ", unbiased=False"
        if self.backend is not None:
            text += f", backend={self.backend!r}"
        return text
