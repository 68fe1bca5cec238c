"""What `hs.watch` costs: the same training with and without it, in pieces that alternate on this machine.

Each ratio is of one training with a watch of its own, its first steps included, and what it then allows itself by
default. It is cut into pieces between which as many steps are taken without; the watch is left and entered again, and
that counts as its time. Two models, each with SGD and Adam: the
built-in cnn on 28x28 images, and a 64-128-128-10 mlp on 64 features, both with batches of 64. Also: what a watch costs
on steps that it does not watch, what each watched step costs, how much more that is than the time spent inside hooks
(`AFTERMATH` in homeostat/doctor/cadence.py), and what hooks that stay on all layers would cost.

    python benchmarks/watch.py [--seconds 60] [--threads 2] [--models cnn mlp]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, Optimizer

from homeostat import environment, seeds
from homeostat.doctor.watching.cadence import AFTERMATH, Cadence
from homeostat.doctor.watching.watch import Watch
from homeostat.training.models import cnn, mlp

BATCH_SIZE, CLASSES = 64, 10
STEPS = {"cnn": 100, "mlp": 2000}
"""Of a training: about half a second."""
PIECES = 5
DENSE_STEPS = {"cnn": 10, "mlp": 50}
"""Of a block in which every step is watched."""
BARS = {"cnn": 0.05, "mlp": 0.10}


class Loop:
    """A training on one batch after another, as anybody would write it."""

    def __init__(self, name: str, kind: Callable[..., Optimizer], lr: float) -> None:
        with seeds.isolated(0, "benchmark", name):
            shape = (1, 28, 28) if name == "cnn" else (64,)
            self.model: nn.Module = cnn((1, 28, 28), CLASSES) if name == "cnn" else mlp(64, CLASSES, widths=(128, 128))
            self.batches: list[tuple[Tensor, Tensor]] = [
                (torch.randn(BATCH_SIZE, *shape), torch.randint(0, CLASSES, (BATCH_SIZE,))) for _ in range(16)
            ]
        self.name = name
        self.optimizer = kind(self.model.parameters(), lr=lr)

    def seconds(self, steps: int, context: AbstractContextManager[Any] | None = None) -> float:
        """How long so many steps take inside a context, its entry and exit included."""
        started = time.perf_counter()
        with context or nullcontext():
            for step in range(steps):
                inputs, targets = self.batches[step % len(self.batches)]
                self.optimizer.zero_grad()
                F.cross_entropy(self.model(inputs), targets).backward()
                self.optimizer.step()
        return time.perf_counter() - started

    def watch(self, **options: Any) -> Watch:
        return Watch(self.model, self.optimizer, cadence=Cadence(**options))

    def hooks(self) -> Hooks:
        return Hooks(self.model)


class Hooks:
    """A hook on every layer that only looks at a flag."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.on = model, False
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        self.handles = [module.register_forward_hook(self.look) for module in self.model.children()]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def look(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.on:
            raise RuntimeError


def overhead(loop: Loop, seconds: float, context: Callable[[], Any]) -> tuple[list[float], Any]:
    """Ratios of trainings inside and outside a context, and the last context."""
    ratios = []
    steps = STEPS[loop.name] // PIECES
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 5:
        inside = context()
        taken = {True: 0.0, False: 0.0}
        for piece in range(PIECES):
            for within in (True, False) if piece % 2 else (False, True):
                taken[within] += loop.seconds(steps, inside if within else None)
        ratios.append(taken[True] / taken[False])
    return ratios, inside


def spread(values: list[float], form: str = ".3f") -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:{form}} ({low:{form}} – {high:{form}}), n = {len(values)}"


def watched_step(loop: Loop, seconds: float) -> tuple[list[float], list[float]]:
    """Microseconds that a watched step takes longer, and the same over the time that it spends inside hooks."""
    steps = DENSE_STEPS[loop.name]
    extra, ratios = [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(extra) < 5:
        plain = loop.seconds(steps)
        watch = loop.watch(every=1)
        more = loop.seconds(steps, watch) - plain
        extra.append(1e6 * more / steps)
        ratios.append(more / (watch.seconds / AFTERMATH))
    return extra, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="for each of the four rows")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=list(STEPS), default=list(STEPS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    print(f"{torch.get_num_threads()} threads; ratios of time with over time without: median (quartiles)")
    for name in arguments.models:
        for title, kind, lr in (("SGD", SGD, 0.01), ("Adam", Adam, 0.001)):
            loop = Loop(name, kind, lr)
            loop.seconds(STEPS[name])
            plain = [1e6 * loop.seconds(STEPS[name]) / STEPS[name] for _ in range(5)]
            print(f"{name}, {title}: a step takes {statistics.median(plain):.0f} µs")
            ratios, last = overhead(loop, arguments.seconds, loop.watch)
            verdict = "met" if statistics.median(ratios) <= 1 + BARS[name] else "missed"
            watched = f"{len(last.vitals)} of {last.steps} steps watched"
            print(f"  watch: {spread(ratios)}; {watched}; at most {1 + BARS[name]:.2f}: {verdict}")
            idle = overhead(loop, arguments.seconds / 4, lambda: loop.watch(every=10**9))[0]  # noqa: B023
            print(f"  one watched step: {spread(idle)}")
            hooks = overhead(loop, arguments.seconds / 4, loop.hooks)[0]
            print(f"  hooks that stay on all layers and do nothing: {spread(hooks)}")
            extra, share = watched_step(loop, arguments.seconds / 4)
            print(f"  a watched step takes longer by {spread(extra, '.0f')} µs")
            print(f"    over the time inside hooks: {spread(share, '.2f')}")


if __name__ == "__main__":
    main()
