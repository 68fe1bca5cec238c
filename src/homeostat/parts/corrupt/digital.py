"""The digital corruptions: contrast, elastic transform, pixelate, JPEG and saturate. Random through their draws.

Every function takes images (N, C, H, W) in [0, 1], the draws, the constants of `constants` and the scale by
which lengths are multiplied.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from homeostat.parts.corrupt.constants import Constants
from homeostat.parts.corrupt.draws import Draws
from homeostat.parts.corrupt.filters import luma, resized


def contrast(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Differences to each channel's mean become c times as large. Not random; no length is involved."""
    (factor,) = constants
    means = x.double().mean((2, 3), keepdim=True).to(x)  # in float64, so that the order of the sum does not show
    return (x - means) * factor + means


def elastic_transform(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """A random affine map, then a smooth random displacement of every pixel; both read linearly between pixels."""
    height, sigma, shift = constants
    corners = draws.uniform(3, 2, low=-shift, high=shift) * scale
    away = _displacements(draws, round(x.shape[2] / scale), round(x.shape[3] / scale), height, sigma)
    away = resized(away, x.shape[2], x.shape[3]) * scale
    rows = torch.arange(x.shape[2], dtype=torch.float64, device="cpu")[:, None]
    columns = torch.arange(x.shape[3], dtype=torch.float64, device="cpu")
    x = _read(x, *_affine(corners, rows, columns), align_corners=True)
    return _read(x, rows + away[:, 0], columns + away[:, 1], align_corners=False)


def pixelate(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Fewer pixels, each the mean of a block, and back to the size by repeating them. Not random."""
    (share,) = constants
    for dim in (2, 3):
        size = x.shape[dim]
        x = _blocks(x, dim, int(size * share))
    return x


def jpeg_compression(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Through a JPEG file and back, with 256 values and Pillow's defaults, which halve the color's size. Not random."""
    from PIL import Image

    quality = int(constants[0])
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for image in pixels[..., 0] if x.shape[1] == 1 else pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.array(Image.open(file)))
    images = torch.from_numpy(np.stack(decoded)).to(x) / 255
    return images[:, None] if x.shape[1] == 1 else images.permute(0, 3, 1, 2)


def saturate(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """The saturation of hue, saturation and value becomes c0 times as large, plus c1. Not random.

    Gray has no hue, and turns red where c1 > 0, as in the original. Gray images are what the luma of that is.
    """
    factor, added = constants
    value = x.amax(1, keepdim=True)
    below = value - (x if x.shape[1] == 3 else x.expand(-1, 3, -1, -1))
    depth = below.amax(1, keepdim=True)
    saturation = depth / value.clamp(min=1e-12)
    wanted = (saturation * factor + added).clamp(0, 1)
    red = x.new_tensor([0.0, 1.0, 1.0]).view(1, 3, 1, 1)
    shape = torch.where(depth > 0, below / depth.clamp(min=1e-12), red)
    colors = value * (1 - wanted * shape)
    return colors if x.shape[1] == 3 else luma(colors)


def _displacements(draws: Draws, rows: int, columns: int, height: float, sigma: float) -> Tensor:
    """Uniform noise after a Gaussian that is cut off at 3 sigma, times a height, float64 (N, 2, rows, columns)."""
    noise = draws.uniform(2, rows, columns, low=-1.0, high=1.0).double().numpy()
    down, across = (
        ndimage.gaussian_filter(np.eye(size), (sigma, 0), mode="reflect", truncate=3.0) for size in (rows, columns)
    )
    return torch.from_numpy(np.stack([height * (down @ image @ across.T) for image in noise]))


def _affine(corners: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel comes from if three points around the center are shifted by `corners`, (N, 3, 2) as (x, y)."""
    height, width = len(rows), len(columns)
    x, y, side = width // 2, height // 2, min(height, width) // 3
    before = corners.new_tensor([[x + side, y + side], [x + side, y - side], [x - side, y - side]], dtype=torch.float64)
    after = torch.cat([before + corners, corners.new_ones(len(corners), 3, 1)], 2)
    back = torch.from_numpy(np.linalg.solve(after.numpy(), before.expand(len(corners), 3, 2).numpy()))
    a, b, c = back[:, :, :, None, None].unbind(1)  # the columns' share, the rows' share, the constant
    places = columns * a + rows * b + c
    return places[:, 1], places[:, 0]


def _read(x: Tensor, rows: Tensor, columns: Tensor, *, align_corners: bool) -> Tensor:
    """Images at fractional places; beyond the border is a mirror, through the last pixels' centers or their edges."""
    sizes = (x.shape[3], x.shape[2])
    rows, columns = torch.broadcast_tensors(rows, columns)
    places = torch.stack([columns, rows], 3)
    if align_corners:
        grid = torch.stack([places[..., k] * (2 / (size - 1)) - 1 for k, size in enumerate(sizes)], 3)
    else:
        grid = torch.stack([(places[..., k] * 2 + 1) / size - 1 for k, size in enumerate(sizes)], 3)
    return F.grid_sample(x, grid.to(x), mode="bilinear", padding_mode="reflection", align_corners=align_corners)


def _blocks(x: Tensor, dim: int, count: int) -> Tensor:
    """One dimension in `count` blocks: every pixel becomes its block's mean, as with Pillow's box filter.

    A block holds the pixels whose centers lie in it, so that some blocks are one pixel longer than others.
    """
    size = x.shape[dim]
    width = size / count
    centers = (np.arange(count) + 0.5) * width
    first = (centers - width / 2 + 0.5).astype(int)
    members = first + np.arange(math.ceil(width) + 1)[:, None]
    inside = np.abs((members - centers + 0.5) * (1 / width)) <= 0.5
    shares = torch.from_numpy(inside / inside.sum(0)).to(x)
    places = torch.from_numpy(np.minimum(members, size - 1)).to(x.device)
    shape = [count if k == dim else 1 for k in range(4)]
    means = shares[0].view(shape) * x.index_select(dim, places[0])
    for share, place in zip(shares[1:], places[1:], strict=True):
        means = means + share.view(shape) * x.index_select(dim, place)
    block = torch.from_numpy(((np.arange(size) + 0.5) * (count / size)).astype(int)).to(x.device)
    return means.index_select(dim, block)
