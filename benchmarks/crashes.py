"""A study that is killed ten times at random moments, against the same study undisturbed: same bits, how much longer?

Every round ends with `kill -9` of the driver, of a worker and then of the driver, or with Ctrl-C, at a moment drawn
from a seeded generator. Each costs the start of a process and the epochs that were running, so the study must be long
enough to speak of times. All rounds have two workers, as the undisturbed study has; that another number gives the same
bits is a test (`tests/test_crash.py`).

    python benchmarks/crashes.py [--rounds 10] [--seeds 10] [--epochs 300] [--draw 0]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from homeostat import environment
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError

STUDY = [sys.executable, "-m", "homeostat", "study", "digits", "-f", "norm=none,batch", "-f", "dropout=0,0.3"]
TIMES = ["seconds", "seconds_per_epoch", "attempt"]  # what may differ


def command(out: Path, seeds: int, epochs: int) -> list[str]:
    return [*STUDY, "--seeds", str(seeds), "--epochs", str(epochs), "--workers", "2", "--out", str(out)]


def undisturbed(words: list[str]) -> float:
    """Seconds that the study takes as a whole process."""
    start = time.monotonic()
    subprocess.run(words, check=True, capture_output=True)
    return time.monotonic() - start


def running(out: Path) -> list[int]:
    """The pids of the workers that have a trial."""
    try:
        ledger = Ledger.open(out, read_only=True)
    except StorageError:
        return []
    pids = [attempt.holder.process.pid for attempt in ledger.running() if attempt.holder.process.alive()]
    ledger.close()
    return pids


def struck(words: list[str], out: Path, wait: float, draw: random.Random) -> str:
    """Start the study and end it, so many seconds after its trials run; what was done to it."""
    before = set(running(out))  # workers of a driver that was killed, which have not noticed yet
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not set(running(out)) - before:
        time.sleep(0.05)
    time.sleep(wait)
    how = draw.choice(["driver", "worker", "interrupt"])
    if how == "worker":
        for pid in running(out)[:1]:
            os.kill(pid, signal.SIGKILL)  # its driver starts another
        time.sleep(0.5)
    if process.poll() is None:
        process.send_signal(signal.SIGINT if how == "interrupt" else signal.SIGKILL)
    process.wait()
    return how


def disturbed(out: Path, rounds: int, expected: float, seeds: int, epochs: int, draw: random.Random) -> float:
    """Seconds in all, over every round and what was left after the last."""
    start, words = time.monotonic(), command(out, seeds, epochs)
    done = [struck(words, out, draw.uniform(0.0, 1.0) * expected / rounds, draw) for _ in range(rounds)]
    subprocess.run(words, check=True, capture_output=True)
    print(f"struck {len(done)} times: {', '.join(done)}")
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 10), ("seeds", 10), ("epochs", 300), ("draw", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a job in the background ignores it, and so do its children
    with tempfile.TemporaryDirectory() as folder:
        calm, hard = Path(folder) / "calm", Path(folder) / "hard"
        expected = undisturbed(command(calm, asked.seeds, asked.epochs))
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
