"""How long `homeostat --help` takes to answer, as a whole process, beside an empty Python process.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from homeostat import environment

RUNS = 15


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    for name, words in (("homeostat --help", ["-m", "homeostat", "--help"]), ("python -c pass", ["-c", "pass"])):
        command = [sys.executable, *words]
        seconds(command)  # the first run reads the disk
        times = [seconds(command) for _ in range(RUNS)]
        print(f"{name}: median {statistics.median(times):.3f} s, from {min(times):.3f} to {max(times):.3f}, n = {RUNS}")


if __name__ == "__main__":
    main()
