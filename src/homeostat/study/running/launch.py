"""Starting worker processes: what they inherit, and what they must not.

Workers come from multiprocessing's fork server, which imports the preloaded modules once for all of them; where there
is none, or where somebody else started it with another environment, they are spawned. Either way the caller's main
module is not imported again: the objective travels by value, and scripts need no `if __name__ == "__main__"`.
Nothing here is random.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle

from homeostat.errors import HomeostatError, invalid_type

if TYPE_CHECKING:
    from homeostat.study.running.runner import Objective
    from homeostat.study.running.worker import Orders

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")

# The fork server is a `python -c`, which looks into the current folder first: a json.py there would break it.
_AT_START = {**THREADS, "PYTHONSAFEPATH": "1"}

_starting = threading.Lock()
_our_server: int | None = None  # pid of the fork server that was started here, with our environment


def packed(objective: Objective) -> bytes:
    """The objective as bytes that a worker can load, wherever it was defined.

    Raises: InvalidType if it holds something that cannot be sent; what else it raises on purpose.
    """
    try:
        return bytes(cloudpickle.dumps(objective))
    except HomeostatError:  # which says what could not be done, such as storing a task
        raise
    except Exception as error:
        cure = (
            f"It cannot be pickled ({type(error).__name__}: {error}). Open files, locks and connections inside the "
            "function, or run the trials in this process with workers=0."
        )
        raise invalid_type("Study", "objective", "be something that can be sent to workers", objective, cure) from error


def warm(preload: Sequence[str]) -> None:
    """Start the fork server now, so that it imports `preload` while the caller is busy with something else.

    Nothing waits for it, and nothing is lost where it is not needed after all: it ends with this process.
    """
    if "forkserver" in multiprocessing.get_all_start_methods() and _server_pid() is None:
        with suppress(OSError), _quiet_start(preload):  # a refusal comes again, with words, when a worker starts
            forkserver.ensure_running()


def start(orders: Orders, name: str, log: Path, preload: Sequence[str]) -> tuple[Connection, BaseProcess]:
    """Start the worker `name`.

    Args:
        orders: what it is to do.
        log: where its output goes.
        preload: modules that a new fork server imports; those it cannot find are left out.
    Returns: the pipe on which the worker speaks, and its process.
    Raises: HomeostatError if the system refuses.
    """
    from homeostat.study.running import worker  # not before `warm`, which is to come first

    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=worker.main, args=(orders, name, log, sender), name=f"worker {name[:8]}")
    try:
        with _quiet_start(preload):
            process.start()
    except (OSError, EOFError) as error:
        receiver.close()
        said = f"A worker process could not be started ({type(error).__name__}: {error})."
        raise HomeostatError(f"{said} Is a limit of memory, processes or open files reached?") from error
    finally:
        sender.close()
    return receiver, process


def _context() -> Any:
    """The fork server if we have it to ourselves; one that somebody else started has not our environment."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    running = _server_pid()
    return multiprocessing.get_context("forkserver" if running in (None, _our_server) else "spawn")


def _server_pid() -> int | None:
    return getattr(forkserver._forkserver, "_forkserver_pid", None)


@contextmanager
def _quiet_start(preload: Sequence[str]) -> Iterator[None]:
    """While a process starts: one thread per library, no main module to import again, and no signal to stop.

    Ctrl-C, or a SIGTERM to the whole process group, would end the fork server, and the workers would seem to die of
    their trials. The signals stay blocked in the server; a worker lets SIGTERM through again.
    """
    global _our_server
    with _starting:
        main = sys.modules["__main__"]
        before = {name: os.environ.get(name) for name in _AT_START}
        os.environ.update(_AT_START)
        blocked = None
        if hasattr(signal, "pthread_sigmask"):
            resource_tracker.ensure_running()  # its own start would unblock them again
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            sys.modules["__main__"] = ModuleType("__main__")
            if _server_pid() is None:
                multiprocessing.set_forkserver_preload(["homeostat.study.running.worker", *preload])
            foreign = _server_pid() not in (None, _our_server)
            yield
            if not foreign:
                _our_server = _server_pid()
        finally:
            sys.modules["__main__"] = main
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
            if blocked is not None:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
