"""Batch, instance and group normalization with activation and residual: checks, choice of the backend, gradients.

The arithmetic is in `norm_channels_cpu`, `_gpu` and `_reference`. Not random.

Across processes, the statistics of all parts of a batch are gathered and merged between the two passes, forward and
backward. A part computes (input, weight, bias, residual and grad are its own; `output` as in `gradient_sums`):

    own = statistics(input, None)
    whole = merge(all_gather(own))                                    # (parts, 3, C) -> (3, C)
    output = normalize_with(input, whole, weight, bias, residual, eps, slope, None)
    ...
    sums, masked = gradient_sums(grad, input, whole, weight, bias, output, eps, slope, None)
    bias_grad, weight_grad = sums                                     # this part's share
    input_grad = input_gradient(grad, input, whole, weight, bias, all_reduce(sums), eps, slope, None)

With a residual, masked is the residual's gradient, and the last line takes it in place of grad, with slope 1. These
functions are the pieces of an autograd function and have no gradient of their own.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation, widest_dtype
from homeostat.kernels.layout import dense
from homeostat.kernels.operator import Operator, is_eager

_COMPILED = (torch.float32, torch.float64)
_HALVES = (torch.float16, torch.bfloat16)


def check(
    where: str,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mean: Tensor | None = None,
    variance: Tensor | None = None,
) -> None:
    """Raise, in the name of the callable `where`, unless these fit together."""
    dtype, shape = input.dtype, input.shape
    if not dtype.is_floating_point:
        raise invalid_type(where, "input", "be a floating tensor", input, "Convert it first, e.g. with .float().")
    if len(shape) < 2 or not shape[1]:
        raise invalid(where, "input", "have shape (N, C, ...) with at least one channel", input)
    own, device = shape[1:2], input.device
    for name, tensor in (("weight", weight), ("bias", bias), ("running_mean", mean), ("running_var", variance)):
        if tensor is None:
            continue
        if tensor.shape != own or tensor.device != device:
            raise invalid(where, name, f"have {own[0]} elements, one per channel, on {device}", tensor)
        if tensor.dtype is not dtype:
            _check_dtype(where, name, tensor, dtype)
    if residual is not None:
        if residual.dtype is not dtype:
            raise invalid_type(where, "residual", f"have the input's dtype, {dtype}", residual)
        if residual.shape != shape or residual.device != device:
            raise invalid(where, "residual", f"have the input's shape, {tuple(shape)}, on {device}", residual)


def _check_dtype(where: str, name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    """For a tensor of another dtype than the input's."""
    if name.startswith("running"):
        if not tensor.dtype.is_floating_point:
            raise invalid_type(where, name, "be a floating tensor", tensor)
    elif dtype not in _HALVES or tensor.dtype is not torch.float32:
        cure = "Only float16 and bfloat16 inputs may have a weight and bias of another dtype: float32."
        raise invalid_type(where, name, f"have the input's dtype, {dtype}", tensor, cure)


def merge(statistics: Tensor) -> Tensor:
    """The statistics of a whole from those of its parts, by Chan's formula.

    Args:
        statistics: (parts, 3, C), from `statistics`.
    Returns: (3, C): count, mean, sum of squared deviations.
    Source: Chan, Golub, LeVeque 1979.
    Example:
        >>> parts = torch.randn(2, 8, 4, dtype=torch.float64)
        >>> whole = merge(torch.stack([statistics(part, None) for part in parts]))
        >>> torch.allclose(whole, statistics(parts.flatten(0, 1), None))
        True
    """
    count, mean, squares = statistics.unbind(1)
    total = count.sum(0)
    center = (count * mean).sum(0) / total.clamp(min=1)
    return torch.stack([total, center, (squares + count * (mean - center).square()).sum(0)])


def normalize_with(
    input: Tensor,
    statistics: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    slope: float,
    backend: str | None,
) -> Tensor:
    """Normalize with the statistics (3, C) of the whole batch, as `merge` gives them."""
    mean, variance = statistics[1], statistics[2] / statistics[0]
    return affine.compute(input, mean, variance, weight, bias, residual, eps, slope, backend)


def update_running(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float | Tensor,
    correction: float,
) -> None:
    """running <- (1 - momentum) * running + momentum * new, in place; the new variance is multiplied by correction."""
    if _are_compiled_for(running_mean, running_var, mean, momentum):
        implementation("norm_channels", "numba").update_running(
            running_mean, running_var, mean, variance, momentum, correction
        )
        return
    with torch.no_grad():
        for running, new in ((running_mean, mean), (running_var, variance * correction)):
            if running is not None:
                weight = momentum.to(running.dtype) if isinstance(momentum, Tensor) else momentum
                running.lerp_(new.to(running.dtype), weight)


