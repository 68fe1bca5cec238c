"""Nuisance factors: each treatment at the level that suits it best, judged by what had no part in choosing it."""

import math

import numpy as np
import pandas as pd
import pytest
from tiny import FACTORS

from homeostat.errors import InvalidValue
from homeostat.study.design import full_factorial
from homeostat.study.results.analysis import analyze
from homeostat.study.running.status import read_status
from homeostat.study.study import Study
from homeostat.study.tuning import LEFT_OUT, TUNED, as_grid, tune, tuned

RATES = {"lr": [0.01, 0.1, 1.0]}
BEST = {"none": 0.01, "batch": 1.0}  # batch normalization wants a higher rate, where it is better by 0.02


def scored(config, seed):
    """Better by 0.02 with batch normalization, if both have their own rate; worse by 0.02 if both have 0.01."""
    away = abs(math.log10(config["lr"] / BEST[config["norm"]]))
    code = [seed, int(100 * config["lr"]), config["norm"] == "batch", int(10 * config["dropout"])]
    noise = np.random.default_rng(code).normal(0, 0.001)
    score = 0.8 + 0.02 * (config["norm"] == "batch") - 0.02 * away + 0.01 * seed + noise
    return {"valid_accuracy": score, "test_accuracy": score - 0.05}


def table(design, grid, objective=scored):
    """The trials of a study as its ledger would return them."""
    rows = []
    for number, (treatment, seed, config) in enumerate(grid.rows(design)):
        row = {"trial": number, "treatment": treatment, "seed": seed, **config, "status": "done"}
        rows.append(row | {"seconds": 1.0, "failure": None, "warnings": []} | objective(config, seed))
    return pd.DataFrame(rows)


@pytest.fixture
def design():
    return full_factorial(FACTORS, 4)


def test_every_treatment_is_run_at_every_level_under_every_seed_in_random_order(design):
    grid = as_grid({"lr": [0.1, 1.0], "warmup": [0, 5]}, design)
    rows = grid.rows(design)
    assert len(rows) == 4 * 4 * 4
    assert len({(treatment, seed, tuple(config.items())) for treatment, seed, config in rows}) == 64
    assert [seed for _, seed, _ in rows] == sorted(seed for _, seed, _ in rows)
    assert [row[0] for row in rows[:16]] != sorted(row[0] for row in rows[:16])
    assert rows == grid.rows(design)
    assert grid.settings[:2] == [{"lr": 0.1, "warmup": 0}, {"lr": 0.1, "warmup": 5}]
    assert grid.describe(design) == "Each at 4 levels (2 of lr × 2 of warmup), to be judged at its best: 64 trials."


def test_the_best_level_by_validation_is_judged_by_test(design):
    grid = as_grid(RATES, design)
    trials = table(design, grid)
    found = tune(trials, design, grid, metric="valid_accuracy")
    assert found.chosen["lr"].tolist() == [0.01, 0.01, 1.0, 1.0]
    assert (found.metric, found.judged) == ("valid_accuracy", "test_accuracy")
    assert len(found.trials) == 16
    assert "lr" not in found.trials
    own = trials[[row.lr == BEST[row.norm] for row in trials.itertuples()]]
    assert sorted(found.trials["trial"]) == sorted(own["trial"])
    analysis = analyze(found.trials, design, response=found.judged)
    assert analysis.effects["estimate"][0] == pytest.approx(0.02, abs=0.002)
    assert found.setting(2) == {"lr": 1.0}
    assert type(found.setting(2)["lr"]) is float


