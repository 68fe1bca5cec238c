"""What a measurement was made with: machine, versions, threads. Said by every report and every benchmark."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def describe() -> dict[str, str]:
    """Machine and versions as short texts, in the order in which a reader wants them.

    Example:
        >>> list(describe())
        ['homeostat', 'python', 'torch', 'numpy', 'system', 'processor', 'cores']
    """
    return {
        "homeostat": version("homeostat"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "cores": str(available_cores()),
    }


def available_cores() -> int:
    """The cores this process may use, which a container or an affinity mask can make fewer than the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
