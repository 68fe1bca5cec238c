"""How weights start: the scale of signals by depth, by fans, and behind tanh.

What is exact is computed in float64; weights are drawn by homeostat's own initialization from the seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.claims import draw, experiments
from homeostat.claims.claim import (
    Claim,
    Runs,
    Setup,
    Verdict,
    Word,
    all_of,
    decided,
    inside,
    said,
    settled,
    tiny,
    within,
)
from homeostat.inference import Interval, mean_interval
from homeostat.parts import init
from homeostat.training.models import build_model, mlp
from homeostat.training.recipe import Recipe


def depth(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """The gradients of a product of weight matrices, all of one scale."""
    width, scale, layers = config["width"], config["scale"], config["depth"]
    generator = seeds.torch_generator(seed, "claim", "depth-scale", width, layers, str(scale))
    weights = [torch.empty(width, width, dtype=torch.float64) for _ in range(layers)]
    for weight in weights:
        init.normal_(weight, std=scale / math.sqrt(width), generator=generator)
        if width == 1:
            weight.sign_().mul_(scale)
        weight.requires_grad_()
    first, last = (
        nn.functional.normalize(torch.randn(width, generator=generator, dtype=torch.float64), dim=0) for _ in range(2)
    )
    signal = first
    for weight in weights:
        signal = weight @ signal
    norms = torch.stack([gradient.norm() for gradient in torch.autograd.grad(last @ signal, weights)])
    return {"gradient": float(norms[0]), "error": float((norms / scale ** (layers - 1) - 1).abs().max())}


def _judge_depth(runs: Runs) -> Verdict:
    single, wide = runs.where(width=1), runs.trials[runs.trials["width"] > 1]
    bases = {}
    for scale in wide["scale"].astype(float).unique():
        own = wide[wide["scale"] == scale]
        slopes = [
            np.polyfit(each["depth"].astype(float) - 1, np.log(each["gradient"]), 1)[0]
            for _, each in own.groupby(["width", "seed"])
        ]
        bases[scale] = mean_interval(np.exp(slopes) / scale)
    farthest = sorted(bases.values(), key=lambda found: -abs(found.estimate - 1))
    word, number = settled(
        *((inside(found, 0.95, 1.05), f"a factor of {_shown(found)} times S per layer") for found in farthest),
        (within(single["error"], 1e-9), f"1×1 matrices off by {tiny(single['error'].max())}"),
    )
    return said(
        word,
        number,
        f"For 1×1 matrices the gradients are S^(m-1) up to {tiny(single['error'].max())}. For random matrices with "
        "entries of variance S²/n the norm grows per layer by "
        + ", ".join(f"{scale * found.estimate:.2f} (S = {scale:g})" for scale, found in bases.items())
        + ".",
    )


def _shown(interval: Interval) -> str:
    return f"{interval.estimate:.2f} [{interval.low:.2f}, {interval.high:.2f}]"


def fans(config: Mapping[str, Any], seed: int, *, widths: Sequence[int]) -> dict[str, float]:
    """Mean squares of a ReLU net's sums, and of the gradients with respect to them, relative to where they start."""
    shape = list(widths) if config["shape"] == "narrowing" else list(widths)[::-1]
    generator = seeds.torch_generator(seed, "claim", "fan-in-fan-out")
    with seeds.isolated(seed, "claim", "fan-in-fan-out"):
        model = mlp(shape[0], shape[-1], widths=shape[1:-1]).double()
    init.initialize_(model, "he_normal", mode=config["fan"], generator=generator)
    input = torch.randn(128, shape[0], generator=generator, dtype=torch.float64)
    forward, backward = _signals(model, nn.Linear, input, generator)
    found = {f"forward_{place}": value / forward[0] for place, value in enumerate(forward, 1)}
    found |= {f"backward_{place}": value / backward[-1] for place, value in enumerate(backward, 1)}
    ends = {"forward": forward[-1] / forward[0], "backward": backward[0] / backward[-1]}
    return {**found, **ends, **{f"{name}_off": abs(math.log(value)) for name, value in ends.items()}}


