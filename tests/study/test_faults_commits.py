"""Nothing that was acknowledged is lost, wherever a driver or a worker is killed: at every place that is stored."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commit_points import COUNT, DRIVER, EPOCHS, WORKER

Y = [2.0 * (number // 2) + number % 2 for number in range(COUNT)]
LOSSES = [float(number // 2 + epoch) for number in range(COUNT) for epoch in range(EPOCHS)]


def killed(kind, folder):
    """What the script found at each place, by the place's name."""
    command = [sys.executable, str(Path(__file__).with_name("commit_points.py")), kind, str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {each["place"]: each for each in found}


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    return killed("driver", tmp_path_factory.mktemp("drivers"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    return killed("worker", tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize("place", DRIVER)
def test_a_driver_that_is_killed_where_it_stores_something_loses_nothing(drivers, place):
    found = drivers[place]
    assert found["ended"] == -9, "it never came there"
    assert found["resumed"] == 0
    assert found["table"]
    after = found["after"]
    assert after["status"] == ["done"] * COUNT
    assert after["y"] == Y
    assert after["loss"] == LOSSES
    acknowledged = [int(text.removeprefix("done:")) for text in found["acknowledged"] if text.startswith("done:")]
    for trial in acknowledged:
        assert found["before"]["status"][trial] == "done"
        for column in ("attempt", "seconds", "y"):
            assert after[column][trial] == found["before"][column][trial]
    again = [number for number in range(COUNT) if after["attempt"][number] > 1]
    assert len(again) <= 2, "a trial that ran undisturbed was run again"


@pytest.mark.parametrize("place", DRIVER)
def test_a_driver_that_is_killed_is_held_against_no_trial(drivers, place):
    blamed = sum(drivers[place]["after"]["deaths"])
    assert blamed == (1 if place in ("fail.stored", "bury.stored") else 0)  # where the trial itself failed before


@pytest.mark.parametrize("place", WORKER)
def test_workers_that_are_killed_where_they_store_something_lose_nothing(workers, place):
    found = workers[place]
    assert found["workers"] > 1, "no worker ever came there"
    after = found["after"]
    assert after["status"] == ["done"] * COUNT
    assert after["y"] == Y
    assert after["loss"] == LOSSES
    assert len(set(found["done"])) == len(found["done"]), "a trial was acknowledged twice"


def test_a_transaction_is_whole_or_absent(drivers, workers):
    """Before the commit nothing is there, after it everything."""
    assert drivers["create.written"]["before"] is None
    assert drivers["create.stored"]["before"]["status"] == ["pending"] * COUNT
    assert drivers["finish.written:2"]["before"]["status"][:2] == ["done", "running"]
    assert drivers["finish.stored:2"]["before"]["status"][:2] == ["done", "done"]
    assert drivers["claim.written:3"]["before"]["attempt"] == [1, 1, 0, 0, 0]
    assert drivers["claim.stored:3"]["before"]["attempt"] == [1, 1, 1, 0, 0]
    assert len(drivers["report.written:5"]["before"]["loss"]) == 4
    assert len(drivers["report.stored:5"]["before"]["loss"]) == 5
    assert workers["finish.stored:2"]["after"]["attempt"] == [1] * COUNT
    assert drivers["retry.written"]["before"]["status"][2] == "quarantined"
    assert drivers["retry.stored"]["before"]["status"][2] == "pending"
    assert drivers["adopt.written"]["before"]["status"] == ["pending"] * COUNT
    assert drivers["adopt.stored"]["before"]["status"] == ["done"] * 4 + ["pending"]
    assert drivers["adopt.stored"]["before"]["loss"] == LOSSES[: 4 * EPOCHS]
