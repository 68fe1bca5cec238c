"""Trials per minute of `homeostat study` against other ways to run the same trials, as whole processes, alternating.

All train the same small network (`plain_tasks`: a cnn on images, or with --task mlp an mlp on features) with the same
optimizer, batch size, epochs and seeds on the same data, and evaluate validation after each epoch. Imports, process
starts, analysis and the report are inside the measured time.

- plain: one process, a for loop over treatments and seeds, torch's DataLoader, float images in torch's default layout,
  torch's default number of threads.
- one: `homeostat study` with one worker instead of one per core.
- optuna: Optuna's grid sampler around a Lightning Trainer without logger and progress bar, one trial at a time with all
  cores, as both libraries' examples do (`rival_optuna.py`); "optuna-threads" runs as many at once as there are cores.
- ray: Ray Tune's grid search over the plain loop, one core and thread per trial (`rival_ray.py`).

Optuna and Ray run in environments of their own, in the folder --environments, made there with pip if it is missing.

    python benchmarks/throughput.py [plain one optuna optuna-threads ray] [--task cnn | mlp] [--rounds 3] [--seeds 10]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import homeostat as hs
from homeostat import environment
from plain_tasks import FACTORS, TASKS, features, standardized, train, trials
from plain_tasks import images as splits

HERE = Path(__file__).resolve().parent
RIVALS = {
    "optuna": ("optuna", "rival_optuna.py", []),
    "optuna-threads": ("optuna", "rival_optuna.py", ["--jobs", str(environment.available_cores())]),
    "ray": ("ray", "rival_ray.py", []),
}
OURS = {"cnn": "images", "mlp": "vectors"}
PACKAGES = {"optuna": ["lightning==2.6.5", "optuna==4.9.0"], "ray": ["ray[tune]==2.60.0"]}


def images() -> hs.Task:
    """What `homeostat study` trains the cnn on."""
    return hs.Task(data=tuple(splits()), name="patterns", default_model="cnn")


def vectors() -> hs.Task:
    """What `homeostat study` trains the mlp on."""
    return hs.Task(data=tuple(features()), name="vectors")


def plain(task: str, seeds: int) -> None:
    """The study as most people would write it."""
    data = standardized(task)
    for trial in trials(seeds):
        list(train(task, data, *trial))


def environment_of(rival: str, folder: Path) -> Path:
    """The interpreter of a rival's own environment, with the same torch as this one."""
    home = (folder / rival).resolve()
    if not (home / "done").exists():
        print(f"making {home} ...", flush=True)
        venv.create(home, with_pip=True, clear=True)
        constraints = HERE.parent / "constraints.txt"
        packages = ["torch", "numpy", *PACKAGES[rival]]
        pip = [str(home / "bin/python"), "-m", "pip", "install", "--quiet", "-c", str(constraints), *packages]
        subprocess.run(pip, check=True)
        (home / "done").touch()
    return home / "bin/python"


def command(way: str, task: str, seeds: int, folder: Path, environments: Path) -> list[str]:
    """What runs the trials in this way."""
    words = ["--task", task, "--seeds", str(seeds)]
    if way == "plain":
        return [sys.executable, __file__, "--run-plain", *words]
    if way in RIVALS:
        rival, script, options = RIVALS[way]
        return [str(environment_of(rival, environments)), str(HERE / script), *words, *options]
    study = [sys.executable, "-m", "homeostat", "study", f"throughput:{OURS[task]}", "--out", str(folder / "study")]
    study += [word for name, levels in FACTORS.items() for word in ("-f", f"{name}={','.join(map(str, levels))}")]
    workers = [] if way == "homeostat" else ["--workers", "1"]
    return [*study, "--seeds", str(seeds), "--epochs", str(TASKS[task].epochs), *workers]


def seconds(way: str, task: str, seeds: int, environments: Path) -> float:
    """How long a whole process takes."""
    with tempfile.TemporaryDirectory() as folder:
        words = command(way, task, seeds, Path(folder), environments)
        started = time.perf_counter()
        done = subprocess.run(
            words, cwd=HERE, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": _path(way)}
        )
        spent = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{way}: {done.stderr[-2000:]}")
    return spent


def _path(way: str) -> str:
    """Where modules are looked for: a rival sees this folder alone."""
    inherited = os.environ.get("PYTHONPATH", "")
    return str(HERE) if way in RIVALS or not inherited else f"{HERE}{os.pathsep}{inherited}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "ways", nargs="*", default=["plain", "one"], metavar="WAY", help=f"plain, one, {', '.join(RIVALS)}"
    )
    parser.add_argument("--task", choices=TASKS, default="cnn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--environments", type=Path, default=Path(".rivals"))
    parser.add_argument("--run-plain", action="store_true", help="run the plain way once, unmeasured")
    asked = parser.parse_args()
    if asked.run_plain:
        plain(asked.task, asked.seeds)
        return
    known = {"plain", "one", *RIVALS}
    if set(asked.ways) - known:
        parser.error(f"unknown ways: {sorted(set(asked.ways) - known)}")
    for way in asked.ways:  # environments are made before anything is measured
        command(way, asked.task, 1, Path(), asked.environments)
    count = len(trials(asked.seeds))
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    ratios: dict[str, list[float]] = {way: [] for way in asked.ways}
    for turn in range(asked.rounds):
        ours = seconds("homeostat", asked.task, asked.seeds, asked.environments)
        print(f"round {turn + 1}: homeostat {60 * count / ours:.1f} trials per minute", flush=True)
        for way in asked.ways:
            spent = seconds(way, asked.task, asked.seeds, asked.environments)
            ratios[way].append(spent / ours)
            print(f"  {way} {60 * count / spent:.1f}, ratio {spent / ours:.2f}", flush=True)
    print(f"{count} trials; how many times as fast homeostat is:")
    for way, found in ratios.items():
        print(f"  {way}: {statistics.median(found):.2f}, from {min(found):.2f} to {max(found):.2f}, n = {len(found)}")


if __name__ == "__main__":
    main()
