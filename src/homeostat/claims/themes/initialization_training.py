"""What the scale of the first weights, and of the inputs, does to training.

Everything is trained by recipes; rates of learning are chosen by validation where treatments may want different ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from homeostat.claims import draw, experiments
from homeostat.claims.claim import (
    Claim,
    Runs,
    Setup,
    Verdict,
    Word,
    between,
    decided,
    more,
    points,
    said,
    seed_mean,
    settled,
)
from homeostat.inference import NO_INTERVAL, Interval
from homeostat.study.factors import Level
from homeostat.study.running.runner import Trial
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.sources import TensorSource
from homeostat.training.task import Task

_LEARNED = 0.5  # of the answers correct, five times what guessing one of ten classes gives


def variance(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """A net whose weights have variance c / fan_in, trained."""
    start = {"init": "he_normal", "init_gain": math.sqrt(config["c"])}
    return experiments.trained({"lr": config["lr"]}, seed, task=task, recipe={**recipe, **start})


def _best_rate(runs: Runs, metric: str, **levels: Level) -> float | None:
    """The learning rate with the highest mean, among those at which no run diverged."""
    means = {rate: own[metric].mean(skipna=False) for rate, own in runs.where(**levels).groupby("lr")}
    finite = {float(str(rate)): float(mean) for rate, mean in means.items() if math.isfinite(mean)}
    return max(finite, key=finite.__getitem__, default=None)


def _judge_variance(runs: Runs) -> Verdict:
    best = _best_rate(runs, "valid_accuracy", c=2.0)
    if best is None:
        return Verdict("undecided", "no number", "With c = 2 runs diverged at every rate; lower rates would decide it.")
    learned = (runs.trials["test_accuracy"] > _LEARNED).groupby([runs.trials["c"], runs.trials["lr"]]).mean()
    works = float(learned[2.0, best])
    found = zip(learned.index.to_frame(index=False).to_numpy(dtype=float).tolist(), learned, strict=True)
    poor = {(c, rate): float(share) for (c, rate), share in found if c != 2.0}
    lost = float(runs.where(c=3.0, lr=best)["diverged"].mean())
    if works == 1 and not any(poor.values()) and lost == 1:
        word: Word = "holds"
    else:
        word = "fails" if works < 0.5 or max(poor.values()) > 0.5 or lost < 0.5 else "undecided"
    rescued = [f"c = {c:g} at a rate of {rate:g}" for (c, rate), share in poor.items() if share > 0]
    also = f"Some runs learn with {' and with '.join(rescued)}." if rescued else "No other rate tried helps them."
    one, two = (_percent(runs, "test_accuracy", c=c, lr=best) for c in (1.0, 2.0))
    most = max(poor.values())
    return said(
        word,
        f"{works:.0%} learn with c = 2, at most {most:.0%} with c = 1 or 3; {lost:.0%} in NaN with c = 3",
        f"At a rate of {best:g}, the best for c = 2, {two} of the answers are correct with c = 2 and {one} with c = 1; "
        f"with c = 3, {lost:.0%} of the runs end in NaN. {also}",
    )


def _percent(runs: Runs, metric: str, **levels: Level) -> str:
    accuracy = runs.where(**levels)[metric].mean()
    return "none" if math.isnan(accuracy) else f"{accuracy:.0%}"


def persistence(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    recipe: Mapping[str, Any],
    target: float,
) -> dict[str, float]:
    """The scale of weights and of hidden outputs at the start, and when validation accuracy first reaches a target."""
    data = experiments.task_named(task)
    start = {"init": "he_normal", "init_gain": math.sqrt(config["c"]), "optimizer": config["optimizer"]}
    settings = Recipe().varied(recipe).varied(start)
    model = build_model(data, settings, seed)
    input = data.sample(256)[0]
    course = [(0.0, *_scales(model, input))]

    def look(row: dict[str, float]) -> None:
        course.append((row["valid_accuracy"], *_scales(model, input)))

    fit(data, settings, seed, model=model, on_epoch=look)
    if trial is not None:
        for epoch, (accuracy, weights, _) in enumerate(course):
            trial.report(epoch, valid_accuracy=accuracy, weights=weights)
    reached = next((epoch for epoch, row in enumerate(course) if row[0] >= target), None)
    after = course[reached] if reached is not None else (math.nan,) * 3
    return {
        "weights_before": course[0][1],
        "weights_after": after[1],
        "weights_at_end": course[-1][1],
        "outputs_before": course[0][2],
        "outputs_after": after[2],
        "epochs_needed": math.nan if reached is None else float(reached),
    }


@torch.no_grad()
def _scales(model: nn.Module, input: Tensor) -> tuple[float, float]:
    """fan_in times the mean square of the weights between hidden layers; the mean square of the last one's sums."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [float(layer.weight.square().mean()) * layer.in_features for layer in linear[1:-1]]
    layers = list(model.children())
    for layer in layers[: layers.index(linear[-2]) + 1]:
        input = layer(input)
    return float(np.mean(weights)), float(input.square().mean())


