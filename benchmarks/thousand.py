"""A synthetic study of a thousand trials: memory and file handles of its driver, and how fast its report opens.

The objective takes microseconds and reports twenty epochs, so what is measured is the study engine. While it runs, the
driver's resident memory and open files are read twice a second. Then headless Chromium opens the report, and for
comparison an empty page: whole processes, from their start to the picture. Needs a `chromium` on the path for that.

    python benchmarks/thousand.py [--rounds 5]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import psutil

import homeostat as hs
from homeostat import environment

FACTORS = {
    "norm": ["none", "batch", "layer", "group"],
    "dropout": [0, 0.1, 0.2, 0.3, 0.5],
    "init": ["keep", "he_normal"],
    "decay": [0, 0.01, 0.1, 0.5, 1.0],
}
SEEDS = 5


def synthetic(config: dict[str, object], seed: int, trial: object) -> dict[str, float]:
    """Techniques with planted effects, a curve of twenty epochs, noise by the seed."""
    code = [seed, *(zlib.crc32(str(level).encode()) for level in config.values())]
    noise = np.random.default_rng(code).normal(0, 0.005)
    score = 0.8 + 0.05 * (config["norm"] != "none") - 0.02 * float(config["decay"]) + noise
    for epoch in range(20):
        share = 1 - 0.8 ** (epoch + 1)
        trial.report(epoch, train_accuracy=score * share, valid_accuracy=(score - 0.02) * share)
    return {"valid_accuracy": score - 0.02, "test_accuracy": score - 0.03, "train_accuracy": score}


def watched(study: hs.Study) -> list[tuple[float, float, int]]:
    """Run the study; (seconds, MiB, open files) of this process meanwhile."""
    process, seen, ended = psutil.Process(), [], threading.Event()
    start = time.monotonic()

    def look() -> None:
        while not ended.wait(0.5):
            seen.append((time.monotonic() - start, process.memory_info().rss / 2**20, process.num_fds()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        study.run(progress=False)
    finally:
        ended.set()
        thread.join()
    return seen


def opened(browser: str, page: str, folder: Path) -> float:
    """Seconds until headless Chromium has drawn a page and left."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1400,2000"]
    start = time.monotonic()
    subprocess.run(
        [browser, *options, f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}", page],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = hs.Study(synthetic, FACTORS, SEEDS, design="full", directory=folder / "study")
        start = time.monotonic()
        seen = watched(study)
        trials, report = study.design.trials, folder / "study" / "report.html"
        print(f"{trials} trials in {time.monotonic() - start:.1f} s; report of {report.stat().st_size / 2**20:.2f} MiB")
        for what, column, unit in (("memory", 1, " MiB"), ("open files", 2, "")):
            values = [row[column] for row in seen]
            third = max(1, len(values) // 3)
            early, late = (
                statistics.median(values[third : 2 * third]),
                statistics.median(values[2 * third : -1] or values),
            )
            print(
                f"{what}: {early:.0f}{unit} in the middle third, {late:.0f}{unit} in the last, most {max(values):.0f}"
            )
        browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if browser is None:
            print("No Chromium on the path: the report was not opened.")
            return
        (folder / "empty.html").write_text("<!doctype html><title>empty</title>", encoding="utf-8")
        opened(browser, (folder / "empty.html").as_uri(), folder)  # the first start makes a profile
        for what, page in (("report", report), ("empty page", folder / "empty.html")):
            spent = [opened(browser, page.as_uri(), folder) for _ in range(asked.rounds)]
            print(
                f"{what}: {statistics.median(spent):.2f} s, from {min(spent):.2f} to {max(spent):.2f}, n = {len(spent)}"
            )


if __name__ == "__main__":
    main()
