"""Lenth's method: intervals for the effects of an experiment in which nothing was repeated. Nothing is random."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import special

from homeostat.errors import invalid
from homeostat.inference.intervals import check_confidence


class Lenth(NamedTuple):
    """The pseudo standard error of the effects, its degrees of freedom, and the margins that follow.

    Attributes:
        pse: 1.5 times the median of the effects that are not far from zero.
        df: a third of the number of effects.
        margin: of a single effect: estimate +- margin is its interval.
        simultaneous: of all effects together.
    """

    pse: float
    df: float
    margin: float
    simultaneous: float


def lenth(effects: np.ndarray, confidence: float = 0.95, least: float = 0.0) -> Lenth:
    """How far effects reach that are noise, read off the effects themselves, most of which must be nearly zero.

    With s0 = 1.5 median|c|, the pseudo standard error is 1.5 times the median of those |c| that are less than 2.5 s0.

    Args:
        effects: independent estimates of equal standard error, as in an orthogonal two-level design, shape (m,), and
            three or more.
        confidence: in (0, 1).
        least: the pseudo standard error is no less than this.
    Source: Lenth 1989, Quick and easy analysis of unreplicated factorials, Technometrics 31, 469-473.
    Example:
        >>> found = lenth(np.array([0.3, -0.1, 0.2, 5.0, -0.4, 0.1, 0.25]))
        >>> round(found.pse, 4), round(found.margin, 4)
        (0.3375, 1.2704)
    """
    check_confidence("lenth", confidence)
    size = np.abs(np.asarray(effects, dtype=float))
    if len(size) < 3 or not np.isfinite(size).all():
        raise invalid("lenth", "effects", "be three or more finite numbers", size)
    first = 1.5 * float(np.median(size))
    pse = max(least, 1.5 * float(np.median(size[size < 2.5 * first])) if first > 0 else 0.0)
    df, count = len(size) / 3, len(size)
    tail = (1 + confidence ** (1 / count)) / 2
    return Lenth(
        pse, df, float(special.stdtrit(df, 0.5 + confidence / 2)) * pse, float(special.stdtrit(df, tail)) * pse
    )
