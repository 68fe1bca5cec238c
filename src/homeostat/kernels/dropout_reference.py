"""Dropout in plain torch, for any device and dtype: what `kernels.dropout` falls back to and is tested against."""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels import philox_reference


def dropout(input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int) -> Tensor:
    """See `homeostat.kernels.dropout.dropout`."""
    shape = input.shape[:dims]
    words = philox_reference.words(seed, shape[0], shape[1:].numel(), example, position)
    keep = (words >= threshold(p)).reshape(shape + (1,) * (input.dim() - dims)).to(input.device)
    scale = 1 / (1 - p) if p < 1 else 0.0
    dropped = torch.where(keep, input * scale, torch.zeros((), dtype=input.dtype, device=input.device))
    return dropped.contiguous(memory_format=layout(input, dims))


def threshold(p: float) -> int:
    """The number of 32-bit words, out of 2**32, that mean dropping: round(p * 2**32)."""
    return round(p * 2**32)


def layout(input: Tensor, dims: int) -> torch.memory_format:
    """How the output lies in memory: with channels last if the input does, else contiguous.

    Draws for some of the dimensions behind the channels have no fast way with channels last, nor a use: contiguous.
    """
    if input.is_contiguous() or input.dim() not in (4, 5) or 2 < dims < input.dim():
        return torch.contiguous_format
    form = torch.channels_last if input.dim() == 4 else torch.channels_last_3d
    return form if input.is_contiguous(memory_format=form) else torch.contiguous_format
