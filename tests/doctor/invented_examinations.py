"""Examinations and repairs with planted numbers, for tests of what is shown of them. Nothing is trained here."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from homeostat.doctor.arms import Arm
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Course, Mark
from homeostat.doctor.data.baselines import Baselines
from homeostat.doctor.examine import Examination
from homeostat.doctor.examples import Examples
from homeostat.doctor.finding import Finding, Proof
from homeostat.doctor.proof import PairedProof
from homeostat.doctor.repair import Applied, Repair
from homeostat.doctor.rule import Rule
from homeostat.doctor.score import Score
from homeostat.doctor.training import Training
from homeostat.doctor.watching.vitals import Vitals

HOSTILE = '</style><script>alert("x")</script><b onclick=x>&amp; "q" \' $\\alpha$'
KINDS = ("ill", "healthy", "diverged", "unwatched", "empty", "hostile", "deep")
LAYERS = ("stem.conv", "stem.norm", "body.0.linear", "body.0.act", "body.1.linear", "body.1.act", "head")


class Dead(Rule):
    """Units whose output is the same for every example carry nothing and learn nothing.

    What it checks: the share of units without any variation in a batch, after ReLU.

    Why it hurts: a unit whose gradient is zero everywhere stays as it is. Where all of a
    layer is dead, nothing before it learns either; see OPT901.

    Threshold and its source: half of the units (invented for a test).

    False alarms: sparse codes.

    Repair and its safety: a smaller learning rate (safe), another activation (unsafe).

    References: Lu et al. 2019, arXiv:1903.06733.
    """

    code: ClassVar[str] = "SIG901"
    slug: ClassVar[str] = "dead-half"
    causes: ClassVar[tuple[str, ...]] = ("dying_relu",)
    requires: ClassVar[tuple[str, ...]] = ("OPT901",)

    def check(self, chart):
        yield from ()


class TooFast(Rule):
    """The learning rate is so high that steps overshoot.

    What it checks
    --------------
    The loss along the step, against its curvature.

    Two times the learning rate's limit is too much.

    References
    ----------
    Cohen et al. 2021, arXiv:2103.00065.
    """

    code: ClassVar[str] = "OPT901"
    slug: ClassVar[str] = "too-fast"
    causes: ClassVar[tuple[str, ...]] = ("lr_too_high",)

    def check(self, chart):
        yield from ()


RULES = (Dead, TooFast)

FAST = Finding(
    "OPT901", "too-fast", "error", ("lr_too_high",),
    "The learning rate of 0.5 is 40 times what the curvature of the loss allows.",
    "Divide the learning rate by 10: SGD(lr=0.05).", None,
    {"learning_rate": 0.5, "limit": 0.0125, "top_eigenvalue": 160.0, "update_ratio": 0.31},
    Proof("learning rate 0.5 → 0.05", "accuracy", math.nan, 0.91, 470),
)  # fmt: skip
DEAD = Finding(
    "SIG901", "dead-half", "warning", ("dying_relu",),
    "71 % of the units of body.1.act give the same output for every example.",
    "Lower the learning rate first; if that does not help, LeakyReLU.", "body.1.act",
    {"dead_share": 0.71, "units": 128, "since_step": 60, "layers": ["body.0.act", "body.1.act"]},
)  # fmt: skip
REMARK = Finding(
    "SIG901", "dead-half", "info", ("dying_relu",), "12 % of the units of body.0.act are dead.", "", "body.0.act",
    {"dead_share": 0.12}, None, "OPT901",
)  # fmt: skip


def vitals(layers: tuple[str, ...] = LAYERS, steps: int = 30) -> Vitals:
    """Vitals in which activations grow, units die, and one layer becomes infinite at the end."""
    found = Vitals(layers)
    for number in range(steps):
        row = found.blank()
        for place, layer in enumerate(layers):
            deep = (place + 1) / len(layers)
            row[place, found.column("std")] = 10 ** (deep * number / steps * 3 - 0.5)
            row[place, found.column("nonfinite")] = 5.0 if number == steps - 1 and place == len(layers) - 1 else 0.0
            if layer.endswith("act"):
                row[place, found.column("dead")] = min(1.0, 0.71 * number / steps * (1 + deep))
            else:
                row[place, found.column("gradient")] = 10 ** (2 * deep - 3 + 2 * number / steps)
                row[place, found.column("update")] = 10 ** (-3.2 + 2.4 * number / steps * deep)
        found.append(number * number // 3 + number, row)
    return found


def course(final: float, *, diverged: int | None = None, watched: bool = True, total: int = 940) -> Course:
    """A trial of 470 steps that ends at a score."""
    random = np.random.default_rng(0)
    steps = 470 if diverged is None else diverged
    made = Course(total, 64, "accuracy")
    made.losses = (2.3 * np.exp(-np.arange(steps) / 120) + 0.2 + 0.05 * random.random(steps)).tolist()
    made.diverged = diverged
    made.seconds = 4.2
    for share in (0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0):
        value = 0.1 + (final - 0.1) * (1 - math.exp(-4 * share)) / (1 - math.exp(-4))
        mark = Mark(round(steps * share), steps * share / 47, value + 0.02, value, 2.3 - share, 2.35 - share)
        made.marks.append(mark)
    made.vitals = vitals() if watched else None
    return made


@functools.cache
def training() -> Training:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 10))
    data = (torch.zeros(200, 16), torch.zeros(200, dtype=torch.long))
    return Training(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.5), data, data, batch_size=64, epochs=20
    )


def chart(of: Course, ill: str = "") -> Chart:
    held = Examples(torch.zeros(200, 16), torch.zeros(200, dtype=torch.long), 200)
    baselines = Baselines(0.12, 0.88, 0.93, "multiclass", 200)
    none: dict[str, Any] = dict.fromkeys(("structure", "loss", "data", "probe", "late"))
    return Chart(training(), held, held, Score("multiclass", 10), course=of, baselines=baselines, ill=ill, **none)


def examination(kind: str = "ill") -> Examination:
    """An examination: ill, healthy, diverged, unwatched, empty (nothing could be run), hostile, deep."""
    ill = "accuracy 0.31 after 470 steps; nearest neighbors have 0.93."
    made: dict[str, Any] = {
        "verdict": "The learning rate is far too high (OPT901, and 1 more).",
        "findings": (FAST, DEAD, REMARK),
    }
    made |= {"seconds": 12.4, "seed": 0, "notes": ("the trial made 470 of the training's 940 steps",)}
    made["chart"] = chart(course(0.31), ill)
    if kind == "healthy":
        verdict = "Nothing is wrong as far as was seen: accuracy 0.951 after all of its training."
        made |= {"verdict": verdict, "findings": (), "chart": chart(course(0.951, total=470)), "notes": ()}
    elif kind == "diverged":
        made |= {"chart": chart(course(0.2, diverged=37), "The loss is not finite after 37 steps.")}
    elif kind == "unwatched":
        made |= {"chart": chart(course(0.31, watched=False), ill)}
    elif kind == "empty":
        made |= {"chart": None, "findings": (FAST,), "verdict": "The training cannot be run."}
    elif kind == "hostile":
        bad = Finding(
            "SIG901", HOSTILE, "warning", (HOSTILE,), HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE, "\x00": "\x1b"},
            Proof(HOSTILE, HOSTILE, 0.1, 0.2, 3), HOSTILE,
        )  # fmt: skip
        made |= {"verdict": HOSTILE, "findings": (bad,), "notes": (HOSTILE,)}
        of = course(0.31)
        of.vitals = vitals((HOSTILE, "b"), 4)
        made["chart"] = chart(of, HOSTILE)
    elif kind == "deep":
        of = course(0.5)
        of.vitals = vitals(tuple(f"encoder.layers.{n}.{part}" for n in range(30) for part in ("linear", "act")), 200)
        remarks = tuple(Finding("SIG901", "dead-half", "info", (), f"remark {n}", "", f"l{n}") for n in range(12))
        made |= {"chart": chart(of, ill), "findings": (FAST, DEAD, *remarks)}
    return Examination(**made)


def repair(kind: str = "proved") -> Repair:
    """A repair: proved (three seeds), single (one seed), better (and still ill), nothing (no change helped)."""
    before, after = (0.31, 0.28, 0.33), (0.951, 0.944, 0.953)
    if kind == "single":
        before, after = before[:1], after[:1]
    ill = "It ends below nearest neighbors." if kind == "better" else ""
    proof = PairedProof("accuracy", before, after, tuple(range(len(before))), 470, ill=ill)
    rate = Applied(
        "learning rate 0.5 → 0.05", (), FAST.message,
        "-optimizer = SGD(model.parameters(), lr=0.5)\n+optimizer = SGD(model.parameters(), lr=0.05)", "safe", "OPT901",
    )  # fmt: skip
    weights = Applied(
        "He initialization", ("body.0.linear", "body.1.linear"), "tried as a customary remedy",
        '+import homeostat as hs\n+hs.init.initialize_(model, "he", sample=batch)', "unsafe",
    )  # fmt: skip
    helped = kind != "nothing"
    advice = ("DAT901: shuffle the training data.",)
    changes, found = (rate, weights) if helped else (), proof if helped else None
    arm = Arm((), course=course(0.951, total=470)) if helped else None
    return Repair(training(), changes, found, examination(), training(), advice, 61.0, arm)
