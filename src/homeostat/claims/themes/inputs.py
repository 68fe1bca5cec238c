"""What standardized inputs do to training: how soon a target is reached, and at how many learning rates.

Everything is trained by recipes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch

from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, said, settled
from homeostat.inference import Interval
from homeostat.training.sources import TensorSource
from homeostat.training.task import Task


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
    saved, rates, never, least = {}, {}, [], {}
    epochs = runs.setup.settings["recipe"]["epochs"]
    count = len(dict.fromkeys(runs.trials["lr"]))
    for data in dict.fromkeys(runs.trials["data"]):
        best = {}
        for given in ("raw", "standardized"):
            own = runs.where(data=data, inputs=given).groupby("lr")["epochs_needed"].mean()
            best[given] = {"data": data, "inputs": given, "lr": float(str(own.idxmin()))}
        saved[data] = runs.difference("epochs_needed", best["raw"], best["standardized"])
        wide = runs.difference("trains", {"data": data, "inputs": "standardized"}, {"data": data, "inputs": "raw"})
        rates[data] = Interval(*(count * end for end in wide[:3]))
        missed = runs.where(**best["raw"])["epochs_needed"] > epochs
        least[data] = "at least " if missed.any() else ""
        never += [] if runs.where(data=data, inputs="raw")["trains"].any() else [data]
    word, number = settled(
        *((decided(found), f"{_shown(found)} epochs saved on {data}") for data, found in saved.items()),
        *((decided(found), f"{_shown(found)} rates more on {data}") for data, found in rates.items()),
    )
    return said(
        word,
        number,
        "At the best rate of each, standardized inputs save "
        + ", ".join(f"{least[data]}{_shown(found)} epochs on {data}" for data, found in saved.items())
        + "; rates at which training succeeds, more by "
        + ", ".join(f"{_shown(found)} on {data}" for data, found in rates.items())
        + f" of {count}."
        + (f" With raw inputs no rate ends at the target on {' and '.join(map(str, never))}." if never else ""),
    )


def _shown(interval: Interval) -> str:
    low, high = (f"{end:.1f}".replace("-", "−") for end in interval[1:3])
    return f"{interval.estimate:+.1f} [{low}, {high}]".replace("-", "−")


_RATES = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0]
_BASE = {"model": "mlp", "widths": [64, 64], "init": "he_normal", "optimizer": "sgd", "momentum": 0.0}

CLAIMS = (
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
            draw.lined(runs.trials, "data", "inputs"), "lr", "epochs_needed", "line", log="x",
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
