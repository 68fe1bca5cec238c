"""The built-in models: mlp, cnn, resnet and its plain twin, with the parts of a recipe as arguments.

Every model draws its weights from torch's global generator, as torch's own layers do; `build_model` runs them (and a
user's builder) on the seed's own stream, so that treatments that differ in norm or dropout start from the same
weights. Dropout stands behind the activation it drops; normalization between a layer and its activation.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat import seeds
from homeostat.errors import NoEffectWarning, invalid
from homeostat.nn import DropPath, MaxPool2d
from homeostat.parts import init, surgery
from homeostat.parts.activation import make_activation
from homeostat.parts.dropout import drop_path_rates, make_dropout, set_drop_connect_
from homeostat.parts.norm import make_norm
from homeostat.training.architectures import alexnet, inception
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

_SAMPLE = 64  # examples on which activation-aware schemes run the model
_RISING = ("relu", "leaky_relu", "elu", "selu", "tanh", "sigmoid", "identity")  # never falling: pooling commutes


def mlp(
    inputs: int,
    outputs: int,
    *,
    widths: Sequence[int] = (128, 128),
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    dropout_kind: str = "element",
    input_dropout: float = 0.0,
) -> nn.Sequential:
    """A multilayer perceptron: (N, ...) with `inputs` values per example -> (N, outputs).

    Each hidden layer is linear -> norm -> activation -> dropout.

    Example:
        >>> mlp(64, 10, widths=(32,), norm="batch")(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    layers: list[nn.Module] = [nn.Flatten()]
    if input_dropout:
        layers.append(make_dropout(input_dropout))
    for before, width in pairwise((inputs, *widths)):
        layers += [nn.Linear(before, width), *_norm_act(norm, width, 0, activation, dropout, dropout_kind)]
    return nn.Sequential(*layers, nn.Linear((inputs, *widths)[-1], outputs))


def cnn(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    widths: Sequence[int] = (16, 32),
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    dropout_kind: str = "element",
    input_dropout: float = 0.0,
) -> nn.Sequential:
    """A small convolutional net: (N, C, H, W) -> (N, outputs).

    Each stage is 3x3 convolution -> norm -> activation -> 2x2 max pool -> dropout; a linear layer reads out. Maps of
    one pixel are no longer pooled. Without a norm, into whose pass it goes, a rising activation stands behind the pool:
    the same function and gradient, since the largest value stays the largest, at a quarter of the work.
    """
    channels, height, width = input_shape
    layers: list[nn.Module] = [make_dropout(input_dropout)] if input_dropout else []
    for before, after in pairwise((channels, *widths)):
        stage = [nn.Conv2d(before, after, 3, padding=1), *_norm_act(norm, after, 2, activation, 0.0)]
        if min(height, width) >= 2:
            early = norm == "none" and activation in _RISING
            stage.insert(1 if early else len(stage), MaxPool2d(2))
            height, width = height // 2, width // 2
        layers += [*stage, *([make_dropout(dropout, dropout_kind, 2)] if dropout else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * height * width, outputs))


class Block(nn.Module):
    """Two 3x3 convolutions, (N, C, H, W) -> (N, C', H/stride, W/stride), with a shortcut around them or without.

    The shortcut is the identity, or a strided 1x1 convolution where the shape changes (option B of He et al. 2016,
    arXiv:1512.03385). Without it the block is the plain net's.
    """

    def __init__(
        self,
        before: int,
        after: int,
        *,
        stride: int,
        shortcut: bool,
        activation: str,
        norm: str,
        dropout: float,
        dropout_kind: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        between = _norm_act(norm, after, 2, activation, dropout, dropout_kind)
        self.first = nn.Sequential(nn.Conv2d(before, after, 3, stride=stride, padding=1), *between)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.drop_path = DropPath(drop_path) if drop_path and shortcut else None
        # alone, the norm adds the shortcut and activates in the same pass
        fused = activation if self.drop_path is None else "identity"
        self.norm = None if norm == "none" else make_norm(norm, after, 2, fused)
        # Made for the plain twin too, and dropped, so that both draw the same weights for the layers they share.
        projection = nn.Conv2d(before, after, 1, stride=stride) if stride > 1 or before != after else nn.Identity()
        self.shortcut = projection if shortcut else None
        self.activation = make_activation(activation)

    def forward(self, input: Tensor) -> Tensor:
        output = self.second(self.first(input))
        residual = None if self.shortcut is None else self.shortcut(input)
        if self.norm is not None:
            if self.drop_path is None:
                return self.norm(output, residual)
            output = self.norm(output)
        if self.drop_path is not None:
            output = self.drop_path(output)
        return self.activation(output if residual is None else output + residual)


class ResNet(nn.Module):
    """The CIFAR residual network of He et al. 2016 (arXiv:1512.03385), or its plain twin: (N, C, H, W) -> (N, outputs).

    Args:
        depth: 6n + 2 weight layers: a convolution, three stages of n blocks, a linear layer.
        widths: channels of the three stages; the second and third halve the resolution.
        shortcut: False builds the plain twin, the same layers without the skip connections.
        drop_path: the probability of skipping the last block's branch; it rises from 0 (`dropout.drop_path_rates`).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        *,
        depth: int = 8,
        widths: Sequence[int] = (16, 32, 64),
        shortcut: bool = True,
        activation: str = "relu",
        norm: str = "batch",
        dropout: float = 0.0,
        dropout_kind: str = "element",
        drop_path: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise invalid("ResNet", "widths", "hold the channels of three stages", tuple(widths), "Example: 16x32x64.")
        self.stem = nn.Sequential(
            *([make_dropout(input_dropout)] if input_dropout else []),
            nn.Conv2d(input_shape[0], widths[0], 3, padding=1),
            *_norm_act(norm, widths[0], 2, activation, 0.0),
        )
        blocks: list[nn.Module] = []
        rates = iter(drop_path_rates(drop_path, (depth - 2) // 2))
        for stage, (before, after) in enumerate(pairwise((widths[0], *widths))):
            for index in range((depth - 2) // 6):
                first = index == 0
                blocks.append(
                    Block(
                        before if first else after,
                        after,
                        stride=2 if first and stage > 0 else 1,
                        shortcut=shortcut,
                        activation=activation,
                        norm=norm,
                        dropout=dropout,
                        dropout_kind=dropout_kind,
                        drop_path=next(rates),
                    )
                )
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(widths[-1], outputs)

    def forward(self, input: Tensor) -> Tensor:
        maps = self.blocks(self.stem(input))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(maps, 1), 1))


def build_model(task: Task, recipe: Recipe, seed: int) -> nn.Module:
    """The model that `recipe` trains on `task`, on the CPU, channels_last where the data are images.

    Built-in models take the recipe's parts as arguments; a user's own module gets them by surgery. Weights depend on
    `seed` and the layers alone. A part that changes nothing warns with `NoEffectWarning`.
    Raises: InvalidValue if a part cannot apply to this model.
    """
    with seeds.isolated(seed, "weights"):
        model = _built_in(task, recipe) if is_built_in(task, recipe) else _own_model(task, recipe)
    if recipe.init != "keep":
        activation = "relu" if recipe.activation == "keep" else recipe.activation
        generator = seeds.torch_generator(seed, "init")
        sample = task.sample(_SAMPLE)[0] if recipe.init in init.AWARE or recipe.residual is not None else None
        with seeds.isolated(seed, "init", "run"):  # a user's own module may draw while it runs
            done = init.initialize_(
                model,
                recipe.init,
                sample=sample,
                generator=generator,
                activation=activation,
                gain=recipe.init_gain,
                residual=recipe.residual,
            )
        if not done:
            warnings.warn(f"init={recipe.init!r} found no layer to initialize.", NoEffectWarning, stacklevel=2)
    # Convolutions run about twice as fast in channels_last on CPUs, and their batches arrive in it.
    images = len(task.input_shape) == 3
    return cast("Any", model).to(memory_format=torch.channels_last) if images else model


def is_built_in(task: Task, recipe: Recipe) -> bool:
    """Whether the model is one of those here, and not the task's own."""
    return recipe.model is not None or task.model is None


def _built_in(task: Task, recipe: Recipe) -> nn.Module:
    name = recipe.model or task.default_model
    shape = task.input_shape
    if recipe.depth is not None and name not in ("resnet", "plain"):
        raise invalid(
            "Recipe",
            "depth",
            "be left out unless the model is resnet or plain",
            recipe.depth,
            f"This is {name}; set widths.",
        )
    if name != "mlp" and len(shape) != 3:
        raise invalid("Recipe", "model", "be mlp for data that are not images", name, f"Inputs are {shape}.")
    activation = "relu" if recipe.activation == "keep" else recipe.activation
    norm = recipe.norm if recipe.norm != "keep" else "batch" if name in ("resnet", "plain", "inception") else "none"
    if recipe.drop_path and name != "resnet":
        raise invalid("Recipe", "drop_path", "be 0 unless the model is resnet", recipe.drop_path, f"This is {name}.")
    if recipe.widths is not None and name in ("alexnet", "inception"):
        raise invalid(
            "Recipe", "widths", f"be left out for {name}", recipe.widths, "Its widths are the published ones."
        )
    parts: dict[str, Any] = {
        "activation": activation,
        "norm": norm,
        **_dropout_of(recipe),
        **({"widths": recipe.widths} if recipe.widths else {}),
    }
    model = _constructed(name, task, recipe, parts)
    if recipe.dropout_kind == "connect" and recipe.dropout:
        set_drop_connect_(model, recipe.dropout, recipe.dropout_where, sample=task.sample(2)[0])
    return model


def _constructed(name: str | None, task: Task, recipe: Recipe, parts: dict[str, Any]) -> nn.Module:
    shape, outputs = task.input_shape, task.outputs
    if name == "mlp":
        return mlp(int(torch.Size(shape).numel()), outputs, **parts)
    if name in ("cnn", "alexnet", "inception"):
        build: Any = {"cnn": cnn, "alexnet": alexnet, "inception": inception}[name]
        return build(shape, outputs, **parts)
    shortcut = name == "resnet"
    parts |= {"drop_path": recipe.drop_path} if shortcut else {}
    return ResNet(shape, outputs, depth=recipe.depth or 8, shortcut=shortcut, **parts)


def _dropout_of(recipe: Recipe) -> dict[str, Any]:
    """The arguments of a built-in model for its dropout; dropped weights are put in afterwards."""
    rate = 0.0 if recipe.dropout_kind == "connect" else recipe.dropout or 0.0
    return {
        "dropout": rate if recipe.dropout_where in ("hidden", "all") else 0.0,
        "input_dropout": rate if recipe.dropout_where in ("input", "all") else 0.0,
        "dropout_kind": "element" if recipe.dropout_kind in ("keep", "connect") else recipe.dropout_kind,
    }


def _own_model(task: Task, recipe: Recipe) -> nn.Module:
    for key in ("widths", "depth"):
        if getattr(recipe, key) is not None:
            raise invalid(
                "Recipe",
                key,
                "be left out for a model of your own",
                getattr(recipe, key),
                "Its builder decides; or name a built-in model.",
            )
    model = task.build_model()
    sample = task.sample(2)[0]
    if recipe.activation != "keep":
        surgery.set_activation_(model, recipe.activation, sample)
    if recipe.norm != "keep":
        surgery.set_norm_(model, recipe.norm, sample)
    if recipe.drop_path:
        cure = "A module of your own decides where a branch may be skipped: put homeostat.nn.DropPath there."
        raise invalid("Recipe", "drop_path", "be 0 for a model of your own", recipe.drop_path, cure)
    if recipe.dropout is not None:
        kind = None if recipe.dropout_kind == "keep" else recipe.dropout_kind
        surgery.set_dropout_(model, recipe.dropout, where=recipe.dropout_where, kind=kind, sample=sample)
    return model


def _norm_act(
    norm: str, channels: int, dims: int, activation: str, dropout: float, dropout_kind: str = "element"
) -> list[nn.Module]:
    """What follows a layer: norm and activation, in one module where there are both, and dropout."""
    layers = [make_activation(activation) if norm == "none" else make_norm(norm, channels, dims, activation)]
    return [*layers, make_dropout(dropout, dropout_kind, dims)] if dropout else layers