def _kept(runs: Runs, what: str, optimizer: str) -> Interval:
    """The share of the logarithm of the ratio between the largest and the smallest scale that is left."""
    own = runs.where(optimizer=optimizer)
    least, most = min(own["c"]), max(own["c"])
    table = own.pivot(index="seed", columns="c", values=[f"{what}_before", f"{what}_after"])[
        [(f"{what}_{when}", c) for when in ("before", "after") for c in (least, most)]
    ]
    before, after = (np.log(table[f"{what}_{when}", most] / table[f"{what}_{when}", least]) for when in _WHEN)
    return seed_mean((after / before).dropna())  # the claim is about nets that were trained successfully


def _judge_persistence(runs: Runs) -> Verdict:
    optimizers = list(dict.fromkeys(runs.trials["optimizer"]))
    kept, outputs = ({name: _kept(runs, what, name) for name in optimizers} for what in ("weights", "outputs"))
    missed = int(runs.trials["epochs_needed"].isna().sum())
    least = sorted(kept, key=lambda name: np.nan_to_num(kept[name].low))
    return said(
        *settled(
            *(
                (
                    decided(kept[name], 0.5),
                    f"{kept[name].estimate:.0%} of the weights' ratio left [{kept[name].low:.0%}, "
                    f"{kept[name].high:.0%}], {outputs[name].estimate:.0%} of the outputs', with {name}",
                )
                for name in least
            )
        ),
        "Of the ratio of weight variances between c = 3 and c = 1, on a logarithmic scale, is left at the target: "
        + ", ".join(f"{found.estimate:.0%} with {name}" for name, found in kept.items())
        + "; of that of the last hidden layer's sums, which the criterion does not ask for, "
        + ", ".join(f"{found.estimate:.0%} with {name}" for name, found in outputs.items())
        + "."
        + (f" {missed} of {len(runs.trials)} runs never reach it; their seeds are left out." if missed else ""),
    )


