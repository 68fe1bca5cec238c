"""Designs by name, as the command line and `Study` ask for them. Random are only searches, by a fixed seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

from homeostat.errors import InvalidValue, invalid, unknown
from homeostat.study.design.arrays import orthogonal_array
from homeostat.study.design.design import Design, as_seeds
from homeostat.study.design.factorial import Factors, fractional_factorial, full_factorial
from homeostat.study.design.model import Interactions, all_effects, parameters
from homeostat.study.design.optimal import checked_runs, optimal_design
from homeostat.study.design.screening import definitive_screening, plackett_burman
from homeostat.study.factors import Factor, as_factors

Kind: TypeAlias = Literal["auto", "full", "fractional", "plackett-burman", "screening", "orthogonal", "optimal"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_FULL = 32  # treatments of a full factorial that "auto" runs in full
MOST_COEFFICIENTS = 100  # of main effects and two-factor interactions, for which "auto" takes a D-optimal design

_TABLES = {"plackett-burman": plackett_burman, "screening": definitive_screening, "orthogonal": orthogonal_array}


def make_design(
    factors: Factors,
    seeds: int | Sequence[int] = 5,
    kind: Kind = "full",
    resolution: int | None = None,
    *,
    runs: int | None = None,
    interactions: Interactions | None = None,
) -> Design:
    """A design by the name of its kind.

    Args:
        factors, seeds: see `full_factorial`.
        kind: "full", "fractional", "plackett-burman", "screening" (definitive), "orthogonal", "optimal", or "auto": the
            full factorial up to `MOST_FULL` treatments; with more, the regular fraction of resolution V, or the best
            there is, where every factor has two levels; otherwise a D-optimal design of the main effects and, up to
            `MOST_COEFFICIENTS`, all two-factor interactions. "auto" with a resolution is fractional.
        resolution: of a fraction; None: V, see `fractional_factorial`.
        runs: of "optimal", how many treatments; of "fractional" and "auto", at most so many.
        interactions: of "optimal" and "auto", those to estimate, see `optimal_design`; None: all that are affordable.
    Raises: InvalidValue for another kind, for an argument that the kind has no use for, and what the designs refuse.
    Example:
        >>> small, large = ({name: [0, 1] for name in names} for names in ("abcde", "abcdef"))
        >>> make_design(small, kind="auto").kind, make_design(large, kind="auto").kind
        ('full', 'fractional')
    """
    if kind not in KINDS:
        raise unknown("make_design", "kind", kind, KINDS)
    _check_use(kind, resolution, runs, interactions)
    known, blocks = as_factors(factors), as_seeds(seeds)
    if kind == "fractional" or (kind == "auto" and resolution is not None):
        return fractional_factorial(known, blocks, resolution=resolution, runs=runs)
    if kind == "auto":
        return _automatic(known, blocks, runs, interactions)
    if kind == "optimal":
        return optimal_design(known, blocks, runs=runs, interactions="all" if interactions is None else interactions)
    return _TABLES.get(kind, full_factorial)(known, blocks)


def _check_use(kind: str, resolution: int | None, runs: int | None, interactions: Interactions | None) -> None:
    """Raise InvalidValue for an argument that a design of this kind has no use for."""
    if resolution is not None and kind not in ("fractional", "auto"):
        raise invalid("make_design", "resolution", f"be None for kind {kind!r}", resolution, "Ask for a fraction.")
    if runs is not None and kind not in ("fractional", "optimal", "auto"):
        raise invalid("make_design", "runs", f"be None for kind {kind!r}", runs, "Ask for kind 'optimal'.")
    if interactions is not None and kind not in ("optimal", "auto"):
        raise invalid("make_design", "interactions", f"be None for kind {kind!r}", interactions, "Ask for 'optimal'.")
    if interactions is not None and resolution is not None:
        cure = "A fraction has interactions by its resolution; a D-optimal design has those asked for."
        raise invalid("make_design", "interactions and resolution", "not both be given", resolution, cure)


def _automatic(
    factors: tuple[Factor, ...], seeds: tuple[int, ...], runs: int | None, interactions: Interactions | None
) -> Design:
    most = MOST_FULL if runs is None else checked_runs("make_design", runs)
    try:
        whole = full_factorial(factors, seeds)
    except InvalidValue:  # far too many combinations
        whole = None
    if whole is not None and len(whole.treatments) <= most:
        return whole
    crossed = all(factor.within is None and len(factor.levels) == 2 for factor in factors)
    if crossed and interactions is None:
        found = _best_fraction(factors, seeds, runs)
        if found is not None:
            return found
    if interactions is None:
        affordable = parameters(factors, all_effects(factors)) <= (MOST_COEFFICIENTS if runs is None else most)
        interactions = "all" if affordable else "none"
    return optimal_design(factors, seeds, runs=runs, interactions=interactions)


def _best_fraction(factors: tuple[Factor, ...], seeds: tuple[int, ...], runs: int | None) -> Design | None:
    """The fraction of resolution V, or the highest below it that is within reach; in at most `runs`, V or none."""
    if len(factors) < 3:
        return None
    if runs is not None:
        try:
            found = fractional_factorial(factors, seeds, runs=runs)
        except InvalidValue:
            return None
        return found if (found.resolution or 0) >= 5 else None
    for resolution in (5, 4):
        try:
            return fractional_factorial(factors, seeds, resolution=resolution)
        except InvalidValue:  # the search for so many factors gave up
            continue
    return fractional_factorial(factors, seeds, resolution=3)
