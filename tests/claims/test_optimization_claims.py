"""Claims of descent, convolutions, generalization and the entangled tables: identities, judges, and that they run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from homeostat import claims
from homeostat.claims import experiments
from homeostat.claims.claim import Claim, Runs, Setup
from homeostat.claims.themes import convolution, entangled, entangled_imagenet, optimization, regularization
from homeostat.parts.dropout import is_dropout
from homeostat.training.task import Task

THEMES = (optimization, convolution, regularization, entangled, entangled_imagenet)
CLAIMS = {claim.id: claim for theme in THEMES for claim in theme.CLAIMS}


def planted(claim: Claim, metrics: Callable[..., dict[str, float]], seeds: int = 6, noise: float = 0.0) -> Runs:
    """A claim's table: `metrics` of the levels, the same noise for every seed's trials and other noise for each."""
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for levels in itertools.product(*claim.quick.factors.values()):
            config = dict(zip(claim.quick.factors, levels, strict=True))
            found = {
                name: value + (noise * generator.normal() if noise else 1e-9 * seed)
                for name, value in metrics(**config).items()
            }
            rows.append({**config, "seed": seed, **found})
    return Runs(pd.DataFrame(rows), pd.DataFrame(), claim.quick)


def judged(id: str, metrics: Callable[..., dict[str, float]], **options: Any) -> str:
    claim = CLAIMS[id]
    verdict = claim.judge(planted(claim, metrics, **options))
    assert verdict.number
    assert ("would decide" in verdict.says) == (verdict.word == "undecided")
    return verdict.word


@pytest.mark.parametrize("id", ["weight-sharing-gradient", "convolution-shift"])
def test_identities_hold(id: str, tmp_path: Path) -> None:
    evidence = claims.run(CLAIMS[id], workers=0, out=tmp_path, progress=False)
    assert evidence.verdict.word == "holds", evidence.verdict
    assert (tmp_path / "quick" / id / "figure.svg").stat().st_size > 1000


def test_identities_can_fail() -> None:
    assert judged("weight-sharing-gradient", lambda network: {"error": 1e-3, "mean_error": 0.5}) == "fails"
    whole = {"border": 0.5, "rows_lost": 0.0, "columns_lost": 0.0, "strided": 0.5}
    assert judged("convolution-shift", lambda padding, size: {"inside": 0.0, **whole}) == "fails"  # valid keeps size


TINY: dict[str, dict[str, Any]] = {
    "clip-direction": {"starts": 2, "steps": 8, "lr": 0.1},
    "gradient-descent-kinds": {
        "task": "digits",
        "widths": [4],
        "goal": 2.2,
        "seconds": 0.01,
        "checks": 200,
        "watched": 5,
    },
    "plain-vs-residual": {
        "task": "digits",
        "examples": 70,
        "recipe": {"widths": [2, 2, 2], "optimizer": "sgd", "lr": 0.1, "epochs": 2},
    },
    "overparameterized-fit": {"task": "digits", "examples": 700, "recipe": {"model": "mlp", "epochs": 1}},
    "augmentation-helps": {"task": "digits", "examples": 70, "recipe": {"model": "cnn", "widths": [2], "epochs": 1}},
    "interactions": {
        "task": "digits",
        "recipe": {"model": "mlp", "init": "he_normal", "optimizer": "sgd", "widths": [4, 4], "epochs": 1},
    },
    "many-roads": {"examples": 70, "recipe": {"epochs": 1}},
    "entangled-cifar": {
        "task": "digits",
        "train": 40,
        "test": 20,
        "networks": "small",
        "decay": 0.01,
        "recipe": {"optimizer": "sgd", "epochs": 1},
    },
    "entangled-imagenet": {
        "task": "digits",
        "train": 40,
        "test": 20,
        "networks": "tiny",
        "flips": True,
        "decay": 0.01,
        "recipe": {"optimizer": "sgd", "schedule": "exponential", "epochs": 1},
    },
}


@pytest.mark.parametrize("id", TINY)
@pytest.mark.filterwarnings("ignore::homeostat.errors.NoEffectWarning")
def test_trainings_end_in_a_verdict_with_a_figure(id: str, tmp_path: Path) -> None:
    claim = CLAIMS[id]
    factors = {name: list(levels) for name, levels in claim.quick.factors.items()}
    if "depth" in factors:
        factors["depth"] = [8, 14]
    if "kind" in factors:
        factors["lr"] = [0.03, 0.1]
    quick = Setup("tiny", factors, 2, TINY[id])
    evidence = claims.run(dataclasses.replace(claim, quick=quick), workers=0, out=tmp_path, progress=False)
    assert evidence.verdict.word in ("holds", "fails", "undecided")
    assert not evidence.failures
    assert evidence.figure.wide.startswith("<svg")


@pytest.mark.parametrize("id", TINY)
def test_one_seed_in_which_much_diverged_is_no_error(id: str) -> None:
    claim = CLAIMS[id]
    names = {"clip-direction": ("cosine", "norm", "cost", "longest_step")}
    names["gradient-descent-kinds"] = ("seconds_to_goal", "rises", "milliseconds_per_step", "seconds_per_epoch")
    common = ("train_accuracy", "test_accuracy", "log_train_loss", "six_for_nine", "parameters")
    kept = tuple(f"kept_{name}" for name in ("rotate", "crop", "flip", "rotate90"))
    runs = planted(claim, lambda **_: dict.fromkeys((*names.get(id, common), *kept), np.nan), seeds=1)
    runs.trials["score"], runs.trials["diverged"] = 0.1, 1.0
    assert claim.judge(runs).word != "holds"


def test_clipping_is_judged() -> None:
    def cliff(clip: str, gain: float = 0.2, turn: float = 0.0) -> dict[str, float]:
        cosine = {"norm": 1.0 - turn, "value": 0.8, "none": 1.0}[clip]
        return {"cosine": cosine, "norm": 1.0, "cost": 0.05 + (gain if clip == "none" else 0.0), "longest_step": 3.0}

    assert judged("clip-direction", cliff) == "holds"
    assert judged("clip-direction", lambda clip: cliff(clip, gain=-0.04)) == "fails"
    assert judged("clip-direction", lambda clip: cliff(clip, turn=0.1)) == "fails"
    noisy = planted(CLAIMS["clip-direction"], cliff)
    noisy.trials["cost"] = np.random.default_rng(1).normal(size=len(noisy.trials))
    assert CLAIMS["clip-direction"].judge(noisy).word == "undecided"


def test_kinds_are_judged() -> None:
    def kinds(kind: str, lr: float, mini: float = 0.1, rough: float = 0.4) -> dict[str, float]:
        seconds = {"batch": 0.5, "mini-batch": mini, "stochastic": 0.4}[kind] * (1 + abs(lr - 0.3))
        rises = {"batch": 0.0, "mini-batch": 0.2, "stochastic": rough}[kind]
        return {"seconds_to_goal": seconds, "rises": rises, "milliseconds_per_step": 1.0, "seconds_per_epoch": 1.0}

    id = "gradient-descent-kinds"
    assert judged(id, kinds) == "holds"
    assert judged(id, lambda kind, lr: kinds(kind, lr, mini=0.9)) == "fails"
    assert judged(id, lambda kind, lr: kinds(kind, lr, rough=0.1)) == "fails"
    runs = planted(CLAIMS[id], kinds)
    runs.trials.loc[runs.trials["kind"] == "batch", "seconds_to_goal"] = np.nan  # never arrived: counts as all the time
    verdict = CLAIMS[id].judge(runs)
    assert verdict.word == "holds"
    assert "batch 10.0 times" in verdict.number
    assert "Not arrived in time at any rate: batch." in verdict.says


def test_depth_is_judged() -> None:
    def loss(model: str, depth: int, plain: float = 1.0, residual: float = -0.5) -> dict[str, float]:
        rise = (depth > 8) * (plain if model == "plain" else residual)
        return {"log_train_loss": -3.0 + rise, "train_accuracy": 0.9}

    id = "plain-vs-residual"
    assert judged(id, loss) == "holds"
    assert judged(id, lambda model, depth: loss(model, depth, residual=0.5)) == "fails"
    assert judged(id, lambda model, depth: loss(model, depth, plain=-0.2)) == "fails"
    assert judged(id, loss, noise=5.0) == "undecided"
    verdict = CLAIMS[id].judge(planted(CLAIMS[id], lambda model, depth: loss(model, depth, residual=0.5)))
    assert verdict.number.startswith("1.65 times")
    assert verdict.number.endswith("residual")


def test_a_net_that_diverged_counts_as_guessing_where_depth_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    found = SimpleNamespace(metrics={"train_loss": math.nan, "diverged": 1.0})
    monkeypatch.setattr(experiments, "fitted", lambda *_, **__: found)
    measured = optimization.depth({}, 0, task="digits", examples=20, recipe={})
    assert measured["log_train_loss"] == pytest.approx(math.log(math.log(10)))


def test_memory_is_judged() -> None:
    def fitted(labels: str, width: int, share: float = 1.0) -> dict[str, float]:
        reached = share if width > 4 else 0.4
        return {"train_accuracy": reached, "test_accuracy": 0.5, "parameters": 75.0 * width + 10}

    def word(share: float) -> str:
        runs = planted(CLAIMS["overparameterized-fit"], lambda labels, width: fitted(labels, width, share))
        runs.trials["train_accuracy"] = runs.trials["train_accuracy"].round(6)
        return CLAIMS["overparameterized-fit"].judge(runs).word

    assert (word(1.0), word(0.5), word(0.995)) == ("holds", "fails", "undecided")


def test_augmentation_is_judged() -> None:
    def accuracy(augment: str, mild: float = 0.02, harm: float = 0.05) -> dict[str, float]:
        gain = {"rotate": mild, "rotate90": -harm}.get(augment, 0.0)
        kept = dict.fromkeys(("kept_rotate", "kept_crop", "kept_flip", "kept_rotate90"), 0.9)
        return {"test_accuracy": 0.9 + gain, "six_for_nine": 0.3 if augment == "rotate90" else 0.0, **kept}

    id = "augmentation-helps"
    assert judged(id, accuracy) == "holds"
    assert judged(id, lambda augment: accuracy(augment, mild=-0.01)) == "fails"
    assert judged(id, lambda augment: accuracy(augment, harm=-0.01)) == "fails"
    assert judged(id, accuracy, noise=0.5) == "undecided"


def test_interactions_are_judged() -> None:
    def score(lr: float, init_gain: float, norm: str, dropout: float, size: float = 0.1) -> dict[str, float]:
        pairs = (lr > 0.1) * (norm == "batch") + (init_gain > 1.2) * (dropout > 0)
        return {"score": 0.5 + size * pairs, "diverged": 0.0}

    id = "interactions"
    assert judged(id, score) == "holds"
    assert judged(id, lambda **config: score(**config, size=0.0)) == "fails"
    assert judged(id, score, noise=2.0) == "undecided"
    only_one = planted(
        CLAIMS[id], lambda **c: {"score": 0.1 * (c["lr"] > 0.1) * (c["norm"] == "batch"), "diverged": 0.0}
    )
    assert CLAIMS[id].judge(only_one).word == "fails"  # initialization and dropout interact with nothing


def test_roads_are_judged() -> None:
    id = "many-roads"
    names = list(CLAIMS[id].quick.factors["road"])
    assert judged(id, lambda task, road: {"test_accuracy": 0.95 + 0.002 * names.index(road)}) == "holds"
    assert judged(id, lambda task, road: {"test_accuracy": 0.6 + 0.05 * names.index(road)}) == "fails"
    assert judged(id, lambda task, road: {"test_accuracy": 0.8}, noise=0.1) == "undecided"
    claim = CLAIMS[id]
    runs = planted(claim, lambda task, road: {"test_accuracy": np.nan if road == names[2] else 0.9})
    assert f"the last “{names[2]}” which diverged" in claim.judge(runs).says
    runs.trials["test_accuracy"] = np.nan
    assert "no recipe ended with a finite loss" in claim.judge(runs).says


def test_the_table_is_judged() -> None:
    def line(net: str, crop: str, decay: str, size: float = 0.05) -> dict[str, float]:
        layered = not net.startswith("MLP")
        found = {"score": 0.6 + 0.2 * layered + size * layered * (crop == "yes") + 0.01 * (decay == "yes")}
        return {**found, "train_accuracy": 1.0, "parameters": float(entangled.PARAMETERS[net])}

    id = "entangled-cifar"
    assert judged(id, line) == "holds"
    assert judged(id, lambda **config: line(**config, size=0.0)) == "fails"
    assert judged(id, line, noise=0.5) == "undecided"
    verdict = CLAIMS[id].judge(planted(CLAIMS[id], line))
    assert verdict.number.startswith("crop × convolution +5.0 points")


def test_the_table_of_imagenet_is_judged() -> None:
    def line(net: str, augmentation: str, dropout: str, decay: str, size: float = 0.04) -> dict[str, float]:
        normalized = net != entangled_imagenet.VGG
        both = 0.03 * size * (augmentation == "yes") * (decay == "yes")
        score = 0.6 + 0.1 * normalized + size * normalized * (dropout == "yes") + both + 0.02 * (decay == "yes")
        return {"score": score, "train_accuracy": 1.0, "parameters": float(entangled_imagenet.PARAMETERS[net])}

    id = "entangled-imagenet"
    assert judged(id, line) == "holds"
    assert judged(id, lambda **config: line(**config, size=0.0)) == "fails"
    assert judged(id, line, noise=0.5) == "undecided"
    verdict = CLAIMS[id].judge(planted(CLAIMS[id], line))
    assert verdict.number.startswith("dropout × VGG or the others +4.0 points")
    assert "by augmentation by +0.1, dropout by +2.7 and decay by +2.1 points" in verdict.says
    assert "augmentation × decay +0.1 points" in verdict.says


@pytest.mark.parametrize(
    ("id", "net"),
    [
        *(("entangled-cifar", net) for net in entangled.NETS),
        *(("entangled-imagenet", net) for net in entangled_imagenet.NETS),
    ],
)
def test_the_full_set_ups_train(id: str, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (24, 3, 32, 32), generator=generator).to(torch.uint8)
    task = Task(data=[(images, torch.arange(24) % 10)] * 3, name="noise", classes=10)
    monkeypatch.setattr(experiments, "task_named", lambda name: task)
    claim = CLAIMS[id]
    settings = {**claim.full.settings, "task": "noise", "train": 24, "test": 24}
    settings["recipe"] = {**settings["recipe"], "batch_size": 12, "epochs": 1}
    config = {name: levels[-1] for name, levels in claim.full.factors.items()} | {"net": net}
    found = claim.experiment(config, 0, **settings)
    assert 0 <= found["score"] <= 1
    assert not found["diverged"]


def test_effects_are_taken_apart_whatever_else_varies() -> None:
    generator = np.random.default_rng(0)
    switches = ("a", "b", "c")
    truth = {name: generator.normal(size=2) for name in (*switches, "a × b", "a × c", "b × c")}
    rows = []
    for seed, levels in itertools.product(range(2), itertools.product(("no", "yes"), repeat=3)):
        on = dict(zip(switches, (level == "yes" for level in levels), strict=True))
        score = sum(truth[name][seed] * (on[name] - 0.5) for name in switches)
        for one, other in itertools.combinations(switches, 2):
            score += truth[f"{one} × {other}"][seed] * (on[one] - 0.5) * (on[other] - 0.5)
        rows.append({"net": "n", "seed": seed, "score": score, **dict(zip(switches, levels, strict=True))})
    rows.append({"net": "n", "seed": 2, "score": 1.0, "a": "no", "b": "no", "c": "no"})  # the rest was lost
    found = entangled.effects(Runs(pd.DataFrame(rows), pd.DataFrame(), CLAIMS["entangled-imagenet"].quick), switches)
    assert list(found.index) == [0, 1]
    for name, values in truth.items():
        np.testing.assert_allclose(found[name, "n"], values)


@pytest.mark.parametrize("net", entangled_imagenet.NETS)
def test_the_networks_of_imagenet_have_the_published_parameters(net: str) -> None:
    with torch.device("meta"):
        model = entangled_imagenet.PUBLISHED[net]((3, 224, 224), 1000)
    assert sum(each.numel() for each in model.parameters()) == entangled_imagenet.PARAMETERS[net]
    probabilities = [module.p for module in model.modules() if is_dropout(module)]
    assert set(probabilities) == {entangled_imagenet.DROPOUT[net]}


@pytest.mark.parametrize("scale", entangled_imagenet.SMALL)
def test_the_stand_ins_take_the_images_of_their_task(scale: str) -> None:
    shape = {"tiny": (1, 7, 7), "small": (3, 28, 28)}[scale]
    for net, build in entangled_imagenet.SMALL[scale].items():
        model = build(shape, 10, dropout=0.2)
        assert model(torch.zeros(2, *shape)).shape == (2, 10)
        norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert norms == (net != entangled_imagenet.VGG)


@pytest.mark.parametrize("net", entangled.NETS)
def test_the_table_has_the_published_parameters(net: str) -> None:
    model = entangled.PUBLISHED[net]((3, 28, 28), 10)
    trained = sum(each.numel() for each in model.parameters() if each.requires_grad)
    assert trained == entangled.PARAMETERS[net]
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 10)


def test_crops_are_whitened_and_random_in_training_alone() -> None:
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0)).float()
    random, fixed = (entangled.Cropped(nn.Identity(), each) for each in (True, False))
    center = fixed(images)
    torch.testing.assert_close(center.mean((1, 2, 3)), torch.zeros(40), atol=1e-5, rtol=0)
    torch.testing.assert_close(center.std((1, 2, 3), correction=0), torch.ones(40))
    wanted = images[:, :, 2:30, 2:30]
    torch.testing.assert_close(center[0], (wanted[0] - wanted[0].mean()) / wanted[0].std(correction=0))
    assert torch.equal(random.eval()(images), center)
    torch.manual_seed(0)
    drawn = random.train()(images)
    assert drawn.shape == (40, 3, 28, 28)
    same = [torch.equal(one, other) for one, other in zip(drawn, center, strict=True)]
    assert 0 < 40 - sum(same) <= 40
    crops = torch.stack([images[0, :, i : i + 28, j : j + 28] for i in range(5) for j in range(5)])
    whitened = torch.stack([(crop - crop.mean()) / crop.std(correction=0) for crop in crops])
    assert (whitened - drawn[0]).abs().amax((1, 2, 3)).min() < 1e-5  # one of the 25 crops of the same image
