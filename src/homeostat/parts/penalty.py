"""L1, L2 and elastic net penalties, decoupled weight decay, the proximal step, and which parameters they should reach.

A penalty adds to the loss, and so to the gradient, before the optimizer scales it; decoupled decay shrinks the weights
after it. Under plain SGD the two are the same; under Adam a penalty's gradient is divided by the gradient's own size,
so that weights whose gradients are large hardly shrink, while decoupled decay shrinks all alike (Loshchilov & Hutter
2019, arXiv:1711.05101). A gradient step on |w| jumps over zero; the proximal step lands on it. Biases, normalization
scales and shifts, and other vectors should be exempt: see `split_parameters`. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import invalid, invalid_type
from homeostat.parts.norm import is_norm

Parameters = Tensor | Iterable[Tensor]


def l1_penalty(parameters: Parameters) -> Tensor:
    """The sum of |w| over all weights, differentiable; its gradient is sign(w), 0 at 0.

    Args:
        parameters: one tensor or several; one that comes twice counts once.
    Returns: shape (), at least float32, on the first parameter's device.
    Source: Tibshirani 1996, doi:10.1111/j.2517-6161.1996.tb02080.x.
    Example:
        >>> l1_penalty(torch.tensor([3.0, -4.0]))
        tensor(7.)
    """
    return _total([_wide(weight).abs().sum() for weight in distinct(parameters, "l1_penalty")])


def l2_penalty(parameters: Parameters) -> Tensor:
    """Half the sum of w² over all weights, differentiable; its gradient is w.

    Args:
        parameters: one tensor or several; one that comes twice counts once.
    Returns: shape (), at least float32, on the first parameter's device.
    Source: Krogh & Hertz 1991, "A simple weight decay can improve generalization".
    Example:
        >>> l2_penalty(torch.tensor([3.0, -4.0]))
        tensor(12.5000)
    """
    return _total([_wide(weight).square().sum() / 2 for weight in distinct(parameters, "l2_penalty")])


def elastic_net_penalty(parameters: Parameters, l1: float, l2: float) -> Tensor:
    """l1 · Σ|w| + l2 · ½Σw², differentiable; its gradient is l1 · sign(w) + l2 · w.

    Also written λ (β w² + |w|): that is l1 = λ and l2 = 2βλ.

    Args:
        parameters: one tensor or several; one that comes twice counts once.
        l1: λ₁, the weight of the absolute values; >= 0.
        l2: λ₂, the weight of half the squares; >= 0.
    Returns: shape (), at least float32, on the first parameter's device.
    Raises: InvalidValue if l1 or l2 is negative or not finite.
    Source: Zou & Hastie 2005, doi:10.1111/j.1467-9868.2005.00503.x.
    Example:
        >>> elastic_net_penalty(torch.tensor([3.0, -4.0]), l1=1.0, l2=0.5)
        tensor(13.2500)
    """
    _check_factors("elastic_net_penalty", l1=l1, l2=l2)
    weights = distinct(parameters, "elastic_net_penalty")
    return l1 * l1_penalty(weights) + l2 * l2_penalty(weights)


def penalty_by_layer(model: nn.Module, penalty: Callable[[Parameters], Tensor] | None = None) -> dict[str, Tensor]:
    """What each layer contributes to a penalty over the whole model: layer name -> shape (), differentiable.

    Biases, normalization and vectors are exempt, as `split_parameters` says; layers without a penalized parameter are
    left out. A shared parameter counts with the first layer that has it. For penalties that are sums over weights, the
    values add up to the penalty of all.

    Args:
        model: its trainable parameters are penalized; those of the model itself appear under the name "".
        penalty: maps a list of tensors to a number: `l1_penalty`, or one of your own; None: `l2_penalty`.
    Example:
        >>> layers = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
        >>> for layer in (layers[0], layers[2]):
        ...     _ = nn.init.ones_(layer.weight)
        >>> {name: value.item() for name, value in penalty_by_layer(layers, l1_penalty).items()}
        {'0': 6.0, '2': 3.0}
    """
    penalty = l2_penalty if penalty is None else penalty
    if not callable(penalty):
        raise invalid_type("penalty_by_layer", "penalty", "be a function such as l1_penalty", penalty)
    reached = {id(parameter) for parameter in _split("penalty_by_layer", model, ())[0]}
    layers: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in reached:
            layers.setdefault(name.rpartition(".")[0], []).append(parameter)
    return {name: penalty(parameters) for name, parameters in layers.items()}


@torch.no_grad()
def add_penalty_gradients_(parameters: Parameters, l1: float = 0.0, l2: float = 0.0) -> None:
    """Add the gradient of l1 · Σ|w| + l2 · ½Σw² to `.grad`: g <- g + l1 · sign(w) + l2 · w.

    The same as adding the two penalties to the loss, without their part of the graph. Call it after the backward pass
    (with a gradient scaler: after unscaling) and before clipping or the step.

    Args:
        parameters: tensors with `.grad`; those without are skipped, and one that comes twice is penalized once.
        l1: λ₁, the weight of the absolute values; >= 0.
        l2: λ₂, the weight of half the squares; >= 0. Both together are the elastic net.
    Raises: InvalidValue if l1 or l2 is negative or not finite, or a gradient is sparse.
    Source: Zou & Hastie 2005, doi:10.1111/j.1467-9868.2005.00503.x (elastic net).
    Example:
        >>> weight = torch.tensor([2.0, -2.0], requires_grad=True)
        >>> weight.grad = torch.zeros(2)
        >>> add_penalty_gradients_(weight, l1=0.5, l2=0.25)
        >>> weight.grad
        tensor([ 1., -1.])
    """
    _check_factors("add_penalty_gradients_", l1=l1, l2=l2)
    weights, gradients = with_gradients(parameters, "add_penalty_gradients_")
    if not weights:
        return
    if l2:
        torch._foreach_add_(gradients, weights, alpha=l2)
    if l1:
        torch._foreach_add_(gradients, torch._foreach_sign(weights), alpha=l1)


@torch.no_grad()
def decay_weights_(parameters: Parameters, factor: float) -> None:
    """Shrink all weights: w <- factor · w, the decoupled form of weight decay.

    Args:
        parameters: tensors of any kind; one that comes twice is shrunk once.
        factor: 1 - lr · weight_decay, in [0, 1].
    Raises: InvalidValue if factor lies outside [0, 1].
    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    Example:
        >>> weight = torch.tensor([2.0, -4.0])
        >>> decay_weights_(weight, 1 - 0.1 * 0.5)
        >>> weight
        tensor([ 1.9000, -3.8000])
    """
    if not isinstance(factor, Real | Tensor):
        raise invalid_type("decay_weights_", "factor", "be a number", factor)
    if not 0 <= factor <= 1:
        cure = "It is 1 - lr * weight_decay; a product above 1 would turn the weights' signs."
        raise invalid("decay_weights_", "factor", "lie in [0, 1]", factor, cure)
    weights = distinct(parameters, "decay_weights_")
    if weights and factor != 1:
        torch._foreach_mul_(weights, factor)


@torch.no_grad()
def soft_threshold_(parameters: Parameters, threshold: float, shrinkage: float = 0.0) -> None:
    """Move all weights towards zero by `threshold`, and those nearer than that to exactly zero.

    w <- sign(w) · max(|w| - threshold, 0) / (1 + shrinkage): the proximal step of the elastic net, the minimum over v
    of ½(v - w)² + threshold · |v| + shrinkage · ½v². Call it after the optimizer's step, with threshold = lr · l1 and
    shrinkage = lr · l2; the loss then has no such penalty of its own. NaN stays NaN.

    Args:
        parameters: tensors of any kind; one that comes twice is moved once.
        threshold: lr · l1, in the weights' own unit; >= 0.
        shrinkage: lr · l2, without unit; >= 0.
    Raises: InvalidValue if threshold or shrinkage is negative or not finite.
    Source: Daubechies et al. 2004, doi:10.1002/cpa.20042; Parikh & Boyd 2014, "Proximal algorithms", section 6.5.
    Example:
        >>> weight = torch.tensor([2.0, -0.3, 0.5, -1.0])
        >>> soft_threshold_(weight, 0.5)
        >>> weight
        tensor([ 1.5000,  0.0000,  0.0000, -0.5000])
    """
    _check_factors("soft_threshold_", threshold=threshold, shrinkage=shrinkage)
    weights = distinct(parameters, "soft_threshold_")
    if weights and threshold:
        # w minus w clamped to ±threshold: a weight within loses itself, and so is zero without a rounding or a sign.
        within = torch._foreach_clamp_max(weights, threshold)
        torch._foreach_clamp_min_(within, -threshold)
        torch._foreach_sub_(weights, within)
    if weights and shrinkage:
        torch._foreach_div_(weights, 1 + shrinkage)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters in two lists: those that decay suits, and those that should be exempt from it.

    Exempt are biases, every parameter of a normalization layer, and everything with fewer than two dimensions. Frozen
    parameters are in neither list; a shared one is in one list once, exempt only if every use of it is.

    Returns: (decayed, exempt), in the model's order.
    Example:
        >>> decayed, exempt = split_parameters(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        >>> [tuple(weight.shape) for weight in decayed], len(exempt)
        ([(4, 3)], 3)
    """
    return _split("split_parameters", model, ())


