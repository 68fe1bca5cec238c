"""A study as its user sees it: from factors to a report, again and again."""

import os
import subprocess
import sys
import warnings
from contextlib import closing
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from objectives import note, notes

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.study.design import Design, full_factorial
from homeostat.study.show import export
from homeostat.study.state.ledger import Ledger
from homeostat.study.study import Study, StudyInterrupted, StudyResult

FACTORS = {"norm": ["none", "batch"], "dropout": [0, 0.5]}


def measured(config, seed):
    """Batch normalization helps by 5 points, dropout hurts by 2."""
    score = 0.8 + 0.05 * (config["norm"] == "batch") - 0.04 * config["dropout"] + 0.001 * seed
    return {"valid_accuracy": score, "test_accuracy": score - 0.01}


def test_a_study_goes_from_factors_to_a_report_and_is_run_but_once(tmp_path, capsys):
    log, gauge = tmp_path / "log", tmp_path / "study"

    def objective(config, seed, trial):
        note(log, "run")
        for epoch in range(3):
            trial.report(epoch, valid_accuracy=0.1 * epoch)
        return measured(config, seed)

    study = Study(
        objective, FACTORS, 3, directory=gauge, workers=2, describe=lambda config: f"norm = {config['norm']!r}\n"
    )
    result = study.run()
    assert isinstance(result, StudyResult)
    assert result.recommendation.config == {"norm": "batch", "dropout": 0}
    assert result.trials["status"].tolist() == ["done"] * 12
    assert len(result.curves) == 36
    effect = result.analysis.effects.set_index("label")["estimate"]["norm: none → batch"]
    assert effect == pytest.approx(0.05)
    assert result.report.read_text().startswith("<!doctype html>")
    assert (gauge / "recipe.toml").read_text() == "norm = 'batch'\n"
    assert pd.read_csv(gauge / "trials.csv")["valid_accuracy"].tolist() == result.trials["valid_accuracy"].tolist()
    assert len(pd.read_csv(gauge / "treatments.csv")) == 4
    assert "verdict" in pd.read_csv(gauge / "effects.csv")
    assert result.analysis.summary.split(":")[0] in result._repr_html_()
    assert "4 treatments × 3 seeds = 12 trials" in capsys.readouterr().err
    page = result.report.read_text()

    again = Study(
        objective, FACTORS, 3, directory=gauge, workers=1, describe=lambda config: f"norm = {config['norm']!r}\n"
    ).run()
    assert len(notes(log)) == 12
    assert again.trials.equals(result.trials)
    assert again.report.read_text() == page


def test_an_interrupted_study_resumes_in_this_process_too(tmp_path):
    calls = tmp_path / "calls"

    def objective(config, seed, patience=3):
        note(calls, "call")
        if len(notes(calls)) == patience:
            raise KeyboardInterrupt
        return measured(config, seed)

    study = Study(objective, FACTORS, 2, directory=tmp_path / "study", workers=0)
    with pytest.raises(StudyInterrupted, match=r"2 of 8 trials are done; the same command resumes\."):
        study.run(progress=False)
    result = study.run(progress=False)
    assert result.trials["attempt"].tolist() == [1, 1, 2, 1, 1, 1, 1, 1]
    assert len(notes(calls)) == 9


def test_nothing_is_printed_without_progress(tmp_path, capfd):
    Study(measured, {"norm": ["none", "batch"], "dropout": [0, 1]}, 2, directory=tmp_path, workers=1).run(False)
    assert capfd.readouterr() == ("", "")


def test_failed_trials_are_told_counted_and_do_not_stop_the_others(tmp_path, capsys):
    def objective(config, seed):
        if config["norm"] == "batch" and seed == 1 and config["dropout"]:
            raise ValueError("this pair does not work")
        return measured(config, seed)

    result = Study(objective, FACTORS, 3, directory=tmp_path, workers=0, retries=1).run()
    assert result.analysis.failed == 1
    told = capsys.readouterr().err
    where = "(norm=batch, dropout=0.5, seed 1)"
    assert f"{where} failed and will be tried again: ValueError: this pair does not work" in told
    assert f"{where} failed and is given up: ValueError: this pair does not work" in told


