"""What initialization sets: the parameters of a model's layers, each as matrices with fans.

A target may be a plain parameter or one behind a parametrization; both are read and written the same way. Parameters
that a model uses as weights without a layer of torch.nn are found by running it (`sites`). Not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.nn.utils import parametrize

from homeostat.errors import InvalidValue, invalid
from homeostat.parts.init.schemes import Fans, tensor_fans

_SETTLING = 30

Fill = Callable[[Tensor, Fans], Tensor]


@dataclass(frozen=True)
class Target:
    """One parameter that a scheme sets."""

    name: str
    """Its full name in the model."""
    layer: nn.Module
    """The module that holds it."""
    attribute: str
    """Its name there."""
    to: str
    """What it is set to: "scheme", "zero" or "one"."""
    turned: bool = False
    """Whether a weight without a layer is stored as (inputs, outputs), for x @ weight."""
    groups: int = 1
    stride: int = 1
    """Of a convolution without a layer."""


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


def targets_of(model: nn.Module) -> list[Target]:
    """Every parameter that initialization knows by its layer, in the model's order."""
    return [target for name, layer in model.named_modules() for target in _targets(name, layer)]


def _targets(name: str, layer: nn.Module) -> Iterator[Target]:
    wanted: dict[str, str] = {}
    if isinstance(layer, nn.Linear | _ConvNd):
        wanted = {"weight": "scheme", "bias": "zero"}
    elif isinstance(layer, nn.MultiheadAttention):
        projections = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        wanted = dict.fromkeys(projections, "scheme") | {"in_proj_bias": "zero"}
    elif isinstance(layer, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        wanted = {"weight": "one", "bias": "zero"}
    for attribute, to in wanted.items():
        # a buffer in a parameter's place is a constant, such as the scale of a batch norm that only shifts
        if getattr(layer, attribute, None) is not None and attribute not in layer._buffers:
            yield Target(f"{name}.{attribute}" if name else attribute, layer, attribute, to)


def sources(target: Target) -> list[Tensor]:
    """The parameters behind an attribute: itself, or the originals of its parametrization."""
    steps = _parametrization(target)
    if steps is not None:
        return list(steps.parameters(recurse=False))
    return [target.layer._parameters[target.attribute]]  # type: ignore[list-item]


def is_trained(target: Target) -> bool:
    """Whether it is not frozen."""
    return any(source.requires_grad for source in sources(target))


def check_settable(target: Target) -> None:
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
def set_(target: Target, fill: Fill) -> None:
    """Fill a weight matrix by matrix; set anything else to its neutral value."""
    current = getattr(target.layer, target.attribute)
    values = torch.empty_like(current) if _parametrization(target) is not None else current
    if target.to == "scheme":
        for block, fans in blocks(target, values):
            fill(block, fans)
    else:
        values.fill_(1.0 if target.to == "one" else 0.0)
    if values is not current:
        _assign(target, values)


def reset_statistics_(model: nn.Module) -> None:
    """Let running statistics begin anew, except beside frozen parameters, with which somebody made them.

    What decides is the layer, or where it has no parameters the smallest module around it that has some.
    """
    modules = dict(model.named_modules())
    for name, layer in modules.items():
        if isinstance(layer, _NormBase) and not isinstance(layer.running_mean, UninitializedBuffer):
            around = name
            while around and not any(True for _ in modules[around].parameters()):
                around = around.rpartition(".")[0]
            beside = list(modules[around].parameters())
            if not beside or any(parameter.requires_grad for parameter in beside):
                layer.reset_running_stats()


@torch.no_grad()
def scale_(target: Target, factor: float) -> None:
    """Multiply a parameter, through its parametrization if it has one; where that forbids zero, nearly zero."""
    current = getattr(target.layer, target.attribute)
    if _parametrization(target) is not None:
        _assign(target, current * factor)
        if not getattr(target.layer, target.attribute).isfinite().all():  # weight normalization divides by its length
            _assign(target, current * torch.finfo(current.dtype).eps)
    else:
        current.mul_(factor)


def _assign(target: Target, values: Tensor) -> None:
    """Write through a parametrization; one that estimates something of the weight step by step gets time to do so."""
    setattr(target.layer, target.attribute, values)
    steps = _parametrization(target)
    if steps is not None and any(True for _ in steps.buffers()):  # spectral normalization's power iteration
        training = steps.training
        steps.train()
        for _ in range(_SETTLING):
            getattr(target.layer, target.attribute)
        steps.train(training)


def blocks(target: Target, weight: Tensor) -> list[tuple[Tensor, Fans]]:
    """The weight as matrices that each map inputs to outputs, (outputs, inputs, *kernel), with their fans."""
    layer = target.layer
    if isinstance(layer, nn.MultiheadAttention):
        parts = weight.chunk(3) if len(weight) == 3 * layer.embed_dim else (weight,)
        return [(part, tensor_fans(part)) for part in parts]
    if isinstance(layer, nn.Linear | _ConvNd):
        fans, groups, turned = layer_fans(layer), getattr(layer, "groups", 1), isinstance(layer, _ConvTransposeNd)
        return [(block.transpose(0, 1) if turned else block, fans) for block in weight.chunk(groups)]
    found = []
    for part in weight.chunk(target.groups):
        block = part.transpose(0, 1) if target.turned else part
        fan_in, fan_out = tensor_fans(block)
        convolved = weight.ndim > 2  # the stride belongs to the side whose positions are fewer
        turned = target.turned and convolved
        found.append((block, (fan_in / target.stride, fan_out) if turned else (fan_in, fan_out / target.stride)))
    return found


def fans_of(target: Target) -> Fans:
    """The fans of a weight's matrices, which are alike."""
    return blocks(target, getattr(target.layer, target.attribute))[0][1]


def _parametrization(target: Target) -> parametrize.ParametrizationList | None:
    if not parametrize.is_parametrized(target.layer, target.attribute):
        return None
    return cast("nn.ModuleDict", target.layer.parametrizations)[target.attribute]  # type: ignore[return-value]
