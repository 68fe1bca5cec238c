"""What may be relied on when things die: workers, drivers, both, or the user's patience."""

import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap

import pytest
from objectives import (
    Unloadable,
    double,
    dying,
    eventually,
    gated_for,
    holders,
    import_nothing,
    kill_self,
    leaving_a_child,
    make_ledger,
    notes,
    run,
    start_driver,
)

from homeostat.errors import HomeostatError, InvalidType
from homeostat.study.running import launch
from homeostat.study.state.lease import Process

PLAIN = ["trial", "treatment", "seed", "x", "status", "attempt", "seconds", "y"]


def test_workers_run_lambdas_and_closures_and_leave_nothing_behind(tmp_path):
    ledger, shift = make_ledger(tmp_path / "study", 6), 10
    events = run(ledger, lambda config, seed: {"y": config["x"] + seed + shift, "pid": os.getpid()})
    trials = ledger.trials()
    assert trials["y"].tolist() == [10, 11, 11, 12, 12, 13]
    assert sorted(event[1] for event in events if event[0] == "done") == list(range(6))
    assert os.getpid() not in trials["pid"].tolist()
    assert not any(Process.of(int(pid)).alive() for pid in trials["pid"])


def test_workers_have_one_thread_and_our_environment_which_stays_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("SET_JUST_NOW", "5")
    before = dict(os.environ)
    ledger, names = make_ledger(tmp_path / "study"), [*launch.THREADS, "SET_JUST_NOW"]
    run(ledger, lambda config, seed: {f"found {name}": float(os.environ[name]) for name in names})
    assert dict(os.environ) == before
    found = ledger.trials()[[f"found {name}" for name in names]]
    assert (found == [1, 1, 1, 1, 5]).all(axis=None)


def test_what_an_objective_starts_is_started_as_the_driver_would(tmp_path):
    ledger = make_ledger(tmp_path / "study", 2)
    methods = multiprocessing.get_all_start_methods()
    run(ledger, lambda config, seed: {"y": methods.index(multiprocessing.get_start_method())})
    assert ledger.trials()["y"].tolist() == [methods.index(multiprocessing.get_start_method())] * 2


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_trial_whose_worker_is_killed_is_run_again(tmp_path, how):
    ledger = make_ledger(tmp_path / "study", 6)
    events = run(ledger, functools.partial(dying, how=how))
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done"] * 6
    assert trials["attempt"].tolist() == [1, 1, 2, 1, 1, 1]
    assert [event[:2] for event in events if event[0] == "failed"] == [("failed", 2)]


def test_a_trial_that_always_kills_its_worker_is_quarantined_and_the_study_ends(tmp_path):
    ledger = make_ledger(tmp_path / "study", 6)
    events = run(ledger, functools.partial(dying, attempts=100))
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done", "done", "quarantined", "done", "done", "done"]
    assert trials["attempt"][2] == 3
    assert "The worker was killed (SIGKILL)" in trials["failure"][2]
    assert "famous last words" in trials["failure"][2]
    assert [event[0] for event in events if event[1] == 2] == ["failed", "failed", "quarantined"]


def test_a_worker_that_exits_by_itself_is_told_apart(tmp_path):
    ledger = make_ledger(tmp_path / "study", 2)
    run(ledger, lambda config, seed: os._exit(3) if seed else {"y": 1.0}, retries=0)
    assert ledger.trials()["status"].tolist() == ["done", "quarantined"]
    assert ledger.trials()["failure"][1] == "The worker ended with exit code 3."


def test_a_crash_shows_where_it_was(tmp_path):
    ledger = make_ledger(tmp_path / "study", 4)
    run(ledger, functools.partial(dying, how=signal.SIGSEGV, attempts=100), retries=0)
    error = ledger.trials()["failure"][2]
    assert error.startswith("The worker died of SIGSEGV.")
    assert "in dying" in error


def test_a_frozen_worker_is_killed_and_its_trial_run_again(tmp_path):
    ledger = make_ledger(tmp_path / "study", 4)
    run(ledger, functools.partial(dying, how=signal.SIGSTOP), lease=0.5, workers=1)
    assert ledger.trials()["status"].tolist() == ["done"] * 4
    assert ledger.trials()["attempt"][2] == 2


def test_what_a_dead_worker_had_started_is_ended_too(tmp_path):
    ledger = make_ledger(tmp_path / "study", 2)
    run(ledger, functools.partial(leaving_a_child, path=tmp_path / "children"))
    children = [Process.of(int(pid)) for pid in notes(tmp_path / "children")]
    assert len(children) == 2
    eventually(lambda: not any(child.alive() for child in children))


def test_a_failing_objective_ends_the_study_too(tmp_path):
    def failing(config, seed):
        raise ValueError(f"no {seed}")

    ledger = make_ledger(tmp_path / "study", 2)
    run(ledger, failing, retries=1)
    assert ledger.trials()["status"].tolist() == ["quarantined"] * 2
    assert ledger.trials()["failure"][1].startswith("ValueError: no 1")


