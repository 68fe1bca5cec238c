"""Batch normalization with one of its parts altered: the gradient through its statistics, and their noise.

The layers of a recipe's net are given another class before training: the same weights, the same batches. A run that
diverged counts as guessing among ten classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, directed, more, points, settled
from homeostat.claims.experiments import part_of, task_named
from homeostat.claims.themes.normalization_training import SGD, counted
from homeostat.inference import mean_interval
from homeostat.nn.activation import activate, split
from homeostat.parts.norm import LastAxisBatchNorm
from homeostat.study.running.runner import Trial
from homeostat.training.models import build_model
from homeostat.training.objective import fit_trial
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


def _with_layers(
    kind: type[LastAxisBatchNorm], settings: Mapping[str, Any], task: Task, recipe: Recipe, seed: int
) -> nn.Module:
    """The recipe's model, its batch normalizations of another class and with its settings."""
    model = build_model(task, recipe, seed)
    for layer in model.modules():
        if isinstance(layer, LastAxisBatchNorm):
            layer.__class__ = kind
            for name, value in settings.items():
                setattr(layer, name, value)
    return model


_PLAIN = "without"


class PartlyConstantBatchNorm(LastAxisBatchNorm):
    """Batch normalization whose gradient takes the batch's mean, deviation, or both for constants."""

    constant: str = "neither"

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """As batch normalization's, forward."""
        if not self.training:
            return super().forward(input, residual)
        with torch.no_grad():
            super().forward(input)  # which keeps the running statistics
        variance, mean = torch.var_mean(input, 0, correction=0)
        mean = mean.detach() if self.constant in ("mean", "both") else mean
        variance = variance.detach() if self.constant in ("deviation", "both") else variance
        output = (input - mean) / (variance + self.eps).sqrt() * self.weight + self.bias
        return activate(output, *split("PartlyConstantBatchNorm", self.activation))


