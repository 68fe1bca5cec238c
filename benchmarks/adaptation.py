"""Does test-time adaptation win back accuracy on corrupted images, and what does Tent add to batch norm adaptation?

A small CNN with batch norm is trained on Fashion-MNIST and tested on 2,000 corrupted test images (severity 5), 200 at a
time: as it is, with the statistics of the test batch, with those and a prior of 16, and with Tent (Adam, 1e-3), one and
ten steps per batch. Prints accuracy in percent, mean and standard error over seeds.

    python benchmarks/adaptation.py [--seeds 5] [--train 8000]
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

import homeostat as hs
from homeostat.environment import describe

CORRUPTIONS = (
    "none", "gaussian_noise", "impulse_noise", "defocus_blur", "fog", "brightness", "contrast", "jpeg_compression"
)  # fmt: skip
METHODS = ("as trained", "batch", "prior 16", "Tent", "Tent, 10 steps")


def main() -> None:
    """Train, corrupt, adapt, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", type=int, default=8000, help="training examples")
    options = parser.parse_args()
    task = hs.load_task("fashion-mnist")
    x, y = task.train.head(options.train)
    images, labels = task.test.head(2000)
    task = hs.Task(data=((x, y), task.valid, (images, labels)), name="fashion-mnist")
    rows: dict[str, list[list[float]]] = {name: [] for name in CORRUPTIONS}
    for seed in range(options.seeds):
        model = hs.fit(task, hs.Recipe(model="cnn", norm="batch", epochs=4), seed=seed).model
        for name in CORRUPTIONS:
            shifted = images if name == "none" else hs.corrupt(images, name, 5, seed=seed)
            rows[name].append(accuracies(model, task.prepare(shifted), labels))
    print(", ".join(f"{name} {value}" for name, value in describe().items()))
    print(f"{options.train} training examples, {options.seeds} seeds, accuracy in % (standard error)")
    print("| corruption | " + " | ".join(METHODS) + " |\n" + "|---" * (len(METHODS) + 1) + "|")
    for name, found in rows.items():
        print(f"| {name} | " + " | ".join(said(column) for column in zip(*found, strict=True)) + " |")


def accuracies(model: nn.Module, inputs: Tensor, labels: Tensor) -> list[float]:
    """The accuracy in percent of every method."""
    found = [accuracy(model, inputs, labels)]
    found += [accuracy(hs.adapt.BatchNormAdaptation(model, prior), inputs, labels) for prior in (0, 16)]
    for steps in (1, 10):
        with hs.Tent(model, steps=steps) as adapted:
            found.append(accuracy(adapted, inputs, labels))
    return found


@torch.no_grad()
def accuracy(predict: Callable[[Tensor], Tensor], inputs: Tensor, labels: Tensor) -> float:
    """In percent, over batches of 200."""
    classes = torch.cat([predict(part).argmax(1) for part in inputs.split(200)])
    return 100 * (classes == labels).double().mean().item()


def said(values: tuple[float, ...]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.1f} ({error:.1f})"


if __name__ == "__main__":
    main()