def _with_lines(trials: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The trials with a column `line` that names the other levels."""
    lines = [", ".join(map(str, row)) for row in trials[list(columns)].to_numpy(dtype=object)]
    return trials.assign(line=lines)


def activation(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Validation accuracy in the mean over the epochs: high where training is fast and ends well; NaN if diverged."""
    found = experiments.fitted(config, seed, task=task, recipe=recipe)
    course = [row["valid_accuracy"] for row in found.history]
    return {"mean_accuracy": math.nan if found.metrics["diverged"] else float(np.mean(course)), **found.metrics}


def _judge_activation(runs: Runs) -> Verdict:
    parts: list[tuple[Word, str]] = []
    told, ends = [], []
    for name, suited, other in (
        ("relu", "he_normal", "xavier_normal"),
        ("tanh", "xavier_normal", "he_normal"),
        ("sigmoid", "xavier_normal", "he_normal"),
    ):
        best = {scheme: _best_rate(runs, "mean_accuracy", activation=name, init=scheme) for scheme in (suited, other)}
        levels = [{"activation": name, "init": scheme, "lr": rate} for scheme, rate in best.items()]
        found = NO_INTERVAL if None in best.values() else runs.difference("mean_accuracy", *levels)
        reached = " and ".join(
            f"{_percent(runs, 'mean_accuracy', **each)} from {str(each['init']).split('_')[0].title()}"
            for each in levels
        )
        told.append(f"{name} {points(found)} ({reached})")
        inner = all(between(rate, runs.trials["lr"].astype(float)) for rate in best.values())
        ends += [] if inner else [name]
        parts.append((decided(found) if inner else "undecided", f"{points(found)} for {name}"))
    word, number = settled(*parts)
    open_ends = f" For {' and '.join(ends)} the best rate is an end of those tried: others would decide it."
    return Verdict(
        word,
        number,
        "Mean accuracy over the epochs with the suited initialization minus the other, each at its best learning rate: "
        + "; ".join(told)
        + "."
        + (open_ends if ends else more(word)),
    )


@functools.cache
def _given(name: str, inputs: str) -> Task:
    """A task whose inputs are standardized, or as they were measured."""
    standardize = inputs == "standardized"
    if name == "breast-cancer":
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        pair = torch.from_numpy(x).float(), torch.from_numpy(y).long()
        return Task(data=(pair, None, None), standardize=standardize, classes=2, name=name)
    known = experiments.task_named(name)
    pairs = [(split.x, split.y) for split in known.data if isinstance(split, TensorSource)]
    return Task(data=pairs, standardize=standardize, classes=known.classes, default_model="mlp", name=name)


def inputs(config: Mapping[str, Any], seed: int, *, recipe: Mapping[str, Any], target: float) -> dict[str, float]:
    """The epochs until validation accuracy first reaches a target, one more than there are if never; where it ends."""
    task = _given(config["data"], config["inputs"])
    found = experiments.fitted({"lr": config["lr"]}, seed, task=task, recipe=recipe)
    course = [row["valid_accuracy"] for row in found.history]
    needed = next((epoch for epoch, value in enumerate(course, 1) if value >= target), found.recipe.epochs + 1)
    return {
        "epochs_needed": float(needed),
        "trains": float(course[-1] >= target and not found.metrics["diverged"]),
        "test_accuracy": found.metrics["test_accuracy"],
    }


def _judge_inputs(runs: Runs) -> Verdict:
    saved, rates, never = {}, {}, []
    count = len(dict.fromkeys(runs.trials["lr"]))
    for data in dict.fromkeys(runs.trials["data"]):
        best = {}
        for given in ("raw", "standardized"):
            own = runs.where(data=data, inputs=given).groupby("lr")["epochs_needed"].mean()
            best[given] = {"data": data, "inputs": given, "lr": float(str(own.idxmin()))}
        saved[data] = runs.difference("epochs_needed", best["raw"], best["standardized"])
        wide = runs.difference("trains", {"data": data, "inputs": "standardized"}, {"data": data, "inputs": "raw"})
        rates[data] = Interval(*(count * end for end in wide[:3]))
        never += [] if runs.where(data=data, inputs="raw")["trains"].any() else [data]
    word, number = settled(
        *((decided(found), f"{_shown(found)} epochs saved on {data}") for data, found in saved.items()),
        *((decided(found), f"{_shown(found)} rates more on {data}") for data, found in rates.items()),
    )
    return said(
        word,
        number,
        "At the best rate of each, standardized inputs save "
        + ", ".join(
            f"{'at least ' if data in never else ''}{_shown(found)} epochs on {data}" for data, found in saved.items()
        )
        + "; rates at which training succeeds, more by "
        + ", ".join(f"{_shown(found)} on {data}" for data, found in rates.items())
        + f" of {count}."
        + (f" With raw inputs no rate ends at the target on {' and '.join(map(str, never))}." if never else ""),
    )


def _shown(interval: Interval) -> str:
    low, high = (f"{end:.1f}".replace("-", "−") for end in interval[1:3])
    return f"{interval.estimate:+.1f} [{low}, {high}]".replace("-", "−")


_WHEN = ("before", "after")
_DEEP = {"model": "mlp", "optimizer": "sgd", "momentum": 0.0}
_VARIANCES = {"c": [1.0, 2.0, 3.0], "lr": [0.001, 0.01, 0.03, 0.1]}
_SCALES: dict[str, Sequence[Level]] = {"c": [1.0, 2.0, 3.0], "optimizer": ["sgd", "adam"]}
_HIDDEN = {"model": "mlp", "widths": [128] * 4}
_SUITED = {"activation": ["relu", "tanh", "sigmoid"], "init": ["he_normal", "xavier_normal"]}
_RATES = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]
_BASE = {"model": "mlp", "widths": [64, 64], "init": "he_normal", "optimizer": "sgd", "momentum": 0.0}

