"""Normalization of rows in plain torch, for any device and dtype: the fallback of `kernels.norm_rows` and its truth.

Everything is computed in float64 where the device has it, for float16 and bfloat16 in float32, and rounded once.
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
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.norm_rows.norm_rows`."""
    x = _rows(input, length, groups)
    statistics = _statistics(x, center)
    z = _affine(_standardized(x, statistics, eps), weight, bias)
    if residual is not None:
        z = z + _rows(residual, length, groups)
    y = _rectified(z, z, slope)
    return y.to(input.dtype).reshape(input.shape), statistics.to(widest_dtype(input.device)).reshape(2, -1)


def gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    statistics: Tensor | None,
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
    affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See `homeostat.kernels.norm_rows.norm_rows_gradient`; without `statistics`, all of it can be differentiated."""
    x, d = _rows(input, length, groups), _rows(grad, length, groups)
    known = _statistics(x, center) if statistics is None else statistics.to(x.dtype).reshape(2, -1, groups, 1)
    standardized = _standardized(x, known, eps)
    if slope != 1:
        z = _affine(standardized, weight, bias) if output is None else _rows(output, length, groups)
        d = _rectified(d, z, slope)
    g = d if weight is None else d * _row(weight, groups)
    projection = (g * standardized).mean(-1, keepdim=True) * standardized
    if center:
        projection = projection + g.mean(-1, keepdim=True)
    dx = (g - projection) * (known[1] + eps).rsqrt()
    nothing = [input.new_empty(0) for _ in range(3)]
    return (
        dx.to(input.dtype).reshape(input.shape),
        (d * standardized).sum(0).to(weight.dtype).reshape(weight.shape)
        if affine and weight is not None
        else nothing[0],
        d.sum(0).to(bias.dtype).reshape(bias.shape) if affine and bias is not None else nothing[1],
        d.to(input.dtype).reshape(input.shape) if output is not None else nothing[2],
    )


def _rows(tensor: Tensor, length: int, groups: int) -> Tensor:
    """As (examples, groups, length), in the precision of the computation."""
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else widest_dtype(tensor.device)
    examples = tensor.numel() // (groups * length) if length else 0
    return tensor.reshape(examples, groups, length).to(wide)


def _row(parameter: Tensor, groups: int) -> Tensor:
    return parameter.reshape(groups, -1) if parameter.numel() else parameter.reshape(groups, 0)


def _statistics(x: Tensor, center: bool) -> Tensor:
    """Mean and variance of every row, shape (2, examples, groups, 1); without centering, 0 and the mean of squares."""
    mean = x.mean(-1, keepdim=True) if center else x.new_zeros((*x.shape[:2], 1))
    return torch.stack([mean, (x - mean).square().mean(-1, keepdim=True)])


def _standardized(x: Tensor, statistics: Tensor, eps: float) -> Tensor:
    return (x - statistics[0]) * (statistics[1] + eps).rsqrt()


def _affine(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        z = z * _row(weight, z.shape[1])
    return z if bias is None else z + _row(bias, z.shape[1])


def _rectified(value: Tensor, z: Tensor, slope: float) -> Tensor:
    """The value where z > 0 or NaN, `slope` times it elsewhere; 0 there, even for infinity, if the slope is 0."""
    if slope == 1:
        return value
    return torch.where(z <= 0, torch.zeros_like(value) if slope == 0 else value * slope, value)
