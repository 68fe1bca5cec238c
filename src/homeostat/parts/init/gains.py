"""Gains: by which factor weights make up for what an activation does to the mean square of its inputs.

Computed for any elementwise function, known or not, as an integral against the normal density: Gauss-Legendre on many
short panels whose ends lie on 0 and on all multiples of 1/64, so that kinks and steps there cost no accuracy.
Not random.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.parts.activation import ACTIVATIONS, make_activation

Activation = str | nn.Module | Callable[[Tensor], Tensor]

_BEYOND = 13.0  # the normal density leaves out 1e-38 beyond it
_PANELS_PER_UNIT = 64
_NODES_PER_PANEL = 8
_OUTERMOST = _PANELS_PER_UNIT * _NODES_PER_PANEL  # the nodes of one unit

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(F, name)
    for name in (
        "celu",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "logsigmoid",
        "mish",
        "relu6",
        "softplus",
        "softsign",
        "tanhshrink",
    )
}

NAMES: tuple[str, ...] = (*ACTIVATIONS, *_FUNCTIONS)
"""The activations that are known by name; any other one can be given as a function."""


def gain(activation: Activation) -> float:
    """The factor g for which the activation keeps the mean square of normal inputs: E[φ(z)²] · g² = 1, z ~ N(0, 1).

    Args:
        activation: a name (torch's functional one), a module, or any elementwise function of a tensor.
    Returns: √2 for relu, √(2 / (1 + a²)) for a leaky ReLU of slope a, 1.59 for tanh, 1 for identity and selu.
    Raises: InvalidValue for an unknown name, a function that is not elementwise (gates, softmax), and one whose mean
        square is 0 or not finite.
    Source: He et al. 2015, arXiv:1502.01852, for any function.
    Example:
        >>> round(gain("relu"), 6), round(gain(nn.LeakyReLU(0.2)), 4), round(gain(lambda x: x * torch.sigmoid(x)), 4)
        (1.414214, 1.3868, 1.6765)
    """
    return _reciprocal_root("gain", activation, _of(activation, "gain", mean_square))


def backward_gain(activation: Activation) -> float:
    """The factor that keeps the mean square of gradients through the activation: E[φ'(z)²] · g² = 1, z ~ N(0, 1).

    The derivative is autograd's, so a function with a gradient of its own (straight-through, say) has that gradient's.

    Args:
        activation: as `gain` takes it.
    Returns: √2 for relu, as forward; 1.47 for tanh, whose forward gain is 1.59.
    Raises: as `gain` does, and InvalidValue where the derivative is 0 or not known to autograd.
    Source: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html, for any function.
    Example:
        >>> round(backward_gain("relu"), 6), round(backward_gain("tanh"), 4)
        (1.414214, 1.4674)
    """
    return _reciprocal_root("backward_gain", activation, _of(activation, "backward_gain", mean_square_slope))


def mean_square(function: Callable[[Tensor], Tensor], scale: float = 1.0) -> float:
    """E[φ(s·z)²] for z ~ N(0, 1) and s = `scale`.

    Args:
        function: applied to a column of float64 numbers, (n, 1); may answer with (n, k), whose columns count alike.
        scale: the standard deviation of the inputs.
    Example:
        >>> round(mean_square(torch.relu, 2.0), 6)
        2.0
    """
    nodes, weights = _rule()
    with torch.no_grad():
        outputs = function(nodes * scale).to(torch.float64)
    return _integral(outputs.square().mean(dim=1), weights)


def mean_square_slope(function: Callable[[Tensor], Tensor], scale: float = 1.0) -> float:
    """E[φ'(s·z)²] for z ~ N(0, 1) and s = `scale`, by autograd; NaN where it cannot follow."""
    nodes, weights = _rule()
    inputs = (nodes * scale).requires_grad_()
    squares = torch.zeros_like(weights)
    with torch.enable_grad():
        outputs = function(inputs * 1.0)  # not a leaf: the function may work in place
        if not outputs.requires_grad:
            return math.nan
        for column in outputs.unbind(dim=1):
            (slope,) = torch.autograd.grad(column.sum(), inputs, retain_graph=True, allow_unused=True)
            squares += 0 if slope is None else slope[:, 0].to(torch.float64).square()
    return _integral(squares / outputs.shape[1], weights)


def _integral(values: Tensor, weights: Tensor) -> float:
    """The integral; infinite where the function grows faster than the density falls: its outermost part rules."""
    parts = values * weights
    whole, outside = float(parts.sum()), float(parts[:_OUTERMOST].sum() + parts[-_OUTERMOST:].sum())
    return math.inf if outside > 1e-3 * whole > 0 else whole


@functools.cache
def _rule() -> tuple[Tensor, Tensor]:
    """Nodes, shape (n, 1), and weights, shape (n,), of the integral against the standard normal density."""
    x, w = np.polynomial.legendre.leggauss(_NODES_PER_PANEL)
    ends = np.arange(-_BEYOND * _PANELS_PER_UNIT, _BEYOND * _PANELS_PER_UNIT) / _PANELS_PER_UNIT
    nodes = (ends[:, None] + (x + 1) / (2 * _PANELS_PER_UNIT)).ravel()
    weights = np.tile(w / (2 * _PANELS_PER_UNIT), len(ends)) * np.exp(-(nodes**2) / 2) / math.sqrt(2 * math.pi)
    return torch.from_numpy(nodes)[:, None], torch.from_numpy(weights)


def _of(activation: Activation, where: str, moment: Callable[[Callable[[Tensor], Tensor]], float]) -> float:
    if isinstance(activation, str):
        if activation not in NAMES:
            raise unknown(where, "activation", activation, NAMES)
        return _of_name(activation, moment)
    if not callable(activation):
        raise invalid_type(where, "activation", "be a name, a module or a function", activation)
    function = _Evaluated(activation) if isinstance(activation, nn.Module) else activation
    try:
        _check_elementwise(where, activation, function)
        return moment(function)
    except HomeostatError:
        raise
    except Exception as error:
        cure = f"It raised {type(error).__name__}: {error}"
        raise invalid(
            where, "activation", "be a function of one tensor, applied elementwise", activation, cure
        ) from error


@functools.cache
def _of_name(name: str, moment: Callable[[Callable[[Tensor], Tensor]], float]) -> float:
    return moment(_FUNCTIONS[name] if name in _FUNCTIONS else make_activation(name))


class _Evaluated:
    """A module as a function in evaluation mode, in its own parameters' precision; the module itself is not touched."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().to(device="cpu", dtype=torch.float64)
        sizes = [weight.numel() for weight in module.parameters()] if isinstance(module, nn.PReLU) else [1]
        self.columns = sizes[0]

    def __call__(self, input: Tensor) -> Tensor:
        return self.module(input.expand(-1, self.columns) if self.columns > 1 else input)


def _check_elementwise(where: str, activation: Activation, function: Callable[[Tensor], Tensor]) -> None:
    """Refuse a function in which one element's result depends on others, or whose results have another shape."""
    columns = getattr(function, "columns", 1)
    probe = torch.linspace(-2.9, 2.3, 12 * columns, dtype=torch.float64, device="cpu").reshape(-1, columns)
    with torch.no_grad():
        whole, part = function(probe.clone()), function(probe[:5].clone())
        square = whole if columns > 1 else function(probe.reshape(3, 4).clone())
        local = isinstance(whole, Tensor) and whole.shape == probe.shape and not whole.is_complex()
        if local and torch.equal(whole[:5], part) and torch.equal(square.reshape(whole.shape), whole):
            return
    cure = "Each output must depend on one input alone. Gates and softmax have no gain: initialize_ measures them."
    raise invalid(where, "activation", "be elementwise", activation, cure)


def _reciprocal_root(where: str, activation: Activation, moment: float) -> float:
    if not (math.isfinite(moment) and moment > 0):
        what = "outputs" if where == "gain" else "derivative"
        cure = f"The mean square of its {what} for normal inputs is {moment:g}."
        raise invalid(where, "activation", f"have {what} of finite mean square above 0", activation, cure)
    return 1 / math.sqrt(moment)
