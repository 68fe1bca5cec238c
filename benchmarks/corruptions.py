"""What corrupting a batch costs: seconds for each of the nineteen corruptions, at every severity.

A batch of 256 color images of 32 pixels, uint8, and with --side another size. The best of the rounds and their median
are printed, for the severity that takes longest by its best round; the first call of frost draws its sheets. The limit
is one second for 256×3×32×32, which the best round must keep.

    python benchmarks/corruptions.py [--side 32] [--batch 256] [--rounds 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from homeostat import environment
from homeostat.parts.corrupt import CORRUPTIONS, SEVERITIES, corrupt

LIMIT = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description="Seconds per corruption.")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=environment.available_cores())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    shape = (options.batch, 3, options.side, options.side)
    print(f"{'×'.join(map(str, shape))} uint8, {options.threads} threads, {options.rounds} rounds\n")
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    print("| corruption | slowest severity | best, s | median, s | first call, s |\n|---|---|---|---|---|")
    slowest = 0.0
    for name in CORRUPTIONS:
        first = seconds(images, name, SEVERITIES[-1])
        times = {severity: [seconds(images, name, severity) for _ in range(options.rounds)] for severity in SEVERITIES}
        severity = max(times, key=lambda severity: min(times[severity]))
        best, median = min(times[severity]), statistics.median(times[severity])
        print(f"| {name} | {severity} | {best:.3f} | {median:.3f} | {first:.3f} |")
        slowest = max(slowest, best)
    print(f"\nslowest: {slowest:.3f} s")
    return int(shape == (256, 3, 32, 32) and slowest > LIMIT)


def seconds(images: torch.Tensor, name: str, severity: int) -> float:
    started = time.perf_counter()
    corrupt(images, name, severity)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
