"""Trials that hang, take too long or too much memory, or raise what they should not."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from objectives import (
    PATIENCE,
    Told,
    double,
    eventually,
    make_ledger,
    note,
    notes,
)

from homeostat.errors import InvalidType, InvalidValue
from homeostat.study.running import limits
from homeostat.study.running.local import run_workers
from homeostat.study.running.runner import Rules
from homeostat.study.state.lease import Process
from homeostat.study.study import Study


def run(ledger, objective, *, workers=1, **rules):
    told = Told()
    run_workers(ledger, objective, Rules(**rules), told, workers=workers)
    return told.events


def hanging(config, seed, trial, path=None, attempts=100):
    """Hangs at x = 0, seed 1, and so does what it has started."""
    if (config["x"], seed) == (0, 1) and trial.attempt <= attempts:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({PATIENCE})"])
        note(path, str(child.pid))
        while True:
            time.sleep(0.01)
    return double(config, seed)


def test_a_trial_that_hangs_is_ended_by_its_time_limit_with_all_that_it_started(tmp_path):
    ledger = make_ledger(tmp_path / "study", 4)
    events = run(
        ledger, lambda config, seed, trial: hanging(config, seed, trial, tmp_path / "log"), retries=1, timeout=1.5
    )
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done", "quarantined", "done", "done"]
    assert trials["attempt"].tolist() == [1, 2, 1, 1]
    first, *more = trials["failure"][1].splitlines()
    assert first.startswith("The trial passed its time limit of 1.5 s and was ended. ")
    assert "a larger --timeout (timeout=), and once it is given up also --retry-failed (retry_failed=True)" in first
    assert any("in hanging" in line for line in more), "it does not say where it hung"
    assert [event[0] for event in events if event[1] == 1] == ["failed", "quarantined"]
    started = [Process.of(int(pid)) for pid in notes(tmp_path / "log")]
    assert len(started) == 2
    eventually(lambda: not any(child.alive() for child in started))


def test_a_trial_that_hangs_once_is_tried_again(tmp_path):
    ledger = make_ledger(tmp_path / "study", 3)
    run(ledger, lambda config, seed, trial: hanging(config, seed, trial, tmp_path / "log", attempts=1), timeout=1.5)
    assert ledger.trials()["status"].tolist() == ["done"] * 3
    assert ledger.trials()["attempt"].tolist() == [1, 2, 1]


def test_the_time_limit_is_that_of_an_attempt_not_of_a_worker(tmp_path):
    ledger = make_ledger(tmp_path / "study", 10)

    def objective(config, seed):
        time.sleep(0.4)
        return double(config, seed)

    run(ledger, objective, timeout=3.0)  # 4 s for all
    assert ledger.trials()["attempt"].tolist() == [1] * 10


def filling(config, seed, trial):
    if (config["x"], seed) == (0, 1) and trial.attempt == 1:
        kept = b"x" * 600_000_000
        time.sleep(PATIENCE + kept[0])
    return double(config, seed)


def test_a_trial_above_its_memory_limit_is_ended_and_tried_again(tmp_path):
    ledger = make_ledger(tmp_path / "study", 3)
    events = run(ledger, filling, memory=500 * 2**20)
    assert ledger.trials()["attempt"].tolist() == [1, 2, 1]
    failures = [event[2] for event in events if event[0] == "failed"]
    assert len(failures) == 1
    assert re.match(r"The trial held \d+ MiB of memory, its limit is 500 MiB, and was ended\.", failures[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how pages are shared")
def test_pages_that_processes_share_count_once():
    script = (
        "import os, sys, time\n"
        "os.setpgid(0, 0)\n"
        "kept = b'x' * 200_000_000\n"
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        break\n"
        "os.write(1, b'ready\\n')\n"
        "sys.stdin.read()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, **pipes) as process:
        for _ in range(4):
            assert process.stdout.readline() == "ready\n"
        held = limits.heaviest([process.pid], 100 * 2**20)
        assert 200_000_000 < held[process.pid] < 400_000_000  # resident sizes add up to more than 800
        assert limits.heaviest([process.pid], 400 * 2**20) == {}
        process.stdin.close()
    eventually(lambda: limits.heaviest([process.pid], 1) == {})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"timeout": "soon"}, InvalidValue, "timeout must be positive and finite, but got 'soon'"),
        ({"timeout": 0}, InvalidValue, "timeout must be positive"),
        ({"timeout": float("inf")}, InvalidValue, "timeout must be positive and finite"),
        ({"timeout": True}, InvalidType, "timeout must be a number or a text"),
        ({"memory": "much"}, InvalidValue, "memory must be positive and finite, but got 'much'"),
        ({"memory": -1}, InvalidValue, "memory must be positive"),
        ({"memory": [1]}, InvalidType, "memory must be a number or a text"),
        ({"timeout": 5, "workers": 0}, InvalidValue, "not be given with workers=0"),
    ],
)
def test_limits_that_cannot_be_used_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        Study(double, {"x": [0, 1]}, **changes)


def test_limits_are_written_as_people_write_them():
    study = Study(double, {"x": [0, 1]}, workers=1, timeout="10m", memory="4G")
    assert (study.timeout, study.memory) == (600.0, 4 * 2**30)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit])
def test_an_interrupt_of_the_objectives_own_is_a_failure_of_its_trial_in_a_worker(tmp_path, error):
    def objective(config, seed):
        if (config["x"], seed) == (0, 1):
            raise error("mine")
        return double(config, seed)

    ledger = make_ledger(tmp_path / "study", 3)
    run(ledger, objective, retries=0)
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done", "quarantined", "done"]
    assert trials["failure"][1].splitlines()[0] == f"{error.__name__}: mine"


def test_memory_and_file_handles_stay_flat_over_many_trials(tmp_path):
    """Those of the driver, sampled whenever it is told something, and those of the worker."""
    count, own, seen = 1000, psutil.Process(), []

    class Sampling(Told):
        def event(self, event):
            seen.append((own.memory_info().rss, own.num_fds()))

    def objective(config, seed, trial):
        trial.report(0, loss=1.0)
        me = psutil.Process()
        return {"memory": me.memory_info().rss, "handles": me.num_fds()}

    ledger = make_ledger(tmp_path / "study", count)
    run_workers(ledger, objective, Rules(timeout=60.0, memory=2**40), Sampling(), workers=1)
    trials = ledger.trials()
    assert (trials["status"] == "done").all()
    early, late = slice(100, 200), slice(count - 100, count)
    inside = trials[["memory", "handles"]].to_numpy()
    for samples in (np.array(seen, dtype=float), inside):
        grown = np.median(samples[late], axis=0) - np.median(samples[early], axis=0)
        assert grown[0] < 4 * 2**20  # the driver's page cache of SQLite alone has 2
        assert grown[1] == 0


def test_limits_do_not_touch_trials_that_keep_them(tmp_path):
    ledger = make_ledger(tmp_path / "study", 3)
    run(ledger, double, workers=2, timeout=60.0, memory=2**40)
    assert ledger.trials()["attempt"].tolist() == [1] * 3
    assert os.environ.get("HOMEOSTAT_FAILPOINTS") is None
