"""The convolutional networks of Zhang et al. 2017 (arXiv:1611.03530), small forms of AlexNet and Inception for CIFAR.

Given 28x28 images of 3 channels and 10 outputs they have exactly as many trainable parameters as the paper's table 1
says; they take images of any size and number of channels. The paper's multilayer perceptrons are `mlp` with widths of
512 or 512, 512, 512; its networks for ImageNet are in `imagenet`, with which this file shares its pieces. As all
built-in models, they draw their weights from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.parts.activation import make_activation
from homeostat.parts.dropout import make_dropout
from homeostat.parts.norm import make_norm

_SHIFTLESS = ("none", "rms")  # after these a convolution needs a bias of its own
_MODULES = ((32, 32), (32, 48), (80,), (112, 48), (96, 64), (80, 80), (48, 96), (96,), (176, 160), (176, 160))


def alexnet(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    activation: str = "relu",
    norm: str = "none",
    dropout: float = 0.0,
    dropout_kind: str = "element",
    input_dropout: float = 0.0,
) -> nn.Sequential:
    """A small AlexNet: (N, C, H, W) -> (N, outputs); 1,387,786 parameters for (3, 28, 28) and 10 outputs.

    Twice 5x5 convolution to 64 channels -> activation -> 3x3 max pool of stride 2 -> local response normalization;
    then fully connected layers of 384 and 192 units and the linear readout. The response normalization has the
    settings of TensorFlow's CIFAR-10 network.

    Args:
        input_shape: channels, height and width, without the batch; any size.
        norm: a kind of `make_norm` between each convolution or hidden layer and its activation; not instance, as hidden
            layers have no positions. Local response normalization stays.
        dropout: behind the activations of the two hidden fully connected layers, where AlexNet has it.
        dropout_kind: a kind of `make_dropout`.
        input_dropout: on the input.
    Raises: InvalidValue if input_shape is not that of images, or norm is instance.
    Source: Zhang et al. 2017, arXiv:1611.03530, appendix A; Krizhevsky et al. 2012, "ImageNet classification with deep
        convolutional neural networks".
    Example:
        >>> network = alexnet((3, 28, 28), 10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        1387786
    """
    channels, height, width = image_sides("alexnet", input_shape)
    layers: list[nn.Module] = [make_dropout(input_dropout)] if input_dropout else []
    for before in (channels, 64):
        layers += [*convolution(before, 64, 5, norm, activation, scale=False), nn.MaxPool2d(3, stride=2, padding=1)]
        layers.append(nn.LocalResponseNorm(9, alpha=1e-3, beta=0.75, k=1.0))
        height, width = _halved(height), _halved(width)
    layers.append(nn.Flatten())
    for before, after in ((64 * height * width, 384), (384, 192)):
        layers += [nn.Linear(before, after), norm_act(norm, after, 0, activation)]
        layers += [make_dropout(dropout, dropout_kind)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(192, outputs))


def inception(
    input_shape: tuple[int, ...],
    outputs: int,
    *,
    activation: str = "relu",
    stem: int = 96,
    modules: Sequence[tuple[int, ...]] = _MODULES,
    norm: str = "batch",
    dropout: float = 0.0,
    dropout_kind: str = "element",
    input_dropout: float = 0.0,
) -> nn.Sequential:
    """A small Inception: (N, C, H, W) -> (N, outputs); 1,649,402 parameters for (3, 28, 28) and 10 outputs.

    A 3x3 convolution; eight modules in which 1x1 and 3x3 convolutions stand side by side; after the second and the
    sixth a module in which a 3x3 convolution and a 3x3 max pool, both of stride 2, do; the mean over all positions (7x7
    of them for 28x28 images); the linear readout. Every convolution is followed by norm and activation.

    Batch normalization shifts and does not scale: with ReLU behind it, a scale could as well be the next layer's. The
    shift takes the place of the bias that the network without it has, so that both have as many parameters.

    Args:
        input_shape: channels, height and width, without the batch; any size.
        stem: channels of the first convolution.
        modules: the (1x1, 3x3) channels of a module, or (3x3,) of one that halves the resolution.
        norm: a kind of `make_norm`; "none" for the network without batch normalization.
        dropout: before the readout, where GoogLeNet has it.
        dropout_kind: a kind of `make_dropout`.
        input_dropout: on the input.
    Raises: InvalidValue if input_shape is not that of images.
    Source: Zhang et al. 2017, arXiv:1611.03530, figure 3; Szegedy et al. 2015, arXiv:1409.4842.
    Example:
        >>> network = inception((3, 28, 28), 10)
        >>> sum(parameter.numel() for parameter in network.parameters())
        1649402
    """
    channels, _, _ = image_sides("inception", input_shape)
    layers: list[nn.Module] = [make_dropout(input_dropout)] if input_dropout else []
    layers += convolution(channels, stem, 3, norm, activation, scale=False)
    channels = stem
    for widths in modules:
        if len(widths) == 2:
            sides = [
                convolution(channels, width, size, norm, activation, scale=False)
                for width, size in zip(widths, (1, 3), strict=True)
            ]
            channels = sum(widths)
        else:
            halving = convolution(channels, widths[0], 3, norm, activation, stride=2, scale=False)
            sides = [halving, [nn.MaxPool2d(3, stride=2, padding=1)]]
            channels += widths[0]
        layers.append(Beside(*(nn.Sequential(*side) for side in sides)))
    layers += [nn.AdaptiveAvgPool2d(1), *([make_dropout(dropout, dropout_kind, 2)] if dropout else [])]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, outputs))


class Beside(nn.ModuleList):
    """Modules that get the same input, and whose outputs are put together along the channels."""

    def __init__(self, *sides: nn.Module) -> None:
        super().__init__(sides)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, sum of the sides' channels, H', W')."""
        return torch.cat([side(input) for side in self], dim=1)


def convolution(
    before: int,
    after: int,
    size: int | tuple[int, int],
    norm: str,
    activation: str,
    *,
    stride: int = 1,
    padded: bool = True,
    scale: bool = True,
) -> list[nn.Module]:
    """Convolution, norm and activation.

    Args:
        size: odd: of both sides, or (height, width).
        padded: to keep the resolution, or to halve it rounding up; False: positions that lie wholly inside alone.
        scale: see `norm_act`.
    """
    height, across = (size, size) if isinstance(size, int) else size
    padding = (height // 2, across // 2) if padded else 0
    layer = nn.Conv2d(before, after, size, stride=stride, padding=padding)
    return [without_bias(layer, norm), norm_act(norm, after, 2, activation, scale=scale)]


def without_bias(layer: nn.Conv2d, norm: str) -> nn.Conv2d:
    """The layer without the bias that a norm behind it makes superfluous.

    It is drawn all the same before, so that networks with and without norm share their weights.
    """
    if norm not in _SHIFTLESS:
        layer.bias = None
    return layer


def norm_act(norm: str, channels: int, dims: int, activation: str, *, scale: bool = True) -> nn.Module:
    """Norm and activation in one module; without `scale`, batch normalization of convolutions shifts alone."""
    if norm == "none":
        return make_activation(activation)
    layer = make_norm(norm, channels, dims, activation)
    if norm == "batch" and dims == 2 and not scale:
        # A constant, not a parameter; still in the state_dict, so that weights load into torch's layer and back.
        del layer.weight
        layer.register_buffer("weight", torch.ones(channels))
    return layer


def _halved(size: int) -> int:
    return (size + 1) // 2


def image_sides(where: str, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width of an input shape.

    Raises: InvalidValue, in the name of `where`, if it is not that of images.
    """
    if len(input_shape) != 3 or min(input_shape) < 1:
        raise invalid(where, "input_shape", "be (channels, height, width)", tuple(input_shape))
    channels, height, width = input_shape
    return channels, height, width
