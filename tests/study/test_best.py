"""Treatments that cannot be told from the best one, and gains that hold whichever was picked."""

from __future__ import annotations

import numpy as np
import pytest
from planted import planted
from scipy import stats

from homeostat.seeds import numpy_generator
from homeostat.study.design import full_factorial
from homeostat.study.results.analysis import analyze
from homeostat.study.results.best import best_set, simultaneous_gain
from homeostat.study.results.effects import EffectModel

THREE = {"norm": ["none", "batch"], "dropout": [0, 0.5], "crop": [False, True]}
DESIGN = full_factorial(THREE, 5)
TREATMENT = np.repeat(np.arange(8), 5)
SEED = np.tile(np.arange(5), 8)


def test_a_treatment_is_out_where_another_is_clearly_better() -> None:
    """Two treatments: the paired t-interval decides, at 97.5 % to each side."""
    design = full_factorial({"norm": ["none", "batch"]}, 6)
    trials = planted(design, lambda c: 0.05 * (c["norm"] == "batch"))
    found = analyze(trials, design, response="valid_score").best
    wide = trials.pivot(index="seed", columns="norm", values="valid_score")
    gain = (wide["batch"] - wide["none"]).mean()
    paired = stats.ttest_rel(wide["none"], wide["batch"])
    low, _ = paired.confidence_interval(0.95)
    assert found["in_set"].tolist() == [False, True]
    assert found["estimate"].tolist() == pytest.approx([-gain, gain])
    assert found.loc[0, ["low", "high"]].tolist() == pytest.approx([low, 0.0])
    assert found.loc[1, ["low", "high"]].tolist() == pytest.approx([0.0, -low])


def test_less_may_be_better() -> None:
    design = full_factorial(THREE, 6)
    trials = planted(design, lambda c: 0.2 * (c["norm"] == "batch"), metric="valid_loss")
    down = analyze(trials, design, response="valid_loss", goal="minimize").best
    up = analyze(trials.assign(valid_loss=-trials["valid_loss"]), design, response="valid_loss").best
    assert down["in_set"].tolist() == up["in_set"].tolist() == [True] * 4 + [False] * 4
    np.testing.assert_allclose(down["estimate"], -up["estimate"])
    np.testing.assert_allclose(down["low"], -up["high"])


@pytest.mark.parametrize("case", ["even", "seeds act on techniques", "unequal spreads"])
def test_the_best_treatment_is_in_the_set_in_95_of_100_studies(case: str) -> None:
    """All treatments equally good, the hardest case: any one of them must be in."""
    draws, inside = numpy_generator(0, "best", case), []
    on = np.array(
        [
            [level != f.base for f, level in zip(DESIGN.factors, DESIGN.config(t).values(), strict=True)]
            for t in TREATMENT
        ]
    )
    spread = np.where(TREATMENT == 0, 0.1, 1.0) if case == "unequal spreads" else np.ones(40)
    for _ in range(400):
        y = draws.normal(size=40) * spread + draws.normal(size=5)[SEED]
        if case.startswith("seeds"):
            y += (on * draws.normal(size=(5, 3))[SEED]).sum(axis=1)
        inside.append(best_set(EffectModel(DESIGN, TREATMENT, SEED, y), "maximize")["in_set"].iloc[0])
    assert np.mean(inside) >= 0.93  # 95 %, less two standard errors of 400 studies


def test_the_simultaneous_gain_holds_for_the_treatment_that_looked_best() -> None:
    """Nothing helps, and the luckiest of seven is picked: the plain interval is wrong far too often."""
    draws, plain, wide = numpy_generator(0, "luckiest"), [], []
    for _ in range(300):
        model = EffectModel(DESIGN, TREATMENT, SEED, draws.normal(size=40) + draws.normal(size=5)[SEED])
        luckiest = DESIGN.config(1 + int(np.argmax([model.y[t == TREATMENT].mean() for t in range(1, 8)])))
        plain.append(model.measured(luckiest, DESIGN.base).low <= 0)
        wide.append(simultaneous_gain(model, luckiest).low <= 0)
    assert np.mean(plain) <= 0.92
    assert np.mean(wide) >= 0.95


def test_the_recommendation_has_both_gains() -> None:
    design = full_factorial(THREE, 8)
    found = analyze(
        planted(design, lambda c: 0.1 * (c["norm"] == "batch")), design, response="valid_score"
    ).recommendation
    assert found.kept == ("norm",)
    assert found.gain_of_any is not None
    assert found.gain_of_any.estimate == found.gain.estimate
    assert found.gain_of_any.low < found.gain.low


def test_what_has_no_result_is_not_in_and_single_runs_leave_everything_open() -> None:
    design = full_factorial(THREE, 4)
    trials = planted(design, lambda c: 0.1, diverges=lambda c: c["norm"] == "none")
    found = analyze(trials, design, response="valid_score").best
    assert found["in_set"].tolist() == [False] * 4 + [True] * 4
    assert found.loc[:3, "estimate"].isna().all()
    single = full_factorial(THREE, 1)
    assert analyze(planted(single, lambda c: 0.1), single, response="valid_score").best["in_set"].all()
    nothing = analyze(planted(single, lambda c: 0.1, pending=range(8)), single, response="valid_score").best
    assert not nothing["in_set"].any()


def test_many_treatments_are_compared_with_the_best_looking_ones() -> None:
    design = full_factorial({f"f{i}": [0, 1] for i in range(6)}, 4)
    found = analyze(planted(design, lambda c: 0.5 * float(c["f0"])), design, response="valid_score").best
    assert not found["in_set"].iloc[:32].any()
    assert found["in_set"].iloc[32:].any()
