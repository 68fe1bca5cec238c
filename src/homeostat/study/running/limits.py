"""How long an attempt may take and how much memory it may hold; the driver watches both and ends what passes them.

Memory is what a worker and all that it started hold in RAM, its resident size, looked at twice a second. A limit of the
address space (RLIMIT_AS) would not do: torch, CUDA and memory-mapped data reserve many times what they ever use, and an
allocation that is refused fails anywhere in the process, seldom with a clear word. The price: a trial that takes
gigabytes within half a second may get past the limit for so long.

Nothing here is random.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection
from contextlib import suppress

import psutil

from homeostat.errors import invalid, invalid_type
from homeostat.quantities import bytes_of, seconds_of, size

WEIGH_SECONDS = 0.5  # between two looks at memory


def time_limit(where: str, value: float | str | None) -> float | None:
    """A time limit in seconds, given as a number of them or a text such as "10m".

    Raises: InvalidType, InvalidValue for what is no positive time.
    """
    return _limit(where, "timeout", value, seconds_of, 'Write seconds as a number, or a text such as "90s" or "10m".')


def memory_limit(where: str, value: float | str | None) -> int | None:
    """A memory limit in bytes, given as a number of them or a text such as "4G" (powers of 1024).

    Raises: InvalidType, InvalidValue for what is no positive size.
    """
    found = _limit(where, "memory", value, bytes_of, 'Write bytes as a number, or a text such as "500M" or "4G".')
    return None if found is None else int(found)


def time_passed(limit: float) -> str:
    """What is said of an attempt that passed its time limit, in seconds."""
    return f"The trial passed its time limit of {limit:g} s and was ended. {_cure('longer', 'timeout')}"


def memory_passed(held: int, limit: int) -> str:
    """What is said of an attempt that held so much memory, in bytes, more than its limit."""
    said = f"The trial held {size(held)} of memory, its limit is {size(limit)}, and was ended."
    return f"{said} {_cure('more', 'memory')}"


def heaviest(groups: Collection[int], limit: int) -> dict[int, int]:
    """The process groups that hold more than `limit` bytes of memory, and how much each holds.

    Args:
        groups: numbers of process groups, each that of its first process.
    Returns: {group: bytes}. Where resident sizes add up to more than the limit, pages that processes share count once
        (Linux); elsewhere they count in each of them.
    """
    members: dict[int, list[psutil.Process]] = {group: [] for group in groups}
    for pid in psutil.pids() if hasattr(os, "getpgid") else groups:
        with suppress(OSError, psutil.Error):
            group = os.getpgid(pid) if hasattr(os, "getpgid") else pid
            if group in members:
                members[group].append(psutil.Process(pid))
    found = {}
    for group, processes in members.items():
        if sum(map(_resident, processes)) > limit:
            held = sum(map(_share, processes))
            if held > limit:
                found[group] = held
    return found


def _cure(more: str, option: str) -> str:
    again = "once it is given up also --retry-failed (retry_failed=True)"
    return f"Where it needs {more}, give a larger --{option} ({option}=), and {again}."


def _resident(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _share(process: psutil.Process) -> int:
    """What a process holds, with shared pages divided among those that share them; slower to find out."""
    with suppress(psutil.Error, AttributeError):
        return int(process.memory_full_info().pss)
    return _resident(process)


def _limit(where: str, argument: str, value: object, parse: Callable[[str], float | None], cure: str) -> float | None:
    if value is None:
        return None
    number = parse(value) if isinstance(value, str) else value
    if isinstance(number, bool) or (number is not None and not isinstance(number, int | float)):
        raise invalid_type(where, argument, "be a number or a text", value, cure)
    if number is None or not 0 < number < math.inf:
        raise invalid(where, argument, "be positive and finite", value, cure)
    return float(number)
