"""Objectives and drivers that the tests of the study engine run in processes of their own."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time

from homeostat.study.running.local import run_workers
from homeostat.study.running.progress import Silent
from homeostat.study.running.runner import Rules
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger

CONFIGURATION = {"base": {"lr": 0.1}}
_open, _drivers = [], []
PATIENCE = 60.0  # seconds after which what a test waits for will not come


def rows(count):
    """Trials with a factor x = 0, 1, ... and two seeds in turn."""
    return [(number // 2, number % 2, {"x": number // 2}) for number in range(count)]


def make_ledger(directory, count=4, configuration=CONFIGURATION):
    _open.append(Ledger.create_or_open(directory, configuration, rows(count)))
    return _open[-1]


def close_all():
    """End the ledgers and drivers that a test started."""
    for driver in _drivers:
        driver.kill()
        driver.communicate()
    for ledger in _open:
        ledger.close()
    _drivers.clear()
    _open.clear()


class Told(Silent):
    """Remembers what the runner and the driver tell."""

    def __init__(self):
        self.events = []

    def event(self, event):
        self.events.append(event)


def run(ledger, objective, *, workers=2, retries=2, lease=30.0, response=None):
    """Run a ledger with worker processes; what was told meanwhile."""
    told = Told()
    run_workers(ledger, objective, Rules(retries, lease, response), told, workers=workers)
    return told.events


def eventually(condition):
    """Wait for what another process does."""
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def note(path, text):
    """Append a line, whole, whoever else does the same."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{text}\n".encode())
    os.close(file)


def notes(path):
    return path.read_text().split() if path.exists() else []


def double(config, seed):
    return {"y": 2.0 * config["x"] + seed}


def dying(config, seed, trial, how=signal.SIGKILL, attempts=1):
    """Dies of a signal at x = 1, seed 0, for so many attempts."""
    if (config["x"], seed) == (1, 0) and trial.attempt <= attempts:
        print("famous last words", flush=True)
        os.kill(os.getpid(), how)
        time.sleep(PATIENCE)  # the signal is on its way
    return double(config, seed)


def leaving_a_child(config, seed, trial, path=None):
    """Starts a process that would outlive it, then dies."""
    if trial.attempt == 1:
        child = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({PATIENCE})"])
        note(path, str(child.pid))
        os.kill(os.getpid(), signal.SIGKILL)
    return double(config, seed)


def gated(config, seed, trial, gate=None, log=None, free=0):
    """Notes that it runs; trials from number `free` on wait until `gate` exists."""
    note(log, str(trial.number))
    trial.report(0, loss=1.0)
    while trial.number >= free and not gate.exists():
        time.sleep(0.005)
    trial.report(1, loss=0.5)
    return double(config, seed)


class Unloadable:
    """Cannot be unpickled: `how` is called in the worker instead."""

    def __init__(self, how):
        self.how = how

    def __call__(self, config, seed):
        raise AssertionError("never reached")

    def __reduce__(self):
        return self.how, ()


def import_nothing():
    __import__("a_module_that_is_not_there")


def kill_self():
    print("dying young", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


# A script without `if __name__ == "__main__"`, its objective defined in it: what users write.
DRIVER = """
import functools, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import objectives

def objective(config, seed, trial):
    return objectives.gated(config, seed, trial, gate=Path({gate!r}), log=Path({log!r}), free={free})

print("driver", flush=True)
ledger = objectives.make_ledger({directory!r}, {count})
try:
    objectives.run(ledger, objective, workers={workers})
except KeyboardInterrupt as stop:
    sys.exit(str(stop))
"""


def start_driver(folder, *, count=8, free=0, workers=2):
    """A driver on `folder`/study, in a group of its own, whose trials from number `free` on wait for `folder`/gate."""
    paths = {"directory": folder / "study", "gate": folder / "gate", "log": folder / "log"}
    texts = {name: str(path) for name, path in paths.items()}
    here = os.path.dirname(__file__)
    script = folder / "driver.py"
    script.write_text(textwrap.dedent(DRIVER.format(here=here, free=free, count=count, workers=workers, **texts)))
    command = [sys.executable, str(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    _drivers.append(subprocess.Popen(command, **pipes, text=True, start_new_session=True))
    return _drivers[-1]


def gated_for(folder, free=0):
    return functools.partial(gated, gate=folder / "gate", log=folder / "log", free=free)


def holders(ledger):
    """Who holds the running trials."""
    found = ledger._storage.read("SELECT holder FROM trials WHERE status = 'running'")
    return [Holder.from_json(text) for (text,) in found]