def test_trials_that_were_given_up_run_again_where_that_is_asked_for(tmp_path, capsys):
    calls = tmp_path / "calls"

    def objective(config, seed, trial):
        note(calls, f"{config['norm']}:{seed}")
        if config["norm"] == "batch" and seed == 1 and not (trial.directory / "far").exists():
            if (tmp_path / "enough").exists():
                note(trial.directory / "far", "here")
            raise ValueError("not enough time")
        return measured(config | {"dropout": 0}, seed)

    study = Study(objective, {"norm": ["none", "batch"]}, 2, directory=tmp_path / "study", workers=0, retries=1)
    assert study.run().trials["status"].tolist().count("quarantined") == 1
    assert "Given up before" not in capsys.readouterr().err
    (tmp_path / "enough").touch()
    study.run()  # who does not ask for it is told how
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "Given up before: 1 trial. Once the cause is gone, --retry-failed (retry_failed=True) runs them again." in said
    )
    assert len(notes(calls)) == 5
    result = study.run(retry_failed=True)
    assert result.trials["status"].tolist() == ["done"] * 4
    assert sorted(result.trials["attempt"]) == [1, 1, 1, 4]  # the first new one failed too, and was forgiven anew
    assert study.run(retry_failed=True).trials.equals(result.trials)


def test_a_study_without_any_result_says_why(tmp_path):
    def objective(config, seed):
        raise ValueError("nothing works")

    study = Study(objective, FACTORS, 2, directory=tmp_path, workers=0)
    for _ in range(2):
        with pytest.raises(HomeostatError, match=r"no trial ended well.*ValueError: nothing works"):
            study.run(progress=False)


def test_another_configuration_in_the_same_directory_is_refused(tmp_path):
    Study(measured, FACTORS, 2, directory=tmp_path, workers=0, base={"lr": 0.1}).run(progress=False)
    other = {"norm": ["none", "layer"], "dropout": [0, 0.5]}
    with pytest.raises(InvalidValue) as caught:
        Study(measured, other, 3, directory=tmp_path, base={"lr": 0.2}).run(progress=False)
    said = str(caught.value)
    assert "base.lr: 0.1 → 0.2" in said
    assert "design.factors.norm: ['none', 'batch'] → ['none', 'layer']" in said
    assert "design.seeds: [0, 1] → [0, 1, 2]" in said


def test_a_study_with_another_fraction_in_the_same_directory_is_refused_with_the_difference(tmp_path):
    factors = {name: [0, 1] for name in "abcdefghi"}
    study = Study(lambda config, seed: {"y": 1.0}, factors, 1, design="fractional", resolution=4, directory=tmp_path)
    positions = np.roll(study.design.positions, 1, axis=1)
    before = replace(Design.at(study.design.factors, positions, 1, "fractional"), resolution=4)
    with closing(Ledger.create_or_open(tmp_path, study.configuration | {"design": before.to_dict()}, ())):
        pass
    with pytest.raises(InvalidValue, match=r"design\.treatments: "):
        study.run(progress=False)


def test_the_default_directory_is_that_of_the_question():
    def first(config, seed):
        return {"y": 1.0}

    def second(config, seed):
        return {"y": 2.0}

    places = {
        str(Study(first, FACTORS).directory),
        str(Study(first, FACTORS, 3).directory),
        str(Study(first, FACTORS, base={"data": "abc"}).directory),
        str(Study(first, FACTORS, margin=0.01).directory),
        str(Study(second, FACTORS).directory),
        str(Study(second, FACTORS, name="../é").directory),
    }
    assert len(places) == 6
    assert str(Study(first, FACTORS, 5, workers=3, retries=7).directory) in places
    assert all(place.startswith("studies" + os.sep) and ".." not in place for place in places)
    assert Study(first, FACTORS).directory.name.startswith("first-")