def _signals(
    model: nn.Module, kind: type[nn.Module], input: Tensor, generator: torch.Generator
) -> tuple[list[float], list[float]]:
    """Mean squares of the outputs of a kind of layer, and of the gradients with respect to them; for a random cotangent
    at the model's output."""
    outputs: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: outputs.append(output))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    output = model(input)
    for hook in hooks:
        hook.remove()
    cotangent = torch.randn(output.shape, generator=generator, dtype=output.dtype)
    gradients = torch.autograd.grad(output, outputs, cotangent)
    return [float(each.detach().square().mean()) for each in outputs], [
        float(each.square().mean()) for each in gradients
    ]


def _judge_fans(runs: Runs) -> Verdict:
    steps = len(runs.setup.settings["widths"]) - 2
    parts: list[tuple[Word, str]] = []
    factors = {}
    for shape in ("narrowing", "widening"):
        for way, right, wrong in (("forward", "fan_in", "fan_out"), ("backward", "fan_out", "fan_in")):
            for fan in (right, wrong):
                found = _root(runs.mean(way, shape=shape, fan=fan), steps)
                kept = inside(found, 0.9, 1.1)
                number = f"{_shown(found)} times per layer {way} with {fan} ({shape})"
                parts.append((kept if fan == right else _other(kept), number))
                factors[shape, way, fan] = found
            average = {"shape": shape, "fan": "fan_avg"}
            nearer = runs.difference(f"{way}_off", {"shape": shape, "fan": wrong}, average)
            parts.append((decided(nearer), f"the average nearer {way} by {nearer.estimate:.2f} ({shape})"))
            factors[shape, way, "fan_avg"] = _root(runs.mean(way, **average), steps)
    there = {fan: factors["narrowing", "forward", fan].estimate for fan in ("fan_in", "fan_avg", "fan_out")}
    back = {fan: factors["narrowing", "backward", fan].estimate for fan in ("fan_in", "fan_avg", "fan_out")}
    return said(
        *settled(*parts),
        "In a net whose layers narrow by √2 the variance changes per layer by the factors "
        + "; ".join(f"{there[fan]:.2f} forward and {back[fan]:.2f} backward with {fan}" for fan in there)
        + ".",
    )


def _root(interval: Interval, steps: int) -> Interval:
    return Interval(*(max(end, 0.0) ** (1 / steps) for end in interval[:3]))


def _other(word: Word) -> Word:
    opposite: dict[Word, Word] = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    return opposite[word]


def _by_layer(trials: pd.DataFrame, by: str, names: Mapping[str, str], series: Mapping[str, str]) -> pd.DataFrame:
    """One row per trial, series and layer of the metrics `forward_1`, `forward_2`, ...; `line` tells series apart."""
    rows = [
        (trial["seed"], f"{names[trial[by]]}, {label}", int(name.rpartition("_")[2]), trial[name])
        for trial in trials.to_dict("records")
        for start, label in series.items()
        for name in map(str, trial)
        if name.startswith(f"{start}_") and name.rpartition("_")[2].isdecimal()
    ]
    return pd.DataFrame(rows, columns=["seed", "line", "layer", "value"])


def tanh_scale(config: Mapping[str, Any], seed: int, *, task: str, recipe: Mapping[str, Any]) -> dict[str, float]:
    """Deviations of a tanh net's hidden outputs by layer, at the start and after training."""
    data = experiments.task_named(task)
    input = data.prepare(data.valid.head(512)[0])
    generator = seeds.torch_generator(seed, "claim", "uniform-vs-xavier")
    fresh = build_model(data, Recipe().varied(recipe).varied(config), seed)
    _, gradients = _signals(fresh, nn.Tanh, input, generator)
    found = experiments.fitted(config, seed, task=task, recipe=recipe)
    start, after = (_deviations(model, input) for model in (fresh, found.model))
    steps = len(start) - 1
    return {
        **{f"start_{place}": value for place, value in enumerate(start, 1)},
        **{f"after_{place}": value for place, value in enumerate(after, 1)},
        "start_factor": (start[-1] / start[0]) ** (1 / steps),
        "after_factor": (after[-1] / after[0]) ** (1 / steps),
        "gradient_factor": (gradients[0] / gradients[-1]) ** (0.5 / steps),
        "test_accuracy": found.metrics["test_accuracy"],
    }


