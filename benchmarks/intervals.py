"""How often the 95 % intervals of a study hold what they promise: simulated studies with planted effects.

Five tables. Effects: how often the interval that counts seeds covers, and the one that counts runs; techniques may act
differently from seed to seed, treatments may differ in spread, runs may be lost. Other methods that stand beside them.
Whole studies: how often something is recommended, whether the interval of its gain covers, whether the best treatment
is in the set of those that may be. Single seeds and divergence. A metric that takes few values, without and (in
brackets) with the interval that takes equal differences for certainty.

Run: python benchmarks/intervals.py [studies]
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import scipy

from homeostat.inference import Judged, holm, p_beyond, share_difference
from homeostat.inference.lenth import lenth
from homeostat.seeds import numpy_generator
from homeostat.study.design import (
    Design,
    definitive_screening,
    fractional_factorial,
    full_factorial,
    optimal_design,
    plackett_burman,
)
from homeostat.study.factors import Level
from homeostat.study.results.advice import recommend
from homeostat.study.results.best import best_set
from homeostat.study.results.crosschecks import crosschecks
from homeostat.study.results.effect_table import effect_contrast, effect_table
from homeostat.study.results.effects import EffectModel, fit, step_of
from homeostat.study.results.outcomes import tidy, treatment_table
from homeostat.study.results.wording import Unit

Config = dict[str, Level]
ONE, THREE = {name: [0, 1] for name in "abcdefghijk"}, {name: [0, 1, 2] for name in "abcd"}
AS_SEEN, STRONG = 0.65, 2.0  # spread of a technique's effect over seeds, in noise: as in the demonstration, and strong


def first(count: int) -> dict[str, list[int]]:
    return dict(list(ONE.items())[:count])


@dataclass(frozen=True)
class Case:
    """What is simulated: a design, and what differs from even spread, seeds that act alike, and complete studies."""

    name: str
    design: Design
    slopes: float = 0.0
    doubled: bool = False  # the first technique doubles the spread
    lost: float = 0.0
    three_way: bool = False


CASES = [
    Case("2 x 2, 3 seeds", full_factorial(first(2), 3)),
    Case("2^3, 5 seeds", full_factorial(first(3), 5)),
    Case("2^5, 5 seeds", full_factorial(first(5), 5)),
    Case("3 x 3, 4 seeds", full_factorial({"a": [0, 1, 2], "b": [0, 1, 2]}, 4)),
    Case("2^(5-1) V, 3 seeds", fractional_factorial(first(5), 3)),
    Case("2^3, 3 seeds, three interact", full_factorial(first(3), 3), three_way=True),
    Case("2^3, 5 seeds, doubled", full_factorial(first(3), 5), doubled=True),
    Case("2^3, 5 seeds, seeds act", full_factorial(first(3), 5), slopes=AS_SEEN),
    Case("2^5, 5 seeds, seeds act", full_factorial(first(5), 5), slopes=AS_SEEN),
    Case("2^5, 5 seeds, strongly", full_factorial(first(5), 5), slopes=STRONG),
    Case("2^3, 3 seeds, strongly", full_factorial(first(3), 3), slopes=STRONG),
    Case("2^3, 10 seeds, strongly", full_factorial(first(3), 10), slopes=STRONG),
    Case("2^3, 3 seeds, 10 % lost", full_factorial(first(3), 3), lost=0.1),
    Case("2^3, 3 seeds, 10 % lost, strongly", full_factorial(first(3), 3), slopes=STRONG, lost=0.1),
    Case("2^3, 5 seeds, 20 % lost, strongly, doubled", full_factorial(first(3), 5), STRONG, True, 0.2),
    Case("2 x 2, 4 seeds, 15 % lost, strongly", full_factorial(first(2), 4), slopes=STRONG, lost=0.15),
    Case("2^3, 10 seeds, 20 % lost, strongly, doubled", full_factorial(first(3), 10), STRONG, True, 0.2),
    Case("Plackett-Burman 12, 5 seeds, strongly", plackett_burman(ONE, 5), slopes=STRONG),
    Case("screening 4, 5 seeds, 10 % lost, strongly", definitive_screening(THREE, 5), slopes=STRONG, lost=0.1),
    Case("D-optimal 10, 5 seeds, 10 % lost, strongly", optimal_design(first(6), runs=10, seeds=5, interactions=["a:b"]),
         slopes=STRONG, lost=0.1),
]  # fmt: skip
WHOLE: list[tuple[str, Callable[[Config], float]]] = [  # what is planted, with noise of 1
    ("nothing", lambda c: 0.0),
    ("one effect of 1", lambda c: c["a"]),
    ("two-factor", lambda c: 0.8 * c["a"] + 0.6 * c["b"] - c["a"] * c["b"]),
    ("two-factor, large", lambda c: 2 * c["a"] + 1.5 * c["b"] - 2 * c["a"] * c["b"]),
    ("three-factor", lambda c: 0.8 * c["a"] + 0.6 * c["b"] + 0.5 * c["c"] - 1.2 * c["a"] * c["b"] * c["c"]),
    ("three-factor, large", lambda c: 3 * c["a"] + c["b"] + c["c"] - 3 * c["a"] * c["b"] * c["c"]),
]


def simulated(case: Case, studies: int) -> tuple[EffectModel, np.ndarray, np.ndarray]:
    """A model of the expected responses, the responses of all studies (n, studies), and all effects as contrasts."""
    design, draws = case.design, numpy_generator(0, "intervals", case.name)
    trials = np.array([(number, seed) for seed in design.seeds for number in design.treatments.index])
    treatment, seed = trials[np.sort(draws.permutation(len(trials))[: round(len(trials) * (1 - case.lost))])].T
    on = np.array([[float(level != 0) for level in design.config(number).values()] for number in treatment])
    mean = on @ np.r_[2.0, -1.0, np.zeros(on.shape[1] - 2)] + 5.0 * case.three_way * on[:, :3].all(axis=1)
    y = mean[:, None] + draws.normal(0, 2.0, (len(design.seeds), studies))[seed]
    for column in on.T:
        y += column[:, None] * draws.normal(0.0, case.slopes, (len(design.seeds), studies))[seed]
    y += (1 + case.doubled * on[:, :1]) * draws.normal(size=y.shape)
    model = EffectModel(design, treatment, seed, mean)
    table = effect_table(model, "maximize")
    cells = zip(table["factors"], table["levels"], strict=True)
    return model, y, np.array([effect_contrast(model, dict(zip(*cell, strict=True))) for cell in cells])


def effects(studies: int) -> None:
    heads = ("by seeds: mean", "least", "most", "by runs: mean", "least", "width")
    print("| {:43s} | {} |".format("effects of", " | ".join(heads)) + "\n|---" + "|---:" * len(heads) + "|")
    for case in CASES:
        model, y, contrasts = simulated(case, studies)
        truth = model.judge_effects(contrasts).estimate[:, None]
        many = replace(model, y=y)
        seeds, runs = many.judge_effects(contrasts), many.pure_error(contrasts)[0]
        own, other = (covered(judged, truth) for judged in (seeds, runs))
        width = np.nanmedian((seeds.high - seeds.low) / (runs.high - runs.low))
        numbers = [*(f"{100 * share:.1f}" for share in (own.mean(), own.min(), own.max(), other.mean(), other.min()))]
        print(f"| {case.name:43s} | {' | '.join([*numbers, f'{width:.1f}'])} |", flush=True)


def covered(judged: Judged, truth: np.ndarray) -> np.ndarray:
    shares: np.ndarray = ((judged.low <= truth) & (truth <= judged.high)).mean(axis=1)
    return shares


def others(studies: int) -> None:
    """The methods beside: main effects of 2^3 treatments, the interval of each method against the planted effect."""
    told = ("by seeds", "independent runs", "mixed model", "interquartile mean")
    print(f"\n| main effects of | {' | '.join(told)} |\n|---|---:|---:|---:|---:|")
    for seeds in (5, 10):
        for slopes in (0.0, AS_SEEN, STRONG):
            acts = {0.0: "", AS_SEEN: ", seeds act", STRONG: ", strongly"}[slopes]
            case = Case(f"2^3, {seeds} seeds{acts}", full_factorial(first(3), seeds), slopes)
            model, y, _ = simulated(case, studies)
            held: dict[str, list[bool]] = {}
            truth = dict(zip(effect_table(model, "maximize")["label"], [2.0, -1.0, 0.0], strict=False))
            for column in y.T:
                own = replace(model, y=column)
                table = effect_table(own, "maximize")[:3]
                beside = crosschecks(own, table, rate=False)
                rows = pd.concat([table.assign(method="by seeds"), beside])
                for row in rows.itertuples():
                    held.setdefault(str(row.method), []).append(row.low <= truth[row.label] <= row.high)
            print(f"| {case.name} | {' | '.join(f'{100 * np.mean(held[name]):.1f}' for name in told)} |", flush=True)


def whole(studies: int) -> None:
    """Whole studies with noise of 1, five seeds."""
    heads = ("recommends", "gain covers", "of any covers", "model covers", "overstated", "best in set", "set")
    print(f"\n| study, planted | {' | '.join(heads)} |\n|---" + "|---:" * len(heads) + "|")
    for count in (2, 3, 5):
        for name, mean in WHOLE[: 4 if count == 2 else 6]:
            told = recommended(full_factorial(first(count), 5), mean, studies)
            shares = [f"{100 * share:.1f}" for share in told[:4]]
            row = [*shares, f"{told[4]:.2f}", f"{100 * told[5]:.1f}", f"{told[6]:.1f} of {2**count}"]
            print(f"| {count} techniques, {name} | {' | '.join(row)} |", flush=True)


def recommended(design: Design, mean: Callable[[Config], float], studies: int) -> list[float]:
    """Shares of studies: recommends; its gain covered, simultaneously, by the model; by how much overstated; best."""
    draws = numpy_generator(0, "recommended", design.trials)
    rows = [{"treatment": number, "seed": seed, "status": "done"} for number, seed in design.run_order()]
    frame = tidy(pd.DataFrame(rows).assign(score=0.0), design, "score", ["score"])
    table, unit = treatment_table(frame, design, ["score"]), Unit("score")
    truths = np.array([mean(design.config(number)) for number in design.treatments.index], dtype=float)
    expected, best = truths[frame["treatment"]], int(np.argmax(truths))
    found = np.zeros((studies, 7))
    for study in range(studies):
        frame["score"] = expected + draws.normal(size=len(frame))
        model = fit(frame, design, "score")
        advice, inside = recommend(model, frame, table, unit, goal="maximize"), best_set(model, "maximize")["in_set"]
        truth = mean(advice.config) - mean(design.base)
        modelled = model.modelled(advice.config, design.base) if advice.kept else advice.gain
        gains = (advice.gain, advice.gain_of_any or advice.gain, modelled)
        held = [interval.low <= truth <= interval.high for interval in gains]
        found[study] = [bool(advice.kept), *held, advice.gain.estimate - truth, inside[best], inside.sum()]
    shares: list[float] = found.mean(axis=0).tolist()
    return shares


def single(studies: int) -> None:
    """Fifteen effects of sixteen runs under one seed by Lenth; divergence of twenty trials at either level."""
    print("\n| what | covered |\n|---|---:|")
    draws = numpy_generator(0, "single")
    for active in (0, 3, 6):
        truth = np.r_[np.full(active, 5.0), np.zeros(15 - active)]
        held = [np.abs(study) <= lenth(study + truth).margin for study in draws.normal(size=(studies, 15))]
        print(f"| one seed, 15 effects of which {active} are 5 standard errors, by Lenth | {100 * np.mean(held):.1f} |")
    for one, two in ((0.02, 0.02), (0.1, 0.4), (0.5, 0.9)):
        counts = draws.binomial(20, [one, two], (studies, 2))
        told = [share_difference((int(b), 20), (int(a), 20)) for a, b in counts]
        held = [interval.low <= two - one <= interval.high for interval in told]
        print(f"| difference of divergence, {one:.0%} and {two:.0%} of 20 trials | {100 * np.mean(held):.1f} |")


def coarse(studies: int) -> None:
    """Accuracies on 360 examples where there is nothing to find: how many studies claim an effect."""
    spreads = (0.5, 1.0, 3.0)  # standard deviation of runs, and of seeds, in examples
    print(f"\n| nothing planted | {' | '.join(f'runs vary by {spread:g} examples' for spread in spreads)} |")
    print("|---" + "|---:" * len(spreads) + "|")
    for count, seeds in ((1, 2), (1, 3), (3, 2), (3, 3)):
        design, draws = full_factorial(first(count), seeds), numpy_generator(0, "coarse", count, seeds)
        treatment, seed = np.array([(number, seed) for seed in design.seeds for number in design.treatments.index]).T
        model = EffectModel(design, treatment, seed, np.zeros(len(seed)))
        table = effect_table(model, "maximize")
        cells = zip(table["factors"], table["levels"], strict=True)
        contrasts = np.array([effect_contrast(model, dict(zip(*cell, strict=True))) for cell in cells])
        texts = []
        for spread in spreads:
            claims = np.zeros(2)
            for _ in range(studies):
                right = 330 + draws.normal(0, spread, seeds)[seed] + draws.normal(0, spread, len(seed))
                y = np.round(right) / 360
                for place, step in enumerate((0.0, step_of(treatment, y, model.confidence))):
                    judged = replace(model, y=y, step=step).judge_effects(contrasts)
                    claims[place] += bool((holm(p_beyond(judged, 0.0)) < 0.05).any())
            before, after = 100 * claims / studies
            texts.append(f"{after:.1f} ({before:.1f})")
        what = "one factor" if count == 1 else f"{count} factors, {len(table)} effects"
        print(f"| {what}, {seeds} seeds | {' | '.join(texts)} |", flush=True)


def main() -> None:
    studies = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}", end=", ")
    print(
        f"numpy {np.__version__}, scipy {scipy.__version__}, pandas {pd.__version__}; n = {studies} studies per row of"
    )
    print(f"effects and of single seeds, {studies // 4} of whole studies and of few values, {studies // 10} of others.")
    print(f"Standard error of one coverage of effects: {100 * (0.95 * 0.05 / studies) ** 0.5:.2f} points.\n")
    effects(studies)
    others(studies // 10)
    whole(studies // 4)
    single(studies)
    coarse(studies // 4)


if __name__ == "__main__":
    main()
