"""The analysis: equal to statsmodels and to sums done by hand, honest about what is missing, deterministic."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from planted import effect, planted
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.tools.sm_exceptions import ConvergenceWarning

from homeostat.inference import mean_interval
from homeostat.study.design import Design, fractional_factorial, full_factorial
from homeostat.study.results.analysis import analyze

TWO = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
THREE = {**TWO, "crop": [False, True]}
MIXED = {"norm": ["none", "batch", "layer"], "dropout": [0, 0.5]}


def by_hand(values: dict[tuple[int, int], float], design: Design) -> pd.DataFrame:
    rows = [{"treatment": t, "seed": s, "status": "done", "score": value} for (t, s), value in values.items()]
    return pd.DataFrame(rows)


def test_a_two_by_two_study_done_by_hand() -> None:
    """Treatments none/0, none/0.5, batch/0, batch/0.5 under two seeds.

    Means 10.5, 12.5, 15.5, 21.5. norm: (15.5 + 21.5)/2 - (10.5 + 12.5)/2 = 7. dropout: (12.5 + 21.5)/2 -
    (10.5 + 15.5)/2 = 4. Interaction: ((21.5 - 12.5) - (15.5 - 10.5))/2 = 2. By seed: norm 6.25 and 7.75, dropout 3.75
    and 4.25, interaction 1.75 and 2.25, so standard errors of 0.75, 0.25 and 0.25; t(0.975; 1) = 12.706205.
    Pure error: of the differences 0, 0, 1, 2 between the seeds remain 2 * (0.375^2 + 0.375^2 + 0.125^2 + 0.625^2) =
    1.375, s^2 = 1.375 / 3; a difference of two means of four has the error sqrt(s^2 / 2); t(0.975; 3) = 3.182446.
    """
    design = full_factorial(TWO, seeds=2)
    pairs = {0: (10.5, 10.5), 1: (12.5, 12.5), 2: (15.0, 16.0), 3: (20.5, 22.5)}
    values = {(t, s): pairs[t][s] for t in pairs for s in (0, 1)}
    found = analyze(by_hand(values, design), design, response="score")
    for label, estimate, error in (
        ("norm: none → batch", 7.0, 0.75),
        ("dropout: 0 → 0.5", 4.0, 0.25),
        ("norm × dropout", 2.0, 0.25),
    ):
        row = effect(found, label)
        assert (row.estimate, row.se, row.df) == pytest.approx((estimate, error, 1.0))
        assert row.high - row.estimate == pytest.approx(12.706205 * error)
        assert row.pure_high - row.estimate == pytest.approx(3.182446 * (1.375 / 6) ** 0.5)
    assert effect(found, "norm: none → batch").verdict == "no clear effect"
    assert effect(found, "dropout: 0 → 0.5").verdict == "perhaps helps"
    assert found.by_seed["norm: none → batch"].tolist() == pytest.approx([6.25, 7.75])
    assert found.treatments["score"].tolist() == [10.5, 12.5, 15.5, 21.5]
    assert found.alone["estimate"].tolist() == pytest.approx([5.0, 2.0])
    assert found.recommendation.kept == ()  # dropout gains 2 at norm=none under both seeds, which may be chance
    assert found.everything[1].estimate == pytest.approx(11.0)
    assert found.df_resid == 3


def test_the_interval_is_that_of_the_seeds_whatever_a_seed_does_to_a_technique() -> None:
    design = full_factorial(THREE, seeds=6)
    trials = planted(design, lambda c: 0.02 * (c["norm"] == "batch"))
    trials["valid_score"] += 0.03 * np.sin(trials["seed"] * 2.0) * (trials["norm"] == "batch")
    found = analyze(trials, design, response="valid_score")
    np.testing.assert_allclose(found.effects["df"], 5)
    for row in found.effects.itertuples():
        seeds = found.by_seed[row.label].to_numpy()
        assert (row.low, row.high) == pytest.approx(mean_interval(seeds)[1:3])
    coded = trials.assign(x=np.where(trials["norm"] == "batch", 0.5, -0.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the correlation of intercept and slope
        mixed = smf.mixedlm("valid_score ~ x", coded, groups="seed", re_formula="~x").fit()
    row = effect(found, "norm: none → batch")
    assert row.estimate == pytest.approx(mixed.fe_params["x"])
    assert row.se == pytest.approx(mixed.bse_fe["x"], rel=0.02)  # random slopes, by restricted maximum likelihood
    assert row.high - row.low > 2 * (row.pure_high - row.pure_low)


def test_a_seed_that_lacks_a_run_still_says_what_the_model_makes_of_the_others() -> None:
    design = full_factorial(THREE, seeds=4)
    trials = planted(design, lambda c: 0.02 * (c["norm"] == "batch") + 0.1 * (c["crop"] is True), noise=0.0, failed=[3])
    assert analyze(trials, design, response="valid_score").by_seed["norm: none → batch"].tolist() == pytest.approx(
        [0.02] * 4
    )
    seldom = planted(design, lambda c: 0.02, pending=range(2, 8))
    assert analyze(seldom, design, response="valid_score").by_seed.isna().any(axis=1).tolist() == [True, *[False] * 3]


def test_effects_and_errors_are_those_of_statsmodels_with_its_own_coding() -> None:
    """The same contrasts from a treatment-coded formula: effects do not depend on the coding."""
    design = full_factorial(MIXED, seeds=3)
    trials = planted(design, lambda c: 0.1 * (c["norm"] == "layer") * (1 + (c["dropout"] > 0)), noise=0.05)
    found = analyze(trials, design, response="valid_score")
    fitted = smf.ols("valid_score ~ C(seed) + C(norm, Treatment('none')) * C(dropout)", trials).fit(cov_type="HC3")
    half, layer = "C(dropout)[T.0.5]", "C(norm, Treatment('none'))[T.layer]"
    for label, weights in (
        ("norm: none → layer", {layer: 1.0, f"{layer}:{half}": 0.5}),
        ("norm: none → layer × dropout: 0 → 0.5", {f"{layer}:{half}": 0.5}),
    ):
        test = fitted.t_test([weights.get(name, 0.0) for name in fitted.params.index])
        row = effect(found, label)
        assert row.estimate == pytest.approx(float(test.effect[0]))
        assert row.pure_se == pytest.approx(float(test.sd[0, 0]))
    expected = multipletests(found.effects["p"], method="holm")[1]
    np.testing.assert_allclose(found.effects["p_holm"], expected)
    assert found.r2 == pytest.approx(fitted.rsquared)


def test_in_a_two_level_factorial_the_interval_of_runs_is_the_one_of_least_squares() -> None:
    design = full_factorial(THREE, seeds=4)
    trials = planted(design, lambda c: 0.02 * (c["norm"] == "batch"))
    found = analyze(trials, design, response="valid_score", confidence=0.9)
    coded = trials.assign(**{name: np.where(trials[name] == design.base[name], -1, 1) for name in THREE})
    fitted = smf.ols("valid_score ~ C(seed) + norm * dropout * crop", coded).fit()  # pure error
    for label, name in (("norm: none → batch", "norm"), ("dropout × crop", "dropout:crop")):
        low, high = 2 * fitted.conf_int(0.1).loc[name]
        row = effect(found, label)
        assert (row.estimate, row.pure_low, row.pure_high) == pytest.approx((2 * fitted.params[name], low, high))


def three_way(config: dict[str, object]) -> float:
    """All three together spoil what each does: an interaction of three factors."""
    on = [config["norm"] == "batch", config["dropout"] == 0.5, config["crop"] is True]
    return 0.8 + 0.03 * on[0] + 0.01 * on[1] + 0.01 * on[2] - 0.05 * all(on)


def test_lack_of_fit_is_the_f_test_of_the_nested_models() -> None:
    design = full_factorial(THREE, seeds=4)
    for mean, noise in ((three_way, 0.01), (lambda c: 0.02 * (c["norm"] == "batch"), 0.02)):
        trials = planted(design, mean, noise=noise, pending=[3, 17])
        found = analyze(trials, design, response="valid_score")
        ran = trials[trials["status"] == "done"]
        small = smf.ols("valid_score ~ C(seed) + (C(norm) + C(dropout) + C(crop)) ** 2", ran).fit()
        large = smf.ols("valid_score ~ C(seed) + C(treatment)", ran).fit()
        row = anova_lm(small, large).iloc[1]
        assert (found.lack_of_fit.f, found.lack_of_fit.p) == pytest.approx((row["F"], row["Pr(>F)"]))
        assert (found.lack_of_fit.df, found.lack_of_fit.df_error) == (1, large.df_resid)
        assert found.direct == (row["Pr(>F)"] < 0.05)


def test_a_model_without_room_for_more_is_not_tested() -> None:
    for design in (
        full_factorial(TWO, 3),
        full_factorial(THREE, 1),
        fractional_factorial({n: [0, 1] for n in "abcde"}, 2),
    ):
        found = analyze(planted(design, lambda c: 0.5), design, response="valid_score")
        assert np.isnan(found.lack_of_fit.p)
        assert not found.direct


def test_where_three_factors_interact_treatments_are_compared_by_their_own_runs() -> None:
    """Every number about a combination is one that the table of treatments shows, and a warning says why."""
    design = full_factorial(THREE, seeds=5)
    found = analyze(planted(design, three_way, noise=0.002), design, response="valid_score")
    means = found.treatments["valid_score"]
    base = {**design.base}
    assert found.direct
    assert found.warnings[0].startswith("Three or more factors interact (F(1, 28) = ")
    for table, around in ((found.alone, base), (found.together, found.recommendation.config)):
        for row in table.itertuples():
            pair = [design.find({**around, row.factor: level}) for level in (row.base, row.level)]
            assert row.estimate == pytest.approx(means[pair[1]] - means[pair[0]])
    config, gain = found.everything
    assert gain.estimate == pytest.approx(means[design.find(config)] - means[0])


def test_effects_do_not_rest_on_the_model_that_does_not_fit() -> None:
    """Unbalanced, three factors interacting: averages of means with pure error, as statsmodels has them."""
    design = full_factorial(THREE, seeds=4)
    trials = planted(design, three_way, noise=0.01, pending=[3, 17, 22])
    found = analyze(trials, design, response="valid_score")
    fitted = smf.ols("valid_score ~ 0 + C(treatment) + C(seed)", trials[trials["status"] == "done"]).fit(cov_type="HC3")
    weights = [0.25 if design.config(number)["norm"] == "batch" else -0.25 for number in range(8)]
    test = fitted.t_test([*weights, *[0.0] * 3])
    row = effect(found, "norm: none → batch")
    assert row.estimate == pytest.approx(float(test.effect[0]))
    assert row.pure_se == pytest.approx(float(test.sd[0, 0]))


def test_the_warning_tells_a_factor_that_acts_differently_from_seed_to_seed() -> None:
    design = full_factorial(THREE, seeds=5)
    trials = planted(design, lambda c: 0.0, noise=0.005)
    own = trials["seed"].map({0: 0.04, 1: -0.04, 2: 0.02, 3: -0.03, 4: 0.03})
    trials["valid_score"] += np.where(trials["norm"] == "batch", own, 0.0)
    found = analyze(trials, design, response="valid_score")
    assert any(text.startswith("norm (F(4, 24) = ") and "from seed to seed" in text for text in found.warnings)
    quiet = analyze(planted(design, lambda c: 0.0, noise=0.005), design, response="valid_score")
    assert not any("from seed to seed" in text for text in quiet.warnings)


def test_verdicts_never_contradict_the_interval_beside_them() -> None:
    """Over many studies with faint effects: what leaves out zero is called so, clear or perhaps."""
    design = full_factorial(THREE, seeds=3)
    seen = set()
    for seed in range(40):
        trials = planted(design, lambda c: 0.006 * (c["norm"] == "batch") - 0.01 * (c["crop"] is True), seed=seed)
        for row in analyze(trials, design, response="valid_score").effects.itertuples():
            seen.add(row.verdict)
            assert (row.verdict == "no clear effect") == (row.low <= 0 <= row.high)
            assert row.verdict.startswith("perhaps") == (row.verdict != "no clear effect" and row.p_holm >= 0.05)
            assert ("help" in row.verdict or "strength" in row.verdict) == (row.low > 0)
    assert {"perhaps helps", "perhaps hurts", "hurts", "no clear effect"} <= seen


@pytest.mark.parametrize("scale", [1e-200, 1e-12, 2.0**40, 1e200])
def test_the_unit_of_the_response_changes_nothing_but_the_numbers(scale: float) -> None:
    design = full_factorial(THREE, seeds=3)
    trials = planted(design, three_way)
    one = analyze(trials, design, response="valid_score")
    scaled = trials.assign(valid_score=trials["valid_score"] * scale, test_score=trials["test_score"] * scale)
    two = analyze(scaled, design, response="valid_score")
    assert two.recommendation.config == one.recommendation.config
    assert two.effects["verdict"].tolist() == one.effects["verdict"].tolist()
    np.testing.assert_allclose(two.effects["low"] / scale, one.effects["low"], rtol=1e-6)
    np.testing.assert_allclose(
        two.treatments["valid_score_high"] / scale, one.treatments["valid_score_high"], rtol=1e-9
    )
    assert two.lack_of_fit.p == pytest.approx(one.lack_of_fit.p)


def test_main_effects_average_over_all_levels_of_the_others() -> None:
    """With every run there, a main effect is the plain difference of means, for any number of levels."""
    design = full_factorial(MIXED, seeds=3)
    trials = planted(design, lambda c: len(str(c["norm"])) * (1.0 + float(c["dropout"])))
    found = analyze(trials, design, response="valid_score")
    means = trials.groupby("norm")["valid_score"].mean()
    assert effect(found, "norm: none → batch").estimate == pytest.approx(means["batch"] - means["none"])
    assert effect(found, "norm: none → layer").estimate == pytest.approx(means["layer"] - means["none"])
    cells = trials.groupby(["norm", "dropout"])["valid_score"].mean()
    twist = (cells["batch", 0.5] - cells["batch", 0]) - (cells["none", 0.5] - cells["none", 0])
    assert effect(found, "norm: none → batch × dropout: 0 → 0.5").estimate == pytest.approx(twist / 2)


def test_seeds_are_blocks_what_a_seed_gives_to_all_cancels() -> None:
    design = full_factorial(TWO, seeds=4)
    trials = planted(design, lambda c: 0.02 * (c["norm"] == "batch"), blocks=0.0)
    shifted = trials.assign(valid_score=trials["valid_score"] + 10.0 * trials["seed"])
    one, two = (analyze(frame, design, response="valid_score") for frame in (trials, shifted))
    np.testing.assert_allclose(one.effects["estimate"], two.effects["estimate"], atol=1e-9)
    np.testing.assert_allclose(one.effects["low"], two.effects["low"], atol=1e-9)


def test_the_order_of_the_rows_changes_nothing_and_the_input_stays_as_it_is() -> None:
    design = full_factorial(THREE, seeds=3)
    trials = planted(design, lambda c: 0.03 * (c["crop"] is True), diverges=lambda c: c["norm"] == "none")
    before = trials.copy(deep=True)
    one = analyze(trials, design, response="valid_score")
    two = analyze(trials.iloc[::-1].reset_index(drop=True), design, response="valid_score")
    pd.testing.assert_frame_equal(trials, before)
    assert one.summary == two.summary
    assert repr(one.recommendation) == repr(two.recommendation)
    for name, frame in one.to_frames().items():
        pd.testing.assert_frame_equal(frame, two.to_frames()[name])


def test_minimize_turns_the_verdicts_and_not_the_numbers() -> None:
    design = full_factorial(TWO, seeds=4)
    trials = planted(design, lambda c: 0.05 * (c["norm"] == "batch"), metric="valid_loss")
    up = analyze(trials, design, response="valid_loss", goal="maximize")
    down = analyze(trials, design, response="valid_loss", goal="minimize")
    assert up.effects["estimate"].tolist() == down.effects["estimate"].tolist()
    assert (up.effects["verdict"].iloc[0], down.effects["verdict"].iloc[0]) == ("helps", "hurts")
    assert (up.recommendation.kept, down.recommendation.kept) == (("norm",), ())


def test_an_effect_within_the_margin_is_not_called_clear() -> None:
    design = full_factorial(TWO, seeds=5)
    trials = planted(design, lambda c: 0.02 * (c["norm"] == "batch"), noise=0.002)
    assert analyze(trials, design, response="valid_score", margin=0.01).effects["verdict"].iloc[0] == "helps"
    wide = analyze(trials, design, response="valid_score", margin=0.03)
    assert wide.effects["verdict"].iloc[0] == "within the margin"
    assert analyze(trials, design, response="valid_score", margin=0.0205).effects["verdict"].iloc[0] == "perhaps helps"
    assert wide.recommendation.kept == ()
    assert "beyond the margin of 0.0300" in wide.recommendation.reasons[0]


def test_interactions_strengthen_or_weaken() -> None:
    design = full_factorial(TWO, seeds=5)
    for twist, verdict in ((0.05, "strengthens"), (-0.05, "weakens")):
        trials = planted(
            design, lambda c, twist=twist: twist * (c["norm"] == "batch") * (c["dropout"] > 0), noise=0.002
        )
        assert effect(analyze(trials, design, response="valid_score"), "norm × dropout").verdict == verdict


def test_aliases_are_named_and_reported_once() -> None:
    design = fractional_factorial({name: [0, 1] for name in "abcd"}, seeds=3)
    trials = planted(design, lambda c: 0.05 * c["a"] * c["b"], noise=0.002)
    found = analyze(trials, design, response="valid_score")
    assert len(found.effects) == 7
    assert effect(found, "a × b").aliases == "c × d"
    assert "c × d" not in found.effects["label"].tolist()
    assert any("share their estimates" in warning for warning in found.warnings)
    assert found.recommendation.treatment is None or found.recommendation.treatment in design.treatments.index
