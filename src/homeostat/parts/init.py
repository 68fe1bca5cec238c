"""Initialization: of a whole model by one scheme (`initialize_`), and of one tensor (from `schemes`).

`initialize_` knows the layers, so groups, strides and transposed convolutions are counted as they are.
Random through the given generator, or torch's global one where none is given, as in torch.nn.init.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from homeostat.errors import InvalidValue, invalid, unknown
from homeostat.parts.schemes import (
    MODES,
    Fans,
    deviation,
    draw_,
    fan_in_uniform_,
    gain,
    he_normal_,
    he_uniform_,
    orthogonal_,
    tensor_fans,
    variance_scaling_,
    xavier_normal_,
    xavier_uniform_,
)

__all__ = [
    "MODES",
    "SCHEMES",
    "Fans",
    "fan_in_uniform_",
    "gain",
    "he_normal_",
    "he_uniform_",
    "initialize_",
    "layer_fans",
    "orthogonal_",
    "tensor_fans",
    "variance_scaling_",
    "xavier_normal_",
    "xavier_uniform_",
]

Fill = Callable[[Tensor, Fans], Tensor]

SCHEMES: tuple[str, ...] = (
    "he_normal",
    "he_uniform",
    "xavier_normal",
    "xavier_uniform",
    "fan_in_uniform",
    "orthogonal",
    "normal",
    "constant",
    "zeros",
)
"""The schemes that `initialize_` knows."""

_LEAKY_SLOPE = 0.01  # of torch's LeakyReLU, and so of ours


def initialize_(
    model: nn.Module,
    scheme: str,
    *,
    generator: torch.Generator | None = None,
    activation: str = "relu",
    mode: str = "fan_in",
    gain: float | None = None,
    std: float = 0.01,
    value: float = 0.01,
) -> list[str]:
    """Set the parameters of every layer anew, by one scheme.

    | scheme | weights |
    |---|---|
    | he_normal, he_uniform | variance 2 / fan; 2 / (1 + 0.01²) / fan if `activation` is leaky_relu |
    | xavier_normal, xavier_uniform | variance 1 / fan_avg |
    | fan_in_uniform | U(-1/√fan_in, 1/√fan_in) |
    | orthogonal | orthogonal rows or columns of length `init.gain(activation)` |
    | normal | N(0, std²) |
    | constant, zeros | `value`, 0 |

    Weights are those of Linear, convolutions, transposed convolutions, and the input projections of MultiheadAttention
    (query, key and value each as a matrix of its own); their biases become 0. torch's normalization layers get scale 1,
    shift 0 and fresh running statistics. Every other layer (embeddings, recurrent layers, ...) is left alone, and so
    are frozen parameters: somebody trained those. A weight that several layers share is drawn once, for the first.
    fan_in is what one output sums and fan_out what one input feeds, on average and away from the borders: the stride
    divides fan_out of a convolution (torch.nn.init ignores it) and fan_in of a transposed one.

    Args:
        model: changed in place. Weights under `torch.nn.utils.parametrize` are set through the parametrization.
        scheme: one of the table.
        generator: the source of randomness, used layer by layer in the model's order; None: torch's global one.
        activation: the activation between the layers; matters to he with leaky_relu, and to orthogonal.
        mode: the fan of the he schemes: "fan_in", "fan_out" or "fan_avg".
        gain: a factor on the standard deviation 1/√fan, in place of the scheme's own (he √2, xavier 1, fan_in_uniform
            1/√3); the length for orthogonal.
        std: the standard deviation of normal.
        value: that of constant.
    Returns: the names of the parameters that were set, in the model's order; empty if there was nothing to set.
    Raises: InvalidValue for unknown names, numbers that cannot be used, and weights that cannot be set (lazy layers
        before their first batch, hooks that recompute the weight), before anything has changed.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> initialize_(model, "he_normal", generator=torch.Generator().manual_seed(0))
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    fill = _filler(scheme, generator, activation, mode, gain, std, value)
    targets = [target for name, layer in model.named_modules() for target in _targets(name, layer)]
    for target in targets:
        _check_settable(target)
    done: set[int] = set()
    changed: list[str] = []
    for target in targets:
        sources = _sources(target)
        if not any(source.requires_grad for source in sources) or done.intersection(map(id, sources)):
            continue
        _set_(target, fill)
        done.update(map(id, sources))
        changed.append(target.name)
    return changed


def layer_fans(layer: nn.Module) -> Fans:
    """(fan_in, fan_out) of a Linear, convolution or transposed convolution, as averages away from the borders.

    Example:
        >>> layer_fans(nn.Conv2d(8, 16, 3, groups=2, stride=2))
        (36.0, 18.0)
    """
    if isinstance(layer, nn.Linear):
        return float(layer.in_features), float(layer.out_features)
    if not isinstance(layer, _ConvNd):
        raise invalid("layer_fans", "layer", "be a Linear, a convolution or a transposed convolution", layer)
    kernel, stride = math.prod(layer.kernel_size), math.prod(layer.stride)
    fan_in, fan_out = layer.in_channels / layer.groups * kernel, layer.out_channels / layer.groups * kernel
    return (fan_in / stride, fan_out) if isinstance(layer, _ConvTransposeNd) else (fan_in, fan_out / stride)