@torch.no_grad()
def _deviations(model: nn.Module, input: Tensor) -> list[float]:
    """The standard deviation of what comes out of each tanh, over examples and units."""
    found = []
    for module in model.children():
        input = module(input)
        if isinstance(module, nn.Tanh):
            found.append(float(input.std()))
    return found


def _judge_tanh(runs: Runs) -> Verdict:
    uniform, xavier = (runs.mean("after_factor", init=name) for name in ("fan_in_uniform", "xavier_uniform"))
    starts = [runs.mean("start_factor", init=name).estimate for name in ("fan_in_uniform", "xavier_uniform")]
    gradients = [runs.mean("gradient_factor", init=name).estimate for name in ("fan_in_uniform", "xavier_uniform")]
    accuracy = [runs.mean("test_accuracy", init=name).estimate for name in ("fan_in_uniform", "xavier_uniform")]
    return said(
        all_of([_other(decided(uniform, 0.9)), decided(xavier, 0.9)]),
        f"{_shown(xavier)} times per layer with Xavier, {_shown(uniform)} with U",
        f"These are deviations after training. At the start they change per layer by {starts[1]:.2f} with Xavier and "
        f"{starts[0]:.2f} with U, gradients by {gradients[1]:.2f} and {gradients[0]:.2f}. Test accuracy is "
        f"{accuracy[1]:.1%} and {accuracy[0]:.1%}.",
    )


_MATRICES = "products of random matrices in float64"
_TANH = {"model": "mlp", "widths": [100] * 5, "activation": "tanh", "optimizer": "sgd"}
_INITS = {"init": ["fan_in_uniform", "xavier_uniform"]}
_FANS = {"fan": ["fan_in", "fan_avg", "fan_out"], "shape": ["narrowing", "widening"]}

