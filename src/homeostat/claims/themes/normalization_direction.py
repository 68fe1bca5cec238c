"""Before batch normalization, steps of gradient descent change the direction of a unit's weights: to rounding.

One hidden layer in float64, in training mode, with gradient descent without momentum.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from homeostat import nn as hsnn
from homeostat import seeds
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, settled, tiny, within
from homeostat.claims.experiments import task_named

_TOLERANCE = 1e-9


def direction_length(config: Mapping[str, Any], seed: int, *, task: str, steps: int, lr: float) -> dict[str, float]:
    """What gradient descent does to the weights of a layer of 32 tanh units, in float64.

    Returns: radial, the largest cosine between a unit's weights and their gradient; growth, by how much the squared
        length deviates from that before plus that of the step; scaled, by how much the loss changes where weights are
        made longer or shorter, unit by unit; loss, after the last step.
    """
    known = task_named(task)
    input, target = known.sample(256)
    given = input.flatten(1).double()
    with seeds.isolated(seed, "claim", "bn-direction-length"):
        hidden, readout = nn.Linear(given.shape[1], 32, bias=False), nn.Linear(32, known.outputs)
        factors = torch.empty(32, 1, dtype=torch.float64).uniform_(0.1, 10.0)
    norm = hsnn.BatchNorm1d(32, eps=1e-30, track_running_stats=False) if config["norm"] == "batch" else nn.Identity()
    model = nn.Sequential(hidden, norm, nn.Tanh(), readout).double()
    weight: Tensor = hidden.weight
    if config["norm"] == "weight":
        weight = weight_norm(hidden).parametrizations["weight"].original1
    parameters = list(model.parameters())
    radial = growth = 0.0
    for _ in range(steps):
        gradients = torch.autograd.grad(functional.cross_entropy(model(given), target), parameters)
        before = weight.detach().clone()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.sub_(lr * gradient)
            if parameter is weight:
                radial = max(radial, float(torch.cosine_similarity(gradient, before, dim=1).abs().max()))
                wanted = before.square().sum(1) + lr**2 * gradient.square().sum(1)
                growth = max(growth, float((weight.detach().square().sum(1) / wanted - 1).abs().max()))
    with torch.no_grad():
        loss = float(functional.cross_entropy(model(given), target))
        weight.mul_(factors)
        changed = float(functional.cross_entropy(model(given), target))
    return {"radial": radial, "growth": growth, "scaled": abs(changed - loss) / loss, "loss": loss}


def _judge_direction_length(runs: Runs) -> Verdict:
    normalized = runs.where(norm="batch")[["radial", "growth", "scaled"]].max(axis=1)
    turned, plain = runs.where(norm="batch")["radial"], runs.where(norm="none")["radial"]
    losses = {norm: runs.where(norm=norm)["loss"].mean() for norm in ("none", "weight", "batch")}
    word, number = settled(
        (within(normalized, _TOLERANCE), f"largest error {tiny(normalized.max())}"),
        ("holds" if bool((plain > 0.01).all()) else "fails", f"without, a largest cosine of {tiny(plain.min())}"),
    )
    return Verdict(
        word,
        number,
        f"The cosine between a unit's weights and their gradient is {tiny(turned.max())} at most with batch "
        f"normalization, without it goes up to {plain.max():.2f}. After the same steps the loss is "
        f"{losses['none']:.3f} without, {losses['weight']:.3f} with direction and length as parameters of their own, "
        f"{losses['batch']:.3f} with batch normalization.",
    )


CLAIMS = (
    Claim(
        id="bn-direction-length",
        sentence="It makes the learning problem easier by decoupling the problems of estimation of direction and "
        "magnitude of the weight vector. Direction of the weight vector is learned separately from its size.",
        source="001, Why does Batchnorm work?",
        hypothesis="Before batch normalization a unit's gradient is orthogonal to its weights and their length has no "
        "effect on the loss: steps learn the direction, and γ alone the size. Without it neither is so.",
        criterion=f"Holds if with batch normalization the cosines, the deviations of the length from that of "
        f"orthogonal steps and the changes of the loss by other lengths are at most {_TOLERANCE:g} in every run, and "
        "without it the largest cosine of every run is above 0.01; fails otherwise.",
        experiment=direction_length,
        judge=_judge_direction_length,
        draw=lambda runs: draw.levels(
            runs.trials, "norm", "radial", log=True,
            across="largest cosine between a unit's weights and their gradient",
            alt="Largest cosine between weights and their gradients, plain, with batch and with weight normalization.",
            names={"none": "without normalization", "batch": "batch normalization", "weight": "weight normalization"},
        ),
        quick=Setup(
            "digits, 256 examples in float64; a layer of 32 units, 100 steps of gradient descent",
            {"norm": ["none", "weight", "batch"]}, 10, {"task": "digits", "steps": 100, "lr": 0.5},
        ),
        full=Setup(
            "MNIST, 256 examples in float64; a layer of 32 units, 1,000 steps of gradient descent",
            {"norm": ["none", "weight", "batch"]}, 30, {"task": "mnist", "steps": 1000, "lr": 0.5},
        ),
        literature="Kohler et al. 2019 prove exponential convergence for least squares and halfspaces of Gaussian "
        "data, not for deep nets. Salimans & Kingma 2016 decouple both without statistics of batches.",
    ),
)  # fmt: skip
