"""What augmenting a batch costs, part by part: milliseconds for 256 x 3 x 32 x 32 uint8 images on a CPU.

Beside each part stands kornia's module for the same, where there is one, on the same images as floats; it draws
per example too, but for its RandAugment and TrivialAugment, which draw one policy per batch. The last columns are the
part with uint8 images looked up in a table (as in a fit) and with floats. The contenders of a row alternate, so that a
busy moment hits them all.

    python benchmarks/augmentation.py [--threads 2] [--batch 256] [--side 32] [--only blur]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import kornia.augmentation as K
import torch
from kornia.augmentation import auto

from homeostat import environment
from homeostat.parts import mixing
from homeostat.parts.augment import AUGMENTATIONS, make_augment

SECONDS_PER_ROW = 3.0
ROUNDS = 5  # at least

EVERYTHING = "+".join(AUGMENTATIONS)


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    shape = (options.batch, 3, options.side, options.side)
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    print(f"kornia {version('kornia')}, {options.threads} threads, {'x'.join(map(str, shape))}, median [quartiles]\n")
    print("| part | uint8, ms | kornia, ms | ratio | table, ms | float, ms | rounds |\n|---|---|---|---|---|---|---|")
    for name in (*AUGMENTATIONS, EVERYTHING, "mixup", "cutmix"):
        if options.only in name:
            print_row(name, shape)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--only", default="", help="a part of a part's name")
    return parser.parse_args()


def print_row(name: str, shape: tuple[int, ...]) -> None:
    times = measured(contenders(name, shape))
    ours, theirs = times["uint8"], times.get("kornia")
    ratio = shown([b / a for a, b in zip(ours, theirs, strict=True)], "{:.1f}") if theirs else "–"
    cells = ["everything" if name == EVERYTHING else name, shown(ours), shown(theirs), ratio]
    print("| " + " | ".join([*cells, shown(times.get("table")), shown(times.get("float")), str(len(ours))]) + " |")


def contenders(name: str, shape: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    """What to measure, by column."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    floats = raw / 255
    theirs = kornia_module(name, shape[-1])
    found: dict[str, Callable[[], object]] = {}
    if name in ("mixup", "cutmix"):
        mix, target = getattr(mixing, name), torch.randint(0, 10, shape[:1], generator=generator)
        found["uint8"] = lambda: mix(raw, target, num_classes=10, generator=generator)
        found["float"] = lambda: mix(floats, target, num_classes=10, generator=generator)
        if theirs is not None:
            found["kornia"] = lambda: theirs(floats, target)
        return found
    augment, table = make_augment(name), ((torch.arange(256.0) - 120) / 64).repeat(3, 1)
    found["uint8"] = lambda: augment(raw, generator)
    found["table"] = lambda: augment(raw, generator, table)
    found["float"] = lambda: augment(floats, generator)
    if theirs is not None:
        found["kornia"] = lambda: theirs(floats)
    return found


def kornia_module(name: str, side: int) -> Any:
    """kornia's module with the same settings, or None where it has none."""
    jitter = (0.4, 0.4, 0.4, 0.1)
    modules: dict[str, Callable[[], Any]] = {
        "resized_crop": lambda: K.RandomResizedCrop((side, side), scale=(0.08, 1.0)),
        "rotate": lambda: K.RandomRotation(15.0, p=1.0),
        "rotate90": lambda: K.RandomRotation90((0, 3), p=1.0),
        "randaugment": lambda: auto.RandAugment(n=2, m=9),
        "trivialaugment": auto.TrivialAugment,
        "color_jitter": lambda: K.ColorJitter(*jitter, p=1.0),
        "color_drop": lambda: K.RandomGrayscale(p=0.2),
        "blur": lambda: K.RandomGaussianBlur((13, 13), (0.1, 2.0), p=1.0),
        "crop": lambda: K.RandomCrop((side, side), padding=side // 8, padding_mode="reflect"),
        "flip": K.RandomHorizontalFlip,
        "cutout": lambda: K.RandomErasing(scale=(1 / 16, 1 / 16), ratio=(1.0, 1.0), p=1.0),
        "noise": lambda: K.RandomGaussianNoise(std=0.1, p=1.0),
        "mixup": lambda: K.RandomMixUpV2(p=1.0, data_keys=["input", "class"]),
        "cutmix": lambda: K.RandomCutMixV2(p=1.0, data_keys=["input", "class"]),
    }
    return modules[name]() if name in modules else None


@torch.no_grad()
def measured(calls: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Milliseconds of each call in turn, as often as there is time for."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + SECONDS_PER_ROW
    while time.perf_counter() < end or len(times["uint8"]) < ROUNDS:
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append(1000 * (time.perf_counter() - started))
    return times


def shown(values: list[float] | None, form: str = "{:.2f}") -> str:
    """Median and quartiles."""
    if values is None:
        return "–"
    low, median, high = statistics.quantiles(values, n=4)
    return f"{form} [{form}, {form}]".format(median, low, high)


if __name__ == "__main__":
    main()