CLAIMS = (
    Claim(
        id="depth-scale",
        sentence="Without activation functions, for 1×1 matrices that are all of scale S, the gradient is proportional "
        "to S^(m-1), where m is the depth of the network: for S too large it will explode, for S too small vanish.",
        source="000, Some intuition",
        hypothesis="The gradient of 1×1 matrices is S^(m-1) exactly, and that of n×n matrices with random entries of "
        "variance S²/n grows by a factor of S per layer, to within 5 %.",
        criterion="Holds if every relative error for 1×1 matrices is at most 1e-9, and for n×n the whole interval of "
        "the factor per layer over S (the slope of log gradient over depth, seed by seed) lies in 0.95 to 1.05 for "
        "every S. Fails if an error is larger or a whole interval lies outside.",
        experiment=depth,
        judge=_judge_depth,
        draw=lambda runs: draw.courses(
            runs.trials.assign(
                net=[
                    f"S = {scale:g}, {width}×{width}"
                    for scale, width in zip(runs.trials["scale"], runs.trials["width"], strict=True)
                ]
            ),
            "depth", "gradient", "net", log="y", across="depth m", up="gradient norm of the first layer",
            alt="Norm of the gradient over depth: it grows exponentially for S = 1.5, stays for 1, falls for 0.5.",
        ),
        quick=Setup(_MATRICES, {"width": [1, 64], "scale": [0.5, 1.0, 1.5], "depth": [2, 4, 8, 16, 32]}, 10),
        full=Setup(_MATRICES, {"width": [1, 256], "scale": [0.5, 1.0, 1.5], "depth": [2, 4, 8, 16, 32, 64]}, 50),
        literature="For n×n matrices the mean of the squared norm is S^(2(m-1)); the mean logarithm of the norm lies "
        "about 1/(2n) per layer below that of S^(m-1), so narrow deep networks fade even with S = 1.",
    ),
    Claim(
        id="fan-in-fan-out",
        sentence="Keeping the variance of gradients and of outputs may contradict each other: for ReLU they require "
        "Var W = 2/(outgoing connections) and 2/(incoming connections), respectively. You can choose one of them, or "
        "average them out: 4/(outgoing + incoming).",
        source="000, Random initialization",
        hypothesis="Where layers narrow or widen, 2/fan_in keeps the variance forward and not backward, 2/fan_out "
        "backward and not forward, and the average is off in both directions, by less than the wrong one.",
        criterion="Holds if, in nets that narrow and that widen by √2 per layer, the whole interval of the variance's "
        "factor per layer lies in 0.9 to 1.1 forward with 2/fan_in and backward with 2/fan_out, outside with the other "
        "one, and the average is nearer to 1 (in logarithms, paired, whole interval) than the other one. Fails if a "
        "whole interval is on the other side.",
        experiment=fans,
        judge=_judge_fans,
        draw=lambda runs: draw.courses(
            _by_layer(
                runs.where(shape="narrowing"), "fan",
                {"fan_in": "2/fan_in", "fan_avg": "average", "fan_out": "2/fan_out"},
                {"forward": "forward", "backward": "backward"},
            ),
            "layer", "value", "line", log="y", line=1.0,
            across="layer, of a net whose layers narrow by √2", up="variance, relative to where it starts",
            alt="Variance of sums and of their gradients by layer of a narrowing ReLU net, for three initializations.",
        ),
        quick=Setup(
            "a ReLU net of 8 layers, 1024 to 64 units; normal inputs, float64", _FANS, 20,
            {"widths": [1024, 724, 512, 362, 256, 181, 128, 91, 64]},
        ),
        full=Setup(
            "a ReLU net of 8 layers, 2048 to 128 units; normal inputs, float64", _FANS, 100,
            {"widths": [2048, 1448, 1024, 724, 512, 362, 256, 181, 128]},
        ),
        literature="He et al. 2015 (arXiv:1502.01852) derive both and call either sufficient: over a whole network the "
        "wrong one is off by the ratio of its first and last widths alone.",
    ),
    Claim(
        id="uniform-vs-xavier",
        sentence="With weights from U(-1/√n, 1/√n) the density of each layer's output shows a problem (trained on "
        "MNIST for 4 epochs); the variance of the activations should stay the same across every layer. With Xavier "
        "initialization, vanishing gradient is no longer a problem.",
        source="003, Weight Initialization: Random Initialization; Xavier Initialization",
        hypothesis="In a tanh net after training, the deviation of hidden outputs shrinks by more than 10 % from layer "
        "to layer after U(-1/√n, 1/√n), and by less after Xavier (the lecture shows histograms, not a number).",
        criterion="Holds if, after training, the whole interval of the deviation's factor per layer lies below 0.9 for "
        "U and above 0.9 for Xavier; fails if the whole interval of one lies on the other side.",
        experiment=tanh_scale,
        judge=_judge_tanh,
        draw=lambda runs: draw.courses(
            _by_layer(
                runs.trials, "init", {"fan_in_uniform": "U", "xavier_uniform": "Xavier"},
                {"start": "at the start", "after": "trained"},
            ),
            "layer", "value", "line", across="hidden layer", up="standard deviation of outputs",
            alt="Standard deviation of each hidden layer's outputs, at the start and after training, from "
            "U(-1/√n, 1/√n) and from Xavier initialization.",
        ),
        quick=Setup(
            "digits, 1,078 examples; tanh mlp of 5×100, 40 epochs of sgd", _INITS, 10,
            {"task": "digits", "recipe": {**_TANH, "epochs": 40}},
        ),
        full=Setup(
            "MNIST; tanh mlp of 5×100, 4 epochs of sgd", _INITS, 20,
            {"task": "mnist", "recipe": {**_TANH, "epochs": 4}},
        ),
        literature="Glorot & Bengio 2010 show the same two pictures for tanh nets of five hidden layers; with 1,000 "
        "units each their test error on MNIST is 1.76 % with U and 1.64 % with Xavier, a much smaller difference.",
    ),
)  # fmt: skip
