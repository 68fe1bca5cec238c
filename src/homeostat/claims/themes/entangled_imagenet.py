"""The ImageNet table of lecture 004: three networks, augmentation, dropout and weight decay, and how they entangle.

The networks are trained here in small, on small images; as they were published they are in `training.imagenet`, and
examples/entangled has the recipes to train them with. Random, by the seed, in weights, order, crops, flips and masks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
from torch import nn

from homeostat.claims import experiments
from homeostat.claims.claim import Claim, Runs, Setup, Verdict
from homeostat.claims.themes.entangled import (
    NEGLIGIBLE,
    Build,
    apart,
    at_once,
    averaged,
    cropped_task,
    drawn,
    effects,
    scored,
    verdict,
)
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.study.running.runner import Trial
from homeostat.training.architectures import inception
from homeostat.training.imagenet import inception_v3, resnet_v2, vgg

RESNET, INCEPTION, VGG = "ResNet-200 v2", "Inception v3", "VGG-19"
NETS = (RESNET, INCEPTION, VGG)
_SMALL_NAMES = {RESNET: "ResNet v2", INCEPTION: "Inception", VGG: "VGG"}
DROPOUT = {RESNET: 0.2, INCEPTION: 0.2, VGG: 0.5}
"""Inception's authors' program has 0.2, VGG's paper 0.5; the residual network was published without."""
_RATES = {RESNET: 0.1, INCEPTION: 0.1, VGG: 0.01}
_SWITCHES = {"augmentation": "augmentation", "dropout": "dropout", "decay": "decay"}
_PAIRS = ("augmentation × dropout", "augmentation × decay", "dropout × decay")

PUBLISHED: dict[str, Build] = {
    net: functools.partial(build, dropout=DROPOUT[net])
    for net, build in ((RESNET, resnet_v2), (INCEPTION, inception_v3), (VGG, vgg))
}
PARAMETERS = {RESNET: 64_666_152, INCEPTION: 23_834_568, VGG: 143_667_240}
"""For three colors and 1000 classes."""
_HALF = ((16, 16), (16, 24), (40,), (56, 24), (48, 32), (40, 40), (24, 48), (48,), (88, 80), (88, 80))
"""Half the channels of the paper's Inception for CIFAR."""
SMALL: dict[str, dict[str, Callable[..., nn.Module]]] = {
    "tiny": {
        RESNET: functools.partial(resnet_v2, blocks=(1, 1, 1), width=8, small=True),
        INCEPTION: functools.partial(inception, stem=16, modules=((8, 8), (16,), (16, 16), (16,), (32, 32))),
        VGG: functools.partial(vgg, stages=((16, 1), (32, 1)), hidden=(64, 64)),
    },
    "small": {
        RESNET: functools.partial(resnet_v2, blocks=(2, 2, 2), width=16, small=True),
        INCEPTION: functools.partial(inception, stem=48, modules=_HALF),
        VGG: functools.partial(vgg, stages=((32, 2), (64, 2), (128, 2)), hidden=(256, 256)),
    },
}


@functools.cache
def _network(networks: str, net: str) -> Build:
    """With its dropout in place, whose probability is the recipe's."""
    return functools.partial(SMALL[networks][net], dropout=DROPOUT[net])


def entangled(
    config: Mapping[str, Any],
    seed: int,
    trial: Trial | None = None,
    *,
    task: str,
    train: int,
    test: int | None,
    networks: str,
    flips: bool,
    decay: float,
    recipe: dict[str, Any],
) -> dict[str, float]:
    """The metrics of one line of the table, its test accuracy with 10 % where it diverged, and its parameters."""
    net = config["net"]
    on = {name for name in _SWITCHES if config[name] == "yes"}
    augmented = "augmentation" in on
    part = experiments.part_of(task, train, test, seed=seed)
    changes = {
        "augment": "flip" if augmented and flips else "none",
        "dropout": DROPOUT[net] if "dropout" in on else 0.0,
        "l2": decay if "decay" in on else 0.0,
        "lr": _RATES[net],
    }
    known = cropped_task(part, _network(networks, net), augmented)
    return scored(experiments.fitted(changes, seed, trial, task=known, recipe=recipe))


