"""Which findings are asked for: codes, or beginnings of codes such as SIG, picked or left out. Nothing is random."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from homeostat.errors import unknown


@dataclass(frozen=True)
class Selection:
    """What --select and --ignore say. The longer of two beginnings that fit a code decides; of two equal, to ignore.

    Example:
        >>> chosen = Selection(("SIG", "OPT001"), ("SIG003",))
        >>> [chosen.keeps(code) for code in ("SIG001", "SIG003", "OPT001", "OPT002")]
        [True, False, True, False]
    """

    select: tuple[str, ...] = ()
    """Beginnings of codes; none selects all."""
    ignore: tuple[str, ...] = ()

    def keeps(self, code: str) -> bool:
        """Whether findings with this code are wanted."""
        chosen = max((len(start) for start in self.select if code.startswith(start)), default=-1)
        left_out = max((len(start) for start in self.ignore if code.startswith(start)), default=-1)
        if left_out >= 0:
            return chosen > left_out
        return chosen >= 0 or not self.select


def selection(select: Iterable[str] | None, ignore: Iterable[str] | None, known: Iterable[str]) -> Selection:
    """The selection that a user writes.

    Args:
        select, ignore: codes or beginnings of codes, in any case; one text may hold several, separated by commas.
        known: all codes there are.
    Raises: InvalidValue for what no code begins with, with the nearest that there is.
    """
    codes = sorted(known)
    return Selection(_checked("--select", select, codes), _checked("--ignore", ignore, codes))


def codes_beginning(where: str, start: str, known: Iterable[str]) -> list[str]:
    """The codes that begin with `start`, in any case.

    Args:
        where: what was asked, for the message.
    Raises: InvalidValue if there are none, with the nearest that there is.
    Example:
        >>> codes_beginning("explain", "sig", ["OPT001", "SIG001", "SIG002"])
        ['SIG001', 'SIG002']
    """
    codes = sorted(known)
    wanted = start.strip().upper()
    found = [code for code in codes if wanted and code.startswith(wanted)]
    if found:
        return found
    families = sorted({_letters(code) for code in codes})
    family = _letters(wanted)
    near = [code for code in codes if _letters(code) == family]
    raise unknown(where, "code", start, near or [*families, *(c for c in codes if c.endswith(wanted.lstrip(family)))])


def _checked(option: str, given: Iterable[str] | None, codes: list[str]) -> tuple[str, ...]:
    starts = [start.strip() for text in given or () for start in text.split(",") if start.strip()]
    for start in starts:
        codes_beginning(option, start, codes)
    return tuple(start.upper() for start in starts)


def _letters(code: str) -> str:
    """The letters that a code begins with: its family."""
    found = re.match(r"[A-Z]*", code)
    return found[0] if found else ""
