"""Claims about batch normalization in training: what they measure is what they say, and judges see what is planted."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from homeostat.claims.claim import Runs
from homeostat.claims.run import run
from homeostat.claims.themes import (
    normalization_altered,
    normalization_direction,
    normalization_training,
    normalization_why,
)
from homeostat.nn import BatchNorm1d

CLAIMS = {
    claim.id: claim
    for theme in (normalization_training, normalization_altered, normalization_why, normalization_direction)
    for claim in theme.CLAIMS
}
SMALL = {"model": "mlp", "optimizer": "sgd", "widths": "16x16", "epochs": 2}
FEWER = {
    "bn-stop-gradient": ({"constant": ["neither", "mean", "deviation", "both", "without"], "lr": [0.05]}, {}, {}),
    "bn-convergence": ({"norm": ["none", "batch"], "lr": [0.1, 3.0]}, {"epochs": 8}, {"target": 2.0}),
    "bn-saturating": ({"net": ["sigmoid 3", "tanh 4"], "norm": ["none", "batch"], "lr": [0.1]}, {"widths": None}, {}),
    "bn-init-robust": ({"norm": ["none", "batch"], "init_gain": [0.1, 1.4]}, {"init": "he_normal"}, {}),
    "bn-regularizes": (
        {"norm": ["none", "batch", "noisy"], "dropout": [0.0, 0.5]}, {"batch_size": 20}, {"examples": 60, "part": 5},
    ),
    "bn-shift": ({"norm": ["none", "batch"], "lr": [0.1]}, {"momentum": 0.0}, {"examples": 64}),
    "bn-smoothness": (
        {"norm": ["none", "batch"], "lr": [0.1]}, {"momentum": 0.0, "epochs": 4}, {"examples": 50, "every": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("id", FEWER)
def test_a_small_run_ends_in_a_verdict_with_a_figure(id, tmp_path):
    factors, recipe, settings = FEWER[id]
    claim = CLAIMS[id]
    known = {**claim.quick.settings, **settings, "recipe": {**SMALL, **recipe}}
    small = replace(claim, quick=replace(claim.quick, factors=factors, seeds=2, settings=known))
    evidence = run(small, workers=0, out=tmp_path, progress=False)
    assert not evidence.failures
    assert evidence.verdict.word in ("holds", "fails", "undecided")
    assert evidence.verdict.number
    assert "nan" not in evidence.verdict.number + evidence.verdict.says
    assert (tmp_path / "quick" / id / "figure.svg").stat().st_size > 3000


@pytest.mark.parametrize("id", FEWER)
def test_one_seed_decides_nothing(id, tmp_path):
    factors, recipe, settings = FEWER[id]
    claim = CLAIMS[id]
    known = {**claim.quick.settings, **settings, "recipe": {**SMALL, **recipe}}
    small = replace(claim, quick=replace(claim.quick, factors=factors, seeds=1, settings=known))
    assert run(small, workers=0, out=tmp_path, progress=False).verdict.word == "undecided"


def test_direction_and_length_are_apart_before_batch_normalization_alone(tmp_path):
    claim = CLAIMS["bn-direction-length"]
    quick = replace(claim.quick, seeds=2, settings={**claim.quick.settings, "steps": 20})
    evidence = run(replace(claim, quick=quick), workers=0, out=tmp_path, progress=False)
    assert evidence.verdict.word == "holds"
    plain = evidence.frame[evidence.frame["norm"] == "none"]
    assert (plain["scaled"] > 0.01).all()
    assert (plain["growth"] > 1e-6).all()


@pytest.mark.parametrize("constant", ["neither", "mean", "deviation", "both"])
def test_the_altered_layer_is_batch_normalization_but_for_its_gradient(constant):
    torch.manual_seed(0)
    own, usual = normalization_altered.PartlyConstantBatchNorm(3, activation="relu"), BatchNorm1d(3, activation="relu")
    own.constant = constant
    input = torch.randn(20, 3) * 4 + 1
    given, known = input.clone().requires_grad_(), input.clone().requires_grad_()
    torch.testing.assert_close(own(given), usual(known))
    torch.testing.assert_close(own.running_var, usual.running_var)
    wanted = torch.randn(20, 3)
    for layer, tensor in ((own, given), (usual, known)):
        (layer(tensor) * wanted).sum().backward()
    assert torch.allclose(given.grad, known.grad, atol=1e-5) == (constant == "neither")
    sums = given.grad.sum(0).abs().max() < 1e-4
    assert bool(sums) == (constant in ("neither", "deviation"))


def test_noisier_statistics_are_those_of_parts():
    torch.manual_seed(0)
    layer = normalization_altered.NoisyBatchNorm(3)
    layer.part = 5
    parts = layer(torch.randn(20, 3) + 2).split(5)
    assert max(part.mean(0).abs().max() for part in parts) < 1e-5
    layer.eval()
    assert layer(torch.zeros(2, 3)).shape == (2, 3)


def test_passes_are_interpolated_between_two():
    passes = normalization_training._passes
    assert passes([1.0, 0.5, 0.05, 0.01], 0.1) == pytest.approx(2 + np.log(5) / np.log(10))
    assert passes([0.01], 0.1) == 1.0
    assert np.isnan(passes([1.0, float("nan")], 0.1))


def test_shift_is_none_where_no_layer_moves_and_measured_on_a_copy():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).eval()
    task = type("Task", (), {"loss_function": lambda self: nn.CrossEntropyLoss()})()
    batch = torch.randn(30, 4), torch.arange(30) % 3
    before = [parameter.clone() for parameter in model.parameters()]
    still, moved = (normalization_why._shift(model, *batch, task, lr) for lr in (0.0, 1.0))
    assert still["shift"] == still["inputs"] == 0.0
    assert still["cosine"] == pytest.approx(1.0)
    assert still["difference"] == 0.0
    assert 0 < moved["difference"] < moved["shift"]  # gradients here are shorter than one
    assert moved["cosine"] < 1
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def planted(id, effects, *, noise, seeds=6, **others):
    """Runs of a claim's quick form: a metric by its first factor's level, with noise; other metrics constant."""
    claim, generator = CLAIMS[id], np.random.default_rng(0)
    setup = claim.quick
    names = list(setup.factors)
    combinations = pd.MultiIndex.from_product([*setup.factors.values(), range(seeds)], names=[*names, "seed"])
    table = combinations.to_frame(index=False).assign(diverged=0.0, **others)
    for metric, effect in effects.items():
        table[metric] = [effect(row) + noise * generator.normal() for _, row in table.iterrows()]
    return claim, Runs(table, pd.DataFrame(), setup)


def accurate(good):
    """Test and training accuracies by what a claim says is good."""
    return {"train_accuracy": good, "test_accuracy": good}


SHIFTED = {"difference": 1.0, "inputs": 0.1, "cosine": 0.9}
PLANTED = [
    ("bn-stop-gradient", accurate(lambda r: 0.9 if r.constant == "both" else 0.98), "holds", {"growth": 2.0}),
    ("bn-stop-gradient", accurate(lambda r: 0.98), "fails", {"growth": 2.0}),
    ("bn-convergence", {"passes": lambda r: 3.0 if r.norm == "batch" else 6.0,
                        "train_accuracy": lambda r: 0.97 if r.lr <= (10 if r.norm == "batch" else 1) else 0.2},
     "holds", {}),
    ("bn-convergence", {"passes": lambda r: 6.0 if r.norm == "batch" else 3.0,
                        "train_accuracy": lambda r: 0.97 if r.lr <= (10 if r.norm == "batch" else 1) else 0.2},
     "fails", {}),
    ("bn-convergence", {"passes": lambda r: 3.0 if r.norm == "batch" else 6.0, "train_accuracy": lambda r: 0.97},
     "undecided", {}),
    ("bn-saturating", accurate(lambda r: 0.97 if r.norm == "batch" else 0.3), "holds", {}),
    ("bn-saturating", accurate(lambda r: 0.97 if r.norm == "batch" or r.net == "tanh 10" else 0.3), "fails", {}),
    ("bn-saturating", accurate(lambda r: 0.6 if r.norm == "batch" else 0.3), "fails", {}),
    ("bn-init-robust", accurate(lambda r: 0.9 if r.norm == "batch" else 0.3 + r.init_gain / 30), "holds", {}),
    ("bn-init-robust", accurate(lambda r: 0.9 if r.norm == "none" else 0.3 + r.init_gain / 30), "fails", {}),
    ("bn-regularizes", accurate(lambda r: {"none": 0.9, "batch": 0.92, "noisy": 0.94}[r.norm]
                                + (r.dropout / 20 if r.norm == "none" else 0)), "holds", {}),
    ("bn-regularizes", accurate(lambda r: {"none": 0.9, "batch": 0.92, "noisy": 0.94}[r.norm]
                                + (r.dropout / 20 if r.norm == "batch" else 0)), "fails", {}),
    ("bn-shift", {"shift": lambda r: 0.3 if r.norm == "batch" else 0.2}, "holds", SHIFTED),
    ("bn-shift", {"shift": lambda r: 0.1 if r.norm == "batch" else 0.2}, "fails", SHIFTED),
    ("bn-smoothness", {"late": lambda r: 2.0 if r.norm == "batch" else 4.0}, "holds",
     {"initial": 1.0, "along": 1.0, "ratio": 1.0}),
    ("bn-smoothness", {"late": lambda r: 4.0}, "fails", {"initial": 1.0, "along": 1.0, "ratio": 1.0}),
]  # fmt: skip


@pytest.mark.parametrize(("id", "effects", "word", "others"), PLANTED)
def test_a_judge_sees_what_is_planted(id, effects, word, others):
    claim, runs = planted(id, effects, noise=0.003, **others)
    verdict = claim.judge(runs)
    assert verdict.word == word
    assert ("seeds would" in verdict.says) == (word == "undecided")


@pytest.mark.parametrize(
    ("id", "effects", "others"),
    [
        ("bn-stop-gradient", accurate(lambda r: 0.94 if r.constant == "both" else 0.95), {"growth": 2.0}),
        ("bn-regularizes", accurate(lambda r: 0.9 + 0.001 * (r.norm == "noisy")), {}),
        ("bn-shift", {"shift": lambda r: 0.9 if r.norm == "batch" else 1.0}, SHIFTED),
        ("bn-smoothness", {"late": lambda r: 0.8 if r.norm == "batch" else 1.0},
         {"initial": 1.0, "along": 1.0, "ratio": 1.0}),
    ],
)  # fmt: skip
def test_a_judge_leaves_noise_undecided(id, effects, others):
    claim, runs = planted(id, effects, noise=0.1, **others)
    verdict = claim.judge(runs)
    assert verdict.word == "undecided"
    assert "seeds would" in verdict.says


def test_a_net_that_never_comes_to_the_target_has_no_speed():
    claim, runs = planted("bn-convergence", accurate(lambda r: 0.97), noise=0.003, passes=3.0)
    runs.trials.loc[runs.trials["norm"] == "none", "passes"] = np.nan
    verdict = claim.judge(runs)
    assert verdict.word == "undecided"
    assert "longer training would decide it" in verdict.says


def test_a_seed_that_ends_with_90_percent_at_no_rate_leaves_no_interval_of_rates():
    claim, runs = planted("bn-convergence", {"passes": lambda r: 3.0, "train_accuracy": lambda r: 0.97}, noise=0.003)
    runs.trials.loc[(runs.trials["norm"] == "none") & (runs.trials["seed"] == 2), "train_accuracy"] = 0.899
    verdict = claim.judge(runs)
    assert verdict.word == "undecided"
    assert "seeds that get there at no rate are 1 without it and 0 with it" in verdict.says
    assert "nan" not in verdict.number + verdict.says


def test_what_fails_beyond_the_lecture_is_told_from_what_it_says():
    said = "Both nets of ten layers do train with it"
    train = {"holds": lambda r: 0.97 if r.norm == "batch" else 0.3, "fails": lambda r: 0.97}
    for word, good in train.items():
        claim, runs = planted("bn-saturating", accurate(good), noise=0.003)
        verdict = claim.judge(runs)
        assert (verdict.word, said in verdict.says) == (word, True)
    claim, runs = planted("bn-saturating", accurate(lambda r: 0.6 if r.norm == "batch" else 0.3), noise=0.003)
    assert said not in claim.judge(runs).says


def test_runs_that_diverged_count_as_guessing():
    claim, runs = planted("bn-stop-gradient", accurate(lambda r: 0.98), noise=0.003, growth=2.0)
    lost = runs.trials["constant"] == "both"
    runs.trials.loc[lost, ["train_accuracy", "growth"]] = np.nan
    runs.trials.loc[lost, "diverged"] = 1.0
    verdict = claim.judge(runs)
    assert verdict.word == "holds"
    assert "12 of 12 runs diverged, 0 of 12" in verdict.says


@pytest.mark.parametrize(
    ("id", "metrics"),
    [
        ("bn-shift", ("shift", "difference", "inputs", "cosine")),
        ("bn-smoothness", ("late", "initial", "along", "ratio")),
    ],
)
def test_where_all_of_a_kind_diverged_nothing_is_decided(id, metrics):
    claim, runs = planted(id, {metric: lambda r: 1.0 for metric in metrics}, noise=0.01)
    runs.trials.loc[runs.trials["norm"] == "none", list(metrics)] = np.nan
    assert claim.judge(runs).word == "undecided"


def test_a_run_that_diverges_has_no_second_half_whose_sharpness_were_known():
    claim = CLAIMS["bn-smoothness"]
    settings = {**claim.quick.settings, "examples": 50, "every": 2}
    found = claim.experiment({"norm": "none", "lr": 1e4}, 0, **settings)
    assert found["diverged"]
    assert np.isfinite(found["initial"])
    assert np.isnan([found["late"], found["ratio"], found["along"]]).all()


def test_a_rate_at_which_one_kind_diverged_is_named():
    metrics = ("late", "ratio", "along")
    claim, runs = planted("bn-smoothness", {metric: lambda r: 1.0 for metric in metrics}, noise=0.01, initial=1.0)
    lost = (runs.trials["norm"] == "batch") & (runs.trials["lr"] == 0.6)
    runs.trials.loc[lost, list(metrics)] = np.nan
    verdict = claim.judge(runs)
    assert verdict.word == "undecided"
    assert "at rate 0.6 not to be compared, since all runs of one kind diverged" in verdict.says
    assert "at rate 0.3 1.0" in verdict.says
