"""How much curvature an optimizer stands: the limit on the sharpness, in the metric in which it takes its steps.

On a quadratic, a step of size lr along an eigenvector with eigenvalue a multiplies the distance by 1 - lr a, and
diverges beyond a = 2 / lr. Momentum moves that limit, and an adaptive optimizer steps by the inverse of a diagonal P,
so that what counts are the eigenvalues of P^-1 H. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop


@dataclass(frozen=True)
class Stability:
    """The limit of an optimizer and the metric it holds in."""

    limit: float
    """The largest eigenvalue in that metric at which steps do not diverge; NaN where no theory gives one."""
    preconditioned: bool = False
    """Whether the metric is the optimizer's own."""
    scales: tuple[Tensor | float, ...] = field(default=())
    """For each parameter what an entry of the gradient is multiplied by, in units of the largest learning rate."""
    decays: tuple[float, ...] = ()
    """For each parameter the penalty that the optimizer adds to the Hessian's diagonal."""
    sign: float = 1.0
    """-1 for an optimizer that maximizes."""
    note: str = ""
    """Why there is no limit."""


def stability_of(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Stability:
    """The limit on the sharpness for an optimizer in its present state.

    | optimizer | limit | P |
    |---|---|---|
    | SGD | 2 (1 + m) / (lr (1 - dampening)) | 1 |
    | SGD, Nesterov | 2 (1 + m) / (lr (1 + 2 m)) | 1 |
    | Adam, AdamW | 2 (1 + b1) / (lr (1 - b1)), 38 / lr for b1 = 0.9 | (1 - b1^t) (sqrt(v / (1 - b2^t)) + eps) |
    | RMSprop | 2 (1 + m) / lr | sqrt(v) + eps |
    | Adagrad | 2 / lr | sqrt(sum) + eps |

    The recursion of a coordinate on a quadratic is z^2 - (1 + m - lr g a) z + m = 0, with g the weight of the newest
    gradient: 1 - dampening for SGD, 1 - b1 for Adam. Its roots leave the unit circle at z = -1, where
    lr g a = 2 (1 + m). Weight decay of the coupled kind adds to H; decoupled decay is left out: it moves the limit by
    lr * weight_decay, relatively.

    Args:
        parameters: those whose Hessian is meant, in its order.
    Returns: the limit, in units of the largest learning rate among the groups; NaN with a note for other optimizers,
        groups with different momentum, and adaptive optimizers that have not taken a step.
    Source: Cohen et al. 2021, arXiv:2103.00065 (SGD); Cohen et al. 2022, arXiv:2207.14484 (adaptive optimizers).
    """
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    ours = [groups[id(parameter)] for parameter in parameters]
    rates = [float(group["lr"]) for group in ours]
    limits = {_limit(optimizer, group) for group in ours}
    largest = max(rates, default=0.0)
    if len(limits) != 1 or math.isnan(limit := next(iter(limits))):
        return Stability(math.nan, note=_reason(optimizer, limits))
    if largest <= 0:
        return Stability(math.nan, note="the learning rate is not positive")
    scales: list[Tensor | float] = []
    for parameter, rate in zip(parameters, rates, strict=True):
        metric = _metric(optimizer, optimizer.state.get(parameter, {}), groups[id(parameter)])
        if metric is None:
            return Stability(math.nan, note="the optimizer has not taken a step yet")
        scales.append(rate / largest / metric)
    coupled = [0.0 if _decoupled(optimizer, group) else float(group.get("weight_decay", 0.0)) for group in ours]
    signs = {-1.0 if group.get("maximize") else 1.0 for group in ours}
    if len(signs) > 1:
        return Stability(math.nan, note="some of its groups maximize and some minimize")
    adaptive = not isinstance(optimizer, SGD)
    return Stability(limit / largest, adaptive, tuple(scales), tuple(coupled), signs.pop())


def _limit(optimizer: Optimizer, group: dict[str, Any]) -> float:
    """The limit times the learning rate."""
    if isinstance(optimizer, SGD):
        momentum = float(group["momentum"])
        if group["nesterov"]:
            return 2 * (1 + momentum) / (1 + 2 * momentum)
        newest = 1 - float(group["dampening"]) if momentum else 1.0
        return 2 * (1 + momentum) / newest if newest > 0 else math.nan
    if isinstance(optimizer, Adam | AdamW):
        beta = float(group["betas"][0])
        return 2 * (1 + beta) / (1 - beta)
    if isinstance(optimizer, RMSprop):
        return 2 * (1 + float(group["momentum"]))
    return 2.0 if isinstance(optimizer, Adagrad) else math.nan


@torch.no_grad()
def _metric(optimizer: Optimizer, state: dict[str, Any], group: dict[str, Any]) -> Tensor | float | None:
    """P of a parameter; None if the optimizer does not know it yet."""
    if isinstance(optimizer, SGD):
        return 1.0
    steps = float(state.get("step", 0))
    if not steps:
        return None
    eps = float(group["eps"])
    if isinstance(optimizer, Adam | AdamW):
        first, second = (float(beta) for beta in group["betas"])
        squares = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        metric: Tensor = (squares / (1 - second**steps)).sqrt_().add_(eps).mul_(1 - first**steps)
        return metric
    if isinstance(optimizer, RMSprop):
        squares = state["square_avg"]
        if group["centered"]:
            squares = (squares - state["grad_avg"].square()).clamp_(min=0)
        return squares.sqrt().add_(eps)
    slower = 1 + (steps - 1) * float(group["lr_decay"])
    return state["sum"].sqrt().add_(eps).mul_(slower)


def _decoupled(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return isinstance(optimizer, AdamW) or bool(group.get("decoupled_weight_decay", False))


def _reason(optimizer: Optimizer, limits: set[float]) -> str:
    if len(limits) > 1 and not any(math.isnan(limit) for limit in limits):
        return "its groups have different momentum"
    return f"no limit is known for {type(optimizer).__name__}" if limits else "it holds none of the parameters"
