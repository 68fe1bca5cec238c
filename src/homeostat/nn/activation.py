"""Activation functions by name, as normalization layers take them: what the kernel fuses, and what follows it.

A kernel fuses the piecewise linear ones, as the slope that it gives to negative values; the others are torch's own
functions, applied to the kernel's output. Not random.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from homeostat.errors import invalid_type, unknown

_SLOPES = {"identity": 1.0, "relu": 0.0, "leaky_relu": 0.01}

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": functional.elu,
    "selu": functional.selu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": functional.tanh,
    "sigmoid": functional.sigmoid,
}

ACTIVATIONS: tuple[str, ...] = (*_SLOPES, *_FUNCTIONS)
"""The names that `activation=` takes, each with torch's default settings."""


def split(where: str, activation: str | None) -> tuple[float, Callable[[Tensor], Tensor] | None]:
    """What of an activation a kernel does, and what is left to do after it.

    Args:
        where: the callable in whose name an unknown name is reported.
        activation: one of `ACTIVATIONS`, or None for none.
    Returns: the slope of negative values in the kernel (1: identity, 0: relu) and the function to apply afterwards.
    Raises: InvalidValue for an unknown name, InvalidType for what is not a name.
    Example:
        >>> split("BatchNorm2d", "leaky_relu")
        (0.01, None)
        >>> split("BatchNorm2d", "tanh")[0]
        1.0
    """
    if activation is None:
        return 1.0, None
    if not isinstance(activation, str):
        raise invalid_type(where, "activation", "be a name or None", activation, f"Known: {', '.join(ACTIVATIONS)}.")
    slope = _SLOPES.get(activation)
    if slope is not None:
        return slope, None
    if activation not in _FUNCTIONS:
        raise unknown(where, "activation", activation, ACTIVATIONS)
    return 1.0, _FUNCTIONS[activation]


def activate(input: Tensor, slope: float, function: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The activation that `split` took apart, all of it by torch.

    Example:
        >>> import torch
        >>> activate(torch.tensor([-1.0, 2.0]), *split("", "relu"))
        tensor([0., 2.])
    """
    if slope != 1:
        input = functional.leaky_relu(input, slope) if slope else functional.relu(input)
    return input if function is None else function(input)
