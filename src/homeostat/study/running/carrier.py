"""What carries the trials of a study: this process, worker processes beside it, or a Ray cluster. Nothing is random."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from homeostat.study.remote.cluster import Cluster, connected, run_cluster
from homeostat.study.running import local
from homeostat.study.running.local import Watch
from homeostat.study.running.runner import Objective, Rules
from homeostat.study.state.ledger import Ledger

Carrier: TypeAlias = Callable[[Ledger], None]


@contextmanager
def carrier(
    objective: Objective, rules: Rules, watch: Watch, on: Cluster | None, workers: int, preload: Sequence[str]
) -> Iterator[Carrier]:
    """What runs all pending trials of a ledger when it is called, as often as needed while the block runs.

    Args:
        on: a cluster; None: this machine.
        workers: processes of this machine; 0: none but this one.
        preload: modules that are imported once for all worker processes.
    Raises: HomeostatError if the cluster cannot be reached.
    """
    if on is not None:
        with connected(on.address) as ray:
            yield lambda ledger: run_cluster(ray, ledger, objective, rules, watch, on=on)
    elif workers:
        yield lambda ledger: local.run_workers(ledger, objective, rules, watch, workers=workers, preload=preload)
    else:
        yield lambda ledger: local.run_here(ledger, objective, rules, watch)