def stop_gradient(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Training with the batch's statistics as constants of the gradient, or without any; how the weights grow."""
    norm = "none" if config["constant"] == _PLAIN else "batch"
    varied = Recipe().varied({**recipe, "lr": config["lr"], "norm": norm})
    known = task_named(task)
    model = _with_layers(PartlyConstantBatchNorm, {"constant": config["constant"]}, known, varied, seed)
    before = _size(model)
    found = fit_trial(known, varied, seed, trial, model=model)
    return {**found.metrics, "growth": _size(model) / before}


def _size(model: nn.Module) -> float:
    """The norm of all weights and biases that stand before a normalization."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][:-1]
    return math.sqrt(sum(float(p.detach().square().sum()) for layer in layers for p in layer.parameters()))


def _judge_stop_gradient(runs: Runs) -> Verdict:
    accurate = counted(runs, "train_accuracy")
    lost = accurate.difference("train_accuracy", {"constant": "neither"}, {"constant": "both"})
    word = decided(lost, 0.01)
    through, both = (runs.where(constant=constant) for constant in ("neither", "both"))
    grown = [float(each["growth"].median()) for each in (through, both)]
    other = [accurate.mean("train_accuracy", constant=constant).estimate for constant in ("mean", "deviation", _PLAIN)]
    return Verdict(
        word,
        f"{points(lost)} lost",
        f"That is of the training accuracy; {int(both['diverged'].sum())} of {len(both)} runs diverged, "
        f"{int(through['diverged'].sum())} of {len(through)} with the whole gradient. The weights before the layers "
        f"grew {grown[1]:.3g}-fold, else {grown[0]:.3g}-fold. With the mean alone constant {100 * other[0]:.1f} % are "
        f"reached, with the deviation alone {100 * other[1]:.1f} %, without normalization {100 * other[2]:.1f} %."
        f"{more(word, lost, threshold=0.01)}",
    )


_MOMENTUM = 0.1  # of the layers' running statistics


class NoisyBatchNorm(LastAxisBatchNorm):
    """Batch normalization with the statistics of parts of the batch: the same steps with more of its noise."""

    part: int = 1

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """As batch normalization's of each part."""
        if not self.training:
            return super().forward(input, residual)
        return torch.cat([LastAxisBatchNorm.forward(self, part) for part in input.split(self.part)])


def regularization(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    recipe: Mapping[str, Any],
    examples: int,
    part: int,
) -> dict[str, float]:
    """Training on few examples without normalization, with it, and with its statistics over parts of the batches."""
    norm = "batch" if config["norm"] == "noisy" else config["norm"]
    varied = Recipe().varied({**recipe, "norm": norm, "dropout": config["dropout"]})
    known = part_of(task, examples, seed=seed)
    # the running statistics move once per part: as far in a step as those of the whole batch
    noisy = {"part": part, "momentum": 1 - (1 - _MOMENTUM) ** (part / int(varied.batch_size))}
    model = _with_layers(NoisyBatchNorm, noisy, known, varied, seed) if config["norm"] == "noisy" else None
    return fit_trial(known, varied, seed, trial, model=model).metrics


def _judge_regularization(runs: Runs) -> Verdict:
    accurate = counted(runs, "test_accuracy")
    dropout = max(accurate.trials["dropout"])
    noise = accurate.difference("test_accuracy", {"norm": "noisy", "dropout": 0.0}, {"norm": "batch", "dropout": 0.0})
    alone = accurate.difference("test_accuracy", {"norm": "batch", "dropout": 0.0}, {"norm": "none", "dropout": 0.0})
    table = accurate.trials.pivot_table(index="seed", columns=["norm", "dropout"], values="test_accuracy").dropna()
    gains = {norm: table[norm, dropout] - table[norm, 0.0] for norm in ("none", "batch")}
    need = mean_interval((gains["none"] - gains["batch"]).to_numpy())
    less, way = directed(need, "less", "more")
    word, number = settled(
        (decided(noise), f"{points(noise)} by noise"), (decided(need), f"{points(less)} {way} from dropout")
    )
    return Verdict(
        word,
        number,
        f"More noise in the statistics changes test accuracy by {points(noise)}. Batch normalization itself does "
        f"{points(alone)}. Dropout brings {100 * gains['none'].mean():+.1f} points without it and "
        f"{100 * gains['batch'].mean():+.1f} with it, {points(less)} {way}.{more(word, noise, need)}",
    )


_NORMS = {"none": "no normalization", "batch": "batch normalization", "noisy": "noisier statistics"}
_CONSTANTS = {
    "neither": "neither constant", "mean": "mean constant", "deviation": "deviation constant", "both": "both constant",
    _PLAIN: "no normalization",
}  # fmt: skip

CLAIMS = (
    Claim(
        id="bn-stop-gradient",
        sentence="View μ, σ as functions and differentiate through them; without differentiation through μ, σ training "
        "might be numerically unstable. Normalisation is useless for learning if gradient ignores it.",
        source="004, Batch Normalization - Backprop; 001, Normalisation",
        hypothesis="A net whose gradient takes μ and σ for constants diverges, or ends with fewer training examples "
        "right.",
        criterion="Holds if over all learning rates the training accuracy (10 % for a run that diverged) is lower by "
        "more than 1 point, the whole interval; fails if the whole interval lies below 1 point. What a net without "
        "normalization reaches is said beside.",
        experiment=stop_gradient,
        judge=_judge_stop_gradient,
        draw=lambda runs: draw.levels(
            counted(runs, "train_accuracy").trials, ["constant", "lr"], "train_accuracy",
            across="training accuracy; 0.1 where training diverged",
            alt="Training accuracy by what the gradient takes for constant and by learning rate.",
            names={
                (constant, lr): f"{label}, rate {lr:g}" for constant, label in _CONSTANTS.items() for lr in (0.05, 0.5)
            },
        ),
        quick=Setup(
            "digits, 1,078 examples; 3×100 units, 15 epochs", {"constant": list(_CONSTANTS), "lr": [0.05, 0.5]}, 6,
            {"task": "digits", "recipe": {**SGD, "widths": "100x100x100", "epochs": 15}},
        ),
        full=Setup(
            "MNIST; 3×100 units, 5 epochs", {"constant": list(_CONSTANTS), "lr": [0.05, 0.5]}, 10,
            {"task": "mnist", "recipe": {**SGD, "widths": "100x100x100", "epochs": 5}},
        ),
        literature="Ioffe & Szegedy 2015 (section 2) describe a bias before a normalization that the gradient ignores: "
        "it grows indefinitely while the loss stays, and with the scale normalized too the model blows up.",
    ),
    Claim(
        id="bn-regularizes",
        sentence="Regularizes the model and reduces the need for dropout. It also acts as a regularizer; there is no "
        "need for other regularizer techniques. Augmentation effect from noisy μ, σ in batch norm.",
        source="001, Benefits of BatchNorm; 003, Pros; 000, Summary; 004, Benefits of Normalization",
        hypothesis="On few examples, noisier statistics raise test accuracy (those of parts of a batch against those "
        "of the whole batch, by the same steps), and dropout brings less with batch normalization than without.",
        criterion="Holds if both differences in test accuracy lie above 0 with their whole intervals, fails if one "
        "lies below 0.",
        experiment=regularization,
        judge=_judge_regularization,
        draw=lambda runs: draw.levels(
            counted(runs, "test_accuracy").trials, ["norm", "dropout"], "test_accuracy", across="test accuracy",
            alt="Test accuracy without normalization, with batch normalization and with that of parts of batches, each "
            "with dropout and without.",
            names={
                (norm, p): f"{label}, {f'dropout {p:g}' if p else 'no dropout'}"
                for norm, label in _NORMS.items()
                for p in (0.0, 0.5)
            },
        ),
        quick=Setup(
            "digits, 200 of the training examples; 2×256 units, 30 epochs; batches of 50, or parts of 10",
            {"norm": ["none", "batch", "noisy"], "dropout": [0.0, 0.5]}, 15,
            {
                "task": "digits", "examples": 200, "part": 10,
                "recipe": {**SGD, "widths": "256x256", "batch_size": 50, "epochs": 30},
            },
        ),
        full=Setup(
            "Fashion-MNIST, 5,000 of the training examples; 2×512 units, 40 epochs; batches of 100, or parts of 10",
            {"norm": ["none", "batch", "noisy"], "dropout": [0.0, 0.5]}, 15,
            {
                "task": "fashion-mnist", "examples": 5000, "part": 10,
                "recipe": {**SGD, "widths": "512x512", "batch_size": 100, "epochs": 40},
            },
        ),
        literature="Ioffe & Szegedy 2015 removed dropout from Inception with batch normalization without more "
        "overfitting. Hoffer et al. 2017: statistics over parts of large batches generalize better. Li et al. 2019: "
        "dropout before batch normalization shifts variances and can harm.",
    ),
)  # fmt: skip
