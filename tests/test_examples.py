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
}


def test_every_example_is_run():
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_example_ends_in_a_report(tmp_path, name):
    shutil.copy(EXAMPLES / name, tmp_path)
    done = subprocess.run(COMMANDS[name], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Report:" in done.stdout
    assert list(tmp_path.glob("studies/*/report.html"))