def test_code_that_has_changed_is_another_study():
    def version(text):
        scope = {}
        exec(f"def objective(config, seed):\n    return {{'y': {text}}}", scope)
        return Study(scope["objective"], FACTORS).directory

    assert version("1.0") == version("1.0") != version("2.0")


def test_the_response_is_what_the_objective_says_or_returns_first(tmp_path):
    class Objective:
        response, goal, name = "rmse", "minimize", "my task"

        def __call__(self, config, seed):
            return {"seconds_per_epoch": 1.0, "rmse": 1.0 - (config["norm"] == "batch") + 0.1 * seed}

    study = Study(Objective(), {"norm": ["none", "batch"]}, 3, directory=tmp_path / "a", workers=0)
    assert (study.response, study.goal, study.name) == ("rmse", "minimize", "my task")
    assert study.run(progress=False).recommendation.config == {"norm": "batch"}
    asked = Study(Objective(), {"norm": ["none", "batch"]}, response="seconds_per_epoch", goal="maximize")
    assert (asked.response, asked.goal) == ("seconds_per_epoch", "maximize")
    plain = Study(measured, FACTORS, 2, directory=tmp_path / "b", workers=0).run(progress=False)
    assert plain.analysis.response == "valid_accuracy"

    def flagged(config, seed):
        return {"diverged": 0.0, **measured(config, seed)}

    found = Study(flagged, FACTORS, 2, directory=tmp_path / "c", workers=0).run(progress=False)
    assert found.analysis.response == "valid_accuracy"


def test_the_design_is_the_full_one_as_long_as_that_is_affordable():
    assert Study(measured, FACTORS).design.kind == "full"
    many = Study(measured, {f"f{number}": [0, 1] for number in range(7)}).design
    assert (many.kind, many.resolution) == ("fractional", 7)


def test_an_objective_that_can_is_asked_about_every_treatment_before_anything_is_written(tmp_path):
    asked = []

    class Choosy:
        def check(self, configs):
            asked.append(list(configs))
            if any(config["norm"] == "layer" for config in asked[-1]):
                raise InvalidValue("no layer norm here")

        def __call__(self, config, seed):
            return measured(config, seed)

    study = Study(Choosy(), FACTORS, 2, tune={"lr": [0.1, 1.0]}, directory=tmp_path / "study", workers=0)
    for _ in range(2):
        study.run(progress=False)
    assert asked == [study.configs]  # a study that goes on has been asked about
    assert len(study.configs) == 8
    assert study.configs[1] == {"norm": "none", "dropout": 0, "lr": 1.0}
    other = Study(Choosy(), {"norm": ["none", "layer"]}, 2, directory=tmp_path / "other", workers=0)
    with pytest.raises(InvalidValue, match="no layer norm here"):
        other.run(progress=False)
    assert not (tmp_path / "other").exists()


def test_levels_that_are_one_thing_under_two_names_are_named(tmp_path):
    def objective(config, seed):
        return {"y": seed + (config["norm"] == "batch")}

    found = Study(objective, {"norm": ["none", "keep", "batch"]}, 3, directory=tmp_path, workers=0).run(progress=False)
    assert [text.split(" gave")[0] for text in found.analysis.warnings if "gave" in text] == ["norm=none and norm=keep"]


