"""The analysis of studies with something amiss: runs that diverged, failed or are missing, one seed, odd metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from planted import effect, planted

from homeostat.errors import InvalidValue
from homeostat.inference import paired_interval
from homeostat.study.design import full_factorial
from homeostat.study.results.analysis import analyze
from homeostat.study.results.effects import EffectModel, step_of

TWO = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
THREE = {**TWO, "crop": [False, True]}


def test_diverged_runs_are_counted_left_out_and_told() -> None:
    """One of eight cells gone: the model still tells every effect, from the runs that are left."""
    design = full_factorial(THREE, seeds=3)
    gone = {"norm": "none", "dropout": 0, "crop": False}
    trials = planted(design, lambda c: 0.03 * (c["norm"] == "batch"), diverges=lambda c: c == gone)
    found = analyze(trials, design, response="valid_score")
    assert (found.planned, found.finished, found.diverged, found.failed, found.missing) == (24, 24, 3, 0, 0)
    assert found.treatments.loc[0, ["n", "diverged"]].tolist() == [3, 3]
    assert np.isnan(found.treatments.at[0, "valid_score"])
    assert found.effects["estimable"].all()
    table = found.divergence.set_index(["factor", "level"])
    assert table.loc[("norm", "none"), ["diverged", "of"]].tolist() == [3, 12]
    assert table.loc[("norm", "batch"), ["diverged", "of"]].tolist() == [0, 12]
    assert any("3 of 24 finished trials diverged" in text and "norm=none 3 of 12" in text for text in found.warnings)
    assert "3 of 24 finished trials diverged." in found.summary
    assert found.recommendation.config["norm"] == "batch"


def test_infinite_responses_and_flagged_runs_count_as_diverged() -> None:
    design = full_factorial(TWO, seeds=3)
    trials = planted(design, lambda c: 0.0)
    trials.loc[trials.index[0], "valid_score"] = np.inf
    trials.loc[trials.index[1], "diverged"] = 1.0
    found = analyze(trials, design, response="valid_score")
    assert found.diverged == 2
    assert found.frame["outcome"].value_counts().to_dict() == {"ok": 10, "diverged": 2}
    assert np.isfinite(found.effects["estimate"]).all()


def test_a_level_that_always_diverged_gets_no_number() -> None:
    design = full_factorial(TWO, seeds=3)
    trials = planted(design, lambda c: 0.01, diverges=lambda c: c["norm"] == "none")
    found = analyze(trials, design, response="valid_score")
    row = effect(found, "norm: none → batch")
    assert (row.verdict, row.estimable) == ("not estimable", False)
    assert np.isnan([row.estimate, row.low, row.p, row.p_holm]).all()
    assert effect(found, "norm × dropout").verdict == "not estimable"
    left = trials[trials["norm"] == "batch"].groupby("dropout")["valid_score"].mean()
    assert effect(found, "dropout: 0 → 0.5").estimate == pytest.approx(left[0.5] - left[0])
    assert sum("norm" in text for text in found.warnings) == 1
    assert found.warnings[0] == (
        "6 of 12 finished trials diverged and are left out of the estimates: norm=none 6 of 6. "
        "The effects of other factors are averaged over the other levels."
    )
    assert found.recommendation.config == {"norm": "batch", "dropout": 0}
    assert np.isnan(found.recommendation.gain.estimate)


def test_everything_diverged() -> None:
    design = full_factorial(TWO, seeds=2)
    found = analyze(planted(design, lambda c: 0.0, diverges=lambda c: True), design, response="valid_score")
    assert found.summary.startswith("All 8 finished trials diverged, so nothing can be recommended")
    assert not found.effects["estimable"].any()
    assert found.recommendation.config == design.base
    assert np.isnan(found.recommendation.gain.estimate)
    assert np.isnan(found.r2)


def test_nothing_has_run_yet() -> None:
    design = full_factorial(TWO, seeds=2)
    trials = planted(design, lambda c: 0.0, pending=range(8))
    for frame in (trials, trials.drop(columns=["valid_score", "test_score", "diverged"]), trials.iloc[:0]):
        found = analyze(frame, design, response="valid_score")
        assert found.summary == "None of the 8 trials has finished yet."
        assert found.missing == 8
        assert found.warnings == ["The study is not complete: 0 of 8 trials have finished."]


def test_all_failed() -> None:
    design = full_factorial(TWO, seeds=1)
    found = analyze(planted(design, lambda c: 0.0, failed=range(4)), design, response="valid_score")
    assert found.summary == "All 4 trials failed, so there is nothing to compare."
    assert (found.failed, found.missing) == (4, 0)


@pytest.mark.parametrize("done", [1, 2, 5, 9, 15])
def test_a_study_in_progress_is_analyzed_at_any_moment(done: int) -> None:
    design = full_factorial(THREE, seeds=2)
    trials = planted(design, lambda c: 0.05 * (c["norm"] == "batch"), pending=range(done, 16))
    found = analyze(trials, design, response="valid_score")
    assert found.warnings[0] == f"The study is not complete: {done} of 16 trials have finished."
    assert found.summary.endswith(f"Only {done} of 16 trials have finished.")
    shown = found.effects[found.effects["estimable"]]
    assert shown["estimate"].notna().all()
    assert found.effects.loc[~found.effects["estimable"], "estimate"].isna().all()


def test_failed_trials_are_told_with_their_error() -> None:
    design = full_factorial(TWO, seeds=4)
    found = analyze(planted(design, lambda c: 0.0, failed=[2]), design, response="valid_score")
    assert found.failed == 1
    assert found.treatments["failed"].sum() == 1
    assert any("1 trial failed and was set aside" in text and "out of memory" in text for text in found.warnings)


def test_one_seed_without_repetition_has_estimates_and_no_intervals() -> None:
    design = full_factorial(TWO, seeds=1)
    found = analyze(planted(design, lambda c: 0.05 * (c["norm"] == "batch")), design, response="valid_score")
    assert found.effects["estimate"].notna().all()
    assert found.effects["low"].isna().all()
    assert found.warnings == ["No run repeats another, so there are no intervals: use --seeds 3 or more."]
    assert found.recommendation.kept == ()
    assert "for now" in found.summary


def test_one_factor_is_a_paired_comparison() -> None:
    design = full_factorial({"norm": ["none", "batch"]}, seeds=6)
    trials = planted(design, lambda c: 0.05 * (c["norm"] == "batch"))
    found = analyze(trials, design, response="valid_score")
    wide = trials.pivot(index="seed", columns="norm", values="valid_score")
    paired = paired_interval(wide["batch"].to_numpy(), wide["none"].to_numpy())
    row = found.effects.iloc[0]
    assert (row.estimate, row.low, row.high) == pytest.approx((paired.estimate, paired.low, paired.high))
    assert row.p == pytest.approx(paired.p)


def test_an_objective_without_noise_is_no_crash_and_is_doubted() -> None:
    design = full_factorial(THREE, seeds=3)
    trials = planted(design, lambda c: 0.5 * (c["norm"] == "batch"), noise=0.0, blocks=0.0)
    found = analyze(trials, design, response="valid_score")
    assert found.effects["estimate"].tolist() == pytest.approx([0.5, 0, 0, 0, 0, 0])
    assert found.effects["verdict"].tolist() == ["helps", *["no clear effect"] * 5]
    assert any("Does the objective use its seed?" in text for text in found.warnings)
    constant = analyze(trials.assign(valid_score=1.0), design, response="valid_score")
    assert constant.recommendation.kept == ()
    assert np.isnan(constant.r2)


def test_equal_differences_of_a_coarse_metric_under_two_seeds_are_no_certainty() -> None:
    """Two examples more of 360 right, under both seeds."""
    design = full_factorial({"norm": ["none", "batch"]}, seeds=2)
    right = {("none", 0): 330, ("none", 1): 333, ("batch", 0): 332, ("batch", 1): 335}
    trials = planted(design, lambda c: 0.0, metric="valid_accuracy")
    trials["valid_accuracy"] = [right[pair] / 360 for pair in zip(trials["norm"], trials["seed"], strict=True)]
    found = analyze(trials, design, response="valid_accuracy")
    row = found.effects.iloc[0]
    assert (row.estimate, row.verdict) == (pytest.approx(2 / 360), "no clear effect")
    assert row.low < 0 < row.high
    assert found.recommendation.kept == ()


def test_a_metric_of_few_values_makes_no_more_claims_than_others() -> None:
    """Three factors that do nothing, two seeds: 30 % of such studies claimed something."""
    design = full_factorial(THREE, seeds=2)
    treatment, seed = np.array(list(np.ndindex(8, 2))).T
    model = EffectModel(design, treatment, seed, np.zeros(16))
    draws, claims = np.random.default_rng(0), 0
    for _ in range(100):
        right = np.round(330 + draws.normal(size=2)[seed] + draws.normal(size=16))
        found = replace(model, y=right / 360, step=step_of(treatment, right / 360, 0.95))
        claims += found.judge_effects(np.eye(8)[2:]).p.min() < 0.05 / 6
    assert claims <= 5


def test_nothing_varies_from_seed_to_seed_only_after_enough_repetitions() -> None:
    treatment, y = np.repeat([0, 1], 2), np.array([0.9, 0.9, 0.92, 0.92])
    assert step_of(treatment, y, 0.95) == pytest.approx(0.02)
    assert step_of(np.tile(treatment, 2), np.tile(y, 2), 0.95) == 0.0


def test_warnings_of_the_trials_are_gathered_with_where_they_came_from() -> None:
    design = full_factorial(TWO, seeds=3)
    trials = planted(design, lambda c: 0.0)
    text = "NoEffectWarning: norm=batch changed nothing"
    trials["warnings"] = [[text, text] if norm == "batch" else [] for norm in trials["norm"]]
    found = analyze(trials, design, response="valid_score")
    assert f"6 of 12 trials, all with norm=batch: {text}" in found.warnings


def test_metrics_of_other_types_and_names_are_no_trouble() -> None:
    design = full_factorial({"epochs": [1, 2], "norm": ["none", "batch"]}, seeds=2)
    trials = planted(design, lambda c: 0.0).assign(note="text", odd=[[1]] * 8, whole=3)
    found = analyze(trials, design, response="valid_score")
    assert found.metrics == ("valid_score", "test_score", "whole")
    assert found.treatments["whole"].tolist() == [3.0] * 4


def test_levels_come_from_the_design_not_from_what_a_table_made_of_them() -> None:
    design = full_factorial({"clip": [None, 1.0], "depth": [2, 3]}, seeds=2)
    trials = planted(design, lambda c: 0.0)
    trials["clip"] = trials["clip"].astype(float)  # None became NaN
    found = analyze(trials, design, response="valid_score")
    assert found.frame["clip"].tolist()[:4] == [None] * 4
    assert found.divergence["level"].tolist() == [None, 1.0, 2, 3]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda t: t.assign(treatment=99), "every treatment of trials must belong to the design"),
        (lambda t: t.assign(seed=77), "every seed of trials must belong"),
        (lambda t: pd.concat([t, t.iloc[:1]]), "stand in trials once"),
        (lambda t: t.drop(columns="status"), "have the columns"),
    ],
)
def test_trials_of_another_design_are_refused(change: object, text: str) -> None:
    design = full_factorial(TWO, seeds=2)
    with pytest.raises(InvalidValue, match=text):
        analyze(change(planted(design, lambda c: 0.0)), design, response="valid_score")


def test_bad_arguments_are_named() -> None:
    design = full_factorial(TWO, seeds=2)
    trials = planted(design, lambda c: 0.0)
    with pytest.raises(InvalidValue, match="Did you mean 'valid_score'"):
        analyze(trials, design, response="valid_scor")
    with pytest.raises(InvalidValue, match="unknown response 'norm'"):
        analyze(trials, design, response="norm")
    with pytest.raises(InvalidValue, match="goal must be"):
        analyze(trials, design, response="valid_score", goal="max")
    with pytest.raises(InvalidValue, match="margin"):
        analyze(trials, design, response="valid_score", margin=-0.1)
    with pytest.raises(InvalidValue, match="confidence"):
        analyze(trials, design, response="valid_score", confidence=95)


def test_a_response_measured_on_test_data_is_remarked_on() -> None:
    design = full_factorial(TWO, seeds=3)
    trials = planted(design, lambda c: 0.0)
    assert any(
        text.startswith("Judged on test data") for text in analyze(trials, design, response="test_score").warnings
    )
    assert not any("test data" in text for text in analyze(trials, design, response="valid_score").warnings)


def test_a_response_that_never_varies_is_said_to_tell_nothing_and_a_loss_is_named_where_there_is_one() -> None:
    design = full_factorial(THREE, seeds=3)
    trials = planted(design, lambda c: 0.0, metric="valid_loss")
    same = trials.assign(valid_accuracy=1.0)
    found = analyze(same, design, response="valid_accuracy")
    assert found.warnings == [
        "Every trial gives 100.0 %: this response cannot tell the techniques apart; "
        "another one, such as valid_loss, may."
    ]
    assert "Every trial gives 100.0 %: this response cannot tell the techniques apart." in (
        analyze(same.drop(columns=["valid_loss", "test_loss"]), design, response="valid_accuracy").warnings
    )
    assert found.recommendation.config == design.base
    assert all(text.endswith(" stays: every trial gives the same response") for text in found.recommendation.reasons)
    assert "every trial gives 100.0 %, so validation accuracy tells nothing apart" in found.summary


def test_intervals_of_accuracies_stay_within_what_is_possible() -> None:
    design = full_factorial(TWO, seeds=2)
    trials = planted(design, lambda c: 0.9, noise=0.04, metric="valid_accuracy")
    trials["valid_accuracy"] = trials["valid_accuracy"].clip(0, 1)
    found = analyze(trials.assign(score=trials["valid_accuracy"]), design, response="valid_accuracy").treatments
    assert found["valid_accuracy_high"].max() == 1.0
    assert found["score_high"].max() > 1.0
