"""Adding seeds one by one: how often looking after each is wrong, and how many seeds and trials it saves.

False alarms of one comparison in which there is nothing, looked at after every seed. Seeds until an effect is found,
against the number fixed beforehand; how often a plain interval holds at such an end. A study of five techniques until
each is settled. Treatments given up on the way to the best one. Run: python benchmarks/sequential.py [comparisons]
"""

from __future__ import annotations

import platform
import sys

import numpy as np
import scipy
from scipy import special

from homeostat.inference.sequential import decide, e_values, prior_variance, survivors
from homeostat.seeds import numpy_generator

SEEDS = 30
EFFECTS = np.array([2.0, 1.0, 0.0, 0.0, 0.0])  # of five techniques, in spreads of what one seed says


def alarms(studies: int) -> None:
    draws = numpy_generator(0, "alarms").normal(size=(SEEDS, studies))
    n = np.arange(1, SEEDS + 1)[:, None]
    mean = draws.cumsum(axis=0) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / np.sqrt(((draws**2).cumsum(axis=0) / n - mean**2) / (n - 1))
    p = 2 * special.stdtr(np.maximum(n - 1, 1), -np.abs(t))
    print("| nothing to find, looked at after every seed | wrong |\n|---|---:|")
    print(f"| t-test, from 3 to {SEEDS} seeds | {100 * (p[2:] < 0.05).any(axis=0).mean():.1f} % |")
    print(f"| t-test, from 2 to {SEEDS} seeds | {100 * (p[1:] < 0.05).any(axis=0).mean():.1f} % |")
    for planned in (5, 8, 15):
        reached = e_values(draws, variance=prior_variance(0.05, planned)) >= 20
        print(f"| always valid, planned for {planned} seeds | {100 * reached.any(axis=0).mean():.1f} % |")


def effects(studies: int) -> None:
    """Five effects until each is beyond the margin or known to the target, and the seeds that the target takes."""
    heads = ("wrong about any effect", "seeds, mean", "90 % need at most", "fixed for the target")
    print(f"\n| five techniques, {' and '.join(str(x) for x in EFFECTS[:2])} spreads and three of nothing | ", end="")
    print(" | ".join(heads) + " |\n|---" + "|---:" * len(heads) + "|")
    draws = numpy_generator(0, "effects")
    n = np.arange(2, 61)
    for margin, target in ((0.0, 1.0), (0.5, 1.0), (0.0, 1.5)):
        fixed = n[special.stdtrit(n - 1, 1 - 0.05 / 10) / np.sqrt(n) <= target][0]
        wrong, needed = 0, []
        for _ in range(studies):
            values = EFFECTS + draws.normal(size=(60, 5))
            for seeds in range(3, 61):
                found = decide(values[:seeds], margin=margin, target=target)
                if found.settled:
                    break
            beyond, within = found.state == "beyond", found.state == "within"
            wrong += (beyond & (np.abs(EFFECTS) <= margin)).any() or (within & (np.abs(EFFECTS) > margin)).any()
            needed.append(seeds)
        row = [f"{100 * wrong / studies:.1f} %", f"{np.mean(needed):.1f}", f"{np.quantile(needed, 0.9):.0f}"]
        print(f"| margin {margin}, target {target} | {' | '.join([*row, str(fixed)])} |", flush=True)


def power(studies: int) -> None:
    """One comparison: seeds until it is found, against the number fixed beforehand that finds it in 80 % of studies."""
    print("\n| effect in spreads of a paired difference | fixed for power 0.8 | always valid: mean | found by 30 |")
    print("|---|---:|---:|---:|")
    draws, n = numpy_generator(0, "power").normal(size=(SEEDS, studies)), np.arange(1, SEEDS + 1)
    for effect in (0.8, 1.0, 1.5, 2.0, 3.0):
        found = e_values(draws + effect, variance=prior_variance(0.05)) >= 20
        seeds = np.where(found.any(axis=0), found.argmax(axis=0) + 1, SEEDS)
        reach = [special.nctdtr(k - 1, effect * k**0.5, special.stdtrit(k - 1, 0.975)) for k in n[1:]]
        fixed = int(n[1:][np.array(reach) <= 0.2][0])
        print(f"| {effect} | {fixed} | {seeds.mean():.1f} | {100 * found.any(axis=0).mean():.1f} % |")


def plain(studies: int) -> None:
    """How often the interval of a fixed number of seeds holds where a study ended because an effect was found."""
    print("\n| effect in spreads | ended at, mean | t-interval holds then |\n|---|---:|---:|")
    draws, n = numpy_generator(0, "plain").normal(size=(SEEDS, studies)), np.arange(1, SEEDS + 1)[:, None]
    mean = draws.cumsum(axis=0) / n
    error = np.sqrt(((draws**2).cumsum(axis=0) / n - mean**2) / np.maximum(n - 1, 1))
    for effect in (0.0, 0.5, 1.0, 2.0):
        found = e_values(draws + effect, variance=prior_variance(0.05)) >= 20
        last = np.where(found.any(axis=0), found.argmax(axis=0), SEEDS - 1)
        at = (last, np.arange(studies))
        holds = np.abs(mean[at]) <= special.stdtrit(np.maximum(last, 1), 0.975) * error[at]
        print(f"| {effect} | {last.mean() + 1:.1f} | {100 * holds.mean():.1f} % |")


def elimination(studies: int) -> None:
    """Sixteen treatments whose means are spread over so many spreads; at most twenty seeds."""
    print(
        "\n| 16 treatments, best to worst | best one lost | trials of 320 | left after 20 seeds |\n|---|---:|---:|---:|"
    )
    draws = numpy_generator(0, "elimination")
    for spread in (0.0, 3.0, 10.0):
        lost, trials, left = 0, [], []
        for _ in range(studies):
            values = np.linspace(0.0, -spread, 16) + draws.normal(size=(20, 16)) + draws.normal(size=(20, 1))
            alive, count = np.ones(16, dtype=bool), 0
            for n in range(20):
                values[n, ~alive], count = np.nan, count + int(alive.sum())
                alive = survivors(values[: n + 1])
                if alive.sum() == 1:
                    break
            lost, trials, left = lost + (not alive[0]), [*trials, count], [*left, alive.sum()]
        row = f"{100 * lost / studies:.1f} % | {np.mean(trials):.0f} | {np.mean(left):.1f}"
        print(f"| {spread} spreads apart | {row} |", flush=True)


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}", end=", ")
    print(f"numpy {np.__version__}, scipy {scipy.__version__}; n = {studies} comparisons, {studies // 100} studies\n")
    alarms(studies)
    power(studies)
    plain(studies)
    effects(studies // 100)
    elimination(studies // 200)


if __name__ == "__main__":
    main()