def test_a_design_says_everything():
    design = full_factorial(FACTORS, [7, 8])
    assert Study(measured, design).design is design
    with pytest.raises(InvalidValue, match="besides a Design"):
        Study(measured, design, seeds=3)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"objective": 3}, InvalidType, "objective must be callable"),
        ({"goal": "upward"}, InvalidValue, "unknown goal 'upward'"),
        ({"response": "diverged"}, InvalidValue, "response must be a metric"),
        ({"margin": -1}, InvalidValue, "margin must be finite and at least 0"),
        ({"margin": "1"}, InvalidType, "margin must be a number"),
        ({"workers": -1}, InvalidValue, "workers must be at least 0, but got -1"),
        ({"workers": 1.5}, InvalidType, "workers must be an integer"),
        ({"retries": True}, InvalidType, "retries must be an integer"),
        ({"base": {"task": object()}}, InvalidType, "base must be a mapping that JSON can hold"),
        ({"seeds": [2**70]}, InvalidValue, "each seed must fit into 64 bits"),
        ({"factors": {"norm": ["none"]}}, InvalidValue, "two or more"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(tmp_path, changes, kind, message):
    settings = {"objective": measured, "factors": FACTORS, "directory": tmp_path / "study"} | changes
    with pytest.raises(kind, match=message):
        Study(**settings)
    assert not (tmp_path / "study").exists()


def test_a_script_needs_no_main_guard_and_no_torch(tmp_path):
    (tmp_path / "script.py").write_text(
        "print('script')\n"
        "import sys\n"
        "from homeostat.study.study import Study\n"
        "scale = 0.5\n"
        "def objective(config, seed):\n"
        "    return {'y': scale * config['x'] + 0.01 * seed, 'torch': float('torch' in sys.modules)}\n"
        "result = Study(objective, {'x': [0, 1]}, 2, workers=2).run()\n"
        "print(result.trials['torch'].tolist(), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout == "script\n[0.0, 0.0, 0.0, 0.0] False\n", done.stderr
    (folder,) = (tmp_path / "studies").iterdir()
    assert folder.name.startswith("objective-")


def test_a_partial_is_named_and_known_by_its_function():
    study = Study(partial(measured), FACTORS)
    assert study.name == "measured"
    assert study.configuration["objective"] == Study(measured, FACTORS).configuration["objective"]


def test_tables_are_safe_to_open_in_a_spreadsheet(tmp_path):
    frame = pd.DataFrame(
        {
            "=cmd": pd.Series(["=1+1", "@sum", None, "-x", "plain"], dtype=object),
            "level": pd.Series([None, True, 0.5, 1, "+"], dtype=object),
            "y": [-1.5, float("nan"), float("inf"), 0.1, 1e-300],
            "warnings": pd.Series([["a", "=b"], [], ["=c"], [], []], dtype=object),
        }
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export.write_csv(frame, tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text().splitlines() == [
        "'=cmd,level,y,warnings",
        "'=1+1,,-1.5,a; =b",
        "'@sum,True,NaN,",
        ",0.5,inf,'=c",
        "'-x,1,0.1,",
        "plain,'+,1e-300,",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_warnings_that_no_encoding_holds_are_written_out(tmp_path):
    def objective(config, seed):
        warnings.warn("odd\udcff", stacklevel=1)
        return {"y": config["x"] + 0.1 * seed}

    found = Study(objective, {"x": [0, 1]}, 2, directory=tmp_path, workers=0).run(progress=False)
    assert found.report.exists()
    assert pd.read_csv(tmp_path / "trials.csv")["warnings"][0] == "UserWarning: odd\\udcff"


def test_names_and_errors_do_not_command_the_terminal(tmp_path, capsys):
    def objective(config, seed):
        if seed == 1:
            raise ValueError("\x1b]0;owned\x07 :x:")
        return {"y": float(len(config["x"]))}

    study = Study(objective, {"x": ["a", "b\x1b[2J"]}, 2, directory=tmp_path / "s", workers=0, retries=0)
    study.run()
    said = capsys.readouterr().err
    assert "b�[2J" in said
    assert "ValueError: �]0;owned� :x:" in said
    assert "\x1b" not in said


def test_an_objective_that_cannot_be_sent_leaves_no_directory(tmp_path):
    with open(tmp_path / "file", "w") as file:
        study = Study(lambda config, seed: {"y": file.fileno()}, FACTORS, directory=tmp_path / "study", workers=1)
        with pytest.raises(InvalidType, match="be something that can be sent to workers"):
            study.run(progress=False)
    assert not (tmp_path / "study").exists()
