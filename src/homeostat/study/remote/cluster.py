"""A Ray cluster as the place where a study's trials run: which one, what a trial takes of it, and the connection.

The ledger beside the driver stays the only truth; `dispatch` claims trials and hands them to Ray, `node` runs them.
Nothing here is random.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from homeostat.errors import HomeostatError, invalid, invalid_type
from homeostat.study.remote.dispatch import Dispatch
from homeostat.study.running.local import Watch, stop_signals
from homeostat.study.running.runner import Objective, Rules
from homeostat.study.state.ledger import Ledger


@dataclass(frozen=True)
class Cluster:
    """Where and with what a study's trials run.

    Args:
        address: "ray": the connection that is open, else the cluster that RAY_ADDRESS or this machine has, else one
            that is started here for the study; "ray://host:port": a cluster elsewhere, by Ray Client.
        cpus: CPUs of a trial, which are also its threads; may be a fraction.
        gpus: GPUs of a trial, all on one node; 0.5 lets two trials share one.
        at_once: trials given to Ray at once, whether there is room or not; None: as many as the nodes have room for.
    Raises: InvalidValue, InvalidType for what cannot be used.
    Example:
        >>> Cluster("ray://head:10001", cpus=4, gpus=1).gpus
        1
    """

    address: str = "ray"
    cpus: float = 1
    gpus: float = 0
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.address, str):
            raise invalid_type("Cluster", "address", "be a text", self.address)
        if self.address != "ray" and not self.address.startswith("ray://"):
            raise invalid("Cluster", "address", "be 'ray' or begin with 'ray://'", self.address)
        for name, value in (("cpus", self.cpus), ("gpus", self.gpus)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise invalid_type("Cluster", name, "be a number", value)
            if not 0 <= value < math.inf:
                raise invalid("Cluster", name, "be finite and at least 0", value)
        if self.at_once is not None and self.at_once < 1:
            cure = "This process is not on the cluster." if self.at_once == 0 else ""
            raise invalid("Cluster", "workers (at_once)", "be at least 1", self.at_once, cure)
        if not self.cpus and not self.gpus:
            raise invalid("Cluster", "cpus and gpus", "not both be 0", 0, "Nothing would limit the trials on a node.")


def as_cluster(on: str | Cluster | None, workers: int | None = None) -> Cluster | None:
    """A cluster from what a user says, such as "ray"; `workers`, if given, is how many trials run `at_once`."""
    if on is None:
        return None
    found = on if isinstance(on, Cluster) else Cluster(on)
    return found if workers is None else replace(found, at_once=workers)


def run_cluster(
    ray: Any,
    ledger: Ledger,
    objective: Objective,
    rules: Rules,
    watch: Watch,
    *,
    on: Cluster,
) -> None:
    """Run all pending trials on a Ray cluster; returns when every trial of the study has ended.

    Args:
        ray: what `connected` gives.
        objective: anything that cloudpickle can send; what it imports must be importable on every node. One with a
            method `carried` says itself how it travels: (a callable that makes the objective out of a function that
            fetches files, those files as {name: array of bytes}), or None. Files travel once.
        on: what a trial takes, and how many run at once.
    Raises: HomeostatError if no node has room for a trial, or if nodes cannot run the objective; InvalidType if the
        objective cannot be sent; StudyInterrupted; StorageError and what else `runner.work` raises.
    """
    with stop_signals() as stop:
        Dispatch(ray, ledger, objective, rules, watch, on.cpus, on.gpus, on.at_once).run(stop)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster as long as the block runs; a connection that the caller has is used and kept.

    Args:
        address: as for `Cluster`.
    Raises: HomeostatError if there is no Ray, or no connection.
    """
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        cure = "Install it, in one version on all nodes: pip install 'homeostat[ray]'."
        raise HomeostatError(f"A study on {address!r} needs Ray, which cannot be imported ({error}). {cure}") from error
    if ray.is_initialized():
        if address != "ray":
            cure = "Give on='ray' to use the connection that is open, or end it with ray.shutdown()."
            raise invalid("Cluster", "address", "not name another cluster while Ray is connected", address, cure)
        yield ray
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that we start reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's announced default
    where = None if address == "ray" else address
    try:
        ray.init(
            where, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False if where is None else None
        )
    except Exception as error:  # Ray raises many kinds
        cure = "Is the cluster up, is it the same version of Ray and Python, and is RAY_AUTH_TOKEN the cluster's?"
        raise HomeostatError(f"Ray: no connection to {address!r} ({type(error).__name__}: {error}). {cure}") from error
    try:
        yield ray
    finally:
        ray.shutdown()
