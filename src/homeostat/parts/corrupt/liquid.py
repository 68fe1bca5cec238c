"""Drops of water for the corruption `spatter`: edges of a liquid's surface, lit from the upper left. Not random.

The steps are those of the original, which takes them from OpenCV: 8-bit arithmetic, Canny's edges, distance to them,
equalized histogram, relief. Distances are exact here, where OpenCV approximates them.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

_LOW, _HIGH = 50, 150
"""Canny's thresholds, of the sum of the absolute derivatives."""

_FARTHEST = 20.0
"""Where the distance to an edge is cut off, in pixels."""

_RELIEF = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], float)


def water(liquid: Tensor, threshold: float) -> Tensor:
    """How strongly drops lighten each place, between 0 and 1 and 1 at most places' brightest, shape (N, 1, H, W).

    Args:
        liquid: floating, (N, 1, H, W), on the CPU; where it exceeds the threshold there is water.
    """
    layers = [_relief(layer) for layer in torch.where(liquid < threshold, 0.0, liquid)[:, 0].double().numpy()]
    return torch.from_numpy(np.stack(layers))[:, None].to(liquid)


def _relief(liquid: np.ndarray) -> np.ndarray:
    surface = np.clip(liquid * 255, 0, 255).astype(np.uint8).astype(float)
    edges = _canny(surface)
    distance = np.full(surface.shape, _FARTHEST)
    if edges.any():
        distance = np.minimum(ndimage.distance_transform_edt(~edges), _FARTHEST)
    distance = _equalized(np.floor(_mean_of_nine(distance)))
    lit = np.clip(np.rint(ndimage.correlate(distance, _RELIEF, mode="mirror")), 0, 255)
    shine = surface * np.rint(_mean_of_nine(lit))
    brightest = shine.max()
    return shine / brightest if brightest > 0 else shine


def _mean_of_nine(image: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.correlate(image, np.full((3, 3), 1 / 9), mode="mirror"))


def _equalized(image: np.ndarray) -> np.ndarray:
    """Integers of 0 to 255 so that their cumulative histogram is a line; an image of one value as it is."""
    counts = np.bincount(image.astype(np.int64).ravel(), minlength=256)
    darkest = int(np.flatnonzero(counts)[0])
    others = image.size - counts[darkest]
    if others == 0:
        return image
    counts[darkest] = 0
    return np.asarray(np.rint(255 / others * np.cumsum(counts))[image.astype(np.int64)])


def _canny(image: np.ndarray) -> np.ndarray:
    """Canny's edges: ridges of the gradient above the low threshold that are connected with one above the high one.

    Source: Canny 1986, doi:10.1109/TPAMI.1986.4767851.
    """
    down, right = (ndimage.sobel(image, axis, mode="nearest") for axis in (0, 1))
    slope = np.abs(down) + np.abs(right)
    around = np.pad(slope, 1)

    def neighbor(row: int, column: int) -> np.ndarray:
        return around[1 + row : 1 + row + slope.shape[0], 1 + column : 1 + column + slope.shape[1]]

    flat, steep = np.tan(np.pi / 8) * np.abs(right), np.tan(3 * np.pi / 8) * np.abs(right)
    falling = (slope > neighbor(-1, -1)) & (slope > neighbor(1, 1))
    rising = (slope > neighbor(-1, 1)) & (slope > neighbor(1, -1))
    diagonal = np.where((down < 0) == (right < 0), falling, rising)
    along_row = (slope > neighbor(0, -1)) & (slope >= neighbor(0, 1))
    along_column = (slope > neighbor(-1, 0)) & (slope >= neighbor(1, 0))
    ridge = np.where(np.abs(down) < flat, along_row, np.where(np.abs(down) > steep, along_column, diagonal))
    edges, _ = ndimage.label(ridge & (slope > _LOW), np.ones((3, 3)))
    return np.isin(edges, np.unique(edges[(slope > _HIGH) & (edges > 0)])) & (edges > 0)
