"""Normalization layers that fit a place in a model: the right number of channels, axis, device, dtype and trainability.

`fit_after` builds one for the output of a weight layer, `fit_in_place` one that takes the place of another. Not random.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from homeostat.errors import InvalidValue, invalid
from homeostat.parts.layers import Layer
from homeostat.parts.norm import LastAxisBatchNorm, LastAxisGroupNorm, make_norm

_DIMS: dict[type[nn.Module], int] = {
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
}


def fit_after(layer: Layer, kind: str) -> nn.Module:
    """A new normalization layer for the output of a weight layer that ran; trainable if the layer is.

    Raises: InvalidValue, naming the layer, if the kind cannot apply to it.
    """
    module = layer.module
    dims = len(module.kernel_size) if isinstance(module, _ConvNd) else 0
    channels = module.out_channels if isinstance(module, _ConvNd) else module.out_features
    shapes = layer.output_shapes
    if dims and any(len(shape) != dims + 2 for shape in shapes):
        cure = f"Give the model a batch dimension; {layer.title} returned {sorted(shapes)}."
        raise invalid("set_norm_", "sample", f"reach {layer.title} as a batch", sorted(shapes), cure)
    positions = min(math.prod(shape[2:]) for shape in shapes) if dims else 1
    new = _build(kind, layer, int(channels), dims, positions)  # type: ignore[arg-type]
    trainable = any(parameter.requires_grad for parameter in module.parameters())
    return _settle(new, module.weight, trainable, module.training)  # type: ignore[arg-type]


def fit_in_place(layer: Layer, kind: str, previous: Layer | None) -> nn.Module | None:
    """A new normalization layer that can stand where `layer` stands; it takes over scale and shift if they fit.

    Args:
        layer: a normalization layer that need not have run.
        previous: the weight layer that ran before it.
    Returns: the layer; None if `layer` did not run and its class does not tell where its channels are.
    Raises: InvalidValue, naming the layer, if the kind cannot apply there or the channels cannot be told.
    """
    old = layer.module
    place = _channels_of(layer, previous)
    if place is None:
        if not layer.calls:
            return None
        cure = "Replace this layer by one of torch's, or leave it out of the model."
        raise invalid("set_norm_", "model", f"show where the channels of {layer.title} are", layer.input_shape, cure)
    channels, dims = place
    positions = math.prod(layer.input_shape[2:]) if dims and layer.calls else 2
    new = _build(kind, layer, channels, dims, positions)
    states = [state for state in (*old.parameters(), *old.buffers()) if state.is_floating_point()]
    example = states[0] if states else layer.output
    own = list(old.parameters())
    new = _settle(new, example, not own or any(parameter.requires_grad for parameter in own), old.training)
    _inherit(old, new)
    return new


def _build(kind: str, layer: Layer, channels: int, dims: int, positions: int) -> nn.Module:
    """make_norm, with errors that name the layer; `positions` is the number of positions of one example."""
    condition = f"apply to every layer, also to {layer.title}"
    try:
        new = make_norm(kind, channels, dims)
    except InvalidValue as error:
        raise invalid("set_norm_", "kind", condition, kind, str(error)) from error
    if kind == "instance" and positions == 1:
        cure = "Its output has one position only, and a single number normalizes to a constant. Use layer or group."
        raise invalid("set_norm_", "kind", condition, kind, cure)
    return new


def _settle(new: nn.Module, example: Tensor | None, trainable: bool, training: bool) -> nn.Module:
    """Device, dtype, trainability and mode."""
    if example is not None:
        new = new.to(device=example.device, dtype=example.dtype)
    return new.requires_grad_(trainable).train(training)


@torch.no_grad()
def _inherit(old: nn.Module, new: nn.Module) -> None:
    """Take over scale and shift of one of torch's layers: they may be trained, or zero on purpose in a residual
    branch."""
    if not isinstance(old, _NormBase | nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
        return
    for name in ("weight", "bias"):
        source, target = getattr(old, name, None), getattr(new, name, None)
        if source is not None and target is not None and source.shape == target.shape:
            target.copy_(source)


def _channels_of(layer: Layer, previous: Layer | None) -> tuple[int, int] | None:
    """(channels, dims) as `make_norm` takes them, for the input of a normalization layer; None if they cannot be
    told."""
    module, shape = layer.module, layer.input_shape
    if isinstance(module, LastAxisBatchNorm):
        return module.num_features, 0
    if isinstance(module, LastAxisGroupNorm):
        return module.num_channels, 0
    if isinstance(module, _NormBase | nn.GroupNorm):
        channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        known = next((dims for kind, dims in _DIMS.items() if isinstance(module, kind)), None)
        dims = len(shape) - 2 if shape else known
        return None if dims is None else (channels, dims)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        sizes = module.normalized_shape
        if type(module).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
            if len(sizes) == 1:
                return sizes[0], 0
            behind_convolution = _is_convolution(previous) and len(shape) == len(sizes) + 1
            return (sizes[0], len(sizes) - 1) if behind_convolution else None
        return _by_shape(module, sizes[0], shape, previous)
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    return _by_shape(module, len(weight), shape, previous)


def _by_shape(
    module: nn.Module, channels: int, shape: tuple[int, ...], previous: Layer | None
) -> tuple[int, int] | None:
    """Where the shape has this many channels: behind the batch, or last.

    Where both fit, the module itself is asked: it fails on a shape that has its channels at the wrong end.
    """
    if len(shape) < 2:
        return None
    first, last = shape[1] == channels, shape[-1] == channels
    if first and last and len(shape) > 2:
        others = [channels + extra for extra in range(1, len(shape) - 1)]
        first, last = _accepts(module, (2, channels, *others)), _accepts(module, (2, *others, channels))
        if first == last:
            first, last = _is_convolution(previous), not _is_convolution(previous)
    if first:
        return channels, len(shape) - 2
    return (channels, 0) if last else None


@torch.no_grad()
def _accepts(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a copy of the module runs on this shape and keeps it."""
    example = next((state for state in (*module.parameters(), *module.buffers()) if state.is_floating_point()), None)
    x = torch.zeros(shape, device="cpu") if example is None else example.new_zeros(shape)
    try:
        return bool(copy.deepcopy(module).eval()(x).shape == shape)
    except Exception:  # whatever a user's module raises, it does not accept the shape
        return False


def _is_convolution(layer: Layer | None) -> bool:
    return layer is not None and isinstance(layer.module, _ConvNd)
