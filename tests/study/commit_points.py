"""A script for the tests of faults: a study in forked children, each killed at a place where something is stored.

`python commit_points.py driver|worker FOLDER` prints a JSON line per place: what became of the killed process, what it
had acknowledged, and the trials before and after it was resumed.
"""

import json
import os
import signal
import sys
from pathlib import Path

from objectives import Told, double, make_ledger, note, notes, run

from homeostat.failpoints import VARIABLE
from homeostat.study.running.local import StudyInterrupted, run_here
from homeostat.study.running.runner import Rules
from homeostat.study.show.export import write_csv
from homeostat.study.state.ledger import Ledger

COUNT = 5
EPOCHS = 3
DRIVER = [
    *("create.written", "create.stored", "claim.written:3", "claim.stored:3", "report.written:5", "report.stored:5"),
    *("finish.written:2", "finish.stored:2", "fail.written", "fail.stored", "renew.written", "renew.stored"),
    *("release.written", "release.stored", "recover.written", "recover.stored", "accept.written", "accept.stored"),
    *("upgrade.written", "upgrade.stored", "spend.written", "spend.stored", "table.written", "table.stored"),
    *("bury.written", "bury.stored", "adopt.written", "adopt.stored", "retry.written", "retry.stored"),
]
WORKER = [
    *("claim.written:2", "claim.stored:2", "report.written:4", "report.stored:4", "finish.written:2"),
    *("finish.stored:2", "fail.written", "fail.stored"),
]


class Acknowledged(Told):
    """Writes down what it is told, as whoever acts on it would."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def event(self, event):
        note(self.log, f"{event[0]}:{event[1]}")


def objective(config, seed, trial, place="", ledger=None):
    """Fails once, dies once or is interrupted once where the place needs that."""
    x = (config["x"], seed)
    for epoch in range(EPOCHS):
        trial.report(epoch, loss=float(config["x"] + epoch))
    if place == "hopeless" and x == (1, 0):
        raise ValueError("always")
    if trial.attempt == 1:
        if place.startswith("fail") and x == (1, 0):
            raise ValueError("once")
        if place.startswith("release") and x == (1, 0):
            raise KeyboardInterrupt
        if place.startswith("bury") and x == (1, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        if place.startswith("renew") and x == (0, 0):
            while True:
                ledger.counts()
    return double(config, seed)


def study(folder, place="", *, anyway=False, again=False):
    """All that a driver stores from a study's beginning to its end."""
    configuration = {"base": {"lr": 0.2 if anyway else 0.1}, "design": {}}
    rows = [(number // 2, number % 2, {"x": number // 2}) for number in range(COUNT)]
    ledger = Ledger.create_or_open(folder / "study", configuration, rows, anyway=anyway)
    if again:
        ledger.retry()
    if (folder / "earlier").exists():
        earlier = Ledger.open(folder / "earlier" / "study", read_only=True)
        ledger.adopt(earlier.finished(), "earlier", sequential=False)
        earlier.close()

    def called(config, seed, trial):
        return objective(config, seed, trial, place, ledger)

    watch = Acknowledged(folder / "acknowledged")
    if place.startswith("bury"):
        run(ledger, lambda config, seed, trial: objective(config, seed, trial, place), workers=1)
    else:
        run_here(ledger, called, Rules(lease=0.1 if place.startswith("renew") else 30.0), watch)
    ledger.spend(1.0)
    write_csv(ledger.trials(), folder / "trials.csv")
    ledger.close()


def begin(folder, place):
    """What must have happened before the process that is killed comes to its place."""
    if place.startswith("recover"):
        in_child(lambda: study(folder), "finish.written:2")
    elif place.startswith("accept"):
        in_child(lambda: study(folder), "finish.stored:2")
    elif place.startswith("retry"):
        in_child(lambda: study(folder, "hopeless"))
    elif place.startswith("adopt"):
        (folder / "earlier").mkdir()
        in_child(lambda: study(folder / "earlier"), "finish.stored:4")
    elif place.startswith("upgrade"):
        in_child(lambda: study(folder), "finish.stored:2")
        ledger = Ledger.open(folder / "study")
        ledger._storage._connection.execute("ALTER TABLE trials DROP COLUMN started")
        ledger._storage._connection.execute("ALTER TABLE curves DROP COLUMN steps")
        ledger._storage._connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
        ledger.close()


def in_child(action, place=""):
    """Run something in a child that is killed at `place`; how the child ended."""
    child = os.fork()
    if child == 0:
        if place:
            name, _, time = place.partition(":")
            os.environ[VARIABLE] = f"{name}=kill:{time}"
        try:
            action()
        except StudyInterrupted:
            os._exit(5)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def seen(folder):
    """The trials as they are stored, or None where there is no study."""
    if not (folder / "study" / "study.sqlite").exists() or not (folder / "study" / "study.sqlite").stat().st_size:
        return None
    with_study = Ledger.open(folder / "study", read_only=True)
    trials, deaths = with_study.trials(), with_study._storage.read("SELECT deaths FROM trials ORDER BY trial")
    curves = with_study.curves()
    with_study.close()
    rows = trials.drop(columns=["failure", "warnings"]).to_dict("list")
    return rows | {"deaths": [count for (count,) in deaths], "loss": curves["loss"].tolist() if len(curves) else []}


def driver(folder, place):
    begin(folder, place)
    asked = {"anyway": place.startswith("accept"), "again": place.startswith("retry")}
    ended = in_child(lambda: study(folder, place, **asked), place)
    found = {"place": place, "ended": ended, "acknowledged": notes(folder / "acknowledged")}
    try:
        found["before"] = seen(folder)
    except Exception:  # killed before it was made
        found["before"] = None
    found["resumed"] = in_child(lambda: study(folder, **asked))
    return found | {"after": seen(folder), "table": (folder / "trials.csv").exists()}


def worker(folder, place):
    """Every worker of the study is killed when it comes to the place, and the driver starts others."""
    name, _, time = place.partition(":")
    os.environ[VARIABLE] = f"{name}=kill:{time}"
    ledger = make_ledger(folder / "study", COUNT)

    def called(config, seed, trial):
        note(folder / "pids", str(os.getpid()))
        return objective(config, seed, trial, place)

    try:
        events = run(ledger, called, workers=1)
    finally:
        del os.environ[VARIABLE]
    ledger.close()
    pids = len(set(notes(folder / "pids")))
    return {"place": place, "workers": pids, "done": [e[1] for e in events if e[0] == "done"], "after": seen(folder)}


if __name__ == "__main__":
    kind, root = sys.argv[1], Path(sys.argv[2])
    for number, where in enumerate(DRIVER if kind == "driver" else WORKER):
        own = root / str(number)
        own.mkdir()
        print(json.dumps((driver if kind == "driver" else worker)(own, where)), flush=True)