def _filler(
    scheme: str,
    generator: torch.Generator | None,
    activation: str,
    mode: str,
    own_gain: float | None,
    std: float,
    value: float,
) -> Fill:
    """The scheme as a function that fills a weight (outputs first) with given fans; all arguments are checked here."""
    if scheme not in SCHEMES:
        raise unknown("initialize_", "scheme", scheme, SCHEMES)
    if mode not in MODES:
        raise unknown("initialize_", "mode", mode, MODES)
    usual_length = gain(activation)
    for name, number in (("gain", own_gain), ("std", std), ("value", value)):
        if number is not None and not (math.isfinite(number) and (number >= 0 or name == "value")):
            raise invalid("initialize_", name, "be finite" if name == "value" else "be finite and at least 0", number)
    if scheme == "orthogonal":
        length = usual_length if own_gain is None else own_gain
        return lambda weight, fans: orthogonal_(weight, length, generator=generator)
    if scheme == "normal":
        return lambda weight, fans: draw_(weight, std, "normal", generator)
    if scheme in ("constant", "zeros"):
        return lambda weight, fans: weight.fill_(value if scheme == "constant" else 0.0)
    usual_scale, fan_mode = _scale_and_mode(scheme, activation, mode)
    scale = usual_scale if own_gain is None else own_gain**2
    distribution = "normal" if scheme.endswith("normal") else "uniform"
    return lambda weight, fans: draw_(weight, deviation("initialize_", fans, scale, fan_mode), distribution, generator)


def _scale_and_mode(scheme: str, activation: str, mode: str) -> tuple[float, str]:
    if scheme.startswith("he"):
        return 2 / (1 + (_LEAKY_SLOPE**2 if activation == "leaky_relu" else 0)), mode
    return (1.0, "fan_avg") if scheme.startswith("xavier") else (1 / 3, "fan_in")


class _Target(NamedTuple):
    """One parameter that a scheme sets: its full name, its layer, its name there, and to what it is set."""

    name: str
    layer: nn.Module
    attribute: str
    to: str
    """"scheme", "zero" or "one"."""


def _targets(name: str, layer: nn.Module) -> Iterator[_Target]:
    wanted: dict[str, str] = {}
    if isinstance(layer, nn.Linear | _ConvNd):
        wanted = {"weight": "scheme", "bias": "zero"}
    elif isinstance(layer, nn.MultiheadAttention):
        projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        wanted = dict.fromkeys(projections, "scheme") | {"in_proj_bias": "zero"}
    elif isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        wanted = {"weight": "one", "bias": "zero"}
    for attribute, to in wanted.items():
        if getattr(layer, attribute, None) is not None:
            yield _Target(f"{name}.{attribute}" if name else attribute, layer, attribute, to)


def _sources(target: _Target) -> list[Tensor]:
    """The parameters behind an attribute: itself, or the originals of its parametrization."""
    steps = _parametrization(target)
    if steps is not None:
        return list(steps.parameters(recurse=False))
    return [target.layer._parameters[target.attribute]]  # type: ignore[list-item]


def _parametrization(target: _Target) -> parametrize.ParametrizationList | None:
    if not parametrize.is_parametrized(target.layer, target.attribute):
        return None
    return cast("nn.ModuleDict", target.layer.parametrizations)[target.attribute]  # type: ignore[return-value]


def _check_settable(target: _Target) -> None:
    """Raise an error, naming the parameter, if writing to it would fail or change nothing."""

    def refusal(cure: str) -> InvalidValue:
        kind = type(target.layer).__name__
        return invalid("initialize_", target.name, "be a parameter that can be set", kind, cure)

    steps = _parametrization(target)
    if steps is not None:
        if not all(hasattr(step, "right_inverse") for step in steps):
            raise refusal("Its parametrization has no right_inverse; initialize before parametrizing.")
    elif target.attribute not in target.layer._parameters:
        raise refusal("A hook recomputes it (torch's old weight_norm, pruning); use torch.nn.utils.parametrizations.")
    elif isinstance(target.layer._parameters[target.attribute], UninitializedParameter):
        raise refusal("The layer is lazy: run one batch through the model first.")


@torch.no_grad()
def _set_(target: _Target, fill: Fill) -> None:
    layer, attribute = target.layer, target.attribute
    current = getattr(layer, attribute)
    parametrized = _parametrization(target) is not None
    values = torch.empty_like(current) if parametrized else current
    if target.to == "scheme":
        for block, fans in _blocks(layer, values):
            fill(block, fans)
    else:
        values.fill_(1.0 if target.to == "one" else 0.0)
    if parametrized:
        setattr(layer, attribute, values)
    if target.to == "one" and isinstance(layer, _NormBase):
        layer.reset_running_stats()


def _blocks(layer: nn.Module, weight: Tensor) -> list[tuple[Tensor, Fans]]:
    """The weight as matrices that each map inputs to outputs, (outputs, inputs, *kernel), with their fans."""
    if isinstance(layer, nn.MultiheadAttention):
        parts = weight.chunk(3) if len(weight) == 3 * layer.embed_dim else (weight,)
        return [(part, tensor_fans(part)) for part in parts]
    fans = layer_fans(layer)
    if not isinstance(layer, _ConvNd):
        return [(weight, fans)]
    turned = isinstance(layer, _ConvTransposeNd)
    return [(block.transpose(0, 1) if turned else block, fans) for block in weight.chunk(layer.groups)]
