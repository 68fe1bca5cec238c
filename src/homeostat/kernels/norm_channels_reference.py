"""Batch, instance and group normalization in plain torch: the truth for every test, and the fallback.

Every backend module of this stem has these functions, with these signatures:

    normalize(input, weight, bias, residual, groups, eps, slope) -> (output, mean, variance)
    gradient(grad, input, weight, bias, output, mean, variance, groups, eps, slope)
        -> (input_grad, weight_grad, bias_grad, masked)
    affine(input, mean, variance, weight, bias, residual, eps, slope) -> output
    affine_gradient(grad, input, mean, variance, weight, bias, output, eps, slope)
        -> (input_grad, weight_grad, bias_grad, masked)
    statistics(input) -> (3, C): count, mean, sum of squared deviations
    gradient_sums(grad, input, statistics, weight, bias, output, eps, slope) -> (sums (2, C), masked)
    input_gradient(grad, input, statistics, weight, bias, sums, eps, slope) -> input_grad

input: (N, C, ...), floating. weight, bias: (C,) or None. residual, output: like input, or None. groups: 0 for batch
normalization (one set per channel), else the number of sets per example (instance: C). mean, variance: biased,
`widest_dtype`, (C,) for groups = 0, else (N, groups); those given to `affine` are (C,) of any floating dtype.
slope: what a negative value is multiplied by after everything else (1: identity, 0: relu).

output is saved and given to the gradient where a residual was added and slope is not 1: then its sign says where the
activation was negative, and `masked` is the gradient before the activation, which is the residual's gradient.
Elsewhere output is None, the sign is recomputed from input, and `masked` is empty, shape (0,). weight_grad, bias_grad
have the parameters' dtypes (input's where there is no parameter). The functions here take any device and floating
dtype, are differentiable, and compute in float64; float16 and bfloat16 in float32. Not random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels.backend import widest_dtype


def normalize(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels.normalize`."""
    mean, variance = _moments(input, groups)
    z = _scaled(_normalized(input, mean, variance, groups, eps), weight, bias)
    return _activated(z, residual, slope).to(input.dtype), mean, variance


def affine(
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
) -> Tensor:
    """See `homeostat.kernels.norm_channels.affine`."""
    z = _scaled(_normalized(input, mean, variance, 0, eps), weight, bias)
    return _activated(z, residual, slope).to(input.dtype)


def gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    groups: int,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `normalize`, in closed form (Ioffe and Szegedy 2015, arXiv:1502.03167, section 3).

    With mean and variance None they are computed from input, and then differentiated with it.
    """
    if mean is None or variance is None:
        mean, variance = _moments(input, groups)
    x = _normalized(input, mean, variance, groups, eps)
    d = _before_activation(grad, _scaled(x, weight, bias), output, slope)
    scaled = _scaled(d, weight, None)
    common = scaled - _spread(_mean(scaled, groups), x, groups) - x * _spread(_mean(scaled * x, groups), x, groups)
    input_grad = common * _inverse_deviation(variance, x, groups, eps)
    return input_grad.to(input.dtype), *_parameter_gradients(d, x, input, weight, bias), _masked(d, output)


def affine_gradient(
    grad: Tensor,
    input: Tensor,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `affine`, whose mean and variance are constants."""
    x = _normalized(input, mean, variance, 0, eps)
    d = _before_activation(grad, _scaled(x, weight, bias), output, slope)
    input_grad = _scaled(d, weight, None) * _inverse_deviation(variance, x, 0, eps)
    return input_grad.to(input.dtype), *_parameter_gradients(d, x, input, weight, bias), _masked(d, output)


