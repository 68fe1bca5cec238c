"""Frost for the corruption of that name: crystals that are drawn, where ImageNet-C has photographs of its authors.

Five sheets are made once from fixed seeds, with the mean colors and contrasts of those photographs; each example then
takes a window at a random place of one of them, as the original does. Random through the draws it is given.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from homeostat.parts.corrupt.draws import Draws
from homeostat.seeds import numpy_generator

if TYPE_CHECKING:
    from PIL import Image

SHEETS = ((0.30, 0.58, 0.65), (0.79, 0.81, 0.84), (0.79, 0.81, 0.84), (0.54, 0.60, 0.65), (0.44, 0.48, 0.53))
"""The mean color of each sheet."""

CONTRASTS = (0.07, 0.09, 0.09, 0.11, 0.17)
"""The standard deviation of each sheet's brightness."""

SIDE = 600
"""The sheets' side in pixels. CIFAR-C reduces its photographs to a fifth before it takes its windows."""


FEATHERS = 700
"""The crystals on a sheet."""


def frost_windows(draws: Draws, height: int, width: int) -> Tensor:
    """Windows (N, 3, height, width) at random places of random sheets; beyond a sheet's border it is mirrored."""
    side = min(height, width)
    windows = []
    for sheet, top, left in zip(draws.integers(0, len(SHEETS)), draws.uniform(), draws.uniform(), strict=True):
        image = _sheet(int(sheet), reduced=side < 224)
        room = image.shape[1] - side
        rows, columns = (
            _mirrored(math.floor(float(start) * room) + np.arange(length), image.shape[1])
            for start, length in ((top, height), (left, width))
        )
        windows.append(torch.from_numpy(image[:, rows[:, None], columns]))
    return torch.stack(windows)


def _mirrored(places: np.ndarray, size: int) -> np.ndarray:
    places = places % (2 * size)
    return np.minimum(places, 2 * size - 1 - places)


@lru_cache(maxsize=2 * len(SHEETS))
def _sheet(number: int, reduced: bool) -> np.ndarray:
    """A sheet of frost, float32 of shape (3, side, side) in [0, 1]."""
    from PIL import Image

    crystals = _crystals(numpy_generator(number, "frost"))
    if reduced:
        crystals = crystals.resize((SIDE // 5, SIDE // 5), Image.Resampling.BILINEAR)
    relief = np.asarray(crystals, np.float32)
    relief = (relief - relief.mean()) / relief.std() * CONTRASTS[number]
    colors = np.array(SHEETS[number], np.float32)[:, None, None]
    return np.clip(colors + relief, 0, 1)


def _crystals(generator: np.random.Generator) -> Image.Image:
    """Feathers of ice, gray: spines with barbs at 60 degrees, the later ones brighter, over a cloudy ground."""
    from PIL import Image, ImageDraw, ImageFilter

    ground = Image.fromarray(generator.integers(0, 160, (8, 8), np.uint8)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC
    )
    drawing = ImageDraw.Draw(ground)
    for number in range(FEATHERS):
        x, y = generator.uniform(0, SIDE, 2)
        angle, bend = generator.uniform(0, 2 * math.pi), generator.normal(0, 0.02)
        length = generator.uniform(20, 110)
        shade = 40 + 170 * number / FEATHERS
        points = []
        for step in np.arange(0, length, 4.0):
            points.append((x, y))
            x, y, angle = x + 4 * math.cos(angle), y + 4 * math.sin(angle), angle + bend
            barb = 0.45 * (length - step) * generator.uniform(0.6, 1.0)
            for side in (-math.pi / 3, math.pi / 3):
                end = (x + barb * math.cos(angle + side), y + barb * math.sin(angle + side))
                drawing.line([(x, y), end], fill=int(shade + generator.uniform(-40, 40)))
        drawing.line(points, fill=int(shade + 45), width=2)
    return ground.filter(ImageFilter.GaussianBlur(0.6))
