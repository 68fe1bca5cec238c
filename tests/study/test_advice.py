"""The recommendation and the sentence: the best, made simple, never what diverged, in English."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted

from homeostat.study.design import Design, fractional_factorial, full_factorial, make_design
from homeostat.study.results.analysis import Analysis, analyze

FIVE = {
    "norm": ["none", "batch"],
    "dropout": [0, 0.5],
    "l1": [0, 1e-4],
    "crop": [False, True],
    "weight_decay": [0, 0.01],
}
TWO = {"norm": ["none", "batch"], "dropout": [0, 0.5]}


def study(design: Design, mean: object, **kwargs: object) -> Analysis:
    kwargs = {"metric": "valid_accuracy", "noise": 0.003} | kwargs
    response, goal, margin = kwargs["metric"], kwargs.pop("goal", "maximize"), kwargs.pop("margin", 0.0)
    return analyze(planted(design, mean, **kwargs), design, response=response, goal=goal, margin=margin)


def test_what_helps_is_kept_the_rest_is_dropped_and_every_factor_has_its_reason() -> None:
    design = full_factorial(FIVE, seeds=5)
    found = study(design, lambda c: 0.9 + 0.02 * (c["norm"] == "batch") - 0.01 * (c["weight_decay"] > 0))
    advice = found.recommendation
    assert advice.config == design.base | {"norm": "batch"}
    assert advice.kept == ("norm",)
    assert design.config(advice.treatment) == advice.config
    assert [reason.split("=")[0] for reason in advice.reasons] == list(FIVE)
    assert re.fullmatch(r"norm=batch kept: \+(1\.9|2\.[01]) points \[1\.\d, 2\.\d\] over none", advice.reasons[0])
    assert all("dropped" in reason or "stays" in reason for reason in advice.reasons[1:])
    assert advice.reasons[4].startswith("weight_decay=0 stays: 0.01 would give −")
    assert advice.gain.low < 0.02 < advice.gain.high


def test_the_sentence_says_what_to_use_what_shows_nothing_and_what_hurts() -> None:
    found = study(
        full_factorial(FIVE, seeds=5),
        lambda c: 0.9 + 0.02 * (c["norm"] == "batch") - 0.01 * (c["weight_decay"] > 0),
    )
    gain = found.unit.amount(*found.recommendation.gain[:3])
    first, second = found.summary.split(". ")
    assert first == (
        f"Use norm=batch: it raises validation accuracy by {gain}; dropout, l1 and crop show no clear effect; "
        "weight decay hurts"
    )
    assert second.startswith("Test accuracy, which played no part in the choice, rises by ")


def test_two_that_help_do_so_together() -> None:
    gain = {("none", 0): 0.80, ("batch", 0): 0.82, ("none", 0.5): 0.83, ("batch", 0.5): 0.85}
    found = study(full_factorial(TWO, seeds=5), lambda c: gain[tuple(c.values())])
    together = found.unit.amount(*found.recommendation.gain[:3])
    assert found.summary.startswith(
        f"Use norm=batch and dropout=0.5: together they raise validation accuracy by {together}."
    )
    assert found.recommendation.gain.estimate == pytest.approx(0.05, abs=0.005)


def test_less_is_better_when_minimizing() -> None:
    design = full_factorial(TWO, seeds=5)
    found = study(design, lambda c: 0.5 - 0.1 * (c["norm"] == "batch"), metric="valid_loss", goal="minimize")
    assert found.summary.startswith("Use norm=batch: it lowers validation loss by 0.")
    assert "Test loss, which played no part in the choice, falls by 0." in found.summary
    assert found.recommendation.gain.estimate < 0
    assert "does not confirm" not in found.summary


def test_nothing_helps() -> None:
    found = study(full_factorial(TWO, seeds=5), lambda c: 0.9 - 0.02 * (c["dropout"] > 0))
    advice = found.recommendation
    assert advice.kept == ()
    assert advice.treatment == 0
    assert advice.gain[:3] == (0.0, 0.0, 0.0)
    assert advice.confirm is None
    assert found.summary == (
        "Keep the base treatment (norm=none, dropout=0): norm shows no clear effect on "
        "validation accuracy; dropout hurts."
    )


def test_one_factor() -> None:
    design = full_factorial({"activation": ["relu", "gelu"]}, seeds=5)
    assert study(design, lambda c: 0.9).summary == (
        "Keep activation=relu: activation=gelu shows no clear effect on validation accuracy."
    )
    assert study(design, lambda c: 0.9 - 0.1 * (c["activation"] == "gelu")).summary == (
        "Keep activation=relu: activation=gelu hurts."
    )
    used = study(design, lambda c: 0.8 + 0.1 * (c["activation"] == "gelu")).summary
    assert used.startswith("Use activation=gelu: it raises validation accuracy by ")


def test_levels_of_one_factor_are_told_apart_where_they_differ() -> None:
    design = full_factorial({"dropout": [0, 0.2, 0.9], "norm": ["none", "batch"]}, seeds=5)
    found = study(design, lambda c: 0.9 - 0.3 * (c["dropout"] == 0.9) + 0.05 * (c["norm"] == "batch"))
    assert "; dropout=0.2 shows no clear effect; dropout=0.9 hurts. " in found.summary


def test_the_best_level_of_several_is_recommended() -> None:
    design = full_factorial({"norm": ["none", "batch", "layer"], "dropout": [0, 0.5]}, seeds=4)
    found = study(design, lambda c: {"none": 0.8, "batch": 0.85, "layer": 0.9}[str(c["norm"])])
    assert found.recommendation.config == {"norm": "layer", "dropout": 0}


def test_a_gain_that_needs_its_partner_is_judged_with_it() -> None:
    """Dropout helps only with batch normalization, and hurts without: its average effect is nil, its use is not."""
    design = full_factorial(TWO, seeds=5)
    gain = {("none", 0): 0.80, ("batch", 0): 0.82, ("none", 0.5): 0.78, ("batch", 0.5): 0.84}
    found = study(design, lambda c: gain[tuple(c.values())])
    assert found.effects.set_index("label").at["dropout: 0 → 0.5", "verdict"] == "no clear effect"
    assert found.recommendation.config == {"norm": "batch", "dropout": 0.5}
    assert found.alone["estimate"].tolist() == pytest.approx([0.02, -0.02], abs=0.005)
    assert found.together["estimate"].tolist() == pytest.approx([0.06, 0.02], abs=0.005)


def test_a_gain_that_is_one_of_many_is_not_enough_and_the_reason_says_so() -> None:
    design = full_factorial(FIVE, seeds=3)
    texts = []
    for seed in range(12):
        texts += study(
            design, lambda c: 0.9 + 0.001 * sum(c[name] != FIVE[name][0] for name in c), seed=seed
        ).recommendation.reasons
    assert any(re.search(r" \+\S+ points \[\d.*not clear among 5 comparisons$", text) for text in texts)
    for text in texts:
        beyond = re.search(r" \+\S+ points \[(?!0\.0+,)\d", text)
        assert not (beyond and text.endswith("no clear gain")), text


def test_within_the_margin_the_simpler_level_wins() -> None:
    def mean(c):
        return 0.8 + 0.03 * (c["norm"] == "batch") + 0.01 * (c["dropout"] > 0)

    design = full_factorial(TWO, seeds=6)
    assert study(design, mean, noise=0.001).recommendation.kept == ("norm", "dropout")
    found = study(design, mean, noise=0.001, margin=0.02)
    assert found.recommendation.kept == ("norm",)
    assert found.recommendation.reasons[1].endswith("over 0, no clear gain beyond the margin of 2.0 points")


def test_a_treatment_that_diverged_is_not_recommended() -> None:
    """The best treatment loses one of five runs: the next best is recommended."""
    design = full_factorial(TWO, seeds=5)
    trials = planted(design, lambda c: 0.8 + 0.02 * (c["norm"] == "batch") + 0.03 * (c["dropout"] > 0), noise=0.001)
    best = (trials["norm"] == "batch") & (trials["dropout"] == 0.5)
    trials.loc[trials.index[best][0], "valid_score"] = np.nan
    found = analyze(trials, design, response="valid_score")
    assert found.recommendation.config == {"norm": "none", "dropout": 0.5}


def test_a_failed_treatment_is_not_recommended_either() -> None:
    design = full_factorial(TWO, seeds=5)
    order = design.run_order()
    failed = [place for place, (treatment, seed) in enumerate(order) if treatment == 3 and seed == 0]

    def mean(c):
        return 0.8 + 0.02 * (c["norm"] == "batch") + 0.03 * (c["dropout"] > 0)

    found = study(design, mean, noise=0.001, failed=failed)
    assert found.recommendation.config == {"norm": "none", "dropout": 0.5}
    assert found.summary.endswith("1 of 20 trials failed.")


def test_what_keeps_runs_from_diverging_is_kept_without_a_measured_gain() -> None:
    found = study(full_factorial(TWO, seeds=3), lambda c: 0.9, diverges=lambda c: c["norm"] == "none")
    assert found.recommendation.config == {"norm": "batch", "dropout": 0}
    assert found.recommendation.reasons[0] == "norm=batch kept: with none instead, 3 of 3 trials diverged"
    assert np.isnan(found.recommendation.gain.estimate)
    assert found.summary == (
        "Use norm=batch: the base treatment (norm=none, dropout=0) diverged in 3 of 3 trials; "
        "dropout shows no clear effect. 6 of 12 finished trials diverged."
    )


def test_when_every_treatment_diverged_now_and_then_the_least_unstable_is_recommended() -> None:
    design = full_factorial(TWO, seeds=4)
    trials = planted(design, lambda c: 0.8 + 0.1 * (c["norm"] == "batch"), noise=0.001)
    for treatment, lost in ((0, 2), (1, 2), (2, 1), (3, 2)):
        trials.loc[trials.index[trials["treatment"] == treatment][:lost], "valid_score"] = np.nan
    found = analyze(trials, design, response="valid_score")
    assert found.recommendation.treatment == 2
    assert found.diverged == 7


def test_a_fraction_may_recommend_what_it_did_not_run_and_says_so() -> None:
    design = fractional_factorial({name: [0, 1] for name in "abcde"}, seeds=3)
    good = {"a": 1, "b": 0, "c": 0, "d": 0, "e": 0}
    assert design.find(good) is None
    found = study(design, lambda c: 0.7 + 0.1 * c["a"], seed=1)
    assert found.recommendation.config == good
    assert found.recommendation.treatment is None
    assert found.recommendation.confirm_method == "model"
    assert found.summary.startswith(
        "Use a=1 (predicted: this combination was not run): it raises validation accuracy by "
    )


def test_what_was_not_run_is_not_recommended_near_what_diverged() -> None:
    design = fractional_factorial({name: [0, 1] for name in "abcde"}, seeds=3)
    gone = design.config(15)
    trials = planted(design, lambda c: 0.7 + 0.1 * c["a"] + 0.1 * c["b"], diverges=lambda c: c == gone)
    found = analyze(trials, design, response="valid_score")
    advice = found.recommendation
    if advice.treatment is None:
        assert sum(advice.config[name] == gone[name] for name in gone) < 2
    else:
        assert found.treatments.at[advice.treatment, "diverged"] == 0


def test_aliases_of_what_is_claimed_are_in_the_sentence() -> None:
    design = fractional_factorial({"a": [0, 1], "b": [0, 1], "c": [0, 1]}, seeds=4)
    found = study(design, lambda c: 0.7 + 0.1 * c["a"])
    assert "In this fraction, a cannot be told apart from b × c." in found.summary


def test_the_test_metric_confirms_and_chooses_nothing() -> None:
    design = full_factorial(TWO, seeds=5)
    trials = planted(design, lambda c: 0.8 + 0.02 * (c["norm"] == "batch"), metric="valid_accuracy", noise=0.002)
    found = analyze(trials, design, response="valid_accuracy")
    advice = found.recommendation
    means = found.treatments["test_accuracy"]
    assert advice.confirm.estimate == pytest.approx(means[advice.treatment] - means[0])
    assert (advice.confirm_metric, advice.confirm_method) == ("test_accuracy", "direct")
    other = analyze(trials.assign(test_accuracy=0.5), design, response="valid_accuracy").recommendation
    assert (other.config, other.gain, other.reasons) == (advice.config, advice.gain, advice.reasons)


def test_the_gain_is_the_difference_that_the_table_of_treatments_shows() -> None:
    """The case that was wrong: a model of two-factor interactions said 2.5 points where treatments differ by 1.4."""

    def mean(config: dict[str, object]) -> float:
        alone = config["norm"] == "batch" and config["crop"] is False and config["dropout"] == 0
        return 0.95 + 0.014 * (config["norm"] == "batch") - 0.06 * (config["crop"] is True) * (not alone)

    for interaction in (0.0, 0.03):
        design = full_factorial(FIVE, seeds=5)
        found = study(
            design,
            lambda c, extra=interaction: (
                mean(c) + extra * (c["norm"] == "batch") * (c["crop"] is True) * (c["dropout"] == 0)
            ),
        )
        assert found.direct == (interaction > 0)
        advice, means = found.recommendation, found.treatments["valid_accuracy"]
        assert advice.kept == ("norm",)
        assert advice.gain_method == "direct"
        assert advice.gain.estimate == pytest.approx(means[advice.treatment] - means[0])
        assert (advice.predicted is None) == found.direct
        assert f"it raises validation accuracy by {found.unit.amount(*advice.gain[:3])}" in found.summary
        if found.direct:
            assert advice.reasons[0] == f"norm=batch kept: {found.unit.gain(*advice.gain[:3])} over none"
            assert advice.treatment is not None


def test_a_fraction_whose_model_does_not_fit_recommends_what_was_run() -> None:
    design = fractional_factorial({name: [0, 1] for name in "abcdef"}, seeds=4, resolution=6)

    def mean(c):
        return 0.7 + 0.05 * c["a"] + 0.05 * c["b"] - 0.06 * c["a"] * c["b"] * c["c"]

    found = study(design, mean)
    assert found.direct
    assert found.recommendation.treatment is not None
    assert {"a", "b"} <= set(found.recommendation.kept)
    assert "a=1 kept: the same without it was not run, and what was run with less is clearly worse" in (
        found.recommendation.reasons
    )


def test_what_the_two_treatments_do_not_show_alone_is_said_to_come_from_the_model() -> None:
    """Every trial counts in the model; ten runs of two treatments may be too few to show the same."""
    design = full_factorial(FIVE, seeds=5)
    texts = []
    for seed in range(30):
        found = study(design, lambda c: 0.9 + 0.004 * (c["norm"] == "batch"), noise=0.004, seed=seed)
        gain = found.recommendation.gain
        if found.recommendation.kept == ("norm",) and gain.low <= 0 and not found.direct:
            texts.append(found.summary)
            assert f"by the model of all trials, and by {found.unit.gain(*gain[:3])} in the runs" in found.summary
    assert texts


def test_a_better_level_is_taken_up_where_the_first_choice_is_too_noisy_to_keep() -> None:
    """batch looks best and is all noise; layer is a little less good, and sure."""
    design = full_factorial({"norm": ["none", "batch", "layer"], "dropout": [0, 0.5]}, seeds=5)
    noisy = [0.0, 0.13, -0.02, 0.12, 0.02]
    trials = planted(design, lambda c: 0.8 + 0.04 * (c["norm"] == "layer"), noise=0.001, blocks=0.0)
    for dropout, own in ((0, noisy), (0.5, [0.1 - value for value in noisy])):
        some = (trials["norm"] == "batch") & (trials["dropout"] == dropout)
        trials.loc[some, "valid_score"] += trials.loc[some, "seed"].map(dict(enumerate(own)))
    found = analyze(trials, design, response="valid_score")
    assert found.treatments["valid_score"].idxmax() in (2, 3)
    assert found.recommendation.config == {"norm": "layer", "dropout": 0}


def test_a_gain_that_the_test_data_do_not_show_is_called_unconfirmed() -> None:
    design = full_factorial(TWO, seeds=5)
    trials = planted(design, lambda c: 0.8 + 0.02 * (c["norm"] == "batch"), metric="valid_accuracy", noise=0.002)
    noise = np.random.default_rng(3).normal(0.7, 0.02, len(trials))
    found = analyze(trials.assign(test_accuracy=noise), design, response="valid_accuracy")
    assert ", which does not confirm the gain." in found.summary


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.floats(0, 0.6), st.sampled_from(["maximize", "minimize"]))
def test_whatever_happens_there_is_advice_and_a_sentence(seed: int, seeds: int, lost: float, goal: str) -> None:
    """Any pattern of diverged, failed and missing trials."""
    draws = np.random.default_rng(seed)
    design = full_factorial({"norm": ["none", "batch", "layer"], "dropout": [0, 0.5], "crop": [False, True]}, seeds)
    chances = [1 - lost, lost / 2, lost / 4, lost / 4]
    fate = draws.choice(["ok", "diverged", "pending", "failed"], design.trials, p=chances)
    pending, failed = (np.flatnonzero(fate == name) for name in ("pending", "failed"))
    trials = planted(design, lambda c: 0.5, noise=0.1, pending=pending, failed=failed)
    trials.loc[fate == "diverged", "valid_score"] = np.nan
    found = analyze(trials, design, response="valid_score", goal=goal)
    assert set(found.recommendation.config) == {"norm", "dropout", "crop"}
    assert len(found.recommendation.reasons) == 3
    assert found.summary.endswith(".")
    assert "nan" not in (found.summary + " ".join(found.recommendation.reasons)).lower()
    assert found.finished + found.failed + found.missing == found.planned == len(trials)
    not_estimable = found.effects[~found.effects["estimable"]]
    assert not_estimable[["estimate", "low", "high", "p"]].isna().all(axis=None)


def test_a_level_at_which_everything_diverged_is_a_finding() -> None:
    design = full_factorial({"lr": [1e-3, 1e6], "norm": ["none", "batch"]}, seeds=3)
    found = study(design, lambda c: 0.9, diverges=lambda c: c["lr"] == 1e6)
    assert found.recommendation.reasons[0] == "lr=0.001 stays: 1e6 diverged in 6 of 6 trials"
    assert found.summary == (
        "Keep the base treatment (lr=0.001, norm=none): lr=1e6 diverged in 6 of 6 trials; "
        "norm shows no clear effect on validation accuracy."
    )


def test_where_less_is_better_the_reasons_say_so() -> None:
    design = full_factorial(TWO, seeds=4)
    reasons = study(design, lambda c: 0.5, metric="valid_loss", goal="minimize").recommendation.reasons
    assert all("(lower is better)" in reason for reason in reasons)
    assert not any("lower" in reason for reason in study(design, lambda c: 0.5).recommendation.reasons)


def test_a_gain_by_a_model_with_aliased_interactions_says_so() -> None:
    design = fractional_factorial({name: [0, 1] for name in "abcd"}, seeds=4)
    found = study(design, lambda c: 0.7 + 0.05 * c["a"])
    assert found.recommendation.treatment is None
    assert "interactions that this fraction cannot tell apart from others: confirm it by running" in found.summary


def test_a_factor_is_taken_up_together_with_the_one_it_is_nested_in() -> None:
    factors = ["dropout=off,on", "rate=0.1,0.3,0.5 @ dropout=on", "norm=a,b,c", "x=0,1"]
    design = make_design(factors, 3, "full")

    def truth(config: dict[str, object]) -> float:
        return 0.5 + 0.05 * (config["dropout"] == "on") + 0.1 * (config.get("rate") == 0.3)

    found = [analyze(planted(design, truth, seed=seed), design, response="valid_score") for seed in range(4)]
    assert [(each.recommendation.config["dropout"], each.recommendation.config["rate"]) for each in found] == [
        ("on", 0.3)
    ] * 4
