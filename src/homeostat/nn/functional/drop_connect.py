"""Linear maps and convolutions whose weights are dropped, and what such a layer does on average.

In training a weight is zero with probability p and the others are divided by 1 - p; biases stay. One mask serves the
batch, or every example has its own. Seeds, places and backends are those of `homeostat.nn.functional.dropout`.
Random in training, and where `drop_connect_expectation` samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from homeostat.errors import invalid, invalid_type
from homeostat.kernels import dropout as kernels
from homeostat.kernels.drop_connect import drop_connect
from homeostat.kernels.noise import add_noise
from homeostat.nn.activation import activate, split
from homeostat.nn.functional.dropout import is_identity, stream_of
from homeostat.nn.functional.overridable import overridable

Size = int | Sequence[int]

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


@overridable
def drop_connect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    per_example: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.linear with weights dropped with probability p and the others divided by 1 - p.

    One mask serves the batch, or every example has its own; then neither masks nor masked weights are stored, and the
    product is computed in the dtype of the weight, under autocast too. The bias stays. In evaluation the weight is used
    as it is: the mean of what training saw; `drop_connect_expectation` also takes its variance into account.

    Args:
        input: shape (N, ..., I), or (I,) for one example; all rows of an example share its mask.
        weight: shape (O, I).
        bias: shape (O,), or None.
        p: the probability of dropping a weight, in [0, 1].
        per_example: whether every example has its own mask.
        offset: how many examples came before this part of a batch; one mask for a batch does not depend on it.
        backend: 'numba', 'triton' (not with per_example), 'reference' or None.
    Returns: shape (N, ..., O), or (O,).
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    """
    if is_identity("drop_connect_linear", p, training):
        return functional.linear(input, weight, bias)
    if weight.dim() != 2:
        raise invalid("drop_connect_linear", "weight", "have the shape (O, I)", weight)
    stream = stream_of("drop_connect_linear", seed, generator)
    if not per_example:
        return functional.linear(input, kernels.dropout(weight, stream, p, 2, 0, 0, backend), bias)
    if torch.is_autocast_enabled(input.device.type):
        input = input.to(weight.dtype)
    shape = input.shape
    rows = input.reshape(shape[0] if input.dim() > 1 else 1, shape[1:-1].numel(), shape[-1])
    output = drop_connect(rows, weight, stream, p, offset, 0, backend).reshape(*shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


@overridable
def drop_connect_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    per_example: bool = False,
    **settings: Any,
) -> Tensor:
    """torch.nn.functional.conv1d with weights dropped; see `drop_connect_conv2d`."""
    geometry = (stride, padding, dilation, groups)
    return _convolve(1, input, weight, bias, geometry, p, training, per_example, **settings)


@overridable
def drop_connect_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    per_example: bool = False,
    **settings: Any,
) -> Tensor:
    """torch.nn.functional.conv2d with weights dropped with probability p and the others divided by 1 - p.

    A dropped weight is gone at every position. With `per_example` the examples become groups of one convolution, and
    N masked copies of the weight are held.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in torch.
        p: the probability of dropping a weight, in [0, 1].
        training: False convolves with the weight as it is, the mean of what training saw.
        per_example: whether every example has its own mask, or the batch one.
        settings: generator, seed, offset and backend, as in `homeostat.nn.functional.dropout`.
    Returns: what torch returns for these shapes.
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    Example:
        >>> x, weight = torch.ones(1, 1, 3, 3), torch.ones(2, 1, 3, 3)
        >>> drop_connect_conv2d(x, weight, p=0.0).flatten()
        tensor([9., 9.])
    """
    geometry = (stride, padding, dilation, groups)
    return _convolve(2, input, weight, bias, geometry, p, training, per_example, **settings)


@overridable
def drop_connect_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    per_example: bool = False,
    **settings: Any,
) -> Tensor:
    """torch.nn.functional.conv3d with weights dropped; see `drop_connect_conv2d`."""
    geometry = (stride, padding, dilation, groups)
    return _convolve(3, input, weight, bias, geometry, p, training, per_example, **settings)


