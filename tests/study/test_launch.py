"""Starting the fork server ahead of time, in whole processes, because a process has but one."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from homeostat.errors import HomeostatError
from homeostat.study.running import launch

STUDY = """
import os
from homeostat.study.running import launch

launch.warm(("json",))
from homeostat.study.study import Study

def objective(config, seed):
    return {"threads": float(os.environ["OMP_NUM_THREADS"]), "y": config["x"]}

result = Study(objective, {"x": [1, 2]}, seeds=2, workers=2, response="y", directory=DIRECTORY).run(progress=False)
assert result.trials["threads"].tolist() == [1.0] * 4
assert os.environ.get("OMP_NUM_THREADS") == "7"
print("done")
"""


def test_a_study_uses_the_server_that_was_warmed_and_its_environment(tmp_path):
    code = STUDY.replace("DIRECTORY", repr(str(tmp_path / "study")))
    environment = os.environ | {"OMP_NUM_THREADS": "7"}
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True, env=environment)
    assert done.stdout == "done\n", done.stderr


def test_a_server_that_was_not_needed_ends_with_its_process():
    code = (
        "from multiprocessing import forkserver; from homeostat.study.running import launch; launch.warm(('json',)); "
        "print(forkserver._forkserver._forkserver_pid)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    server = int(done.stdout)
    deadline = time.monotonic() + 30
    while psutil.pid_exists(server) and psutil.Process(server).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the fork server outlived its process"
        time.sleep(0.05)


def test_a_file_in_the_current_folder_that_is_called_like_a_module_of_pythons_does_not_break_the_server(tmp_path):
    here, script = tmp_path / "here", tmp_path / "bin" / "command.py"  # as for the homeostat command
    for folder in (here, script.parent):
        folder.mkdir()
    for name in ("json", "queue", "random"):
        (here / f"{name}.py").write_text("raise SystemError('not this one')")
    script.write_text(STUDY.replace("DIRECTORY", repr(str(tmp_path / "study"))))
    environment = os.environ | {"OMP_NUM_THREADS": "7"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=here)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_an_error_on_purpose_while_an_objective_is_packed_comes_through():
    class Refusing:
        def __reduce__(self):
            raise HomeostatError("the cache cannot be written")

    with pytest.raises(HomeostatError, match=r"\Athe cache cannot be written"):
        launch.packed(Refusing())
