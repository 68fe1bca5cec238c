"""Trials per minute of `homeostat study` against the plain way, as whole processes, alternating, on this machine.

The plain way: one process, a for loop over treatments and seeds, torch's DataLoader, float images in torch's default
layout, torch's default number of threads. Both train the same small cnn with the same optimizer, batch size, epochs and
seeds on the same images, evaluate validation after each epoch and all splits at the end. Imports, process starts,
analysis and the report are inside the measured time.

    python benchmarks/throughput.py [--rounds 3] [--seeds 4]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import homeostat as hs
from homeostat import environment

EPOCHS, BATCH_SIZE = 2, 64
FACTORS = {"norm": ["none", "batch"], "dropout": [0, 0.5]}


def images() -> hs.Task:
    """Ten classes of noisy 28x28 uint8 patterns, 6,000 / 1,000 / 1,000: MNIST's shape, no download."""
    return hs.Task(data=tuple(splits()), name="patterns", default_model="cnn")


def splits() -> list[tuple[Tensor, Tensor]]:
    generator = np.random.default_rng(0)
    patterns = generator.uniform(0, 255, (10, 1, 28, 28))
    found = []
    for count in (6000, 1000, 1000):
        labels = np.resize(np.arange(10), count)
        pixels = np.clip(patterns[labels] * 0.3 + generator.normal(90, 60, (count, 1, 28, 28)), 0, 255)
        found.append((torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)))
    return found


def plain(seeds: int) -> None:
    """The study as most people would write it."""
    data = splits()
    train_images = data[0][0].float() / 255
    mean, deviation = train_images.mean(), train_images.std()
    train, valid, test = (TensorDataset((x.float() / 255 - mean) / deviation, y) for x, y in data)
    for norm, dropout, seed in itertools.product(*FACTORS.values(), range(seeds)):
        torch.manual_seed(seed)
        model = plain_cnn(norm == "batch", dropout)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
        for _ in range(EPOCHS):
            model.train()
            for x, y in DataLoader(train, batch_size=BATCH_SIZE, shuffle=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()
            accuracy(model, valid)
        for split in (train, valid, test):
            accuracy(model, split)


def plain_cnn(batch_norm: bool, dropout: float) -> nn.Sequential:
    """The built-in cnn, layer for layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    model.eval()
    right, loss = 0, 0.0
    for x, y in DataLoader(data, batch_size=512):
        output = model(x)
        right += int((output.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(output, y)) * len(y)
    return right / len(data), loss / len(data)


def seconds(command: list[str], cwd: Path) -> float:
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(cwd)})
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--plain", action="store_true", help="run the plain way once, unmeasured")
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.seeds)
        return
    trials = 4 * arguments.seeds
    here = Path(__file__).resolve().parent
    ratios = []
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    for turn in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as out:
            study = [sys.executable, "-m", "homeostat", "study", "throughput:images", "--out", f"{out}/study"]
            study += [
                word for name, levels in FACTORS.items() for word in ("-f", f"{name}={','.join(map(str, levels))}")
            ]
            study += ["--seeds", str(arguments.seeds), "--epochs", str(EPOCHS)]
            ours = seconds(study, here)
            theirs = seconds([sys.executable, __file__, "--plain", "--seeds", str(arguments.seeds)], here)
        ratios.append(theirs / ours)
        print(
            f"round {turn + 1}: homeostat {60 * trials / ours:.1f} trials/min, plain {60 * trials / theirs:.1f}, "
            f"ratio {ratios[-1]:.2f}"
        )
    print(
        f"{trials} trials, n={len(ratios)}: median ratio {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main()
