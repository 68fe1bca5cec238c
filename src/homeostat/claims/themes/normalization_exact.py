"""What normalization does by construction: moments, gradients, invariance, parameters, folding, no need of a batch.

All in float64 on random tensors that the seed draws; the layers are homeostat's own.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import nn as hsnn
from homeostat import seeds
from homeostat.claims import draw
from homeostat.claims.claim import Claim, Runs, Setup, Verdict, all_of, decided, said, settled, tiny, within
from homeostat.parts.fold import fold

_TOLERANCE = 1e-9
_NO_EPSILON = 1e-30  # the layers want it above zero; float64 cannot see this beside a variance
_EXACT = f"Holds if every error is at most {_TOLERANCE:g}; fails otherwise."


def moments(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How far means are from beta and deviations from gamma, whatever came in."""
    generator = seeds.torch_generator(seed, "claim", "bn-moments")
    channels = 5
    layer = hsnn.BatchNorm2d(channels, eps=_NO_EPSILON).double()
    with torch.no_grad():
        layer.weight.copy_(torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5)
        layer.bias.copy_(torch.randn(channels, generator=generator, dtype=torch.float64))
    given = torch.randn(16, channels, 6, 7, generator=generator, dtype=torch.float64)
    output = layer(given * config["deviation"] + config["mean"]).transpose(0, 1).flatten(1)
    scale = max(1.0, abs(config["mean"]) / config["deviation"])  # what cancels in float64 cannot come back
    return {
        "mean_error": float((output.mean(1) - layer.bias).abs().max()) / scale,
        "deviation_error": float((output.std(1, correction=0) - layer.weight).abs().max()) / scale,
    }


def _judge_moments(runs: Runs) -> Verdict:
    worst = runs.trials[["mean_error", "deviation_error"]].max(axis=1)
    return Verdict(
        within(worst, _TOLERANCE),
        f"largest error {tiny(worst.max())}",
        f"The outputs' means are off beta by up to {tiny(runs.trials['mean_error'].max())}, their deviations off gamma "
        f"by up to {tiny(runs.trials['deviation_error'].max())}, over inputs of all these means and deviations.",
    )


