"""The parts of an augmentation that come before crop, flip, cutout and noise: what each draws, needs and does.

A step acts on floating images, between 0 and 1 where it looks at colors: uint8 ones become floats, pass through all
steps and are rounded once, at the end. Random as `draws` says: a step's first number decides whether it acts on
an example, the others how.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat.errors import InvalidValue, invalid
from homeostat.parts.augment import geometric, photometric, policies
from homeostat.parts.augment.draws import below, between, part_seed, uniform
from homeostat.parts.augment.settings import Settings

Apply = Callable[[Tensor, Tensor, Settings, Tensor], Tensor]

_SLACK = 1e-3  # of the range: what rounding may put outside of it


@dataclass(frozen=True)
class Step:
    """One part.

    Attributes:
        apply: (images, numbers, settings, fill) -> images; numbers in [0, 1), float64 (N, draws) on the CPU; fill (C,).
        draws: how many numbers each example needs.
        channels: how many channels an image may have; empty for any.
        colors: whether black and white must be known.
        square: whether images must be.
    """

    apply: Apply
    draws: Callable[[Settings], int]
    channels: tuple[int, ...] = ()
    colors: bool = False
    square: bool = False


def _constant(count: int) -> Callable[[Settings], int]:
    return lambda settings: count


def _resized_crop(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    boxes = geometric.draw_boxes(u, x.shape[2], x.shape[3], s.scale, s.ratio)
    return geometric.resized_crop(x, *boxes)


def _rotate(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return geometric.rotate(x, between(u[:, 0], s.degrees), padding_mode=s.padding_mode, fill=fill)


def _rotate90(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return geometric.rotate90(x, below(u[:, 0], 4))


def _randaugment(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return policies.randaugment(
        x, u, num_ops=s.num_ops, magnitude=s.magnitude, num_magnitude_bins=s.num_magnitude_bins, fill=fill
    )


def _trivialaugment(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return policies.trivialaugment(x, u, num_magnitude_bins=s.num_magnitude_bins, fill=fill)


def _color_jitter(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return policies.color_jitter(x, u, brightness=s.brightness, contrast=s.contrast, saturation=s.saturation, hue=s.hue)


def _color_drop(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return photometric.to_grayscale(x).repeat(1, 3, 1, 1)


def _blur(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return photometric.gaussian_blur(x, between(u[:, 0], s.sigma), s.sigma[1])


def _sobel(x: Tensor, u: Tensor, s: Settings, fill: Tensor) -> Tensor:
    return photometric.sobel(x)


STEPS: dict[str, Step] = {
    "resized_crop": Step(_resized_crop, _constant(geometric.CROP_DRAWS)),
    "rotate": Step(_rotate, _constant(1)),
    "rotate90": Step(_rotate90, _constant(1), square=True),
    "randaugment": Step(_randaugment, lambda settings: 2 * settings.num_ops, (1, 3), colors=True),
    "trivialaugment": Step(_trivialaugment, _constant(3), (1, 3), colors=True),
    "color_jitter": Step(_color_jitter, _constant(8), (1, 3), colors=True),
    "color_drop": Step(_color_drop, _constant(0), (3,), colors=True),
    "blur": Step(_blur, _constant(1)),
    "sobel": Step(_sobel, _constant(0), colors=True),
}
"""The parts in the order in which they are applied."""


def check_step(name: str, settings: Settings, shape: Sequence[int], where: str) -> None:
    """Raise an error if images of this shape, (C, H, W), cannot go through a step."""
    step, gray = STEPS[name], shape[0] == 1
    if step.channels and shape[0] not in step.channels:
        numbers = " or ".join(str(number) for number in step.channels)
        cure = "Gray images have no color to drop." if name == "color_drop" and gray else ""
        raise invalid(where, "input", f"have {numbers} channels for {name}", tuple(shape), cure)
    if step.square and shape[1] != shape[2]:
        cure = "A quarter turn swaps height and width. rotate takes any angle and shape."
        raise invalid(where, "input", f"be square images for {name}", tuple(shape), cure)
    if name == "color_jitter" and gray and settings.brightness == settings.contrast == (1.0, 1.0):
        cure = "Saturation and hue do nothing to gray images: give brightness or contrast."
        raise invalid(where, "input", "have 3 channels for color_jitter of color alone", tuple(shape), cure)


def change(
    images: Tensor, names: Sequence[str], settings: Settings, seed: Tensor, offset: int, table: Tensor | None
) -> Tensor:
    """Images (N, C, H, W) after the steps that are named, in their own dtype; uint8 rounded."""
    raw = images.dtype == torch.uint8
    fill = _raw_fill(settings, images, table)
    x = images.to(torch.float64 if images.dtype == torch.float64 else torch.float32).contiguous()
    low, high = settings.black_and_white(images.dtype)
    colors = any(STEPS[name].colors for name in names)
    if colors and not (raw and settings.value_range is None):
        _check_range(x, names, low, high)
    scaled = colors and (low, high) != (0.0, 1.0)
    if scaled:
        x, fill = (x - low) / (high - low), (fill - low) / (high - low)
    for name in names:
        x = _after(x, name, settings, part_seed(seed, name), offset, fill.to(x.dtype))
    if scaled:
        x = x * (high - low) + low
    return x.round().clamp(0, 255).to(torch.uint8) if raw else x.to(images.dtype)


def _after(x: Tensor, name: str, settings: Settings, seed: Tensor, offset: int, fill: Tensor) -> Tensor:
    """The images after one step, which acts on some or all of them."""
    step = STEPS[name]
    numbers = uniform(seed, len(x), 1 + step.draws(settings), offset)
    acting = numbers[:, 0] < settings.chance_of(name)
    if acting.all():
        return step.apply(x, numbers[:, 1:], settings, fill)
    chosen = acting.nonzero()[:, 0]
    if not len(chosen):
        return x
    there, result = chosen.to(x.device), x.clone()
    result[there] = step.apply(x[there], numbers[chosen, 1:], settings, fill)
    return result


def _raw_fill(settings: Settings, images: Tensor, table: Tensor | None) -> Tensor:
    """The fill in the images' unit, (C,): with a table, the values that stand for something nearest to it."""
    channels, device = images.shape[1], images.device
    if table is None:
        wide = torch.float64 if images.dtype == torch.float64 else torch.float32
        return settings.fill_of(channels, device, wide)
    fill = settings.fill_of(channels, device, table.dtype)
    return (table - fill[:, None]).abs().argmin(1).float()


def _check_range(x: Tensor, names: Sequence[str], low: float, high: float) -> None:
    """Raise an error unless all values lie between black and white."""
    first = next(name for name in names if STEPS[name].colors)
    least, greatest = (float(value) for value in x.detach().aminmax())
    slack = _SLACK * (high - low)
    if least >= low - slack and greatest <= high + slack:
        return
    raise InvalidValue(
        f"augment: input must lie in [{low:g}, {high:g}] for {first}, but its values go from {least:g} to "
        f"{greatest:g}. Give uint8 images, or augment before standardizing, or say with value_range what black and "
        "white are."
    )
