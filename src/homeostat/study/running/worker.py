"""A worker process from its start to its end; the driver's side is `local`.

The worker takes over the driver's environment (with one thread per worker), sends its output to a log of its own,
ignores Ctrl-C (the driver decides what that means), and ends at once when its driver is gone. It tells the driver over
a pipe that it is ready, what became of each trial, or why the study cannot go on. Nothing here is random.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle

from homeostat.errors import HomeostatError
from homeostat.study.running.runner import Rules, short_traceback, work
from homeostat.study.state.lease import Holder, Process
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError


@dataclass(frozen=True)
class Orders:
    """What every worker of a driver is told.

    Attributes:
        directory: of the study.
        objective: by cloudpickle, so that functions of notebooks and scripts travel by value.
        rules: how trials are run.
        environment: the environment variables to work under.
        start_method: how processes are started, as the driver has it set; None: as Python does by default.
        driver: the process that gives these orders.
    """

    directory: Path
    objective: bytes
    rules: Rules
    environment: Mapping[str, str]
    start_method: str | None
    driver: Process


def main(orders: Orders, name: str, log: Path, pipe: Connection) -> None:
    """The whole life of the worker `name`.

    It sends ("ready",), then what `work` yields; or ("broken", text) if it could not start, or ("stop", kind, text) if
    the study cannot go on.
    """
    _settle(orders.environment, log)
    # Ours is the fork server's; with it each process of a user's DataLoader would import torch anew.
    multiprocessing.set_start_method(orders.start_method, force=True)
    try:
        objective = cloudpickle.loads(orders.objective)
        ledger = Ledger.open(orders.directory)
    except StorageError as error:
        pipe.send(("stop", StorageError, str(error)))
        return
    except BaseException as error:
        pipe.send(("broken", short_traceback(error)))
        return
    pipe.send(("ready",))
    try:
        for event in work(ledger, objective, Holder.current(name, orders.driver), orders.rules):
            pipe.send(event)
    except HomeostatError as error:
        pipe.send(("stop", type(error), str(error)))
    finally:
        ledger.close()


def _settle(environment: Mapping[str, str], log: Path) -> None:
    """Become a process that its driver can end together with all that it starts, and that dies with its driver."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # see `launch`
    threading.Thread(target=_die_with_driver, args=(log,), name="watch on the driver", daemon=True).start()
    for missing in os.environ.keys() - environment.keys():
        del os.environ[missing]
    os.environ.update(environment)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    for stream in (1, 2):
        os.dup2(file, stream)
    os.close(file)
    for text in (sys.stdout, sys.stderr):
        _by_line(text)
    faulthandler.enable()
    if hasattr(faulthandler, "register"):
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # the driver asks where a trial hangs


def _by_line(stream: Any) -> None:
    """So that the last words before a crash reach the log."""
    stream.reconfigure(line_buffering=True)


def _die_with_driver(log: Path) -> None:
    driver = multiprocessing.parent_process()
    if driver is None:
        return
    driver.join()
    with suppress(OSError):  # the driver would have removed them
        log.unlink()
        log.parent.rmdir()
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGKILL)
    os._exit(1)