def _are_compiled_for(running_mean: Any, running_var: Any, mean: Tensor, momentum: Any) -> bool:
    """Whether these running statistics may be updated by the kernel: ordinary eager code on the CPU."""
    return (
        running_mean is not None
        and running_var is not None
        and mean.is_cpu
        and type(momentum) is float
        and running_mean.dtype is running_var.dtype
        and running_mean.dtype in _COMPILED
        and running_mean.is_contiguous()
        and running_var.is_contiguous()
        and is_eager(mean)
        and is_eager(running_mean)
    )


def _implementation(input: Tensor, backend: str | None) -> ModuleType:
    """A backend's functions; what numba's and triton's return is in the layout of `dense`."""
    return implementation("norm_channels", choose("norm_channels", input, backend))


def _in_layout(output: Tensor, input: Tensor) -> Tensor:
    """An output in the layout that kernels give it: the input's own, or the nearest dense one."""
    if output.stride() == input.stride():
        return output
    x, _ = dense(input)
    return output if output.stride() == x.stride() else torch.empty_like(x).copy_(output)


def _compute(input: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, mean, variance = _implementation(input, args[-1]).normalize(input, *args[:-1])
    return _in_layout(output, input), mean, variance


def _shape(input: Tensor, weight: Any, bias: Any, residual: Any, groups: int, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    shape = (input.shape[0], groups) if groups else (input.shape[1],)
    mean = input.new_empty(shape, dtype=widest_dtype(input.device))
    return torch.empty_like(dense(input)[0]), mean, torch.empty_like(mean)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    """With a residual the activation's side is read off the output; without, it is computed again."""
    input, weight, bias, residual, *settings = inputs
    normalized, mean, variance = output
    kept = normalized if residual is not None and settings[2] != 1 else None
    ctx.save_for_backward(input, weight, bias, kept, mean, variance)
    ctx.mark_non_differentiable(mean, variance)
    ctx.set_materialize_grads(False)
    ctx.settings = settings


def _gradient(ctx: Any, grad: Tensor, *_: None) -> tuple[Any, ...]:
    input, weight, bias, output, mean, variance = ctx.saved_tensors
    groups, eps, slope, backend = ctx.settings
    if torch.is_grad_enabled():
        dx, dw, db, dr = implementation("norm_channels", "reference").gradient(
            grad, input, weight, bias, output, None, None, groups, eps, slope
        )
    else:
        dx, dw, db, dr = normalize_backward(
            grad, input, weight, bias, output, mean, variance, groups, eps, slope, backend
        )
    if output is None:
        dr = grad if ctx.needs_input_grad[3] else None
    return dx, None if weight is None else dw, None if bias is None else db, dr, None, None, None, None


def _compute_backward(grad: Tensor, input: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dw, db, masked = _implementation(input, args[-1]).gradient(grad, input, *args[:-1])
    return _in_layout(dx, input), dw, db, masked if args[2] is None else _in_layout(masked, input)


def _shape_backward(
    grad: Tensor, input: Tensor, weight: Tensor | None, bias: Tensor | None, output: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, _last = dense(input)
    dw, db = ((input if parameter is None else parameter).new_empty(input.shape[1]) for parameter in (weight, bias))
    return torch.empty_like(x), dw, db, input.new_empty(0) if output is None else torch.empty_like(x)


def _batch(info: Any, in_dims: tuple[Any, ...], input: Tensor, *args: Any) -> Any:
    """Sets of one example: more examples. Other normalizations of a batch need a loop."""
    weight, bias, residual, groups, *settings = args
    at, at_weight, at_bias, at_residual = in_dims[:4]
    if not groups or at is None or at_weight is not None or at_bias is not None:
        return normalize._loop(info, in_dims, input, *args)
    input = input.movedim(at, 0)
    sizes = input.shape[:2]
    if residual is not None:
        residual = residual.expand(input.shape) if at_residual is None else residual.movedim(at_residual, 0)
        residual = residual.flatten(0, 1)
    outputs = normalize(input.flatten(0, 1), weight, bias, residual, groups, *settings)
    return tuple(output.unflatten(0, sizes) for output in outputs), (0, 0, 0)


normalize = Operator(
    "norm_channels(Tensor input, Tensor? weight, Tensor? bias, Tensor? residual, int groups, float eps, float slope, "
    "str? backend) -> (Tensor, Tensor, Tensor)",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
    batch=_batch,
)
"""Normalize sets of channels: y = act((x - mean) / sqrt(variance + eps) * weight + bias + residual).

Args:
    input: (N, C, ...), floating. weight, bias: (C,), or None. residual: like input, or None.
    groups: 0 for batch normalization, one set per channel; else sets of C / groups channels of one example.
    slope: act(z) = z if z > 0 else slope * z; 1: identity, 0: relu.
Returns: output, in input's layout; mean and variance (biased), float64, (C,) or (N, groups), without gradient.
Source: Ioffe and Szegedy 2015, arXiv:1502.03167; Wu and He 2018, arXiv:1803.08494.
"""

normalize_backward = Operator(
    "norm_channels_backward(Tensor grad, Tensor input, Tensor? weight, Tensor? bias, Tensor? output, Tensor mean, "
    "Tensor variance, int groups, float eps, float slope, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _compute_backward,
    _shape_backward,
)
"""The gradients of `normalize`, see `norm_channels_reference`; it has no gradient of its own."""


def _compute_affine(input: Tensor, *args: Any) -> Tensor:
    return _in_layout(_implementation(input, args[-1]).affine(input, *args[:-1]), input)


def _shape_affine(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(input)[0])


def _setup_affine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, mean, variance, weight, bias, residual, *settings = inputs
    kept = output if residual is not None and settings[1] != 1 else None
    ctx.save_for_backward(input, mean, variance, weight, bias, kept)
    ctx.settings = settings


def _gradient_affine(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, mean, variance, weight, bias, output = ctx.saved_tensors
    eps, slope, backend = ctx.settings
    if torch.is_grad_enabled():
        dx, dw, db, dr = implementation("norm_channels", "reference").affine_gradient(
            grad, input, mean, variance, weight, bias, output, eps, slope
        )
    else:
        dx, dw, db, dr = affine_backward(grad, input, mean, variance, weight, bias, output, eps, slope, backend)
    if output is None:
        dr = grad if ctx.needs_input_grad[5] else None
    return dx, None, None, None if weight is None else dw, None if bias is None else db, dr, None, None, None


def _compute_affine_backward(grad: Tensor, input: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx, dw, db, masked = _implementation(input, args[-1]).affine_gradient(grad, input, *args[:-1])
    return _in_layout(dx, input), dw, db, masked if args[4] is None else _in_layout(masked, input)


def _shape_affine_backward(grad: Tensor, input: Tensor, mean: Any, variance: Any, *args: Any) -> Any:
    return _shape_backward(grad, input, *args)


affine = Operator(
    "norm_channels_affine(Tensor input, Tensor mean, Tensor variance, Tensor? weight, Tensor? bias, Tensor? residual, "
    "float eps, float slope, str? backend) -> Tensor",
    _compute_affine,
    _shape_affine,
    setup=_setup_affine,
    gradient=_gradient_affine,
)
"""`normalize` with given mean and variance (C,), which are constants: batch normalization in inference."""

affine_backward = Operator(
    "norm_channels_affine_backward(Tensor grad, Tensor input, Tensor mean, Tensor variance, Tensor? weight, "
    "Tensor? bias, Tensor? output, float eps, float slope, str? backend) -> (Tensor, Tensor, Tensor, Tensor)",
    _compute_affine_backward,
    _shape_affine_backward,
)
"""The gradients of `affine`; it has no gradient of its own."""


def _compute_statistics(input: Tensor, backend: str | None) -> Tensor:
    return _implementation(input, backend).statistics(input)


def _shape_statistics(input: Tensor, backend: str | None) -> Tensor:
    return input.new_empty((3, input.shape[1]), dtype=widest_dtype(input.device))


statistics = Operator(
    "norm_channels_statistics(Tensor input, str? backend) -> Tensor", _compute_statistics, _shape_statistics
)
"""Count, mean and sum of squared deviations of every channel of (N, C, ...), float64 (3, C); for `merge`."""


def _compute_sums(grad: Tensor, input: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    sums, masked = _implementation(input, args[-1]).gradient_sums(grad, input, *args[:-1])
    return sums, masked if args[3] is None else _in_layout(masked, input)


def _shape_sums(grad: Tensor, input: Tensor, statistics: Tensor, weight: Any, bias: Any, output: Any, *_: Any) -> Any:
    masked = input.new_empty(0) if output is None else torch.empty_like(dense(input)[0])
    return statistics.new_empty((2, input.shape[1])), masked


gradient_sums = Operator(
    "norm_channels_gradient_sums(Tensor grad, Tensor input, Tensor statistics, Tensor? weight, Tensor? bias, "
    "Tensor? output, float eps, float slope, str? backend) -> (Tensor, Tensor)",
    _compute_sums,
    _shape_sums,
)
"""Sums over a part of a batch: of d and of d * normalized input, (2, C), where d is the gradient before the activation.

They are the gradients of bias and weight. statistics: (3, C), of the whole batch. output: with a residual and an
activation, what the forward pass gave; then d is returned too, as the residual's gradient. Else None.
"""


def _compute_input_gradient(grad: Tensor, input: Tensor, *args: Any) -> Tensor:
    return _in_layout(_implementation(input, args[-1]).input_gradient(grad, input, *args[:-1]), input)


def _shape_input_gradient(grad: Tensor, input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(dense(input)[0])


input_gradient = Operator(
    "norm_channels_input_gradient(Tensor grad, Tensor input, Tensor statistics, Tensor? weight, Tensor? bias, "
    "Tensor sums, float eps, float slope, str? backend) -> Tensor",
    _compute_input_gradient,
    _shape_input_gradient,
)
"""The gradient of a part of the input from the statistics and `gradient_sums` of the whole batch."""