def test_what_a_study_at_one_level_would_have_said_stands_beside_it(design):
    grid = as_grid(RATES, design)
    found = tune(table(design, grid), design, grid, metric="valid_accuracy")
    norm = found.dependence[found.dependence["label"] == "norm: none → batch"].set_index("way")
    assert norm.index.tolist() == [TUNED, LEFT_OUT, "lr=0.01", "lr=0.1", "lr=1.0"]
    assert norm["verdict"][TUNED] == norm["verdict"][LEFT_OUT] == "helps"
    assert norm["verdict"]["lr=0.01"] == "hurts"
    assert norm["estimate"]["lr=0.01"] == pytest.approx(-0.02, abs=0.002)
    (told,) = [text for text in found.warnings if "At fixed levels" in text]
    assert "norm: none → batch (tuned: helps; lr=0.01: hurts" in told
    ends = [text for text in found.warnings if "there may be a better one beyond" in text]
    assert ends[0].startswith("2 of 4 treatments do best at the smallest lr that was tried, 0.01")


def test_a_level_at_which_runs_are_lost_is_not_chosen_however_good_the_others_were(design):
    def objective(config, seed):
        if config["lr"] == 1.0:
            return {"valid_accuracy": math.nan if seed == 2 else 0.99, "test_accuracy": 0.99}
        return scored(config, seed)

    grid = as_grid(RATES, design)
    trials = table(design, grid, objective)
    assert set(tune(trials, design, grid, metric="valid_accuracy").chosen["lr"]) == {0.01, 0.1}
    trials.loc[trials["lr"] < 1, "status"] = "quarantined"
    found = tune(trials, design, grid, metric="valid_accuracy")
    assert set(found.chosen["lr"]) == {1.0}
    assert found.chosen["n"].tolist() == [3] * 4


def test_less_may_be_better_and_ties_go_to_the_first(design):
    grid = as_grid(RATES, design)
    losses = table(design, grid, lambda config, seed: {"loss": 1 - scored(config, seed)["valid_accuracy"]})
    found = tune(losses, design, grid, metric="loss", goal="minimize")
    assert found.chosen["lr"].tolist() == [0.01, 0.01, 1.0, 1.0]
    assert found.judged == "loss"
    assert "its mean is a little optimistic" in found.warnings[0]
    tied = tuned(table(design, grid, lambda config, seed: {"y": float(seed)}), design, grid, metric="y")
    assert tied["trial"].tolist() == [n for n, row in enumerate(grid.rows(design)) if row[2]["lr"] == 0.01]


def test_each_seed_may_be_judged_at_the_level_that_the_others_choose(design):
    def objective(config, seed):  # seed 0 alone likes 1.0, by much
        return {"y": {0.01: 0.0, 0.1: 1.0, 1.0: 10.0 if seed == 0 else -1.0}[config["lr"]]}

    grid = as_grid(RATES, design)
    trials = table(design, grid, objective)
    own = tuned(trials, design, grid, metric="y")
    assert own.groupby("seed")["y"].first().tolist() == [10.0, -1.0, -1.0, -1.0]
    others = tuned(trials, design, grid, metric="y", leave_out=True)
    assert others.groupby("seed")["y"].first().tolist() == [1.0, -1.0, -1.0, -1.0]
    assert len(others) == len(own) == 16


def test_choosing_by_noise_makes_validation_optimistic_and_leaves_test_and_the_other_seeds_alone():
    """Where no level is better, the best of five by validation is above the mean by 1.16 standard errors of it."""
    design, draws = full_factorial({"norm": ["none", "batch"]}, 4), np.random.default_rng(0)
    grid = as_grid({"lr": [1, 2, 3, 4, 5]}, design)
    trials, means = table(design, grid, lambda config, seed: {"valid_y": 0.0, "test_y": 0.0}), []
    for _ in range(100):
        trials["valid_y"], trials["test_y"] = draws.normal(size=(2, len(trials)))
        own = tuned(trials, design, grid, metric="valid_y")
        others = tuned(trials, design, grid, metric="valid_y", leave_out=True)
        means.append([own["valid_y"].mean(), own["test_y"].mean(), others["valid_y"].mean()])
    optimism, test, left_out = np.mean(means, axis=0)
    error = np.sqrt(1 / 8 / 100)  # of a mean of eight values with variance 1, over 100 tables
    assert optimism == pytest.approx(1.163 / 2, abs=4 * error)
    assert abs(test) < 4 * error
    assert abs(left_out) < 4 * error


