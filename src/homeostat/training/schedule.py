"""The course of the learning rate: a pure function of the step, so that a resumed fit needs nothing stored."""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int, total: int, warmup: int, schedule: str, *, gamma: float = 0.95, per_epoch: int = 1
) -> float:
    """The share of the peak learning rate at `step` (0-based) of `total`, after `warmup` steps of linear rise.

    constant: 1. cosine: half a cosine wave from 1 to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983). step: 1, then
    0.1 from half of the steps on, then 0.01 from three quarters on (He et al. 2016, arXiv:1512.03385). exponential:
    gamma to the power of the whole epochs since the warm-up, so constant within each (Zhang et al. 2017,
    arXiv:1611.03530, where gamma is 0.95).

    Args:
        gamma: what an epoch of the exponential course multiplies by.
        per_epoch: steps in an epoch.

    Example:
        >>> [round(learning_rate_factor(step, 8, 2, "cosine"), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "exponential":
        return gamma ** ((step - warmup) // per_epoch)
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01
