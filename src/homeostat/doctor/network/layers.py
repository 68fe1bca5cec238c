"""What a probe says about one layer: its output, its weights, and the gradients of both. Not random."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from homeostat.doctor.network.signals import Signal, Slopes


@dataclass(frozen=True)
class LayerFacts:
    """What was seen of a layer in its first call."""

    name: str
    """Its name in the model; "relu() after fc1" for a bare function, or the name of the parameter it is applied to."""
    kind: str
    """Its class; the function's name for a bare function."""
    role: str
    """"weight", "norm", "activation", "dropout" or "other"."""
    shape: tuple[int, ...]
    """Of its output."""
    signal: Signal
    """Of its output."""
    arriving: Signal | None
    """Of its input; None if that is not floating."""
    slopes: Slopes | None
    """Of an activation."""
    similarity: float
    """The mean cosine between different examples."""
    rank: float
    """The effective rank of what differs between examples."""
    weight_rms: float = math.nan
    """Of its own parameters of two or more dimensions; nan if it has none."""
    weight_norm: float = math.nan
    gradient_rms: float = math.nan
    """Of the loss with respect to its output; nan if none came back."""
    weight_gradient: float = math.nan
    """The norm of the gradient of these parameters; nan if there is none."""
    duplicates: float = math.nan
    """The share of output units whose weights, not zero, equal those of an earlier one; see `copies.duplicates_of`."""
    twins: float = math.nan
    """The share whose weights, zero or not, and gradients are equal, so that they stay the same."""
    bare: bool = False
    """Whether it is a bare function."""

    @property
    def mean(self) -> float:
        return self.signal.mean

    @property
    def std(self) -> float:
        return self.signal.std

    @property
    def rms(self) -> float:
        return self.signal.rms

    @property
    def abs_max(self) -> float:
        return self.signal.abs_max

    @property
    def nonfinite(self) -> int:
        return self.signal.nonfinite

    @property
    def dead(self) -> float:
        """The share of units that are constant over all examples and positions."""
        return self.signal.dead

    @property
    def saturated(self) -> float:
        """The share of values over which nearly no gradient passes; nan for what is no activation."""
        return math.nan if self.slopes is None else self.slopes.saturated

    @property
    def input_rms(self) -> float:
        return math.nan if self.arriving is None else self.arriving.rms

    @property
    def gradient_norm(self) -> float:
        """Of the loss with respect to its whole output, which scaled-right weights keep from layer to layer."""
        return self.gradient_rms * math.sqrt(math.prod(self.shape))

    @property
    def relative_gradient(self) -> float:
        """The norm of the weights' gradient over that of the weights."""
        return self.weight_gradient / self.weight_norm if self.weight_norm > 0 else math.nan


def norm_of(gradient: Tensor) -> float:
    """The norm of a gradient, dense or sparse; nan if it is not finite."""
    gradient = gradient.coalesce().values() if gradient.is_sparse else gradient
    norm = float(gradient.detach().double().norm())
    return norm if math.isfinite(norm) else math.nan


def matrices_of(module: nn.Module | None) -> list[Tensor]:
    """A layer's own parameters of two or more dimensions."""
    if module is None:
        return []
    own = [p for p in module.parameters(recurse=False) if p.dim() > 1 and p.numel()]
    return [*own, *([module.out_proj.weight] if isinstance(module, nn.MultiheadAttention) else [])]
