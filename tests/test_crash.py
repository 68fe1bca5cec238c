"""A real study of real training that is killed and goes on, as whole processes."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd

STUDY = [sys.executable, "-m", "homeostat", "study", "digits", "--set", "norm=batch", "-f", "dropout=0,0.3"]
STUDY += ["--seeds", "2", "--epochs", "150"]
TIMES = ["seconds", "seconds_per_epoch", "attempt"]


def run(out, workers):
    command = [*STUDY, "--workers", str(workers), "--out", str(out)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return pd.read_csv(out / "trials.csv").drop(columns=TIMES)


def kill_once_training(out, how):
    """Start the study, send it a signal once a trial has kept another checkpoint, and wait for its end."""
    before = {path.name for path in out.glob("trials/*/epoch-*")}
    process = subprocess.Popen([*STUDY, "--workers", "2", "--out", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not {path.name for path in out.glob("trials/*/epoch-*")} - before:
        assert process.poll() is None, "the study ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, how)
    return process.wait(timeout=60)


def test_a_study_that_was_killed_and_interrupted_ends_as_one_by_a_single_worker_that_nothing_disturbed(tmp_path):
    assert kill_once_training(tmp_path / "study", signal.SIGKILL) == -signal.SIGKILL
    assert kill_once_training(tmp_path / "study", signal.SIGINT) == 130
    assert kill_once_training(tmp_path / "study", signal.SIGKILL) == -signal.SIGKILL
    undisturbed = run(tmp_path / "undisturbed", workers=1)
    pd.testing.assert_frame_equal(run(tmp_path / "study", workers=2), undisturbed, check_exact=True)
