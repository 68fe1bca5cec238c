"""How long `homeostat` takes to answer, as a whole process: its help and its recipe, beside Python and torch alone.

python benchmarks/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from homeostat import environment

RUNS = 11
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "homeostat --help": ["-m", "homeostat", "--help"],
    "python -c 'import torch'": ["-c", "import torch"],
    "python -c 'import homeostat.commands'": ["-c", "import homeostat.commands"],
    "homeostat recipe": ["-m", "homeostat", "recipe"],
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    print(", ".join(f"{name} {value}" for name, value in environment.describe().items()))
    for name, words in COMMANDS.items():
        command = [sys.executable, *words]
        seconds(command)  # the first run reads the disk
        times = [seconds(command) for _ in range(RUNS)]
        print(f"{name}: median {statistics.median(times):.3f} s, from {min(times):.3f} to {max(times):.3f}, n = {RUNS}")


if __name__ == "__main__":
    main()