CLAIMS = (
    Claim(
        id="init-variance",
        sentence="For weights drawn from N(0, c/n) in a ReLU network: 3/n gives NaN, 2/n works, 1/n makes no progress. "
        "A deep network with poorly-chosen weights will never train (at least with vanilla SGD).",
        source="002, Initialization vs. optimization",
        hypothesis="With the learning rate that is best for c = 2, a deep net trains, with c = 1 it does not learn and "
        "with c = 3 it ends in NaN; and no other of the learning rates makes c = 1 or c = 3 learn.",
        criterion="A run has learned with more than half of the test answers correct. Holds if all runs with c = 2 "
        "learn at the best rate (by validation, among rates without NaN), all with c = 3 end in NaN there, and none "
        "with c = 1 or 3 learns at any rate. Fails if less than half with c = 2 learn, less than half with c = 3 end "
        "in NaN, or more than half with c = 1 or 3 learn at some rate. Undecided in between.",
        experiment=variance,
        judge=_judge_variance,
        draw=lambda runs: draw.levels(
            runs.trials, ["c", "lr"], "test_accuracy", across="test accuracy, share", line=0.1,
            alt="Test accuracy of a deep ReLU net by the variance c/n of its first weights and by learning rate.",
            names={
                (c, rate): f"c = {c:g}, learning rate {rate:g}"
                for c, rate in itertools.product(_VARIANCES["c"], _VARIANCES["lr"])
            },
        ),
        quick=Setup(
            "digits, 1,078 examples; ReLU mlp of 30×64, 30 epochs of sgd without momentum", _VARIANCES, 5,
            # with 15 epochs the nets with c = 2 were still far from done
            {"task": "digits", "recipe": {**_DEEP, "widths": [64] * 30, "epochs": 30}},
        ),
        full=Setup(
            "MNIST; ReLU mlp of 50×100, 5 epochs of sgd without momentum", _VARIANCES, 10,
            {"task": "mnist", "recipe": {**_DEEP, "widths": [100] * 50, "epochs": 5}},
        ),
        literature="The slide does not give depth, width or learning rate. He et al. 2015 (arXiv:1502.01852) saw the "
        "same on ImageNet: a 30-layer ReLU net stalls from Xavier initialization, which is c = 1, and converges from "
        "c = 2.",
    ),
    Claim(
        id="init-persists",
        sentence="Won't the scale of the initial weights be \"fixed\" after a few iterations of optimization? No! Even "
        "when trained successfully, the effects and scales present at initialization persist throughout training "
        "(train to 5 % error on MNIST).",
        source="002, Initialization vs. optimization",
        hypothesis="When validation error first is 5 % or less, more than half of the logarithm of the ratio 3 between "
        "the weight variances of nets that started with 3/n and 1/n is left.",
        criterion="Holds if the whole interval of that share, paired by seed, lies above 0.5 for both optimizers; "
        "fails if it lies below 0.5 for one. Of seeds both of whose nets get there: the lecture speaks of those.",
        experiment=persistence,
        judge=_judge_persistence,
        draw=lambda runs: draw.courses(
            _with_lines(runs.curves.assign(c=[f"{c:g}/n" for c in runs.curves["c"]]), "c", "optimizer"),
            "epoch", "weights", "line", across="epoch", up="n times the variance of weights",
            alt="n times the mean square of the weights between hidden layers over the epochs, by their first variance "
            "and by optimizer.",
        ),
        quick=Setup(
            "digits, 1,078 examples; ReLU mlp of 4×128, 30 epochs", _SCALES, 5,
            {"task": "digits", "recipe": {**_HIDDEN, "epochs": 30}, "target": 0.95},
        ),
        full=Setup(
            "MNIST; ReLU mlp of 4×128, 10 epochs", _SCALES, 10,
            {"task": "mnist", "recipe": {**_HIDDEN, "epochs": 10}, "target": 0.95},
        ),
        literature="Wide networks are known to stay near their first weights: in the limit of infinite width these do "
        "not move at all (Jacot et al. 2018, arXiv:1806.07572). How much is left depends on width, optimizer and time.",
    ),
    Claim(
        id="he-vs-xavier-relu",
        sentence="He initialization works well on ReLU and its variants. Xavier initialization works well on tanh, "
        "logistic or sigmoid activation functions.",
        source="003, Weight Initialization: Xavier Initialization; He Initialization",
        hypothesis="A net trains better from He than from Xavier weights with ReLU, and better from Xavier than from "
        "He weights with tanh and with sigmoid, each at its best learning rate.",
        criterion="By validation accuracy in the mean over the epochs, paired by seed. Holds if the whole interval of "
        "the suited minus the other initialization lies above 0 for all three activations; fails if it lies below 0 "
        "for one; undecided where a best rate is an end of those tried.",
        experiment=activation,
        judge=_judge_activation,
        draw=lambda runs: draw.courses(
            _with_lines(
                runs.trials.assign(init=[name.split("_")[0].title() for name in runs.trials["init"]]),
                "activation", "init",
            ),
            "lr", "mean_accuracy", "line", log="x",
            across="learning rate", up="mean validation accuracy over the epochs",
            alt="Mean validation accuracy over the epochs by learning rate, for ReLU, tanh and sigmoid nets that start "
            "from He and from Xavier weights.",
        ),
        quick=Setup(
            "digits, 1,078 examples; mlp of 3×64, 20 epochs of sgd",
            {**_SUITED, "lr": [0.01, 0.05, 0.25, 1.25, 6.25]}, 8,
            # with five layers and no momentum, sigmoid nets learned nothing from either
            {"task": "digits", "recipe": {"model": "mlp", "optimizer": "sgd", "widths": [64] * 3, "epochs": 20}},
        ),
        full=Setup(
            "MNIST; mlp of 5×128, 10 epochs of sgd",
            {**_SUITED, "lr": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]}, 6,
            {"task": "mnist", "recipe": {"model": "mlp", "optimizer": "sgd", "widths": [128] * 5, "epochs": 10}},
        ),
        literature="The slide divides by n[l], its sign for outgoing connections; here it is fan_in, as in most "
        "libraries, which is the same between layers of equal width. Xavier's derivation takes the slope at 0 to be 1; "
        "that of the sigmoid is 1/4.",
    ),
    Claim(
        id="input-normalization",
        sentence="The importance of normalising inputs is well understood: it improves numerical stability and reduces "
        "training time, and makes all features equally important before learning takes place.",
        source="001, Normalisation",
        hypothesis="With standardized inputs a net reaches the same validation accuracy in fewer epochs, each at its "
        "best learning rate, and trains at more learning rates.",
        criterion="Holds if on every data set the whole intervals of both differences, paired by seed, lie above 0: "
        "epochs to the target (raw minus standardized, each at the rate with the fewest; a run that never gets there "
        "counts one epoch more than it had), and the number of rates that end at or above the target (standardized "
        "minus raw). Fails if one lies below 0.",
        experiment=inputs,
        judge=_judge_inputs,
        draw=lambda runs: draw.courses(
            _with_lines(runs.trials, "data", "inputs"), "lr", "epochs_needed", "line", log="x",
            across="learning rate", up="epochs to the target accuracy; at the top, never",
            alt="Epochs until the target accuracy is reached, by learning rate, with raw and standardized inputs.",
        ),
        quick=Setup(
            "digits (pixels 0 to 255) and breast cancer (30 measurements); mlp 64×64, up to 20 epochs to 90 % accuracy",
            {"data": ["digits", "breast-cancer"], "inputs": ["raw", "standardized"], "lr": _RATES}, 5,
            {"recipe": {**_BASE, "epochs": 20}, "target": 0.9},
        ),
        full=Setup(
            "MNIST and Fashion-MNIST (pixels 0 to 255); mlp 64×64, up to 5 epochs to 85 % accuracy",
            {"data": ["mnist", "fashion-mnist"], "inputs": ["raw", "standardized"], "lr": _RATES}, 10,
            {"recipe": {**_BASE, "epochs": 5}, "target": 0.85},
        ),
        literature="LeCun et al. 1998 (Efficient BackProp) explain it: inputs of different scales, or far from zero, "
        "spread the curvatures of the loss, and the learning rate has to suit the largest.",
    ),
)  # fmt: skip
