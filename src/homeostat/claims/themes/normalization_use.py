"""Normalization in use: the statistics that predict, small and correlated batches, plain nets.

Training by recipes; what is measured beside it draws from streams of the seed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Sampler, TensorDataset

from homeostat.claims import draw
from homeostat.claims.claim import (
    Claim,
    Runs,
    Setup,
    Verdict,
    Word,
    between,
    decided,
    more,
    points,
    said,
    seed_mean,
    settled,
    within,
)
from homeostat.claims.experiments import outputs_of, task_named, trained
from homeostat.page.svg import Picture
from homeostat.parts.adapt import BatchNormAdaptation, batch_norms
from homeostat.parts.population import ESTIMATORS, update_statistics_
from homeostat.training.loop import fit
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task

_TOLERANCE = 1e-9


class Averages:
    """Running averages of the statistics of a layer's training batches, one pair per momentum, from one training."""

    def __init__(self, layer: _BatchNorm, momenta: Sequence[float]) -> None:
        self.layer = layer
        layer.momentum = 1.0  # its buffers hold the last batch's own
        self.kept = {each: (torch.zeros_like(self.seen[0]), torch.ones_like(self.seen[1])) for each in momenta}
        self.hook = layer.register_forward_hook(self._follow)

    @property
    def seen(self) -> tuple[Tensor, Tensor]:
        """The layer's buffers: mean and variance."""
        assert self.layer.running_mean is not None
        assert self.layer.running_var is not None
        return self.layer.running_mean, self.layer.running_var

    @torch.no_grad()
    def _follow(self, layer: nn.Module, args: object, output: object) -> None:
        if layer.training:
            for momentum, averages in self.kept.items():
                for average, seen in zip(averages, self.seen, strict=True):
                    average.lerp_(seen.to(average.device), momentum)

    def store(self, momentum: float) -> None:
        """Put the averages of one momentum into the layer."""
        for average, seen in zip(self.kept[momentum], self.seen, strict=True):
            seen.copy_(average)


def inference(
    config: Mapping[str, Any], seed: int, *, task: str, momenta: Sequence[float], recipe: Mapping[str, Any]
) -> dict[str, float]:
    """Test accuracy with each kind of statistics, and how much an example's output depends on its company."""
    found = task_named(task)
    settings = Recipe().varied({**recipe, "batch_size": config["batch_size"]})
    model = build_model(found, settings, seed)
    averages = [Averages(layer, momenta) for layer in batch_norms(model)]
    fit(found, settings, seed, model=model)
    for each in averages:
        each.hook.remove()
    model.eval()
    images, labels = found.test.head(len(found.test))
    inputs = found.prepare(images).to(next(model.parameters()).device)
    measured = {}

    @torch.no_grad()
    def measure(statistics: str) -> None:
        measured[f"accuracy_{statistics}"] = found.measure(outputs_of(model, inputs, 256), labels)
        measured[f"company_{statistics}"] = _company(model, inputs, 1)

    for momentum in momenta:
        for each in averages:
            each.store(momentum)
        measure(_running(momentum))
    for estimator in ESTIMATORS:
        batches = found.train.batches(seed, 0, settings.batch_size, shuffle=True)
        update_statistics_(model, (found.prepare(x) for x, _ in batches), estimator=estimator)
        measure(estimator)
    with torch.no_grad():
        measured["batch_company"] = _company(BatchNormAdaptation(model), inputs, 16)
    return measured


def _running(momentum: float) -> str:
    return f"running {momentum:g}"


def _company(model: nn.Module, inputs: Tensor, size: int) -> float:
    """The largest change of an output among 64 when predicted `size` at a time; of the largest output; in float64."""
    wide, inputs = copy.deepcopy(model).double(), inputs[:64].double()
    together, apart = (outputs_of(wide, inputs, count) for count in (64, size))
    return float((together - apart).abs().max() / together.abs().max())


