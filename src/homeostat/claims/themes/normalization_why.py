"""Why batch normalization helps, as the lectures tell it: covariate shift and smoothness.

Each is measured along training, on copies of the net, in training mode, with gradient descent without momentum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional

from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, Word, decided, more, ratio
from homeostat.claims.experiments import task_named
from homeostat.doctor.curvature.sharpness import curvature
from homeostat.errors import HomeostatError
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.study.running.runner import Trial
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

_NORMS = {"none": "without normalization", "batch": "batch normalization"}


def _geometric(runs: Runs, metric: str, **levels: str | float) -> pd.Series[float]:
    """A metric by seed, its geometric mean over the trials with these levels; NaN where one of them has none."""
    chosen = runs.where(**levels)
    logs = np.log(chosen[metric].where(chosen[metric] > 0))
    means: pd.Series[float] = np.exp(logs.groupby(chosen["seed"]).agg(lambda own: own.mean(skipna=False)))
    return means


def shift(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    recipe: Mapping[str, Any],
    examples: int,
) -> dict[str, float]:
    """Internal covariate shift after every epoch, and its mean over them."""
    known, settings = task_named(task), Recipe().varied({**recipe, **config})
    model = build_model(known, settings, seed)
    input, target = known.sample(examples)
    rows: list[dict[str, float]] = []

    def measure(row: dict[str, float]) -> None:
        rows.append(_shift(model, input, target, known, settings.learning_rate))
        if trial is not None:
            trial.report(int(row["epoch"]), train_loss=row["train_loss"], **rows[-1])

    found = fit(known, settings, seed, model=model, on_epoch=measure)
    table = pd.DataFrame(rows)
    sizes = {name: float(np.exp(np.log(table[name]).mean(skipna=False))) for name in ("shift", "difference", "inputs")}
    return {**found.metrics, **sizes, "cosine": float(table["cosine"].mean(skipna=False))}


def _shift(model: nn.Module, input: Tensor, target: Tensor, task: Task, lr: float) -> dict[str, float]:
    """What one step of gradient descent does to the layers after the first, by the step of those before them.

    Returns: difference, the norm of the change of the gradient of a layer's weight; shift, that relative to the
        gradient's; the cosine between both gradients; inputs, how far the means of a layer's inputs move, relative to
        their deviation. Means over the layers.
    """
    moved, loss_fn = copy.deepcopy(model).train(), task.loss_function()
    device = next(moved.parameters()).device
    input, target = input.to(device), target.to(device)
    parameters = list(moved.parameters())
    before = _inputs(moved, input)
    gradients = torch.autograd.grad(loss_fn(moved(input), target), parameters)
    shifts, differences, cosines = [], [], []
    for place, (parameter, old) in enumerate(zip(parameters, gradients, strict=True)):
        if place and parameter.ndim > 1:
            (new,) = torch.autograd.grad(loss_fn(moved(input), target), parameter)
            differences.append(float((new - old).norm()))
            shifts.append(differences[-1] / float(old.norm()))
            cosines.append(float(torch.cosine_similarity(new.flatten(), old.flatten(), dim=0)))
        with torch.no_grad():
            parameter.sub_(lr * old)
    after = _inputs(moved, input)
    moves = [
        float((new.mean(0) - old.mean(0)).norm() / old.std(0).norm()) for new, old in zip(after, before, strict=True)
    ]
    return {
        "shift": float(np.mean(shifts)),
        "difference": float(np.mean(differences)),
        "cosine": float(np.mean(cosines)),
        "inputs": float(np.mean(moves)),
    }


def _inputs(model: nn.Module, input: Tensor) -> list[Tensor]:
    """What the linear and convolution layers after the first are given, one row per example."""
    found: list[Tensor] = []
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)][1:]
    hooks = [layer.register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(1))) for layer in layers]
    with torch.no_grad():
        model(input)
    for hook in hooks:
        hook.remove()
    return found


def _judge_shift(runs: Runs) -> Verdict:
    def compared(metric: str, **levels: float) -> Interval:
        return ratio(_geometric(runs, metric, norm="batch", **levels), _geometric(runs, metric, norm="none", **levels))

    cosines = {norm: runs.where(norm=norm)["cosine"].mean() for norm in _NORMS}
    moved = compared("inputs")
    rates, absolute = (
        {lr: compared(metric, lr=lr) for lr in runs.trials["lr"].unique()} for metric in ("shift", "difference")
    )
    words = {lr: decided(found, 0.9) for lr, found in rates.items()}
    word: Word = "undecided" if len(set(words.values())) > 1 else next(iter(words.values()))
    told, also = (
        ", ".join(f"{each.estimate:.2f} [{each.low:.2f}, {each.high:.2f}] at rate {lr:g}" for lr, each in found.items())
        for found in (rates, absolute)
    )
    apart = {"holds", "fails"} <= set(words.values())
    return Verdict(
        word,
        f"the shift times {told}",
        f"That is the change of a layer's gradient by the step of the layers before it, relative to the gradient, with "
        f"batch normalization over without; of the change itself, Santurkar et al.'s measure, it is {also}. The cosine "
        f"between both gradients is {cosines['batch']:.2f} with it, {cosines['none']:.2f} without. The means of the "
        f"layers' inputs move {moved.estimate:.2g} times as far "
        f"[{moved.low:.2g}, {moved.high:.2g}]."
        + (" The learning rate decides which it is: there is no answer for all." if apart else more(word)),
    )


def _by_rate(curves: pd.DataFrame) -> pd.DataFrame:
    names = curves["norm"].map({"none": "plain", "batch": "normalized"})
    return curves.assign(line=names + ", rate " + curves["lr"].map("{:g}".format))


def _draw_shift(runs: Runs) -> Picture:
    return draw.courses(
        _by_rate(runs.curves), "epoch", "shift", "line", across="epoch", up="change of a layer's gradient, relative",
        log="y", alt="Change of a layer's gradient by the step of the layers before it, over training, with batch "
        "normalization and without, at two learning rates.",
    )  # fmt: skip


def smoothness(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    recipe: Mapping[str, Any],
    examples: int,
    every: int,
) -> dict[str, float]:
    """Sharpness along full-batch gradient descent on the squared error of few examples; its limit is 2 / rate.

    What is of the second half of training (late, ratio, along) is NaN where it diverged.
    """
    known, settings = _squared(task, examples), Recipe().varied({**recipe, **config, "batch_size": "full"})
    model = build_model(known, settings, seed)
    input, target = known.sample(examples)
    rows: list[dict[str, float]] = []

    def measure(row: dict[str, float]) -> None:
        step = int(row["epoch"]) + 1
        if step % every == 0 or step == 0:
            rows.append({"loss": row["train_loss"], **_sharpness(model, input, target, settings.learning_rate)})
            if trial is not None:
                trial.report(step, **rows[-1])

    measure({"epoch": -1.0, "train_loss": math.nan})
    found = fit(known, settings, seed, model=model, on_epoch=measure)
    table = pd.DataFrame(rows)
    half = table.iloc[-(len(table) // 2) :].mean(skipna=False)
    late = half * math.nan if found.metrics["diverged"] else half
    return {
        **found.metrics,
        "initial": float(table["sharpness"].iloc[0]),
        "late": float(late["sharpness"]),
        "ratio": float(late["ratio"]),
        "along": float(late["along"]),
    }


def _squared(task: str, examples: int) -> Task:
    """The first examples of a task of classes, with the squared distance from a one as loss; a tenth to watch by."""
    known = task_named(task)
    parts = (known.train.head(examples), known.valid.head(examples // 10), known.test.head(examples))
    data = [(x, functional.one_hot(y, known.outputs).float()) for x, y in parts]
    return Task(data=data, loss="mse", name=f"{task}-squared", default_model="mlp")


def _sharpness(model: nn.Module, input: Tensor, target: Tensor, lr: float) -> dict[str, float]:
    """The sharpness, its ratio to the limit, and the range of the loss along up to four steps, relative to it."""
    device = next(model.parameters()).device
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    batch = (input.to(device), target.to(device))
    try:
        seen = curvature(
            model, batch, loss_fn=nn.MSELoss(), optimizer=optimizer, tolerance=1e-2, max_iterations=40
        )  # fmt: skip
    except HomeostatError:  # it diverged: loss or gradient are not finite
        return dict.fromkeys(("sharpness", "ratio", "along"), math.nan)
    losses = [loss for _, loss in seen.losses]
    return {"sharpness": seen.sharpness, "ratio": seen.ratio, "along": (max(losses) - min(losses)) / seen.loss}


def _judge_smoothness(runs: Runs) -> Verdict:
    def apart(metric: str, **levels: Any) -> Interval:
        return ratio(_geometric(runs, metric, norm="none", **levels), _geometric(runs, metric, norm="batch", **levels))

    smoother, first, along = (apart(metric) for metric in ("late", "initial", "along"))

    def at(lr: float) -> str:
        without, normalized = (runs.by_seed("ratio", norm=norm, lr=lr) for norm in _NORMS)
        if without.isna().all() or normalized.isna().all():
            return f"at rate {lr:g} not to be compared, since all runs of one kind diverged"
        return (
            f"at rate {lr:g} {without.mean():.2f} times 2/η without and {normalized.mean():.2f} times with batch "
            f"normalization, {apart('late', lr=lr).estimate:.2f} times as sharp without"
        )

    told = "; ".join(at(lr) for lr in runs.trials["lr"].unique())
    word = decided(smoother, 1.25)
    return Verdict(
        word,
        f"{smoother.estimate:.2f} times as sharp without [{smoother.low:.2f}, {smoother.high:.2f}]",
        f"That is over both rates, in the second half of training. The sharpness is then {told}. Where both are at 2/η "
        f"they cannot differ. At the start it is {first.estimate:.2f} times as large without as with it; the loss "
        f"along the step, relative to where it starts, varies {along.estimate:.2g} times as much."
        + more(word, smoother, threshold=1.25),
    )


def _draw_smoothness(runs: Runs) -> Picture:
    return draw.courses(
        _by_rate(runs.curves), "epoch", "ratio", "line", across="step of gradient descent",
        up="sharpness over 2 / learning rate", line=1.0, log="y",
        alt="Sharpness over its limit along gradient descent, with batch normalization and without, at two rates.",
    )  # fmt: skip


_PLAIN = {"model": "mlp", "optimizer": "sgd", "momentum": 0.0}

CLAIMS = (
    Claim(
        id="bn-shift",
        sentence="Batch normalization was originally proposed to mitigate the internal covariate shift; later it was "
        "proved to not reduce it.",
        source="000, Batch normalization; 001, Why does Batchnorm work?; 002, BatchNorm: An illustrative example",
        hypothesis="The step of the layers before a layer changes its gradient at least as much with batch "
        "normalization as without, relative to the gradient (after Santurkar et al., who take the change itself).",
        criterion="Holds if the change with batch normalization is not more than a tenth smaller at the same learning "
        "rate: the whole interval of the ratio lies above 0.9 at every rate; fails if it lies below 0.9 at every rate; "
        "undecided in between.",
        experiment=shift,
        judge=_judge_shift,
        draw=_draw_shift,
        quick=Setup(
            "digits, 1,078 examples; 3×100 units, 12 epochs, two learning rates",
            {"norm": ["none", "batch"], "lr": [0.03, 0.3]}, 10,
            {"task": "digits", "examples": 512, "recipe": {**_PLAIN, "widths": "100x100x100", "epochs": 12}},
        ),
        full=Setup(
            "CIFAR-10; a convolutional net of three layers, 10 epochs, two learning rates",
            {"norm": ["none", "batch"], "lr": [0.03, 0.3]}, 5,
            {"task": "cifar10", "examples": 512, "recipe": {**_PLAIN, "model": "cnn", "widths": "16x32x64",
                                                            "epochs": 10}},
        ),
        literature="Santurkar et al. 2018 (VGG on CIFAR-10, and a deep linear net): with batch normalization the "
        "gradients change as much or more; and noise that brings the shift back does not slow training. Ioffe & "
        "Szegedy 2015 meant the distributions of the layers' inputs, which is measured here too.",
    ),
    Claim(
        id="bn-smoothness",
        sentence="Learning over smooth landscapes is more stable and faster; batch normalization makes the "
        "optimization landscape significantly smoother. Against it: the sharpness hovers right at (or just above) 2/η "
        "when both BN and non-BN networks are trained using gradient descent at reasonable step sizes.",
        source="001, Why does Batchnorm work?; 002, BatchNorm: An illustrative example",
        hypothesis="Along full-batch gradient descent at the same learning rate, the loss is less sharp with batch "
        "normalization.",
        criterion="Holds if in the second half of training the largest eigenvalue of the Hessian is at least 1.25 "
        "times as large without batch normalization (geometric mean over the rates), the whole interval; fails if the "
        "whole interval lies below 1.25.",
        experiment=smoothness,
        judge=_judge_smoothness,
        draw=_draw_smoothness,
        quick=Setup(
            "digits, 300 examples, squared error; 2×50 tanh units, 400 steps, two learning rates",
            {"norm": ["none", "batch"], "lr": [0.3, 0.6]}, 5,
            {
                "task": "digits", "examples": 300, "every": 40,
                "recipe": {**_PLAIN, "activation": "tanh", "widths": "50x50", "epochs": 400},
            },
        ),
        full=Setup(
            "CIFAR-10, 1,000 examples, squared error; 2×200 tanh units, 3,000 steps, two learning rates",
            {"norm": ["none", "batch"], "lr": [0.03, 0.1]}, 5,
            {
                "task": "cifar10", "examples": 1000, "every": 150,
                "recipe": {**_PLAIN, "activation": "tanh", "widths": "200x200", "epochs": 3000},
            },
        ),
        literature="Santurkar et al. 2018: along the steps of a VGG net's stochastic gradient descent the loss and its "
        "gradient vary less with batch normalization. Cohen et al. 2021 (appendix K.1): with full-batch gradient "
        "descent the sharpness of VGG nets is at 2/η both with and without.",
    ),
)  # fmt: skip
