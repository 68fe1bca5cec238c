"""Gradient clipping: by the joint norm, which keeps the direction; by value, which does not; by unit, adaptively.

All work in place on `.grad`, by joint norm and by value with one fused call per step of the arithmetic, and none waits
for the device unless asked to. Not random.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.parts.penalty import Parameters, with_gradients

_NARROW = (torch.float16, torch.bfloat16)
_DOUBLE = (torch.float64, torch.complex128)


@torch.no_grad()
def clip_grad_norm_(
    parameters: Parameters,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    eps: float = 1e-6,
) -> Tensor:
    """Scale all gradients together so that their joint norm is at most `max_norm`.

    g <- g * min(1, max_norm / (||g|| + eps)), accumulated in at least float32. The direction of g is kept. Gradients
    whose squares overflow are clipped too. Where the norm is not finite no factor can mend g: the gradients stay as
    they are, and the returned norm says so.

    Args:
        parameters: tensors with `.grad`; those without are skipped, and one that comes twice counts once.
        max_norm: the bound, in the gradient's own unit; > 0. Infinity changes nothing, and so only measures.
        norm_type: p of the p-norm, > 0; infinity for the largest absolute value.
        error_if_nonfinite: raise an error, before anything is changed, if the norm is not finite. Waits for the device.
        foreach: False takes the tensors one by one instead of all together, with the same result.
        eps: keeps the division defined; > 0.
    Returns: the norm before clipping, shape (), on the first gradient's device; 0 where there is no gradient.
    Raises: InvalidValue if max_norm, norm_type or eps cannot be used, a gradient is sparse, or the norm is not finite
        and that was to be an error.
    Source: Pascanu et al. 2013, arXiv:1211.5063; arguments as `torch.nn.utils.clip_grad_norm_`, which turns all
        gradients into NaN or zero where the norm is not finite.
    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_(weight, max_norm=1.0), weight.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    bound = _positive(
        "clip_grad_norm_", "max_norm", max_norm, "Leave clipping out, or use inf to measure only.", math.inf
    )
    order = _positive("clip_grad_norm_", "norm_type", norm_type, "2 is the Euclidean norm.", math.inf)
    _positive("clip_grad_norm_", "eps", eps)
    _, gradients = with_gradients(parameters, "clip_grad_norm_")
    if not gradients:
        return torch.zeros((), device="cpu")
    total = _joint_norm(gradients, order, foreach is not False)
    if error_if_nonfinite and not total.isfinite():
        cure = "Look for inf or NaN in the loss, or let error_if_nonfinite be False to pass over such steps."
        raise invalid("clip_grad_norm_", "the gradients' norm", "be finite", total.item(), cure)
    wider = total.is_cuda and not any(gradient.dtype in _DOUBLE for gradient in gradients)
    dtype = torch.float32 if wider else total.dtype
    if bound < math.inf:
        factor = torch.where(total.isfinite(), (bound / (total + eps)).clamp(max=1.0), 1.0)
        _scale(gradients, factor.to(dtype), foreach)
    return total.to(dtype)


