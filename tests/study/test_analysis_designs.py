"""Designs that are no regular fractions: effects from the model they are made for, honest intervals and aliases."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from planted import Config, planted

from homeostat.inference import LinearModel
from homeostat.study.design import (
    Design,
    definitive_screening,
    fractional_factorial,
    full_factorial,
    optimal_design,
    orthogonal_array,
    plackett_burman,
)
from homeostat.study.factors import Factor
from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.results.effect_table import effect_contrast
from homeostat.study.results.effects import EffectModel
from homeostat.study.show.report import render

TWO = {name: [0, 1] for name in "abcdefghijk"}
THREE = {name: [0, 1, 2] for name in "abcd"}
NO_CURVES = pd.DataFrame(columns=["trial", "treatment", "seed", "epoch"])


def main_effects(config: Config) -> float:
    return 0.05 * float(config["a"]) - 0.03 * float(config["b"]) + 0.02 * float(config["c"])


def with_interaction(config: Config) -> float:
    return main_effects(config) + 0.06 * float(config["a"]) * float(config["b"])


DESIGNS: list[tuple[str, Design, Callable[[Config], float]]] = [
    ("Plackett-Burman, 12", plackett_burman(TWO, 4), main_effects),
    ("definitive screening", definitive_screening(THREE, 4), main_effects),
    ("orthogonal array, 9", orthogonal_array(THREE, 4), main_effects),
    (
        "D-optimal, 10",
        optimal_design({n: [0, 1] for n in "abcdef"}, runs=10, seeds=4, interactions=["a:b"]),
        with_interaction,
    ),
]


def row_of(analysis: Analysis, label: str) -> pd.Series:
    return analysis.effects.set_index("label").loc[label]


@pytest.mark.parametrize(("name", "design", "mean"), DESIGNS, ids=[case[0] for case in DESIGNS])
def test_what_the_model_holds_is_estimated_without_bias(
    name: str, design: Design, mean: Callable[[Config], float]
) -> None:
    found = analyze(planted(design, mean, noise=0.0), design, response="valid_score")
    assert found.effects["estimable"].all()
    assert set(found.effects["factors"]) == set(design.estimated)
    steps = {"a": 0.05, "b": -0.03, "c": 0.02}
    for row in found.effects[found.effects["kind"] == "main"].itertuples():
        expected = steps.get(row.factors[0], 0.0) * (row.levels[0][1] - row.levels[0][0])
        average = 0.03 if mean is with_interaction and row.factors[0] in "ab" else 0.0
        assert row.estimate == pytest.approx(expected + average, abs=1e-12)
    if ("a", "b") in design.model:
        assert row_of(found, "a × b").estimate == pytest.approx(0.03)
    assert render(found, NO_CURVES, {})


@pytest.mark.parametrize(("name", "design", "mean"), DESIGNS, ids=[case[0] for case in DESIGNS])
@pytest.mark.parametrize("lost", [0.0, 0.1])
def test_intervals_cover_with_and_without_holes(
    name: str, design: Design, mean: Callable[[Config], float], lost: float
) -> None:
    """What a seed does to the first factor differs, as much as the noise; treatments differ in spread."""
    draws, studies = np.random.default_rng(3), 1500
    trials = np.array([(number, seed) for seed in design.seeds for number in design.treatments.index])
    treatment, seed = trials[np.sort(draws.permutation(len(trials))[: round(len(trials) * (1 - lost))])].T
    expected = np.array([mean(design.config(number)) for number in treatment])
    first = np.array([float(design.config(number)["a"]) for number in treatment])[:, None]
    spread = np.where(first > 0, 0.02, 0.01)
    y = expected[:, None] + draws.normal(0, 0.02, (len(design.seeds), studies))[seed]
    y = y + first * draws.normal(0, 0.02, (len(design.seeds), studies))[seed] + spread * draws.normal(size=y.shape)
    model = EffectModel(design, treatment, seed, y)
    steps = [
        {effect[0]: (factor.base, level)}
        for effect in model.effects
        if len(effect) == 1
        for factor in design.factors
        if factor.name == effect[0]
        for level in factor.levels[1:]
    ]
    contrasts = np.array([effect_contrast(model, step) for step in steps])
    judged = model.judge_effects(contrasts)
    truth = EffectModel(design, treatment, seed, expected).judge_effects(contrasts).estimate[:, None]
    covered = ((judged.low <= truth) & (truth <= judged.high)).mean(axis=1)
    assert 0.935 <= covered.mean() <= 0.965
    assert covered.min() >= 0.93


def test_the_interval_of_a_d_optimal_design_is_that_of_the_fits_to_each_seed() -> None:
    design = DESIGNS[3][1]
    trials = planted(design, with_interaction)
    found = analyze(trials, design, response="valid_score")
    x = np.hstack([np.ones((10, 1)), *(design.columns(effect) for effect in design.model)])
    wide = trials.pivot(index="treatment", columns="seed", values="valid_score").to_numpy()
    by_hand = 2 * np.linalg.lstsq(x, wide, rcond=None)[0][1]  # the effect of a, one number per seed
    assert found.by_seed["a: 0 → 1"].tolist() == pytest.approx(by_hand.tolist())
    assert row_of(found, "a: 0 → 1").df == pytest.approx(3)


def test_a_share_of_another_effect_is_named_and_is_the_share_that_comes_in() -> None:
    """In twelve runs of Plackett and Burman an interaction adds a third of itself to every other main effect."""
    design = plackett_burman(TWO, 3)
    found = analyze(
        planted(design, lambda c: 0.3 * float(c["a"]) * float(c["b"]), noise=0.0), design, response="valid_score"
    )
    assert abs(row_of(found, "c: 0 → 1").estimate) == pytest.approx(0.15 / 3)  # half the interaction is its effect
    assert (found.effects["aliases"] == "").all()
    assert row_of(found, "c: 0 → 1").partly.startswith(("0.33", "−0.33"))
    assert row_of(found, "c: 0 → 1").partly.endswith("and 42 more")
    assert any(text.startswith("The model of this design leaves interactions out") for text in found.warnings)


def test_a_design_that_mixes_effects_up_entirely_says_so() -> None:
    design = plackett_burman({name: [0, 1] for name in "abcdefg"}, 3)  # eight runs: a regular fraction
    found = analyze(planted(design, main_effects), design, response="valid_score")
    assert row_of(found, "a: 0 → 1").aliases.count("×") == 3
    assert (found.effects["partly"] == "").all()
    assert any("cannot tell some main effects" in text for text in found.warnings)


def test_interactions_outside_the_model_are_found_by_lack_of_fit_and_treatments_compared_directly() -> None:
    design = definitive_screening(THREE, 4)
    found = analyze(
        planted(design, lambda c: 0.1 * float(c["a"]) * float(c["b"]), noise=0.005), design, response="valid_score"
    )
    assert found.direct
    assert found.warnings[0].startswith("Factors interact in ways that the model leaves out")
    assert found.recommendation.treatment is not None


def test_nested_factors_are_judged_where_they_exist() -> None:
    factors = [Factor("dropout", ("off", "on")), Factor("rate", (0.1, 0.8), ("dropout", "on")), Factor("norm", (0, 1))]
    design = full_factorial(factors, 4)

    def mean(c):
        return 0.1 * (c["dropout"] == "on") - 0.06 * (c.get("rate") == 0.8) + 0.02 * c["norm"]

    found = analyze(planted(design, mean, noise=0.0), design, response="valid_score")
    assert row_of(found, "rate: 0.1 → 0.8").estimate == pytest.approx(-0.06)
    assert row_of(found, "dropout: off → on").estimate == pytest.approx(0.07)  # averaged over its rates
    assert not any(set(names) == {"dropout", "rate"} for names in found.effects["factors"])
    alone = found.alone.set_index("factor")
    assert alone.loc["dropout", "estimate"] == pytest.approx(0.1)
    assert np.isnan(alone.loc["rate", "estimate"])
    assert found.recommendation.config == {"dropout": "on", "rate": 0.1, "norm": 1}
    worse = analyze(planted(design, lambda c: -mean(c), noise=0.001), design, response="valid_score")
    assert worse.recommendation.config == {"dropout": "off", "norm": 0}
    assert worse.recommendation.reasons[1] == "rate is not there: it belongs to dropout=on"
    assert render(found, NO_CURVES, {})


def test_an_interaction_is_not_judged_where_a_technique_of_it_is_not() -> None:
    """lr=b with norm=group gave nothing: what lr does on average is not known, though two of its steps can be told."""
    design = full_factorial({"lr": ["a", "b"], "norm": ["none", "batch", "group"]}, 4)
    trials = planted(design, lambda c: 0.0, diverges=lambda c: c["lr"] == "b" and c["norm"] == "group")
    found = analyze(trials, design, response="valid_score")
    assert not row_of(found, "lr: a → b").estimable
    assert not found.effects["estimable"][found.effects["kind"] == "interaction"].any()
    assert (found.effects["verdict"][found.effects["kind"] == "interaction"] == "not estimable").all()


def test_one_seed_of_a_saturated_fraction_is_judged_by_lenth() -> None:
    """Fifteen effects of sixteen runs; the margin is 2.5706 times the pseudo standard error."""
    design = fractional_factorial({name: [0, 1] for name in "abcde"}, 1)
    found = analyze(planted(design, lambda c: 0.2 * c["a"], blocks=0.0), design, response="valid_score")
    effects = found.effects
    assert (effects["df"] == 5).all()
    assert np.ptp(effects["high"] - effects["low"]) < 1e-12
    assert (effects["high"] - effects["estimate"]).iloc[0] == pytest.approx(2.570582 * effects["se"].iloc[0])
    assert effects["verdict"].tolist()[0] == "helps"
    assert sum(effects["verdict"] == "helps") == 1
    assert found.warnings[0].startswith(
        "Only one seed: intervals take most effects to be nearly zero (Lenth's method)."
    )
    plain = full_factorial({name: [0, 1] for name in "abcde"}, 1)
    assert (analyze(planted(plain, lambda c: 0.2 * c["a"]), plain, response="valid_score").effects["df"] > 10).all()


def test_groups_of_a_linear_model_follow_their_definition() -> None:
    """The formulas with the n x n matrices written out, and exact where every group has the same rows."""
    draws = np.random.default_rng(0)
    x, y = np.hstack([np.ones((14, 1)), draws.normal(size=(14, 2))]), draws.normal(size=14)
    groups, contrast = np.repeat([3, 5, 9, 11], [4, 4, 3, 3]), np.array([0.0, 1.0, -0.5])
    found = LinearModel(x).judge(contrast[None], y, 0.9, groups)
    inverse = np.linalg.inv(x.T @ x)
    maker, w = np.eye(14) - x @ inverse @ x.T, x @ inverse @ contrast
    parts = np.array([np.where(groups == group, w, 0.0) for group in np.unique(groups)])
    gram = parts @ maker @ parts.T
    variance = ((parts @ maker @ y) ** 2).sum() * (w @ w) / np.trace(gram)
    assert found.se[0] == pytest.approx(variance**0.5)
    assert found.df[0] == pytest.approx(np.trace(gram) ** 2 / (gram**2).sum())
