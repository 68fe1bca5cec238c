"""Adapting at test time: batch statistics and entropy steps on images that have shifted.

Training by recipes; the order of the test images draws from a stream of the seed.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from torch import nn

from homeostat import seeds
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, decided, points, said, seed_mean, settled
from homeostat.claims.experiments import fitted, outputs_of, task_named
from homeostat.inference import Interval
from homeostat.page.svg import Picture
from homeostat.parts.adapt import BatchNormAdaptation, Tent
from homeostat.parts.corrupt import corrupt


@functools.lru_cache(maxsize=1)
def _net(task: str, recipe: str, seed: int) -> nn.Module:
    """The trained network, the same for all corruptions; a seed's trials come one after the other."""
    return fitted({}, seed, task=task, recipe=json.loads(recipe)).model


def adapting(
    config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any], batch: int
) -> dict[str, float]:
    """Test accuracy on corrupted images as trained, by the statistics of test batches, and with Tent."""
    found = task_named(task)
    model = copy.deepcopy(_net(task, json.dumps(recipe), seed))
    images, labels = found.test.head(len(found.test))
    name, _, severity = config["corruption"].partition(":")
    if severity:
        images = corrupt(images, name, int(severity), seed=seed)
    order = torch.randperm(len(labels), generator=seeds.torch_generator(seed, "claim", "tent"))
    inputs, labels = found.prepare(images[order]).to(next(model.parameters()).device), labels[order]
    with torch.no_grad():
        outputs = {"trained": outputs_of(model, inputs, batch)}
        outputs["statistics"] = outputs_of(BatchNormAdaptation(model), inputs, batch)
    with Tent(model) as adapted:
        outputs["tent"] = outputs_of(adapted, inputs, batch)
    return {f"accuracy_{way}": found.measure(each, labels) for way, each in outputs.items()}


def _judge_tent(runs: Runs) -> Verdict:
    corrupted = Runs(runs.trials[runs.trials["corruption"] != "none"], runs.curves, runs.setup)

    def apart(first: str, second: str, among: Runs, **levels: Any) -> Interval:
        accuracies = (among.by_seed(f"accuracy_{way}", **levels) for way in (first, second))
        return seed_mean(next(accuracies) - next(accuracies))

    statistics, tent = (apart(way, "trained", corrupted) for way in ("statistics", "tent"))
    entropy, clean = apart("tent", "statistics", corrupted), apart("tent", "trained", runs, corruption="none")
    among = {"holds": "more", "fails": "less", "undecided": "nothing measurable"}[decided(entropy)]
    names = [str(name) for name in dict.fromkeys(corrupted.trials["corruption"])]
    gains = (100 * apart("tent", "trained", corrupted, corruption=name).estimate for name in names)
    single = ", ".join(f"{name} {gain:+.1f}" for name, gain in zip(names, gains, strict=True)).replace("-", "−")
    return said(
        *settled(
            (decided(tent), f"{points(tent)} by Tent"), (decided(statistics), f"{points(statistics)} by statistics")
        ),
        f"Over the network as trained Tent gains {single} points; on clean images {points(clean)}. The test "
        f"batches' statistics alone gain {points(statistics)} over all corruptions; to that the step down the entropy "
        f"adds {among}: {points(entropy)}.",
    )


def _draw_tent(runs: Runs) -> Picture:
    parts = {"BN": ("statistics", "trained"), "Tent": ("tent", "statistics")}
    rows = [
        runs.where(corruption=name).assign(
            row=f"{'clean' if name == 'none' else str(name).partition(':')[0].split('_')[-1]}, {part}",
            gain=100 * (runs.trials[f"accuracy_{first}"] - runs.trials[f"accuracy_{second}"]),
        )
        for name in runs.setup.factors["corruption"]
        for part, (first, second) in parts.items()
    ]
    return draw.levels(
        pd.concat(rows), "row", "gain", line=0.0, across="points gained: BN over none, Tent over BN",
        alt="What test batches' statistics gain over the network as trained, and the entropy step over these.",
    )  # fmt: skip


CLAIMS = (
    Claim(
        id="tent",
        sentence="Running batch norm at test time (what we told you not to do, because it induces minibatch "
        "dependence) improves model performance on out-of-distribution data.",
        source="002, BatchNorm: Other benefits?",
        hypothesis="On corrupted images, without labels, the statistics of test batches and Tent, which also lowers "
        "the entropy of its predictions, are both more accurate than the network as trained.",
        criterion="Holds if the whole intervals of both differences in test accuracy (statistics and Tent, each minus "
        "as trained; mean over corruptions, paired by seed) lie above zero; fails if one lies below. What Tent "
        "adds to the statistics is given with its interval and does not decide: the lecture does not part the two.",
        experiment=adapting,
        judge=_judge_tent,
        draw=_draw_tent,
        quick=Setup(
            "digits, 359 test images of 8×8 in batches of 64; a small CNN, 8 epochs",
            {"corruption": ["none", "contrast:5", "brightness:5", "gaussian_noise:5"]}, 6,
            {"task": "digits", "batch": 64, "recipe": {"model": "cnn", "norm": "batch", "epochs": 8}},
        ),
        full=Setup(
            "CIFAR-10, 10,000 test images in batches of 200; a CNN of three stages, 5 epochs",
            {"corruption": ["none", "contrast:5", "fog:5", "gaussian_noise:5"]}, 8,
            {
                "task": "cifar10", "batch": 200,
                "recipe": {"model": "cnn", "norm": "batch", "widths": [32, 64, 128], "epochs": 5},
            },
        ),
        literature="Wang et al. 2021 (arXiv:2006.10726); their repository gives errors on CIFAR-10-C (severity 5, 15 "
        "corruptions, WRN-28-10) of 43.5 % as trained, 20.4 % by the batches' statistics and 18.6 % with Tent: most of "
        "the gain is the statistics'. There 50 batches per corruption and 25 layers have scales to learn.",
    ),
)  # fmt: skip
