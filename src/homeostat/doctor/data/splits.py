"""Whether training and validation inputs were prepared alike: scale and shift of every feature, images turned over.

Only gross differences count, beyond what sampling and most natural shifts of distribution give. Not random but for the
sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from homeostat.doctor.data.flat import channel_dim, filled, numbers_of
from homeostat.doctor.data.scale import bounded, columns_of
from homeostat.doctor.examples import Examples

ERRORS = 8.0  # a difference of so many standard errors is no chance, over thousands of features
SHIFT = 0.5  # of a deviation between the means: natural splits seldom differ as much
FACTOR = 2.0  # between the deviations
_FEW = 8  # rows; fewer say nothing of a deviation
_AGREEING = 0.1  # features whose log factors differ by less have one factor in common


@dataclass(frozen=True)
class Mismatch:
    """How validation inputs differ from training inputs."""

    features: int
    """Features that vary in both splits."""
    different: tuple[int, ...] = ()
    """The features whose deviation or mean differs grossly."""
    factor: float = 1.0
    """Deviation in validation / in training, the median over features."""
    common: bool = False
    """Whether all features were scaled by one factor."""
    shift: float = 0.0
    """Difference of the means in deviations of the training split, the largest over features."""
    frozen: int = 0
    """Features that vary in one split only."""
    turned: str = ""
    """What makes the mean image of one split that of the other: "channels reversed", "transposed", ...; "" if none."""
    examples: dict[str, float] = field(default_factory=dict)
    """Mean and deviation of the feature that differs most, in both splits."""

    @property
    def gross(self) -> int:
        """How many features differ grossly."""
        return len(self.different)


def compare_splits(train: Examples, valid: Examples, *, sequence: bool = False) -> Mismatch | None:
    """How the validation inputs differ from the training inputs; None where they cannot be compared.

    Args:
        train: the training split.
        valid: the validation split.
        sequence: True where inputs of three dimensions have their features last.
    """
    a, b = numbers_of(train), numbers_of(valid)
    if a is None or b is None or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < _FEW:
        return None
    a, b = bounded(train).inputs, bounded(valid).inputs
    first, second = _feature_moments(a, sequence), _feature_moments(b, sequence)
    varies = (first.std > 0) & (second.std > 0)
    if not varies.any():
        return Mismatch(0, frozen=int(((first.std > 0) != (second.std > 0)).sum()))
    ratio = np.log(second.std[varies] / first.std[varies])
    ratio_error = _log_error(first, second)[varies]
    shift = (second.mean - first.mean)[varies] / first.std[varies]
    shift_error = _mean_error(first, second)[varies] / first.std[varies]
    scaled = (np.abs(ratio) > math.log(FACTOR)) & (np.abs(ratio) > ERRORS * ratio_error)
    # a mean that lies far off in the deviations of both: a factor moves the mean too, and is told by `scaled`
    both = np.minimum(1.0, first.std[varies] / second.std[varies])
    shifted = (np.abs(shift) * both > SHIFT) & (np.abs(shift) > ERRORS * shift_error)
    worst = int(np.argmax(np.where(scaled, np.abs(ratio), 0.0) + np.where(shifted, np.abs(shift) * both, 0.0)))
    place = int(np.flatnonzero(varies)[worst])
    return Mismatch(
        features=int(varies.sum()),
        different=tuple(np.flatnonzero(varies)[scaled | shifted].tolist()),
        factor=float(np.exp(np.median(ratio))),
        common=bool(np.ptp(np.quantile(ratio, [0.25, 0.75])) < _AGREEING) and bool(scaled.mean() > 0.5),
        shift=float(np.max(np.abs(shift))),
        frozen=int(((first.std > 0) != (second.std > 0)).sum()),
        turned=_turned(a, b),
        examples={
            "train_mean": float(first.mean[place]),
            "train_std": float(first.std[place]),
            "valid_mean": float(second.mean[place]),
            "valid_std": float(second.std[place]),
        },
    )


@dataclass(frozen=True)
class _Moments:
    """Per feature, over examples: what statistics and their sampling errors are made of."""

    rows: int
    mean: np.ndarray
    std: np.ndarray
    spread: np.ndarray
    """Variance of an example's mean."""
    square: np.ndarray
    """Mean of an example's mean square around the mean; of the square of that."""
    fourth: np.ndarray


def _feature_moments(inputs: Tensor, sequence: bool) -> _Moments:
    """By examples, not places: the pixels of one image are not independent."""
    rows = len(inputs)
    table = columns_of(inputs, sequence)
    table = table.reshape(rows, -1, table.shape[1])  # examples, places, features
    mean = table.mean((0, 1))
    centered = table - mean
    squares = (centered**2).mean(1)
    square = squares.mean(0)
    std = np.sqrt(square)
    std = np.where(std > 1e-7 * np.abs(mean), std, 0.0)
    return _Moments(rows, mean, std, centered.mean(1).var(0), square, (squares**2).mean(0))


def _mean_error(first: _Moments, second: _Moments) -> np.ndarray:
    """The standard error of the difference of means."""
    return np.asarray(np.sqrt(first.spread / first.rows + second.spread / second.rows))


def _log_error(first: _Moments, second: _Moments) -> np.ndarray:
    """The standard error of the difference of the deviations' logarithms, if both splits have the same tails.

    Rare values, such as ink at the border of an image, may be missing in one split: its own tails would deny them.
    """
    square, fourth = (first.square + second.square) / 2, (first.fourth + second.fourth) / 2
    relative = np.divide(fourth, square**2, out=np.ones_like(fourth), where=square**2 > 0) - 1.0
    relative = np.maximum(relative, 0.0)
    return np.asarray(0.5 * np.sqrt(relative * (1 / first.rows + 1 / second.rows)))


TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels reversed": lambda image: image.flip(0),
    "transposed": lambda image: image.transpose(1, 2),
    "turned upside down": lambda image: image.flip(1),
    "mirrored": lambda image: image.flip(2),
    "turned by 180 degrees": lambda image: image.flip(1, 2),
}
"""What may have been done to the images of one split, (C, H, W) each; every one undoes itself."""


def _turned(first: Tensor, second: Tensor) -> str:
    """What was done to the images of one split only: it makes their mean images agree, which do not as they are.

    Distances are in units of the mean images' sampling error, so that a few hundred examples that merely differ do not
    count; inverted intensities show after the splits' own mean and deviation are taken out.
    """
    if first.dim() != 4:
        return ""
    (mean, variance), (other, other_variance) = (_mean_image(images) for images in (first, second))
    error = float((variance + other_variance).mean().sqrt())
    if not error > 0:
        return ""

    def distance(change: Callable[[Tensor], Tensor]) -> float:
        moved = change(other)
        return float((mean - moved).square().mean().sqrt()) / error if moved.shape == mean.shape else math.inf

    plain = distance(lambda image: image)
    found = {name: distance(change) for name, change in TURNS.items()}
    found["inverted"] = distance(lambda image: -image)
    best = min(found, key=lambda name: found[name])
    return best if plain > ERRORS / 2 and found[best] < plain / 3 else ""


def _mean_image(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean image (C, H, W), standardized by the split's own mean and deviation, and its sampling variance."""
    if channel_dim(images.shape) == 3:
        images = images.permute(0, 3, 1, 2)
    values = torch.from_numpy(filled(images.detach().double().cpu().flatten(1).numpy())).reshape(images.shape)
    values = (values - values.mean()) / values.std().clamp_min(1e-12)
    return values.mean(0), values.var(0) / len(values)
