"""Changes of the scales of inputs and targets: standardized inside the model, so that it is still called on raw data.

What the splits hold is changed in `rows`. The constants are measured on the training split when a change is applied.
Weights, optimizer, device, dtype and mode stay as they are. Not random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.output import Behind
from homeostat.doctor.changes.scaling import (
    Restore,
    Standardize,
    StandardizedLoss,
    constants,
    first_module,
    last_module,
    put_first,
)
from homeostat.doctor.data.facts import takes_features_last
from homeostat.doctor.data.flat import channel_dim, numbers_of
from homeostat.doctor.data.scale import bounded, columns_of, shares_scale
from homeostat.doctor.examples import Examples

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_MANY = 64  # columns; so many that share one scale are pixels, whose deviations mean nothing one by one
_LARGEST = 30.0  # deviations; a rare value of a column that is nearly constant would else become an outlier
_SAMPLE = 2  # examples on which the altered model is run


@dataclass(frozen=True)
class StandardizeInputs(Change):
    """Make the model's first module (x - mean) / deviation, per column of a table or per channel of an image."""

    slug: ClassVar[str] = "standardize-inputs"
    family: ClassVar[str] = "inputs"
    safety: ClassVar[Safety] = "unsafe"

    def apply(self, training: Training) -> None:
        if first_module(training.model) is not None:
            return
        train = training.examples("train")
        inputs = numbers_of(train)
        if inputs is None or inputs.dtype == torch.bool:
            raise CannotApply("inputs are standardized where they are one tensor of floats or bytes")
        sequence = takes_features_last(training.model)
        mean, scale = input_constants(train, sequence=sequence)
        shape = [1] * max(2, inputs.dim()) if len(mean) > 1 else [1]
        if len(mean) > 1:
            shape[channel_dim(inputs.shape, last=sequence)] = len(mean)
        first = Standardize(*constants(mean, scale, tuple(shape), inputs.device))
        training.model = put_first(training.model, first)
        _run(training, train)

    @property
    def what(self) -> str:
        return "inputs standardized"

    @property
    def diff(self) -> str:
        return (
            "+mean, scale = x_train.mean(0), x_train.std(0)  # per column; of images per channel: dims (0, 2, 3)\n"
            "+scale[scale == 0] = 1\n"
            "+x_train, x_valid = (x_train - mean) / scale, (x_valid - mean) / scale"
        )


@dataclass(frozen=True)
class StandardizeTargets(Change):
    """Let the model's layers answer in deviations from the mean of the targets.

    The loss is taken on standardized outputs and targets, and the model's last module brings its answers back to raw
    units, so that predictions mean what they meant.
    """

    slug: ClassVar[str] = "standardize-targets"
    family: ClassVar[str] = "targets"
    safety: ClassVar[Safety] = "unsafe"

    def apply(self, training: Training) -> None:
        if last_module(training.model) is not None:
            return
        train = training.examples("train")
        outputs = _run(training, train)
        targets = train.targets
        if not targets.is_floating_point():
            raise CannotApply("targets are standardized where they are floats")
        per_column = outputs.shape[1:] == targets.shape[1:] and targets.shape[1:].numel() > 1
        mean, scale = target_constants(targets, per_column)
        shape = (1, *targets.shape[1:]) if per_column else ()
        pair = constants(mean, scale, shape, targets.device)
        if callable(training.output):
            raise CannotApply("the output is picked by a function; give its key or index instead")
        _put_last(training, Restore(*pair))
        training.loss_fn = StandardizedLoss(training.loss_fn, *pair)
        _run(training, train)

    @property
    def what(self) -> str:
        return "targets standardized"

    @property
    def diff(self) -> str:
        return (
            "+mean, scale = y_train.mean(0), y_train.std(0)\n"
            "-loss = loss_fn(model(x), y)\n"
            "+loss = loss_fn(model(x), (y - mean) / scale)\n"
            "+prediction = model(x) * scale + mean"
        )


def input_constants(train: Examples, *, sequence: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Means and scales, one per feature, or one for all where very many features share one scale.

    Columns of zeros and ones keep them; a constant column has the scale 1.
    """
    table = columns_of(bounded(train).inputs, sequence)
    low, high = table.min(0), table.max(0)
    varies = high > low
    if table.shape[1] >= _MANY and varies.any() and shares_scale((high - low)[varies], float(high.max() - low.min())):
        return np.array([table.mean()]), np.array([table.std()])
    mean, deviation = table.mean(0), table.std(0)
    deviation = np.maximum(deviation, (high - low) / _LARGEST)
    binary = varies & np.all((table == 0) | (table == 1), axis=0)
    usable = varies & (deviation > 1e-7 * np.abs(mean)) & ~binary  # 1e-7: float32's rounding
    return np.where(binary, 0.0, mean), np.where(usable, deviation, 1.0)


def target_constants(targets: Tensor, per_column: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of finite targets: of every column, or of all numbers together."""
    rows = targets.detach().double().cpu().reshape(len(targets), -1).numpy()
    rows = rows[np.isfinite(rows).all(1)]
    if not len(rows):
        raise CannotApply("no target is finite")
    axis = 0 if per_column else None
    mean, deviation = np.asarray(rows.mean(axis)), np.asarray(rows.std(axis))
    if not (deviation > 0).any() or not math.isfinite(float(deviation.max())):
        raise CannotApply("the targets are all the same")
    return mean, np.where(deviation > 0, deviation, 1.0)


def _put_last(training: Training, last: nn.Module) -> None:
    """Behind the model's output: into a plain Sequential, else around the model."""
    model = training.model
    last.train(model.training)
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        name = "restore"
        while name in model._modules:
            name += "_"
        model.add_module(name, last)
    else:
        output = training.output
        training.model = Behind(model, last, None if callable(output) else output)


def _run(training: Training, train: Examples) -> Tensor:
    """The model's output for a few examples, which shows that it can be run as it is now."""
    modes = [(module, module.training) for module in training.model.modules()]
    try:
        training.model.eval()
        with seeds.isolated(0, "doctor", "scaling"), torch.no_grad():
            return training.predict(train.head(_SAMPLE).inputs)
    except Exception as error:
        raise CannotApply(f"the model cannot be run with it: {type(error).__name__}: {error}") from error
    finally:
        for module, mode in modes:
            module.training = mode