def _judge_inference(runs: Runs) -> Verdict:
    company = runs.trials.filter(like="company_").max(axis=1)
    usual = runs.setup.settings["momenta"][0]
    named = {"running": _running(usual), **{each: each for each in ESTIMATORS}}
    means = {name: runs.by_seed(f"accuracy_{statistics}") for name, statistics in named.items()}
    gain, pooled = (
        seed_mean(means["minibatch"] - means["running"]),
        seed_mean(means["pooled"] - means["minibatch"]),
    )
    gaps = {
        f"{size} with momentum {momentum:g}": (own["accuracy_minibatch"] - own[f"accuracy_{_running(momentum)}"]).mean()
        for size, own in runs.trials.groupby("batch_size")
        for momentum in runs.setup.settings["momenta"]
    }
    most = max(gaps, key=lambda cell: np.nan_to_num(abs(gaps[cell])))
    shown = ", ".join(f"{name} {100 * each.mean():.1f} %" for name, each in means.items())
    return said(
        *settled(
            (decided(gain), f"{points(gain)} by the minibatch average"),
            (within(company, _TOLERANCE), f"company changes outputs by {company.max():.0e}"),
        ),
        f"Test accuracy with momentum {usual:g}, mean over batch sizes: {shown}; pooled against minibatch "
        f"{points(pooled)}. Measuring anew changed most at batches of {most}: "
        f"{100 * gaps[most]:+.1f} points. Alone or in company an output differs by {company.max():.0e}; by the batch's "
        f"own statistics it would by {runs.trials['batch_company'].mean():.2g} of the largest output.",
        gain,
    )


def _draw_inference(runs: Runs) -> Picture:
    lines = [*map(_running, runs.setup.settings["momenta"]), *ESTIMATORS]
    frame = pd.concat([runs.trials.assign(line=name, accuracy=100 * runs.trials[f"accuracy_{name}"]) for name in lines])
    return draw.courses(
        frame, "batch_size", "accuracy", "line", log="x", across="batch size of training", up="test accuracy in %",
        alt="Test accuracy by batch size: running averages by momentum, and statistics measured anew.",
    )  # fmt: skip


_PARTS = _MANY, _FEW, _ALIKE = "16 mixed", "2 mixed", "16 of one class"
_NORMS = "batch", "group"
_GUESSING = 0.15  # of the answers correct at most, of ten classes


class ClassBatches(Sampler[int]):
    """An order, from torch's global generator, of batches with `size` of each class: class by class, or mixed."""

    def __init__(self, labels: Tensor, size: int, mixed: bool) -> None:
        self.places = [torch.nonzero(labels == label).flatten() for label in torch.unique(labels)]
        self.size, self.mixed = size, mixed
        self.count = min(map(len, self.places)) // size

    def __len__(self) -> int:
        return self.count * self.size * len(self.places)

    def __iter__(self) -> Iterator[int]:
        drawn = [own[torch.randperm(len(own))[: self.count * self.size]].split(self.size) for own in self.places]
        for parts in zip(*drawn, strict=True):
            batch = torch.cat(parts)
            mixing = torch.randperm(len(batch))
            yield from (batch[mixing] if self.mixed else batch).tolist()


