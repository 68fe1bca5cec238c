"""Full factorials of any factors, and regular fractions of two-level factors. Nothing here is random."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from homeostat.errors import invalid
from homeostat.study.design import fraction
from homeostat.study.design.design import Design
from homeostat.study.design.model import distinct, present
from homeostat.study.factors import Factor, as_factors

Factors: TypeAlias = Mapping[str, Any] | Iterable[Factor | str]

MOST_TREATMENTS = 100_000


def full_factorial(factors: Factors, seeds: int | Sequence[int] = 5) -> Design:
    """Every combination of levels under every seed.

    Args:
        factors: see `as_factors`.
        seeds: a number of seeds (0, 1, ...) or the seeds themselves.
    Raises: InvalidValue for unusable factors or seeds, or more than 100,000 combinations.
    Example:
        >>> full_factorial({"norm": ["none", "batch"], "dropout": [0, 0.5]}, seeds=3).trials
        12
    """
    known = as_factors(factors)
    return Design.at(known, every_combination("full_factorial", known), seeds, "full")


def fractional_factorial(
    factors: Factors, seeds: int | Sequence[int] = 5, *, resolution: int | None = None, runs: int | None = None
) -> Design:
    """A regular two-level fraction that contains the base treatment.

    Resolution III aliases main effects with two-factor interactions, IV two-factor interactions with each other, V
    neither. Among fractions of the same size the one of highest resolution is taken, and of these one of least
    aberration, as far as a search finds it: with the fewest words of the shortest length in which they differ.

    Args:
        factors: three or more, two levels each.
        seeds: a number of seeds or the seeds themselves.
        resolution: at least this, in the fewest runs. Default: V, or for fewer than five factors one half of the full
            factorial.
        runs: instead, at most this many treatments, at the highest resolution that they allow.
    Raises: InvalidValue where no such fraction exists, with what does.
    Source: Box & Hunter 1961, The 2^(k-p) fractional factorial designs; Fries & Hunter 1980, Minimum aberration 2^(k-p)
        designs.
    Example:
        >>> print(fractional_factorial({name: [0, 1] for name in "abcde"}, seeds=2).describe())
        16 treatments × 2 seeds = 32 trials: 1/2 of the full factorial of a (0, 1), b (0, 1), c (0, 1), d (0, 1), e (0, 1), resolution V.
        Generators: e = −a × b × c × d.
        A generator is how one factor follows from others in every run; the resolution is what that mixes up: III main effects with two-factor interactions, IV such interactions with each other, V neither.
        Every main effect and two-factor interaction can be told apart from the others.
    """  # noqa: E501 - the doctest shows the line as it is
    known = as_factors(factors)
    _check_fraction(known, resolution, runs)
    matrix = fraction.regular_fraction(len(known), resolution, runs)
    design = Design.at(known, (matrix > 0).astype(int), seeds, "fractional")
    names = [factor.name for factor in known]
    reached, texts = fraction.word_length(matrix), fraction.generators(names, matrix)
    return dataclasses.replace(design, resolution=reached, generators=texts)


def every_combination(where: str, factors: Sequence[Factor]) -> np.ndarray:
    """The positions of the levels of all treatments, the base treatment first: shape (treatments, factors)."""
    sizes = [len(factor.levels) for factor in factors]
    if math.prod(sizes) > MOST_TREATMENTS:
        cure = "Run a fraction of it, or fewer factors."
        raise invalid(where, "number of treatments", f"be at most {MOST_TREATMENTS:,}", math.prod(sizes), cure)
    return distinct(present(factors, np.array(list(itertools.product(*map(range, sizes))))))


def refuse_nested(where: str, factors: Sequence[Factor]) -> None:
    """Raise InvalidValue where a factor is nested: designs made from tables cross every factor with every other."""
    for factor in factors:
        if factor.within is not None:
            cure = "A full factorial or a D-optimal design takes nested factors."
            raise invalid(where, "factors", "not be nested", str(factor), cure)


def two_levels(where: str, factors: Sequence[Factor], least: int) -> None:
    """Raise InvalidValue unless there are at least so many factors, of two levels each, none of them nested."""
    refuse_nested(where, factors)
    for factor in factors:
        if len(factor.levels) != 2:
            cure = "Leave levels out, or ask for a full factorial, an orthogonal array or a D-optimal design."
            raise invalid(where, f"levels of {factor.name!r}", "be two", list(factor.levels), cure)
    if len(factors) < least:
        words = {2: "two", 3: "three"}[least]
        names = [factor.name for factor in factors]
        raise invalid(where, "factors", f"be {words} or more", names, "Run the full factorial.")


def _check_fraction(factors: tuple[Factor, ...], resolution: int | None, runs: int | None) -> None:
    where, count = "fractional_factorial", len(factors)
    two_levels(where, factors, 3)
    if resolution is not None and runs is not None:
        raise invalid(where, "resolution and runs", "not both be given", (resolution, runs))
    if resolution is not None and not 3 <= resolution <= count:
        cure = f"A fraction of {count} factors reaches at most {count}, in half of the runs of the full factorial."
        raise invalid(where, "resolution", f"lie in 3..{count}", resolution, cure)
