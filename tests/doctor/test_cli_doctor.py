"""The doctor's commands as a person uses them: what is printed, what is written, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import invented_examinations as invented
import pytest
from typer.testing import CliRunner

from homeostat import cli, commands_doctor
from homeostat.doctor.rules import RULES
from homeostat.errors import HomeostatError

MINE = """
import torch
from torch import nn
import homeostat as hs

draw = torch.Generator().manual_seed(0)
x = torch.randn(300, 4, generator=draw)
data = x[:250], x[:250, :1]
held_out = x[250:], x[250:, :1]


def made(**settings):
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, **settings)
    return hs.Training(model, nn.MSELoss(), optimizer, data, held_out, batch_size=25, epochs=5)


def healthy():
    return made()


def maximizing():
    return made(maximize=True)


def no_training():
    return 3


def failing():
    raise ValueError("this data is gone")
"""
STEPS = ["--budget", "50 steps"]
runner = CliRunner()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's module, which is imported anew by each test."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def homeostat(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command, run in this process."""
    done = runner.invoke(cli.app, list(words))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_fault_is_shown_with_its_remedy_and_fails() -> None:
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS)
    assert code == commands_doctor.FAULTY == 5
    assert "OPT003" in out
    assert "maximiz" in out


def test_a_healthy_training_passes() -> None:
    code, out, _ = homeostat("examine", "mine:healthy", *STEPS)
    assert code == 0
    assert "Nothing is wrong" in out


def test_formats_go_to_standard_output_alone_and_can_be_read() -> None:
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS, "--format", "json")
    assert code == 5
    found = json.loads(out)
    assert "OPT003" in {finding["code"] for finding in found["findings"]}
    assert found["target"] == "mine:maximizing"


def test_the_suffix_of_the_file_says_the_format(folder: Path) -> None:
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS, "--out", "ci/found.sarif", "--fail-on", "never")
    assert code == 0
    assert "Written: ci/found.sarif" in out
    log = json.loads((folder / "ci" / "found.sarif").read_text())
    place = log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    line = MINE.splitlines().index("def maximizing():") + 1
    assert place == {"artifactLocation": {"uri": "mine.py"}, "region": {"startLine": line}}
    code, _, _ = homeostat("examine", "mine:maximizing", *STEPS, "--out", "page.html", "--fail-on", "never")
    page = (folder / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "rule-OPT003" in page


def test_accepted_findings_do_not_fail_and_new_ones_do(folder: Path) -> None:
    code, _, err = homeostat("examine", "mine:maximizing", *STEPS, "--write-baseline", "known.json")
    assert code == 0
    assert "accepted from now on: known.json" in err
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS, "--baseline", "known.json")
    assert code == 0
    assert "accepted, not shown" in out
    (folder / "known.json").write_text('{"accepted": []}')
    assert homeostat("examine", "mine:maximizing", *STEPS, "--baseline", "known.json")[0] == 5


def test_findings_are_chosen_by_code() -> None:
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS, "--select", "OPT003", "--format", "json")
    assert code == 5
    assert {finding["code"] for finding in json.loads(out)["findings"]} == {"OPT003"}
    code, out, _ = homeostat("examine", "mine:maximizing", *STEPS, "--ignore", "OPT003", "--format", "json")
    assert "OPT003" not in {finding["code"] for finding in json.loads(out)["findings"]}
    assert "OPT003" not in json.loads(out)["verdict"]


def test_a_repair_is_shown_as_lines_with_its_proof_and_written(folder: Path) -> None:
    code, out, _ = homeostat("repair", "mine:maximizing", *STEPS, "--out", "repaired")
    assert code == 0
    assert "Repaired by" in out
    assert "OPT003" in out
    names = {path.name for path in (folder / "repaired").iterdir()}
    assert names == {"report.html", "changes.diff", "model.safetensors"}
    diff = (folder / "repaired" / "changes.diff").read_text()
    assert all(line[:1] in "+-" for line in diff.splitlines())
    assert "Before and after" in (folder / "repaired" / "report.html").read_text()


def test_what_is_better_and_still_ill_is_not_called_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands_doctor, "repair_training", lambda *args, **settings: invented.repair("better"))
    code, out, _ = homeostat("repair", "mine:maximizing", *STEPS)
    assert code == commands_doctor.NOT_REPAIRED == 6
    assert "still ill" in out
    assert "With --unsafe" in out


def test_what_is_healthy_is_not_repaired(folder: Path) -> None:
    code, out, _ = homeostat("repair", "mine:healthy", *STEPS)
    assert code == 0
    assert "Nothing to repair" in out
    assert [path.name for path in folder.iterdir() if path.suffix not in (".py", "")] == []


def test_rules_are_explained_one_by_one_and_listed() -> None:
    code, out, _ = homeostat("explain")
    assert code == 0
    for rule in RULES:
        assert rule.code in out
    rule = RULES[0]
    code, out, _ = homeostat("explain", rule.code.lower())
    assert rule.slug in out
    assert "What it checks" in out
    family = rule.code[:3]
    listed = homeostat("explain", family)[1]
    assert {line.split()[0] for line in listed.splitlines()[1:]} >= {r.code for r in RULES if r.code[:3] == family}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["examine", "mine"], "must be named as module:function"),
        (["examine", "mine:no_training", *STEPS], "must return a homeostat.Training"),
        (["examine", "mine:helthy"], "Did you mean 'healthy'"),
        (["examine", "mine:failing"], "this data is gone"),
        (["examine", "mine:failing", "--select", "XYZ"], "--select: unknown code 'XYZ'"),
        (["examine", "mine:failing", "--format", "jsn"], "Did you mean 'json'"),
        (["examine", "mine:failing", "--fail-on", "info"], "unknown severity 'info'"),
        (["examine", "mine:failing", "--budget", "soon"], "budget must be a positive time"),
        (["examine", "mine:failing", "--out", ""], "--out: the file must have a name"),
        (["examine", "mine:failing", "--baseline", "none.json"], "--write-baseline makes the file"),
        (["repair", "mine:failing", "--out", " "], "--out: the directory must have a name"),
        (["explain", "SIG999999"], "explain: unknown code"),
    ],
)
def test_wrong_input_is_named_before_anything_is_run(folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(HomeostatError) as caught:
        homeostat(*words)
    assert message in str(caught.value)
    assert {path.name for path in folder.iterdir()} <= {"mine.py", "__pycache__"}


@pytest.mark.parametrize("command", ["examine", "repair", "explain"])
def test_every_command_shows_an_example(command: str) -> None:
    assert f"Example: homeostat {command}" in homeostat(command, "--help")[1]


def test_the_command_itself_leaves_with_the_code_and_keeps_its_output_clean(folder: Path) -> None:
    command = [sys.executable, "-m", "homeostat", "examine", "mine:maximizing", *STEPS, "--format", "sarif"]
    environment = os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 5
    assert json.loads(done.stdout)["version"] == "2.1.0"
    assert "Traceback" not in done.stderr