class InParts(nn.Module):
    """A net that is trained on a batch in parts, each with statistics of its own, and predicts as it is."""

    def __init__(self, net: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.size = net, size

    def forward(self, input: Tensor) -> Tensor:
        return torch.cat([self.net(part) for part in input.split(self.size)]) if self.training else self.net(input)


def small_batches(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Training by the same batches, 16 of each class, whose parts are normalized together."""
    given = task_named(task)
    settings = Recipe().varied({**recipe, "norm": config["norm"], "batch_size": 16 * given.outputs})
    x, y = given.train.head(len(given.train))
    order = ClassBatches(y, 16, mixed=config["parts"] != _ALIKE)
    data = (DataLoader(TensorDataset(x, y), sampler=order), given.valid, given.test)
    found = Task(data=data, name=task, classes=given.outputs, standardize=given.standardization)
    net: nn.Module = build_model(given, settings, seed)
    if config["norm"] == "batch":  # group normalization looks at one example at a time, in whatever part it is
        net = InParts(net, 2 if config["parts"] == _FEW else 16)
    return fit(found, settings, seed, model=net).metrics


def _judge_small_batches(runs: Runs) -> Verdict:
    def change(norm: str, kind: str) -> pd.Series[float]:
        accuracy = (runs.by_seed("test_accuracy", norm=norm, parts=each) for each in (kind, _MANY))
        return next(accuracy) - next(accuracy)

    batch, group = ({kind: change(norm, kind) for kind in (_FEW, _ALIKE)} for norm in _NORMS)
    size, alike = (seed_mean(group[kind] - batch[kind]) for kind in (_FEW, _ALIKE))
    collapsed = int((runs.trials["test_accuracy"] < _GUESSING).sum())
    told = f" {collapsed} of {len(runs.trials)} runs collapsed to guessing; a lower rate may save them."
    shown = [points(seed_mean(each[kind])) for kind in (_FEW, _ALIKE) for each in (batch, group)]
    return said(
        *settled((decided(size), f"{points(size)} by size"), (decided(alike), f"{points(alike)} by correlation")),
        f"From parts of 16 to parts of 2, test accuracy changes by {shown[0]} with batch and by {shown[1]} with group "
        f"normalization, which looks at no batch; to parts of 16 of one class by {shown[2]} and {shown[3]}."
        + (told if collapsed else ""),
        size,
        alike,
    )


def _log_loss(runs: Runs, **levels: Any) -> pd.Series[float]:
    """log10 of the final training loss by seed; NaN where it diverged."""
    return runs.by_seed("train_loss", **levels).clip(lower=1e-12).map(np.log10)


def _best_rate(runs: Runs, norm: str) -> float:
    """The learning rate with the lowest mean log of the training loss; one at which a run diverged comes last."""

    def height(rate: float) -> float:
        mean = _log_loss(runs, norm=norm, lr=rate).mean(skipna=False)
        return float(mean) if np.isfinite(mean) else np.inf

    return min(_rates(runs), key=height)


def _rates(runs: Runs) -> list[float]:
    return [float(rate) for rate in runs.setup.factors["lr"]]  # type: ignore[arg-type]


_WORDS = {"none": "without normalization", "layer": "with layer normalization"}


def _judge_layernorm(runs: Runs) -> Verdict:
    rates = {norm: _best_rate(runs, norm) for norm in ("none", "layer")}
    losses = {norm: _log_loss(runs, norm=norm, lr=rate) for norm, rate in rates.items()}
    ratio = seed_mean(losses["layer"] - losses["none"])
    means = {norm: 10 ** each.mean() for norm, each in losses.items()}
    accuracy = seed_mean(
        runs.by_seed("test_accuracy", norm="layer", lr=rates["layer"])
        - runs.by_seed("test_accuracy", norm="none", lr=rates["none"])
    )
    ends = {_WORDS[norm] for norm, rate in rates.items() if not between(rate, _rates(runs))}
    word: Word = "undecided" if ends else decided(ratio)
    beyond = f" The best rate is an end of those tried {' and '.join(sorted(ends))}: others would decide it."
    return Verdict(
        word,
        f"{10**ratio.estimate:.2g} times the training loss [{10**ratio.low:.2g}, {10**ratio.high:.2g}]",
        f"Each at its best learning rate, training ends at a loss of {means['none']:.2g} without normalization (rate "
        f"{rates['none']:g}) and of {means['layer']:.2g} with layer normalization (rate {rates['layer']:g}); test "
        f"accuracy differs by {points(accuracy)}." + (beyond if ends else more(word, ratio)),
    )


_MOMENTA = [0.1, 0.01, 0.9]  # the first is the usual one
_BATCHES: dict[str, Sequence[Any]] = {"norm": _NORMS, "parts": _PARTS}
_RATES: dict[str, Sequence[Any]] = {"norm": ["none", "layer"], "lr": [0.03, 0.1, 0.3, 1.0, 3.0]}
_PLAIN = {"model": "mlp", "optimizer": "sgd", "momentum": 0.0, "batch_size": 32}

CLAIMS = (
    Claim(
        id="bn-inference",
        sentence="Testing is not done on minibatches. Once the network is trained, compute for each neuron the average "
        "μ, σ² over all training minibatches (or the running average, or that of the whole data), so that the "
        "prediction for one sample does not depend on others.",
        source="001, Batchnorm at testing time; 002, Minibatch dependence; 003, Testing; 004, Batch Normalization - "
        "Inference",
        hypothesis="With each of the three, an example's output is the same alone and in company, and the average over "
        "training minibatches predicts better than the running average of the usual momentum, over batch sizes (which "
        "the lectures leave open).",
        criterion="Holds if outputs alone and among 64 differ by at most 1e-9 of the largest (float64) with all three, "
        "and the whole interval of the difference in test accuracy (minibatch average minus running average of "
        "momentum 0.1, mean over batch sizes, paired by seed) lies above zero; fails if they differ by more or it lies "
        "below.",
        experiment=inference,
        judge=_judge_inference,
        draw=_draw_inference,
        quick=Setup(
            "digits, 1,078 training examples; an MLP, 6 epochs", {"batch_size": [4, 16, 128]}, 5,
            {
                "task": "digits", "momenta": _MOMENTA,
                "recipe": {"model": "mlp", "widths": [64, 64], "norm": "batch", "epochs": 6},
            },
        ),
        full=Setup(
            "Fashion-MNIST; a small CNN, 3 epochs", {"batch_size": [8, 64, 512]}, 10,
            {"task": "fashion-mnist", "momenta": _MOMENTA, "recipe": {"model": "cnn", "norm": "batch", "epochs": 3}},
        ),
        literature="Ioffe & Szegedy 2015 (algorithm 2) average over training minibatches and name moving averages as a "
        "way to follow training. Wu & Johnson 2021 (arXiv:2105.07576) found precise statistics on ImageNet better and "
        "steadier than moving averages, most clearly with large batches: few steps for the average to follow.",
    ),
    Claim(
        id="bn-small-batch",
        sentence="Batch normalization requires sufficiently large and uncorrelated batches to get good estimates of "
        "μ, σ.",
        source="004, Batch Normalization - Inference; 000, Batch normalization (the figure of Wu & He)",
        hypothesis="With steps on the same batches of 160, normalized in parts of 2 instead of 16, or in parts of one "
        "class instead of mixed, batch normalization loses more test accuracy than group normalization.",
        criterion="Holds if the whole intervals of both differences of losses (batch minus group normalization, paired "
        "by seed) lie above zero; fails if one lies below zero.",
        experiment=small_batches,
        judge=_judge_small_batches,
        draw=lambda runs: draw.levels(
            runs.trials, ["norm", "parts"], "test_accuracy", across="test accuracy",
            alt="Test accuracy with batch and group normalization, by the parts that are normalized together.",
            names={(norm, parts): f"{norm}, {parts.removeprefix('16 of ')}" for norm in _NORMS for parts in _PARTS},
        ),
        quick=Setup(
            "digits, 960 of 1,078 training examples per epoch; a small CNN, 8 epochs", _BATCHES, 5,
            {"task": "digits", "recipe": {"model": "cnn", "optimizer": "sgd", "lr": 0.1, "epochs": 8}},
        ),
        full=Setup(
            "Fashion-MNIST; a small CNN, 2 epochs", _BATCHES, 10,
            {"task": "fashion-mnist", "recipe": {"model": "cnn", "optimizer": "sgd", "lr": 0.01, "epochs": 2}},
        ),
        literature="Wu & He 2018 (arXiv:1803.08494), ResNet-50 on ImageNet: validation error 23.6 % with batch and "
        "24.1 % with group normalization at 32 images per device, 34.7 % and 24.1 % at 2. There 2 images leave 98 "
        "values per channel in the last layers of many; here 32 (quick) or 392 (full) in the second of two.",
    ),
    Claim(
        id="layernorm-fcn",
        sentence="In practice, for a standard fully connected net, layer normalization makes it harder to train to low "
        "loss (relative norms of examples are a useful discriminative feature).",
        source="002, LayerNorm illustration",
        hypothesis="After the same number of plain SGD steps, each at its best learning rate, the training loss is "
        "higher with layer normalization than without.",
        criterion="The learning rate of each is the one with the lowest mean log training loss, where no run diverged. "
        "Holds if the whole interval of the mean log ratio of final training losses (layer over none, paired by seed) "
        "lies above zero, fails if it lies below; undecided where the best rate is an end of those tried.",
        experiment=trained,
        judge=_judge_layernorm,
        draw=lambda runs: draw.courses(
            runs.trials, "lr", "train_loss", "norm", across="learning rate", up="final training loss", log="xy",
            alt="Final training loss by learning rate, without and with layer normalization.",
            names={"none": "no norm", "layer": "layer norm"},
        ),
        quick=Setup(
            "digits, 1,078 training examples; an MLP of 3×100, 30 epochs", _RATES, 5,
            {"task": "digits", "recipe": {**_PLAIN, "widths": [100, 100, 100], "epochs": 30}},
        ),
        full=Setup(
            "MNIST; an MLP of 3×100, 20 epochs", {**_RATES, "lr": [0.003, 0.01, 0.03, 0.1, 0.3]}, 10,
            {"task": "mnist", "recipe": {**_PLAIN, "widths": [100, 100, 100], "epochs": 20}},
        ),
        literature="Ba et al. 2016 (arXiv:1607.06450) compare with batch normalization, not with none: on "
        "permutation-invariant MNIST a 784-1000-1000-10 net learned faster with layer normalization, at batches of 128 "
        "and of 4. The lecture normalizes behind the nonlinearity; here it is done before, as by Ba et al.",
    ),
)  # fmt: skip
