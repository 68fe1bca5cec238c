"""A study that is killed ten times at random moments, against the same study undisturbed: same bits, how much longer?

Every round ends with `kill -9` of the driver or of one of its workers, or with Ctrl-C, at a moment drawn from a seeded
generator; every second round has another number of workers. What is lost each time is what a process start costs and
the epochs that were running.

    python benchmarks/crashes.py [--rounds 10] [--seeds 10] [--epochs 300] [--draw 0]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

from homeostat import environment

STUDY = [sys.executable, "-m", "homeostat", "study", "digits", "-f", "norm=none,batch", "-f", "dropout=0,0.3"]
TIMES = ["seconds", "seconds_per_epoch", "attempt"]  # what may differ


def command(out: Path, workers: int, seeds: int, epochs: int) -> list[str]:
    return [*STUDY, "--seeds", str(seeds), "--epochs", str(epochs), "--workers", str(workers), "--out", str(out)]


def undisturbed(words: list[str]) -> float:
    """Seconds that the study takes as a whole process."""
    start = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    return time.monotonic() - start


def strike(process: subprocess.Popen, how: str) -> None:
    """Do one of the things that happen to studies."""
    if how == "worker":
        children = psutil.Process(process.pid).children(recursive=True)
        busy = [child for child in children if child.cpu_percent(0.05) > 20]
        if busy:
            busy[0].kill()  # its driver goes on
            return
    process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)


def disturbed(out: Path, rounds: int, expected: float, seeds: int, epochs: int, draw: random.Random) -> float:
    """Seconds in all, over every round and what was left after the last."""
    start, struck = time.monotonic(), []
    for number in range(rounds):
        workers = 1 + (number + 1) % 2
        process = subprocess.Popen(
            command(out, workers, seeds, epochs), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(draw.uniform(0.5, 1.5) * expected / rounds)
        how = draw.choice(["driver", "worker", "interrupt"])
        if process.poll() is None:
            strike(process, how)
            struck.append(how)
            if process.poll() is None and how == "worker":
                time.sleep(draw.uniform(0.2, 1.0))
                process.kill()
        process.wait()
    subprocess.run(command(out, 2, seeds, epochs), check=True, capture_output=True)
    print(f"struck {len(struck)} times: {', '.join(struck)}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 10), ("seeds", 10), ("epochs", 300), ("draw", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calm, hard = Path(folder) / "calm", Path(folder) / "hard"
        expected = undisturbed(command(calm, 2, asked.seeds, asked.epochs))
        spent = disturbed(hard, asked.rounds, expected, asked.seeds, asked.epochs, random.Random(asked.draw))
        first, second = (pd.read_csv(out / "trials.csv") for out in (calm, hard))
        pd.testing.assert_frame_equal(second.drop(columns=TIMES), first.drop(columns=TIMES), check_exact=True)
        print(
            f"{len(first)} trials, bit for bit the same; attempts {first['attempt'].sum()} → {second['attempt'].sum()}"
        )
        print(f"undisturbed {expected:.1f} s, disturbed {spent:.1f} s: {spent / expected:.2f} times")
    print(", ".join(f"{name}: {value}" for name, value in environment.describe().items()))


if __name__ == "__main__":
    main()
