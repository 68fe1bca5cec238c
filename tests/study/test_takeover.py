"""What an earlier study has done is taken over by one that needs it too, and not run again."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from homeostat.cli import app
from homeostat.errors import InvalidValue
from homeostat.study.design import fold_over, follow_up, fractional_factorial, full_factorial
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError
from homeostat.study.study import Study
from homeostat.study.takeover import Earlier

FACTORS = {"norm": ["none", "batch"], "drop": [0, 0.5], "decay": [0, 1]}


def score(config, seed, trial):
    trial.step(0, size=seed + 0.5)
    trial.report(0, loss=seed / 3)
    noise = np.random.default_rng([seed, len(config["norm"]), int(2 * config["drop"]), int(config["decay"])]).normal()
    return {"y": (config["norm"] == "batch") + config["drop"] * config["decay"] + 0.01 * noise}


def counted_study(calls, design, folder, **options):
    """A study in this process that remembers what was run."""

    def objective(config, seed, trial):
        calls.append((tuple(config.values()), seed))
        return score(config, seed, trial)

    return Study(objective, design, directory=folder, workers=0, **options)


@pytest.fixture
def first(tmp_path):
    calls = []
    design = fractional_factorial(FACTORS, seeds=3, resolution=3)
    counted_study(calls, design, tmp_path / "first").run(progress=False)
    assert len(calls) == 12
    return design


@pytest.mark.parametrize("further", [fold_over, lambda design: follow_up(design, ["drop:decay"])])
def test_a_follow_up_runs_only_what_is_new_and_equals_the_whole(tmp_path, first, further):
    calls, design = [], further(first)
    result = counted_study(calls, design, tmp_path / "second", after=tmp_path / "first").run(progress=False)
    assert len(calls) == design.trials - 12
    whole = counted_study([], design, tmp_path / "whole").run(progress=False)
    pd.testing.assert_frame_equal(result.trials.drop(columns="seconds"), whole.trials.drop(columns="seconds"))
    pd.testing.assert_frame_equal(result.curves, whole.curves)
    pd.testing.assert_frame_equal(result.analysis.effects, whole.analysis.effects)
    assert f"12 trials of {tmp_path / 'first'}" in result.report.read_text(encoding="utf-8")


def test_steps_come_along(tmp_path, first):
    counted_study([], fold_over(first), tmp_path / "second", after=tmp_path / "first").run(progress=False)
    ledger = Ledger.open(tmp_path / "second", read_only=True)
    assert sorted(frame["size"][0] - frame["seed"][0] for frame in ledger.vitals()) == [0.5] * 24
    ledger.close()


def test_more_seeds_are_judged_as_one_who_has_looked(tmp_path, first):
    calls = []
    design = replace(first, seeds=(0, 1, 2, 3, 4))
    result = counted_study(calls, design, tmp_path / "more", after=tmp_path / "first").run(progress=False)
    assert sorted({seed for _, seed in calls}) == [3, 4]
    fixed = counted_study([], design, tmp_path / "fixed").run(progress=False)
    widths = [(found.analysis.effects["high"] - found.analysis.effects["low"]) for found in (result, fixed)]
    assert (widths[0] > widths[1]).all()
    assert "Seeds were added one by one" in result.report.read_text(encoding="utf-8")


def test_seeds_that_were_taken_from_a_study_with_an_aim_are_judged_as_one_who_has_looked(tmp_path):
    found = counted_study([], full_factorial(FACTORS, 30), tmp_path / "aimed", until=0.01).run(progress=False)
    seeds = len(found.analysis.design.seeds)
    assert seeds < 30
    calls, design = [], full_factorial(FACTORS, seeds)
    result = counted_study(calls, design, tmp_path / "after", after=tmp_path / "aimed").run(progress=False)
    assert calls == []
    fixed = counted_study([], design, tmp_path / "fixed").run(progress=False)
    widths = [(found.analysis.effects["high"] - found.analysis.effects["low"]) for found in (result, fixed)]
    assert (widths[0] > widths[1]).all()
    assert "Seeds were added one by one" in result.report.read_text(encoding="utf-8")


def test_a_study_is_not_tuned_after_one_has_looked(tmp_path):
    def study(folder, seeds, **options):
        settings = {"directory": tmp_path / folder, "workers": 0, "tune": {"lr": [1, 2]}}
        return Study(lambda config, seed: {"y": config["lr"] * seed}, {"x": [0, 1]}, seeds, **settings, **options)

    study("first", 2).run(progress=False)
    after = {"after": tmp_path / "first"}
    assert study("same", 2, **after).done_before == 8
    with pytest.raises(InvalidValue, match="after with tune must add no seeds, nor follow a study with until"):
        study("more", 3, **after)


def test_a_resumed_study_takes_over_nothing_twice(tmp_path, first):
    calls, design = [], fold_over(first)
    for _ in range(2):
        counted_study(calls, design, tmp_path / "second", after=tmp_path / "first").run(progress=False)
    assert len(calls) == 12
    ledger = Ledger.open(tmp_path / "second", read_only=True)
    assert ledger.adopted == {str(tmp_path / "first"): 12}
    ledger.close()


def test_failed_trials_are_run_again(tmp_path):
    def objective(config, seed):
        if config["x"] == 1 and (tmp_path / "broken").exists():
            raise ValueError("no")
        return {"y": float(config["x"])}

    (tmp_path / "broken").touch()
    settings = {"seeds": 2, "workers": 0, "retries": 0}
    Study(objective, {"x": [0, 1]}, directory=tmp_path / "first", **settings).run(progress=False)
    (tmp_path / "broken").unlink()
    again = Study(objective, {"x": [0, 1]}, directory=tmp_path / "second", after=tmp_path / "first", **settings)
    assert again.run(progress=False).trials["status"].tolist() == ["done"] * 4


def test_levels_that_are_equal_but_not_the_same_are_run(tmp_path):
    calls = []
    counted_study([], fractional_factorial(FACTORS, seeds=2), tmp_path / "first").run(progress=False)
    other = FACTORS | {"decay": [0.0, 1.0]}
    counted_study(calls, fractional_factorial(other, seeds=2), tmp_path / "b", after=tmp_path / "first").run(False)
    assert len(calls) == 8


def test_another_base_or_the_same_directory_or_none_is_refused(tmp_path, first):
    with pytest.raises(InvalidValue, match=r"other settings \(there → here\):\n  base.lr: \(not set\) → 0.1"):
        counted_study([], fold_over(first), tmp_path / "x", after=tmp_path / "first", base={"lr": 0.1})
    with pytest.raises(InvalidValue, match="after must be another study"):
        counted_study([], first, tmp_path / "first", after=tmp_path / "first")
    with pytest.raises(StorageError, match="there is no study here"):
        Earlier.read(tmp_path / "nowhere")
    assert not (tmp_path / "x").exists()


def test_trials_under_different_settings_are_not_taken_over(tmp_path, first):
    """Those of a study that was resumed anyway: which of them had which settings is not known."""
    counted_study([], first, tmp_path / "mixed", base={"lr": 0.1}).run(progress=False)
    counted_study([], first, tmp_path / "mixed", base={"lr": 0.2}).run(progress=False, anyway=True)
    for lr, line in ((0.1, "base.lr: 0.2 → 0.1"), (0.2, "base.lr: 0.1 → 0.2")):
        with pytest.raises(InvalidValue, match=f"or resumed anyway, with other settings(?s:.*){line}"):
            counted_study([], fold_over(first), tmp_path / "x", after=tmp_path / "mixed", base={"lr": lr})


def test_an_earlier_study_may_have_had_another_margin(tmp_path, first):
    counted_study([], first, tmp_path / "first", margin=0.1).run(progress=False, anyway=True)
    study = counted_study([], fold_over(first), tmp_path / "second", after=tmp_path / "first", margin=0.2)
    assert study.done_before == 12


def test_where_nothing_is_the_same_that_is_said(tmp_path, first, capsys):
    study = counted_study([], fractional_factorial(FACTORS, seeds=[7, 8]), tmp_path / "b", after=tmp_path / "first")
    assert study.done_before == 0
    study.run()
    assert f"Nothing is taken over from {tmp_path / 'first'}" in capsys.readouterr().err.replace("\n", "")


def run(*words):
    return CliRunner().invoke(app, ["study", "spirals", "--epochs", "1", "--workers", "0", *map(str, words)])


def test_the_command_line_follows_up_and_adds_seeds(tmp_path):
    factors = ["-f", "norm=none,batch", "-f", "dropout=0,0.2", "-f", "init=keep,he_normal"]
    done = run(*factors, "--design", "fractional", "--resolution", "3", "--seeds", "2", "--out", tmp_path / "a")
    assert done.exit_code == 0, done.output
    done = run(*factors, "--after", tmp_path / "a", "--plan", "--spread", "0.01")  # its seeds are the default
    assert "8 treatments × 2 seeds = 16 trials" in done.output, done.output
    assert "8 of the trials are done" in done.output
    done = run("--after", tmp_path / "a", "--design", "fold-over", "--out", tmp_path / "b")
    assert done.exit_code == 0, done.output
    done = run("--after", tmp_path / "b", "--seeds", "3", "--out", tmp_path / "c")
    assert done.exit_code == 0, done.output
    done = run("--after", tmp_path / "c", "--seeds", "4", "--plan", "--spread", "0.01")
    assert f"24 of the trials are done in {tmp_path / 'c'}" in done.output, done.output
    ledgers = [Ledger.open(tmp_path / name, read_only=True) for name in "abc"]
    assert [ledger.counts().done for ledger in ledgers] == [8, 16, 24]
    assert [list(ledger.adopted.values()) for ledger in ledgers] == [[], [8], [16]]
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--design", "fold-over"], "--design must go with --after and without --factor"),
        (["--after", "first", "--design", "full"], "--design must be fold-over or follow-up with --after"),
        (["--after", "first", "--design", "follow-up"], "--interactions must name what a follow-up separates"),
        (["--after", "first", "--runs", "4"], "--runs must be left out with --after and without --factor"),
        (["--after", "first", "--resolution", "4"], "--resolution must be left out"),
        (["--after", "first", "--design", "fold-over", "--interactions", "a:b"], "--interactions must be left out"),
        (
            ["--after", "first", "--design", "follow-up", "--interactions", "norm:drop", "--resolution", "3"],
            "--resolution must be left out",
        ),
        (["--after", "first", "--design", "fold-over:nrm"], "Did you mean 'norm'"),
        (["--after", "nowhere"], "there is no study here"),
    ],
)
def test_what_the_command_line_cannot_follow_up_is_refused(tmp_path, first, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    done = run(*words)
    assert message in str(done.exception)