def _interactions(runs: Runs) -> dict[str, Interval]:
    """The nine contrasts that the criterion names: all two-factor interactions there are."""
    columns = pd.MultiIndex.from_product([(*_SWITCHES, *_PAIRS), NETS])
    table = effects(runs, list(_SWITCHES)).reindex(columns=columns).dropna()
    contrasts = {pair: averaged(table, pair, NETS) for pair in _PAIRS}
    for name in _SWITCHES:
        contrasts[f"{name} × VGG or the others"] = apart(table, name, (RESNET, INCEPTION), (VGG,))
        contrasts[f"{name} × ResNet or Inception"] = apart(table, name, (RESNET,), (INCEPTION,))
    return at_once(contrasts)


def _judge_entangled(runs: Runs) -> Verdict:
    return verdict(runs, _interactions(runs), _SWITCHES, _SMALL_NAMES)


def _draw_entangled(runs: Runs) -> Picture:
    alt = "What augmentation, dropout and weight decay change in the test accuracy of three networks, with intervals."
    return drawn(runs, {**_SWITCHES, "augmentation": "augment"}, _SMALL_NAMES, alt)  # a telephone is narrow


_FACTORS: dict[str, list[Any]] = {"net": list(NETS), **{name: ["no", "yes"] for name in _SWITCHES}}
_SGD = {"optimizer": "sgd", "momentum": 0.9, "init": "he_normal", "schedule": "exponential"}

CLAIMS = (
    Claim(
        id="entangled-imagenet",
        sentence="Entangled effects of various methods: ImageNet. Top-1 accuracy on test data of Inception v3 with "
        "data augmentation, dropout and weight decay 77.84 %, with augmentation alone 72.95, with decay alone 67.18, "
        "with none 59.80 (and 99.53 on training data); of VGG-19 with all three 72.7, of ResNet-200 v2 with "
        "augmentation and decay 79.9.",
        source="004, Entangled effects of various methods: ImageNet",
        hypothesis="What augmentation, dropout and weight decay do to test accuracy depends on the network or on each "
        "other.",
        criterion="All 24 combinations under every seed; a run that diverged counts as guessing, 10 %. Nine "
        "interactions, with intervals for all at once (Bonferroni): augmentation × dropout, augmentation × decay and "
        "dropout × decay, over all nets; each of the three × VGG against the two others, which differ from it in batch "
        "norm, learning rate and place and size of dropout, and × ResNet against Inception. Holds if one excludes 0; "
        f"fails if all nine lie within ±{100 * NEGLIGIBLE:g} point.",
        experiment=entangled, judge=_judge_entangled, draw=_draw_entangled,
        quick=Setup("digits, 300 training images of 8×8 cropped to 7×7; small networks of the three families; 10 "
                    "epochs, L2 of 0.005, dropout of 0.5 in VGG and 0.2 in the others; augmentation: random crops",
                    _FACTORS, 6,
                    {"task": "digits", "train": 300, "test": None, "networks": "tiny", "flips": False,
                     "decay": 5e-3, "recipe": {**_SGD, "batch_size": 32, "epochs": 10}}),
        full=Setup("cifar10 scaled down: 1,000 training and 2,000 test images of 32×32 cropped to 28×28, small "
                   "networks of the three families, 20 epochs of batches of 64, L2 of 0.0005, dropout of 0.5 in VGG "
                   "and 0.2 in the others; augmentation: random crops and flips", _FACTORS, 5,
                   {"task": "cifar10", "train": 1000, "test": 2000, "networks": "small", "flips": True,
                    "decay": 5e-4, "recipe": {**_SGD, "batch_size": 64, "epochs": 20}}),
        literature="The table puts together single runs: Inception's four lines are of Zhang et al. 2017 "
        "(arXiv:1611.03530), whose best epochs without augmentation had 72.57 and 63.16 %; ResNet's is of He et al. "
        "2016 (arXiv:1603.05027), VGG's of Simonyan & Zisserman 2015 (arXiv:1409.1556). Which of its differences are "
        "the networks' and which the switches' it cannot say: only Inception has more than one line, four of eight. "
        "Here all combinations are run, of much smaller networks of the same families, on ten classes of small images, "
        "with rates × 0.95 per epoch. examples/entangled has the recipes for the networks and images of the table.",
    ),
)  # fmt: skip
