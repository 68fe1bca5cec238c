"""Penalties on weights: sparse and small ones, decay with and without normalization, what a norm says of a net.

Training by recipes on homeostat's own update; nothing else here is random.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from homeostat.claims import draw
from homeostat.claims.claim import (
    Claim,
    Runs,
    Setup,
    Verdict,
    decided,
    near,
    points,
    said,
    seed_mean,
    settled,
    within,
)
from homeostat.claims.experiments import fitted, task_named
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.parts.penalty import decay_weights_, split_parameters
from homeostat.study.running.runner import Trial
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task
from homeostat.training.update import Update

_TOLERANCE = 1e-12


def _times(logs: Interval, digits: int = 2) -> str:
    """An interval of natural logarithms as a ratio: "1.9 times [1.7, 2.1]"."""
    ratio, low, high = (f"{math.exp(end):.{digits}g}" for end in (logs.estimate, logs.low, logs.high))
    return f"{ratio} times [{low}, {high}]"


def _norm(weights: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(weight.detach().double().square().sum()) for weight in weights))


def _numbers(runs: Runs, factor: str) -> list[float]:
    """The levels of a factor in their order."""
    return [float(level) for level in runs.setup.factors[factor] if level is not None]


def sparsity(
    config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any], l1: float, l2: float
) -> dict[str, float]:
    """How many weights end near zero, and how long they are together, under one of the penalties."""
    penalty = {
        "none": {}, "L1": {"l1": l1}, "L2": {"l2": l2}, "elastic net": {"l1": l1, "l2": l2},
        "L1, proximal": {"l1_proximal": l1},
    }[config["penalty"]]  # fmt: skip
    found = fitted(penalty, seed, task=task, recipe=recipe)
    weights = split_parameters(found.model)[0]
    count = sum(weight.numel() for weight in weights)
    return {
        "near_zero": sum(int((each.abs() < each.abs().max() / 100).sum()) for each in weights) / count,
        "zero": sum(int((each == 0).sum()) for each in weights) / count,
        "norm": _norm(weights),
        "test_accuracy": found.metrics["test_accuracy"],
    }


def _judge_sparsity(runs: Runs) -> Verdict:
    share = {name: runs.by_seed("near_zero", penalty=name) for name in runs.setup.factors["penalty"]}
    norm = {name: runs.by_seed("norm", penalty=name) for name in runs.setup.factors["penalty"]}
    sparser = seed_mean(share["L1"] - share["L2"])
    both = seed_mean(share["elastic net"] - share["L2"])
    smaller, small = seed_mean(norm["none"] - norm["L2"]), seed_mean(norm["L1"] - norm["elastic net"])
    exact = 100 * runs.where(penalty="L1, proximal")["zero"].mean()
    told = "; ".join(
        f"{name} {100 * share[name].mean():.0f} % and {norm[name].mean():.3g} "
        f"({100 * runs.by_seed('test_accuracy', penalty=name).mean():.1f} %)"
        for name in share
    )
    return said(
        *settled(
            (decided(sparser), f"{points(sparser)} more weights near zero with L1 than with L2"),
            (decided(both), f"{points(both)} more weights near zero with the elastic net than with L2"),
            (decided(smaller), f"a norm smaller by {smaller.estimate:.3g} with L2"),
            (decided(small), f"a norm smaller by {small.estimate:.3g} with the elastic net than with L1"),
        ),
        f"Weights near zero and norm of all (test accuracy): {told}. By gradient, L1 leaves "
        f"{100 * runs.where(penalty='L1')['zero'].mean():.1f} % exactly zero; by proximal steps {exact:.0f} %.",
    )


def shrinking(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """The error of (1 - ηλ) w - ηg for a step of the update, and test accuracy with biases exempt or decayed too."""
    found = task_named(task)
    settings = Recipe().varied({**recipe, "weight_decay": config["weight_decay"]})
    model = build_model(found, settings, seed)
    error = max(_step_error(model, found, settings, form) for form in ("weight_decay", "l2"))
    factor, exempt = 1 - settings.learning_rate * settings.decay, split_parameters(model)[1]
    too = config["biases"] == "decayed"
    trained = fit(
        found, settings, seed, model=model, on_step=(lambda *_: decay_weights_(exempt, factor)) if too else None
    )
    return {"step_error": error, "test_accuracy": trained.metrics["test_accuracy"]}


def _step_error(model: nn.Module, task: Task, recipe: Recipe, form: str) -> float:
    """The largest distance of parameters from where the formula puts them after a step, in float64."""
    network = copy.deepcopy(model).double()
    x, y = task.sample(64)
    loss = task.loss_function()(network(x.double()), y)
    decayed, exempt = split_parameters(network)
    gradients = torch.autograd.grad(loss, [*decayed, *exempt], retain_graph=True)
    shrunk = [(1 - recipe.learning_rate * recipe.decay) * weight.detach() for weight in decayed]
    wanted = [
        start - recipe.learning_rate * gradient
        for start, gradient in zip([*shrunk, *(each.detach() for each in exempt)], gradients, strict=True)
    ]
    Update(network, recipe.varied({"weight_decay": 0.0, form: recipe.decay}), 1, torch.device("cpu"))(loss, 0)
    pairs = zip([*decayed, *exempt], wanted, strict=True)
    return max(float((parameter.detach() - goal).abs().max() / goal.abs().max()) for parameter, goal in pairs)


def _judge_shrinking(runs: Runs) -> Verdict:
    error = runs.trials["step_error"]

    def gained(**levels: float) -> pd.Series[float]:
        accuracy = (runs.by_seed("test_accuracy", biases=each, **levels) for each in ("exempt", "decayed"))
        return next(accuracy) - next(accuracy)

    gain = seed_mean(gained())
    single = ", ".join(
        f"{100 * gained(weight_decay=each).mean():+.1f} at λ = {each:g}" for each in _numbers(runs, "weight_decay")
    ).replace("-", "−")
    return said(
        *settled(
            (within(error, _TOLERANCE), f"steps to {error.max():.0e}, sparing biases {points(gain)}"),
            (decided(gain, 0.005), f"sparing biases {points(gain)}, though steps are exact to {error.max():.0e}"),
        ),
        f"From (1 − ηλ)w − ηg for weights and w − ηg for biases a step differs by {error.max():.0e} of the largest at "
        f"most, as a penalty or decoupled. Sparing the biases changes test accuracy by {single} points.",
    )


class Turning:
    """Norms of weights and the angles by which steps turn them, step by step; called after every step."""

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.weights = weights
        self.norms: list[float] = []
        self.angles: list[float] = []
        self.before = self._directions()

    def __call__(self, step: int, observed: Mapping[str, Any]) -> None:
        directions = self._directions()
        chords = [float((now - then).norm()) for now, then in zip(directions, self.before, strict=True)]
        self.angles.append(math.sqrt(np.mean([(2 * np.arcsin(np.minimum(1.0, chord / 2))) ** 2 for chord in chords])))
        self.norms.append(self.norm())
        self.before = directions

    def norm(self) -> float:
        """The mean norm of the layers' weights."""
        return float(np.mean([_norm([weight]) for weight in self.weights]))

    def _directions(self) -> list[Tensor]:
        wide = [weight.detach().cpu().double().flatten() for weight in self.weights]
        return [each / each.norm() for each in wide]


