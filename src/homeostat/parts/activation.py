"""Activation functions by name, as modules.

The names are torch's functional names (`relu`, `leaky_relu`, ...). Gains that go with them are in `init`. Not random.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from homeostat.errors import invalid_type, unknown

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}

ACTIVATIONS: tuple[str, ...] = tuple(_MODULES)
"""The names that `make_activation` knows."""


def make_activation(name: str) -> nn.Module:
    """A new module that applies the activation function `name` elementwise, out of place, with torch's defaults.

    Args:
        name: relu, leaky_relu (slope 0.01), elu, selu, gelu, silu, tanh, sigmoid or identity.
    Returns: the module; it has no parameters.
    Raises: InvalidValue for an unknown name, with the nearest known one.
    Example:
        >>> make_activation("leaky_relu")
        LeakyReLU(negative_slope=0.01)
    """
    if not isinstance(name, str):
        raise invalid_type("make_activation", "name", "be a string", name, f"Known: {', '.join(ACTIVATIONS)}.")
    if name not in _MODULES:
        raise unknown("make_activation", "activation", name, ACTIVATIONS)
    return _MODULES[name]()
