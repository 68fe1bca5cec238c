"""Named places where a test makes a process die, stop or fail, to show that nothing is lost there.

Inert unless the environment variable HOMEOSTAT_FAILPOINTS names places: "finish.written=kill" or, at the third time
that a process comes there, "finish.written=kill:3"; several are separated by commas. Whatever is stored has two places:
NAME.written, before it counts, and NAME.stored, after it. Nothing here is random.
"""

from __future__ import annotations

import errno
import os
import signal
from collections import Counter

VARIABLE = "HOMEOSTAT_FAILPOINTS"
_ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS}

_reached: Counter[str] = Counter()


def reach(place: str) -> None:
    """Do what a test asks for here: kill or stop this process, or fail as a full or a read-only disk does.

    Raises: OSError for "full" and "readonly".
    """
    asked = os.environ.get(VARIABLE)
    if asked is None:
        return
    for each in asked.split(","):
        name, _, what = each.partition("=")
        action, _, time = what.partition(":")
        if name != place:
            continue
        _reached[place] += 1
        if _reached[place] == int(time or _reached[place]):
            _act(action, place)


def _act(action: str, place: str) -> None:
    if action in _ERRORS:
        raise OSError(_ERRORS[action], os.strerror(_ERRORS[action]), place)
    os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[action])
