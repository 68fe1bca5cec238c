"""Plans: power as simulation finds it, the fewest seeds that do, and what a pilot tells."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted
from scipy import stats
from typer.testing import CliRunner

from homeostat.cli import app
from homeostat.errors import InvalidType, InvalidValue
from homeostat.study.design import (
    Design,
    definitive_screening,
    fractional_factorial,
    full_factorial,
    optimal_design,
    plackett_burman,
    plan,
)
from homeostat.study.design.planning import noncentrality, power_of_t
from homeostat.study.pilot import read_pilot
from homeostat.study.results.effect_table import effect_table
from homeostat.study.results.effects import fit
from homeostat.study.results.outcomes import tidy
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError
from homeostat.study.study import Study


def two_level(count: int) -> dict[str, list[int]]:
    return {name: [0, 1] for name in "abcdefghijkl"[:count]}


@pytest.mark.parametrize(
    "design",
    [
        full_factorial(two_level(2), 5),
        fractional_factorial(two_level(5), 4),
        plackett_burman(two_level(9), 3),
        optimal_design({"norm": ["none", "batch", "layer"]} | two_level(3), 4, runs=18, searches=5),
    ],
    ids=lambda design: design.kind,
)
def test_the_power_is_that_of_simulated_studies(design: Design) -> None:
    """For each effect: trials with it alone, one t-test per study on the estimates of its seeds; 4 standard errors."""
    spread, studies = 1.0, 4000
    draws = np.random.default_rng(0)
    table = plan(design, spread=spread, delta=0.9).frame
    x = np.hstack([np.ones((len(design.treatments), 1)), *(design.columns(effect) for effect in design.estimated)])
    inverse, place = np.linalg.pinv(x), 1
    for effect in design.estimated[:4]:
        width = design.columns(effect).shape[1]
        row = table[table["label"].str.startswith(effect[0])].iloc[0]
        factor = next(factor for factor in design.factors if factor.name == effect[0])
        contrast = factor.coding[1] - factor.coding[0]
        size, means = 0.9, np.zeros(width)
        means += size * contrast / (contrast @ contrast)
        seeds = draws.normal(0, 2, (studies, len(design.seeds), 1)) + draws.normal(
            0, spread, (studies, len(design.seeds), len(design.treatments))
        )
        own = (seeds + x[:, place : place + width] @ means) @ (contrast @ inverse[place : place + width])
        seen = stats.ttest_1samp(own, 0.0, axis=1).pvalue < 0.05
        assert seen.mean() == pytest.approx(row["power"], abs=4 * np.sqrt(0.25 / studies))
        place += width


def test_the_analysis_sees_an_effect_as_often_as_the_plan_says() -> None:
    design = full_factorial(two_level(2), 6)
    row = plan(design, spread=0.01, delta=0.012).frame.iloc[0]
    seen = []
    for seed in range(80):
        trials = planted(design, lambda config: 0.5 + 0.012 * config["a"], noise=0.01, seed=seed)
        frame = tidy(trials, design, "valid_score", ["valid_score"])
        seen.append(effect_table(fit(frame, design, "valid_score"), "maximize")["p"].iloc[0] < 0.05)
    assert 0.5 < row["power"] < 0.9
    assert np.mean(seen) == pytest.approx(row["power"], abs=4 * np.sqrt(0.25 / len(seen)))


@settings(max_examples=50, deadline=None)
@given(st.floats(0.05, 60.0), st.integers(1, 600))
def test_power_is_that_of_the_noncentral_t(noncentral: float, df: int) -> None:
    """Its definition, (normal + noncentral) / sqrt(chi squared / df), averaged over quantiles of chi squared."""
    edge = stats.t.ppf(0.975, df)
    size = np.sqrt(stats.chi2.ppf((np.arange(20_000) + 0.5) / 20_000, df) / df)
    expected = np.mean(stats.norm.sf(edge * size - noncentral) + stats.norm.cdf(-edge * size - noncentral))
    assert float(power_of_t(np.array(noncentral), np.array(float(df)), 0.05)) == pytest.approx(expected, abs=1e-4)


@settings(deadline=None)
@given(st.integers(1, 500), st.sampled_from([0.05, 0.01, 0.001]), st.floats(0.3, 0.99))
def test_the_effect_that_is_seen_has_the_power_asked_for(df: int, alpha: float, power: float) -> None:
    size = noncentrality(np.array(float(df)), alpha, power)
    assert float(power_of_t(size, np.array(float(df)), alpha)) == pytest.approx(power, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.2, 3.0))
def test_the_seeds_are_the_fewest_that_do(ratio: float) -> None:
    factors = two_level(3)
    seeds = int(plan(full_factorial(factors, 5), spread=1.0, delta=ratio).frame["seeds"].max())
    enough = plan(full_factorial(factors, seeds), spread=1.0, delta=ratio).frame["power"]
    assert (enough >= 0.8 - 1e-9).all()
    if seeds > 2:
        assert (plan(full_factorial(factors, seeds - 1), spread=1.0, delta=ratio).frame["power"] < 0.8).all()


def test_what_is_detectable_has_the_power_asked_for() -> None:
    design = definitive_screening({name: [0, 1, 2] for name in "abcd"}, 4)
    for size in plan(design, spread=2.0, power=0.9).frame["detectable"].unique():
        again = plan(design, spread=2.0, delta=float(size)).frame
        assert (
            again.loc[(again["detectable"] - plan(design, spread=2.0).frame["detectable"]).abs() < 1e-9, "power"].max()
            >= 0.9 - 1e-6
        )


def test_the_variance_of_a_two_level_effect_is_four_over_the_treatments() -> None:
    for design in (
        full_factorial(two_level(3), 1),
        fractional_factorial(two_level(6), 2),
        plackett_burman(two_level(11)),
    ):
        assert plan(design).frame["variance"].to_numpy() == pytest.approx(4 / len(design.treatments))


def test_one_seed_is_judged_by_what_the_model_leaves() -> None:
    design = plackett_burman(two_level(8), 1)  # 12 treatments, 9 coefficients
    size = float(plan(design, spread=1.0).frame["detectable"].iloc[0])
    assert size == pytest.approx(np.sqrt(4 / 12) * float(noncentrality(np.array(3.0), 0.05, 0.8)))
    full = plackett_burman(two_level(11), 1)  # nothing is left
    assert plan(full, spread=1.0).frame["detectable"].isna().all()
    assert "every main effect: none" in str(plan(full, spread=1.0))


def test_a_plan_says_what_it_knows_and_what_it_does_not() -> None:
    design = fractional_factorial(two_level(6), 5)
    blank = str(plan(design))
    assert "not known without the spread" in blank
    assert "not known without the time of a trial" in blank
    found = plan(design, spread=0.01, delta=0.01, seconds=60.0, workers=4)
    assert found.time == 60.0 * 160 / 4
    text = str(found)
    assert text.startswith(design.describe())
    assert "4 seeds (128 trials) for every effect" in text
    assert "among all 21 effects together" in text
    assert "It takes about 40 min: 160 trials of 60 s each on 4 workers." in text
    assert "more than 1000" in str(plan(design, spread=1.0, delta=0.001))


@pytest.mark.parametrize(
    "wrong",
    [{"delta": 0.0}, {"spread": -1.0}, {"seconds": float("nan")}, {"workers": 0}, {"power": 1.0}, {"confidence": 0}],
)
def test_numbers_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(wrong))):
        plan(full_factorial(two_level(2)), **wrong)
    with pytest.raises(InvalidType, match="delta"):
        plan(full_factorial(two_level(2)), delta="1")


def noisy(config: dict[str, int], seed: int) -> dict[str, float]:
    draws = np.random.default_rng([seed, *config.values()])
    common = np.random.default_rng(seed).normal(0, 5.0)
    return {"score": config["a"] + common + draws.normal(0, 0.1), "loss": draws.normal(0, 0.3)}


def test_a_pilot_tells_the_spread_beside_what_a_seed_does_to_all(tmp_path: Path) -> None:
    Study(noisy, two_level(3), seeds=12, directory=tmp_path / "pilot", workers=0).run(progress=False)
    found = read_pilot(tmp_path / "pilot")
    assert (found.response, found.df) == ("score", 7 * 11)
    assert found.low < found.spread < found.high
    assert found.spread == pytest.approx(0.1, rel=4 / np.sqrt(2 * found.df))
    assert found.seconds >= 0
    assert read_pilot(tmp_path / "pilot", "loss").spread == pytest.approx(0.3, rel=4 / np.sqrt(2 * found.df))
    with pytest.raises(InvalidValue, match=r"unknown metric 'lost'\. Did you mean 'loss'"):
        read_pilot(tmp_path / "pilot", "lost")


def test_a_pilot_takes_no_effect_of_a_tuned_setting_and_no_diverged_run_for_spread(tmp_path: Path) -> None:
    def tuned(config: dict[str, int], seed: int) -> dict[str, float]:
        diverged = (config["a"], config["lr"], seed) == (1, 2, 3)
        score = noisy({"a": config["a"], "lr": config["lr"]}, seed)["score"] + 50.0 * config["lr"]
        return {"score": 1e6 if diverged else score, "diverged": float(diverged)}

    study = Study(tuned, two_level(1), seeds=12, tune={"lr": [1, 2, 3]}, directory=tmp_path, workers=0)
    study.run(progress=False)
    found = read_pilot(tmp_path)
    assert found.df == 5 * 11 - 1
    assert found.spread == pytest.approx(0.1, rel=4 / np.sqrt(2 * found.df))


def test_a_pilot_that_repeats_nothing_is_refused(tmp_path: Path) -> None:
    Study(noisy, two_level(2), seeds=1, directory=tmp_path / "one", workers=0).run(progress=False)
    with pytest.raises(InvalidValue, match="two or more seeds"):
        read_pilot(tmp_path / "one")
    Ledger.create_or_open(tmp_path / "none", {}, [(0, 0, {"a": 0})]).close()
    with pytest.raises(InvalidValue, match="two or more seeds"):
        read_pilot(tmp_path / "none")
    with pytest.raises(StorageError, match="no study here"):
        read_pilot(tmp_path / "absent")


CURVE = [
    "study",
    "curve",
    "--epochs",
    "2",
    "-f",
    "dropout=0,0.1,0.2",
    "-f",
    "norm=none,layer",
    "-f",
    "weight_decay=0,0.1",
]


def test_the_command_line_plans_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*CURVE, "--design", "optimal", "--runs", "8", "--interactions", "norm:weight_decay"]
    done = CliRunner().invoke(app, [*asked, "--plan", "--spread", "0.02", "--delta", "0.05", "--workers", "2"])
    assert done.exit_code == 0, done.output
    assert "8 treatments × 5 seeds = 40 trials" in done.output
    assert "Estimates the main effects and norm × weight_decay" in done.output
    assert "To see 0.05 with probability 0.8" in done.output
    assert "It takes about" in done.output
    assert not list(tmp_path.iterdir())


def rough(config: dict[str, int], seed: int) -> dict[str, float]:
    return {"valid_rmse": np.random.default_rng([seed, *config.values()]).normal(0, 0.1)}


def test_the_command_line_plans_from_a_pilot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Study(rough, two_level(2), seeds=4, directory="pilot", workers=0).run(progress=False)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = CliRunner().invoke(app, [*CURVE, "--plan", "--pilot", "pilot"])
    assert done.exit_code == 0, done.output
    words = " ".join(done.output.split())
    assert f"The spread is the pilot's: {read_pilot('pilot').spread:.3g}, with 95 % between" in words
    assert "It takes about" in words
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}.items() <= before.items()


def test_what_only_a_plan_needs_is_refused_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*CURVE, "--delta", "0.1"])
    assert isinstance(done.exception, InvalidValue)
    assert "be given with --plan" in str(done.exception)
