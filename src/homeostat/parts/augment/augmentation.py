"""Augmentation of whole batches: moves, crops, colors, blur, noise, policies; drawn for every example anew.

Random, but only through the given generator or seed, and in the same way for every specification: what happens to an
example is a function of the seed and of its place in the batch, and each part has draws of its own, so that treatments
which differ in one part share the others. Crop, flip and cutout are one pass over memory (`kernels.augment`), into
which uint8 images can take their normalization along; noise is another (`kernels.noise`). What the other parts do to
images is in `geometric`, `photometric` and `policies`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels.augment import augment_batch
from homeostat.kernels.dropout import check_place, check_seed
from homeostat.kernels.noise import add_noise
from homeostat.parts.augment.draws import part_seed
from homeostat.parts.augment.settings import Settings
from homeostat.parts.augment.steps import STEPS, change, check_step

AUGMENTATIONS: tuple[str, ...] = (*STEPS, "crop", "flip", "cutout", "noise")
"""The parts of a specification, in the order in which they are applied."""

UINT8_DEVIATION = 64.0
"""The standard deviation that raw pixels are taken to have: a quarter of their range."""


@dataclass(frozen=True)
class Augment:
    """A callable that augments batches; `make_augment` builds it from a specification."""

    names: tuple[str, ...]
    settings: Settings

    def check(self, shape: Sequence[int], where: str = "augment") -> None:
        """Raise an error if examples of this shape, (C, H, W) or (F,), cannot be augmented."""
        spatial = [name for name in self.names if name != "noise"]
        if not spatial:
            return
        if len(shape) != 3:
            cure = "Vectors have no height and width; only noise applies to them."
            raise invalid(
                where, "input", f"be images (C, H, W): {spatial[0]} cannot apply to vectors", tuple(shape), cure
            )
        for name in spatial:
            if name in STEPS:
                check_step(name, self.settings, shape, where)
        mirrored = self.settings.padding if self.settings.padding_mode == "reflect" and "crop" in self.names else None
        if mirrored is not None and mirrored >= min(shape[1:]):
            raise invalid(where, "padding", f"be smaller than the image ({min(shape[1:])})", mirrored)
        fill = self.settings.fill
        if isinstance(fill, tuple) and len(fill) != shape[0]:
            raise invalid(where, "fill", f"have one number or one per channel ({shape[0]})", fill)

    def __call__(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        table: Tensor | None = None,
        *,
        seed: Tensor | int | None = None,
        offset: int = 0,
    ) -> Tensor:
        """Augment a batch.

        Args:
            x: (N, C, H, W), uint8 or floating, or (N, F) for noise alone; not changed.
            generator: where the seed of this call comes from, on any device; None takes torch's own on the CPU.
            table: floating, (C, 256), on x's device: what each value of uint8 images stands for, channel by channel.
                Crop, flip, cutout and noise give the same as if the images had been looked up first; the other parts
                are applied to the raw images, before. Noise and fill are in the table's unit.
            seed: instead of a drawn one: int64 (key, number of the stream), or an integer, which means (seed, 0).
            offset: how many examples came before this part of a batch: with the same seed, parts are augmented as
                in the whole.
        Returns: a tensor of the same shape, dtype, device and memory format; with a table, of its dtype and
            channels_last.
        """
        if not isinstance(x, Tensor) or not (x.dtype == torch.uint8 or x.is_floating_point()):
            raise invalid_type("augment", "input", "be uint8 or floating", x)
        if not x.dim():
            raise invalid("augment", "input", "be a batch, (N, C, H, W) or (N, F)", x)
        self.check(x.shape[1:])
        check_place("augment", 0.0, offset, x.shape[0], 0)
        if table is not None:
            _check_table(table, x)
        elif not self.names:
            return x
        stream = _stream(seed, generator)
        like = x
        steps = [name for name in self.names if name in STEPS]
        if steps and x.numel():
            x = change(x, steps, self.settings, stream, offset, table)
            x = x.clone() if x is like else x  # no part acted on any example
        if table is not None or {"crop", "flip", "cutout"} & set(self.names):
            x = self._move(x, stream, offset, table)
        if table is None:
            x = _in_format_of(x, like)
        if "noise" in self.names:
            low, high = self.settings.black_and_white(x.dtype)
            std = self.settings.noise_std * (UINT8_DEVIATION * (high - low) / 255 if x.dtype == torch.uint8 else 1.0)
            x = add_noise(x, part_seed(stream, "noise"), std, offset, None)
        return x

    def _move(self, x: Tensor, seed: Tensor, offset: int, table: Tensor | None) -> Tensor:
        """Crop, flip and cutout."""
        settings, (height, width) = self.settings, x.shape[2:]
        padding = [0, 0]
        if "crop" in self.names:
            default = [min(max(1, size // 8), size - 1) for size in (height, width)]
            padding = default if settings.padding is None else [settings.padding] * 2
        size = 0
        if "cutout" in self.names:
            size = max(1, min(height, width) // 4) if settings.cutout_size is None else settings.cutout_size
        fill = settings.fill_of(x.shape[1], x.device, x.dtype if table is None else table.dtype)
        chance = settings.chance_of("flip") if "flip" in self.names else 0.0
        reflect = settings.padding_mode == "reflect"
        return augment_batch(x, seed, table, fill, *padding, reflect, chance, size, offset, None)


def make_augment(
    spec: str,
    *,
    padding: int | None = None,
    padding_mode: str = "reflect",
    cutout_size: int | None = None,
    noise_std: float = 0.1,
    fill: float | Sequence[float] = 0.0,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    degrees: float | tuple[float, float] = 15.0,
    brightness: float | tuple[float, float] = 0.4,
    contrast: float | tuple[float, float] = 0.4,
    saturation: float | tuple[float, float] = 0.4,
    hue: float | tuple[float, float] = 0.1,
    sigma: float | tuple[float, float] = (0.1, 2.0),
    num_ops: int = 2,
    magnitude: int = 9,
    num_magnitude_bins: int = 31,
    chance: Mapping[str, float] | None = None,
    value_range: tuple[float, float] | None = None,
) -> Augment:
    """The augmentation that a specification names, as a callable (x, generator) -> x.

    | part | what it does to each example |
    |---|---|
    | resized_crop | cuts out a box of random area and shape and enlarges it to the image's size |
    | rotate | turns by a random angle |
    | rotate90 | turns square images by 0, 90, 180 or 270 degrees, with probability 1/4 each |
    | randaugment | `num_ops` of 14 operations, at one magnitude |
    | trivialaugment | one of 14 operations, at a random magnitude |
    | color_jitter | changes brightness, contrast, saturation and hue, in a random order |
    | color_drop | turns color images gray with probability 1/5 |
    | blur | a Gaussian blur of random width |
    | sobel | shows the edges in place of the image, with probability 1/2 |
    | crop | pads every side and cuts the original size out again, at a random place |
    | flip | mirrors left and right with probability 1/2 |
    | cutout | covers a square with the fill; its center is uniform over the image, and what sticks out is cut off |
    | noise | adds N(0, σ²) to every number |

    From randaugment to sobel, but for blur, parts look at colors: they take images within `value_range`. In gray
    images, color_jitter changes brightness and contrast only, and color_drop is refused.

    Args:
        spec: parts joined with "+", such as "crop+flip", or "none". They are applied in the order of the table.
        padding: how far a crop can move, in pixels; None is an eighth of the side, at least 1.
        padding_mode: what crop and rotate find outside the image: "reflect" its mirror image, "constant" the fill.
        cutout_size: the square's side in pixels; None is a quarter of the shorter side, at least 1.
        noise_std: σ for floating input, which is taken to be standardized. uint8 input is taken to be raw pixels with a
            standard deviation of 64, or a quarter of their `value_range`: there σ is 64 · noise_std, and the sum is
            rounded and kept in 0..255.
        fill: what covers or comes in, one number or one per channel, in the input's own unit, or in the table's where
            the call has one; 0 is the mean of standardized data, and black in raw pixels.
        scale, ratio: resized_crop's area as a share of the image's, and its width over its height.
        degrees: rotate's least and greatest angle, counterclockwise; one number d means (-d, d).
        brightness, contrast, saturation: color_jitter's least and greatest factor; one number b means
            (max(0, 1 - b), 1 + b).
        hue: color_jitter's least and greatest shift as a share of the circle of colors; one number h means (-h, h);
            at most 1/2.
        sigma: blur's least and greatest deviation in pixels, or one for all.
        num_ops, magnitude: randaugment's number of operations, and the bin of their magnitude.
        num_magnitude_bins: into how many steps both policies divide a magnitude's range.
        chance: how often a part acts on an example, {"blur": 0.5}; for flip and the parts before crop. The default is
            1, but 0.2 for color_drop, and 0.5 for sobel and flip.
        value_range: what black and white are; None is (0, 255) in uint8 and (0, 1) in floating images.
    Raises: InvalidValue for unknown or repeated names and numbers that cannot be used; when called, for images or
        vectors that a part cannot apply to, and for values outside of `value_range` where a part looks at colors.
    Source: Simard et al. 2003, doi:10.1109/ICDAR.2003.1227801 (shifts); Szegedy et al. 2015, arXiv:1409.4842 (resized
        crops); Cubuk et al. 2019, arXiv:1909.13719 (randaugment); Müller & Hutter 2021, arXiv:2103.10158
        (trivialaugment); Chen et al. 2020, arXiv:2002.05709 (color, blur, Sobel); DeVries & Taylor 2017,
        arXiv:1708.04552 (cutout); Bishop 1995, doi:10.1162/neco.1995.7.1.108 (noise).
    Example:
        >>> augment = make_augment("crop+flip")
        >>> images = torch.zeros(16, 3, 32, 32, dtype=torch.uint8)
        >>> augment(images, torch.Generator().manual_seed(0)).shape
        torch.Size([16, 3, 32, 32])
    """
    names = _parse(spec)
    settings = Settings.checked(
        padding=padding, padding_mode=padding_mode, cutout_size=cutout_size, noise_std=noise_std, fill=fill,
        scale=scale, ratio=ratio, degrees=degrees, brightness=brightness, contrast=contrast, saturation=saturation,
        hue=hue, sigma=sigma, num_ops=num_ops, magnitude=magnitude, num_magnitude_bins=num_magnitude_bins,
        chance=chance, value_range=value_range,
    )  # fmt: skip
    return Augment(names, settings)


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


def _stream(seed: Tensor | int | None, generator: torch.Generator | None) -> Tensor:
    """The stream of a call, int64 (key, number) on the CPU."""
    if seed is None:
        device = "cpu" if generator is None else generator.device
        return torch.empty(2, dtype=torch.int64, device=device).random_(generator=generator).cpu()
    if generator is not None:
        raise invalid("augment", "seed", "be None beside a generator", seed, "Give one of the two.")
    if isinstance(seed, bool) or not isinstance(seed, int | Tensor):
        raise invalid_type("augment", "seed", "be an integer or an int64 tensor", seed)
    if isinstance(seed, int):
        if not -(2**63) <= seed < 2**63:
            raise invalid("augment", "seed", "have at most 64 bits", seed)
        return torch.tensor([seed, 0], device="cpu")
    check_seed("augment", seed)
    return seed


def _check_table(table: Tensor, x: Tensor) -> None:
    if x.dtype != torch.uint8 or x.ndim != 4:
        raise invalid("augment", "table", "be None unless the input is uint8 images", table)
    if not table.is_floating_point():
        raise invalid_type("augment", "table", "be floating", table)
    if table.shape != (x.shape[1], 256) or table.device != x.device:
        raise invalid("augment", "table", f"have shape {(x.shape[1], 256)} and be on {x.device}", table)


def _in_format_of(images: Tensor, like: Tensor) -> Tensor:
    """The images in the memory format of `like`."""
    empty = torch.empty_like(like)
    return images if images.stride() == empty.stride() else empty.copy_(images)
