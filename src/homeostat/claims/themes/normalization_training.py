"""What batch normalization does to training: speed, learning rates, saturating functions, initial scale.

Nets of a recipe are trained from the same weights on the same batches, with and without it. A run that diverged
predicts nothing: where accuracies are compared it counts as guessing among ten classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, more, points, ratio, said, seed_mean, settled
from homeostat.claims.experiments import fitted, trained
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.study.running.runner import Trial

_GUESSING = 0.1
_TRAINS = 0.9
NORMS = {"none": "without normalization", "batch": "batch normalization"}


def counted(runs: Runs, metric: str) -> Runs:
    """The runs with the accuracy of guessing where training diverged."""
    trials = runs.trials.copy()
    trials.loc[trials["diverged"] > 0, metric] = _GUESSING
    return Runs(trials, runs.curves, runs.setup)


def convergence(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    recipe: Mapping[str, Any],
    target: float,
) -> dict[str, float]:
    """Passes over the data until the training loss is below a target, NaN where it never is, and how training ends."""
    found = fitted(config, seed, trial, task=task, recipe=recipe)
    return {**found.metrics, "passes": _passes([row["train_loss"] for row in found.history], target)}


def _passes(losses: Sequence[float], target: float) -> float:
    """The pass whose mean loss is at the target, interpolated between two on a logarithmic scale."""
    for place, loss in enumerate(losses):
        if loss <= target:
            before = losses[place - 1] if place else target
            return place + (math.log(before / target) / math.log(before / max(loss, 1e-12)) if before > target else 1.0)
    return math.nan


def _judge_convergence(runs: Runs) -> Verdict:
    fastest = {norm: runs.where(norm=norm).groupby("seed")["passes"].min() for norm in NORMS}
    trains = counted(runs, "train_accuracy").trials
    trains = trains[trains["train_accuracy"] >= _TRAINS]
    largest = {norm: trains[trains["norm"] == norm].groupby("seed")["lr"].max() for norm in NORMS}
    speed, rates = ratio(fastest["none"], fastest["batch"]), ratio(largest["batch"], largest["none"])
    word, number = settled(
        (decided(speed, 1.0), f"{speed.estimate:.2f} times as fast [{speed.low:.2f}, {speed.high:.2f}]"),
        (decided(rates, 1.0), f"{rates.estimate:.2g} times the largest rate {_bounds(rates)}"),
    )
    if math.isnan(speed.estimate) or math.isnan(rates.estimate):
        text = "One kind of net never came to the target, or never to 90 %: longer training would decide it."
        return Verdict("undecided", "no ratio of speeds", text)
    lectured = "contains" if speed.low <= 3 <= speed.high else "does not contain"
    short = {norm: len(fastest[norm]) - len(largest[norm]) for norm in NORMS}
    bounds = (
        f"(no interval: seeds that get there at no rate are {short['none']} without it and {short['batch']} with it)"
    )
    asked = (speed,) if decided(speed, 1.0) == "undecided" else (speed, rates)
    return Verdict(
        word,
        number,
        f"Each at its own best learning rate it is {speed.estimate:.2f} times as fast; the interval {lectured} the "
        f"lecture's factor of 3 (+200 %). The largest rate that ends with 90 % is {rates.estimate:.2g} times as large "
        f"{bounds if any(short.values()) else _bounds(rates)}.{more(word, *asked, threshold=1.0)}",
    )


def _bounds(interval: Interval) -> str:
    return f"[{interval.low:.2g}, {interval.high:.2g}]"


def saturating(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """A net of so many layers of 100 units with a saturating function, like "sigmoid 3"."""
    activation, depth = str(config["net"]).split()
    own = {"activation": activation, "widths": "x".join(["100"] * int(depth))}
    varied = {"norm": config["norm"], "lr": config["lr"]}
    return trained(varied, seed, trial, task=task, recipe={**recipe, **own})


def _best(runs: Runs) -> Runs:
    """Of the learning rates that with the best training accuracy, for every net and seed."""
    trials = counted(runs, "train_accuracy").trials
    best = trials.groupby(["net", "norm", "seed"], sort=False)["train_accuracy"].max().reset_index()
    return Runs(best, runs.curves, runs.setup)


def _judge_saturating(runs: Runs) -> Verdict:
    best = _best(runs)
    nets = list(dict.fromkeys(best.trials["net"]))
    deep = [net for net in nets if not net.endswith(" 3")]
    gains = {
        net: best.difference("train_accuracy", {"net": net, "norm": "batch"}, {"net": net, "norm": "none"})
        for net in nets
    }
    reached = {net: best.mean("train_accuracy", net=net, norm="batch") for net in nets}
    nearest = sorted(deep, key=lambda net: gains[net].estimate)
    word, number = settled(
        *((decided(gains[net], 0.1), f"{points(gains[net])} for {net} layers") for net in nearest),
        *((decided(reached[net], _TRAINS), f"{net} layers reach {100 * reached[net].estimate:.1f} %") for net in deep),
    )
    told = (
        f"{net} layers {100 * reached[net].estimate:.1f} %, "
        f"without {100 * best.mean('train_accuracy', net=net, norm='none').estimate:.1f} %"
        for net in nets
    )
    text = f"Training accuracy at the best learning rate: {'; '.join(told)}."
    if all(decided(reached[net], _TRAINS) == "holds" for net in deep):
        text += " Both nets of ten layers do train with it, which is all that the lecture says."
    return said(word, number, text)


def _spread(runs: Runs, norm: str) -> tuple[Any, float, float]:
    """By seed the range of test accuracies over initial scales; and the lowest and highest mean of a scale."""
    chosen = counted(runs, "test_accuracy").where(norm=norm)
    seeded, scales = (chosen.groupby(by)["test_accuracy"] for by in ("seed", "init_gain"))
    means = scales.mean()
    return seeded.max() - seeded.min(), float(means.min()), float(means.max())


def _judge_init_robust(runs: Runs) -> Verdict:
    (without, low, high), (with_norm, least, most) = (_spread(runs, norm) for norm in ("none", "batch"))
    narrower = seed_mean(without - with_norm)
    word = decided(narrower)
    return said(
        word,
        points(narrower),
        f"So much narrower is the range of test accuracies over initial scales: {100 * low:.1f} % to {100 * high:.1f} "
        f"% without and {100 * least:.1f} % to {100 * most:.1f} % with batch normalization.",
        narrower,
    )


def _draw_convergence(runs: Runs) -> Picture:
    return draw.courses(
        runs.trials, "lr", "passes", "norm", across="learning rate",
        up=f"passes to a training loss of {runs.setup.settings['target']:g}", log="xy", names=NORMS,
        alt="Passes over the data until the training loss is at the target, by learning rate, with batch "
        "normalization and without; no point where it never was.",
    )  # fmt: skip


_RATES = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
SGD = {"model": "mlp", "optimizer": "sgd"}

CLAIMS = (
    Claim(
        id="bn-convergence",
        sentence="Normalizing the data improves the convergence speed by a considerable amount: it is increased by "
        "200 %. We are able to use larger learning rates, which speeds up the training.",
        source="003, Performance and Pros; 001, Benefits of BatchNorm; 000, Batch normalization; 004, Benefits of "
        "Normalization",
        hypothesis="At its own best learning rate a net with batch normalization needs fewer passes to a training loss "
        "than one without, and it still trains at larger rates.",
        criterion="Holds if both whole intervals of ratios lie above 1: of passes to the target, each net at its "
        "fastest rate, and of the largest rates that end with 90 % of the training examples right; fails if one lies "
        "below 1. The factor of 3 is said, not asked for.",
        experiment=convergence,
        judge=_judge_convergence,
        draw=_draw_convergence,
        quick=Setup(
            "digits, 1,078 examples; 3×100 units, gradient descent without momentum, 12 epochs, seven learning rates",
            {"norm": ["none", "batch"], "lr": _RATES}, 6,
            {
                "task": "digits", "target": 0.1,
                "recipe": {**SGD, "momentum": 0.0, "widths": "100x100x100", "epochs": 12},
            },
        ),
        full=Setup(
            "Fashion-MNIST; a convolutional net of two layers, gradient descent without momentum, 5 epochs",
            {"norm": ["none", "batch"], "lr": _RATES}, 5,
            {
                "task": "fashion-mnist", "target": 0.35,
                "recipe": {**SGD, "model": "cnn", "momentum": 0.0, "widths": "16x32", "epochs": 5},
            },
        ),
        literature="Ioffe & Szegedy 2015: Inception reached 72.2 % on ImageNet in 31.0 million steps, with batch "
        "normalization alone in 13.3 million, with five times the learning rate and other changes in 2.1 million. "
        "There the last layer reads the means of maps, in full here all their 1,568 values, which nothing normalizes.",
    ),
    Claim(
        id="bn-saturating",
        sentence="Avoids vanishing gradients for sigmoidal non-linearities. You can use even saturating activation "
        "functions.",
        source="001, Benefits of BatchNorm; 003, Pros",
        hypothesis="Nets of ten layers with sigmoid and with tanh train with batch normalization, and much better than "
        "without (which the lecture does not ask).",
        criterion="Holds if for both the training accuracy with batch normalization lies above 90 % and more than 10 "
        "points above that without, the whole intervals, each at the best learning rate of a seed; fails if one of "
        "them lies below. The net of three layers is said, not asked for.",
        experiment=saturating,
        judge=_judge_saturating,
        draw=lambda runs: draw.levels(
            _best(runs).trials, ["net", "norm"], "train_accuracy", across="training accuracy at the best learning rate",
            alt="Training accuracy of nets with saturating functions, with batch normalization and without.",
            names={
                (net, norm): f"{net} layers, {label}"
                for net in ("sigmoid 3", "sigmoid 10", "tanh 10")
                for norm, label in NORMS.items()
            },
        ),
        quick=Setup(
            "digits, 1,078 examples; layers of 100 units in PyTorch's initialization, 10 epochs, three learning rates",
            {"net": ["sigmoid 3", "sigmoid 10", "tanh 10"], "norm": ["none", "batch"], "lr": [0.01, 0.05, 0.5]}, 6,
            {"task": "digits", "recipe": {**SGD, "epochs": 10}},
        ),
        full=Setup(
            "MNIST; layers of 100 units in PyTorch's initialization, 10 epochs, three learning rates",
            {"net": ["sigmoid 3", "sigmoid 10", "tanh 10"], "norm": ["none", "batch"], "lr": [0.01, 0.1, 0.5]}, 5,
            {"task": "mnist", "recipe": {**SGD, "epochs": 10}},
        ),
        literature="Ioffe & Szegedy 2015: their net of 3×100 sigmoid units learned MNIST faster and better with batch "
        "normalization, but learned without too; Inception with sigmoid reached 69.8 % on ImageNet and stayed at "
        "chance without. Glorot & Bengio 2010: for tanh, initialization alone goes a long way.",
    ),
    Claim(
        id="bn-init-robust",
        sentence="Reduces dependence on good weight initialisation. The network is much less sensitive to initial "
        "weight.",
        source="001, Benefits of BatchNorm; 003, Pros; 004, Benefits of Normalization",
        hypothesis="Over initial weights a tenth to ten times as large as He's, test accuracy varies less with batch "
        "normalization.",
        criterion="Holds if the range of test accuracies over the scales (10 % for a run that diverged) is narrower "
        "with batch normalization, the whole interval; fails if it is wider, the whole interval.",
        experiment=trained,
        judge=_judge_init_robust,
        draw=lambda runs: draw.courses(
            counted(runs, "test_accuracy").trials, "init_gain", "test_accuracy", "norm", names=NORMS, log="x",
            across="deviation of the initial weights times √fan_in (He: 1.41)", up="test accuracy",
            alt="Test accuracy by the scale of the initial weights, with batch normalization and without.",
        ),
        quick=Setup(
            "digits, 1,078 examples; 5×64 units, 10 epochs",
            {"norm": ["none", "batch"], "init_gain": [0.141, 0.447, 1.414, 4.47, 14.1]}, 6,
            {"task": "digits", "recipe": {**SGD, "widths": "64x64x64x64x64", "init": "he_normal", "epochs": 10}},
        ),
        full=Setup(
            "Fashion-MNIST; 5×100 units, 5 epochs",
            {"norm": ["none", "batch"], "init_gain": [0.141, 0.447, 1.414, 4.47, 14.1]}, 10,
            {
                "task": "fashion-mnist",
                "recipe": {**SGD, "widths": "100x100x100x100x100", "init": "he_normal", "epochs": 5},
            },
        ),
    ),

)  # fmt: skip
