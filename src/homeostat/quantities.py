"""Times and sizes as people write them: "10m", "4G". Nothing here is random."""

from __future__ import annotations

import re

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)\s*", re.IGNORECASE)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_PREFIXES = ("", "k", "m", "g", "t")


def seconds_of(text: str) -> float | None:
    """The seconds that a text names, or None if it names none.

    Example:
        >>> [seconds_of(text) for text in ("90", "30s", "10 min", "1.5h", "soon")]
        [90.0, 30.0, 600.0, 5400.0, None]
    """
    match = _TIME.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2].lower()] if match else None


def bytes_of(text: str) -> int | None:
    """The bytes that a text names, in powers of 1024, or None if it names none.

    Example:
        >>> [bytes_of(text) for text in ("512", "4G", "1.5 GiB", "300mb", "much")]
        [512, 4294967296, 1610612736, 314572800, None]
    """
    match = _SIZE.fullmatch(text)
    return round(float(match[1]) * 1024 ** _PREFIXES.index(match[2].lower())) if match else None


def size(count: float) -> str:
    """Bytes for people, in powers of 1024.

    Example:
        >>> [size(count) for count in (512, 4 * 1024**3, 1.5 * 1024**2)]
        ['512 bytes', '4 GiB', '1.5 MiB']
    """
    power = 0
    while count >= 1024 and power < 4:
        count, power = count / 1024, power + 1
    return f"{count:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
