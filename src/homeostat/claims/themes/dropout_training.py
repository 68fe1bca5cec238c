"""What dropout does to training: overfitting, features, weights in the place of units, normalization behind it.

All by paired seeds. A seed decides which examples are trained on, the weights, the order and the masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, directed, more, points, seed_mean, settled
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.parts.dropout import drops, set_p_
from homeostat.parts.population import update_statistics_
from homeostat.training.datasets import load_task
from homeostat.training.evaluation import Evaluation
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


def regression(config: Mapping[str, Any], seed: int, *, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Errors of a net on twenty noisy points of a sine, drawn anew for every seed."""
    found = experiments.fitted(config, seed, task=load_task("curve", seed=seed), recipe=recipe)
    return {f"{split}_rmse": found.metrics[f"{split}_rmse"] for split in ("train", "valid", "test")}


def _judge_regression(runs: Runs) -> Verdict:
    valid = {p: runs.by_seed("valid_rmse", dropout=p).mean() for p in runs.trials["dropout"].unique() if p > 0}
    chosen = float(min(valid, key=lambda p: np.nan_to_num(valid[p], nan=np.inf)))
    plain, dropped = (runs.by_seed("test_rmse", dropout=p) for p in (0.0, chosen))
    gap = seed_mean(plain - dropped)
    word = decided(gap)
    return Verdict(
        word,
        f"test error {_lower(gap)}",
        f"Root mean squared error {plain.mean():.3f} without and {dropped.mean():.3f} with dropout of {chosen:g}, the "
        f"best on validation data; the noise alone is 0.3. On the twenty training points it is "
        f"{runs.by_seed('train_rmse', dropout=0.0).mean():.3f} and "
        f"{runs.by_seed('train_rmse', dropout=chosen).mean():.3f}." + more(word, gap),
    )


def _lower(drop: Interval) -> str:
    """What a number falls by: "lower by 0.056 [0.027, 0.084]", or "higher by" the opposite."""
    by, way = directed(drop, "lower", "higher")
    return f"{way} by {by.estimate:.3f} [{by.low:.3f}, {by.high:.3f}]".replace("-", "−")


def features(
    config: Mapping[str, Any], seed: int, *, task: str, examples: int | None, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """How hidden units go together on test data, and how rarely they are active; means over the hidden layers."""
    known = experiments.few(task, examples, seed)
    found = experiments.fitted(config, seed, task=known, recipe=recipe)
    rows = [_together(hidden) for hidden in _hidden(found.model.cpu(), known)]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return {**means, "accuracy": found.metrics["test_accuracy"]}


@torch.no_grad()
def _hidden(model: nn.Module, task: Task) -> list[Tensor]:
    """What every linear layer but the first gets, on test data."""
    seen: list[Tensor] = []
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)][1:]
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].double())) for layer in layers]
    model(task.prepare(task.test.head(2000)[0]))
    for hook in hooks:
        hook.remove()
    return seen


def _together(hidden: Tensor) -> dict[str, float]:
    alive = hidden[:, hidden.var(0) > 0]
    count = alive.shape[1]
    correlation = torch.corrcoef(alive.T).abs() if count > 1 else torch.full((1, 1), torch.nan)
    covariance = torch.cov(alive.T).abs() if count > 1 else torch.full((1, 1), torch.nan)
    pairs = ~torch.eye(len(correlation), dtype=torch.bool)
    return {
        "correlation": float(correlation[pairs].mean()),
        "covariance": float(covariance[pairs].mean()),
        "silent": float((hidden == 0).double().mean()),
        "activation": float(hidden.mean()),
    }


_MEASURES = ("correlation", "covariance", "silent", "activation", "accuracy")


def _judge_features(runs: Runs) -> Verdict:
    without, dropped = ({name: runs.by_seed(name, dropout=p) for name in _MEASURES} for p in (0.0, 0.5))
    looser = seed_mean(without["correlation"] - dropped["correlation"])
    sparser = seed_mean(dropped["silent"] - without["silent"])
    fallen = seed_mean(without["covariance"] - dropped["covariance"])
    word, number = settled(
        (decided(looser), f"correlation {_lower(looser)}"),
        (decided(sparser), f"units silent for {points(sparser)} more"),
    )
    apart = {decided(looser), decided(fallen)} == {"holds", "fails"}
    contrary = ", which says the contrary: dropout changes deviations too" if apart else ""
    asked = looser if decided(looser) == "undecided" else sparser
    return Verdict(
        word,
        number,
        f"The mean absolute correlation of two units of a layer is {without['correlation'].mean():.3f} without and "
        f"{dropped['correlation'].mean():.3f} with dropout; their covariance is {_lower(fallen)} with it{contrary}. "
        f"Units are silent for {without['silent'].mean():.0%} and {dropped['silent'].mean():.0%} of the examples, and "
        f"their mean activation is {without['activation'].mean():.2f} and {dropped['activation'].mean():.2f}. Test "
        f"accuracy with dropout: {points(seed_mean(dropped['accuracy'] - without['accuracy']))}." + more(word, asked),
    )