def drop_connect_moments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, p: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Mean and variance, over the masks, of what `drop_connect_linear` returns in training.

    mean = W x + b, variance = p / (1 - p) (W * W) (x * x). Wan et al. do not divide by 1 - p in training: their weights
    are those here over 1 - p, and their moments, (1 - p) W x and p (1 - p) (W * W) (x * x), are the same numbers.

    Args:
        input: shape (..., I).
        weight: shape (O, I).
        bias: shape (O,), or None.
        p: the probability of dropping a weight, in [0, 1).
    Returns: mean and variance, each (..., O).
    Raises: InvalidValue if p lies outside [0, 1).
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html, section 3.2.
    Example:
        >>> mean, variance = drop_connect_moments(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, 1.0]]), p=0.5)
        >>> mean, variance
        (tensor([5.]), tensor([13.]))
    """
    is_identity("drop_connect_moments", p, False)
    if p == 1:
        raise invalid("drop_connect_moments", "p", "lie in [0, 1)", p, "Without any weight there is no variance.")
    mean = functional.linear(input, weight, bias)
    if input.itemsize < 4:
        input, weight = input.float(), weight.float()  # squares leave the range of float16
    return mean, (functional.linear(input.square(), weight.square()) * (p / (1 - p))).to(mean.dtype)


def drop_connect_expectation(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    activation: str = "relu",
    samples: int = 1000,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """The mean of activation(u) over the masks, where u is taken for normal with `drop_connect_moments`.

    Wan et al.'s inference: `samples` numbers are drawn from each unit's normal distribution, activated and averaged.

    Args:
        input, weight, bias, p: as in `drop_connect_moments`; input also with a first dimension of examples.
        activation: by name, as in `homeostat.nn.activation.ACTIVATIONS`.
        samples: how many draws for each unit, at least 1; one after the other, so that memory does not grow.
        generator, seed, offset, backend: as in `homeostat.nn.functional.dropout`.
    Returns: shape (..., O).
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html, algorithm 2.
    Example:
        >>> x, weight = torch.ones(1, 2), torch.tensor([[1.0, -1.0]])
        >>> y = drop_connect_expectation(x, weight, p=0.5, samples=500, seed=0)
        >>> bool(abs(y - 1 / torch.pi**0.5) < 0.2)  # the mean of relu(u), u normal with mean 0 and variance 2
        True
    """
    where = "drop_connect_expectation"
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise invalid_type(where, "samples", "be an integer", samples)
    if samples < 1:
        raise invalid(where, "samples", "be at least 1", samples)
    slope, function = split(where, activation)
    dtype = input.dtype
    if input.itemsize < 4:  # variances leave the range of float16
        input, weight, bias = input.float(), weight.float(), None if bias is None else bias.float()
    mean, variance = drop_connect_moments(input, weight, bias, p)
    deviation = variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()  # of zero it would have no gradient
    examples = mean if mean.dim() > 1 else mean.unsqueeze(0)
    zeros, stream = torch.zeros_like(examples), stream_of(where, seed, generator)
    total, next_stream = zeros, torch.tensor([0, 1], device="cpu")
    for _ in range(samples):
        total = total + activate(examples + deviation * add_noise(zeros, stream, 1.0, offset, backend), slope, function)
        stream = stream + next_stream
    return (total / samples).reshape(mean.shape).to(dtype)


def _convolve(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Any, Any, Any, int], p: float,
    training: bool, per_example: bool, *, generator: torch.Generator | None = None, seed: Tensor | int | None = None,
    offset: int = 0, backend: str | None = None,
) -> Tensor:  # fmt: skip
    where, convolution = f"drop_connect_conv{dims}d", _CONVOLUTIONS[dims]
    if is_identity(where, p, training):
        return convolution(input, weight, bias, *geometry)
    if weight.dim() != dims + 2:
        raise invalid(where, "weight", f"have {dims + 2} dimensions", weight)
    if input.dim() not in (dims + 1, dims + 2):
        raise invalid(where, "input", f"have {dims + 2} dimensions, or {dims + 1} without a batch", input)
    stream = stream_of(where, seed, generator)
    batch = input if input.dim() == dims + 2 else input.unsqueeze(0)
    if not per_example or not batch.numel():
        return convolution(input, kernels.dropout(weight, stream, p, weight.dim(), 0, 0, backend), bias, *geometry)
    count = batch.shape[0]
    copies = kernels.dropout(weight.expand(count, *weight.shape), stream, p, dims + 3, offset, 0, backend)
    output = convolution(
        batch.reshape(1, count * batch.shape[1], *batch.shape[2:]), copies.flatten(0, 1),
        None if bias is None else bias.repeat(count), *geometry[:3], geometry[3] * count,
    )  # fmt: skip
    shape = output.shape[2:]
    return output.reshape(*input.shape[: input.dim() - dims - 1], weight.shape[0], *shape)