def test_a_result_that_cannot_be_used_reaches_the_caller(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(InvalidType, match="its result must be a dict of metrics"):
        run(ledger, lambda config, seed: 0.5)
    assert ledger.counts().pending == 4


def test_an_objective_that_workers_cannot_load_is_told_at_once(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(HomeostatError) as caught:
        run(ledger, Unloadable(import_nothing))
    assert "cannot load the objective:\nModuleNotFoundError: No module named 'a_module" in str(caught.value)
    assert "in import_nothing" in str(caught.value)
    assert ledger.counts().pending == 4


def test_workers_that_die_before_they_begin_do_not_loop_forever(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(HomeostatError, match=r"die before they begin a trial, 3 in a row.*SIGKILL(?s:.*)dying young"):
        run(ledger, Unloadable(kill_self), workers=1)
    assert ledger.trials()["attempt"].tolist() == [0] * 4


def test_an_objective_that_cannot_be_sent_is_refused(tmp_path):
    with open(tmp_path / "file", "w") as file, pytest.raises(InvalidType, match="be something that can be sent"):
        run(make_ledger(tmp_path / "study"), lambda config, seed: {"y": file.fileno()})


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_driver_that_is_stopped_loses_nothing_and_resumes(tmp_path, how):
    driver = start_driver(tmp_path, count=8, free=3)
    assert driver.stdout.readline() == "driver\n"
    ledger = make_ledger(tmp_path / "study", 8)
    eventually(lambda: (ledger.counts().done, ledger.counts().running, len(ledger.curves())) == (3, 2, 8))
    workers = [holder.process for holder in holders(ledger)]
    before = ledger.trials()[PLAIN]
    driver.send_signal(how)
    _, said = driver.communicate(timeout=60)
    eventually(lambda: not any(worker.alive() for worker in workers))
    if how == signal.SIGKILL:
        assert ledger.counts().running == 2  # nobody could give them back
    else:
        assert said == "3 of 8 trials are done; the same command resumes.\n"
        assert ledger.counts().pending == 5

    (tmp_path / "gate").touch()
    run(ledger, gated_for(tmp_path, free=3), retries=0)
    after = ledger.trials()
    assert after[PLAIN][:3].equals(before[:3])
    assert after["status"].tolist() == ["done"] * 8
    assert after["y"].tolist() == [double({"x": n // 2}, n % 2)["y"] for n in range(8)]
    assert after["attempt"].tolist() == [1, 1, 1, 2, 2, 1, 1, 1]
    assert sorted(map(int, notes(tmp_path / "log"))) == [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]
    assert ledger.curves()["epoch"].tolist() == [0, 1] * 8


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are POSIX")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_is_held_against_no_trial(tmp_path, how):
    driver = start_driver(tmp_path, count=4)
    ledger = make_ledger(tmp_path / "study", 4)
    eventually(lambda: ledger.counts().running == 2)
    os.killpg(driver.pid, how)  # as a terminal, systemd or a batch system does
    _, said = driver.communicate(timeout=60)
    assert said == "0 of 4 trials are done; the same command resumes.\n"
    assert ledger.trials()["status"].tolist() == ["pending"] * 4
    assert ledger.trials()["failure"].tolist() == [None] * 4


def test_two_drivers_share_a_study_and_no_trial_is_run_twice(tmp_path):
    drivers = [start_driver(tmp_path, count=12) for _ in range(2)]
    ledger = make_ledger(tmp_path / "study", 12)
    eventually(lambda: ledger.counts().running == 4)  # two workers each
    assert len({holder.driver for holder in holders(ledger)}) == 2
    (tmp_path / "gate").touch()
    for driver in drivers:
        _, said = driver.communicate(timeout=60)
        assert (driver.returncode, said) == (0, "")
    assert sorted(map(int, notes(tmp_path / "log"))) == list(range(12))
    assert ledger.trials()["status"].tolist() == ["done"] * 12
    assert ledger.trials()["attempt"].tolist() == [1] * 12


def test_the_other_driver_goes_on_with_what_a_killed_one_held(tmp_path):
    (tmp_path / "a").mkdir()
    driver = start_driver(tmp_path, count=4)
    ledger = make_ledger(tmp_path / "study", 4)
    eventually(lambda: ledger.counts().running == 2)
    driver.kill()
    driver.communicate(timeout=60)
    (tmp_path / "gate").touch()
    run(ledger, double)
    assert ledger.trials()["status"].tolist() == ["done"] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits on the size of files are POSIX")
def test_a_full_disk_stops_the_study_which_resumes_when_there_is_space(tmp_path):
    """A limit on the size of files stands in for the disk."""
    script = f"""
import resource, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from objectives import make_ledger, run
ledger = make_ledger({str(tmp_path / "study")!r}, 6)
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000_000, 6_000_000))

def objective(config, seed, trial):
    for epoch in range(2 if trial.number < 2 else 1000):
        trial.report(epoch, **{{f"loss{{i}}": 1.0 for i in range(5000)}})
    return {{"y": 1.0}}

try:
    run(ledger, objective, workers=1)
except Exception as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("StorageError: ")
    assert "study.sqlite: " in done.stderr
    assert "the disk" in done.stderr
    ledger = make_ledger(tmp_path / "study", 6)
    assert ledger.counts().done == 2
    run(ledger, double)
    assert ledger.trials()["status"].tolist() == ["done"] * 6
    assert ledger.trials()["y"].tolist()[:2] == [1.0, 1.0]


def test_a_fork_server_of_somebody_else_is_left_alone(tmp_path):
    script = f"""
import multiprocessing, os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from objectives import make_ledger, run

theirs = multiprocessing.get_context("forkserver").Process(target=os.getpid)
theirs.start()
theirs.join()
ledger = make_ledger({str(tmp_path / "study")!r}, 2)
run(ledger, lambda config, seed: {{"y": float(os.environ["OMP_NUM_THREADS"])}})
print(ledger.trials()["y"].tolist())
"""
    path = tmp_path / "script.py"
    path.write_text("if __name__ == '__main__':\n" + textwrap.indent(script, "    "))
    done = subprocess.run([sys.executable, path], check=False, capture_output=True, text=True, timeout=100)
    assert (done.stdout, done.stderr) == ("[1.0, 1.0]\n", "")
