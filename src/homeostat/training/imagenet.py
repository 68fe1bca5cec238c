"""Networks of ImageNet's years: VGG-19, Inception v3 and ResNet-200 v2, and smaller ones of the same families.

By their defaults they have exactly as many parameters as were published; stages, widths and blocks make smaller ones.
They are modules for a task of one's own (`Task(model=...)`), where a recipe reaches their dropout and norm by surgery.
As all models here, they draw their weights from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.parts.activation import make_activation
from homeostat.parts.dropout import make_dropout
from homeostat.training.architectures import Beside, convolution, image_sides, norm_act, without_bias

VGG19 = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))
"""(channels, convolutions) of the stages of configuration E."""
RESNET200 = (3, 24, 36, 3)
"""Blocks per stage: three weight layers each, a convolution and a readout make 200."""
_LEAST_SIDE = 75  # pixels, of which Inception v3's stem and its two reductions leave one


def vgg(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    stages: Sequence[tuple[int, int]] = VGG19,
    hidden: Sequence[int] = (4096, 4096),
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    dropout_kind: str = "element",
) -> nn.Sequential:
    """A VGG network: (N, C, H, W) -> (N, outputs); VGG-19, 143,667,240 parameters for (3, 224, 224) and 1000 outputs.

    Stages of 3x3 convolutions, each ended by a 2x2 max pool; fully connected layers; the linear readout.

    Args:
        input_shape: channels, height and width, without the batch; at least one pixel must be left by the pools.
        stages: channels and number of the convolutions of each stage.
        hidden: units of the fully connected layers.
        norm: a kind of `make_norm` behind every convolution; the published network has none.
        dropout: behind the fully connected layers; 0.5 in the paper.
        dropout_kind: a kind of `make_dropout`.
    Raises: InvalidValue if input_shape is not that of images, or they are too small.
    Source: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1.
    Example:
        >>> network = vgg((3, 32, 32), 10, stages=((8, 1), (16, 2)), hidden=(32,))
        >>> sum(parameter.numel() for parameter in network.parameters())
        36842
    """
    channels, height, width = image_sides("vgg", input_shape)
    if min(height, width) < 2 ** len(stages):
        cure = f"{len(stages)} stages halve them as often. Take fewer stages, or larger images."
        raise invalid("vgg", "input_shape", f"have sides of at least {2 ** len(stages)}", tuple(input_shape), cure)
    layers: list[nn.Module] = []
    for after, count in stages:
        for before in (channels, *[after] * (count - 1)):
            layers += convolution(before, after, 3, norm, activation)
        layers.append(nn.MaxPool2d(2))
        channels, height, width = after, height // 2, width // 2
    layers.append(nn.Flatten())
    units = (channels * height * width, *hidden)
    for ahead, behind in pairwise(units):
        layers += [nn.Linear(ahead, behind), make_activation(activation)]
        layers += [make_dropout(dropout, dropout_kind)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(units[-1], outputs))


class Bottleneck(nn.Module):
    """A residual unit with its norm and activation ahead: (N, C, H, W) -> (N, 4 width, H/stride, W/stride).

    1x1, 3x3 and 1x1 convolutions, added to the identity. Where the shape changes, a 1x1 convolution of the activated
    input takes the identity's place (option B).

    Args:
        before: channels of the input, C.
        active: whether the input was activated before, as behind the stem.
    """

    def __init__(self, before: int, width: int, *, stride: int, norm: str, activation: str, active: bool) -> None:
        super().__init__()
        after = 4 * width
        self.activated = nn.Identity() if active else norm_act(norm, before, 2, activation)
        self.branch = nn.Sequential(
            *convolution(before, width, 1, norm, activation, stride=stride),
            *convolution(width, width, 3, norm, activation),
            without_bias(nn.Conv2d(width, after, 1), norm),
        )
        changes = stride > 1 or before != after
        self.shortcut = without_bias(nn.Conv2d(before, after, 1, stride=stride), norm) if changes else None

    def forward(self, input: Tensor) -> Tensor:
        active = self.activated(input)
        around = input if self.shortcut is None else self.shortcut(active)
        return around + self.branch(active)


def resnet_v2(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    blocks: Sequence[int] = RESNET200,
    width: int = 64,
    small: bool = False,
    activation: str = "relu",
    norm: str = "batch",
    dropout: float = 0.0,
    dropout_kind: str = "element",
) -> nn.Sequential:
    """A residual network with pre-activation: (N, C, H, W) -> (N, outputs); ResNet-200 v2 for 1000 outputs.

    ResNet-200 v2 has 64,666,152 parameters for three colors: weights of convolutions, which have no biases, scale and
    shift of every batch norm, and the readout. A 7x7 convolution and a 3x3 max pool, both of stride 2; stages of
    bottleneck units, the width doubled and the resolution halved from each to the next; norm and activation; the mean
    over all positions; the linear readout.

    Args:
        input_shape: channels, height and width, without the batch; any size.
        blocks: units of each stage.
        width: of the first stage's 3x3 convolutions; its output has four times as many channels.
        small: a 3x3 convolution of stride 1 in place of the 7x7 one and the pool, for small images.
        norm: a kind of `make_norm`.
        dropout: before the readout; the published network has none.
        dropout_kind: a kind of `make_dropout`.
    Raises: InvalidValue if input_shape is not that of images.
    Source: He et al. 2016, arXiv:1603.05027; the halving stands in a unit's first convolution, as in their
        arXiv:1512.03385.
    Example:
        >>> network = resnet_v2((3, 32, 32), 10, blocks=(1, 1), width=8, small=True)
        >>> sum(parameter.numel() for parameter in network.parameters())
        8210
    """
    channels, _, _ = image_sides("resnet_v2", input_shape)
    layers = convolution(channels, width, 3 if small else 7, norm, activation, stride=1 if small else 2)
    layers += [] if small else [nn.MaxPool2d(3, stride=2, padding=1)]
    channels = width
    for stage, count in enumerate(blocks):
        for unit in range(count):
            first = unit == 0
            stride = 2 if first and stage > 0 else 1
            active = first and stage == 0
            inner = width * 2**stage
            layers.append(Bottleneck(channels, inner, stride=stride, norm=norm, activation=activation, active=active))
            channels = 4 * inner
    layers += [norm_act(norm, channels, 2, activation), nn.AdaptiveAvgPool2d(1)]
    layers += [make_dropout(dropout, dropout_kind, 2)] if dropout else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, outputs))


# A side is a chain of steps: (channels, size) is a convolution, with 2 behind it one that halves the resolution and has
# no padding; "average" and "max" are 3x3 pools, the second of which halves; a tuple of sides stands beside each other.
_REDUCED = (((384, 3, 2),), ((64, 1), (96, 3), (96, 3, 2)), ("max",))
_REDUCED_AGAIN = (
    ((192, 1), (320, 3, 2)),
    ((192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)),
    ("max",),
)
_CROSSED = (((384, (1, 3)),), ((384, (3, 1)),))
_EXPANDED = (((320, 1),), ((384, 1), _CROSSED), ((448, 1), (384, 3), _CROSSED), ("average", (192, 1)))


def _factorized_in_depth(pooled: int) -> tuple[Any, ...]:
    """A 5x5 and a double 3x3 convolution, a 1x1 one and a pool (figure 5)."""
    return (((64, 1),), ((48, 1), (64, 5)), ((64, 1), (96, 3), (96, 3)), ("average", (pooled, 1)))


def _factorized_in_sides(n: int) -> tuple[Any, ...]:
    """7x7 convolutions as 1x7 and 7x1 (figure 6)."""
    single = ((n, 1), (n, (1, 7)), (192, (7, 1)))
    double = ((n, 1), (n, (7, 1)), (n, (1, 7)), (n, (7, 1)), (192, (1, 7)))
    return (((192, 1),), single, double, ("average", (192, 1)))


_INCEPTION_V3 = (
    *map(_factorized_in_depth, (32, 64, 64)),
    _REDUCED,
    *map(_factorized_in_sides, (128, 160, 160, 192)),
    _REDUCED_AGAIN,
    *(_EXPANDED, _EXPANDED),
)


def inception_v3(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    activation: str = "relu",
    norm: str = "batch",
    dropout: float = 0.0,
    dropout_kind: str = "element",
) -> nn.Sequential:
    """Inception v3: (N, C, H, W) -> (N, outputs); 23,834,568 parameters for three colors and 1000 outputs.

    Six convolutions and two pools; eleven Inception modules, two of which halve the resolution; the mean over all
    positions; the linear readout. Every convolution is followed by norm and activation, with scale and shift. The
    auxiliary classifier, with which it has 27,161,264 parameters, is left out: it acts in training alone, and on
    the lower layers of a network that batch normalization trains anyway.

    Args:
        input_shape: channels, height and width, without the batch; 299 pixels in the paper, at least 75.
        norm: a kind of `make_norm`.
        dropout: before the readout; 0.2 in its authors' program.
        dropout_kind: a kind of `make_dropout`.
    Raises: InvalidValue if input_shape is not that of images, or they are too small.
    Source: Szegedy et al. 2015, arXiv:1512.00567; batch norm has torch's eps of 1e-5, theirs has 1e-3.
    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     network = inception_v3((3, 299, 299), 1000)
        >>> sum(parameter.numel() for parameter in network.parameters())
        23834568
    """
    channels, height, width = image_sides("inception_v3", input_shape)
    if min(height, width) < _LEAST_SIDE:
        cure = "Its stem and reductions leave nothing of smaller ones; `inception` is for those."
        raise invalid("inception_v3", "input_shape", f"have sides of at least {_LEAST_SIDE}", tuple(input_shape), cure)
    layers: list[nn.Module] = []
    for after, size, stride, padded in ((32, 3, 2, False), (32, 3, 1, False), (64, 3, 1, True)):
        layers += convolution(channels, after, size, norm, activation, stride=stride, padded=padded)
        channels = after
    layers.append(nn.MaxPool2d(3, stride=2))
    for after, size in ((80, 1), (192, 3)):
        layers += convolution(channels, after, size, norm, activation, padded=False)
        channels = after
    layers.append(nn.MaxPool2d(3, stride=2))
    for sides in _INCEPTION_V3:
        module, channels = _beside(channels, sides, norm, activation)
        layers.append(module)
    layers += [nn.AdaptiveAvgPool2d(1), *([make_dropout(dropout, dropout_kind, 2)] if dropout else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, outputs))


def _beside(before: int, sides: Sequence[Any], norm: str, activation: str) -> tuple[nn.Module, int]:
    """The sides of an Inception module, and how many channels come out of them."""
    made = [_chain(before, steps, norm, activation) for steps in sides]
    return Beside(*(side for side, _ in made)), sum(channels for _, channels in made)


def _chain(before: int, steps: Sequence[Any], norm: str, activation: str) -> tuple[nn.Sequential, int]:
    layers: list[nn.Module] = []
    for step in steps:
        if step == "average":  # the mean over the pixels that there are, as TensorFlow has it
            layers.append(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False))
        elif step == "max":
            layers.append(nn.MaxPool2d(3, stride=2))
        elif isinstance(step[0], tuple):
            module, before = _beside(before, step, norm, activation)
            layers.append(module)
        else:
            after, size, *halving = step
            stride = 2 if halving else 1
            layers += convolution(before, after, size, norm, activation, stride=stride, padded=not halving)
            before = after
    return nn.Sequential(*layers), before
