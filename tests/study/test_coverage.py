"""Honest coverage: in 2,000 simulated studies the 95 % intervals hold the planted effects in 93.5 to 96.5 % of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import Config

from homeostat.inference import Judged, holm
from homeostat.seeds import numpy_generator
from homeostat.study.design import Design, fractional_factorial, full_factorial
from homeostat.study.results.advice import Recommendation, recommend
from homeostat.study.results.analysis import analyze
from homeostat.study.results.effect_table import effect_contrast
from homeostat.study.results.effects import EffectModel, fit
from homeostat.study.results.outcomes import tidy, treatment_table
from homeostat.study.results.wording import Unit

STUDIES = 2000
LEVELS = {"norm": ["none", "batch"], "dropout": [0, 0.5], "crop": [False, True], "l1": [0, 1e-4], "noise": [0, 1]}
THREE = {"norm": ["none", "batch", "layer"], "dropout": [0, 0.2, 0.5]}


def first(count: int) -> dict[str, list[object]]:
    return {name: list(LEVELS[name]) for name in list(LEVELS)[:count]}


def mean(config: Config) -> float:
    """Planted: main effects of two factors, and an interaction."""
    on, rate = config["norm"] != "none", float(config["dropout"] or 0)
    return 0.9 + 0.02 * on - 0.03 * rate + 0.04 * on * rate


def three_way(config: Config) -> float:
    """The same, and an interaction of three factors five times as large as the noise."""
    return mean(config) + 0.05 * (config["norm"] == "batch") * (config["dropout"] == 0.5) * (config["crop"] is True)


def even(config: Config) -> float:
    return 0.01


def doubled(config: Config) -> float:
    """One level of one factor has twice the spread."""
    return 0.02 if config["norm"] == "batch" else 0.01


CASES: list[tuple[str, Design, Callable[[Config], float], float]] = [  # name, design, spread, share of runs lost
    ("2^3, 2 seeds", full_factorial(first(3), 2), even, 0.0),
    ("2 x 2, 3 seeds", full_factorial(first(2), 3), even, 0.0),
    ("2^3, 5 seeds", full_factorial(first(3), 5), even, 0.0),
    ("3 x 3, 4 seeds", full_factorial(THREE, 4), even, 0.0),
    ("2^(5-1), 3 seeds", fractional_factorial(first(5), 3), even, 0.0),
    ("2^(4-1), 3 seeds, aliases", fractional_factorial(first(4), 3), even, 0.0),
    ("2^3, 5 seeds, 15 % lost", full_factorial(first(3), 5), even, 0.15),
    ("2^3, 5 seeds, doubled", full_factorial(first(3), 5), doubled, 0.0),
    ("3 x 3, 5 seeds, doubled", full_factorial(THREE, 5), doubled, 0.0),
]


def simulated(
    design: Design,
    spread: Callable[[Config], float],
    lost: float,
    mean: Callable[[Config], float] = mean,
    slopes: float = 0.0,
) -> tuple[EffectModel, np.ndarray]:
    """A model of the expected responses, and the responses of every study, shape (n, STUDIES).

    With `slopes`, every technique acts differently from seed to seed, with this standard deviation.
    """
    draws = numpy_generator(0, "coverage", design.trials)
    trials = np.array([(number, seed) for seed in design.seeds for number in design.treatments.index])
    kept = np.sort(draws.permutation(len(trials))[: round(len(trials) * (1 - lost))])
    treatment, seed = trials[kept].T
    configs = [design.config(number) for number in treatment]
    model = EffectModel(design, treatment, seed, np.array([mean(config) for config in configs]))
    blocks = draws.normal(0.0, 0.02, (len(design.seeds), STUDIES))
    noise = np.array([[spread(config)] for config in configs]) * draws.normal(size=(len(configs), STUDIES))
    y = model.y[:, None] + blocks[seed] + noise
    for factor in design.factors if slopes else ():
        on = np.array([[config[factor.name] != factor.base] for config in configs])
        y = y + on * draws.normal(0.0, slopes, (len(design.seeds), STUDIES))[seed]
    return model, y


def effects_of(model: EffectModel) -> np.ndarray:
    """Every main effect and interaction."""
    steps = {f.name: [(f.base, level) for level in f.levels[1:]] for f in model.design.factors}
    mains = [{name: step} for name in steps for step in steps[name]]
    pairs = [
        {effect[0]: one, effect[1]: two}
        for effect in model.effects
        if len(effect) == 2
        for one in steps[effect[0]]
        for two in steps[effect[1]]
    ]
    return np.array([effect_contrast(model, step) for step in [*mains, *pairs]])


def alone_of(model: EffectModel) -> np.ndarray:
    """Every level alone."""
    design = model.design
    base = model.row(design.base)
    return np.array([model.row(design.base | {f.name: level}) - base for f in design.factors for level in f.levels[1:]])


def judged_effects(model: EffectModel, y: np.ndarray) -> Judged:
    """The effects of many studies at once, as `effect_table` judges each."""
    return replace(model, y=y).judge_effects(effects_of(model))


def assert_covered(low: np.ndarray, truth: np.ndarray, high: np.ndarray) -> None:
    covered = ((low <= truth) & (truth <= high)).mean(axis=1)
    assert 0.935 <= covered.mean() <= 0.965
    # Of single effects, four standard errors of a simulation of 2,000 around that.
    assert covered.min() >= 0.93
    assert covered.max() <= 0.97


@pytest.mark.parametrize(("name", "design", "spread", "lost"), CASES, ids=[case[0] for case in CASES])
def test_intervals_cover_the_planted_effects(
    name: str, design: Design, spread: Callable[[Config], float], lost: float
) -> None:
    model, y = simulated(design, spread, lost)
    effects = judged_effects(model, y)
    assert_covered(effects.low, model.judge(effects_of(model)).estimate[:, None], effects.high)
    alone = replace(model, y=y).judge(alone_of(model))
    assert_covered(alone.low, model.judge(alone_of(model)).estimate[:, None], alone.high)


@pytest.mark.parametrize("spread", [even, doubled])
@pytest.mark.parametrize(("count", "seeds", "lost"), [(3, 3, 0.0), (3, 3, 0.1), (2, 5, 0.1), (5, 5, 0.1), (3, 10, 0.2)])
def test_intervals_cover_where_techniques_act_differently_from_seed_to_seed(
    count: int, seeds: int, lost: float, spread: Callable[[Config], float]
) -> None:
    """Twice the noise, on every technique: with 32 treatments, intervals that count runs cover two thirds."""
    model, y = simulated(full_factorial(first(count), seeds), spread, lost, slopes=0.02)
    contrasts = effects_of(model)
    judged, truth = judged_effects(model, y), model.judge(contrasts).estimate[:, None]
    assert_covered(judged.low, truth, judged.high)
    alone = replace(model, y=y).judge(alone_of(model))
    assert_covered(alone.low, model.judge(alone_of(model)).estimate[:, None], alone.high)
    runs = replace(model, y=y).pure_error(contrasts)[0]
    covered = ((runs.low <= truth) & (truth <= runs.high)).mean(axis=1)
    assert covered[:count].max() < (0.72 if count == 5 else 0.94)  # of the main effects


@pytest.mark.parametrize(("count", "seeds", "lost"), [(3, 3, 0.0), (3, 5, 0.1), (5, 2, 0.0), (5, 5, 0.0)])
def test_intervals_of_effects_cover_where_three_factors_interact(count: int, seeds: int, lost: float) -> None:
    """The spread of repeated runs judges, not what the model of two-factor interactions cannot explain."""
    model, y = simulated(full_factorial(first(count), seeds), even, lost, three_way)
    complete, _ = simulated(model.design, even, 0.0, three_way)
    truth = complete.judge(effects_of(complete)).estimate[:, None]
    effects = judged_effects(model, y)
    assert_covered(effects.low, truth, effects.high)


def test_the_simulation_asks_what_a_user_asks() -> None:
    """The intervals that were counted are those that `analyze` reports, and the truth is the planted one."""
    design = full_factorial(first(3), 5)
    model, y = simulated(design, even, 0.0)
    truth = model.judge(effects_of(model)).estimate
    assert truth[:4] == pytest.approx([0.03, -0.005, 0.0, 0.01])  # norm, dropout, crop, norm x dropout
    effects, alone = judged_effects(model, y[:, :3]), replace(model, y=y[:, :3]).judge(alone_of(model))
    for study in range(3):
        table = {"treatment": model.treatment, "seed": model.seed, "status": "done", "score": y[:, study]}
        found = analyze(pd.DataFrame(table), design, response="score")
        np.testing.assert_allclose(found.effects["low"], effects.low[:, study], atol=1e-12)
        np.testing.assert_allclose(found.alone["high"], alone.high[:, study], atol=1e-12)


def test_a_study_without_effects_rarely_claims_one() -> None:
    """Family-wise, over all effects together: at most 5 % by Holm, here within the noise of 2,000 studies."""
    design = full_factorial(first(3), 3)
    model, y = simulated(design, even, 0.0)
    null = y - model.y[:, None]
    p = judged_effects(model, null).p
    claimed = np.array([(holm(p[:, study]) < 0.05).any() for study in range(STUDIES)])
    assert claimed.mean() <= 0.065


def recommendations(design: Design, mean: Callable[[Config], float], studies: int) -> list[Recommendation]:
    """What is recommended in studies of an objective with noise of 1."""
    draws = numpy_generator(1, "recommendations", design.trials)
    rows = [{"treatment": number, "seed": seed, "status": "done"} for number, seed in design.run_order()]
    frame = tidy(pd.DataFrame(rows).assign(score=0.0), design, "score", ["score"])
    table, expected = (
        treatment_table(frame, design, ["score"]),
        frame["treatment"].map({number: mean(design.config(number)) for number in design.treatments.index}),
    )
    found = []
    for _ in range(studies):
        frame["score"] = expected + draws.normal(size=len(frame))
        found.append(recommend(fit(frame, design, "score"), frame, table, Unit("score"), goal="maximize"))
    return found


@pytest.mark.parametrize("count", [2, 3, 5])
def test_where_nothing_matters_nothing_is_recommended_in_19_of_20_studies(count: int) -> None:
    found = recommendations(full_factorial({name: [0, 1] for name in "abcde"[:count]}, 5), lambda c: 0.0, 200)
    assert sum(bool(advice.kept) for advice in found) <= 16  # 8 %: two standard errors above 5


def test_the_interval_of_the_gain_covers_it_though_three_factors_interact() -> None:
    """A model of two-factor interactions covers it in half of these studies, were it used regardless."""
    design = full_factorial({name: [0, 1] for name in "abcde"}, 5)

    def mean(c):
        return 3 * c["a"] + c["b"] + c["c"] - 3 * c["a"] * c["b"] * c["c"]

    found = recommendations(design, mean, 150)
    covered = [advice.gain.low <= mean(advice.config) <= advice.gain.high for advice in found]
    assert np.mean(covered) >= 0.87  # 0.92 for 2,000 studies: the choice was made by what the interval tells
