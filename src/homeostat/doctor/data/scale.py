"""How large inputs and targets are, how far from zero, how unlike each other; and whether both splits agree in that.

Statistics only, of a bounded sample; what is too much is for the rules to say. Not random but for the sample.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from homeostat.doctor.data.flat import channel_dim, filled, sample
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.parts.layers import tensors_in

Form = Literal["real", "binary", "bytes", "tokens", "none"]

MOST_ROWS = 4000
_MOST_NUMBERS = 1 << 22  # of a split's inputs: statistics in double precision then take tenths of a second
_PIXELS = 16  # columns: an image of 4 x 4
_SHARED = 0.5  # a column spans at least this share of the whole range: what pixels do, and unlike quantities do not


@dataclass(frozen=True)
class InputScale:
    """The scale of the training inputs; features are columns, or channels of what has more dimensions."""

    form: Form
    features: int = 0
    constant: int = 0
    """Features with one value only."""
    binary: int = 0
    """Features with two values 0 and 1 only, which need no scaling."""
    mean: float = 0.0
    rms: float = 0.0
    low: float = 0.0
    high: float = 0.0
    typical_std: float = 0.0
    """The median deviation of the features that are neither constant nor binary; 0 if there are none."""
    small_std: float = 0.0
    """Their lower quartile: pixels at the border hardly vary and mean nothing."""
    large_std: float = 0.0
    offset: float = 0.0
    """The median of |mean| / deviation over them."""
    shared: bool = False
    """Whether the features are values of one quantity on one scale, as pixels are."""
    zeros: float = 0.0
    """The share of numbers that are 0."""
    divided_twice: bool = False
    """Whether values of a grid, such as whole numbers, were divided by their range twice."""

    @property
    def ratio(self) -> float:
        """How many times more a large feature varies than a small one; 1 for pixels."""
        return self.large_std / self.small_std if self.small_std > 0 and not self.shared else 1.0

    @property
    def normalized(self) -> bool:
        """Whether every usual feature already has a mean near 0 and a deviation near 1."""
        return 0.5 <= self.typical_std <= 2.0 and self.offset <= 0.5 and self.ratio <= 4.0


@dataclass(frozen=True)
class TargetScale:
    """The scale of regression targets; over several columns, that of the most extreme one."""

    columns: int
    mean: float
    std: float
    """Of the column that varies most."""
    least_std: float
    """Of the column that varies least, constant columns left out."""
    constant: int
    """Columns with one value only."""
    rms: float


@dataclass(frozen=True)
class Finite:
    """Examples with numbers that are not finite."""

    train_inputs: int = 0
    train_targets: int = 0
    valid_inputs: int = 0
    valid_targets: int = 0
    harmful: bool = False
    """Whether they reach outputs or loss; a program may leave them out by itself, as those with missing labels do."""

    @property
    def total(self) -> int:
        """Places where something is wrong."""
        return self.train_inputs + self.train_targets + self.valid_inputs + self.valid_targets


def input_scale(train: Examples, *, sequence: bool = False) -> InputScale:
    """The scale of a split's inputs.

    Args:
        train: the training split.
        sequence: True where inputs of three dimensions have their features last.
    """
    inputs = train.only_tensor()
    if inputs is None or inputs.numel() == 0:
        return InputScale("none")
    if inputs.dtype == torch.bool:
        return InputScale("binary")
    form: Form = "real" if inputs.is_floating_point() else "bytes" if inputs.dtype == torch.uint8 else "tokens"
    return InputScale("tokens") if form == "tokens" else _measured(form, columns_of(bounded(train).inputs, sequence))


def _measured(form: Form, table: np.ndarray) -> InputScale:
    low, high = float(table.min()), float(table.max())
    mean, std = table.mean(0), table.std(0)
    varies = std > 1e-7 * np.abs(mean)  # a deviation below float32's rounding is none
    binary = varies & np.all((table == 0) | (table == 1), axis=0)
    usual = varies & ~binary
    found = InputScale(
        form if usual.any() or not binary.any() else "binary",
        features=table.shape[1],
        constant=int((~varies).sum()),
        binary=int(binary.sum()),
        mean=float(table.mean()),
        rms=float(np.sqrt((table**2).mean())),
        low=low,
        high=high,
        zeros=float((table == 0).mean()),
    )
    if not usual.any():
        return found
    deviations = std[usual]
    return replace(
        found,
        typical_std=float(np.quantile(deviations, 0.5, method="lower")),
        small_std=float(np.quantile(deviations, 0.25, method="lower")),
        large_std=float(deviations.max()),
        offset=float(np.median(np.abs(mean[usual]) / deviations)),
        shared=shares_scale(np.ptp(table[:, usual], axis=0), high - low),
        divided_twice=_divided_twice(table[:, usual]),
    )


def shares_scale(spans: np.ndarray, span: float) -> bool:
    """Whether most columns span most of the whole range, as pixels do; a few columns cannot show it."""
    return len(spans) >= _PIXELS and bool((spans >= _SHARED * span).mean() >= 0.5)


def target_scale(train: Examples, score: Score) -> TargetScale | None:
    """The scale of the training targets of a regression; None for another task."""
    if score.kind != "regression":
        return None
    values = train.targets.detach().reshape(len(train), -1).double().cpu().numpy()
    values = values[np.isfinite(values).all(1)]
    if not len(values):
        return None
    mean, std = values.mean(0), values.std(0)
    varies = std > 1e-7 * np.abs(mean)
    return TargetScale(
        columns=values.shape[1],
        mean=float(mean[np.abs(mean).argmax()]),
        std=float(std.max()) if varies.any() else 0.0,
        least_std=float(std[varies].min()) if varies.any() else 0.0,
        constant=int((~varies).sum()),
        rms=float(np.sqrt((values**2).mean())),
    )


def count_nonfinite(train: Examples, valid: Examples) -> Finite:
    """How many examples of each split have inputs or targets that are not finite."""
    train_inputs, valid_inputs = (sum(map(_bad_rows, tensors_in(split.inputs))) for split in (train, valid))
    return Finite(train_inputs, _bad_rows(train.targets), valid_inputs, _bad_rows(valid.targets))


def finite_rows(examples: Examples) -> Tensor:
    """Which examples have finite inputs and targets: a boolean tensor (N,) on the CPU."""
    finite = torch.ones(len(examples), dtype=torch.bool)
    for tensor in (*tensors_in(examples.inputs), examples.targets):
        if tensor.is_floating_point():
            finite &= torch.isfinite(tensor.detach().reshape(len(tensor), -1)).all(1).cpu()
    return finite


def bounded(examples: Examples) -> Examples:
    """So many of the examples that statistics in double precision fit into memory."""
    inputs = examples.only_tensor()
    width = 1 if inputs is None else max(1, inputs[:1].numel())
    return sample(examples, max(2, min(MOST_ROWS, _MOST_NUMBERS // width)), 0, "scale")


def columns_of(inputs: Tensor, sequence: bool = False) -> np.ndarray:
    """A table in double precision with one column per feature, or per channel; examples and places are its rows."""
    values = inputs.detach().to("cpu", torch.float64)
    if values.dim() == 1:
        values = values[:, None]
    dim = channel_dim(values.shape, last=sequence)
    return filled(values.movedim(dim, -1).reshape(-1, values.shape[dim]).numpy())


def _bad_rows(tensor: Tensor) -> int:
    if not tensor.is_floating_point() or bool(torch.isfinite(tensor.detach().sum())):
        return 0  # a finite sum has finite terms
    parts = tensor.detach().reshape(len(tensor), -1).split(4096)
    return sum(int((~torch.isfinite(part)).any(1).sum()) for part in parts)


def _divided_twice(table: np.ndarray) -> bool:
    """Whether x / r / r was done to values on a grid of step 1: the range is then 1/r, and the step 1/r².

    One column of few values may be so by chance: two columns and half of all, or a grid of more than 32 points.
    """
    if _points_if_squared(table) > 32:
        return True
    columns = table.T[:64]
    return sum(_points_if_squared(column) > 0 for column in columns) >= max(2, len(columns) / 2)


def _points_if_squared(values: np.ndarray) -> int:
    """How many steps a grid of values has, if its step is its range squared; else 0."""
    if not 0 < np.ptp(values) < 0.5:
        return 0
    points = np.unique(values.astype(np.float32)).astype(float)
    if not 2 < len(points) <= 4096:
        return 0
    step, span = float(np.diff(points).min()), float(points[-1] - points[0])
    places = (points - points[0]) / step
    on_grid = bool(np.abs(places - places.round()).max() < 0.1)
    return round(places[-1]) if on_grid and abs(step / span**2 - 1.0) < 0.03 else 0
