"""What the scale of the first weights does to training.

Everything is trained by recipes; rates of learning are chosen by validation where treatments may want different ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
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
    also += "" if best > min(runs.trials["lr"].astype(float)) else " Lower rates were not tried."
    also += " Single runs speak against it: longer training or other depths would decide." * (word == "undecided")
    one, two = (_percent(runs, "test_accuracy", c=c, lr=best) for c in (1.0, 2.0))
    most = max(poor.values())
    return Verdict(
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


_WHEN = ("before", "after")
_DEEP = {"model": "mlp", "optimizer": "sgd", "momentum": 0.0}
_VARIANCES = {"c": [1.0, 2.0, 3.0], "lr": [0.001, 0.01, 0.03, 0.1]}
_SCALES: dict[str, Sequence[Level]] = {"c": [1.0, 2.0, 3.0], "optimizer": ["sgd", "adam"]}
_HIDDEN = {"model": "mlp", "widths": [128] * 4}
_SUITED = {"activation": ["relu", "tanh", "sigmoid"], "init": ["he_normal", "xavier_normal"]}

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
            draw.lined(runs.curves.assign(c=[f"{c:g}/n" for c in runs.curves["c"]]), "c", "optimizer"),
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
            draw.lined(
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
)  # fmt: skip
