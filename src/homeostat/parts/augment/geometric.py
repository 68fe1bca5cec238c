"""Where an image's pixels go: affine maps, rotations, resized crops, for every example of a batch by its own numbers.

Positions are measured from the upper left corner of the image in pixels, so that the center of the first pixel is at
(1/2, 1/2). Not random: the numbers are arguments. Differentiable with respect to the images.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from homeostat.parts.augment.draws import below, between

ATTEMPTS = 10  # as many as torchvision makes to find a box that fits

CROP_DRAWS = 2 * ATTEMPTS + 2


def warp(images: Tensor, matrix: Tensor, fill: Tensor) -> Tensor:
    """Every pixel of the result shows the pixel in which its center falls under an affine map; `fill` where none is.

    Args:
        images: (N, C, H, W), any dtype.
        matrix: floating (N, 2, 3): the source's (x, y) is matrix @ (x, y, 1).
        fill: (C,), like the images.
    Returns: a new tensor like the images.
    Example:
        >>> step = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]])
        >>> warp(torch.tensor([[[[1, 2, 3]]]]), step, torch.tensor([0]))
        tensor([[[[2, 3, 0]]]])
    """
    n, channels, height, width = images.shape
    x, y = _sources(images, matrix)
    column, row = x.floor().long(), y.floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    place = place.view(n, 1, height * width).expand(-1, channels, -1)
    found = images.flatten(2).gather(2, place).view(images.shape)
    return torch.where(inside[:, None], found, fill.view(-1, 1, 1))


def rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    """The map (N, 2, 3) that turns images counterclockwise about their center by `degrees`, shape (N,).

    Example:
        >>> rotation(torch.tensor([90.0]), 4, 4)[0, 0].round(decimals=3)
        tensor([ 0., -1.,  4.])
    """
    turns = [math.radians(angle) for angle in degrees.tolist()]
    cosine, sine = (degrees.new_tensor([f(turn) for turn in turns]) for f in (math.cos, math.sin))
    x = torch.stack([cosine, -sine, width / 2 - cosine * (width / 2) + sine * (height / 2)], -1)
    y = torch.stack([sine, cosine, height / 2 - sine * (width / 2) - cosine * (height / 2)], -1)
    return torch.stack([x, y], -2)


def rotate(images: Tensor, degrees: Tensor, *, padding_mode: str, fill: Tensor) -> Tensor:
    """Turn every image counterclockwise about its center, with bilinear interpolation.

    Args:
        images: floating (N, C, H, W).
        degrees: (N,).
        padding_mode: what comes in at the corners: "reflect", the mirror image, or "constant", the fill.
        fill: (C,).
    Example:
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> rotate(image, torch.tensor([90.0]), padding_mode="reflect", fill=torch.zeros(1)).round()
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    x, y = _sources(images, rotation(degrees.double(), *images.shape[2:]))
    if padding_mode == "reflect":
        return _sample(images, x, y, "reflection")
    fill = fill.view(-1, 1, 1)
    return _sample(images - fill, x, y, "zeros") + fill


def rotate90(images: Tensor, turns: Tensor) -> Tensor:
    """Turn every image counterclockwise by 90 degrees as often as `turns`, int64 (N,) on the CPU, says.

    Example:
        >>> rotate90(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([1]))
        tensor([[[[2, 4],
                  [1, 3]]]])
    """
    result = images.clone()
    for count in range(1, 4):
        chosen = (turns % 4 == count).nonzero()[:, 0].to(images.device)
        if len(chosen):
            result[chosen] = torch.rot90(images[chosen], count, (2, 3))
    return result


def resized_crop(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Cut a box out of every image and enlarge it to the image's size, with bilinear interpolation.

    The same as torch.nn.functional.interpolate(images[n:n+1, :, top:top + height, left:left + width], (H, W),
    mode="bilinear"), image by image.

    Args:
        images: floating (N, C, H, W).
        top, left, height, width: int64 (N,), boxes within the images, at least one pixel each.
    Example:
        >>> one = torch.ones(1, dtype=torch.int64)
        >>> resized_crop(torch.arange(9.0).view(1, 1, 3, 3), one, one, one, one).unique()
        tensor([4.])
    """
    n, _, rows, columns = images.shape

    def along(size: int, first: Tensor, length: Tensor) -> Tensor:
        first, length = (t.to(images.device, _precision(images)).view(-1, 1) for t in (first, length))
        position = (torch.arange(size, device=images.device) + 0.5) * (length / size) - 0.5
        return torch.minimum(position.clamp(min=0), length - 1) + (first + 0.5)

    x, y = along(columns, left, width)[:, None, :], along(rows, top, height)[:, :, None]
    return _sample(images, x.expand(n, rows, columns), y.expand(n, rows, columns), "border")


def draw_boxes(
    numbers: Tensor, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Boxes as torchvision's RandomResizedCrop draws them: (top, left, height, width), each int64 (N,).

    The area is uniform within `scale` of the image's, the ratio of width to height log-uniform within `ratio`. The
    first of 10 draws that fits is taken, or else the largest box at the center whose ratio is allowed.

    Args:
        numbers: in [0, 1), (N, CROP_DRAWS).
    """
    area = between(numbers[:, :ATTEMPTS], scale) * (height * width)
    aspect = between(numbers[:, ATTEMPTS : 2 * ATTEMPTS], (math.log(ratio[0]), math.log(ratio[1]))).exp()
    columns, rows = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (columns > 0) & (columns <= width) & (rows > 0) & (rows <= height)
    first = fits.long().argmax(1, keepdim=True)
    whole_rows, whole_columns = _largest_box(height, width, ratio)
    found = fits.any(1)
    rows = torch.where(found, rows.gather(1, first)[:, 0], whole_rows)
    columns = torch.where(found, columns.gather(1, first)[:, 0], whole_columns)
    top = torch.where(found, below(numbers[:, -2], height - rows + 1), (height - rows) // 2)
    left = torch.where(found, below(numbers[:, -1], width - columns + 1), (width - columns) // 2)
    return top, left, rows, columns


def _largest_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int]:
    if width / height < ratio[0]:
        return max(1, min(height, round(width / ratio[0]))), width
    if width / height > ratio[1]:
        return height, max(1, min(width, round(height * ratio[1])))
    return height, width


def _sources(images: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Where every pixel's center is taken from: x and y, (N, H, W)."""
    height, width = images.shape[2:]
    m = matrix.to(images.device, _precision(images))[:, :, :, None, None]
    x = torch.arange(width, device=images.device) + 0.5
    y = (torch.arange(height, device=images.device) + 0.5)[:, None]
    # term by term, not as a matrix product, whose rounding may depend on how many examples there are
    return m[:, 0, 0] * x + (m[:, 0, 1] * y + m[:, 0, 2]), m[:, 1, 0] * x + (m[:, 1, 1] * y + m[:, 1, 2])


def _sample(images: Tensor, x: Tensor, y: Tensor, padding_mode: str) -> Tensor:
    """Interpolate at positions (N, H, W); grid_sample wants -1 and 1 at the centers of the outermost pixels."""
    height, width = images.shape[2:]
    u, v = ((t - 0.5) * (2 / max(1, size - 1)) - 1 for t, size in ((x, width), (y, height)))
    grid = torch.stack([u, v], -1).to(images.dtype)
    return grid_sample(images, grid, mode="bilinear", padding_mode=padding_mode, align_corners=True)


def _precision(images: Tensor) -> torch.dtype:
    """What positions are computed in."""
    return torch.float64 if images.dtype == torch.float64 else torch.float32
