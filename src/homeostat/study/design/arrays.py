"""Mixed-level orthogonal arrays: every two factors meet at all combinations of their levels equally often.

The arrays come from pydoe; columns of four and six levels are also used as columns of two and three. That the columns
chosen are orthogonal is checked from the matrix itself, every time. Nothing here is random.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from homeostat.errors import invalid
from homeostat.study.design.design import Design
from homeostat.study.design.factorial import Factors, refuse_nested
from homeostat.study.design.model import all_effects
from homeostat.study.factors import as_factors


def orthogonal_array(factors: Factors, seeds: int | Sequence[int] = 5) -> Design:
    """Main effects of factors with two to six levels, in the smallest array that holds them, with efficiency 1.

    There are arrays with 4, 8, 12, 16, 32 and 64 treatments for two levels, 9, 27 and 81 for three, 16 and 64 for four,
    25 for five, and mixed ones with 18 (2^1 3^7 or 6^1 3^6), 32, 36 (2^11 3^12), 50 and 54. Interactions bias the main
    effects.

    Args:
        factors: two or more.
        seeds: a number of seeds or the seeds themselves.
    Raises: InvalidValue where no array holds the factors.
    Source: Hedayat, Sloane & Stufken 1999, Orthogonal Arrays; pydoe's tables from NIST, York and Sloane's library.
    Example:
        >>> design = orthogonal_array({"norm": ["none", "batch"]} | {name: [0, 1, 2] for name in "abcdefg"})
        >>> len(design.treatments), round(design.d_efficiency, 9)
        (18, 1.0)
    """
    known = as_factors(factors)
    refuse_nested("orthogonal_array", known)
    if len(known) < 2:
        cure = "Run the full factorial."
        raise invalid("orthogonal_array", "factors", "be two or more", [factor.name for factor in known], cure)
    sizes = [len(factor.levels) for factor in known]
    positions = smallest_array(sizes)
    if positions is None:
        cure = "A D-optimal design takes any number of levels, and any number of treatments."
        raise invalid("orthogonal_array", "numbers of levels", "be those of a known array", sizes, cure)
    return Design.at(known, positions, seeds, "orthogonal", all_effects(known)[: len(known)])


def smallest_array(sizes: Sequence[int]) -> np.ndarray | None:
    """Positions of levels in the smallest known array for factors of these sizes, row 0 all 0; None without one."""
    import pydoe  # half a second, which other designs need not wait for

    arrays = [np.asarray(pydoe.get_orthogonal_array(name)) for name in pydoe.list_orthogonal_arrays()]
    for array in sorted(arrays, key=len):
        columns = [np.unique(column, return_inverse=True)[1] for column in array.T]
        chosen = _columns(columns, sizes)
        if chosen is not None:
            based = (chosen - chosen[0]) % np.array(sizes)
            rows, times = np.unique(based, axis=0, return_counts=True)  # few factors: a full factorial, repeated
            if len(set(times.tolist())) == 1 and is_orthogonal(rows):
                return rows
    return None


def is_orthogonal(rows: np.ndarray) -> bool:
    """Whether every two columns hold all combinations of their entries equally often, by counting.

    Example:
        >>> is_orthogonal(np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]]))
        True
    """
    for one, two in itertools.combinations(rows.T, 2):
        met, times = np.unique(np.column_stack([one, two]), axis=0, return_counts=True)
        if len(met) < len(set(one)) * len(set(two)) or len(set(times.tolist())) > 1:
            return False
    return True


def _columns(columns: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray | None:
    """A column with so many levels for each factor, shape (rows, factors), or None where they do not suffice."""
    left = sorted(columns, key=lambda column: int(column.max()))
    found: list[np.ndarray] = [np.empty(0)] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        size = sizes[place]
        fit = next((i for i, column in enumerate(left) if (column.max() + 1) % size == 0), None)
        if fit is None:
            return None
        column = left.pop(fit)
        rest = (int(column.max()) + 1) // size
        found[place] = column // rest
        if rest > 1:  # what a column of more levels says besides, as further columns
            left.append(column % rest)
        if rest == size == 2:
            left.append((column // 2 + column) % 2)
        left.sort(key=lambda column: int(column.max()))
    return np.column_stack(found)
