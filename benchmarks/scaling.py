"""Two workers against one: the same studies as whole processes, in turns, and what two processes gain here at most.

Studies: the demo (digits, an mlp, 160 trials) and the small cnn on 28x28 images of `throughput.py`; and what two
processes at once do against one for pieces of such work: a matrix product that fits a core's cache, a convolution,
copies of large arrays, which share the machine's memory; fits on digits, bare, or as trials of a ledger for each
process, or of one ledger. No study can scale better than what its trials are made of.

    python benchmarks/scaling.py [--rounds 3] [--seeds 5] [--only pieces | fits | studies]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from homeostat import environment
from homeostat.study.running.runner import Rules, work
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger
from homeostat.training.datasets import load_task
from homeostat.training.objective import Objective
from plain_tasks import FACTORS, TASKS

HERE = Path(__file__).resolve().parent
CONFIGS: list[dict[str, Any]] = [
    dict(zip(FACTORS, levels, strict=True)) for levels in itertools.product(*FACTORS.values())
]
FITTING = 6.0  # seconds


def piece(kind: str) -> Callable[[], Any]:
    """A piece of work."""
    if kind == "matrix product":
        a = torch.randn(192, 192)
        return lambda: a @ a
    if kind == "convolution":
        x = torch.randn(64, 16, 14, 14).to(memory_format=torch.channels_last)
        w = torch.randn(32, 16, 3, 3).to(memory_format=torch.channels_last)
        return lambda: torch.conv2d(x, w, padding=1)
    large = torch.randn(8_000_000)
    target = torch.empty_like(large)
    return lambda: target.copy_(large)


def repeat(kind: str, found: SimpleQueue[float]) -> None:
    """How often per second the piece is done, on one thread."""
    torch.set_num_threads(1)
    work = piece(kind)
    for _ in range(10):
        work()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 2:
        work()
        count += 1
    found.put(count / 2)


def gain(kind: str) -> float:
    """What two processes do at once, over what one does."""
    context = multiprocessing.get_context("spawn")
    rates = []
    for count in (1, 2):
        found = context.SimpleQueue()
        processes = [context.Process(target=repeat, args=(kind, found)) for _ in range(count)]
        for process in processes:
            process.start()
        rates.append(sum(found.get() for _ in processes))
        for process in processes:
            process.join()
    return rates[1] / rates[0]


def fits(way: str, folder: str, ready: SimpleQueue[None], found: SimpleQueue[float]) -> None:
    """How many fits per second: bare, or as trials of the ledger in this folder."""
    torch.set_num_threads(1)
    objective = Objective(load_task("digits"))
    for config in CONFIGS:  # whatever is compiled or imported late
        objective(config | {"epochs": 1}, 0)
    ledger = Ledger.open(Path(folder)) if way != "bare" else None
    ready.put(None)
    time.sleep(1)  # until the other is ready too
    start, count = time.perf_counter(), 0
    bare = (objective(CONFIGS[number % len(CONFIGS)], number) for number in itertools.count())
    for _ in bare if ledger is None else work(ledger, objective, Holder.current(), Rules()):
        count += 1
        if time.perf_counter() - start > FITTING:
            break
    found.put(count / (time.perf_counter() - start))


def fitted(way: str, processes: int) -> float:
    """How many fits per second so many processes do."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as out:
        folders = [f"{out}/{0 if way == 'one ledger' else place}" for place in range(processes)]
        rows = [(place, seed, config) for seed in range(50) for place, config in enumerate(CONFIGS)]
        for folder in sorted(set(folders)):
            Ledger.create_or_open(Path(folder), {}, rows).close()
        ready, found = context.SimpleQueue(), context.SimpleQueue()
        started = [context.Process(target=fits, args=(way, folder, ready, found)) for folder in folders]
        for process in started:
            process.start()
        for _ in started:
            ready.get()
        rate = sum(found.get() for _ in started)
        for process in started:
            process.join()
    return rate


def seconds(study: list[str], workers: int) -> tuple[float, float]:
    """How long a whole study takes, and the part of it in which trials run."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-m", "homeostat", "study", *study, "--workers", str(workers), "--out", f"{out}/study"]
        inherited = os.environ.get("PYTHONPATH", "")
        path = f"{HERE}{os.pathsep}{inherited}" if inherited else str(HERE)
        start = time.perf_counter()
        subprocess.run(words, cwd=HERE, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": path})
        whole = time.perf_counter() - start
        ledger = Ledger.open(f"{out}/study", read_only=True)
        trials = ledger.spent
        ledger.close()
    return whole, trials


def pieces(rounds: int, _: int) -> None:
    for kind in ("matrix product", "convolution", "copy"):
        values = [gain(kind) for _ in range(rounds)]
        print(
            f"two processes, {kind}: {statistics.median(values):.2f} times one, {min(values):.2f} to {max(values):.2f}"
        )


def fits_compared(rounds: int, _: int) -> None:
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for way, processes in itertools.product(("bare", "ledgers of their own", "one ledger"), (1, 2)):
            rates.setdefault((way, processes), []).append(fitted(way, processes))
    for way in dict.fromkeys(way for way, _ in rates):
        one, two = (statistics.fmean(rates[way, processes]) for processes in (1, 2))
        print(f"fits, {way}: {one:.2f} and {two:.2f} per second, {two / one:.2f} times as many", flush=True)


def studies(rounds: int, seeds: int) -> None:
    factors = [word for name, levels in FACTORS.items() for word in ("-f", f"{name}={','.join(map(str, levels))}")]
    known = {
        "digits": ["digits", "--seeds", str(seeds)],
        "cnn": ["throughput:images", *factors, "--seeds", str(seeds), "--epochs", str(TASKS["cnn"].epochs)],
    }
    for name, words in known.items():
        pairs = [(seconds(words, 1), seconds(words, 2)) for _ in range(rounds)]
        for place, part in enumerate(("whole", "trials")):
            ratios = [one[place] / two[place] for one, two in pairs]
            said = ", ".join(f"{one[place]:.1f} s and {two[place]:.1f} s" for one, two in pairs)
            print(
                f"{name}, {part}: one worker and two {said}; {statistics.median(ratios):.2f} times as fast", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=["pieces", "fits", "studies"])
    asked = parser.parse_args()
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    for part, measure in (("pieces", pieces), ("fits", fits_compared), ("studies", studies)):
        if asked.only in (None, part):
            measure(asked.rounds, asked.seeds)


if __name__ == "__main__":
    main()