def statistics(input: Tensor) -> Tensor:
    """See `homeostat.kernels.norm_channels.statistics`."""
    mean, variance = _moments(input, 0)
    count = torch.full_like(mean, input.numel() // input.shape[1])
    return torch.stack([count, mean, variance * count])


def gradient_sums(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    eps: float,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.norm_channels.gradient_sums`."""
    count, mean, squares = statistics
    x = _normalized(input, mean, squares / count, 0, eps)
    d = _before_activation(grad, _scaled(x, weight, bias), output, slope)
    return torch.stack([_sum(d, statistics.dtype), _sum(d * x, statistics.dtype)]), _masked(d, output)


def input_gradient(
    grad: Tensor,
    input: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    sums: Tensor,
    eps: float,
    slope: float,
) -> Tensor:
    """See `homeostat.kernels.norm_channels.input_gradient`."""
    count, mean, squares = statistics
    variance = squares / count
    x = _normalized(input, mean, variance, 0, eps)
    d = _before_activation(grad, _scaled(x, weight, bias), None, slope)
    common = d - _spread(sums[0] / count, x, 0) - x * _spread(sums[1] / count, x, 0)
    return (_scaled(common, weight, None) * _inverse_deviation(variance, x, 0, eps)).to(input.dtype)


def _working(input: Tensor) -> torch.dtype:
    return torch.float32 if input.element_size() < 4 else widest_dtype(input.device)


def _moments(input: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of every set; 0 for sets without elements."""
    if not input.numel():
        shape = (input.shape[0], groups) if groups else (input.shape[1],)
        zero = torch.zeros(shape, dtype=widest_dtype(input.device), device=input.device)
        return zero, zero.clone()
    x = input.to(_working(input))
    mean = _mean(x, groups)
    return mean, _mean((x - _spread(mean, x, groups)).square(), groups)


def _mean(x: Tensor, groups: int) -> Tensor:
    """The mean of every set: (C,) for groups = 0, else (N, groups)."""
    dtype = widest_dtype(x.device)
    if groups:
        sets = x.unflatten(1, (groups, x.shape[1] // groups))
        return sets.mean(tuple(range(2, sets.dim())), dtype=dtype)
    return x.mean((0, *range(2, x.dim())), dtype=dtype)


def _sum(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.sum((0, *range(2, x.dim())), dtype=dtype)


def _spread(values: Tensor, x: Tensor, groups: int) -> Tensor:
    """One value per set, as a tensor of x's dtype that broadcasts against x."""
    if groups:
        examples, channels = x.shape[:2]
        values = values.unsqueeze(2).expand(examples, groups, channels // groups).reshape(examples, channels)
    else:
        values = values.unsqueeze(0)
    return values.reshape(values.shape + (1,) * (x.dim() - 2)).to(x.dtype)


def _inverse_deviation(variance: Tensor, x: Tensor, groups: int, eps: float) -> Tensor:
    return _spread((variance.to(widest_dtype(x.device)) + eps).rsqrt(), x, groups)


def _normalized(input: Tensor, mean: Tensor, variance: Tensor, groups: int, eps: float) -> Tensor:
    x = input.to(_working(input))
    return (x - _spread(mean, x, groups)) * _inverse_deviation(variance, x, groups, eps)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        x = x * _spread(weight, x, 0)
    return x if bias is None else x + _spread(bias, x, 0)


def _activated(z: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    if residual is not None:
        z = z + residual
    return z if slope == 1 else torch.where(z < 0, slope * z if slope else torch.zeros_like(z), z)


def _before_activation(grad: Tensor, z: Tensor, output: Tensor | None, slope: float) -> Tensor:
    """The gradient before the activation: where z (or output, which has its sign) is not positive, slope times it."""
    d = grad.to(z.dtype)
    if slope == 1:
        return d
    return torch.where((z if output is None else output) <= 0, slope * d if slope else torch.zeros_like(d), d)


def _parameter_gradients(
    d: Tensor, x: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = widest_dtype(d.device)
    return (
        _sum(d * x, dtype).to((input if weight is None else weight).dtype),
        _sum(d, dtype).to((input if bias is None else bias).dtype),
    )


def _masked(d: Tensor, output: Tensor | None) -> Tensor:
    return d.new_empty(0) if output is None else d.to(output.dtype)
