"""Eight techniques on digits: does a fraction with seeds added one by one decide as the full factorial with ten seeds?

The full factorial trains all 256 combinations under ten seeds. The fractional study has 16 of them (2^(8-4), resolution
IV) and at most an eighth of those trials; it stops when every main effect is beyond the margin or within it. It is
repeated with seeds of its own each time. A technique is accepted where its main effect on validation accuracy is
beyond the margin by the study's own verdict ("helps"), and rejected otherwise. The margin was fixed before anything
was run: half a point.

    python benchmarks/fewer_trials.py [--repeats 5] [--seeds 10] [--epochs 15] [--out studies/fewer]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import homeostat as hs
from homeostat import environment
from homeostat.study.design import fractional_factorial, full_factorial
from homeostat.study.study import StudyResult
from homeostat.training.objective import Objective

FACTORS = {
    "init": ["keep", "he_normal"],
    "norm": ["none", "batch"],
    "dropout": [0, 0.2],
    "weight_decay": [0, 0.5],
    "label_smoothing": [0, 0.1],
    "clip_norm": ["none", 1.0],
    "mix": ["none", "mixup"],
    "schedule": ["constant", "cosine"],
}
MARGIN = 0.005
SHARE = 8  # the fractional study has at most one trial where the full factorial has so many


def verdicts(result: StudyResult) -> dict[str, tuple[str, str]]:
    """Of each technique: its main effect in words, and the verdict."""
    table = result.analysis.effects
    found = {}
    for row in table[table["kind"] == "main"].itertuples():
        said = f"{100 * row.estimate:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]"
        found[row.factors[0]] = (said, row.verdict)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repeats", 5), ("seeds", 10), ("epochs", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path, default=Path("studies/fewer"))
    asked = parser.parse_args()
    print(" · ".join(f"{name} {value}" for name, value in environment.describe().items()))
    objective = Objective(hs.load_task("digits"), hs.Recipe(epochs=asked.epochs))
    whole = full_factorial(FACTORS, asked.seeds)
    most = whole.trials // SHARE // 16
    started = time.monotonic()
    full = hs.Study(objective, whole, margin=MARGIN, directory=asked.out / "full").run()
    print(f"full factorial: {whole.trials} trials, {time.monotonic() - started:.0f} s")
    reference = verdicts(full)
    for name, (said, verdict) in reference.items():
        print(f"  {name:>16}  {said:>24}  {verdict}")
    agree = total = 0
    for repeat in range(asked.repeats):
        seeds = range(1000 * (repeat + 1), 1000 * (repeat + 1) + most)
        design = fractional_factorial(FACTORS, seeds, resolution=4)
        started = time.monotonic()
        part = hs.Study(objective, design, until=0.0, margin=MARGIN, directory=asked.out / f"part{repeat}").run()
        ran = design.trials - part.saved
        print(f"fraction {repeat + 1}: {ran} trials (1/{whole.trials / ran:.1f}), {time.monotonic() - started:.0f} s")
        for name, (said, verdict) in verdicts(part).items():
            same = (verdict == "helps") == (reference[name][1] == "helps")
            agree, total = agree + same, total + 1
            print(f"  {name:>16}  {said:>24}  {verdict}{'' if same else '  (decides otherwise)'}")
    print(f"{agree} of {total} decisions as in the full factorial")


if __name__ == "__main__":
    main()
