"""The loss function and the outputs it is given: here its size, by which an optimizer without a memory of it steps.

Measured by calling the loss (`loss_tests`), nothing is read off its name. Not random.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from homeostat.doctor.changes.loss import MeanLoss
from homeostat.doctor.loss.fitting import Fitting, fitting_of
from homeostat.doctor.rule import Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_SUMMED = 1.9  # growth of a doubled batch: 2 for a sum, 1 for a mean, 1.41 for a norm
_SCALED = 10.0  # times the mean, or so many times less: as much as the next learning rate that anybody tries


class SummedLoss(Rule):
    """The loss is a sum over the batch, so that its gradient grows with the batch size.

    What it checks: a doubled batch doubles the loss, measured by its gradient.

    Why it hurts: the learning rate means N times as much, and more with every larger batch; an L2 penalty and a clip
    bound mean N times less.

    Threshold and its source: growth above 1.9 in a batch of more than one; by definition 2 for a sum and 1 for a mean.

    False alarms: a small learning rate makes up for it, and an optimizer whose step does not depend on the gradient's
    scale does not feel it. Hence never certain: the training must be ill, or a mean must recover it.

    Repair and its safety: the mean; safe.

    References: Goyal et al. 2017, arXiv:1706.02677 (the learning rate and the batch size); Braiek & Khomh 2022,
    arXiv:2204.00694 (mean and sum exchanged).
    """

    code = "LOS011"
    slug = "summed-loss"
    causes = ("loss_scale", "loss_impl_bug")
    requires = ("LOS001", "LOS003")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.growth is None or chart.training.batch_size < 2:
            return
        if fitting.facts.growth < _SUMMED:
            return
        size = chart.training.batch_size
        yield Suspect(
            f"The loss adds up over the batch: twice the examples give {fitting.facts.growth:.2f} times the gradient.",
            f"Take the mean over the examples; with batches of {size} the learning rate then means {size} times less.",
            "possible" if scale_free(chart.training.optimizer) else "likely",
            evidence={"growth": fitting.facts.growth, "batch_size": size},
            changes=(fitting.replace(fitting.known), MeanLoss()) if _factor(fitting) else (MeanLoss(),),
        )


class ScaledLoss(Rule):
    """The loss is a customary one, times a large or a small number.

    What it checks: which known loss it is, and up to which factor, by comparing gradients.

    Why it hurts: the learning rate means as many times more or less; so do an L2 penalty and a clip bound.

    Threshold and its source: a factor of 10 or more, or 0.1 or less; with numbers as targets also once multiplied by
    their variance, so that an error in units of it (1 - R²) is customary. It convicts nobody: the loss without the
    factor must recover the training.

    False alarms: a factor that the learning rate makes up for, and optimizers whose step does not depend on the
    gradient's scale. Such a training is not ill.

    Repair and its safety: the loss without the factor; safe.

    References: Humbatova et al. 2020, arXiv:1910.11015 (wrong loss function calculation).
    """

    code = "LOS015"
    slug = "scaled-loss"
    causes = ("loss_scale", "loss_impl_bug")
    requires = ("LOS001", "LOS003", "LOS004", "LOS011")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        factor = None if fitting is None else _factor(fitting)
        if fitting is None or factor is None or (fitting.facts.growth or 1.0) >= _SUMMED:
            return
        sizes = (factor, factor * (chart.score.spread if chart.score.kind == "regression" else 1.0))
        if not (min(sizes) >= _SCALED or max(sizes) <= 1 / _SCALED):
            return
        yield Suspect(
            f"The loss is {factor:.3g} times the customary one ({fitting.known}), and so is the learning rate.",
            "Leave the factor out, or divide the learning rate by it.",
            "possible",
            evidence={"factor": factor, "loss": fitting.known},
            changes=(fitting.replace(fitting.known),),
        )


def _factor(fitting: Fitting) -> float | None:
    """By which positive number a known loss is multiplied, where that is all there is to it; else None."""
    match = fitting.facts.match
    plain = match is not None and not match.weighted and not match.curved and match.factor > 0
    return match.factor if match is not None and plain else None


def scale_free(optimizer: Optimizer) -> bool:
    """Whether an optimizer's first step does not grow with the gradient, as in Adam: tried on another parameter."""
    steps = []
    for scale in (1.0, 100.0):
        parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
        parameter.grad = torch.tensor([scale, -2 * scale], dtype=torch.float64)
        try:
            taken = inspect.signature(type(optimizer)).parameters
            settings = {name: value for name, value in optimizer.defaults.items() if name in taken}
            settings.update({"weight_decay": 0.0} if "weight_decay" in taken else {})
            type(optimizer)([parameter], **settings).step()
        except Exception:  # somebody's own optimizer, made in another way: nothing is known of it
            return False
        steps.append(parameter.detach() - 1)
    return bool((steps[0] - steps[1]).norm() < 0.5 * steps[0].norm())
