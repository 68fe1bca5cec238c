"""The CIFAR-10 table of lecture 004: five architectures, random crops and weight decay, and how their effects entangle.

The networks are those of Zhang et al. 2017 (arXiv:1611.03530), with exactly as many parameters; for a small stand-in
there are five with the same roles. Every image is cropped by an eighth of its side, at the center or at random, and
whitened on its own. Random, by the seed, in weights, order and crops.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from homeostat.claims import draw, experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, Word, decided, more, points
from homeostat.inference import Interval, mean_interval
from homeostat.page.svg import Picture
from homeostat.study.running.runner import Trial
from homeostat.training.architectures import alexnet, inception
from homeostat.training.models import ResNet, cnn, mlp
from homeostat.training.task import Task

Shape = tuple[int, ...]
Build = Callable[[Shape, int], nn.Module]

INCEPTION, WITHOUT, ALEXNET, DEEP, FLAT = "Inception", "Inception w/o BN", "AlexNet", "MLP 3×512", "MLP 1×512"
NETS = (INCEPTION, WITHOUT, ALEXNET, DEEP, FLAT)
PARAMETERS = {INCEPTION: 1_649_402, WITHOUT: 1_649_402, ALEXNET: 1_387_786, DEEP: 1_735_178, FLAT: 1_209_866}
"""What the table says, for 28×28 pixels of three colors and ten classes."""
_RATES = {INCEPTION: 0.1, WITHOUT: 0.01, ALEXNET: 0.01, DEEP: 0.01, FLAT: 0.01}
_NEGLIGIBLE = 0.01


def _perceptron(widths: tuple[int, ...], shape: Shape, outputs: int) -> nn.Module:
    return mlp(torch.Size(shape).numel(), outputs, widths=widths)


def _residual(norm: str, shape: Shape, outputs: int) -> nn.Module:
    return ResNet(shape, outputs, depth=8, widths=(8, 16, 32), norm=norm)


PUBLISHED: dict[str, Build] = {
    INCEPTION: functools.partial(inception, norm="batch"),
    WITHOUT: functools.partial(inception, norm="none"),
    ALEXNET: alexnet,
    DEEP: functools.partial(_perceptron, (512, 512, 512)),
    FLAT: functools.partial(_perceptron, (512,)),
}
SMALL: dict[str, Build] = {
    INCEPTION: functools.partial(_residual, "batch"),
    WITHOUT: functools.partial(_residual, "none"),
    ALEXNET: cnn,
    DEEP: functools.partial(_perceptron, (128, 128, 128)),
    FLAT: functools.partial(_perceptron, (128,)),
}
_SMALL_NAMES = {
    INCEPTION: "ResNet", WITHOUT: "ResNet w/o BN", ALEXNET: "convolutions", DEEP: "MLP 3×128", FLAT: "MLP 1×128"
}  # fmt: skip


class Cropped(nn.Module):
    """A network for crops: (N, C, H, W) -> (N, outputs), by seven eighths of each side, whitened image by image.

    Crops are at the center in evaluation, and in training too unless they are random; the whitening is TensorFlow's
    per_image_standardization: (x - mean) / max(deviation, 1 / √count).
    """

    def __init__(self, network: nn.Module, random: bool) -> None:
        super().__init__()
        self.network, self.random = network, random

    def forward(self, input: Tensor) -> Tensor:
        count, _, height, width = input.shape
        rows, columns = (
            self._starts(count, side, input.device)[:, None] + torch.arange(cropped(side), device=input.device)
            for side in (height, width)
        )
        images = torch.arange(count, device=input.device)[:, None, None]
        cut = input.permute(0, 2, 3, 1)[images, rows[:, :, None], columns[:, None, :]]
        deviation, mean = torch.std_mean(cut, (1, 2, 3), correction=0, keepdim=True)
        white = (cut - mean) / deviation.clamp_min(cut[0].numel() ** -0.5)
        output: Tensor = self.network(white.permute(0, 3, 1, 2))
        return output

    def _starts(self, count: int, side: int, device: torch.device) -> Tensor:
        room = side - cropped(side)
        if self.random and self.training:
            return torch.randint(room + 1, (count,)).to(device)
        return torch.full((count,), room // 2, device=device)


def cropped(side: int) -> int:
    """What is left of a side: 28 of 32, 7 of 8."""
    return side - side // 8


def _build(networks: str, net: str, shape: Shape, outputs: int, random: bool) -> nn.Module:
    known = {"published": PUBLISHED, "small": SMALL}[networks]
    inner = (shape[0], cropped(shape[1]), cropped(shape[2]))
    return Cropped(known[net](inner, outputs), random)


@functools.cache
def _task(part: Task, networks: str, net: str, random: bool) -> Task:
    return Task(
        data=part.data,
        model=functools.partial(_build, networks, net, part.input_shape, part.outputs, random),
        name=part.name,
        classes=part.classes,
        standardize=False,
    )


def entangled(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    train: int,
    valid: int,
    test: int | None,
    networks: str,
    decay: float,
    recipe: dict[str, Any],
) -> dict[str, float]:
    """The metrics of one line of the table, its test accuracy with 10 % where it diverged, and its parameters."""
    known = _task(experiments.part_of(task, train, valid, test), networks, config["net"], config["crop"] == "yes")
    changes = {"l2": decay if config["decay"] == "yes" else 0.0, "lr": _RATES[config["net"]]}
    found = experiments.fitted(changes, seed, trial, task=known, recipe=recipe)
    return {
        **found.metrics,
        "score": 0.1 if found.metrics["diverged"] else found.metrics["test_accuracy"],
        "parameters": float(sum(each.numel() for each in found.model.parameters() if each.requires_grad)),
    }


def _effects(runs: Runs) -> pd.DataFrame:
    """By seed and net: what crop and decay do to the score, averaged over the other, and to each other's effect."""
    rows = []
    for (seed, net), own in runs.trials.groupby(["seed", "net"]):
        table = own.set_index(["crop", "decay"])["score"]
        if len(table) < 4:
            continue
        both, crop, decay, none = (table[key] for key in (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no")))
        for what, value in (
            ("crop", (both + crop - decay - none) / 2),
            ("decay", (both + decay - crop - none) / 2),
            ("both", both - crop - decay + none),
        ):
            rows.append({"seed": seed, "net": net, "what": what, "effect": value})
    return pd.DataFrame(rows, columns=["seed", "net", "what", "effect"])


def _interactions(runs: Runs) -> dict[str, Interval]:
    """The five contrasts that the criterion names, with intervals for all five at once."""
    table = _effects(runs).pivot_table(index="seed", columns=["what", "net"], values="effect").reindex(
        columns=pd.MultiIndex.from_product([("crop", "decay", "both"), NETS])
    ).dropna()  # fmt: skip

    def apart(what: str, first: tuple[str, ...], second: tuple[str, ...]) -> np.ndarray:
        one, other = (np.mean([table[what, net] for net in nets], axis=0) for nets in (first, second))
        gap: np.ndarray = one - other
        return gap

    layered, perceptrons = (INCEPTION, WITHOUT, ALEXNET), (DEEP, FLAT)
    contrasts = {
        "crop × decay": np.mean([table["both", net] for net in NETS], axis=0),
        "crop × convolution": apart("crop", layered, perceptrons),
        "decay × convolution": apart("decay", layered, perceptrons),
        "crop × batch norm": apart("crop", (INCEPTION,), (WITHOUT,)),
        "decay × batch norm": apart("decay", (INCEPTION,), (WITHOUT,)),
    }
    # what rounding leaves of no difference is none
    return {name: mean_interval(values.round(9), 1 - 0.05 / len(contrasts)) for name, values in contrasts.items()}


def _judge_entangled(runs: Runs) -> Verdict:
    found = _interactions(runs)
    seen = [name for name, each in found.items() if decided(each) != "undecided"]
    alone = all(each.low > -_NEGLIGIBLE and each.high < _NEGLIGIBLE for each in found.values())
    word: Word = "holds" if seen else "fails" if alone else "undecided"
    clear = {name: abs(each.estimate) / (each.high - each.low + 1e-12) for name, each in found.items()}
    clearest = max(clear, key=lambda name: np.nan_to_num(clear[name], nan=-1.0))
    names = _names(runs)
    plain = runs.where(crop="no", decay="no").groupby("net")[["train_accuracy", "score", "parameters"]].mean()
    told = ", ".join(
        f"{names[net]} ({count:,.0f} parameters) {100 * fitted:.1f} and {100 * score:.1f} %"
        for net in NETS
        for fitted, score, count in plain[plain.index == net].to_numpy().tolist()
    )
    crop, decay = (
        100 * _effects(runs).groupby("what")["effect"].mean().get(what, np.nan) for what in ("crop", "decay")
    )
    return Verdict(
        word,
        f"{clearest} {points(found[clearest])}",
        f"Training and test accuracy with neither: {told}. On average a random crop changes test accuracy by "
        f"{crop:+.1f} points and decay by {decay:+.1f}. Interactions, for all five at once: "
        + "; ".join(f"{name} {points(each)}" for name, each in found.items())
        + "."
        + more(word, found[clearest]),
    )


def _names(runs: Runs) -> Mapping[str, str]:
    return _SMALL_NAMES if runs.setup.settings["networks"] == "small" else dict(zip(NETS, NETS, strict=True))


def _draw_entangled(runs: Runs) -> Picture:
    frame = _effects(runs)
    frame = frame[frame["what"] != "both"].assign(points=100 * frame["effect"], place=frame["net"].map(NETS.index))
    names = _names(runs)
    return draw.levels(
        frame.sort_values(["what", "place"]), ["what", "net"], "points",
        across="change of test accuracy, points", line=0.0,
        alt="What a random crop and weight decay change in the test accuracy of five networks, with intervals.",
        names={(what, net): f"{what}, {names[net]}" for what in ("crop", "decay") for net in NETS},
    )  # fmt: skip


_FACTORS: dict[str, list[Any]] = {"net": list(NETS), "crop": ["no", "yes"], "decay": ["no", "yes"]}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "init": "he_normal"}

CLAIMS = (
    Claim(
        id="entangled-cifar",
        sentence="Entangled effects of various methods: CIFAR10. Inception 89.05 % test accuracy with random crop and "
        "weight decay and 85.75 % with neither, without batch norm 83.00 and 82.00; AlexNet 81.22 and 76.07; MLP 3×512 "
        "53.35 and 52.39, MLP 1×512 50.39 and 50.51 with and without decay.",
        source="004, Entangled effects of various methods: CIFAR10",
        hypothesis="What crops and decay do to test accuracy depends on the network and on each other.",
        criterion="All 20 combinations under every seed; a run that diverged counts as guessing, 10 %. Five "
        "interactions, with intervals for all at once (Bonferroni): crop × decay; crop and decay × convolution, three "
        "nets against the two MLPs; crop and decay × batch norm. Holds if one excludes 0; fails if all five lie "
        f"within ±{100 * _NEGLIGIBLE:g} point.",
        experiment=entangled, judge=_judge_entangled, draw=_draw_entangled,
        quick=Setup("digits, 300 training images of 8×8 cropped to 7×7; small networks in the same roles; 20 epochs, "
                    "L2 of 0.005", _FACTORS, 5, {"task": "digits", "train": 300, "valid": 50, "test": None,
                    "networks": "small", "decay": 5e-3, "recipe": {**_SGD, "batch_size": 32, "epochs": 20}}),
        full=Setup("cifar10 scaled down: 2,000 training and 2,000 test images of 32×32 cropped to 28×28, 15 epochs of "
                   "batches of 64, L2 of 0.0005", _FACTORS, 3, {"task": "cifar10", "train": 2000, "valid": 200,
                   "test": 2000, "networks": "published", "decay": 5e-4,
                   "recipe": {**_SGD, "batch_size": 64, "epochs": 15}}),
        literature="The table is of Zhang et al. 2017 (arXiv:1611.03530): one run each on all 50,000 images until the "
        "loss no longer falls, rates × 0.95 per epoch; MLPs without crops. Here rates are constant: 0.1 for Inception, "
        "0.01 without its batch norm and for the others.",
    ),
)  # fmt: skip
