"""What customary and spoiling augmentations do to labels, as the doctor measures it: the thresholds of rule DAT016.

For each task and augmentation: the skill of a small network trained on clean images, the share of it that a network
trained on augmented images has on clean and on augmented ones, and the share of two classes that are made into each
other, both ways. Mirrored digits are no customary augmentation; they are listed with those that spoil.

    HOMEOSTAT_DATA=... python benchmarks/doctor_augmentation.py [mnist fashion-mnist cifar10]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat import environment
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.augmentation import AugmentFacts, examine_augmentation
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.training.datasets import load_task

ROWS = 4000
Augment = Callable[[Tensor], Tensor]


def warped(x: Tensor, angle: float = 0.0, smallest: float = 1.0) -> Tensor:
    """Turned by up to `angle` degrees; a part of at least `smallest` of the area made as large as the image."""
    turn = (torch.rand(len(x)) * 2 - 1) * angle * math.pi / 180
    side = (smallest + (1 - smallest) * torch.rand(len(x))).sqrt()
    matrix = torch.zeros(len(x), 2, 3)
    matrix[:, 0, 0], matrix[:, 0, 1] = side * turn.cos(), -side * turn.sin()
    matrix[:, 1, 0], matrix[:, 1, 1] = side * turn.sin(), side * turn.cos()
    matrix[:, :, 2] = (torch.rand(len(x), 2) * 2 - 1) * (1 - side)[:, None]
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def moved(x: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels."""
    wide = F.pad(x, (most,) * 4)
    rows, columns = torch.randint(0, 2 * most + 1, (2, len(x))).tolist()
    height, width = x.shape[2:]
    places = zip(wide, rows, columns, strict=True)
    return torch.stack([image[:, i : i + height, j : j + width] for image, i, j in places])


def holed(x: Tensor, side: int, value: float = 0.0) -> Tensor:
    """Each image with a square of one value somewhere."""
    x = x.clone()
    for image in x:
        i, j = torch.randint(-side // 2, x.shape[2] - side // 2, (2,)).tolist()
        image[:, max(0, i) : i + side, max(0, j) : j + side] = value
    return x


def some(x: Tensor, changed: Tensor) -> Tensor:
    """Half of the images changed."""
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, changed, x)


def jittered(x: Tensor) -> Tensor:
    """Brightness and contrast."""
    gain, shift = (0.6 + 0.8 * torch.rand(len(x), 1, 1, 1)), 0.4 * (torch.rand(len(x), 1, 1, 1) - 0.5)
    return x * gain + shift


CUSTOMARY: dict[str, Augment] = {
    "moved by 4": lambda x: moved(x, 4),
    "mirrored": lambda x: some(x, x.flip(3)),
    "turned by 30": lambda x: warped(x, 30.0),
    "cropped to 0.35": lambda x: warped(x, 0.0, 0.35),
    "hole of 16": lambda x: holed(x, 16),
    "noise 0.15": lambda x: x + 0.15 * torch.randn_like(x),
    "jittered": jittered,
    "moved, mirrored": lambda x: some(moved(x, 4), moved(x, 4).flip(3)),
    "all of it": lambda x: holed(jittered(some(warped(x, 15.0, 0.5), warped(x, 15.0, 0.5).flip(3))), 12),
    "inverted": lambda x: some(x, 1 - x),
}
SPOILING: dict[str, Augment] = {
    "upside down": lambda x: some(x, x.flip(2, 3)),
    "always upside down": lambda x: x.flip(2, 3),
    "always inverted": lambda x: 1 - x,
    "noise 1.5": lambda x: x + 1.5 * torch.randn_like(x),
    "white square of 24": lambda x: holed(x, 24, 1.0),
    "pixels in any order": lambda x: x.flatten(2)[:, :, torch.randperm(x[0, 0].numel())].reshape(x.shape),
    "times 255": lambda x: x * 255,
    "zero": lambda x: x * 0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="What augmentations do to labels.")
    parser.add_argument("tasks", nargs="*", default=["mnist", "fashion-mnist", "cifar10"])
    tasks = parser.parse_args().tasks
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    print("\n| task | augmentation | clean | kept | left | swapped | seconds |\n|---|---|---|---|---|---|---|")
    least, most = 1.0, 0.0
    for name in tasks:
        x, y = load_task(name).train.head(ROWS)
        split = Examples(x.float() / 255 if x.dtype == torch.uint8 else x, y, len(y))
        for what, augment in {**CUSTOMARY, **SPOILING}.items():
            started = time.perf_counter()
            facts = examine_augmentation(augment, split, Score("multiclass", int(y.max()) + 1), Deadline(60))
            if facts is None:
                continue
            kept, left, swapped = shares(facts)
            spent = time.perf_counter() - started
            print(f"| {name} | {what} | {facts.clean:.2f} | {kept:.2f} | {left:.2f} | {swapped:.2f} | {spent:.1f} |")
            if what in CUSTOMARY and not (name == "mnist" and "mirrored" in what):
                least, most = min(least, kept, left), max(most, swapped)
    print(f"\ncustomary ones: least share of skill {least:.2f}, largest share swapped {most:.2f}")


def shares(facts: AugmentFacts) -> tuple[float, float, float]:
    swapped = 0.0 if facts.swapped is None else min(facts.swapped.shares)
    return facts.kept / max(facts.clean, 1e-9), facts.left / max(facts.clean, 1e-9), swapped


if __name__ == "__main__":
    main()
