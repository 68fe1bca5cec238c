"""The numbers of an augmentation, checked when it is made. Not random."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels.augment import PADDING_MODES

CHANCES: dict[str, float] = {
    "resized_crop": 1.0, "rotate": 1.0, "rotate90": 1.0, "randaugment": 1.0, "trivialaugment": 1.0, "color_jitter": 1.0,
    "color_drop": 0.2, "blur": 1.0, "sobel": 0.5, "flip": 0.5,
}  # fmt: skip
"""How often a part acts on an example, unless something else is said."""

Pair = tuple[float, float]

_WHERE = "make_augment"


@dataclass(frozen=True)
class Settings:
    """What `make_augment` was told, see there; ranges are pairs (least, greatest)."""

    padding: int | None
    padding_mode: str
    cutout_size: int | None
    noise_std: float
    fill: float | tuple[float, ...]
    scale: Pair
    ratio: Pair
    degrees: Pair
    brightness: Pair
    contrast: Pair
    saturation: Pair
    hue: Pair
    sigma: Pair
    num_ops: int
    magnitude: int
    num_magnitude_bins: int
    chance: tuple[tuple[str, float], ...]
    value_range: Pair | None

    @classmethod
    def checked(cls, **given: Any) -> Settings:
        """The settings in their final form.

        Raises: InvalidValue, InvalidType for numbers that cannot be used.
        """
        _check_integers(given)
        if given["padding_mode"] not in PADDING_MODES:
            raise unknown(_WHERE, "padding_mode", given["padding_mode"], PADDING_MODES)
        return cls(
            **{name: given[name] for name in ("padding", "padding_mode", "cutout_size")},
            **{name: given[name] for name in ("num_ops", "magnitude", "num_magnitude_bins")},
            brightness=_around("brightness", given["brightness"]),
            contrast=_around("contrast", given["contrast"]),
            saturation=_around("saturation", given["saturation"]),
            noise_std=_number("noise_std", given["noise_std"], 0),
            fill=_fill(given["fill"]),
            scale=_pair("scale", given["scale"], 0, 1, positive=True),
            ratio=_pair("ratio", given["ratio"], 0, positive=True),
            degrees=_symmetric("degrees", given["degrees"], math.inf),
            hue=_symmetric("hue", given["hue"], 0.5),
            sigma=_pair("sigma", _both(given["sigma"]), 0, positive=True),
            chance=_chances(given["chance"]),
            value_range=_value_range(given["value_range"]),
        )

    def chance_of(self, name: str) -> float:
        """How often a part acts on an example."""
        return dict(self.chance).get(name, CHANCES[name])

    def black_and_white(self, dtype: torch.dtype) -> Pair:
        """The values of black and white in images of this type."""
        return self.value_range or ((0.0, 255.0) if dtype == torch.uint8 else (0.0, 1.0))

    def fill_of(self, channels: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The fill of every channel, (C,), in the input's unit."""
        return torch.tensor(self.fill, device=device).to(dtype).expand(channels).contiguous()


def _check_integers(given: Mapping[str, Any]) -> None:
    for name, least in (
        ("padding", 0), ("cutout_size", 1), ("num_ops", 1), ("num_magnitude_bins", 2), ("magnitude", 0),
    ):  # fmt: skip
        number = given[name]
        if number is None and name in ("padding", "cutout_size"):
            continue
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise invalid(_WHERE, name, f"be an integer of at least {least}", number)
    if given["magnitude"] >= given["num_magnitude_bins"]:
        cure = f"There are {given['num_magnitude_bins']} bins, from 0 on."
        raise invalid(_WHERE, "magnitude", "be below num_magnitude_bins", given["magnitude"], cure)


def _number(name: str, value: Any, least: float, greatest: float = math.inf, *, positive: bool = False) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_type(_WHERE, name, "be a number", value)
    if not math.isfinite(value) or not least <= value <= greatest or (positive and value == 0):
        lower = "" if least == -math.inf else " and positive" if positive else f" and at least {least:g}"
        upper = f" and at most {greatest:g}" if greatest < math.inf else ""
        raise invalid(_WHERE, name, f"be finite{lower}{upper}", value)
    return float(value)


def _pair(name: str, value: Any, least: float, greatest: float = math.inf, *, positive: bool = False) -> Pair:
    """Two numbers in order."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise invalid_type(_WHERE, name, "be two numbers, the least and the greatest", value)
    low, high = (_number(name, number, least, greatest, positive=positive) for number in value)
    if low > high:
        raise invalid(_WHERE, name, "give the least number first", value)
    return low, high


def _both(value: Any) -> Any:
    return (value, value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _around(name: str, value: Any) -> Pair:
    """A number b as the pair (max(0, 1 - b), 1 + b), as in torchvision."""
    if isinstance(value, tuple | list):
        return _pair(name, value, 0)
    number = _number(name, value, 0)
    return max(0.0, 1 - number), 1 + number


def _symmetric(name: str, value: Any, greatest: float) -> Pair:
    """A number d as the pair (-d, d), as in torchvision."""
    if isinstance(value, tuple | list):
        return _pair(name, value, -greatest, greatest)
    number = _number(name, value, 0, greatest)
    return -number, number


def _fill(value: Any) -> float | tuple[float, ...]:
    given = [value] if isinstance(value, int | float) else value
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise invalid_type(_WHERE, "fill", "be a number or one per channel", value)
    try:
        numbers = tuple(float(number) for number in given)
    except (TypeError, ValueError):
        raise invalid_type(_WHERE, "fill", "be a number or one per channel", value) from None
    if not all(math.isfinite(number) for number in numbers):
        raise invalid(_WHERE, "fill", "be finite", value)
    return numbers[0] if len(numbers) == 1 else numbers


def _chances(value: Any) -> tuple[tuple[str, float], ...]:
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise invalid_type(_WHERE, "chance", "be a mapping such as {'blur': 0.5}", value)
    for name in value:
        if name not in CHANCES:
            raise unknown(_WHERE, "part with a chance", name, CHANCES)
    return tuple((name, _number(f"chance[{name!r}]", number, 0, 1)) for name, number in value.items())


def _value_range(value: Any) -> Pair | None:
    if value is None:
        return None
    low, high = _pair("value_range", value, -math.inf)
    if low == high:
        raise invalid(_WHERE, "value_range", "have a least number below the greatest", value)
    return low, high
