"""The examples run as their docstrings say."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
HOMEOSTAT = [sys.executable, "-m", "homeostat"]
COMMANDS = {
    "own_task.py": [*HOMEOSTAT, "study", "own_task:build", "-f", "norm=none,batch", "--seeds", "2", "--epochs", "2"],
    "any_function.py": [sys.executable, "any_function.py"],
    "ill_training.py": [*HOMEOSTAT, "examine", "ill_training:training", "--budget", "100 steps", "--out", "ill.html"],
}
STUDIES = ("own_task.py", "any_function.py")


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(COMMANDS)


def test_the_ill_training_is_found_ill(tmp_path):
    shutil.copy(EXAMPLES / "ill_training.py", tmp_path)
    command = COMMANDS["ill_training.py"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode in (4, 5), done.stderr  # a warning, an error
    assert "vanishing" in (tmp_path / "ill.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STUDIES)
def test_example_ends_in_a_report(tmp_path, name):
    shutil.copy(EXAMPLES / name, tmp_path)
    done = subprocess.run(COMMANDS[name], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Report:" in done.stdout
    assert list(tmp_path.glob("studies/*/report.html"))
