"""How often the 95 % intervals of a study hold what they promise: 2,000 simulated studies per row.

Each row of the first table plants effects and seed differences in a synthetic objective, simulates studies, and counts
how often the interval of each effect covers the planted one: the calibrated interval that homeostat reports, and for
comparison the plain t-interval from the HC3 error. The second table runs whole analyses: how often something is
recommended, whether the interval of its gain covers, and whether that of the two-factor model would have. Run:
python benchmarks/intervals.py [studies]
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import replace

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
THREE_WAY = 0.05  # of norm, dropout and crop together, five times the noise, in the rows that say so
ONE, DOUBLED = (lambda config: 1.0), (lambda config: 2.0 if config["norm"] != "none" else 1.0)
LEVELS = {"norm": ["none", "batch"], "dropout": [0, 0.5], "crop": [False, True], "l1": [0, 1e-4], "noise": [0, 1]}
THREE = {"norm": ["none", "batch", "layer"], "dropout": [0, 0.2, 0.5]}


def first(count: int) -> dict[str, list[object]]:
    return {name: list(LEVELS[name]) for name in list(LEVELS)[:count]}


WHOLE: list[tuple[str, Spread]] = [  # what is planted, with noise of 1
    ("nothing", lambda c: 0.0),
    ("one effect of 1", lambda c: c["a"]),
    ("two-factor", lambda c: 0.8 * c["a"] + 0.6 * c["b"] - c["a"] * c["b"]),
    ("two-factor, large", lambda c: 2 * c["a"] + 1.5 * c["b"] - 2 * c["a"] * c["b"]),
    ("three-factor", lambda c: 0.8 * c["a"] + 0.6 * c["b"] + 0.5 * c["c"] - 1.2 * c["a"] * c["b"] * c["c"]),
    ("three-factor, large", lambda c: 3 * c["a"] + c["b"] + c["c"] - 3 * c["a"] * c["b"] * c["c"]),
]
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
    ("2^3, 3 seeds, three-way", full_factorial(first(3), 3), ONE, 0.0),
    ("2^5, 5 seeds, three-way", full_factorial(first(5), 5), ONE, 0.0),
]


def simulate(
    design: Design, spread: Spread, lost: float, studies: int, three_way: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage per effect of the calibrated and of the plain HC3 interval."""
    draws = numpy_generator(0, "coverage", len(design.treatments), len(design.seeds))
    trials = [(number, seed) for seed in design.seeds for number in design.treatments.index]
    kept = sorted(draws.permutation(len(trials))[: round(len(trials) * (1 - lost))])
    treatment, seed = np.array(trials)[kept].T
    configs = [design.config(number) for number in treatment]
    mean = np.array([sum(PLANTED.get(name, 0.0) * (x != design.base[name]) for name, x in c.items()) for c in configs])
    mean += three_way * np.array([all(c[name] != design.base[name] for name in list(c)[:3]) for c in configs])
    sd = 0.01 * np.array([spread(config) for config in configs])
    model = EffectModel(design, treatment, seed, mean)
    steps = [{name: (f.base, level)} for f in design.factors for level in f.levels[1:] for name in [f.name]]
    pairs = [one | two for i, one in enumerate(steps) for two in steps[i + 1 :] if tuple(one | two) in model.effects]
    contrasts = np.array([effect_contrast(model, step) for step in [*steps, *pairs]])
    truth = model.judge_effects(contrasts).estimate[:, None]
    blocks = draws.normal(0.0, 0.02, (len(design.seeds), studies))[np.searchsorted(design.seeds, seed)]
    y = mean[:, None] + blocks + sd[:, None] * draws.normal(size=(len(mean), studies))
    judged = replace(model, y=y).judge_effects(contrasts)
    plain = stats.t.ppf(0.975, model.means.linear.df_resid if model.means else 0) * judged.se
    calibrated = (judged.low <= truth) & (truth <= judged.high)
    return calibrated.mean(axis=1), (np.abs(judged.estimate - truth) <= plain).mean(axis=1)


def recommended(design: Design, mean: Spread, studies: int) -> dict[str, float]:
    """Shares of whole studies: something is recommended; its gain is covered, measured and by the model; model fits."""
    draws = numpy_generator(0, "recommended", design.trials)
    rows = [{"treatment": number, "seed": seed, "status": "done"} for number, seed in design.run_order()]
    frame = tidy(pd.DataFrame(rows).assign(score=0.0), design, "score", ["score"])
    table, unit = treatment_table(frame, design, ["score"]), Unit("score")
    expected = np.array([mean(design.config(number)) for number in frame["treatment"]], dtype=float)
    found = np.zeros((studies, 5))
    for study in range(studies):
        frame["score"] = expected + draws.normal(size=len(frame))
        model = fit(frame, design, "score")
        advice = recommend(model, frame, table, unit, goal="maximize")
        truth = mean(advice.config) - mean(design.base)
        modelled = model.modelled(advice.config, design.base) if advice.kept else advice.gain
        covered = [interval.low <= truth <= interval.high for interval in (advice.gain, modelled)]
        found[study] = [bool(advice.kept), *covered, not model.direct, advice.gain.estimate - truth]
    return dict(zip(("kept", "gain", "model", "fits", "overstated"), found.mean(axis=0).tolist(), strict=True))


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}", end=", ")
    print(f"numpy {np.__version__}, scipy {scipy.__version__}, pandas {pd.__version__}; n = {studies} studies per row")
    print(f"standard error of one coverage: {100 * (0.95 * 0.05 / studies) ** 0.5:.2f} points\n")
    print(f"{'design':34s} {'effects':>7s}   {'calibrated: mean  least   most':30s}   {'plain HC3: mean':>15s}")
    for name, design, spread, lost in SCENARIOS:
        found, plain = (
            100 * coverage for coverage in simulate(design, spread, lost, studies, THREE_WAY * ("way" in name))
        )
        shown = f"{found.mean():16.1f} {found.min():6.1f} {found.max():6.1f}"
        print(f"{name:34s} {len(found):7d}   {shown:30s}   {plain.mean():15.1f}")
    print(f"\nwhole studies with noise of 1, n = {studies // 4} per row: how many recommend something; how often the")
    print("interval of its gain covers, and by how much the gain is overstated; how often the two-factor model fits")
    heads = ("recommended", "gain covered", "by the model", "overstated", "fits")
    print(f"{'design, planted':34s} {'{:>11s} {:>13s} {:>13s} {:>11s} {:>6s}'.format(*heads)}")
    for design_name, count in (("2 x 2, 5 seeds", 2), ("2^3, 5 seeds", 3), ("2^5, 5 seeds", 5)):
        for name, mean in WHOLE[: 4 if count == 2 else 6]:
            told = recommended(full_factorial({factor: [0, 1] for factor in "abcde"[:count]}, 5), mean, studies // 4)
            shares = [f"{100 * told[key]:.1f} %" for key in ("kept", "gain", "model", "fits")]
            row = f"{shares[0]:>11s} {shares[1]:>13s} {shares[2]:>13s} {told['overstated']:>11.2f} {shares[3]:>6s}"
            print(f"{design_name + ', ' + name:34s} {row}")


if __name__ == "__main__":
    main()