def param_groups_weight_decay(
    model: nn.Module, weight_decay: float = 1e-5, no_weight_decay_list: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Two parameter groups for an optimizer: first the exempt ones with weight decay 0, then the others.

    Args:
        model: its trainable parameters are split as by `split_parameters`.
        weight_decay: that of the second group; >= 0.
        no_weight_decay_list: names of more parameters to exempt; shell patterns such as "embed*" match too. Of a
            shared parameter any name will do, and a name that the model does not have is passed over, as in timm.
    Raises: InvalidValue or InvalidType if an argument cannot be used.
    Source: `timm.optim.param_groups_weight_decay`, same name, arguments and order. timm goes by dimensions and the
        ending ".bias" alone: it lets normalization scales and biases of two and more dimensions decay.
    Example:
        >>> groups = param_groups_weight_decay(nn.Linear(3, 4), 0.05)
        >>> [(group["weight_decay"], len(group["params"])) for group in groups]
        [(0.0, 1), (0.05, 1)]
    """
    _check_factors("param_groups_weight_decay", weight_decay=weight_decay)
    if isinstance(no_weight_decay_list, str):
        cure = f"Pass [{no_weight_decay_list!r}]."
        raise invalid_type(
            "param_groups_weight_decay", "no_weight_decay_list", "be a list of names", no_weight_decay_list, cure
        )
    decayed, exempt = _split("param_groups_weight_decay", model, no_weight_decay_list)
    return [{"params": exempt, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def distinct(parameters: Parameters, where: str) -> list[Tensor]:
    """The tensors in their order, each one once; what holds none is an error in `where`'s name."""
    cure = "Give model.parameters(), a list of tensors, or one tensor."
    if isinstance(parameters, Tensor):
        return [parameters]
    if not isinstance(parameters, Iterable):
        raise invalid_type(where, "parameters", "be tensors", parameters, cure)
    tensors = {id(tensor): tensor for tensor in parameters}
    for tensor in tensors.values():
        if not isinstance(tensor, Tensor):
            raise invalid_type(where, "parameters", "hold tensors alone", tensor, cure)
    return list(tensors.values())


def with_gradients(parameters: Parameters, where: str) -> tuple[list[Tensor], list[Tensor]]:
    """The distinct tensors that have a gradient, and their gradients; a sparse gradient is an error in `where`'s
    name. Tensors without elements are left out."""
    weights = [tensor for tensor in distinct(parameters, where) if tensor.grad is not None and tensor.grad.numel()]
    gradients = [tensor.grad for tensor in weights if tensor.grad is not None]
    for gradient in gradients:
        if gradient.layout != torch.strided:
            raise invalid(
                where, "parameters", "have dense gradients", gradient, "Build the embedding with sparse=False."
            )
    return weights, gradients


def _split(
    where: str, model: nn.Module, exempt_names: Collection[str]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    if not isinstance(model, nn.Module):
        cure = "Parameters do not say which layer they belong to: pass the model itself."
        raise invalid_type(where, "model", "be a torch.nn.Module", model, cure)
    decays: dict[nn.Parameter, bool] = {}
    listed: set[nn.Parameter] = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full_name = f"{prefix}.{name}" if prefix else name
            if any(fnmatchcase(full_name, pattern) for pattern in exempt_names):
                listed.add(parameter)
            exempt = parameter.ndim < 2 or is_norm(module) or _is_bias(name)
            decays[parameter] = decays.get(parameter, False) or not exempt
    trainable = [parameter for parameter in decays if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if decays[parameter] and parameter not in listed]
    return decayed, [parameter for parameter in trainable if not decays[parameter] or parameter in listed]


def _check_factors(where: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, Real | Tensor):
            raise invalid_type(where, name, "be a number", value)
        if not (math.isfinite(value) and value >= 0):
            raise invalid(where, name, "be finite and at least 0", value)


def _is_bias(name: str) -> bool:
    return name == "bias" or name.endswith("_bias") or name.startswith("bias_")


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def _total(values: list[Tensor]) -> Tensor:
    if not values:
        return torch.zeros((), device="cpu")
    return torch.stack([value.to(values[0].device) for value in values]).sum()
