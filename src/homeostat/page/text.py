"""Text for people: fit to stand in any document, cut to size, numbers as people say them. Nothing is random."""

from __future__ import annotations

import math
import re
import unicodedata

# Control characters and half surrogates are illegal in XML; the direction marks can scramble the text around them.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def clean(text: str) -> str:
    """The text with characters that no document may hold shown as �.

    Example:
        >>> clean("nul\\x00 and \\u202eright-to-left")
        'nul� and �right-to-left'
    """
    return _UNPRINTABLE.sub("\ufffd", text)


def encodable(text: str) -> str:
    """The text with half surrogates, which UTF-8 cannot hold, written out; all else as it is.

    Example:
        >>> encodable("was\\udcff")
        'was\\\\udcff'
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shorten(text: str, width: float) -> str:
    """The text on one line, cut with an ellipsis to at most `width` average characters (an East Asian one counts two).

    Example:
        >>> shorten("norm: none → batch", 12)
        'norm: none …'
    """
    line = " ".join(clean(text).split())
    if _columns(line) <= width:
        return line
    used, kept = 1, 0
    for character in line:
        used += _columns(character)
        if used > width:
            break
        kept += 1
    return line[:kept] + "…"


def duration(seconds: float) -> str:
    """A time as people say it.

    Example:
        >>> [duration(seconds) for seconds in (0.034, 2.5, 161, 7500, 300000, float("nan"))]
        ['34 ms', '2.5 s', '2 min 41 s', '2 h 5 min', '3 d 11 h', '–']
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 0.0995:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else roughly(seconds)


def roughly(seconds: float) -> str:
    """A time that is an estimate, as people say it: in whole seconds, and in whole minutes from one on.

    Example:
        >>> [roughly(seconds) for seconds in (0.4, 59, 61, 7300, 300000)]
        ['1 s', '59 s', '1 min', '2 h 2 min', '3 d 11 h']
    """
    whole = max(1, round(seconds))
    if whole < 60:
        return f"{whole} s"
    hours, minutes = divmod(round(whole / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if hours else f"{minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def percent(confidence: float) -> str:
    """A confidence as people say it: "95 %"."""
    return f"{100 * confidence:.4g}\u00a0%"


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