@torch.no_grad()
def clip_grad_value_(parameters: Parameters, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp every entry of every gradient into [-clip_value, clip_value]. The direction of the gradient changes.

    An infinite entry becomes ±clip_value; NaN stays NaN.

    Args:
        parameters: tensors with `.grad`; those without are skipped.
        clip_value: the bound, in the gradient's own unit; > 0 and finite.
        foreach: False takes the tensors one by one instead of all together, with the same result.
    Raises: InvalidValue if clip_value is not positive and finite, or a gradient is sparse.
    Source: Mikolov 2012, "Statistical language models based on neural networks", chapter 3.2; arguments as
        `torch.nn.utils.clip_grad_value_`.
    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, -0.5])
        >>> clip_grad_value_(weight, 1.0)
        >>> weight.grad
        tensor([ 1.0000, -0.5000])
    """
    bound = _positive("clip_grad_value_", "clip_value", clip_value)
    _, gradients = with_gradients(parameters, "clip_grad_value_")
    bounds = [min(bound, torch.finfo(gradient.dtype).max) for gradient in gradients]
    if foreach is False:
        for gradient, limit in zip(gradients, bounds, strict=True):
            gradient.clamp_(-limit, limit)
    elif gradients:
        torch._foreach_clamp_min_(gradients, [-limit for limit in bounds])
        torch._foreach_clamp_max_(gradients, bounds)


@torch.no_grad()
def adaptive_clip_grad_(
    parameters: Parameters, clip_factor: float = 0.01, eps: float = 1e-3, norm_type: float = 2.0
) -> None:
    """Scale each unit's gradient so that its norm is at most `clip_factor` times the norm of the unit's weights.

    g_i <- g_i * min(1, clip_factor * max(||w_i||, eps) / ||g_i||) for every unit i, in at least float32. A unit is an
    entry of the first dimension (a row of a Linear, a filter of a convolution); a bias, a scale or any other vector is
    one unit as a whole. A unit whose gradient is not finite stays as it is.

    Args:
        parameters: tensors with `.grad`; those without are skipped. Leave out the last layer, as the paper does.
        clip_factor: λ, without unit; > 0. The paper takes 0.01 to 0.16, smaller for larger batches.
        eps: the least norm that weights count with, so that those which start at zero can leave it; > 0.
        norm_type: p of the p-norm, > 0; infinity for the largest absolute value.
    Raises: InvalidValue if clip_factor, eps or norm_type cannot be used, or a gradient is sparse.
    Source: Brock et al. 2021, arXiv:2102.06171; arguments as `timm.utils.agc.adaptive_clip_grad`.
    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
        >>> weight.grad = torch.tensor([[0.0, 10.0], [0.0, 1e-6]])
        >>> adaptive_clip_grad_(weight)
        >>> weight.grad
        tensor([[0.0000e+00, 5.0000e-02],
                [0.0000e+00, 1.0000e-06]])
    """
    factor = _positive("adaptive_clip_grad_", "clip_factor", clip_factor)
    least = _positive("adaptive_clip_grad_", "eps", eps)
    order = _positive("adaptive_clip_grad_", "norm_type", norm_type, "2 is the Euclidean norm.", math.inf)
    for weight, gradient in zip(*with_gradients(parameters, "adaptive_clip_grad_"), strict=True):
        bound = _unit_norms(weight, order).clamp(min=least) * factor
        norm = _unit_norms(gradient, order)
        scale = torch.where(norm.isfinite() & (norm > bound), bound / norm, 1.0)
        gradient.mul_(scale)


def _joint_norm(gradients: list[Tensor], order: float, together: bool) -> Tensor:
    """The norm of all gradients, on the first one's device; float64 on a GPU."""
    device = gradients[0].device
    if _sums(gradients[0]):
        norms = [norm.to(device) for norm in _norms(gradients, order, together)]
        total = torch.linalg.vector_norm(torch.stack(norms), order)
        if total.is_cuda or math.isfinite(total.item()):
            return total
    norms = [_scaled_norm(gradient, order).to(device) for gradient in gradients]
    return _scaled_norm(torch.stack(norms), order)


def _norms(gradients: list[Tensor], order: float, together: bool) -> list[Tensor]:
    """Each gradient's norm, in any order."""
    if not together:
        return [torch.linalg.vector_norm(gradient, order, dtype=_wide(gradient)) for gradient in gradients]
    groups: dict[torch.dtype | None, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(_wide(gradient), []).append(gradient)
    return [norm for dtype, group in groups.items() for norm in torch._foreach_norm(group, order, dtype=dtype)]


def _unit_norms(tensor: Tensor, order: float) -> Tensor:
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    if _sums(tensor):
        norms = torch.linalg.vector_norm(tensor, order, dims, keepdim=tensor.ndim > 1, dtype=_wide(tensor))
        if tensor.is_cuda or norms.isfinite().all():
            return norms
    return _scaled_norm(tensor, order, dims)


def _sums(tensor: Tensor) -> bool:
    """Whether powers are summed as they are: CUDA sums them in float64, and on a CPU a look shows if they overflowed.

    In compiled code nobody can look.
    """
    return tensor.is_cuda or (tensor.device.type == "cpu" and not torch.compiler.is_compiling())


def _scaled_norm(tensor: Tensor, order: float, dims: tuple[int, ...] | None = None) -> Tensor:
    """A norm by way of entries divided by the largest, whose powers cannot overflow."""
    x = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    largest = torch.linalg.vector_norm(x, math.inf, dims, keepdim=dims is not None)
    unit = torch.where(largest.isfinite() & (largest > 0), largest, 1.0)
    return torch.linalg.vector_norm(x / unit, order, dims, keepdim=dims is not None) * unit


def _scale(gradients: list[Tensor], factor: Tensor, foreach: bool | None) -> None:
    groups: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(gradient.device, []).append(gradient)
    for device, group in groups.items():
        if foreach is not False:
            torch._foreach_mul_(group, factor.to(device))
        else:
            for gradient in group:
                gradient.mul_(factor.to(device))


def _wide(tensor: Tensor) -> torch.dtype | None:
    """What powers are summed in; None: the tensor's own dtype."""
    if tensor.is_cuda and tensor.dtype in (*_NARROW, torch.float32):
        return torch.float64
    return torch.float32 if tensor.dtype in _NARROW else None


def _positive(where: str, argument: str, value: float, cure: str = "", largest: float = sys.float_info.max) -> float:
    """The value as a float, if it is a number above 0 and at most `largest`; torch also takes the text "inf"."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise invalid_type(where, argument, "be a number", value) from None
    if not 0 < number <= largest:
        raise invalid(where, argument, "be positive" if largest == math.inf else "be positive and finite", value, cure)
    return number
