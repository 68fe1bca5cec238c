"""How often the 95 % intervals of a study hold what they promise: 2,000 simulated studies per row.

Each row plants effects and seed differences in a synthetic objective, simulates studies, and counts how often the
interval of each effect covers the planted one: the calibrated interval that homeostat reports, and for comparison the
plain t-interval from the HC3 error. Run: python benchmarks/coverage.py [studies]
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd
import scipy
from scipy import stats

from homeostat.seeds import numpy_generator
from homeostat.study.advice import recommend
from homeostat.study.design import Design, fractional_factorial, full_factorial
from homeostat.study.effects import EffectModel, effect_contrast, fit
from homeostat.study.outcomes import tidy, treatment_table
from homeostat.study.wording import Unit

Spread = Callable[[dict[str, object]], float]

PLANTED = {"norm": 0.02, "dropout": -0.01, "crop": 0.0}
ONE, DOUBLED = (lambda config: 1.0), (lambda config: 2.0 if config["norm"] != "none" else 1.0)
LEVELS = {"norm": ["none", "batch"], "dropout": [0, 0.5], "crop": [False, True], "l1": [0, 1e-4], "noise": [0, 1]}
THREE = {"norm": ["none", "batch", "layer"], "dropout": [0, 0.2, 0.5]}


def first(count: int) -> dict[str, list[object]]:
    return {name: list(LEVELS[name]) for name in list(LEVELS)[:count]}


SCENARIOS: list[tuple[str, Design, Spread, float]] = [  # name, design, spread of a treatment, share of runs lost
    ("2 x 2, 2 seeds", full_factorial(first(2), 2), ONE, 0.0),
    ("2 x 2, 5 seeds", full_factorial(first(2), 5), ONE, 0.0),
    ("2^3, 3 seeds", full_factorial(first(3), 3), ONE, 0.0),
    ("2^5, 5 seeds", full_factorial(first(5), 5), ONE, 0.0),
    ("3 x 3, 4 seeds", full_factorial(THREE, 4), ONE, 0.0),
    ("2^(5-1) V, 2 seeds", fractional_factorial(first(5), 2), ONE, 0.0),
    ("2^(4-1) IV, 3 seeds", fractional_factorial(first(4), 3), ONE, 0.0),
    ("2^3, 5 seeds, 10 % lost", full_factorial(first(3), 5), ONE, 0.1),
    ("2^3, 5 seeds, doubled", full_factorial(first(3), 5), DOUBLED, 0.0),
    ("3 x 3, 5 seeds, doubled", full_factorial(THREE, 5), DOUBLED, 0.0),
    ("2^3, 5 seeds, doubled, 10 % lost", full_factorial(first(3), 5), DOUBLED, 0.1),
]


def simulate(design: Design, spread: Spread, lost: float, studies: int) -> tuple[np.ndarray, np.ndarray]:
    """Coverage per effect of the calibrated and of the plain HC3 interval."""
    draws = numpy_generator(0, "coverage", len(design.treatments), len(design.seeds))
    trials = [(number, seed) for seed in design.seeds for number in design.treatments.index]
    kept = sorted(draws.permutation(len(trials))[: round(len(trials) * (1 - lost))])
    treatment, seed = np.array(trials)[kept].T
    configs = [design.config(number) for number in treatment]
    mean = np.array([sum(PLANTED.get(name, 0.0) * (x != design.base[name]) for name, x in c.items()) for c in configs])
    sd = 0.01 * np.array([spread(config) for config in configs])
    model = EffectModel(design, treatment, seed, mean)
    steps = [{name: (f.base, level)} for f in design.factors for level in f.levels[1:] for name in [f.name]]
    pairs = [one | two for i, one in enumerate(steps) for two in steps[i + 1 :] if tuple(one | two) in model.effects]
    contrasts = np.array([effect_contrast(model, step) for step in [*steps, *pairs]])
    truth = model.judge(contrasts).estimate[:, None]
    blocks = draws.normal(0.0, 0.02, (len(design.seeds), studies))[np.searchsorted(design.seeds, seed)]
    y = mean[:, None] + blocks + sd[:, None] * draws.normal(size=(len(mean), studies))
    judged = model.linear.judge(contrasts, y)
    plain = stats.t.ppf(0.975, model.linear.df_resid) * judged.se
    calibrated = (judged.low <= truth) & (truth <= judged.high)
    return calibrated.mean(axis=1), (np.abs(judged.estimate - truth) <= plain).mean(axis=1)


def kept_without_effect(design: Design, studies: int) -> float:
    """The share of studies of an objective in which nothing matters that recommend something all the same."""
    draws = numpy_generator(0, "nothing matters", design.trials)
    rows = [{"treatment": number, "seed": seed, "status": "done"} for number, seed in design.run_order()]
    frame = tidy(pd.DataFrame(rows).assign(score=0.0), design, "score", ["score"])
    table = treatment_table(frame, design, ["score"])
    kept = 0
    for _ in range(studies):
        frame["score"] = draws.normal(size=len(frame))
        kept += bool(recommend(fit(frame, design, "score"), frame, table, Unit("score"), goal="maximize").kept)
    return kept / studies


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}", end=", ")
    print(f"numpy {np.__version__}, scipy {scipy.__version__}, pandas {pd.__version__}; n = {studies} studies per row")
    print(f"standard error of one coverage: {100 * (0.95 * 0.05 / studies) ** 0.5:.2f} points\n")
    print(f"{'design':34s} {'effects':>7s}   {'calibrated: mean  least   most':30s}   {'plain HC3: mean':>15s}")
    for name, design, spread, lost in SCENARIOS:
        found, plain = (100 * coverage for coverage in simulate(design, spread, lost, studies))
        shown = f"{found.mean():16.1f} {found.min():6.1f} {found.max():6.1f}"
        print(f"{name:34s} {len(found):7d}   {shown:30s}   {plain.mean():15.1f}")
    print("\nstudies in which nothing matters, and a factor is recommended all the same:")
    for name, design, *_ in SCENARIOS[1:7]:
        print(f"{name:34s} {100 * kept_without_effect(design, studies // 4):.1f} % of {studies // 4}")


if __name__ == "__main__":
    main()
