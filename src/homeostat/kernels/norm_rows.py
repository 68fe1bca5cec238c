"""Normalization of rows: layer norm, RMS norm, group norm of inputs without positions; with activation and residual.

Checks, choice of the backend and gradient; the arithmetic is in `norm_rows_cpu`, `_gpu` and `_reference`. Not random.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation, widest_dtype
from homeostat.kernels.operator import Operator

_HALVES = (torch.float16, torch.bfloat16)


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
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize every run of `length` values of the input, counted in row-major order.

    y = act((x - mean) / sqrt(variance + eps) * weight + bias + residual), act(z) = z if z > 0 else slope * z.

    Args:
        input: floating, any shape whose size is a multiple of length * groups.
        weight, bias: length * groups values; row r uses those from (r % groups) * length on. Or None.
        residual: added before the activation; like the input. Or None.
        length: values per row. groups: rows per example.
        center: without it, mean is taken as 0, and variance is the mean of squares.
        slope: of the activation: 1 identity, 0 relu.
    Returns: output (contiguous); mean and variance (biased), `widest_dtype`, shape (rows,), which have no gradient.
    Raises: InvalidValue, InvalidType for sizes, dtypes and devices that do not fit.
    Source: Ba et al. 2016, arXiv:1607.06450; Zhang and Sennrich 2019, arXiv:1910.07467;
            Wu and He 2018, arXiv:1803.08494.
    """
    check("normalize", input, weight, bias, residual, length * groups)
    output, statistics = norm_rows(input, weight, bias, residual, length, groups, eps, center, slope, backend)
    return output, statistics[0], statistics[1]


def check(
    where: str, input: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, size: int
) -> None:
    """Raise, in the name of the callable `where`, unless these fit together, in examples of `size` values."""
    dtype = input.dtype
    if not dtype.is_floating_point:
        raise invalid_type(where, "input", "be a floating tensor", input, "Convert it first, e.g. with .float().")
    if input.numel() and (size < 1 or input.numel() % size):
        raise invalid(where, "input", f"have a multiple of {size} elements", input)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.dtype is not dtype and not (dtype in _HALVES and tensor.dtype is torch.float32):
            cure = "Only float16 and bfloat16 inputs may have a weight and bias of another dtype: float32."
            raise invalid_type(where, name, f"have the input's dtype, {dtype}", tensor, cure)
        if tensor.numel() != size or tensor.device != input.device:
            raise invalid(where, name, f"have {size} elements on the input's device, {input.device}", tensor)
    if weight is not None and bias is not None and weight.dtype is not bias.dtype:
        raise invalid_type(where, "bias", f"have the weight's dtype, {weight.dtype}", bias)
    if residual is not None:
        if residual.dtype is not dtype:
            raise invalid_type(where, "residual", f"have the input's dtype, {dtype}", residual)
        if residual.shape != input.shape or residual.device != input.device:
            condition = f"have the input's shape, {tuple(input.shape)}, and device, {input.device}"
            raise invalid(where, "residual", condition, residual)


def _compute(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    module = implementation("norm_rows", choose("norm_rows", input, backend))
    return module.normalize(input, weight, bias, residual, length, groups, eps, center, slope)


def _compute_gradient(
    grad: Tensor,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output: Tensor | None,
    statistics: Tensor,
    length: int,
    groups: int,
    eps: float,
    center: bool,
    slope: float,
    affine: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    module = implementation("norm_rows", choose("norm_rows", input, backend))
    return module.gradient(grad, input, weight, bias, output, statistics, length, groups, eps, center, slope, affine)


def _shape(input: Tensor, weight: Any, bias: Any, residual: Any, length: int, *_: Any) -> tuple[Tensor, Tensor]:
    rows = input.numel() // length if length else 0
    output = torch.empty_like(input, memory_format=torch.contiguous_format)
    return output, input.new_empty((2, rows), dtype=widest_dtype(input.device))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    """With a residual the activation's side is read off the output; without, it is computed again."""
    input, weight, bias, residual, *settings = inputs
    y = output[0] if residual is not None and settings[4] != 1 else None
    ctx.save_for_backward(input, weight, bias, y, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.settings = settings


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    length, groups, eps, center, slope, backend = ctx.settings
    input, weight, bias, output, statistics = ctx.saved_tensors
    need, need_weight, need_bias, need_residual = ctx.needs_input_grad[:4]
    affine = need_weight or need_bias
    if torch.is_grad_enabled():
        from homeostat.kernels import norm_rows_reference

        dx, dw, db, dr = norm_rows_reference.gradient(
            grad, input, weight, bias, output, None, length, groups, eps, center, slope, affine
        )
    else:
        dx, dw, db, dr = norm_rows_gradient(
            grad, input, weight, bias, output, statistics, length, groups, eps, center, slope, affine, backend
        )
    if output is None:
        dr = grad
    return (
        dx if need else None, dw if need_weight else None, db if need_bias else None, dr if need_residual else None,
        None, None, None, None, None, None,
    )  # fmt: skip


def _shape_gradient(grad: Tensor, input: Tensor, weight: Any, bias: Any, output: Any, *settings: Any) -> Any:
    def like(tensor: Tensor | None, wanted: bool) -> Tensor:
        if tensor is None or not wanted:
            return input.new_empty(0)
        return torch.empty_like(tensor, memory_format=torch.contiguous_format)

    affine = settings[6]
    return like(input, True), like(weight, affine), like(bias, affine), like(output, True)


def _batch(info: Any, in_dims: tuple[Any, ...], input: Tensor, *args: Any) -> Any:
    """More examples are more rows; weights or biases that differ between the examples of a batch need a loop."""
    weight, bias, residual, *settings = args
    at, at_weight, at_bias, at_residual = in_dims[:4]
    if at is None or at_weight is not None or at_bias is not None:
        return norm_rows._loop(info, in_dims, input, *args)
    input = input.movedim(at, 0)
    if residual is not None:
        residual = residual.expand(input.shape) if at_residual is None else residual.movedim(at_residual, 0)
    output, statistics = norm_rows(input, weight, bias, residual, *settings)
    return (output, statistics.unflatten(1, (info.batch_size, -1))), (0, 1)


norm_rows = Operator(
    "norm_rows(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, int length, int groups, float eps, "
    "bool center, float slope, str? backend) -> (Tensor, Tensor)",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
    batch=_batch,
)
"""Output and statistics, (2, rows): mean and variance, without gradient. Arguments as for `normalize`."""

norm_rows_gradient = Operator(
    "norm_rows_gradient(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor? output, Tensor statistics, "
    "int length, int groups, float eps, bool center, float slope, bool affine, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _compute_gradient,
    _shape_gradient,
)
"""The gradients of input, weight, bias and residual, by the closed form; it has no gradient of its own.

weight's and bias's are empty where there is none or without `affine`. `output` is given if there was a residual and an
activation; then, and only then, the last is the residual's gradient; otherwise it is empty.
"""
