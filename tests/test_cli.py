"""The command line as a person uses it: whole processes, real output, exit codes; refusals by `main` in this one."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import safetensors.torch

from homeostat import cli
from homeostat.errors import HomeostatError

DIGITS = ["study", "digits", "-f", "norm=none,batch", "--seeds", "2", "--epochs", "1", "--workers", "1"]


def homeostat(*words, cwd=None):
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "homeostat", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment, timeout=250)


def test_help_loads_nothing_heavy():
    code = "import sys; from homeostat import cli; print(sorted({'torch', 'pandas', 'numpy'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"
    done = homeostat("--help")
    assert done.returncode == 0
    assert "study" in done.stdout


@pytest.mark.parametrize("command", ["study", "status", "fit", "fold"])
def test_every_command_shows_an_example(command):
    done = homeostat(command, "--help")
    assert f"Example: homeostat {command}" in done.stdout


def test_version():
    assert homeostat("--version").stdout.startswith("homeostat 0.")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A study as the command left it where it likes, with what it printed; for whoever does not change it."""
    folder = tmp_path_factory.mktemp("digits")
    done = homeostat(*DIGITS, cwd=folder)
    assert done.returncode == 0, done.stderr
    (study,) = (folder / "studies").iterdir()
    return study, done.stdout


def test_a_study_ends_in_a_report_and_a_recipe_and_the_same_command_reports_again(digits):
    study, printed = digits
    names = {path.name for path in study.iterdir()}
    assert {"report.html", "recipe.toml", "study.sqlite", "trials.csv", "effects.csv"} <= names
    assert "Report:" in printed
    page = (study / "report.html").read_text()
    assert "norm" in page
    assert "homeostat study digits" in page
    assert homeostat(*DIGITS, cwd=study.parent.parent).returncode == 0
    assert (study / "report.html").read_text() == page
    assert list(study.parent.iterdir()) == [study]


def test_the_recommended_recipe_is_one_that_fit_takes(digits, tmp_path):
    done = homeostat("fit", "digits", "--recipe", digits[0] / "recipe.toml", "--out", tmp_path / "fit")
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads((tmp_path / "fit" / "metrics.json").read_text())["test_accuracy"] <= 1


def test_a_fit_is_folded_and_exported(tmp_path):
    settings = ("--model", "cnn", "--set", "norm=batch", "--set", "dropout=0.2", "--epochs", "1")
    assert homeostat("fit", "digits", *settings, "--out", tmp_path / "fit").returncode == 0
    onnx, weights = tmp_path / "model.onnx", tmp_path / "folded" / "model.safetensors"
    done = homeostat("fold", tmp_path / "fit", "--task", "digits", "--onnx", onnx, "--out", weights)
    assert done.returncode == 0, done.stderr
    assert "2 folded, 0 stay, 2 dropout layers removed" in done.stdout
    assert onnx.stat().st_size > 1000
    assert not [name for name in safetensors.torch.load_file(weights) if "running_mean" in name]


