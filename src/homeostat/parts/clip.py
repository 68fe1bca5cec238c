"""Gradient clipping: by the joint norm, which keeps the direction, and by value, which does not.

Both work in place on `.grad`, with one fused call per step of the arithmetic, and never wait for the device.
Not random.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.errors import invalid
from homeostat.parts.penalty import Parameters, with_gradients

_NARROW = (torch.float16, torch.bfloat16)


@torch.no_grad()
def clip_grad_norm_(parameters: Parameters, max_norm: float, *, eps: float = 1e-6) -> Tensor:
    """Scale all gradients together so that their joint L2 norm is at most `max_norm`.

    g <- g * min(1, max_norm / (||g|| + eps)), accumulated in at least float32. The direction of g is kept. Where the
    norm is not finite no factor can mend g: the gradients stay as they are, and the returned norm says so.

    Args:
        parameters: tensors with `.grad`; those without are skipped, and one that comes twice counts once.
        max_norm: the bound, in the gradient's own unit; > 0 and finite.
        eps: keeps the division defined; > 0.
    Returns: the norm before clipping, shape (), on the first gradient's device; 0 where there is no gradient.
    Raises: InvalidValue if max_norm or eps is not positive and finite, or a gradient is sparse.
    Source: Pascanu et al. 2013, arXiv:1211.5063.
    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> clip_grad_norm_(weight, max_norm=1.0), weight.grad
        (tensor(5.), tensor([0.6000, 0.8000]))
    """
    for name, value in (("max_norm", max_norm), ("eps", eps)):
        if not (math.isfinite(value) and value > 0):
            raise invalid("clip_grad_norm_", name, "be positive and finite", value)
    _, gradients = with_gradients(parameters, "clip_grad_norm_")
    if not gradients:
        return torch.zeros(())
    norms = _norms(gradients)
    total = torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device) for norm in norms]))
    factor = torch.where(total.isfinite(), (max_norm / (total + eps)).clamp(max=1.0), 1.0)
    for device, group in _by_device(gradients).items():
        torch._foreach_mul_(group, factor.to(device))
    return total


@torch.no_grad()
def clip_grad_value_(parameters: Parameters, clip_value: float) -> None:
    """Clamp every entry of every gradient into [-clip_value, clip_value]. The direction of the gradient changes.

    An infinite entry becomes ±clip_value; NaN stays NaN.

    Args:
        parameters: tensors with `.grad`; those without are skipped.
        clip_value: the bound, in the gradient's own unit; > 0 and finite.
    Raises: InvalidValue if clip_value is not positive and finite, or a gradient is sparse.
    Source: Mikolov 2012, "Statistical language models based on neural networks", chapter 3.2.
    Example:
        >>> weight = torch.zeros(2, requires_grad=True)
        >>> weight.grad = torch.tensor([3.0, -0.5])
        >>> clip_grad_value_(weight, 1.0)
        >>> weight.grad
        tensor([ 1.0000, -0.5000])
    """
    if not (math.isfinite(clip_value) and clip_value > 0):
        raise invalid("clip_grad_value_", "clip_value", "be positive and finite", clip_value)
    _, gradients = with_gradients(parameters, "clip_grad_value_")
    if gradients:
        torch._foreach_clamp_min_(gradients, -clip_value)
        torch._foreach_clamp_max_(gradients, clip_value)


def _norms(gradients: list[Tensor]) -> list[Tensor]:
    """Each gradient's L2 norm; sums of half-precision squares overflow, so those are taken in float32."""
    narrow = [gradient for gradient in gradients if gradient.dtype in _NARROW]
    wide = [gradient for gradient in gradients if gradient.dtype not in _NARROW]
    norms = list(torch._foreach_norm(wide, 2)) if wide else []
    return norms + (list(torch._foreach_norm(narrow, 2, dtype=torch.float32)) if narrow else [])


def _by_device(gradients: list[Tensor]) -> dict[torch.device, list[Tensor]]:
    groups: dict[torch.device, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(gradient.device, []).append(gradient)
    return groups
