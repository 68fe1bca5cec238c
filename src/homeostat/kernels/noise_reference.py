"""Gaussian noise in plain torch, for any device and dtype: what `kernels.noise` falls back to and is tested against.

Four examples share a counter of Philox, see `philox_reference`, and its words make their four normal numbers by Box and
Muller: the first two words those of examples 4q and 4q + 1, as the sine and cosine of one angle under one radius, the
other two those of 4q + 2 and 4q + 3. A value's position is its index in channels_last memory for images
(N, C, H, W), and its index in the example for everything else.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.kernels import philox_reference


def add_noise(input: Tensor, seed: Tensor, std: float, example: int) -> Tensor:
    """See `homeostat.kernels.noise.add_noise`."""
    n = input.shape[0]
    noise = normals(seed, n, input.shape[1:].numel(), example).to(input.device)
    if input.dim() == 4:
        _, c, h, w = input.shape
        noise = noise.view(n, h, w, c).permute(0, 3, 1, 2)
    else:
        noise = noise.view(input.shape)
    if input.dtype == torch.uint8:
        return torch.add(input, noise, alpha=std).round_().clamp_(0, 255).to(torch.uint8)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    return torch.add(input.to(wide), noise.to(wide), alpha=std).to(input.dtype)


def normals(seed: Tensor, examples: int, positions: int, example: int = 0) -> Tensor:
    """Standard normal numbers by place: float32, shape (examples, positions), on the CPU."""
    first = example // 4
    quads = -(-(example + examples) // 4) - first
    words = philox_reference.words(seed, 4 * quads, positions, 4 * first).view(quads, 2, 2, positions)
    # 31 bits, converted to float32 before anything else, so that every backend has the same number to start from
    uniform = ((words[:, :, 0] >> 1).float() + 0.5) * 2.0**-31
    radius = (-2 * uniform.double().log()).sqrt()
    angle = words[:, :, 1].double() * (2 * math.pi / 2**32)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 2).float()
    return pairs.view(4 * quads, positions)[example - 4 * first :][:examples]
