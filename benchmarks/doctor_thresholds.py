"""How the numbers that rules compare with thresholds are distributed over networks that are healthy by construction.

    python benchmarks/doctor_thresholds.py [networks per family]

Networks of random shapes with published initializations (Glorot & Bengio 2010 for tanh, He et al. 2015 for rectifiers,
torch's default up to 4 layers), residual networks and transformers as `transformers` builds them, on well-scaled random
inputs with labels of a random teacher; probed once as they are, and once after 40 steps of Adam that lower the loss.
Prints the quantiles of each statistic; the constants in doctor/rules cite this table. Random by seed.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat import environment, seeds
from homeostat.doctor.network import readings
from homeostat.doctor.network.probe import Probe, take
from homeostat.doctor.training import Training

STEPS = 40
PLAIN = ("mlp", "deep mlp", "cnn")
"""Families without normalization and residual branches."""
QUANTILES = (0.001, 0.01, 0.05, 0.5, 0.95, 0.99, 0.999)
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU,
}  # fmt: skip


def drawn(layer: nn.Module, activation: str, scheme: str) -> nn.Module:
    """A layer initialized by the scheme that its network's activation asks for."""
    if scheme == "published":
        if activation == "tanh":
            nn.init.xavier_normal_(layer.weight)
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return layer


def mlp(draw: np.random.Generator) -> tuple[str, nn.Module, Tensor, int]:
    """2 to 30 layers of 16 to 512 units; torch's default only where it is not known to fail."""
    depth_, width = int(draw.integers(2, 31)), int(2 ** draw.uniform(4, 9))
    activation = str(draw.choice(list(ACTIVATIONS)))
    scheme = "torch" if depth_ <= 4 and draw.random() < 0.5 else "published"
    inputs, outputs = int(2 ** draw.uniform(2, 8)), int(draw.integers(2, 21))
    layers: list[nn.Module] = []
    for place in range(depth_ - 1):
        layers += [
            drawn(nn.Linear(inputs if not place else width, width), activation, scheme),
            ACTIVATIONS[activation](),
        ]
    layers.append(drawn(nn.Linear(width, outputs), activation, scheme))
    x = _flat_inputs(draw, inputs)
    family = "mlp" if depth_ <= 10 else "deep mlp"
    return family, nn.Sequential(*layers), x, outputs


def cnn(draw: np.random.Generator) -> tuple[str, nn.Module, Tensor, int]:
    """2 to 8 convolutions of 8 to 64 channels, with or without batch normalization, and a classifier."""
    count, channels = int(draw.integers(2, 9)), int(2 ** draw.uniform(3, 6))
    activation, normed = str(draw.choice(list(ACTIVATIONS))), draw.random() < 0.5
    layers: list[nn.Module] = []
    before, outputs = int(draw.choice([1, 3])), int(draw.integers(2, 21))
    x = _images(draw, before)
    size = x.shape[-1]
    for place in range(count):
        layers.append(drawn(nn.Conv2d(before, channels, 3, padding=1), activation, "published"))
        layers += [nn.BatchNorm2d(channels)] if normed else []
        layers.append(ACTIVATIONS[activation]())
        if place % 2 and size >= 8:
            layers.append(nn.MaxPool2d(2))
            size //= 2
        before = channels
    layers += [nn.Flatten(), drawn(nn.Linear(channels * size * size, outputs), activation, "published")]
    return "cnn with norm" if normed else "cnn", nn.Sequential(*layers), x, outputs


