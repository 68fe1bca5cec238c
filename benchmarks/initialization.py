"""Through 30 layers, what do initialization schemes do to the mean square? Prints smallest and largest of each net.

    python benchmarks/initialization.py [--depth 30] [--width 256]

Linear layers with an activation behind each, on a batch of 512 normal examples; one seed; the readout behind them is
left out. Then residual nets without normalization: the largest mean square of the stream over 15 blocks of linear,
ReLU, linear, by treatment of branches. And what SiLU nets come to where the analytic gain is believed to the end.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.environment import describe

SCHEMES = ("he_normal", "xavier_normal", "he", "xavier", "orthogonal", "lsuv")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "mish": nn.functional.mish,
    "hardswish": nn.functional.hardswish,
    "squared relu": lambda x: torch.relu(x).square(),
}


class Deep(nn.Module):
    """Linear layers with the activation between them; keeps the mean square of every layer's output but the last's."""

    def __init__(self, depth: int, width: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth + 1))
        self.activation = activation
        self.sizes: list[float] = []

    def forward(self, input: Tensor) -> Tensor:
        sizes = []
        for index, layer in enumerate(self.layers):
            input = layer(self.activation(input) if index else input)
            sizes.append(input.detach().square().mean().item())
        self.sizes = sizes[:-1]  # the last layer has gain 1, whatever stands before it
        return input


class Residual(nn.Module):
    """x + second(relu(first(x))), 15 times, between two linear layers; keeps the stream's largest mean square."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(width, width) for _ in range(15))
        self.second = nn.ModuleList(nn.Linear(width, width) for _ in range(15))
        self.enter, self.leave = nn.Linear(width, width), nn.Linear(width, 10)
        self.largest = 0.0

    def forward(self, input: Tensor) -> Tensor:
        stream = torch.relu(self.enter(input))
        largest = 0.0
        for first, second in zip(self.first, self.second, strict=True):
            stream = torch.relu(stream + second(torch.relu(first(stream))))
            largest = max(largest, stream.detach().square().mean().item())
        self.largest = largest
        return self.leave(stream)


def main() -> None:
    """Build, initialize, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=30)
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    print(describe())
    x = torch.randn(512, options.width, generator=torch.Generator().manual_seed(1))
    print(f"\n{options.depth} layers of width {options.width}: smallest .. largest mean square")
    print("".join(f"{name:>18}" for name in ("", *SCHEMES)))
    for name, activation in ACTIVATIONS.items():
        cells = [spread(Deep(options.depth, options.width, activation), scheme, x) for scheme in SCHEMES]
        print(f"{name:>18}" + "".join(f"{cell:>18}" for cell in cells))
    theory = sorted(analytic(options.depth, seed) for seed in range(12))
    print(f"\n{options.depth} SiLU layers of width 128, analytic gain alone, mean square behind the last, 12 seeds:")
    print(f"median {median(theory):.3g}, {theory[0]:.3g} to {theory[-1]:.3g}")
    print(f"\n15 residual blocks of width {options.width}: the stream's largest mean square")
    for scheme, residual in (("he_normal", "keep"), ("he", "keep"), ("he", "scaled"), ("he", "zero"), ("he", "fixup")):
        model = Residual(options.width)
        initialize(model, scheme, x, residual)
        model(x)
        print(f"{scheme:>18} {residual:<8} {model.largest:.2g}")


def spread(model: Deep, scheme: str, x: Tensor) -> str:
    """The smallest and the largest mean square after a scheme."""
    initialize(model, scheme, x, None)
    model(x)
    return f"{min(model.sizes):.2g} .. {max(model.sizes):.2g}"


def analytic(depth: int, seed: int) -> float:
    """The last mean square of a SiLU net whose gain is that of theory, whatever arrives."""
    generator = torch.Generator().manual_seed(seed)
    model = Deep(depth, 128, ACTIVATIONS["silu"])
    gain = hs.init.gain("silu")
    hs.init.initialize_(model, "he_normal", gain=gain, generator=generator)
    with torch.no_grad():
        model.layers[0].weight /= gain  # no activation stands before it
    model(torch.randn(512, 128, generator=generator))
    return model.sizes[-1]


def initialize(model: nn.Module, scheme: str, x: Tensor, residual: str | None) -> None:
    """Set all weights from one seed."""
    generator = torch.Generator().manual_seed(0)
    hs.init.initialize_(model, scheme, sample=x, generator=generator, residual=residual)


if __name__ == "__main__":
    main()
