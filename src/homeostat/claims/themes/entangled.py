"""The CIFAR-10 table of lecture 004: five architectures, random crops and weight decay, and how their effects entangle.

The networks are those of Zhang et al. 2017 (arXiv:1611.03530), with exactly as many parameters; for a small stand-in
there are five with the same roles. Every image is cropped by an eighth of its side, at the center or at random, and
whitened on its own. How effects are taken apart is shared with `entangled_imagenet`. Random, by the seed, in weights,
order and crops.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
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
from homeostat.training.loop import Fit
from homeostat.training.models import ResNet, cnn, mlp
from homeostat.training.task import Task

Shape = tuple[int, ...]
Build = Callable[[Shape, int], nn.Module]

INCEPTION, WITHOUT, ALEXNET, DEEP, FLAT = "Inception", "Inception w/o BN", "AlexNet", "MLP 3×512", "MLP 1×512"
NETS = (INCEPTION, WITHOUT, ALEXNET, DEEP, FLAT)
PARAMETERS = {INCEPTION: 1_649_402, WITHOUT: 1_649_402, ALEXNET: 1_387_786, DEEP: 1_735_178, FLAT: 1_209_866}
"""What the table says, for 28×28 pixels of three colors and ten classes."""
_RATES = {INCEPTION: 0.1, WITHOUT: 0.01, ALEXNET: 0.01, DEEP: 0.01, FLAT: 0.01}
NEGLIGIBLE = 0.01
"""Of accuracy: what is less makes no difference."""
_SWITCHES = ("crop", "decay")


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


def _build(build: Build, shape: Shape, outputs: int, random: bool) -> nn.Module:
    inner = (shape[0], cropped(shape[1]), cropped(shape[2]))
    return Cropped(build(inner, outputs), random)


@functools.cache
def cropped_task(part: Task, build: Build, random: bool) -> Task:
    """The task with a network that sees crops, whitened, at random places in training if they are `random`."""
    return Task(
        data=part.data,
        model=functools.partial(_build, build, part.input_shape, part.outputs, random),
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
    test: int | None,
    networks: str,
    decay: float,
    recipe: dict[str, Any],
) -> dict[str, float]:
    """The metrics of one line of the table, its test accuracy with 10 % where it diverged, and its parameters."""
    build = {"published": PUBLISHED, "small": SMALL}[networks][config["net"]]
    known = cropped_task(experiments.part_of(task, train, test, seed=seed), build, config["crop"] == "yes")
    changes = {"l2": decay if config["decay"] == "yes" else 0.0, "lr": _RATES[config["net"]]}
    return scored(experiments.fitted(changes, seed, trial, task=known, recipe=recipe))


def scored(found: Fit) -> dict[str, float]:
    """The metrics of a fit of ten classes, with guessing's accuracy as score where it diverged, and its parameters."""
    return {
        **found.metrics,
        "score": 0.1 if found.metrics["diverged"] else found.metrics["test_accuracy"],
        "parameters": float(sum(each.numel() for each in found.model.parameters() if each.requires_grad)),
    }


def effects(runs: Runs, switches: Sequence[str]) -> pd.DataFrame:
    """By seed, for (what, net): what a switch changes in the score, or two of them in each other's effect ("a × b").

    Each is averaged over the other switches; seeds without all combinations of a net have no number for it.
    """
    columns: dict[tuple[str, Hashable], dict[Hashable, float]] = {}
    for (seed, net), own in runs.trials.groupby(["seed", "net"]):
        if len(own) < 2 ** len(switches):
            continue
        signs = {name: np.where(own[name] == "yes", 1.0, -1.0) for name in switches}
        score = own["score"].to_numpy(dtype=float)
        found = {name: (sign * score).sum() for name, sign in signs.items()}
        for one, other in itertools.combinations(switches, 2):
            found[f"{one} × {other}"] = 2 * (signs[one] * signs[other] * score).sum()
        for what, total in found.items():
            columns.setdefault((what, net), {})[seed] = total / 2 ** (len(switches) - 1)
    return pd.DataFrame(columns).rename_axis(columns=["what", "net"])


