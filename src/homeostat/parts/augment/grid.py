"""A grid to look at: some images of a dataset, and what an augmentation makes of them. Random by its seed alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.parts.augment.augmentation import Augment, make_augment
from homeostat.seeds import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KEYS = ("image", "images", "pixel_values", "img", "input", "inputs", "x")  # where datasets of dicts have the image

_DARK = 64  # bytes below it are not in 0..255, but have a white of their own, as the digits' 16

_TILE = 96  # points that the longer side of an image takes on the page
_GAP = 6  # points between images
_HEAD = 20  # points for the line above


def preview(
    dataset: Any,
    augment: str | Augment = "crop+flip",
    *,
    count: int = 8,
    draws: int = 6,
    seed: int = 0,
    path: str | Path | None = None,
) -> Figure:
    """Draw images and what an augmentation makes of them: a row per image, the original first.

    Args:
        dataset: images (N, C, H, W) as a tensor or an array; a Dataset, a list or a DataLoader of images, of tuples
            that begin with one, or of dicts with one; a task of homeostat, whose training images are taken. One or
            three channels. Floating values outside of [0, 1] are stretched to what the originals cover, and so are
            bytes that do not reach 64.
        augment: a specification as for `make_augment`, or what `make_augment` returned.
        count: how many images, from the first on.
        draws: how many times each of them is augmented.
        seed: of the draws.
        path: where to save the picture; the suffix says how (.png, .svg, .pdf).
    Returns: a matplotlib figure, which no global state of matplotlib knows of.
    Raises: InvalidType, InvalidValue for what are no images, and whatever the augmentation refuses.
    Example:
        >>> preview(torch.rand(4, 3, 32, 32), "color_jitter+flip", draws=3).get_size_inches().round(1).tolist()
        [5.8, 6.0]
    """
    from matplotlib.figure import Figure

    for name, number in (("count", count), ("draws", draws)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise invalid("preview", name, "be an integer of at least 1", number)
    images = _images(dataset, count)
    act = make_augment(augment) if isinstance(augment, str) else augment
    columns = [images, *(act(images, seed=derive(seed, "preview", draw)) for draw in range(draws))]
    shown = _shown(torch.stack(columns, 1), images)
    height, width = shown.shape[2:4]
    tile = _TILE / max(height, width)
    size = (len(columns) * (width * tile + _GAP) + _GAP, len(images) * (height * tile + _GAP) + _GAP + _HEAD)
    figure = Figure(figsize=(size[0] / 72, size[1] / 72))
    for row, tiles in enumerate(shown):
        for column, image in enumerate(tiles):
            left = _GAP + column * (width * tile + _GAP)
            bottom = size[1] - _HEAD - (row + 1) * (height * tile + _GAP)
            axes = figure.add_axes((left / size[0], bottom / size[1], width * tile / size[0], height * tile / size[1]))
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="auto")
            axes.set_axis_off()
    names = "+".join(act.names) if hasattr(act, "names") else "augmented"
    for column, text in ((0, "original"), (1, names or "none")):
        at = _GAP + column * (width * tile + _GAP)
        figure.text(at / size[0], 1 - _HEAD / size[1], text, fontsize=9, verticalalignment="bottom")
    if path is not None:
        figure.savefig(path)
    return figure


def _images(dataset: Any, count: int) -> Tensor:
    """The first images, (N, C, H, W)."""
    if isinstance(dataset, Tensor | np.ndarray):
        found = [_image(item) for item in dataset[:count]] if dataset.ndim == 4 else []
    elif hasattr(getattr(dataset, "train", None), "batches"):  # a task
        found = list(dataset.train.head(count)[0])
    elif hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        found = [_image(_input(dataset[index])) for index in range(min(count, len(dataset)))]
    elif hasattr(dataset, "__iter__"):
        batches = (_input(item) for item in dataset)
        found = list(
            islice((_image(item) for batch in batches for item in (batch if _rank(batch) == 4 else [batch])), count)
        )
    else:
        raise invalid_type("preview", "dataset", "be images, a Dataset, a DataLoader or a task", dataset)
    if not found or any(image.ndim != 3 or image.shape[0] not in (1, 3) for image in found):
        cure = "Images have the shape (N, C, H, W), with one channel or three."
        raise invalid("preview", "dataset", "hold images", dataset, cure)
    if len({image.shape for image in found}) > 1:
        shapes = sorted({tuple(image.shape) for image in found})
        raise invalid("preview", "dataset", "hold images of one size", shapes, "Resize them first.")
    return torch.stack(found)


def _input(item: Any) -> Any:
    """The image, or the batch of images, of what a dataset hands out."""
    if isinstance(item, Mapping):
        name = next((key for key in _KEYS if key in item), None)
        if name is None:
            cure = f"Its keys are {', '.join(map(repr, item))}; known are {', '.join(map(repr, _KEYS))}."
            raise invalid("preview", "dataset", "have an image in its dicts", type(item).__name__, cure)
        return item[name]
    return item[0] if isinstance(item, tuple | list) and len(item) else item


def _rank(image: Any) -> int:
    return int(getattr(image, "ndim", 0))


def _image(item: Any) -> Tensor:
    """One image as (C, H, W); arrays and pictures may have their channels last, or none."""
    if isinstance(item, Tensor):
        return item[None] if item.ndim == 2 else item
    array = np.asarray(item)
    if array.dtype.kind not in "uf" or array.ndim not in (2, 3):
        raise invalid_type("preview", "dataset", "hold images as tensors, arrays or pictures", item)
    tensor = torch.from_numpy(array.copy())  # pictures are read-only, which torch warns of
    if tensor.ndim == 2:
        return tensor[None]
    last = tensor.shape[2] in (1, 3) and tensor.shape[0] not in (1, 3)
    return tensor.permute(2, 0, 1) if last else tensor


def _shown(tiles: Tensor, originals: Tensor) -> Any:
    """Values in [0, 1] to be drawn, (rows, columns, H, W, C); gray without a last dimension."""
    values = tiles.detach().cpu().float()
    low, high = (float(value) for value in originals.detach().float().aminmax())
    if tiles.dtype == torch.uint8 and high >= _DARK:
        low, high = 0.0, 255.0
    elif tiles.dtype != torch.uint8 and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    values = (values - low) / max(high - low, 1e-12)
    values = values.clamp(0, 1).permute(0, 1, 3, 4, 2)
    return (values[..., 0] if values.shape[-1] == 1 else values).numpy()
