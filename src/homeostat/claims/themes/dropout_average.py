"""Dropout as an average of many nets: how near one pass comes to the mean over all masks, and bagging beside it.

Where there are few units, all 2^n masks are run through the net, so that means over masks are exact; else many are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, more, points, seed_mean, settled
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.parts.ensemble import enumerate_masks, mc_dropout
from homeostat.training.bagging import bag
from homeostat.training.loop import fit
from homeostat.training.recipe import Recipe

_LISTED = 16  # units, of which all masks are run; of more, so many are drawn:
_DRAWN = 4096
_WORTH = 10  # masks


def expectation(
    config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any], examples: int
) -> dict[str, float]:
    """How far one pass without dropout is from the mean over masks, before and behind the softmax.

    Distances are root mean squares over examples and classes, in deviations of a single masked pass; `worth` is the
    decimal logarithm of how many masks one would have to average to come as near.
    """
    known = experiments.task_named(task)
    varied = {"dropout": config["p"], "widths": config["widths"]}
    model = experiments.fitted(varied, seed, task=known, recipe=recipe).model.cpu()
    x, y = known.test.head(2000)
    x = known.prepare(x)
    with torch.no_grad():
        one = model(x)
    if sum(map(int, config["widths"].split("x"))) <= _LISTED:
        masked = enumerate_masks(model, x[:examples], _LISTED, kind="regression")
    else:
        masked = mc_dropout(model, _DRAWN, seed=seed, kind="regression")(x[:examples])
    outputs = _distance(one[:examples].double(), masked.samples.double(), masked.weights)
    probabilities = _distance(one[:examples].double().softmax(1), masked.samples.double().softmax(2), masked.weights)
    average = mc_dropout(model, 128, seed=seed, kind="classification")(x).mean
    return {
        "outputs": outputs,
        "probabilities": probabilities,
        "worth": -2 * math.log10(probabilities) if probabilities > 0 else math.nan,
        "accuracy_one_pass": float((one.argmax(1) == y).double().mean()),
        "accuracy_average": float((average.argmax(1) == y).double().mean()),
    }


def _distance(one: Tensor, every: Tensor, weights: Tensor | None) -> float:
    """From one pass to the mean of many, in deviations of these; without what the mean of drawn ones is itself off."""
    shares = torch.full((len(every),), 1 / len(every)).double() if weights is None else weights.double()
    mean = torch.tensordot(shares, every, 1)
    variance = float(torch.tensordot(shares, (every - mean).square(), 1).mean())
    squared, own = float((one - mean).square().mean()), 0.0 if weights is not None else variance / len(every)
    return math.sqrt(max(squared - own, own) / variance)


def _judge_expectation(runs: Runs) -> Verdict:
    cells = dict.fromkeys(zip(runs.trials["p"], runs.trials["widths"], strict=True))
    worth = {(p, widths): seed_mean(runs.by_seed("worth", p=p, widths=widths)) for p, widths in cells}
    poorest = sorted(worth, key=lambda cell: np.nan_to_num(worth[cell].estimate, nan=-np.inf))
    word, number = settled(*((decided(worth[cell], math.log10(_WORTH)), _near(worth[cell])) for cell in poorest))
    (p, widths), found = poorest[0], worth[poorest[0]]
    gains = runs.trials["accuracy_average"] - runs.trials["accuracy_one_pass"]
    gain = seed_mean(gains.groupby(runs.trials["seed"]).mean())
    shallow = runs.trials[[widths.isdecimal() and int(widths) <= _LISTED for widths in runs.trials["widths"]]]
    others = ", ".join(f"{10 ** min(each.estimate, 99.0):.3g} ({widths}, {p:g})" for (p, widths), each in worth.items())
    return Verdict(
        word,
        number,
        f"The worst case are hidden widths {widths} with p = {p:g}: the pass without dropout is "
        f"{10 ** (-found.estimate / 2):.2f} deviations of a masked pass from the mean probabilities over masks. Masks "
        f"that each net's pass is worth, by widths and p: {others}. With one hidden layer and all masks listed, "
        f"outputs before the softmax are {shallow['outputs'].max():.1g} deviations from their mean at most. "
        f"Averaging 128 masks changes the accuracy by {points(gain)}."
        + more(word, found, threshold=math.log10(_WORTH)),
    )


def _near(logs: Interval) -> str:
    number, low, high = (10 ** min(value, 99.0) for value in logs[:3])
    return f"as near as {number:.1f} masks [{low:.1f}, {high:.1f}]"


def averaging(
    config: Mapping[str, Any], seed: int, *, task: str, examples: int | None, recipe: Mapping[str, Any], members: int
) -> dict[str, float]:
    """One net, the same with half of its units dropped, or the average of nets of half its width, each on a sample."""
    known, settings = experiments.few(task, examples, seed), Recipe().varied(recipe)
    start = time.perf_counter()
    if config["method"] != "bag":
        dropped = {"dropout": 0.5} if config["method"] == "dropout" else {}
        accuracy = fit(known, settings.varied(dropped), seed).metrics["test_accuracy"]
        found = {"accuracy": accuracy, "best_member": accuracy, "mean_member": accuracy}
    else:
        assert settings.widths is not None
        bagged = bag(known, settings.varied({"widths": tuple(width // 2 for width in settings.widths)}), members, seed)
        best = min(bagged.members, key=lambda member: np.nan_to_num(member.metrics["valid_loss"], nan=np.inf))
        found = {
            "accuracy": bagged.metrics["test_accuracy"] if bagged.metrics["diverged"] == 0 else np.nan,
            "best_member": best.metrics["test_accuracy"],
            "mean_member": bagged.metrics["members_test_accuracy"],
        }
    return {**found, "spent": time.perf_counter() - start}


_NEAR = 0.01


def _judge_averaging(runs: Runs) -> Verdict:
    bagged, dropped, one = (runs.by_seed("accuracy", method=method) for method in ("bag", "dropout", "one"))
    gain = seed_mean(bagged - runs.by_seed("best_member", method="bag"))
    near = seed_mean(dropped - bagged)
    word, number = settled(
        (decided(gain), f"averaging {points(gain)}, dropout against it {points(near)}"),
        (decided(near, -_NEAR), f"dropout {points(near)} against averaging"),
    )
    cost = runs.by_seed("spent", method="bag").mean() / runs.by_seed("spent", method="dropout").mean()
    asked = (gain, 0.0) if decided(gain) == "undecided" else (near, -_NEAR)
    return Verdict(
        word,
        number,
        f"The average against its best member by validation; it took {cost:.1f} times as long to train as the net with "
        f"dropout. Against one net of the whole width, on all examples and without dropout, the average is "
        f"{points(seed_mean(bagged - one))}, dropout {points(seed_mean(dropped - one))}."
        + more(word, asked[0], threshold=asked[1]),
    )


def _draw_averaging(runs: Runs) -> Picture:
    bagged = runs.where(method="bag")
    rows = [
        runs.where(method="one").assign(what="one net"),
        bagged.assign(what="mean member", accuracy=bagged["mean_member"]),
        bagged.assign(what="best member", accuracy=bagged["best_member"]),
        bagged.assign(what="average of the members"),
        runs.where(method="dropout").assign(what="dropout"),
    ]
    return draw.levels(
        pd.concat(rows), "what", "accuracy", across="test accuracy",
        alt="Test accuracy of one net, of nets of half its width alone and averaged, and of one net with dropout.",
    )  # fmt: skip


_SMALL = {"model": "mlp", "optimizer": "adam", "lr": 0.01, "epochs": 25}

CLAIMS = (
    Claim(
        id="dropout-expectation",
        sentence="We want to average out the randomness at test time, y = f(x) = E_z[f(x, z)]. But this integral seems "
        "hard. When testing, use all nodes but scale each of them: the expected output is the same as the actual "
        "output at test time.",
        source="003, Dropout: Test Time; 004, Dropout: testing phase",
        hypothesis="The one pass without dropout predicts nearly the mean over all masks, nearer than an average over "
        f"{_WORTH} of them (a number that the lectures do not give).",
        criterion=f"A pass is worth so many masks as one has to average to come as near, in mean squared distance of "
        f"class probabilities: the variance of a masked pass over the pass's squared distance. Holds if for every p "
        f"and net the interval of their logarithm lies above log {_WORTH}; fails if for one it lies below.",
        experiment=expectation,
        judge=_judge_expectation,
        draw=lambda runs: draw.levels(
            runs.trials.assign(masks=10 ** runs.trials["worth"]), ["widths", "p"], "masks", log=True, line=_WORTH,
            across="masks whose average is as near to the mean over all masks",
            alt="How many masks one would have to average to come as near to the mean over all masks as the pass "
            "without dropout does, by hidden widths and probability of dropping.",
            names={
                (widths, p): f"widths {widths}, p = {p:g}"
                for widths in runs.trials["widths"].unique()
                for p in runs.trials["p"].unique()
            },
        ),
        quick=Setup(
            "digits; all 16,384 masks of 14 hidden units, 4,096 of 128 and 256, for 32 test images",
            {"widths": ["14", "7x7", "128", "128x128"], "p": [0.2, 0.5]}, 5,
            {"task": "digits", "recipe": _SMALL, "examples": 32},
        ),
        full=Setup(
            "MNIST; all 65,536 masks of 16 hidden units, 4,096 of 512 and 1,024, for 32 test images",
            {"widths": ["16", "8x8", "512", "512x512"], "p": [0.2, 0.5]}, 10,
            {"task": "mnist", "recipe": {**_SMALL, "lr": 0.003, "epochs": 10}, "examples": 32},
        ),
        literature="Srivastava et al. 2014 (section 7.5) needed about 50 drawn masks to reach the error of the one "
        "pass on MNIST: a comparison of errors, with nets too large to list masks. Warde-Farley et al. 2014 "
        "(arXiv:1312.6197) listed all masks of small nets, and compared with the geometric mean as well.",
    ),
    Claim(
        id="dropout-bagging",
        sentence="Bagging results are usually better than the best individual model. Dropout can be viewed as bagging; "
        "training many networks and averaging their output is impractical.",
        source="001, Detour - Bagging and Dropout as Bagging; 004, Benefits of Dropout",
        hypothesis="The average of ten nets of half the width, each trained on a bootstrap sample, is better than the "
        "best of them, and one net with dropout comes near it in a tenth of the trainings.",
        criterion=f"Holds if the whole interval of the average's test accuracy minus that of its best member (by "
        f"validation loss) lies above zero, and that of dropout's minus the average's above −{100 * _NEAR:g} point; "
        f"fails if either lies below.",
        experiment=averaging,
        judge=_judge_averaging,
        draw=_draw_averaging,
        quick=Setup(
            "digits, 300 examples drawn anew for every seed, tested on 1,137; 40 epochs; ten members of 2×128 units",
            {"method": ["one", "bag", "dropout"]}, 6,
            {
                "task": "digits", "examples": 300, "members": 10,
                "recipe": {"model": "mlp", "widths": "256x256", "batch_size": 32, "epochs": 40},
            },
        ),
        full=Setup(
            "MNIST, 15 epochs; ten members of 2×256 units", {"method": ["one", "bag", "dropout"]}, 8,
            {
                "task": "mnist", "examples": None, "members": 10,
                "recipe": {"model": "mlp", "widths": "512x512", "batch_size": 128, "epochs": 15},
            },
        ),
        literature="Lakshminarayanan et al. 2017 (arXiv:1612.01474) average nets that are all trained on all examples, "
        "which serves large nets better than bootstrap samples do.",
    ),
)  # fmt: skip
