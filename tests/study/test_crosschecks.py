"""Other methods beside the effects, runs that lie far off, and divergence as an outcome."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import simulated_studies as simulated
import statsmodels.formula.api as smf
from planted import planted

from homeostat.inference import share_difference, share_interval
from homeostat.inference.robust import interquartile_mean
from homeostat.page.svg import Picture
from homeostat.study.design import full_factorial
from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.show import diagnostics

TWO = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
THREE = {**TWO, "crop": [False, True]}


def checked(analysis: Analysis, method: str) -> pd.DataFrame:
    table = analysis.crosschecks
    return table[table["method"] == method].set_index("label")


def study(**settings: object) -> Analysis:
    design = full_factorial(THREE, 5)
    return analyze(planted(design, lambda c: 0.03 * (c["norm"] == "batch"), **settings), design, response="valid_score")


def test_the_interval_of_runs_stands_beside_that_of_seeds() -> None:
    found = study()
    own, effects = checked(found, "independent runs"), found.effects.set_index("label")
    assert own["estimate"].tolist() == effects["estimate"].tolist()
    assert own["low"].tolist() == effects["pure_low"].tolist()


def test_the_mixed_model_agrees_where_a_technique_acts_differently_from_seed_to_seed() -> None:
    """In a complete study its error of such an effect is that of the seeds; its interval takes it for known."""
    design = full_factorial(THREE, 6)
    trials = planted(design, lambda c: 0.03 * (c["norm"] == "batch"), blocks=0.01)
    trials["valid_score"] += 0.02 * np.cos(3.0 * trials["seed"]) * (trials["norm"] == "batch")
    found = analyze(trials, design, response="valid_score")
    own = checked(found, "mixed model")
    assert own["estimate"].tolist() == pytest.approx(found.effects["estimate"].tolist())
    row, error = own.loc["norm: none → batch"], found.effects["se"].iloc[0]
    assert row["high"] - row["estimate"] == pytest.approx(1.959964 * error, rel=0.01)


def test_rates_near_one_are_also_told_in_log_odds() -> None:
    """Every technique halves the errors: in log odds they add up, in points they seem to weaken each other."""
    design = full_factorial(TWO, 6)
    trials = planted(design, lambda c: 0.0, noise=0.05, blocks=0.05, metric="valid_accuracy")
    halvings = (trials["norm"] == "batch").astype(float) + (trials["dropout"] == 0.5)
    odds = np.exp(3.0 + halvings * np.log(2.0) + trials["valid_accuracy"])
    trials["valid_accuracy"] = odds / (1 + odds)
    found = analyze(trials, design, response="valid_accuracy")
    own = checked(found, "log odds")
    assert own.loc["norm: none → batch", "low"] < np.log(2) < own.loc["norm: none → batch", "high"]
    assert own.loc["norm × dropout", "low"] < 0 < own.loc["norm × dropout", "high"]
    assert found.effects.set_index("label").loc["norm × dropout", "verdict"] == "weakens"
    assert "log odds" not in set(study().crosschecks["method"])
    perfect = trials.assign(valid_accuracy=trials["valid_accuracy"].where(trials["seed"] > 0, 1.0))
    assert np.isfinite(checked(analyze(perfect, design, response="valid_accuracy"), "log odds")["estimate"]).all()


def test_an_odd_run_moves_the_mean_and_not_the_interquartile_mean_and_is_named() -> None:
    quiet, design = study(), full_factorial(THREE, 5)
    trials = planted(design, lambda c: 0.03 * (c["norm"] == "batch"))
    place = trials.index[(trials["treatment"] == 6) & (trials["seed"] == 3)][0]
    trials.loc[place, "valid_score"] += 0.5
    found = analyze(trials, design, response="valid_score")
    label = "norm: none → batch"
    before, after = (checked(one, "interquartile mean").loc[label, "estimate"] for one in (quiet, found))
    assert abs(after - before) < 0.01
    assert found.effects.set_index("label").loc[label, "estimate"] > 0.05
    told = [text for text in found.warnings if "lies far from" in text]
    assert len(told) == 1
    assert told[0].startswith("treatment 6 under seed 3 (")
    assert not any("far from" in text for text in quiet.warnings)


def test_the_interquartile_mean_is_taken_of_all_runs_of_a_level() -> None:
    design = full_factorial({"norm": ["none", "batch"]}, 8)
    trials = planted(design, lambda c: 0.1 * (c["norm"] == "batch"), blocks=0.0)
    found = analyze(trials, design, response="valid_score")
    free = trials["valid_score"] - trials.groupby("seed")["valid_score"].transform("mean")
    sides = [interquartile_mean(free[trials["norm"] == level].to_numpy()) for level in ("batch", "none")]
    assert checked(found, "interquartile mean")["estimate"].iloc[0] == pytest.approx(sides[0] - sides[1])


def test_other_methods_are_a_pure_function_and_need_repetition() -> None:
    pd.testing.assert_frame_equal(study().crosschecks, study().crosschecks)
    assert simulated.unusual()["one seed"][0].crosschecks.empty
    assert simulated.unusual()["all diverged"][0].crosschecks.empty


@pytest.mark.parametrize("name", sorted(simulated.unusual()))
def test_studies_at_the_edges_have_their_diagnostics(name: str) -> None:
    found = simulated.unusual()[name][0]
    figure = diagnostics.residual_figure(found)
    assert figure is None or isinstance(figure, Picture)
    rows = diagnostics.crosscheck_rows(found)
    assert all(len(cells) == len(diagnostics.crosscheck_heads(found)) for _, cells in rows)
    assert len(diagnostics.best_names(found)) == found.best["in_set"].sum()
    assert len(diagnostics.divergence_rows(found)) == len(found.divergence)


def test_residuals_are_what_the_model_leaves() -> None:
    found = study()
    total = found.residuals["fitted"] + found.residuals["residual"]
    assert total.tolist() == pytest.approx(found.frame["valid_score"].tolist())
    assert found.residuals["residual"].sum() == pytest.approx(0.0, abs=1e-12)
    trials, design = planted(full_factorial(THREE, 5), lambda c: 0.0), full_factorial(THREE, 5)
    fitted = smf.ols("valid_score ~ C(treatment) + C(seed)", trials.sort_values(["treatment", "seed"])).fit()
    expected = fitted.get_influence().resid_studentized_external
    got = analyze(trials, design, response="valid_score").residuals["studentized"]
    np.testing.assert_allclose(got, expected)


def test_divergence_is_an_outcome_with_intervals() -> None:
    design = full_factorial(TWO, 5)
    trials = planted(design, lambda c: 0.0, diverges=lambda c: c["norm"] == "batch" and c["dropout"] == 0)
    found = analyze(trials, design, response="valid_score").divergence.set_index(["factor", "level"])
    row = found.loc[("norm", "batch")]
    share, risk = share_interval(5, 10), share_difference((5, 10), (0, 10))
    assert row[["share", "share_low", "share_high"]].tolist() == pytest.approx(share[:3])
    assert row[["difference", "difference_low", "difference_high"]].tolist() == pytest.approx(risk[:3])
    assert found.loc[("norm", "none"), ["difference", "difference_low"]].tolist() == [0.0, 0.0]
    nothing = analyze(planted(design, lambda c: 0.0, pending=range(20)), design, response="valid_score")
    assert nothing.divergence["share"].isna().all()
    rows = diagnostics.divergence_rows(analyze(trials, design, response="valid_score"))
    assert rows[1] == ("norm", "batch", "5", "10", "0", "50 % [24, 76]", "+50 points [12, 76]")


@pytest.mark.parametrize("size", [1e308, 1.7e308, 1e-308])
def test_responses_at_the_edge_of_what_numbers_can_be_break_no_figure(size: float) -> None:
    from homeostat.study.show.report import render

    design = full_factorial(TWO, 3)
    trials = planted(design, lambda c: 0.0)
    trials["score"] = (np.arange(12) % 5 - 2) / 2 * size
    found = analyze(trials, design, response="score")
    assert render(found, simulated.NO_CURVES, {})
    assert diagnostics.residual_figure(found) is not None
    assert diagnostics.crosscheck_rows(found)