def equilibrium(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Norm and rotation of the weights before batch normalization, which start at a multiple of their usual scale."""
    found = task_named(task)
    settings = Recipe().varied({**recipe, "weight_decay": config["weight_decay"]})
    model = build_model(found, settings, seed)
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)][:-1]
    with torch.no_grad():
        for weight in weights:
            weight.mul_(config["scale"])
    turning = Turning(weights)
    start = turning.norm()

    def report(row: dict[str, float]) -> None:
        if trial is not None:
            trial.report(int(row["epoch"]), norm=turning.norms[-1], angle=turning.angles[-1])

    metrics = fit(found, settings, seed, model=model, on_step=turning, on_epoch=report).metrics
    last = len(turning.norms) * 3 // 4
    return {
        "growth": math.log(turning.norms[-1] / start),
        "end_norm": float(np.mean(turning.norms[last:])),
        "angle": math.sqrt(np.mean(np.square(turning.angles[last:]))),
        "expected_angle": math.sqrt(2 * settings.learning_rate * settings.decay),
        "test_accuracy": metrics["test_accuracy"],
    }


def _judge_equilibrium(runs: Runs) -> Verdict:
    decays, scales = [each for each in _numbers(runs, "weight_decay") if each], _numbers(runs, "scale")
    among = Runs(runs.trials[runs.trials["weight_decay"] != 0], runs.curves, runs.setup)
    growth = seed_mean(runs.by_seed("growth", weight_decay=0.0))
    small, large = (among.by_seed("end_norm", scale=scale).map(np.log) for scale in (scales[0], scales[-1]))
    turned = Runs(
        among.trials.assign(turn=np.log(among.trials["angle"] / among.trials["expected_angle"])),
        runs.curves,
        runs.setup,
    )
    turns = {each: seed_mean(turned.by_seed("turn", weight_decay=each)) for each in decays}
    meeting = seed_mean(large - small)
    shown = ", ".join(
        f"{math.degrees(runs.by_seed('angle', weight_decay=each).mean()):.3g}° at λ = {each:g} "
        f"(√(2ηλ) = {math.degrees(runs.by_seed('expected_angle', weight_decay=each).mean()):.3g}°)"
        for each in decays
    )
    return said(
        *settled(
            *(
                (near(turn, math.log(1.25)), f"{_times(turn, 3)} √(2ηλ) per step at λ = {each:g}")
                for each, turn in turns.items()
            ),
            (near(meeting, math.log(1.1)), f"norms in the end {_times(meeting, 3)} apart"),
            (decided(growth), f"{_times(growth)} the norm without decay"),
        ),
        f"Without decay weights grow to {_times(growth)} their norm. With it, those that start at {scales[-1]:g} and "
        f"at {scales[0]:g} times the usual scale end at norms with the ratio {_times(meeting, 3)}. A step turns them "
        f"by {shown}.",
    )


def _draw_equilibrium(runs: Runs) -> Picture:
    starts = zip(runs.curves["weight_decay"], runs.curves["scale"], strict=True)
    lines = [f"λ = {decay:g}, ×{scale:g}" for decay, scale in starts]
    return draw.courses(
        runs.curves.assign(line=lines), "epoch", "norm", "line", log="y", across="epoch", up="norm of the weights",
        alt="Norm of the weights before batch normalization over training, by weight decay and scale at the start.",
    )  # fmt: skip


def scaled(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """A net whose weights start with variance c / fan_in: its norm in the end, and its accuracies."""
    changes = {"init": "he_normal", "init_gain": math.sqrt(config["c"])}
    found = fitted(changes, seed, trial, task=task, recipe=recipe)
    accuracies = {name: found.metrics[name] for name in ("train_accuracy", "test_accuracy")}
    return {**accuracies, "norm": _norm(split_parameters(found.model)[0])}


def _judge_scaled(runs: Runs) -> Verdict:
    least, *_, most = _numbers(runs, "c")
    ratio = seed_mean(runs.by_seed("norm", c=most).map(np.log) - runs.by_seed("norm", c=least).map(np.log))
    change = seed_mean(runs.by_seed("test_accuracy", c=most) - runs.by_seed("test_accuracy", c=least))
    ranks = runs.trials["norm"].corr(runs.trials["test_accuracy"], method="spearman")
    return said(
        *settled(
            (decided(ratio, math.log(2)), f"{_times(ratio)} the norm, {points(change)}"),
            (near(change, 0.01), f"{points(change)}, with {_times(ratio)} the norm"),
        ),
        f"From c = {least:g} to c = {most:g} the trained weights' norm grows to {_times(ratio)}, and test accuracy "
        f"changes by {points(change)}; over all runs the rank correlation of norm and accuracy is {ranks:.2f}.",
    )


_MLP = {"model": "mlp", "optimizer": "sgd", "momentum": 0.0, "lr": 0.1, "batch_size": 32}
_PENALTIES: dict[str, Sequence[Any]] = {"penalty": ["none", "L2", "L1", "elastic net", "L1, proximal"]}
_DECAY: dict[str, Sequence[Any]] = {"weight_decay": [0.01, 0.03, 0.1], "biases": ["exempt", "decayed"]}
_SCALES: dict[str, Sequence[Any]] = {"weight_decay": [0.0, 0.05, 0.2], "scale": [0.3, 3.0]}
_VARIANCES: dict[str, Sequence[Any]] = {"c": [0.5, 1.0, 2.0, 4.0, 8.0]}

CLAIMS = (
    Claim(
        id="l1-l2-elastic",
        sentence="L1: R(w) = |w|; L2: R(w) = w²; the two can be combined (elastic net, R(w) = βw² + |w|).",
        source="003, L1/L2 Regularization; 000, The problem of overfitting",
        hypothesis="As textbooks have it, not the slide: more weights end near zero with L1, and with the elastic "
        "net, than with L2; weights end smaller with L2 than without, and with the elastic net than with L1.",
        criterion="Near zero is below a hundredth of the largest weight of a layer, small the norm of all weights. "
        "Holds if the whole intervals of all four differences (paired by seed) have the sign said; fails if one has "
        "the other.",
        experiment=sparsity,
        judge=_judge_sparsity,
        draw=lambda runs: draw.scatter(
            runs.trials.assign(near_zero=100 * runs.trials["near_zero"]), "norm", "near_zero", "penalty",
            across="norm of all weights", up="weights near zero in %",
            alt="Share of weights near zero against the norm of all weights, by penalty.",
        ),
        quick=Setup(
            "digits, 1,078 training examples; an MLP of 2×128, 20 epochs", _PENALTIES, 5,
            {"task": "digits", "l1": 1e-3, "l2": 2e-2, "recipe": {**_MLP, "epochs": 20}},
        ),
        full=Setup(
            "MNIST; an MLP of 2×128, 10 epochs", _PENALTIES, 10,
            {"task": "mnist", "l1": 1e-4, "l2": 2e-3, "recipe": {**_MLP, "epochs": 10}},
        ),
    ),
    Claim(
        id="weight-decay-shrink",
        sentence="At each iteration we shrink the weights by a factor (1 − αλ) before taking the gradient step; it is "
        "customary to regularize weights but not the bias terms.",
        source="002, ℓ2 Regularization a.k.a. weight decay; 004, Weight Decay",
        hypothesis="A step of plain gradient descent takes w to (1 − ηλ)w − ηg, and biases by −ηg alone; and sparing "
        "the biases matters, which the lectures leave open: it gives at least half a point of test accuracy over "
        "letting them decay too.",
        criterion="Holds if steps differ from the formula by at most 1e-12 of the largest weight (float64; as a "
        "penalty and decoupled), and the whole interval of the difference in test accuracy (exempt minus decayed, mean "
        "over λ, paired by seed) lies above half a point; fails if steps differ by more, or it lies below that.",
        experiment=shrinking,
        judge=_judge_shrinking,
        draw=lambda runs: draw.courses(
            runs.trials, "weight_decay", "test_accuracy", "biases", log="x", across="weight decay λ",
            up="test accuracy",
            alt="Test accuracy by weight decay, with biases exempt and decayed too.",
        ),
        quick=Setup(
            "digits, 1,078 training examples; an MLP of 2×64, 15 epochs", _DECAY, 6,
            {"task": "digits", "recipe": {**_MLP, "widths": [64, 64], "epochs": 15}},
        ),
        full=Setup(
            "Fashion-MNIST; an MLP of 2×128, 10 epochs", {**_DECAY, "weight_decay": [0.001, 0.01, 0.03]}, 10,
            {"task": "fashion-mnist", "recipe": {**_MLP, "epochs": 10}},
        ),
        literature="Loshchilov & Hutter 2019 (arXiv:1711.05101): with Adam the two forms part, and only decoupled "
        "decay multiplies the weights by 1 − ηλ.",
    ),
    Claim(
        id="weight-decay-and-bn",
        sentence="With batch normalization W is scale invariant: no direct regularization effect from weight decay. "
        "The loss gradient makes the weight norm grow, weight decay decreases it; the forces can balance out in a "
        "weight norm equilibrium. Weight decay changes how fast the weight vectors rotate, as a learning rate does.",
        source="004, Weight decay + Normalization",
        hypothesis="Without decay norms grow; with it, norms that start ten times apart meet, and a step turns the "
        "weights by √(2ηλ), whatever they started with.",
        criterion="Holds if the whole intervals say so: of the log growth without decay above zero; of the log ratio "
        "of final norms (large start over small, mean over λ) within ±log 1.1; of the log ratio of angle to √(2ηλ) "
        "(last quarter of the steps) within ±log 1.25 for every λ. Fails if one lies on the other side of its bound.",
        experiment=equilibrium,
        judge=_judge_equilibrium,
        draw=_draw_equilibrium,
        quick=Setup(
            "digits, 1,078 training examples; an MLP of 2×64 with batch normalization, 30 epochs of plain SGD",
            _SCALES, 5, {"task": "digits", "recipe": {**_MLP, "widths": [64, 64], "norm": "batch", "epochs": 30}},
        ),
        full=Setup(
            "Fashion-MNIST; an MLP of 2×128 with batch normalization, 15 epochs of plain SGD",
            {**_SCALES, "weight_decay": [0.0, 0.002, 0.01]}, 10,
            {"task": "fashion-mnist", "recipe": {**_MLP, "norm": "batch", "epochs": 15}},
        ),
        literature="Van Laarhoven 2017 (arXiv:1706.05350) found the equilibrium; Wan et al. 2020 (arXiv:2006.08419) "
        "and Kosson et al. 2023 (arXiv:2305.17212) the angle √(2ηλ/(1 + α)) of SGD with momentum α, here 0; both in "
        "long training of residual nets.",
    ),
    Claim(
        id="l2-and-init",
        sentence="Recall our optimized networks with different initializations: parameter magnitude may be a bad proxy "
        "for complexity in deep networks.",
        source="002, Caveats of ℓ2 regularization",
        hypothesis="Nets whose weights start with variance c/n, c from 0.5 to 8, end with norms at least a factor of "
        "two apart, and with the same test accuracy to within a point (the lecture gives neither number).",
        criterion="Largest against smallest c, paired by seed. Holds if the whole interval of the ratio of norms lies "
        "above 2 and that of the difference in test accuracy within ±1 point; fails if the ratio lies below 2, or the "
        "difference beyond a point.",
        experiment=scaled,
        judge=_judge_scaled,
        draw=lambda runs: draw.scatter(
            runs.trials.assign(start=[f"c = {c:g}" for c in runs.trials["c"]]), "norm", "test_accuracy", "start",
            across="norm of all weights after training", up="test accuracy",
            alt="Test accuracy against the norm of the trained weights, by the variance at the start.",
        ),
        quick=Setup(
            "digits, 1,078 training examples; an MLP of 2×128, 25 epochs", _VARIANCES, 6,
            {"task": "digits", "recipe": {"model": "mlp", "optimizer": "adam", "epochs": 25}},
        ),
        full=Setup(
            "MNIST; an MLP of 2×128, 10 epochs", _VARIANCES, 10,
            {"task": "mnist", "recipe": {"model": "mlp", "optimizer": "adam", "epochs": 10}},
        ),
        literature="The slide compares c = 1, 2 and 3. Weights that start large train lazily and generalize worse "
        "(Chizat et al. 2019, arXiv:1812.07956): within one net and task the norm may well tell something.",
    ),
)  # fmt: skip
