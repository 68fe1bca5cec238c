"""What equal weights do: the units of a layer stay the same, as far as rounding lets them.

What is exact is computed in float64; weights are drawn by homeostat's own initialization from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, points, settled, tiny, within
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe

_CONSTANT = ("constant", "zeros")


def symmetry(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """How far the units of a hidden layer are apart: in their first gradients, and in their weights after training."""
    data = experiments.task_named(task)
    settings = Recipe().varied(recipe).varied({"init": config["init"]})
    dtype = getattr(torch, config["dtype"])
    network = build_model(data, settings, seed).to(dtype)
    network.register_forward_pre_hook(lambda module, given: (given[0].to(dtype),))
    hidden = [module.weight for module in network.modules() if isinstance(module, nn.Linear)][:-1]
    output = network(data.sample(64)[0])
    # not of cross-entropy: its errors sum to 0 over the classes, and through equal weights no gradient is left of them
    wanted = torch.randn(output.shape, generator=seeds.torch_generator(seed, "claim", "constant-init-symmetry"))
    gradients = torch.autograd.grad((output * wanted).sum(), hidden)
    found = fit(data, settings, seed, model=network)
    return {
        "gradients_apart": max(map(_apart, gradients)),
        "gradients_within_unit": _apart(gradients[0].T),
        "weights_apart": max(_apart(weight.detach()) for weight in hidden),
        "test_accuracy": found.metrics["test_accuracy"],
    }


def _apart(rows: Tensor) -> float:
    """The root mean square of the rows' distances from the first one, in units of their length; 0: all are equal."""
    size = float(rows.square().sum())
    return math.sqrt(float((rows - rows[0]).square().sum()) / size) if size else 0.0


def _judge_symmetry(runs: Runs) -> Verdict:
    exact = runs.where(dtype="float64")
    equal, drawn = exact[exact["init"].isin(_CONSTANT)], exact[~exact["init"].isin(_CONSTANT)]
    lost = runs.difference(
        "test_accuracy", {"init": "he_normal", "dtype": "float64"}, {"init": "constant", "dtype": "float64"}
    )
    apart = drawn[["gradients_apart", "weights_apart"]].min(axis=1)
    single = runs.trials[(runs.trials["dtype"] == "float32") & runs.trials["init"].isin(_CONSTANT)]
    first, trained = (float(equal[name].max()) for name in ("gradients_apart", "weights_apart"))
    equal_at_first, equal_after = within(equal["gradients_apart"], 1e-9), within(equal["weights_apart"], 1e-6)
    word, number = settled(
        (decided(lost), f"{points(lost)} of accuracy lost"),
        (equal_at_first, f"first gradients {first:.2g} apart"),
        (equal_after, f"units {trained:.2g} apart after training"),
        ("holds" if bool((apart > 0.1).all()) else "fails", f"units from random weights {apart.min():.2g} apart"),
    )
    grown = (
        f" At the start their gradients differ by {tiny(first)} of their size. In exact arithmetic they stay equal: it "
        "is rounding that parts them, and training that multiplies it."
    )
    return Verdict(
        word,
        number,
        f"From equal weights, which cost {points(lost)} of accuracy, a layer's units are {tiny(trained)} apart after "
        f"training in float64 and {tiny(single['weights_apart'].max())} in float32; from random ones {apart.min():.2f} "
        f"or more.{grown if equal_at_first == 'holds' and equal_after == 'fails' else ''} It is units whose gradients "
        f"are equal: within a unit of the first layer they differ with its inputs, by "
        f"{equal['gradients_within_unit'].max():.2f} of their size.",
    )


_EQUAL = {"init": ["he_normal", "constant", "zeros"], "dtype": ["float64", "float32"]}

CLAIMS = (
    Claim(
        id="constant-init-symmetry",
        sentence="If we initialize all weights with the same value, within each layer the gradients for each of the "
        "weights will be the same as well, so updates will be the same, and the network degrades. Zero initialization "
        "leads each neuron to learn the same feature; in fact any constant initialization suffers from this problem.",
        source="000, Initialization with a constant (?); 003, Weight Initialization: Zero Initialization",
        hypothesis="From constant weights, zero or not, the hidden units of a layer get equal gradients and stay equal "
        "through training, and the network predicts worse than from random weights.",
        criterion="Holds if, in float64 and in every run, with equal weights the first gradients of a layer's units "
        "(of a random loss) differ by at most 1e-9 of their size and the trained weights by at most 1e-6, with random "
        "weights both by more than 0.1, and the whole interval of the accuracy lost by constant weights lies above 0. "
        "Fails if a difference is on the other side, or the whole interval below 0.",
        experiment=symmetry,
        judge=_judge_symmetry,
        draw=lambda runs: draw.levels(
            runs.trials, ["init", "dtype"], "weights_apart", line=0.0,
            across="distance between units of a layer after training, in units of their weights",
            alt="Distance between the units of a hidden layer after training, from random, constant and zero weights, "
            "in float64 and in float32.",
            names={
                (name, dtype): f"{label}, {dtype}"
                for name, label in (("he_normal", "random"), ("constant", "all 0.01"), ("zeros", "all 0"))
                for dtype in ("float64", "float32")
            },
        ),
        quick=Setup(
            "digits, 1,078 examples; mlp 32×32, 30 epochs of sgd", _EQUAL, 5,
            {"task": "digits", "recipe": {"model": "mlp", "widths": [32, 32], "optimizer": "sgd", "epochs": 30}},
        ),
        full=Setup(
            "MNIST; mlp 128×128, 10 epochs of sgd", _EQUAL, 10,
            {"task": "mnist", "recipe": {"model": "mlp", "widths": [128, 128], "optimizer": "sgd", "epochs": 10}},
        ),
    ),
)  # fmt: skip
