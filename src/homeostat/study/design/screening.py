"""Designs that screen many factors in few treatments: Plackett-Burman for two levels, definitive screening for three.

Hadamard matrices are built here, by Paley's constructions and by doubling; conference matrices come from pydoe. What
makes a design of either is checked from the matrix itself, every time. Nothing here is random.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.errors import HomeostatError, invalid
from homeostat.study.design.design import Design
from homeostat.study.design.factorial import Factors, refuse_nested, two_levels
from homeostat.study.design.model import all_effects, distinct
from homeostat.study.factors import Factor, as_factors

MOST_SCREENED = 199  # factors of a Plackett-Burman design


def plackett_burman(factors: Factors, seeds: int | Sequence[int] = 5) -> Design:
    """Main effects of k two-level factors in the first multiple of four above k that can be built.

    Every interaction of two factors biases the main effects of all others by a part of its size (a third, with 12
    treatments), where a regular fraction biases one of them by all of it. With 4, 8 or 16 treatments it is regular.

    Args:
        factors: two or more, two levels each.
        seeds: a number of seeds or the seeds themselves.
    Raises: InvalidValue for other factors, or more than 199.
    Source: Plackett & Burman 1946, The design of optimum multifactorial experiments; Paley 1933, On orthogonal
        matrices.
    Example:
        >>> design = plackett_burman({name: [0, 1] for name in "abcdefghijk"})
        >>> len(design.treatments), round(design.d_efficiency, 9)
        (12, 1.0)
    """
    known = as_factors(factors)
    two_levels("plackett_burman", known, 2)
    if len(known) > MOST_SCREENED:
        raise invalid("plackett_burman", "factors", f"be at most {MOST_SCREENED}", len(known))
    matrix = next(found for found in map(hadamard, range(4 * (len(known) // 4 + 1), 1000, 4)) if found is not None)
    chosen = matrix[:, 1 : 1 + len(known)] * -matrix[0, 1 : 1 + len(known)]
    if (chosen.T @ chosen != len(chosen) * np.eye(len(known))).any() or chosen.sum(axis=0).any():
        raise HomeostatError(f"plackett_burman: the matrix of {len(chosen)} treatments is not orthogonal.")
    positions = distinct((chosen > 0).astype(int))
    return Design.at(known, positions, seeds, "plackett-burman", all_effects(known)[: len(known)])


def definitive_screening(factors: Factors, seeds: int | Sequence[int] = 5) -> Design:
    """Main effects and curvature of k three-level factors in 2k + 1 treatments, or a few more.

    Treatments come in pairs of opposites with one factor in the middle, and one has all of them there. So a step from
    one end to the other is biased by no two-factor interaction and by no curvature. The middle of a factor whose levels
    are all numbers is the number in between; of others it is the base level. Where that leaves the base treatment out,
    it is added with its opposite.

    Args:
        factors: three or more, three levels each.
        seeds: a number of seeds or the seeds themselves.
    Raises: InvalidValue for other factors.
    Source: Jones & Nachtsheim 2011, A class of three-level designs for definitive screening in the presence of
        second-order effects; Xiao, Lin & Bai 2012 for conference matrices.
    Example:
        >>> design = definitive_screening({name: [1, 2, 3] for name in "abcdef"}, seeds=2)
        >>> len(design.treatments), design.config(0)["a"]
        (15, 1)
    """
    known = as_factors(factors)
    refuse_nested("definitive_screening", known)
    for factor in known:
        if len(factor.levels) != 3:
            cure = "Two levels: a Plackett-Burman design; mixed: an orthogonal array or a D-optimal design."
            raise invalid("definitive_screening", f"levels of {factor.name!r}", "be three", list(factor.levels), cure)
    if len(known) < 3:
        cure = "Run the full factorial."
        raise invalid("definitive_screening", "factors", "be three or more", [f.name for f in known], cure)
    places = np.array([_low_middle_high(factor) for factor in known])
    base = np.argmin(places, axis=1) - 1
    coded = distinct(np.vstack([base, -base, _definitive(len(known))]))
    positions = places[np.arange(len(known)), coded + 1]
    return Design.at(known, positions, seeds, "screening", all_effects(known)[: len(known)])


def hadamard(order: int) -> np.ndarray | None:
    """A Hadamard matrix, entries -1 and +1, first column +1: orthogonal columns. None where no construction here fits.

    Example:
        >>> matrix = hadamard(12)
        >>> bool((matrix.T @ matrix == 12 * np.eye(12)).all())
        True
    """
    if order in (1, 2):
        return np.array([[1, 1], [1, -1]])[:order, :order]
    found = None
    if order % 4 == 0 and _is_prime(order - 1):
        # Paley's first: I + S, with S the skew bordered Jacobsthal matrix.
        found = np.eye(order, dtype=int) + _bordered(order - 1, -1)
    elif order % 4 == 0 and (half := hadamard(order // 2)) is not None:
        found = np.kron(np.array([[1, 1], [1, -1]]), half)
    elif order % 8 == 4 and _is_prime(order // 2 - 1):
        # Paley's second: a symmetric conference matrix, every entry a block of two by two.
        middle, sides = np.array([[1, -1], [-1, -1]]), np.array([[1, 1], [1, -1]])
        conference = _bordered(order // 2 - 1, 1)
        found = np.kron(conference, sides) + np.kron(np.eye(order // 2, dtype=int), middle)
    return None if found is None else found * found[:, :1]


def _bordered(prime: int, sign: int) -> np.ndarray:
    """The Jacobsthal matrix of a prime (which differences are squares), bordered by ones, below by `sign`."""
    squares = set((np.arange(1, prime) ** 2 % prime).tolist())
    character = np.array([0, *(1 if number in squares else -1 for number in range(1, prime))])
    place = np.arange(prime)
    inner = character[(place[None] - place[:, None]) % prime]
    found = np.zeros((prime + 1, prime + 1), dtype=int)
    found[1:, 1:], found[0, 1:], found[1:, 0] = inner, 1, sign
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _definitive(count: int) -> np.ndarray:
    """A definitive screening design, entries -1, 0 and +1, checked: shape (treatments, count)."""
    import pydoe  # half a second, which other designs need not wait for

    found = np.asarray(pydoe.definitive_screening_design(count)).astype(int)
    squares = found.T @ found
    paired = {tuple(row) for row in found.tolist()} == {tuple(row) for row in (-found).tolist()}
    if (squares != np.diag(np.diag(squares))).any() or (np.diag(squares) != len(found) - 3).any() or not paired:
        raise HomeostatError(f"definitive_screening: pydoe's design of {count} factors is none. Upgrade pydoe.")
    return found


def _low_middle_high(factor: Factor) -> list[int]:
    """The positions of the levels that the design calls -1, 0 and +1."""
    if all(isinstance(level, int | float) and not isinstance(level, bool) for level in factor.levels):
        return sorted(range(3), key=lambda place: float(factor.levels[place] or 0))
    return [1, 0, 2]
