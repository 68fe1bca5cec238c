"""Who holds a trial, and whether that process is still there.

A lease names the worker process and its driver by pid and start time, the boot they belong to, and a deadline on the
monotonic clock, which no change of the wall clock moves. A process of another pid namespace (a container) cannot be
looked up, so only its deadline counts. A study directory belongs to one machine at a time: the leases of another
machine look like those of an earlier boot. Nothing here is random but the tokens.
"""

from __future__ import annotations

import json
import math
import os
import platform
import uuid
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

Fate = Literal["held", "abandoned", "died"]


@dataclass(frozen=True)
class Process:
    """One process, never mistaken for a later one with the same pid.

    Attributes:
        pid: its number.
        born: when it started; on Linux in clock ticks since boot, elsewhere in seconds since the epoch.
    """

    pid: int
    born: float

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now; one that never lives if there is none."""
        born = _born(pid)
        return cls(pid, math.nan if born is None else born)

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        born = _born(self.pid)
        return born is not None and abs(born - self.born) < 0.5


@dataclass(frozen=True)
class Holder:
    """The worker that holds a trial: where it runs, its own name, its process and that of its driver."""

    worker: str
    process: Process
    driver: Process
    boot: str
    space: str

    @classmethod
    def current(cls, worker: str | None = None, driver: Process | None = None) -> Holder:
        """This process as the worker named `worker`, working for `driver` (without one: for itself)."""
        process = Process.current()
        return cls(worker or new_token(), process, driver or process, boot_id(), pid_space())

    def to_json(self) -> str:
        """The holder as text for the ledger."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Holder:
        """The holder that `to_json` wrote."""
        data = json.loads(text)
        process, driver = Process(**data.pop("process")), Process(**data.pop("driver"))
        return cls(process=process, driver=driver, **data)

    def fate(self, deadline: float, now: float) -> Fate:
        """What became of a lease of this holder.

        Args:
            deadline, now: seconds on the monotonic clock.
        Returns: "held"; "abandoned" when its driver is gone too, or the machine was started anew, so that nobody is to
            blame; "died" when a living driver's worker stopped renewing it. A worker that has ended while its driver
            lives is "held" until the deadline: to say how it ended is that driver's business.
        """
        if self.boot != boot_id():
            return "abandoned"
        if self.space != pid_space():
            return "held" if now < deadline else "abandoned"
        driven = self.driver.alive()
        if not driven and not self.process.alive():
            return "abandoned"
        if now < deadline:
            return "held"
        return "died" if driven else "abandoned"


def new_token() -> str:
    """A name that no other attempt or worker has."""
    return uuid.uuid4().hex


@cache
def boot_id() -> str:
    """What tells this run of this machine from earlier ones and from other machines."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return platform.node()  # start times of processes tell boots apart well enough


@cache
def pid_space() -> str:
    """The namespace in which this process's pids mean something."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _born(pid: int) -> float | None:
    """When the process `pid` started, or None; on Linux by a clock that setting the time does not move."""
    if Path("/proc/self/stat").exists():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in "ZX" else float(fields[19])
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None