def test_a_treatment_that_was_not_run_gets_what_suits_most(design):
    grid = as_grid({"lr": [0.1, 1.0]}, design)
    trials = table(design, grid, lambda config, seed: {"y": config["lr"] if config["norm"] == "batch" else 0.5})
    assert tune(trials, design, grid, metric="y").setting(None) == {"lr": 1.0}


def test_a_study_with_nuisance_factors_from_trials_to_a_recipe(tmp_path):
    def again(**changes):
        settings = {"tune": RATES, "workers": 0, "directory": tmp_path / "study", "response": "valid_accuracy"}
        return Study(scored, FACTORS, 3, describe=repr, **settings | changes)

    found = again().run(progress=False)
    assert len(found.trials) == 36
    assert found.recommendation.config == {"norm": "batch", "dropout": 0}
    assert (tmp_path / "study" / "recipe.toml").read_text() == "{'norm': 'batch', 'dropout': 0, 'lr': 1.0}"
    assert (found.analysis.response, found.analysis.planned, found.analysis.finished) == ("test_accuracy", 12, 12)
    assert found.tuning.chosen["lr"].tolist() == [0.01, 0.01, 1.0, 1.0]
    assert not any("use the validation metric" in text for text in found.analysis.warnings)
    assert "is judged by test accuracy" in found.analysis.warnings[0]
    page = found.report.read_text()
    assert 'id="tuning"' in page
    assert "Whoever tunes the base treatment alone compares at lr=0.01." in page
    assert pd.read_csv(tmp_path / "study" / "tuning.csv")["lr"].tolist() == [0.01, 0.01, 1.0, 1.0]
    assert again().run(progress=False).trials.equals(found.trials)
    for other in ({"tune": {"lr": [0.01, 0.1]}}, {"tune": None}):
        for anyway in (False, True):
            with pytest.raises(InvalidValue, match=r"design\.tune"):
                again(**other).run(progress=False, anyway=anyway)


def test_who_looks_sees_the_levels_and_the_effects_so_far(tmp_path):
    def failing(config, seed):
        if seed == 2 and config["lr"] == 0.1:
            raise ValueError("no")
        return scored(config, seed)

    study = Study(failing, FACTORS, 3, tune=RATES, directory=tmp_path, workers=0, retries=0)
    study.run(progress=False)
    status = read_status(tmp_path)
    assert "norm=none, dropout=0, lr=0.1, seed 2" in [each.name for each in status.failed]
    assert status.strongest.effects[0].label == "norm: none → batch"


def test_who_looks_sees_what_judges_and_not_what_chose_the_levels(tmp_path):
    def objective(config, seed):
        score = scored(config, seed)["valid_accuracy"]
        return {"valid_accuracy": score, "test_accuracy": 1 - score}

    found = Study(objective, FACTORS, 3, tune=RATES, response="valid_accuracy", directory=tmp_path, workers=0)
    effects = found.run(progress=False).analysis.effects.set_index("label")
    (seen,) = [each for each in read_status(tmp_path).strongest.effects if each.label == "norm: none → batch"]
    assert seen.verdict == effects["verdict"][seen.label] == "hurts"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"norm": ["none", "layer"]}, "tune 'norm' must be no factor of the study"),
        ({"lr": [0.1]}, "two or more"),
        ({"seed": [1, 2]}, "not be a column"),
        ([], "at least one factor"),
        (["momentum=0.9,0.99 @ lr=0.1", "lr=0.1,1"], "tune 'momentum' must not be nested"),
    ],
)
def test_what_cannot_be_tuned_is_refused(asked, message):
    with pytest.raises(InvalidValue, match=message):
        Study(scored, FACTORS, tune=asked)
