"""What `init.initialize_` is asked for: its schemes, its arguments checked, and how one matrix of weights is drawn.

Random through the given generator, or torch's global one where none is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.errors import invalid, unknown
from homeostat.parts.init.gains import Activation, gain
from homeostat.parts.init.residual import RESIDUALS
from homeostat.parts.init.schemes import MODES, Fans, check_generator, deviation, draw_, finite_number, orthogonal_

SCHEMES: tuple[str, ...] = (
    "he_normal",
    "he_uniform",
    "xavier_normal",
    "xavier_uniform",
    "lecun_normal",
    "lecun_uniform",
    "fan_in_uniform",
    "orthogonal",
    "normal",
    "trunc_normal",
    "constant",
    "zeros",
)
"""The schemes that `initialize_` knows by definition, whatever the model does with the weights."""

AWARE: tuple[str, ...] = ("he", "xavier", "lsuv")
"""The schemes for which it runs the model on a sample; orthogonal does too, if it is given one."""

_LEAKY_SLOPE = 0.01  # of torch's LeakyReLU, and so of ours


@dataclass
class Order:
    """What is wanted: all arguments, checked."""

    scheme: str
    generator: torch.Generator | None
    activation: Activation
    mode: str
    gain: float | None
    std: float
    value: float
    residual: str | None
    sampled: bool

    def __post_init__(self) -> None:
        if self.scheme not in SCHEMES + AWARE:
            raise unknown("initialize_", "scheme", self.scheme, SCHEMES + AWARE)
        if self.mode not in MODES:
            raise unknown("initialize_", "mode", self.mode, MODES)
        if self.residual is not None and self.residual not in RESIDUALS:
            raise unknown("initialize_", "residual", self.residual, RESIDUALS)
        check_generator("initialize_", self.generator)
        self.usual_length = gain(self.activation)
        for name in ("gain", "std", "value"):
            number = getattr(self, name)
            if number is not None:
                finite_number("initialize_", name, number, least=-math.inf if name == "value" else 0)
        if not self.sampled:
            self._check_unsampled()
        if self.residual is None:
            self.residual = "scaled" if self.scheme in ("he", "xavier") else "keep"
        self.aware = self.scheme in AWARE or (self.scheme == "orthogonal" and self.sampled)
        self.fan_mode = {"he": self.mode, "xavier": "fan_avg"}.get(self.scheme.partition("_")[0], "fan_in")

    def _check_unsampled(self) -> None:
        if self.scheme in AWARE:
            cure = f"{self.scheme!r} finds out by running the model what stands between its layers."
            cure += "" if self.scheme == "lsuv" else f" Or use '{self.scheme}_normal', which does not ask."
            raise invalid("initialize_", "sample", f"be given for scheme {self.scheme!r}", None, cure)
        if self.residual not in (None, "keep"):
            cure = "Residual branches are found by running the model."
            raise invalid("initialize_", "sample", f"be given for residual={self.residual!r}", None, cure)

    def fill(self, weight: Tensor, fans: Fans) -> Tensor:
        """Draw one matrix."""
        if self.scheme in ("orthogonal", "lsuv"):
            return orthogonal_(weight, self.usual_gain, generator=self.generator)
        if self.scheme in ("normal", "trunc_normal"):
            distribution = "normal" if self.scheme == "normal" else "truncated"
            return draw_(weight, self.std, distribution, self.generator)
        if self.scheme in ("constant", "zeros"):
            return weight.fill_(self.value if self.scheme == "constant" else 0.0)
        distribution = "uniform" if self.scheme.endswith("uniform") else "normal"
        std = deviation("initialize_", fans, self.usual_gain**2, self.fan_mode)
        return draw_(weight, std, distribution, self.generator)

    @property
    def usual_gain(self) -> float:
        """The gain with which weights are drawn; an aware scheme scales them later."""
        if self.aware:
            return 1.0
        if self.gain is not None:
            return self.gain
        if self.scheme == "orthogonal":
            return self.usual_length
        if self.scheme.startswith("he"):
            return math.sqrt(2 / (1 + (_LEAKY_SLOPE**2 if self.activation == "leaky_relu" else 0)))
        return math.sqrt(1 / 3) if self.scheme == "fan_in_uniform" else 1.0

    @property
    def unreached_gain(self) -> float:
        """The gain that an aware scheme gives to layers that the sample does not reach."""
        return self.usual_length if self.gain is None else self.gain