class Logits(nn.Module):
    """A model of `transformers` that gives its logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits = self.inner(x).logits
        return logits[:, -1] if logits.dim() == 3 else logits


def zoo(draw: np.random.Generator) -> tuple[str, nn.Module, Tensor, int]:
    """A residual network or a transformer of random size."""
    import transformers as t

    kind, layers = str(draw.choice(["resnet", "convnext", "vit", "bert", "gpt2"])), int(draw.integers(2, 9))
    width = 8 * int(draw.integers(4, 13))
    images, words = _images(draw, 3), torch.from_numpy(draw.integers(0, 100, (64, 16)))
    sizes = {
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "hidden_size": width,
        "intermediate_size": 2 * width,
    }
    if kind == "resnet":
        config = t.ResNetConfig(
            embedding_size=16, hidden_sizes=[16, 32], depths=[2, layers], layer_type="basic", num_labels=10
        )
        return "resnet", Logits(t.ResNetForImageClassification(config)), images, 10
    if kind == "convnext":
        config = t.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, layers, 1], num_labels=10)
        return "resnet", Logits(t.ConvNextForImageClassification(config)), F.interpolate(images, 32), 10
    if kind == "vit":
        config = t.ViTConfig(image_size=16, patch_size=4, num_labels=10, **sizes)
        return "transformer", Logits(t.ViTForImageClassification(config)), F.interpolate(images, 16), 10
    if kind == "bert":
        config = t.BertConfig(vocab_size=100, num_labels=10, **sizes)
        return "transformer", Logits(t.BertForSequenceClassification(config)), words, 10
    config = t.GPT2Config(
        vocab_size=100, n_embd=width, n_layer=layers, n_head=4, use_cache=False, bos_token_id=0, eos_token_id=0
    )
    return "transformer", Logits(t.GPT2LMHeadModel(config)), words, 100


def _flat_inputs(draw: np.random.Generator, width: int) -> Tensor:
    """Standardized, uniform on [0, 1], or bits."""
    kind = draw.integers(3)
    if kind == 0:
        return torch.from_numpy(draw.standard_normal((64, width))).float()
    values = draw.random((64, width)) if kind == 1 else draw.integers(0, 2, (64, width))
    return torch.from_numpy(values).float()


def _images(draw: np.random.Generator, channels: int) -> Tensor:
    """Smooth images on [0, 1], or standardized."""
    size = int(draw.choice([8, 12, 16]))
    rough = torch.from_numpy(draw.standard_normal((64, channels, 4, 4))).float()
    x = F.interpolate(rough, size, mode="bilinear")
    x = (x - x.mean()) / x.std()
    return x if draw.random() < 0.5 else (x * 0.25 + 0.5).clamp(0, 1)


def statistics(probe: Probe, training: Training) -> Iterator[tuple[str, float]]:
    """What rules compare with thresholds."""
    forward, backward = readings.forward_ratios(probe), readings.backward_ratios(probe)
    for name, ratios in (("forward", forward), ("backward", backward), ("update", readings.update_ratios(probe))):
        low, high = readings.smallest(ratios), readings.largest(ratios)
        if low is not None and high is not None:
            yield f"{name} ratio, smallest", low.value
            if name != "update":
                yield f"{name} ratio, largest", high.value
    yield "forward factor", readings.factor(forward, forward=True)
    yield "backward factor", readings.factor(backward, forward=False)
    for name, share in (("dead", readings.dead_share), ("saturated", readings.saturated_share)):
        shares = [share(layer) for layer in probe.of("activation") if not math.isnan(share(layer))]
        if shares:
            yield f"{name} share, largest", max(shares)
    hidden = probe.of("weight", "activation")
    yield "similarity, largest", max(layer.similarity for layer in hidden)
    ranks = [layer.rank for layer in probe.of("weight")[:-1] if not math.isnan(layer.rank)]
    if ranks:
        yield "effective rank, smallest", min(ranks)
    yield "spread of outputs", probe.layers[-1].signal.spread
    model = dict(training.model.named_modules())
    scales = readings.weight_scales(training.model)
    yield from (("weight scale", scale) for scale in scales.values())
    yield "weight scale, product", math.prod(scales.values())
    scale = readings.output_scale(training.loss, probe.outputs, probe.targets)
    if scale is not None:
        yield "output excess", scale.excess
    yield "gain of the whole", probe.layers[-1].signal.carried / (probe.inputs.carried if probe.inputs else math.nan)
    for layer in probe.of("weight")[:-1]:
        yield "bias over signal", readings.bias_ratio(model[layer.name], layer)


def observe(model: nn.Module, x: Tensor, outputs: int, number: int) -> tuple[dict, dict, bool]:
    """The statistics of a network as it is and after some steps, and whether its loss fell."""
    with torch.no_grad():
        flat = x.float().flatten(1)
        y = (flat @ torch.randn(flat.shape[1], outputs)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    training = Training(model, F.cross_entropy, optimizer, (x, y), (x, y), batch_size=len(x), epochs=STEPS)
    examples = training.examples("train")
    start = take(training, examples)
    first = [p.detach().clone() for p in model.parameters()]
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    late = take(training, examples)
    moved = math.sqrt(sum(float((p - q).square().sum()) for p, q in zip(model.parameters(), first, strict=True)))
    length = math.sqrt(sum(float(q.square().sum()) for q in first))
    found = []
    for probe in (start, late):
        collected: dict[str, list[float]] = defaultdict(list)
        for name, value in statistics(probe, training):
            if not math.isnan(value):
                collected[name].append(value)
        found.append(collected)
    found[1]["weights moved, over their length"].append(moved / length)
    found[1]["peak of the loss, over the first"].append(max(np.convolve(losses, np.ones(5) / 5, "valid")) / losses[0])
    return found[0], found[1], late.loss < 0.9 * start.loss


def main(count: int) -> None:
    """Sample, measure, print."""
    torch.set_num_threads(1)
    table: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    networks: dict[str, int] = defaultdict(int)
    failed: dict[str, int] = defaultdict(int)
    start = time.monotonic()
    for build, number in ((mlp, 3 * count), (cnn, count), (zoo, count)):
        for index in range(number):
            draw = seeds.numpy_generator(index, "thresholds", build.__name__)
            with seeds.isolated(index, "thresholds", build.__name__), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                family, model, x, outputs = build(draw)
                first, late, learned = observe(model, x, outputs, index)
            networks[family] += 1
            failed[family] += not learned
            for when, found in (("start", first), ("late", late)):
                if when == "late" and not learned:
                    continue
                for name, values in found.items():
                    table[name, when, family] += values
                    if family in PLAIN:
                        table[name, when, "plain"] += values
    _print(table, networks, failed, time.monotonic() - start)


def _print(table: dict, networks: dict[str, int], failed: dict[str, int], seconds: float) -> None:
    print(", ".join(f"{key} {value}" for key, value in environment.describe().items()))
    shown = ", ".join(f"{number} {family} ({failed[family]} did not learn)" for family, number in networks.items())
    print(f"{shown}; {seconds:.0f} s\n")
    print(f"{'statistic':26s} {'when':6s}{'family':15s}{'n':>7s} " + " ".join(f"{100 * q:>9g} %" for q in QUANTILES))
    for (name, when, family), values in sorted(table.items()):
        row = " ".join(f"{value:11.3g}" for value in np.quantile(values, QUANTILES))
        print(f"{name:26s} {when:6s}{family:15s}{len(values):7d} {row}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
