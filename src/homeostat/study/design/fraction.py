"""Regular two-level fractions as matrices of -1 and +1: built by pydoe, signed and measured here.

The resolution of every fraction is found by brute force from the matrix itself, because generators of fractions have
been wrong before. Nothing here knows names or levels of factors, and nothing is random.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from homeostat.errors import HomeostatError, invalid


def regular_fraction(count: int, resolution: int | None = None, runs: int | None = None) -> np.ndarray:
    """A regular fraction of `count` two-level factors whose first row is all -1, the base treatment.

    Args:
        count: number of factors, 3 or more.
        resolution: at least this, in the fewest runs; among fractions of that size the highest resolution is taken.
            Default: 5, or `count` where that is less.
        runs: instead, at most this many runs, at the highest resolution that they allow.
    Returns: shape (runs, count), entries -1.0 and +1.0, rows in lexicographic order.
    Raises: InvalidValue where no such fraction exists or is within reach; HomeostatError where pydoe's is not what was
        asked for.
    """
    wanted = min(5, count) if resolution is None else resolution
    matrix = _highest(count, wanted) if runs is None else _within(count, runs)
    least = wanted if runs is None else 3
    reached = word_length(matrix)
    if reached is None or reached < least:
        raise HomeostatError(
            f"fractional_factorial: pydoe returned a fraction of resolution {reached} where {least} was "
            "asked for. Upgrade pydoe to 1.6 or later."
        )
    # A column changes sign where its first entry is +1: a word stays a word, and the first row becomes all -1.
    signed: np.ndarray = -matrix * matrix[0]
    return signed[np.lexsort(signed.T[::-1])]


def generators(names: Sequence[str], matrix: np.ndarray) -> tuple[str, ...]:
    """Each dependent column as a product of independent ones, such as "crop = −norm × dropout".

    Args:
        names: of the columns.
        matrix: from `regular_fraction`.
    """
    free: list[int] = []
    for column in range(matrix.shape[1]):
        if len(np.unique(matrix[:, [*free, column]], axis=0)) == 2 ** (len(free) + 1):
            free.append(column)
    texts = []
    for column in sorted(set(range(matrix.shape[1])) - set(free)):
        # A free factor is in the product where switching it alone, from all at base, switches this column.
        parts = [i for i in free if matrix[_only(matrix, free, i), column] > 0]
        sign = "" if len(parts) % 2 else "−"
        texts.append(f"{names[column]} = {sign}{' × '.join(names[i] for i in parts)}")
    return tuple(texts)


def word_length(matrix: np.ndarray) -> int | None:
    """The resolution of a two-level design, by brute force: the smallest set of columns whose product is constant.

    Args:
        matrix: shape (runs, factors), entries -1 and +1.
    Returns: the size of that set; None where no set has a constant product, that is, for a full factorial.
    Example:
        >>> word_length(np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1], [1, 1, 1]]))
        3
    """
    for size in range(1, matrix.shape[1] + 1):
        for chosen in itertools.combinations(range(matrix.shape[1]), size):
            if abs(matrix[:, chosen].prod(axis=1).sum()) == len(matrix):
                return size
    return None


def _highest(count: int, resolution: int) -> np.ndarray:
    found = _growing(count, resolution, runs=None)
    if not found:
        cure = "Use a lower resolution or fewer factors."
        raise invalid("fractional_factorial", "resolution", f"be within reach for {count} factors", resolution, cure)
    return found[-1]


def _within(count: int, runs: int) -> np.ndarray:
    found = _growing(count, 3, runs)
    if not found:
        cure = f"The smallest fraction of {count} factors has {len(_from_pydoe(count, 3))} runs."
        raise invalid("fractional_factorial", "runs", "suffice for resolution III", runs, cure)
    return found[-1]


def _growing(count: int, resolution: int, runs: int | None) -> list[np.ndarray]:
    """pydoe's fractions of this resolution and more in at most `runs` runs (None: in as many as the first has)."""
    found: list[np.ndarray] = []
    for wanted in range(resolution, count + 1):
        try:
            matrix = _from_pydoe(count, wanted)
        except ValueError:  # its search gave up; higher resolutions are only harder
            break
        runs = len(matrix) if runs is None else runs
        if len(matrix) > runs:
            break
        found.append(matrix)
    return found


def _from_pydoe(count: int, resolution: int) -> np.ndarray:
    import pydoe  # half a second, which studies that run full factorials need not wait for

    found: np.ndarray = pydoe.fracfact_by_res(count, resolution)
    return found


def _only(matrix: np.ndarray, free: list[int], position: int) -> int:
    wanted = np.where(np.array(free) == position, 1, -1)
    return int(np.flatnonzero((matrix[:, free] == wanted).all(axis=1))[0])
