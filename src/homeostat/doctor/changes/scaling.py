"""Modules that carry a training's scales inside its model: inputs standardized first, outputs brought back last.

So a model is called on raw inputs and answers in raw units, whoever calls it. Constants are buffers: they are saved,
moved and copied with the model. Not random.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """(input - mean) / scale.

    Args:
        mean: broadcasts against inputs.
        scale: the same, positive.

    Example:
        >>> Standardize(torch.tensor([2.0]), torch.tensor([4.0]))(torch.tensor([[10.0]]))
        tensor([[2.]])
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, input: Tensor) -> Tensor:
        """The standardized input, in its own dtype; bytes become floats."""
        if not input.is_floating_point():
            input = input.to(self.mean.dtype)
        return (input - self.mean.to(input.dtype)) / self.scale.to(input.dtype)

    def extra_repr(self) -> str:
        """How many constants there are."""
        return f"{self.mean.numel()} means and scales"


class Restore(nn.Module):
    """output · scale + mean: standardized answers in raw units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, output: Tensor) -> Tensor:
        """The output in raw units, in its own dtype."""
        return output * self.scale.to(output.dtype) + self.mean.to(output.dtype)

    def extra_repr(self) -> str:
        """How many constants there are."""
        return f"{self.mean.numel()} means and scales"


class InFront(nn.Module):
    """A model of one input with something in front of it.

    Args:
        first: called with the model's first argument.
        model: called with what that gives, and the other arguments.
    """

    def __init__(self, first: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.model = model
        self.training = model.training

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Any:
        """What the model returns."""
        return self.model(self.first(input), *args, **kwargs)


@dataclass(frozen=True, eq=False)
class StandardizedLoss:
    """A loss of outputs and targets in raw units, taken after both were standardized.

    Args:
        loss: (output, target) -> scalar.
        mean: of the targets.
        scale: of the targets.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    mean: Tensor
    scale: Tensor

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        mean, scale = (part.to(outputs.device, outputs.dtype) for part in (self.mean, self.scale))
        return self.loss((outputs - mean) / scale, (targets - mean) / scale)


def put_first(model: nn.Module, first: nn.Module) -> nn.Module:
    """The model with a module in front: inside a plain Sequential, whose layers keep their names, else around it."""
    first.train(model.training)
    if not (isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward):
        return InFront(first, model)
    name = "standardize"
    while name in model._modules:
        name += "_"
    layers = list(model._modules.items())
    model._modules.clear()
    model._modules.update(OrderedDict([(name, first), *layers]))
    return model


def first_module(model: nn.Module) -> nn.Module | None:
    """What `put_first` put in front of a model, wherever other changes put the model since; None if nothing is."""
    return next((module for module in model.modules() if isinstance(module, Standardize)), None)


def last_module(model: nn.Module) -> nn.Module | None:
    """What brings the outputs of a model back to raw units; None if nothing does."""
    return next((module for module in model.modules() if isinstance(module, Restore)), None)


def constants(mean: Any, scale: Any, shape: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and scale as float32 tensors of a shape."""
    pair = [torch.as_tensor(value, dtype=torch.float32, device=device).reshape(shape) for value in (mean, scale)]
    return pair[0], pair[1]
