"""Linear layers and convolutions that drop their weights in training; parameters and state_dicts are torch's.

The settings are the class's until a layer has its own. Random in training: each call draws one seed from torch's
generator; in evaluation only where a linear layer samples.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as torch_functional
from torch.nn.modules.conv import _ConvNd

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels import BACKENDS
from homeostat.nn.activation import activate, split
from homeostat.nn.functional.drop_connect import (
    drop_connect_conv1d,
    drop_connect_conv2d,
    drop_connect_conv3d,
    drop_connect_expectation,
    drop_connect_linear,
)
from homeostat.nn.functional.dropout import check_probability


class DropConnectLinear(nn.Linear):
    """torch.nn.Linear that drops weights in training. See `homeostat.nn.functional.drop_connect_linear`.

    Evaluation uses the mean weights, which is exact in front of nothing or something linear. With `samples` it is Wan
    et al.'s inference: the unit's input to the activation is taken for normal, with the mean and the variance that it
    has over the masks, and the activation is averaged over that many draws.

    Args:
        in_features, out_features, bias, device, dtype: as in torch.nn.Linear.
        p: the probability of dropping a weight, in [0, 1]; the bias stays.
        per_example: whether every example has its own mask, or the batch one.
        activation: applied to the output, by name as in `homeostat.nn.activation.ACTIVATIONS`; or None.
        samples: draws per unit in evaluation, for an activation and p < 1; 0 activates the mean.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1], for unknown names, and for samples without an activation.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    Example:
        >>> DropConnectLinear(3, 2, p=0.2, per_example=True)
        DropConnectLinear(in_features=3, out_features=2, bias=True, p=0.2, per_example=True)
    """

    p: float = 0.5
    per_example: bool = False
    activation: str | None = None
    samples: int = 0
    backend: str | None = None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        per_example: bool = False,
        *,
        activation: str | None = None,
        samples: int = 0,
        device: Any = None,
        dtype: Any = None,
        backend: str | None = None,
    ) -> None:
        _check("DropConnectLinear", p, backend)
        split("DropConnectLinear", activation)
        if isinstance(samples, bool) or not isinstance(samples, int):
            raise invalid_type("DropConnectLinear", "samples", "be an integer", samples)
        if samples < 0 or (samples and (activation is None or p == 1)):
            cure = "Give activation= and p < 1 with it; without an activation the mean of the samples is the mean."
            raise invalid("DropConnectLinear", "samples", "be 0, or positive with an activation", samples, cure)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p, self.per_example, self.backend = p, per_example, backend
        self.activation, self.samples = activation, samples

    def forward(self, input: Tensor) -> Tensor:
        if self.samples and self.p and not self.training and self.activation is not None:
            return drop_connect_expectation(
                input, self.weight, self.bias, self.p, self.activation, self.samples, backend=self.backend
            )
        output = drop_connect_linear(
            input, self.weight, self.bias, self.p, self.training, self.per_example, backend=self.backend
        )
        return output if self.activation is None else activate(output, *split("DropConnectLinear", self.activation))

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, p={self.p}, per_example={self.per_example}"
        text += "" if self.activation is None else f", activation={self.activation!r}"
        text += f", samples={self.samples}" if self.samples else ""
        return text if self.backend is None else f"{text}, backend={self.backend!r}"


class _DropConnectConv(_ConvNd):
    """What convolutions that drop their weights share; in front of one of torch.nn's convolutions."""

    p: float = 0.5
    per_example: bool = False
    backend: str | None = None
    _function: Any

    def __init__(
        self, *args: Any, p: float = 0.5, per_example: bool = False, backend: str | None = None, **kwargs: Any
    ) -> None:
        _check(type(self).__name__, p, backend)
        super().__init__(*args, **kwargs)
        self.p, self.per_example, self.backend = p, per_example, backend

    def forward(self, input: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros":
            input = torch_functional.pad(input, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = 0
        output: Tensor = type(self)._function(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups,
            self.p, self.training, self.per_example, backend=self.backend,
        )  # fmt: skip
        return output

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, p={self.p}, per_example={self.per_example}"
        return text if self.backend is None else f"{text}, backend={self.backend!r}"


class DropConnectConv1d(_DropConnectConv, nn.Conv1d):
    """torch.nn.Conv1d that drops weights in training; see `DropConnectConv2d`."""

    _function = staticmethod(drop_connect_conv1d)


class DropConnectConv2d(_DropConnectConv, nn.Conv2d):
    """torch.nn.Conv2d that drops weights in training. See `homeostat.nn.functional.drop_connect_conv2d`.

    Args:
        in_channels, out_channels, kernel_size, ...: as in torch.nn.Conv2d.
        p: the probability of dropping a weight, in [0, 1], by keyword; the bias stays.
        per_example: whether every example has its own mask, or the batch one.
        backend: see `homeostat.kernels.backend_for`; None chooses.
    Raises: InvalidValue if p lies outside [0, 1].
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    Example:
        >>> DropConnectConv2d(3, 8, 3, padding=1, p=0.2)
        DropConnectConv2d(3, 8, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), p=0.2, per_example=False)
    """

    _function = staticmethod(drop_connect_conv2d)


class DropConnectConv3d(_DropConnectConv, nn.Conv3d):
    """torch.nn.Conv3d that drops weights in training; see `DropConnectConv2d`."""

    _function = staticmethod(drop_connect_conv3d)


def _check(where: str, p: float, backend: str | None) -> None:
    check_probability(where, p)
    if backend is not None and backend not in BACKENDS:
        raise unknown(where, "backend", backend, BACKENDS)
