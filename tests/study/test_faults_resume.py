"""Frozen processes, clocks that jump, disks that cannot be written, old ledgers, and settings that have changed."""

import functools
import importlib
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from objectives import (
    CONFIGURATION,
    PATIENCE,
    double,
    eventually,
    gated_for,
    make_ledger,
    note,
    notes,
    rows,
    run,
    start_driver,
)

from homeostat.errors import InvalidValue
from homeostat.failpoints import VARIABLE
from homeostat.study.running.runner import Rules, work
from homeostat.study.running.status import read_status
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.schema import SCHEMA
from homeostat.study.state.storage import StorageError
from homeostat.study.study import Study

HERE = os.path.dirname(__file__)
FROZEN = """
import os, signal, sys
sys.path.insert(0, {here!r})
from objectives import make_ledger
from homeostat.study.state.lease import Holder
from homeostat.study.running.runner import Rules, work

def objective(config, seed, trial):
    print("stopping", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    return {{"y": -1.0}}

ledger = make_ledger({directory!r}, 1)
print([event[:2] for event in work(ledger, objective, Holder.current(), Rules(lease=0.3))], flush=True)
"""


def test_a_frozen_process_that_comes_back_after_its_lease_writes_nothing(tmp_path):
    ledger = make_ledger(tmp_path / "study", 1)
    script = FROZEN.format(here=HERE, directory=str(tmp_path / "study"))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "stopping\n"
        eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED)

        def given_back():
            ledger.recover(retries=2)
            return ledger.counts().pending

        eventually(given_back)
        claim = ledger.claim(Holder.current("another"), 30)
        ledger.finish(claim, {"y": 1.0}, 1.0)
        process.send_signal(signal.SIGCONT)
        said, _ = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert said == "[('lost', 0)]\n"
    assert ledger.trials()[["status", "attempt", "y"]].iloc[0].tolist() == ["done", 2, 1.0]


def test_a_worker_that_freezes_inside_a_transaction_does_not_block_the_others(tmp_path, monkeypatch):
    """It holds the lock of the database, until its lease is over and its driver kills it."""
    ledger = make_ledger(tmp_path / "study", 3)
    monkeypatch.setenv(VARIABLE, "finish.written=stop:2")
    events = run(ledger, double, workers=1, lease=0.5)
    assert ledger.trials()["status"].tolist() == ["done"] * 3
    assert ledger.trials()["attempt"].tolist() == [1, 2, 2]
    why = "The worker stopped answering and lost its lease."
    assert [event for event in events if event[0] == "failed"] == [("failed", 1, why), ("failed", 2, why)]


def ignoring(config, seed, log=None):
    """Hangs, and does not listen to SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(log, "hangs")
    time.sleep(PATIENCE)


DRIVER = """
import functools, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import objectives, test_faults_resume
from homeostat.study.running import local

local._GRACE = 50.0
ledger = objectives.make_ledger({directory!r}, 2)
try:
    objectives.run(ledger, functools.partial(test_faults_resume.ignoring, log=Path({log!r})), workers=2)
except KeyboardInterrupt as stop:
    print(stop)
