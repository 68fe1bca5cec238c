"""The arithmetic of folding: a scale and a shift per channel go into weights and bias, in float64. Not random."""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.parts.fold.layers import Weighted


def absorb_behind(
    layer: Weighted, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Weights and bias of one layer that does what a layer and a scale and shift of its outputs did.

    W' = W * scale, b' = b * scale + shift, per output channel.

    Args:
        weight, bias: float64.
        scale, shift: one number per output channel.
    """
    if layer.kind == "transposed convolution":  # (in, out / groups, ...)
        split = weight.unflatten(0, (layer.groups, -1))
        scaled = split * scale.view(layer.groups, 1, -1, *[1] * layer.dims)
        new = scaled.flatten(0, 1)
    else:
        new = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    return new, shift if bias is None else bias * scale + shift


def absorb_before(
    layer: Weighted, weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The same for a scale and shift of its inputs.

    W' = W * scale, b' = b + sum over inputs and kernel of W * shift; one number per input channel.
    """
    if layer.kind == "transposed convolution":
        return weight * scale.view(-1, 1, *[1] * layer.dims), bias
    split = weight.unflatten(0, (layer.groups, -1))
    form = (layer.groups, 1, -1, *[1] * layer.dims)
    added = (split * shift.view(form)).flatten(2).sum(2).flatten()
    new = (split * scale.view(form)).flatten(0, 1)
    if bias is None and not bool(shift.any()):
        return new, None
    return new, added if bias is None else bias + added


def per_channel(values: Tensor, channels: Tensor, missing: float) -> Tensor:
    """Numbers per channel of a norm as numbers per channel of a layer; `missing` where there is none.

    Example:
        >>> per_channel(torch.tensor([5.0, 7.0]), torch.tensor([1, -1, 0]), 1.0)
        tensor([7., 1., 5.])
    """
    return torch.where(channels < 0, values.new_tensor(missing), values[channels.clamp(min=0)])
