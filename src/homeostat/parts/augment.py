"""Augmentation of whole batches: random crop, horizontal flip, cutout and Gaussian noise, drawn per example.

Everything is vectorized over the batch and written once; uint8 images stay uint8 and channels_last stays channels_last.
Random, but only through the given generator, and in the same way for every specification: an example's crop, flip and
cutout come from the same draws whichever of them are asked for, so treatments that differ in one part share the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown

AUGMENTATIONS: tuple[str, ...] = ("crop", "flip", "cutout", "noise")
"""The parts of a specification, in the order in which they are applied."""

PADDING_MODES: tuple[str, ...] = ("reflect", "constant")
"""What a crop finds outside the image: its mirror image, or the fill."""

UINT8_DEVIATION = 64.0
"""The standard deviation that raw pixels are taken to have: a quarter of their range."""

_DRAWS = 5  # crop row and column, flip, cutout row and column


@dataclass(frozen=True)
class Augment:
    """A callable that augments batches; `make_augment` builds it from a specification."""

    names: tuple[str, ...]
    padding: int | None
    padding_mode: str
    cutout_size: int | None
    noise_std: float
    fill: float | tuple[float, ...]

    def check(self, shape: Sequence[int], where: str = "augment") -> None:
        """Raise an error if examples of this shape, (C, H, W) or (F,), cannot be augmented."""
        spatial = [name for name in self.names if name != "noise"]
        if len(shape) != 3 and spatial:
            cure = "Vectors have no height and width; only noise applies to them."
            raise invalid(
                where, "input", f"be images (C, H, W): {spatial[0]} cannot apply to vectors", tuple(shape), cure
            )
        if len(shape) == 3 and "crop" in self.names and self.padding_mode == "reflect" and self.padding is not None:
            smallest = min(shape[1:])
            if self.padding >= smallest:
                raise invalid(where, "padding", f"be smaller than the image ({smallest})", self.padding)
        if isinstance(self.fill, tuple) and len(shape) == 3 and len(self.fill) != shape[0]:
            raise invalid(where, "fill", f"have one number or one per channel ({shape[0]})", self.fill)

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment a batch.

        Args:
            x: (N, C, H, W), uint8 or floating, or (N, F) for noise alone; not changed.
            generator: the only source of randomness; where it lives on another device than x, the draws are moved.
        Returns: a tensor of the same shape, dtype, device and memory format.
        """
        if not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise invalid_type("augment", "input", "be uint8 or floating", x)
        self.check(x.shape[1:])
        if not self.names:
            return x
        draws = torch.rand(len(x), _DRAWS, generator=generator, device=generator.device).to(x.device)
        if "crop" in self.names or "flip" in self.names:
            x = self._crop_and_flip(x, draws)
        if "cutout" in self.names:
            x = self._cutout(x, draws)
        if "noise" in self.names:
            x = self._noise(x, generator)
        return x

    def _crop_and_flip(self, x: Tensor, draws: Tensor) -> Tensor:
        """One gather: the source row and column of every target pixel, per example."""
        height, width = x.shape[2:]
        crop = "crop" in self.names
        rows, rows_inside = self._source(height, draws[:, 0] if crop else None, x.device)
        columns, columns_inside = self._source(width, draws[:, 1] if crop else None, x.device)
        if "flip" in self.names:
            flipped = (draws[:, 2] < 0.5)[:, None]
            columns = torch.where(flipped, columns.flip(1), columns)
            columns_inside = torch.where(flipped, columns_inside.flip(1), columns_inside)
        out = _gather(x, rows, columns)
        if crop and self.padding_mode == "constant":
            inside = rows_inside[:, None, :, None] & columns_inside[:, None, None, :]
            out = torch.where(inside, out, self._fill(x))
        return out

    def _source(self, size: int, draw: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
        """For each example and target position along one axis: the source position, and whether it is in the image."""
        target = torch.arange(size, device=device)[None, :]
        if draw is None:
            return target, torch.ones_like(target, dtype=torch.bool)
        padding = min(max(1, size // 8), size - 1) if self.padding is None else self.padding
        position = target + _below(draw, 2 * padding + 1)[:, None] - padding
        inside = (position >= 0) & (position < size)
        if self.padding_mode == "constant":
            return position.clamp(0, size - 1), inside
        mirrored = position.abs()
        return torch.where(mirrored >= size, 2 * (size - 1) - mirrored, mirrored), inside

    def _cutout(self, x: Tensor, draws: Tensor) -> Tensor:
        _, channels, height, width = x.shape
        rows, columns = self._covered(height, draws[:, 3], x), self._covered(width, draws[:, 4], x)
        pixels = x.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).view(-1, channels)
        pixels.index_put_((_flat_index(rows, columns, height, width),), self._fill(x).view(-1))
        return _from_pixels(pixels, x)

    def _covered(self, size: int, draw: Tensor, x: Tensor) -> Tensor:
        """The covered positions along one axis, per example; what sticks out repeats the border, which is covered."""
        length = max(1, min(x.shape[2:]) // 4) if self.cutout_size is None else self.cutout_size
        first = _below(draw, size)[:, None] - length // 2
        return (first + torch.arange(length, device=x.device)).clamp_(0, size - 1)

    def _noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.ndim == 4:  # drawn in the order of channels_last memory, so that the sum runs through both in one go
            n, c, h, w = x.shape
            noise = torch.randn(n, h, w, c, generator=generator, device=generator.device).permute(0, 3, 1, 2)
        else:
            noise = torch.randn(x.shape, generator=generator, device=generator.device)
        noise = noise.to(x.device)
        if x.dtype != torch.uint8:
            return torch.add(x, noise.to(x.dtype), alpha=self.noise_std)
        noisy = torch.add(x, noise, alpha=self.noise_std * UINT8_DEVIATION)
        return noisy.round_().clamp_(0, 255).to(torch.uint8)

    def _fill(self, x: Tensor) -> Tensor:
        return torch.tensor(self.fill, device=x.device).to(x.dtype).reshape(1, -1, 1, 1)


def make_augment(
    spec: str,
    *,
    padding: int | None = None,
    padding_mode: str = "reflect",
    cutout_size: int | None = None,
    noise_std: float = 0.1,
    fill: float | Sequence[float] = 0.0,
) -> Augment:
    """The augmentation that a specification names, as a callable (x, generator) -> x.

    | part | what it does to each example |
    |---|---|
    | crop | pads every side and cuts the original size out again, at a random place |
    | flip | mirrors left and right with probability 1/2 |
    | cutout | covers a square with the fill; its center is uniform over the image, and what sticks out is cut off |
    | noise | adds N(0, σ²) to every number |

    Args:
        spec: parts joined with "+", such as "crop+flip", or "none". They are applied in the order of the table.
        padding: how far a crop can move, in pixels; None is an eighth of the side, at least 1.
        padding_mode: "reflect" mirrors the image at its border, "constant" puts the fill there.
        cutout_size: the square's side in pixels; None is a quarter of the shorter side, at least 1.
        noise_std: σ for floating input, which is taken to be standardized. uint8 input is taken to be raw pixels with a
            standard deviation of 64: there σ is 64 · noise_std, and the sum is rounded and kept in 0..255.
        fill: what covers, one number or one per channel, in the input's own unit; 0 is the mean of standardized data.
    Raises: InvalidValue for unknown or repeated names and numbers that cannot be used; when called, for vectors with
        anything but noise ("cannot apply to vectors").
    Source: Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801 (shifts); DeVries & Taylor 2017, arXiv:1708.04552
        (cutout); Bishop 1995, doi:10.1162/neco.1995.7.1.108 (noise).
    Example:
        >>> augment = make_augment("crop+flip")
        >>> images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
        >>> augment(images, torch.Generator().manual_seed(0)).shape
        torch.Size([16, 3, 32, 32])
    """
    names = _parse(spec)
    for name, number, least in (("padding", padding, 0), ("cutout_size", cutout_size, 1)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise invalid("make_augment", name, f"be an integer of at least {least}", number)
    if padding_mode not in PADDING_MODES:
        raise unknown("make_augment", "padding_mode", padding_mode, PADDING_MODES)
    if not (math.isfinite(noise_std) and noise_std >= 0):
        raise invalid("make_augment", "noise_std", "be finite and at least 0", noise_std)
    values = (float(fill),) if isinstance(fill, int | float) else tuple(float(value) for value in fill)
    if not all(math.isfinite(value) for value in values):
        raise invalid("make_augment", "fill", "be finite", fill)
    return Augment(names, padding, padding_mode, cutout_size, noise_std, values[0] if len(values) == 1 else values)


def _parse(spec: str) -> tuple[str, ...]:
    if not isinstance(spec, str):
        raise invalid_type("make_augment", "spec", 'be a string such as "crop+flip"', spec)
    names = [name.strip() for name in spec.split("+")]
    if names == ["none"]:
        return ()
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown("make_augment", "augmentation", name, (*AUGMENTATIONS, "none"))
    if len(set(names)) != len(names):
        raise invalid("make_augment", "spec", "name each part once", spec)
    return tuple(name for name in AUGMENTATIONS if name in names)


def _below(draw: Tensor, count: int) -> Tensor:
    """Uniform integers in 0..count-1 out of uniform numbers in [0, 1)."""
    return (draw * count).long().clamp_(max=count - 1)


def _gather(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[n, c, i, j] = x[n, c, rows[n, i], columns[n, j]], in the memory format of x.

    One index_select over pixels, whose channels lie together, is faster than cutting a window out of each example.
    """
    n, channels, height, width = x.shape
    rows, columns = rows.expand(n, -1), columns.expand(n, -1)
    pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)
    return _from_pixels(pixels.index_select(0, _flat_index(rows, columns, height, width)), x)


def _flat_index(rows: Tensor, columns: Tensor, height: int, width: int) -> Tensor:
    """The index among all pixels of the batch of every (rows[n, i], columns[n, j]), flat in the order n, i, j."""
    first = torch.arange(len(rows), device=rows.device)[:, None, None] * (height * width)
    return (first + rows[:, :, None] * width + columns[:, None, :]).reshape(-1)


def _from_pixels(pixels: Tensor, like: Tensor) -> Tensor:
    """Rows of channels, pixel by pixel, as images in the shape and memory format of `like`."""
    n, channels, height, width = like.shape
    images = pixels.view(n, height, width, channels)
    if like.stride(1) == 1:  # channels_last
        return images.permute(0, 3, 1, 2)
    return images.view(like.shape) if channels == 1 else images.permute(0, 3, 1, 2).contiguous()