"""


def test_a_second_interrupt_does_not_wait_for_workers_that_will_not_go(tmp_path):
    script = DRIVER.format(here=HERE, directory=str(tmp_path / "study"), log=str(tmp_path / "log"))
    driver = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    try:
        eventually(lambda: len(notes(tmp_path / "log")) == 2)
        driver.send_signal(signal.SIGINT)
        time.sleep(0.5)  # it waits for them now
        assert driver.poll() is None
        driver.send_signal(signal.SIGINT)
        said, _ = driver.communicate(timeout=40)
    finally:
        driver.kill()
        driver.wait()
    assert said == "0 of 2 trials are done; the same command resumes.\n"
    assert make_ledger(tmp_path / "study", 2).counts().pending == 2


def test_another_number_of_workers_goes_on(tmp_path):
    driver = start_driver(tmp_path, count=6, free=2, workers=1)
    ledger = make_ledger(tmp_path / "study", 6)
    eventually(lambda: (ledger.counts().done, ledger.counts().running) == (2, 1))
    driver.kill()
    driver.communicate(timeout=PATIENCE)
    (tmp_path / "gate").touch()
    run(ledger, gated_for(tmp_path, free=2), workers=3, retries=0)
    assert ledger.trials()["status"].tolist() == ["done"] * 6
    assert ledger.trials()["y"].tolist() == [double({"x": n // 2}, n % 2)["y"] for n in range(6)]


def test_a_clock_that_jumps_changes_nothing(tmp_path, monkeypatch):
    """Leases, time limits and ages are on the monotonic clock."""
    draw, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: real() + draw.uniform(-1e9, 1e9))
    ledger = make_ledger(tmp_path / "study", 4)
    first = ledger.claim(Holder.current("me"), 30)
    ledger.recover(retries=0)
    assert ledger.counts().running == 1
    assert 0 <= time.monotonic() - ledger.running()[0].started < 30
    ledger.release(first)
    events = list(work(ledger, double, Holder.current("me"), Rules(lease=0.3)))
    assert [event[0] for event in events] == ["done"] * 4
    assert (ledger.trials()["seconds"] < 30).all()


def older(directory):
    """Make the ledger what an older homeostat would have left."""
    ledger = Ledger.open(directory)
    with ledger._storage.writing() as connection:
        connection.execute("ALTER TABLE trials DROP COLUMN started")
        connection.execute("ALTER TABLE curves DROP COLUMN steps")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    ledger.close()


def schema_of(directory):
    ledger = Ledger.open(directory)
    found = ledger._meta()["schema"]
    ledger.close()
    return found


def test_a_study_of_an_older_homeostat_is_brought_up_to_date_and_goes_on(tmp_path):
    study = Study(double, {"x": [0, 1]}, 2, directory=tmp_path / "study", workers=0)
    trials = [(treatment, seed, study.design.config(treatment)) for treatment, seed in study.design.run_order()]
    ledger = Ledger.create_or_open(tmp_path / "study", study.configuration, trials)
    ledger.finish(ledger.claim(Holder.current("me"), 30), {"y": 0.25}, 1.0)
    ledger.claim(Holder.current("me"), 30)
    ledger.close()
    older(tmp_path / "study")
    seen = read_status(tmp_path / "study")  # which must not write
    assert (seen.counts.done, seen.running[0].seconds) == (1, None)
    assert schema_of(tmp_path / "study") == "1"
    ledger = Ledger.open(tmp_path / "study")
    ledger.release_worker("me")
    ledger.close()
    result = study.run(progress=False)
    assert schema_of(tmp_path / "study") == str(SCHEMA)
    assert result.trials["status"].tolist() == ["done"] * 4
    assert result.trials["y"][0] == 0.25


@pytest.mark.parametrize("place", ["create.written", "claim.written", "finish.written"])
@pytest.mark.parametrize(("action", "message"), [("full", "Free some space"), ("readonly", "cannot be used")])
def test_a_disk_that_cannot_be_written_is_named_and_the_study_goes_on_later(
    tmp_path, monkeypatch, place, action, message
):
    def attempt():
        ledger = make_ledger(tmp_path / "study", 2)
        return list(work(ledger, double, Holder.current("me"), Rules(retries=0)))

    monkeypatch.setenv(VARIABLE, f"{place}={action}")
    with pytest.raises(StorageError, match=rf"study\.sqlite: .*{message}"):
        attempt()
    monkeypatch.delenv(VARIABLE)
    ledger = make_ledger(tmp_path / "study", 2)
    ledger.release_worker("me")  # as the driver does, or whoever resumes
    assert [event[0] for event in attempt()] == ["done"] * 2


def test_a_directory_that_cannot_be_written_is_refused_before_anything_starts():
    """As nobody, because modes mean nothing to root."""
    folder = Path(tempfile.mkdtemp())
    script = f"""
import os, sys
sys.path.insert(0, {HERE!r})
from objectives import make_ledger
from homeostat.study.state.storage import StorageError
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for name in ("", "study"):
    try:
        make_ledger(os.path.join({str(folder)!r}, name))
    except StorageError as error:
        print(error)