def averaged(table: pd.DataFrame, what: str, nets: Sequence[str]) -> np.ndarray:
    """An effect by seed, the mean over some nets."""
    return table[[(what, net) for net in nets]].to_numpy(dtype=float).mean(axis=1)


def apart(table: pd.DataFrame, what: str, first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """An effect by seed: how much larger it is with some nets than with others."""
    return averaged(table, what, first) - averaged(table, what, second)


def at_once(contrasts: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """Their means over seeds, with intervals for all at once (Bonferroni)."""
    # what rounding leaves of no difference is none
    return {name: mean_interval(values.round(9), 1 - 0.05 / len(contrasts)) for name, values in contrasts.items()}


def decides(found: Mapping[str, Interval]) -> tuple[Word, str]:
    """Holds if one of the interactions excludes 0, fails if all are negligible; and the clearest of them."""
    seen = [name for name, each in found.items() if decided(each) != "undecided"]
    alone = all(each.low > -NEGLIGIBLE and each.high < NEGLIGIBLE for each in found.values())
    clear = {name: abs(each.estimate) / (each.high - each.low + 1e-12) for name, each in found.items()}
    clearest = max(clear, key=lambda name: np.nan_to_num(clear[name], nan=-1.0))
    return "holds" if seen else "fails" if alone else "undecided", clearest


def verdict(
    runs: Runs, found: Mapping[str, Interval], switches: Mapping[str, str], names: Mapping[str, str]
) -> Verdict:
    """The verdict on interactions, with what the nets reach without any switch and with all, and what each changes.

    Args:
        switches: what they are called in a sentence.
        names: of the nets, in their order.
    """
    word, clearest = decides(found)
    sizes = runs.trials.groupby("net")["parameters"].mean()
    counted = ", ".join(f"{names[net]} {sizes[net]:,.0f}" for net in names if net in sizes)
    means = 100 * effects(runs, list(switches)).mean().groupby("what").mean().reindex(list(switches))
    changes = [f"{said} by {means[name]:+.1f}".replace("-", "−") for name, said in switches.items()]
    return Verdict(
        word,
        f"{clearest} {points(found[clearest])}",
        f"Parameters: {counted}. Training and test accuracy with none: {_reached(runs, switches, 'no', names)}; with "
        f"all: {_reached(runs, switches, 'yes', names)}. On average, test accuracy is changed by "
        f"{', '.join(changes[:-1])} and {changes[-1]} points. Interactions, for all {len(found)} at once: "
        + "; ".join(f"{name} {points(each)}" for name, each in found.items())
        + "."
        + more(word, found[clearest]),
    )


def _reached(runs: Runs, switches: Iterable[str], level: str, names: Mapping[str, str]) -> str:
    """Training and test accuracy of every net with all switches at one level."""
    means = runs.where(**dict.fromkeys(switches, level)).groupby("net")[["train_accuracy", "score"]].mean()
    return ", ".join(
        f"{names[net]} {100 * fitted:.1f} and {100 * score:.1f} %"
        for net in names
        for fitted, score in means[means.index == net].to_numpy().tolist()
    )


def drawn(runs: Runs, switches: Mapping[str, str], names: Mapping[str, str], alt: str) -> Picture:
    """What every switch changes in every net's test accuracy; both by the names that the figure gives them."""
    table = 100 * effects(runs, list(switches))
    rows = [
        {"what": what, "net": net, "points": value}
        for what in switches
        for net in names
        if (what, net) in table
        for value in table[what, net].dropna()
    ]
    return draw.levels(
        pd.DataFrame(rows, columns=["what", "net", "points"]), ["what", "net"], "points",
        across="change of test accuracy, points", line=0.0, alt=alt,
        names={(what, net): f"{said}, {name}" for what, said in switches.items() for net, name in names.items()},
    )  # fmt: skip


def _interactions(runs: Runs) -> dict[str, Interval]:
    """The five contrasts that the criterion names."""
    table = effects(runs, _SWITCHES).reindex(
        columns=pd.MultiIndex.from_product([(*_SWITCHES, "crop × decay"), NETS])
    ).dropna()  # fmt: skip
    layered, perceptrons = (INCEPTION, WITHOUT, ALEXNET), (DEEP, FLAT)
    return at_once(
        {
            "crop × decay": averaged(table, "crop × decay", NETS),
            "crop × convolution": apart(table, "crop", layered, perceptrons),
            "decay × convolution": apart(table, "decay", layered, perceptrons),
            "crop × batch norm": apart(table, "crop", (INCEPTION,), (WITHOUT,)),
            "decay × batch norm": apart(table, "decay", (INCEPTION,), (WITHOUT,)),
        }
    )


def _judge_entangled(runs: Runs) -> Verdict:
    return verdict(runs, _interactions(runs), {"crop": "a random crop", "decay": "decay"}, _names(runs))


def _names(runs: Runs) -> Mapping[str, str]:
    return _SMALL_NAMES if runs.setup.settings["networks"] == "small" else dict(zip(NETS, NETS, strict=True))


def _draw_entangled(runs: Runs) -> Picture:
    alt = "What a random crop and weight decay change in the test accuracy of five networks, with intervals."
    return drawn(runs, dict(zip(_SWITCHES, _SWITCHES, strict=True)), _names(runs), alt)


_FACTORS: dict[str, list[Any]] = {"net": list(NETS), "crop": ["no", "yes"], "decay": ["no", "yes"]}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "init": "he_normal"}

CLAIMS = (
    Claim(
        id="entangled-cifar",
        sentence="Entangled effects of various methods: CIFAR10. Inception 89.05 % test accuracy with random crop and "
        "weight decay and 85.75 % with neither, AlexNet 81.22 and 76.07; without crops, Inception without batch norm "
        "83.00 and 82.00 with and without decay, MLP 3×512 53.35 and 52.39, MLP 1×512 50.39 and 50.51.",
        source="004, Entangled effects of various methods: CIFAR10",
        hypothesis="What crops and decay do to test accuracy depends on the network or on each other.",
        criterion="All 20 combinations under every seed; a run that diverged counts as guessing, 10 %. Five "
        "interactions, with intervals for all at once (Bonferroni): crop × decay; crop and decay × convolution, three "
        "nets against the two MLPs; crop and decay × batch norm (Inception with it against without, each at its "
        "published learning rate). Holds if one excludes 0; fails if all five lie "
        f"within ±{100 * NEGLIGIBLE:g} point.",
        experiment=entangled, judge=_judge_entangled, draw=_draw_entangled,
        quick=Setup("digits, 300 training images of 8×8 cropped to 7×7; small networks in the same roles; 20 epochs, "
                    "L2 of 0.005", _FACTORS, 5, {"task": "digits", "train": 300, "test": None,
                    "networks": "small", "decay": 5e-3, "recipe": {**_SGD, "batch_size": 32, "epochs": 20}}),
        full=Setup("cifar10 scaled down: 1,000 training and 2,000 test images of 32×32 cropped to 28×28, 20 epochs of "
                   "batches of 64, L2 of 0.0005", _FACTORS, 5, {"task": "cifar10", "train": 1000,
                   "test": 2000, "networks": "published", "decay": 5e-4,
                   "recipe": {**_SGD, "batch_size": 64, "epochs": 20}}),
        literature="The table is of Zhang et al. 2017 (arXiv:1611.03530): one run each on all 50,000 images until the "
        "loss no longer falls, rates × 0.95 per epoch; MLPs and Inception without batch norm without crops. Here "
        "rates are constant: 0.1 for Inception, 0.01 without its batch norm and for the others. What is called × batch "
        "norm is then of the rate too: per step L2 shrinks weights ten times as fast with it.",
    ),
)  # fmt: skip
