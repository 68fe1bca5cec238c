"""Intervals for shares of trials, such as how many diverge, and for the difference of two shares. Nothing is random."""

from __future__ import annotations

import math

from scipy import special

from homeostat.errors import invalid
from homeostat.inference.intervals import NO_INTERVAL, Interval, check_confidence


def share_interval(count: int, of: int, confidence: float = 0.95) -> Interval:
    """A share with Wilson's score interval, which stays within [0, 1] and holds where nothing or everything happened.

    Args:
        count: how often it happened, in 0..of.
        of: how often it could have; 0 gives NaN.
        confidence: in (0, 1).
    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    Example:
        >>> found = share_interval(0, 10)
        >>> found.estimate, round(found.high, 4)
        (0.0, 0.2775)
    """
    check_confidence("share_interval", confidence)
    if not 0 <= count <= of:
        raise invalid("share_interval", "count", f"lie in 0..{of}", count)
    if of == 0:
        return NO_INTERVAL
    z, share = float(special.ndtri(0.5 + confidence / 2)), count / of
    middle, half = share + z**2 / (2 * of), z * math.sqrt(share * (1 - share) / of + (z / (2 * of)) ** 2)
    low, high = ((middle + sign * half) / (1 + z**2 / of) for sign in (-1, 1))
    return Interval(share, max(low, 0.0) if count else 0.0, min(high, 1.0) if count < of else 1.0)


def share_difference(first: tuple[int, int], second: tuple[int, int], confidence: float = 0.95) -> Interval:
    """The first share minus the second with Newcombe's hybrid score interval, for independent trials.

    Args:
        first, second: (how often it happened, how often it could have).
        confidence: in (0, 1).
    Returns: NaN where one of them has no trials.
    Source: Newcombe 1998, Interval estimation for the difference between independent proportions, method 10.
    Example:
        >>> found = share_difference((56, 70), (48, 80))
        >>> round(found.estimate, 4), round(found.low, 4), round(found.high, 4)
        (0.2, 0.0524, 0.3339)
    """
    one, two = share_interval(*first, confidence), share_interval(*second, confidence)
    difference = one.estimate - two.estimate
    down = math.hypot(one.estimate - one.low, two.high - two.estimate)
    up = math.hypot(one.high - one.estimate, two.estimate - two.low)
    return Interval(difference, difference - down, difference + up)