"""
    folder.chmod(0o555)
    try:
        done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=100)
        first, second = done.stdout.splitlines()
        assert "study.sqlite: the file cannot be opened. Check that it exists and that its directory can" in first
        assert "Give a directory that you may write to" in second
        assert list(folder.iterdir()) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_nan_and_infinities_are_results_that_are_stored_and_shown(tmp_path):
    values = [math.nan, math.inf, -math.inf, 1.0]

    def objective(config, seed):
        return {"y": values[seed] if config["x"] else float(seed), "other": values[seed]}

    result = Study(objective, {"x": [0, 1]}, 4, directory=tmp_path / "study", workers=1).run(progress=False)
    expected = [values[seed] for seed in result.trials["seed"]]
    assert [repr(value) for value in result.trials["other"]] == [repr(value) for value in expected]
    table = pd.read_csv(tmp_path / "study" / "trials.csv")
    assert [repr(value) for value in table["other"]] == [repr(value) for value in expected]
    assert (result.analysis.finished, result.analysis.diverged, result.analysis.failed) == (8, 3, 0)
    assert "diverged" in result.report.read_text()


FACTORS = {"norm": ["none", "batch"]}


def objective_of(text):
    scope = {}
    exec(f"def objective(config, seed):\n    return {{'y': {text}}}", scope)
    return scope["objective"]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"base": {"task": "another"}}, "base.task: 'digits' → 'another'"),
        ({"base": {"task": "digits", "lr": 0.1}}, "base.lr: (not set) → 0.1"),
        ({"objective": objective_of("2.0 + 0 * seed")}, "objective.source"),
    ],
)
def test_data_settings_and_code_that_have_changed_are_refused_and_may_be_overruled(tmp_path, changes, line):
    begun = {"objective": objective_of("1.0 + seed"), "factors": FACTORS, "seeds": 2, "base": {"task": "digits"}}
    begun |= {"directory": tmp_path / "study", "workers": 0}
    Study(**begun).run(progress=False)
    changed = Study(**begun | changes)
    with pytest.raises(InvalidValue, match=r"made with another configuration(?s:.*)--anyway"):
        changed.run(progress=False)
    result = changed.run(progress=False, anyway=True)
    assert any("different settings, because of anyway" in said for said in result.analysis.warnings)
    assert "because of anyway" in result.report.read_text()
    changed.run(progress=False)  # once accepted, it is known
    again = Study(**begun).run(progress=False)
    assert any(line.split(":")[0] in said for said in again.analysis.warnings)


class Train:
    def __init__(self, width):
        self.width = width

    def __call__(self, config, seed):
        return {"y": 1.0 * self.width}


def train(config, seed, width=1, note=None):
    return {"y": 1.0 * width}


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        (Train(1), Train(2), "objective.attributes.width: 1 → 2"),
        (Train(1).__call__, Train(2).__call__, "objective.attributes.width: 1 → 2"),
        (functools.partial(train, width=1), functools.partial(train, width=2), "objective.arguments.width: 1 → 2"),
        (functools.partial(train, note=object()), functools.partial(train, width=(2, 3)), "{'width': [2, 3]}"),
    ],
)
def test_an_objective_with_other_settings_is_another_study(tmp_path, first, second, line):
    places = [Study(objective, FACTORS).directory for objective in (first, first, second)]
    assert places[0] == places[1] != places[2]
    settings = {"factors": FACTORS, "seeds": 2, "directory": tmp_path / "study", "workers": 0}
    Study(first, **settings).run(progress=False)
    with pytest.raises(InvalidValue, match=re.escape(line)):
        Study(second, **settings).run(progress=False)


def test_an_objective_whose_class_has_changed_is_another_study(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "class Train:\n    def __call__(self, config, seed):\n        return {'y': 1.0}\n"

    def study(text):
        (tmp_path / "changing.py").write_text(text)
        sys.modules.pop("changing", None)
        importlib.invalidate_caches()
        return Study(importlib.import_module("changing").Train(), FACTORS)

    first, again, other = (study(each) for each in (text, text, text.replace("1.0", "20.0")))
    assert first.directory == again.directory != other.directory


def test_an_object_that_says_what_results_depend_on_is_not_known_by_its_attributes():
    class Told:
        def __init__(self, log, lr):
            self.log, self.base = log, {"lr": lr}

        def __call__(self, config, seed):
            return {"y": 1.0}

    places = [Study(Told(log, lr), FACTORS).directory for log, lr in (("a", 0.1), ("b", 0.1), ("a", 0.2))]
    assert places[0] == places[1] != places[2]


def test_another_design_cannot_be_resumed_anyway(tmp_path):
    settings = {"directory": tmp_path / "study", "workers": 0}
    Study(double, {"x": [0, 1]}, 2, **settings).run(progress=False)
    with pytest.raises(InvalidValue, match="Another design cannot be resumed anyway"):
        Study(double, {"x": [0, 2]}, 2, **settings).run(progress=False, anyway=True)


def test_nothing_is_accepted_where_nothing_has_changed(tmp_path):
    for _ in range(2):
        ledger = Ledger.create_or_open(tmp_path / "study", CONFIGURATION, rows(2), anyway=True)
        assert ledger.accepted == []
        ledger.close()