def test_a_model_of_ones_own_is_folded(tmp_path):
    lines = ["import torch", "from torch import nn", "def build():", "    layers = nn.Linear(3, 4), nn.BatchNorm1d(4)"]
    (tmp_path / "mine.py").write_text("\n".join([*lines, "    return nn.Sequential(*layers), torch.randn(5, 3)\n"]))
    done = homeostat("fold", "mine:build", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1 folded" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fold", "fits/digits"], "add --task digits"),
        (["fold", "fits/digits", "--task", "digits"], "cannot read 'fits/digits/recipe.toml'"),
        (["fold", "json:dumps"], "callable without arguments"),
        (["fold", "sys:getrecursionlimit"], "must return a model and a sample"),
    ],
)
def test_what_cannot_be_folded_is_named(tmp_path, words, message):
    done = homeostat(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_seeds_are_added_until_enough_is_known(tmp_path):
    words = ["study", "curve", "-f", "dropout=0,0.2", "--epochs", "1", "--workers", "1", "--out", tmp_path / "study"]
    done = homeostat(*words, "--until", "1000")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "of at most 30." in said
    assert "were saved." in said
    again = homeostat(*words, "--until", "2000")  # the same study
    assert again.returncode == 0, again.stderr
    assert said.partition(" Report:")[0] in " ".join(again.stdout.split())


def test_a_study_file_says_it_all_and_each_treatment_is_judged_at_its_own_learning_rate(tmp_path):
    (tmp_path / "study.toml").write_text(
        'task = "curve"\nseeds = 2\n[recipe]\nepochs = 2\nwidths = "8"\n'
        '[factors]\nnorm = ["none", "layer"]\n[tune]\nlr = [0.001, 0.01]\n'
    )
    words = ["study", "--config", tmp_path / "study.toml", "--workers", "1", "--out", tmp_path / "study"]
    plan = homeostat(*words, "--plan")
    assert plan.returncode == 0, plan.stderr
    assert "Each at 2 levels (2 of lr), to be judged at its best: 8 trials." in plan.stdout
    assert not (tmp_path / "study").exists()
    done = homeostat(*words)
    assert done.returncode == 0, done.stderr
    assert "is judged by test" in " ".join(done.stdout.split())
    assert "norm" in done.stdout
    assert "lr = " in (tmp_path / "study" / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["study"], "the task must be named"),
        (["study", "digts"], "Did you mean 'digits'"),
        (["study", "digits", "-f", "nrom=none,batch"], "unknown factor 'nrom'. Did you mean 'norm'"),
        (["study", "digits", "-f", "norm=none,bach"], "norm=bach: Recipe: unknown norm 'bach'. Did you mean 'batch'"),
        (["study", "digits", "-f", "norm"], "name=level,level"),
        (["study", "digits", "-f", "norm=batch"], "two or more"),
        (["study", "digits", "-f", "dropout=0,1.5"], "dropout=1.5: Recipe: dropout must be"),
        (["study", "digits", "-f", "norm=none,instance"], "norm=instance"),
        (["study", "curve", "-f", "label_smoothing=0,0.1"], "label_smoothing=0.1"),
        (["study", "digits", "--design", "half"], "unknown design 'half'"),
        (["study", "digits", "--response", "valid_acuracy"], "valid_accuracy"),
        (["study", "digits", "--set", "lr"], "must read key=value"),
        (["study", "digits", "--set", "lrr=1"], "unknown key 'lrr'. Did you mean 'lr'"),
        (["study", "digits", "--recipe", "absent.toml"], "cannot read 'absent.toml'"),
        (["study", "digits", "--seeds", "0"], "seeds"),
        (["study", "digits", "--timeout", "soon"], "timeout must be positive and finite, but got 'soon'"),
        (["study", "digits", "--memory", "much"], "memory must be positive and finite, but got 'much'"),
        (["study", "digits", "--until", "soon"], "until must be a number or 'best', but got 'soon'"),
        (["study", "digits", "--until", "0.1", "--seeds", "2"], "seeds must be at least 3 with until"),
        (["study", "digits", "--until", "0.1", "--tune", "lr=0.01,0.1"], "until must not be given together with tune"),
        (["study", "digits", "--tune", "lrr=0.01,0.1"], "unknown factor 'lrr'. Did you mean 'lr'"),
        (["study", "digits", "-f", "lr=0.01,0.1", "--tune", "lr=0.01,0.1"], "tune 'lr' must be no factor of the study"),
        (
            ["study", "digits", "-f", "dropout=0,0.2", "--tune", "norm=none,bach"],
            "norm=bach: Recipe: unknown norm 'bach'",
        ),
        (["study", "digits", "--out", ""], "--out: the directory must have a name"),
        (["study", "digits", "--cpus", "2"], "--cpus: it must be given with --on"),
        (["study", "digits", "--on", "head:10001"], "address must be 'ray' or begin with 'ray://'"),
        (["study", "digits", "--track", "tensorbord"], "unknown tracker 'tensorbord'. Did you mean 'tensorboard'"),
        (["fit", "digits", "--set", "lr=1e9"], "lr * weight_decay must be at most 1"),
        (["study", "digits", "--model", "cnnn"], "Did you mean 'cnn'"),
        (["study", "digits", "--target", "price"], "target must be given for a table only"),
        (["fit", "digits", "--set", "dropout=2"], "dropout must be"),
    ],
)
def test_wrong_input_is_named_before_any_trial_and_leaves_nothing(tmp_path, words, message, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "argv", ["homeostat", *words])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_one_line_without_a_traceback(tmp_path):
    done = homeostat("study", "digits", "-f", "nrom=none,batch", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_errors_do_not_command_the_terminal(monkeypatch, capsys):
    def app():
        raise HomeostatError("no \x1b[2J\r here :x:")

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error: no �[2J here :x:\n"


def test_another_configuration_in_the_same_directory_is_refused_with_the_difference(digits, tmp_path):
    shutil.copytree(digits[0], tmp_path / "study")
    done = homeostat(*DIGITS, "--set", "lr=0.1", "--out", tmp_path / "study")
    assert done.returncode == 2
    assert "recipe.lr: (not set) → 0.1" in done.stderr
    done = homeostat(*DIGITS, "--set", "lr=0.1", "--out", tmp_path / "study", "--anyway")
    assert done.returncode == 0
    assert "Trials were run under different settings, because of anyway" in " ".join(done.stdout.split())


def test_names_that_look_like_markup_are_names(tmp_path):
    table = tmp_path / "[red].csv"
    table.write_text("a,b\n" + "".join(f"{number},{number % 2}\n" for number in range(40)))
    out = tmp_path / "[" / "bold] ☃"
    done = homeostat("fit", table, "--target", "b", "--epochs", "1", "--out", out)
    assert done.returncode == 0, done.stderr
    assert f"Weights, recipe and metrics: {out}" in done.stdout
    words = ["--target", "b", "--epochs", "1", "-f", "norm=none,batch", "--seeds", "1", "--out", tmp_path / "[" / "x]"]
    done = homeostat("study", table, *words)
    assert done.returncode == 0, done.stderr
    assert f"Report: {tmp_path / '[' / 'x]' / 'report.html'}" in done.stdout


def test_a_terminal_that_cannot_show_a_character_gets_another(tmp_path):
    command = [sys.executable, "-m", "homeostat", "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_study_runs_where_the_standard_streams_are_closed(tmp_path):
    command = [sys.executable, "-m", "homeostat", *DIGITS, "--out", str(tmp_path / "study")]
    closing = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, sys.argv[1:])"
    assert subprocess.run([sys.executable, "-c", closing, *command], check=False).returncode == 0
    assert (tmp_path / "study" / "report.html").exists()


def test_a_fit_says_which_setting_had_no_effect(tmp_path):
    done = homeostat("fit", "digits", "--epochs", "1", "--set", "mix_alpha=0.2", "--set", "adapt=bn", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "! mix_alpha has no effect: nothing is mixed" in done.stdout
    assert "! adapt='bn' found no batch normalization" in done.stdout
    assert "Warning" not in done.stderr
