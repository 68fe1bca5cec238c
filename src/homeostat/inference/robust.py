"""Averages that single odd runs cannot move, and bootstrap intervals for them.

What is random comes from the generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.errors import invalid
from homeostat.inference.intervals import Interval, check_confidence


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean of the middle half: of n sorted values the outer n // 4 on either side are left out.

    Args:
        values: shape (..., n), n >= 1.
    Returns: shape (...).
    Source: Agarwal et al. 2021, Deep reinforcement learning at the edge of the statistical precipice, arXiv:2108.13264.
    Example:
        >>> float(interquartile_mean(np.array([0.0, 1.0, 2.0, 3.0, 100.0])))
        2.0
    """
    ordered, cut = np.sort(values, axis=-1), values.shape[-1] // 4
    return np.asarray(ordered[..., cut : values.shape[-1] - cut].mean(axis=-1))


def interquartile_difference(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    generator: np.random.Generator,
    confidence: float = 0.95,
    draws: int = 2000,
) -> Interval:
    """The interquartile mean of all runs on one side minus that on the other, with a stratified bootstrap interval.

    The runs of each stratum (a treatment) are drawn from that stratum again, with replacement; the interval goes from
    percentile to percentile. With few runs to a stratum it is too narrow: three cover about 85 % instead of 95 %.

    Args:
        first, second: the runs of each stratum of a side, shape (runs,) each.
        generator: draws the samples.
        confidence: in (0, 1).
        draws: number of samples.
    Raises: InvalidValue where a side has no run.
    Source: Agarwal et al. 2021, arXiv:2108.13264.
    """
    check_confidence("interquartile_difference", confidence)
    sides = []
    for name, strata in (("first", first), ("second", second)):
        if not sum(map(len, strata)):
            raise invalid("interquartile_difference", name, "hold at least one run", strata)
        drawn = [part[generator.integers(0, len(part), (draws, len(part)))] for part in strata if len(part)]
        sides.append((interquartile_mean(np.concatenate(strata)), interquartile_mean(np.concatenate(drawn, axis=1))))
    (one, drawn_one), (two, drawn_two) = sides
    low, high = np.quantile(drawn_one - drawn_two, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(one - two), float(low), float(high))
