"""Augmentation of whole batches: random crop, horizontal flip, cutout and Gaussian noise, drawn per example.

Crop, flip and cutout are one pass over memory (`kernels.augment`), into which uint8 images can take their normalization
along. Random, but only through the given generator, and in the same way for every specification: an example's crop,
flip and cutout have the same draws whichever of them are asked for, so treatments that differ in one part share the
others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels.augment import PADDING_MODES, augment_batch

AUGMENTATIONS: tuple[str, ...] = ("crop", "flip", "cutout", "noise")
"""The parts of a specification, in the order in which they are applied."""

UINT8_DEVIATION = 64.0
"""The standard deviation that raw pixels are taken to have: a quarter of their range."""


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

    def __call__(self, x: Tensor, generator: torch.Generator, table: Tensor | None = None) -> Tensor:
        """Augment a batch.

        Args:
            x: (N, C, H, W), uint8 or floating, or (N, F) for noise alone; not changed.
            generator: the only source of randomness; where it lives on another device than x, the draws are moved.
            table: floating, (C, 256), on x's device: what each value of uint8 images stands for, channel by channel.
                The result is the same as of looking the images up first; noise and fill are in the table's unit.
        Returns: a tensor of the same shape, dtype, device and memory format; with a table, of its dtype and
            channels_last.
        """
        if not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise invalid_type("augment", "input", "be uint8 or floating", x)
        self.check(x.shape[1:])
        if table is not None:
            _check_table(table, x)
        elif not self.names:
            return x
        seed = torch.empty(2, dtype=torch.int64, device=generator.device).random_(generator=generator).cpu()
        if table is not None or self.names != ("noise",):
            x = self._move(x, seed, table)
        if "noise" in self.names:
            x = self._noise(x, generator)
        return x

    def _move(self, x: Tensor, seed: Tensor, table: Tensor | None) -> Tensor:
        """Crop, flip and cutout."""
        height, width = x.shape[2:]
        padding = [0, 0]
        if "crop" in self.names:
            default = [min(max(1, size // 8), size - 1) for size in (height, width)]
            padding = default if self.padding is None else [self.padding] * 2
        size = 0
        if "cutout" in self.names:
            size = max(1, min(height, width) // 4) if self.cutout_size is None else self.cutout_size
        fill = self._fill(x.shape[1], x.dtype if table is None else table.dtype, x.device)
        chance = 0.5 if "flip" in self.names else 0.0
        y = augment_batch(x, seed, table, fill, *padding, self.padding_mode == "reflect", chance, size, 0, None)
        return y if table is not None else _in_format_of(y, x)

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

    def _fill(self, channels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.tensor(self.fill, device=device).to(dtype).expand(channels).contiguous()


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


def _check_table(table: Tensor, x: Tensor) -> None:
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise invalid("augment", "table", "be None unless the input is uint8 images", table)
    if not table.is_floating_point():
        raise invalid_type("augment", "table", "be floating", table)
    if table.shape != (x.shape[1], 256) or table.device != x.device:
        raise invalid("augment", "table", f"have shape {(x.shape[1], 256)} and be on {x.device}", table)


def _in_format_of(images: Tensor, like: Tensor) -> Tensor:
    """channels_last images in the memory format of `like`."""
    if like.stride(1) == 1:
        return images
    return images.permute(0, 2, 3, 1).view(like.shape) if like.shape[1] == 1 else images.contiguous()