def _draw_features(runs: Runs) -> Picture:
    frame = runs.trials.melt(["dropout", "seed"], ["correlation", "silent"], var_name="what", value_name="value")
    names = {"correlation": "correlation of two units", "silent": "examples without activity"}
    return draw.levels(
        frame.sort_values(["what", "dropout"], kind="stable"), ["what", "dropout"], "value",
        across="mean absolute correlation; share",
        alt="Mean absolute correlation of two units of a layer, and the share of examples for which a unit is silent, "
        "by the probability of dropping.",
        names={(what, p): f"{name}, p = {p:g}" for what, name in names.items() for p in frame["dropout"].unique()},
    )  # fmt: skip


_DROPPED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "units": {"dropout": 0.5},
    "weights": {"dropout": 0.5, "dropout_kind": "connect"},
}


def connections(
    config: Mapping[str, Any], seed: int, *, task: str, examples: int | None, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Accuracies with nothing dropped, half of the units, or half of the weights behind them."""
    found = experiments.fitted(
        _DROPPED[config["dropped"]], seed, task=experiments.few(task, examples, seed), recipe=recipe
    )
    return {"accuracy": found.metrics["test_accuracy"], "train_accuracy": found.metrics["train_accuracy"]}


def _judge_connections(runs: Runs) -> Verdict:
    nothing, units, weights = (runs.by_seed("accuracy", dropped=what) for what in _DROPPED)
    connect, drop = seed_mean(weights - nothing), seed_mean(units - nothing)
    word, number = settled(
        (decided(connect), f"DropConnect {points(connect)}"), (decided(drop), f"dropout {points(drop)}")
    )
    asked = connect if decided(connect) == "undecided" else drop
    between = seed_mean(weights - units)
    ahead = {"holds": "DropConnect is ahead", "fails": "dropout is ahead", "undecided": "undecided"}[decided(between)]
    return Verdict(
        word,
        number,
        f"Against nothing dropped, with a test accuracy of {nothing.mean():.1%}: DropConnect {points(connect)}, "
        f"dropout {points(drop)}. DropConnect against dropout: "
        f"{points(between)}, {ahead}." + more(word, asked),
    )


def with_norm(
    config: Mapping[str, Any], seed: int, *, task: str, examples: int | None, recipe: Mapping[str, Any], p: float
) -> dict[str, float]:
    """Accuracy by norm and place of dropout, as trained and with measured statistics, and the shift of variances.

    The shift is the variance that a normalization sees with dropout on over that with dropout off, the geometric mean
    over channels of the layers that have dropout in front.
    """
    known = experiments.few(task, examples, seed)
    dropped = {} if config["place"] == "nowhere" else {"dropout": p}
    settings = Recipe().varied({**recipe, "norm": config["norm"], **dropped})
    model = build_model(known, settings, seed)
    droppers = [name for name, module in model.named_modules() if drops(module)]
    if config["place"] == "behind":
        set_p_(model, dict.fromkeys(droppers[:-1], 0.0))
    found = {"accuracy": fit(known, settings, seed, model=model).metrics["test_accuracy"]}
    found |= {"remeasured": found["accuracy"], "shift": np.nan if np.isnan(found["accuracy"]) else 1.0}
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms or np.isnan(found["accuracy"]):
        return found
    evaluation = Evaluation(known, settings, seed, torch.device("cpu"))
    batches = [known.prepare(x) for x, _ in evaluation.batches("train", 0, 128, shuffle=False)]
    variances = []
    for dropout in (True, False):
        update_statistics_(model.cpu(), batches, dropout=dropout, seed=seed)
        variances.append(torch.cat([torch.as_tensor(norm.running_var) for norm in norms[1:]]).double().clone())
    found["shift"] = float((variances[0].log() - variances[1].log()).mean().exp())
    found["remeasured"] = evaluation.measure(model, "test")["test_accuracy"]
    return found


def _judge_norm(runs: Runs) -> Verdict:
    def gain(norm: str, place: str = "between") -> pd.Series[float]:
        first, second = (runs.by_seed("accuracy", norm=norm, place=each) for each in (place, "nowhere"))
        return first - second

    shift = seed_mean(runs.by_seed("shift", norm="batch", place="between"))
    poorer = seed_mean(gain("none") - gain("batch"))
    as_trained = runs.by_seed("accuracy", norm="batch", place="between")
    cured = seed_mean(runs.by_seed("remeasured", norm="batch", place="between") - as_trained)
    less, way = directed(poorer, "less", "more")
    word, number = settled(
        (decided(poorer), f"{points(less)} {way} to gain"),
        (decided(shift, 1.0), f"variance {shift.estimate:.2f} times as large"),
        (decided(cured), f"{points(cured)} by measuring again"),
    )
    parts = [(shift, 1.0), (poorer, 0.0), (cured, 0.0)]
    asked = next((part for part in parts if decided(*part) == "undecided"), parts[0])
    return Verdict(
        word,
        number,
        f"With dropout in front, the variance is {shift.estimate:.2f} times as large [{shift.low:.2f}, "
        f"{shift.high:.2f}] in training as at test time; measuring the statistics again changes the test accuracy by "
        f"{points(cured)}. Dropout between the layers changes it by {points(seed_mean(gain('none')))} without "
        f"normalization and by {points(seed_mean(gain('batch')))} with batch normalization; only behind the last "
        f"one, by {points(seed_mean(gain('batch', 'behind')))}." + more(word, asked[0], threshold=asked[1]),
    )


def _draw_norm(runs: Runs) -> Picture:
    again = runs.where(norm="batch", place="between")
    again = again.assign(place="between, measured again", accuracy=again["remeasured"])
    frame = pd.concat([runs.trials, again]).sort_values("norm", key=lambda norm: norm == "batch", kind="stable")
    places = {
        "nowhere": "no dropout", "between": "dropout between", "behind": "dropout at the end",
        "between, measured again": "between, statistics again",
    }  # fmt: skip
    norms = {"none": "no norm", "batch": "BN"}
    return draw.levels(
        frame, ["norm", "place"], "accuracy", across="test accuracy",
        alt="Test accuracy without and with batch normalization, by the place of dropout, and with the statistics of "
        "the normalization measured again without dropout.",
        names={(norm, place): f"{known}, {label}" for norm, known in norms.items() for place, label in places.items()},
    )  # fmt: skip


_DIGITS = {"model": "mlp", "widths": "256x256", "batch_size": 32, "epochs": 40}
_FEW = {"task": "digits", "examples": 300}
_SOME = "digits, 300 examples drawn anew for every seed, tested on 1,137; "
_MNIST = {"model": "mlp", "widths": "512x512", "batch_size": 128, "epochs": 15}
_CURVE = {"model": "mlp", "widths": "256x256", "optimizer": "adam", "lr": 0.003, "batch_size": 5}

CLAIMS = (
    Claim(
        id="dropout-regression",
        sentence="In this example, dropout results in a much better (though still not perfect) fit with lower test "
        "error.",
        source="000, Example from before (after Dropout)",
        hypothesis="On the small regression that a large net overfits, the net with dropout has the lower test error.",
        criterion="With the probability whose mean validation error is lowest: holds if the whole interval of the "
        "difference in root mean squared test error lies above zero, fails if it lies below.",
        experiment=regression,
        judge=_judge_regression,
        draw=lambda runs: draw.levels(
            runs.trials, "dropout", "test_rmse", across="root mean squared test error (noise: 0.3)", line=0.3,
            alt="Test error on the small regression by the probability of dropping; the noise alone is 0.3.",
            names={p: f"p = {p:g}" for p in runs.trials["dropout"].unique()},
        ),
        quick=Setup(
            "20 noisy points of sin(3x), drawn anew for every seed; 300 epochs of 4 steps",
            {"dropout": [0.0, 0.1, 0.25, 0.5]}, 10, {"recipe": {**_CURVE, "epochs": 300}},
        ),
        full=Setup(
            "20 noisy points of sin(3x), drawn anew for every seed; 2,000 epochs of 4 steps",
            {"dropout": [0.0, 0.05, 0.1, 0.25, 0.5]}, 50, {"recipe": {**_CURVE, "epochs": 2000}},
        ),
    ),
    Claim(
        id="dropout-coadaptation",
        sentence="How can this possibly be a good idea? It prevents co-adaptation of features.",
        source="003, Dropout; 004, Benefits of Dropout",
        hypothesis="With dropout of one half, units of a layer are less correlated, and each is silent for more of the "
        "examples.",
        criterion="Holds if the intervals of both differences, of the mean absolute correlation of two units of a "
        "hidden layer and of the share of zero activations, on test data without dropping, lie on the side of less "
        "correlation and more zeros; fails if one lies on the other.",
        experiment=features,
        judge=_judge_features,
        draw=_draw_features,
        quick=Setup(
            _SOME + "40 epochs, 2×256 rectified units", {"dropout": [0.0, 0.2, 0.5]}, 8, {**_FEW, "recipe": _DIGITS}
        ),
        full=Setup(
            "MNIST, 15 epochs, 2×512 rectified units", {"dropout": [0.0, 0.2, 0.5]}, 8,
            {"task": "mnist", "examples": None, "recipe": _MNIST},
        ),
        literature="Srivastava et al. 2014 (section 7.2): in an autoencoder of 256 rectified units on MNIST, the mean "
        "activation falls from about 2.0 to 0.7 with dropout of one half. Here nets classify.",
    ),
    Claim(
        id="dropconnect",
        sentence="Dropout vs. DropConnect: No-Drop Network, DropOut Network, DropConnect Network.",
        source="001, Dropout vs. DropConnect",
        hypothesis="Dropping half of the weights improves the test accuracy over dropping nothing, as dropping half of "
        "the units does.",
        criterion="Holds if the whole intervals of both differences to nothing dropped lie above zero; fails if one "
        "lies below. DropConnect against dropout is said beside.",
        experiment=connections,
        judge=_judge_connections,
        draw=lambda runs: draw.levels(
            runs.trials, "dropped", "accuracy", across="test accuracy",
            alt="Test accuracy with nothing, units or weights dropped.",
            names={"nothing": "nothing dropped", "units": "dropout", "weights": "DropConnect"},
        ),
        quick=Setup(_SOME + "40 epochs, 2×256 units", {"dropped": list(_DROPPED)}, 10, {**_FEW, "recipe": _DIGITS}),
        full=Setup(
            "MNIST, 30 epochs, 2×800 units", {"dropped": list(_DROPPED)}, 6,
            {"task": "mnist", "examples": None, "recipe": {**_MNIST, "widths": "800x800", "epochs": 30}},
        ),
        literature="Wan et al. 2013 (table 2; MNIST, 2×800 rectified units): error 1.62 % with nothing dropped, 1.28 % "
        "with dropout, 1.20 % with DropConnect. There every example has its own mask, and prediction samples from a "
        "normal distribution; here a batch shares one, and prediction uses the mean weights.",
    ),
    Claim(
        id="dropout-before-bn",
        sentence="Variance is generally not preserved and as a result dropout often works poorly with normalization.",
        source="004, Dropout: testing phase",
        hypothesis="Batch normalization behind dropout sees a larger variance in training than at test time, dropout "
        "gains less accuracy with it than without, and measuring the statistics again without dropout helps.",
        criterion="Holds if three intervals lie above their bounds: of the ratio of variances with dropout on and off "
        "(1), of dropout's gain in test accuracy without minus with batch normalization (0), and of the accuracy with "
        "statistics measured again minus as trained (0); fails if one lies below.",
        experiment=with_norm,
        judge=_judge_norm,
        draw=_draw_norm,
        quick=Setup(
            _SOME + "40 epochs, 3×128 units, dropout of one half",
            {"norm": ["none", "batch"], "place": ["nowhere", "between", "behind"]}, 8,
            {**_FEW, "recipe": {**_DIGITS, "widths": "128x128x128"}, "p": 0.5},
        ),
        full=Setup(
            "Fashion-MNIST, 15 epochs, 3×256 units, dropout of one half",
            {"norm": ["none", "batch"], "place": ["nowhere", "between", "behind"]}, 10,
            {"task": "fashion-mnist", "examples": None, "recipe": {**_MNIST, "widths": "256x256x256"}, "p": 0.5},
        ),
        literature="Li et al. 2019 (arXiv:1801.05134): the test accuracy of a DenseNet on CIFAR-100 falls from 77.42 "
        "to 68.55 % with dropout of one half in each bottleneck; behind the last normalization dropout does no harm. "
        "Here nets are fully connected.",
    ),
)  # fmt: skip