def backward(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Cosines between gradients and what the lecture calls them orthogonal to; the size of a bias's gradient."""
    generator = seeds.torch_generator(seed, "claim", "bn-backward")
    given = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    linear = nn.Linear(6, 4).double()
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    layer = hsnn.BatchNorm1d(4, eps=config["eps"]).double()
    hidden = linear(given)
    hidden.retain_grad()
    wanted = torch.randn(16, 4, generator=generator, dtype=torch.float64)
    loss = (layer(hidden).tanh() * wanted).sum()
    loss.backward()
    assert hidden.grad is not None
    assert linear.weight.grad is not None
    assert linear.bias.grad is not None
    return {
        "input_gradient_on_ones": _cosine(hidden.grad, torch.ones_like(hidden)),
        "input_gradient_on_input": _cosine(hidden.grad, hidden.detach()),
        "weight_gradient_on_weight": _cosine(linear.weight.grad.T, linear.weight.detach().T),
        "bias_gradient": float(linear.bias.grad.abs().max() / hidden.grad.abs().max()),
    }


def _cosine(first: Tensor, second: Tensor) -> float:
    """The largest cosine between columns, which are channels."""
    return float(torch.cosine_similarity(first, second, dim=0).abs().max())


def _judge_backward(runs: Runs) -> Verdict:
    columns = ["input_gradient_on_ones", "input_gradient_on_input", "weight_gradient_on_weight", "bias_gradient"]
    exact, usual = (runs.where(eps=eps)[columns].max(axis=1) for eps in (_NO_EPSILON, 1e-5))
    return Verdict(
        within(exact, _TOLERANCE),
        f"largest cosine {tiny(exact.max())}",
        f"With the usual epsilon of 1e-5 the largest is {tiny(usual.max())}: orthogonal to the input only nearly.",
    )


def invariance(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How much outputs change with the inputs' scale and shift, and with a bias before the layer."""
    generator = seeds.torch_generator(seed, "claim", "bn-invariance")
    given = torch.randn(16, 5, 6, 7, generator=generator, dtype=torch.float64)
    scale = torch.rand(1, 5, 1, 1, generator=generator, dtype=torch.float64) * 10 + 0.1
    shift = torch.randn(1, 5, 1, 1, generator=generator, dtype=torch.float64)
    layer = hsnn.BatchNorm2d(5, eps=config["eps"]).double()
    base = layer(given)
    return {
        "scaled": float((layer(scale * given) - base).abs().max()),
        "shifted": float((layer(given + shift) - base).abs().max()),
        "turned": float((layer(-scale * given) + base).abs().max()),
    }


def _judge_invariance(runs: Runs) -> Verdict:
    exact = runs.where(eps=_NO_EPSILON)[["scaled", "shifted", "turned"]].max(axis=1)
    exact_turned, usual = runs.where(eps=_NO_EPSILON)["turned"].max(), runs.where(eps=1e-5)
    return Verdict(
        within(exact, _TOLERANCE),
        f"largest change {tiny(exact.max())}",
        f"With an epsilon of 1e-5, a shift changes outputs by up to {tiny(usual['shifted'].max())}, a scale of 0.1 to "
        f"10 by up to {tiny(usual['scaled'].max())}. By a negative scale they are, up to {tiny(exact_turned)}, the "
        "negated ones.",
    )


def parameters(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How many trainable numbers a layer has after a convolution with so many channels."""
    layer = hsnn.BatchNorm2d(config["channels"])
    output = layer(torch.zeros(2, config["channels"], 3, 3))
    assert output.shape[1] == config["channels"]
    return {"trainable": float(sum(each.numel() for each in layer.parameters() if each.requires_grad))}


def _judge_parameters(runs: Runs) -> Verdict:
    found = runs.values("trainable", channels=32)
    errors = (runs.trials["trainable"] - 2 * runs.trials["channels"].astype(float)).abs()
    each = ", ".join(f"{count} for {channels}" for channels, count in _counts(runs).items())
    return Verdict(
        all_of([within(errors, 0.0), "holds" if (found == 64).all() else "fails"]),
        f"{found.iloc[0]:.0f} for 32 channels",
        f"Trainable numbers by channels: {each}.",
    )


def _counts(runs: Runs) -> dict[int, int]:
    return {int(row["channels"]): int(row["trainable"]) for row in runs.trials.to_dict("records")}


def folding(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """The change of outputs by folding, and the time of a prediction before and after."""
    with seeds.isolated(seed, "claim", "bn-folding"):
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 2.0)
                nn.init.normal_(module.bias)
        sample = torch.randn(config["batch"], 3, 32, 32)
    model.eval()
    folded = fold(model, sample)
    with torch.no_grad():
        wide, exact = (each.double()(sample.double()) for each in (fold(model, sample).double(), model.double()))
        error = float((wide - exact).abs().max() / exact.abs().max())
        model.float()
        slow, fast = _fastest(model, sample), _fastest(folded.float(), sample)
    return {"error": error, "speedup": slow / fast, "before_ms": 1000 * slow, "after_ms": 1000 * fast}


def _fastest(model: nn.Module, sample: Tensor, rounds: int = 15) -> float:
    """Seconds of a prediction: the fastest of several."""
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        model(sample)
        spent.append(time.perf_counter() - start)
    return min(spent)


def _judge_folding(runs: Runs) -> Verdict:
    ratio = runs.mean("speedup")
    same = within(runs.trials["error"], 1e-5)
    fast = f"{ratio.estimate:.2f} times as fast [{ratio.low:.2f}, {ratio.high:.2f}]"
    return said(
        *settled((decided(ratio, 1.0), fast), (same, f"outputs off by {tiny(runs.trials['error'].max())}")),
        f"Outputs differ by {tiny(runs.trials['error'].max())} of the largest at most (float32 weights).",
    )


def batch_free(config: Mapping[str, Any], seed: int) -> dict[str, float]:
    """How much the output for one example depends on its company, and on the mode."""
    generator = seeds.torch_generator(seed, "claim", "layernorm-batch-free")
    given = torch.randn(8, 5, 6, 6, generator=generator, dtype=torch.float64)
    layers = {"layer": hsnn.LayerNorm((5, 6, 6)), "batch": hsnn.BatchNorm2d(5)}
    layer = layers[config["norm"]].double()
    together, alone = layer(given)[:1], layer(given[:1])
    layer.eval()
    return {
        "company": float((together - alone).abs().max()),
        "mode": float((layer(given)[:1] - together).abs().max()),
    }


def _judge_batch_free(runs: Runs) -> Verdict:
    free = runs.where(norm="layer")[["company", "mode"]].max(axis=1)
    bound = runs.where(norm="batch")["company"].min()
    word, number = settled(
        (within(free, _TOLERANCE), f"largest change {tiny(free.max())}"),
        ("holds" if bound > 0.01 else "fails", f"batch normalization changes it by {bound:.2g}"),
    )
    return Verdict(
        word,
        number,
        f"By company and by the mode layer normalization changes an example's output by {tiny(free.max())} at most; "
        f"batch normalization by at least {bound:.2g}.",
    )


_RANDOM = "random tensors in float64"

CLAIMS = (
    Claim(
        id="bn-moments",
        sentence="After batch normalization a neuron's values have mean β and standard deviation γ, irrespective of "
        "the original moments.",
        source="001, Normalisation",
        hypothesis="Means and deviations over a batch differ from β and γ by rounding alone, for all inputs.",
        criterion=_EXACT + " Errors are relative to what float64 can keep of inputs whose mean dwarfs their deviation.",
        experiment=moments,
        judge=_judge_moments,
        draw=lambda runs: draw.levels(
            runs.trials, ["mean", "deviation"], "mean_error", across="distance of the mean from β", log=True,
            alt="Distance of outputs' means from β by the inputs' mean and deviation.",
            names={(m, d): f"mean {m:g}, deviation {d:g}" for m in (0.0, 100.0) for d in (0.01, 1.0, 1000.0)},
        ),
        quick=Setup(_RANDOM, {"mean": [0.0, 100.0], "deviation": [0.01, 1.0, 1000.0]}, 5),
        full=Setup(_RANDOM, {"mean": [0.0, 100.0], "deviation": [0.01, 1.0, 1000.0]}, 50),
    ),
    Claim(
        id="bn-backward",
        sentence="δX ⊥ 1 and, for ε ≈ 0, δX ⊥ X; hence for X = conv(W, Z) + b we get δW ⊥ W and δb = 0.",
        source="004, Batch Normalization - Backprop",
        hypothesis="With ε ≈ 0 all four are zero up to rounding.",
        criterion=_EXACT,
        experiment=backward,
        judge=_judge_backward,
        draw=lambda runs: draw.levels(
            runs.trials.melt(["eps", "seed"], var_name="what", value_name="size"), ["what", "eps"], "size",
            across="size, relative", log=True,
            alt="Cosines between gradients and inputs, ones and weights, and the gradient of a bias, by epsilon.",
            names={
                (what, eps): f"{label}, ε = {eps:g}"
                for what, label in (
                    ("input_gradient_on_ones", "δX on 1"), ("input_gradient_on_input", "δX on X"),
                    ("weight_gradient_on_weight", "δW on W"), ("bias_gradient", "δb"),
                )
                for eps in (_NO_EPSILON, 1e-5)
            },
        ),
        quick=Setup(_RANDOM, {"eps": [_NO_EPSILON, 1e-5]}, 10),
        full=Setup(_RANDOM, {"eps": [_NO_EPSILON, 1e-5]}, 100),
    ),
    Claim(
        id="bn-invariance",
        sentence="For ε ≈ 0, BN(aX + b) = BN(X) for a > 0; no need to include a bias before batch normalization.",
        source="004, Batch Normalization - Train Fwd",
        hypothesis="With ε ≈ 0, positive scales and shifts per channel change nothing, and a negative scale the sign.",
        criterion=_EXACT,
        experiment=invariance,
        judge=_judge_invariance,
        draw=lambda runs: draw.levels(
            runs.trials.melt(["eps", "seed"], var_name="what", value_name="size"), ["what", "eps"], "size",
            across="largest change of an output", log=True,
            alt="Largest change of outputs by scaling, shifting and turning the inputs, by epsilon.",
            names={
                (what, eps): f"{what}, ε = {eps:g}"
                for what in ("scaled", "shifted", "turned")
                for eps in (_NO_EPSILON, 1e-5)
            },
        ),
        quick=Setup(_RANDOM, {"eps": [_NO_EPSILON, 1e-5]}, 10),
        full=Setup(_RANDOM, {"eps": [_NO_EPSILON, 1e-5]}, 100),
    ),
    Claim(
        id="bn-parameters",
        sentence="Batch normalization after a convolution with output [64, 128, 128, 32] has 64 trainable scalars.",
        source="000, Batch normalization (the question at the end)",
        hypothesis="Two per channel: 64.",
        criterion="Holds if there are exactly 64 for 32 channels, and two per channel for the others.",
        experiment=parameters,
        judge=_judge_parameters,
        draw=lambda runs: draw.scatter(
            runs.trials, "channels", "trainable", across="channels", up="trainable numbers",
            alt="Trainable numbers of a batch normalization by channels.",
        ),
        quick=Setup("layers alone", {"channels": [1, 8, 32, 100]}, 1),
        full=Setup("layers alone", {"channels": [1, 8, 32, 100]}, 1),
    ),
    Claim(
        id="bn-folding",
        sentence="At inference batch normalization can be folded into the layer before it, which removes its latency.",
        source="003, Cons",
        hypothesis="Outputs are equal up to rounding, and predictions faster.",
        criterion="Holds if outputs differ by at most 1e-5 of the largest in every run, and the whole interval of the "
        "ratio of times lies above 1; fails if an output differs by more, or the interval lies below 1.",
        experiment=folding,
        judge=_judge_folding,
        draw=lambda runs: draw.levels(
            runs.trials, "batch", "speedup", across="time before over time after folding", line=1.0,
            alt="How many times as fast predictions are with batch normalization folded, by batch size.",
            names={1: "batch of 1", 64: "batch of 64"},
        ),
        quick=Setup("a convolutional net of three layers, 32×32", {"batch": [1, 64]}, 8),
        full=Setup("a convolutional net of three layers, 32×32", {"batch": [1, 64]}, 50),
        literature="The slide's W' = W / √(σ² + ε) leaves out γ, which is there in its definition of the layer: folded "
        "is W' = γ W / √(σ² + ε), b' = β + γ (b − μ) / √(σ² + ε).",
    ),
    Claim(
        id="layernorm-batch-free",
        sentence="Layer normalization has no batch dependency and uses the same form for inference.",
        source="004, Normalization in General",
        hypothesis="An example's output is the same alone, in a batch, and in eval mode; batch normalization's is not.",
        criterion=f"Holds if layer normalization's outputs differ by at most {_TOLERANCE:g}, and batch "
        "normalization's by more than 0.01; fails otherwise.",
        experiment=batch_free,
        judge=_judge_batch_free,
        draw=lambda runs: draw.levels(
            runs.trials, "norm", "company", across="change of an example's output by its company",
            alt="Change of an example's output by the other examples, with layer and with batch normalization.",
            names={"layer": "layer normalization", "batch": "batch normalization"},
        ),
        quick=Setup(_RANDOM, {"norm": ["batch", "layer"]}, 10),
        full=Setup(_RANDOM, {"norm": ["batch", "layer"]}, 100),
    ),
)  # fmt: skip
