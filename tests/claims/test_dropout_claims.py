"""The claims about dropout: identities hold, experiments end in verdicts, and judges say what planted tables hold."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from homeostat import claims
from homeostat.claims.claim import Runs
from homeostat.claims.themes import dropout, dropout_average, dropout_training

CLAIMS = {each.id: each for theme in (dropout, dropout_average, dropout_training) for each in theme.CLAIMS}
TINY = {
    "dropout-scaling": ({}, {}),
    "dropout-sgd-noise": ({}, {"draws": 5000}),
    "dropout-expectation": (
        {"p": [0.5], "widths": ["4", "3x3"]},
        {"recipe": {"model": "mlp", "epochs": 1}, "examples": 4},
    ),
    "dropout-regression": ({"dropout": [0.0, 0.5]}, {"recipe": {"model": "mlp", "widths": "8", "epochs": 2}}),
    "dropout-bagging": ({}, {"recipe": {"model": "mlp", "widths": "16", "epochs": 2}, "members": 2}),
    "dropout-coadaptation": ({"dropout": [0.0, 0.5]}, {"recipe": {"model": "mlp", "widths": "16x16", "epochs": 2}}),
    "dropconnect": ({}, {"recipe": {"model": "mlp", "widths": "16x16", "epochs": 2}}),
    "dropout-before-bn": ({}, {"recipe": {"model": "mlp", "widths": "16x16", "epochs": 2}}),
}


def tiny(name, seeds=2):
    """A claim with a quick form that takes a second."""
    claim, (factors, settings) = CLAIMS[name], TINY[name]
    quick = claim.quick
    return dataclasses.replace(
        claim,
        quick=dataclasses.replace(
            quick, seeds=seeds, factors={**quick.factors, **factors}, settings={**quick.settings, **settings}
        ),
    )


def judged(name, rows):
    return CLAIMS[name].judge(Runs(pd.DataFrame(rows), pd.DataFrame(), CLAIMS[name].quick))


@pytest.mark.parametrize("name", TINY)
def test_an_experiment_ends_in_a_verdict_with_a_figure(name, tmp_path):
    evidence = claims.run(tiny(name), workers=0, out=tmp_path, progress=False)
    assert not evidence.failures
    assert evidence.verdict.word in ("holds", "fails", "undecided")
    assert evidence.verdict.number
    assert evidence.verdict.says
    assert (tmp_path / "quick" / name / "figure.svg").exists()
    if name in ("dropout-scaling", "dropout-sgd-noise"):
        assert evidence.verdict.word == "holds"


@pytest.mark.parametrize("name", TINY)
def test_one_seed_is_enough_for_a_figure(name, tmp_path):
    evidence = claims.run(tiny(name, seeds=1), workers=0, out=tmp_path, progress=False)
    assert evidence.verdict.word == ("holds" if name == "dropout-scaling" else "undecided")


@pytest.mark.parametrize("name", TINY)
def test_global_random_state_changes_nothing(name):
    setup = tiny(name).quick
    config = {factor: levels[-1] for factor, levels in setup.factors.items()}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(CLAIMS[name].experiment(config, 0, **setup.settings))
        assert torch.initial_seed() == seed
    for metrics in found:
        metrics.pop("spent", None)
    assert found[0] == found[1]


# -- the forms of scaling ---------------------------------------------------------------------------------------------


def scaling_rows(forms=1e-16, mean=1e-16, deep=0.2):
    return [
        {
            "p": p, "net": net, "seed": seed, "forms": forms, "mean": mean if net == "linear" else deep,
            "drop_probability": abs(1 - 2 * p), "same_rate": 0.1, "matched_rate": 1e-16,
        }
        for p, net, seed in itertools.product((0.2, 0.5), ("linear", "deep"), range(3))
    ]  # fmt: skip


def test_scaling_is_judged_by_the_forms_and_by_the_mean_of_one_linear_layer():
    assert judged("dropout-scaling", scaling_rows()).word == "holds"
    assert judged("dropout-scaling", scaling_rows(forms=1e-6)).word == "fails"
    assert judged("dropout-scaling", scaling_rows(mean=1e-6)).word == "fails"


def test_multiplying_by_the_probability_of_dropping_is_right_for_one_half_only():
    even, uneven = (dropout.scaling({"p": p, "net": "linear"}, 0)["drop_probability"] for p in (0.5, 0.2))
    assert even < 1e-12
    assert uneven > 0.1


def test_the_mean_over_masks_of_a_net_with_rectifiers_is_not_its_pass():
    assert dropout.scaling({"p": 0.5, "net": "deep"}, 0)["mean"] > 1e-3


# -- the sampled sum --------------------------------------------------------------------------------------------------


def sum_rows(exact=1e-15, drawn=1.0, noise=0.001):
    return [
        {
            "p": p, "seed": seed, "dropout_mean": exact, "batch_mean": exact, "dropout_variance": exact,
            "batch_variance": exact, "drawn": drawn + noise * (seed - 1), "gradient_bias": 0.3,
        }
        for p, seed in itertools.product((0.2, 0.5), range(3))
    ]  # fmt: skip


def test_the_sum_is_judged_by_formulas_and_draws():
    assert judged("dropout-sgd-noise", sum_rows()).word == "holds"
    assert judged("dropout-sgd-noise", sum_rows(exact=1e-3)).word == "fails"
    assert judged("dropout-sgd-noise", sum_rows(drawn=1.2)).word == "fails"
    assert judged("dropout-sgd-noise", sum_rows(noise=0.2)).word == "undecided"


def test_the_gradient_with_dropout_is_biased_more_for_larger_p():
    small, large = (dropout.sampled_sum({"p": p}, 0, draws=10)["gradient_bias"] for p in (0.1, 0.5))
    assert 0 < small < large


# -- averages ---------------------------------------------------------------------------------------------------------


def expectation_rows(worth, noise=0.05):
    return [
        {
            "p": p, "widths": widths, "seed": seed, "worth": worth + noise * (seed - 1.5), "outputs": 0.1,
            "probabilities": 10 ** (-worth / 2), "accuracy_one_pass": 0.9, "accuracy_average": 0.91,
        }
        for p, widths, seed in itertools.product((0.2, 0.5), ("14", "7x7"), range(4))
    ]  # fmt: skip


def test_one_pass_is_judged_by_the_masks_that_it_is_worth():
    verdict = judged("dropout-expectation", expectation_rows(2.0))
    assert verdict.word == "holds"
    assert "100.0 masks" in verdict.number
    assert judged("dropout-expectation", expectation_rows(0.5)).word == "fails"
    assert judged("dropout-expectation", expectation_rows(1.1, noise=1.0)).word == "undecided"


def test_distances_of_drawn_masks_leave_out_what_their_own_mean_is_off():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(400, 50, 10, generator=generator, dtype=torch.float64)
    assert dropout_average._distance(torch.full((50, 10), 0.5, dtype=torch.float64), drawn, None) == pytest.approx(
        0.5, rel=0.02
    )
    assert dropout_average._distance(drawn.mean(0), drawn, None) == pytest.approx(1 / 20)  # no nearer than can be seen
    exact = torch.tensor([[[0.0]], [[4.0]]], dtype=torch.float64)  # mean 1, deviation √3
    found = dropout_average._distance(torch.zeros(1, 1).double(), exact, torch.tensor([0.75, 0.25]))
    assert found == pytest.approx(1 / 3**0.5)


def bagging_rows(average, best, single, noise=0.002):
    jitter = noise * np.array([-1.0, 0.0, 1.0, 0.5])
    found = []
    for seed, shift in enumerate(jitter):
        common = {"seed": seed, "spent": 1.0}
        found.append({**common, "method": "one", "accuracy": 0.9, "best_member": 0.9, "mean_member": 0.9})
        row = {"accuracy": average + shift, "best_member": best, "mean_member": best - 0.01, "spent": 10.0}
        found.append({**common, "method": "bag", **row})
        row = {"accuracy": single, "best_member": single, "mean_member": single}
        found.append({**common, "method": "dropout", **row})
    return found


def test_bagging_needs_a_better_average_and_dropout_near_it():
    verdict = judged("dropout-bagging", bagging_rows(0.92, 0.90, 0.92))
    assert verdict.word == "holds"
    assert "10.0 times as long" in verdict.says
    assert judged("dropout-bagging", bagging_rows(0.88, 0.90, 0.92)).word == "fails"
    assert judged("dropout-bagging", bagging_rows(0.95, 0.90, 0.92)).word == "fails"
    assert judged("dropout-bagging", bagging_rows(0.92, 0.90, 0.92, noise=0.1)).word == "undecided"


# -- training ---------------------------------------------------------------------------------------------------------


def paired(factor, means, metric, noise, **others):
    """Four seeds per level around a mean, with noise that differs by seed and level."""
    generator = np.random.default_rng(0)
    return [
        {factor: level, "seed": seed, metric: mean + noise * generator.normal(), **others}
        for level, mean in means.items()
        for seed in range(4)
    ]


def test_the_regression_is_judged_by_the_probability_that_validation_chooses():
    def rows(test, noise=0.001):
        found = paired("dropout", test, "test_rmse", noise, train_rmse=0.1)
        return [{**row, "valid_rmse": {0.0: 0.5, 0.1: 0.4, 0.5: 0.6}[row["dropout"]]} for row in found]

    verdict = judged("dropout-regression", rows({0.0: 0.5, 0.1: 0.4, 0.5: 0.6}))
    assert verdict.word == "holds"
    assert "dropout of 0.1" in verdict.says
    assert judged("dropout-regression", rows({0.0: 0.5, 0.1: 0.6, 0.5: 0.3})).word == "fails"
    verdict = judged("dropout-regression", rows({0.0: 0.5, 0.1: 0.5, 0.5: 0.6}, noise=0.1))
    assert verdict.word == "undecided"
    assert "seeds would decide" in verdict.says


def test_diverged_runs_leave_the_verdict_open():
    rows = paired("dropout", {0.0: 0.5, 0.1: np.nan}, "test_rmse", 0.01, train_rmse=0.1, valid_rmse=np.nan)
    assert judged("dropout-regression", rows).word == "undecided"
    runs = Runs(pd.DataFrame(rows), pd.DataFrame(), CLAIMS["dropout-regression"].quick)
    assert "4 of 4 not finite" in CLAIMS["dropout-regression"].draw(runs).wide
    rows = paired("dropped", {"nothing": 0.9, "units": np.nan, "weights": np.nan}, "accuracy", 0.01)
    assert judged("dropconnect", rows).word == "undecided"


def test_coadaptation_needs_less_correlation_and_more_silence():
    def rows(correlation, silent, noise=0.001):
        found = paired("dropout", {0.0: 0.3, 0.5: correlation}, "correlation", noise, covariance=0.1, activation=0.5)
        shares = {0.0: 0.4, 0.5: silent}
        return [{**row, "silent": shares[row["dropout"]] + row["correlation"] / 100, "accuracy": 0.9} for row in found]

    assert judged("dropout-coadaptation", rows(0.2, 0.5)).word == "holds"
    assert judged("dropout-coadaptation", rows(0.4, 0.5)).word == "fails"
    assert judged("dropout-coadaptation", rows(0.2, 0.3)).word == "fails"
    assert judged("dropout-coadaptation", rows(0.29, 0.5, noise=0.1)).word == "undecided"
    fallen = [
        {**row, "covariance": row["covariance"] - row["dropout"] / 10 - row["seed"] / 1e3} for row in rows(0.4, 0.5)
    ]
    verdict = judged("dropout-coadaptation", fallen)
    assert (verdict.word, verdict.number[:27]) == ("fails", "correlation higher by 0.100")
    assert "covariance is lower by 0.050" in verdict.says
    assert "says the contrary" in verdict.says


def test_the_correlation_of_copies_is_one_and_of_noise_small():
    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    copies = dropout_training._together(torch.cat([noise[:, :1], -2 * noise[:, :1], torch.zeros(4000, 1)], 1))
    assert copies["correlation"] == pytest.approx(1)
    assert copies["silent"] == pytest.approx(1 / 3)
    assert dropout_training._together(noise)["correlation"] < 0.05


def test_dropconnect_and_dropout_must_both_gain():
    def rows(nothing, units, weights, noise=0.001):
        return paired("dropped", {"nothing": nothing, "units": units, "weights": weights}, "accuracy", noise)

    assert judged("dropconnect", rows(0.90, 0.92, 0.93)).word == "holds"
    assert judged("dropconnect", rows(0.90, 0.92, 0.88)).word == "fails"
    assert judged("dropconnect", rows(0.90, 0.91, 0.91, noise=0.1)).word == "undecided"


def norm_rows(shift=1.5, plain=0.02, batch=-0.02, again=0.01, noise=0.001):
    gains = {("none", "between"): plain, ("batch", "between"): batch, ("batch", "behind"): 0.01}
    generator = np.random.default_rng(0)
    found = []
    for norm, place, seed in itertools.product(("none", "batch"), ("nowhere", "between", "behind"), range(4)):
        accuracy = 0.9 + gains.get((norm, place), 0.0) + noise * generator.normal()
        between = (norm, place) == ("batch", "between")
        row = {"norm": norm, "place": place, "seed": seed, "accuracy": accuracy}
        found.append({**row, "shift": (shift if between else 1.0) + noise * generator.normal(),
                      "remeasured": accuracy + between * (again + noise * generator.normal())})  # fmt: skip
    return found


def test_dropout_before_normalization_needs_shift_loss_and_cure():
    assert judged("dropout-before-bn", norm_rows()).word == "holds"
    assert judged("dropout-before-bn", norm_rows(shift=0.9)).word == "fails"
    assert judged("dropout-before-bn", norm_rows(batch=0.05)).number.endswith("more to gain")
    assert judged("dropout-before-bn", norm_rows(batch=0.05)).word == "fails"
    assert judged("dropout-before-bn", norm_rows(again=-0.01)).word == "fails"
    assert judged("dropout-before-bn", norm_rows(noise=0.1)).word == "undecided"
