"""Regular two-level fractions as matrices of -1 and +1: built by pydoe, improved, signed and measured here.

The resolution of every fraction is found by brute force from the matrix itself, because generators of fractions have
been wrong before. Nothing here knows names or levels of factors. Random are the starts of a search, by a fixed seed.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from homeostat import seeds as streams
from homeostat.errors import HomeostatError, invalid

_LONGEST = 8  # letters of the words that are counted: what interacts beyond that is nobody's question
_STARTS = 20  # of the search for least aberration, pydoe's fraction being the first
_MOST_WORK = 2**26  # sums of two numbers that it makes, about: half a second


def regular_fraction(count: int, resolution: int | None = None, runs: int | None = None) -> np.ndarray:
    """A regular fraction of `count` two-level factors whose first row is all -1, the base treatment.

    Args:
        count: number of factors, 3 or more.
        resolution: at least this, in the fewest runs; among fractions of that size the highest resolution is taken,
            and of that the least aberration that a search finds. Default: 5, or `count` where that is less.
        runs: instead, at most this many runs, at the highest resolution that they allow.
    Returns: shape (runs, count), entries -1.0 and +1.0, rows in lexicographic order.
    Raises: InvalidValue where no such fraction exists or is within reach; HomeostatError where pydoe's is not what was
        asked for.
    Source: Fries & Hunter 1980, Minimum aberration 2^(k-p) designs, Technometrics 22, 601-608.
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
    matrix = _of_least_aberration(matrix)
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


def words(matrix: np.ndarray) -> tuple[int, ...]:
    """How many words of 3, 4, ... and up to 8 letters the defining relation of a regular fraction has.

    A word is a set of columns whose product is constant. They are counted from the distances between the runs.

    Args:
        matrix: shape (runs, factors), entries -1 and +1.
    Source: MacWilliams & Sloane 1977, The theory of error-correcting codes, chapter 5.
    Example:
        >>> words(np.array([[-1, -1, 1], [-1, 1, -1], [1, -1, -1], [1, 1, 1]]))
        (1,)
    """
    distances = (matrix != matrix[0]).sum(axis=1)
    found = _counted(np.bincount(distances, minlength=matrix.shape[1] + 1)[None])[0]
    return tuple(int(number) for number in found)


def _of_least_aberration(matrix: np.ndarray) -> np.ndarray:
    """A fraction of as many runs with fewer words of the shortest length in which the two differ, or the same one."""
    runs, count = matrix.shape
    rank = runs.bit_length() - 1
    work = runs * (count - rank) ** 2 * (runs - count)
    if work > _MOST_WORK:
        return matrix
    table = _every_column(runs)
    own = np.abs((1 - 2 * table).T @ matrix).argmax(axis=0)
    free, products = own[:rank], own[rank:]  # the order in which pydoe has them
    others, draws = np.setdiff1d(np.arange(runs - 1), free), streams.numpy_generator(0, "fraction", runs, count)
    more = min(_STARTS, _MOST_WORK // work) - 1
    starts = [products, *(draws.choice(others, len(products), replace=False) for _ in range(more))]
    found, least = min((_exchanged(table, free, start) for start in starts), key=lambda pair: pair[1])
    return 2.0 * table[:, [*free, *sorted(found)]] - 1.0 if least < words(matrix) else matrix


def _exchanged(table: np.ndarray, free: np.ndarray, products: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """Columns of `table` in place of these products of the free ones, and their words.

    One column after another is exchanged for the one that leaves the fewest words, as long as there are fewer.
    """
    size, products = len(free) + len(products) + 1, products.copy()
    distances = table[:, [*free, *products]].sum(axis=1)
    least = tuple(_counted(np.bincount(distances, minlength=size)[None])[0])
    while True:
        best = None
        others = np.setdiff1d(np.arange(table.shape[1]), [*free, *products])
        for place in range(len(products) if others.size else 0):
            exchanged = (distances - table[:, products[place]])[:, None] + table[:, others]
            bins = np.bincount((exchanged + size * np.arange(others.size)).ravel(), minlength=size * others.size)
            patterns = _counted(bins.reshape(-1, size))
            lowest = np.lexsort(patterns.T[::-1])[0]
            if tuple(patterns[lowest]) < least:
                least, best = tuple(patterns[lowest]), (place, others[lowest])
        if best is None:
            return products, least
        distances += table[:, best[1]] - table[:, products[best[0]]]
        products[best[0]] = best[1]


def _every_column(runs: int) -> np.ndarray:
    """All products of the columns of a full factorial, in 0 and 1: shape (runs, runs - 1)."""
    left = np.arange(runs)[:, None] & np.arange(1, runs)
    found = np.zeros_like(left)
    while left.any():
        found ^= left & 1
        left >>= 1
    return found


def _counted(distances: np.ndarray) -> np.ndarray:
    """The words of 3, 4, ... letters from how many runs differ from the first one in 0, 1, ... columns.

    Args:
        distances: shape (fractions, factors + 1).
    Returns: shape (fractions, lengths), integers.
    """
    found: np.ndarray = distances @ _krawtchouk(distances.shape[1] - 1).T // distances[0].sum()
    return found


@functools.cache
def _krawtchouk(count: int) -> np.ndarray:
    """The sum of the products of 3, 4, ... of `count` signs, by how many of them are -1: shape (lengths, count + 1)."""

    def summed(letters: int, low: int) -> int:
        both = ((math.comb(low, i), math.comb(count - low, letters - i)) for i in range(letters + 1))
        return sum((-1) ** i * one * other for i, (one, other) in enumerate(both))

    letters = range(3, min(count, _LONGEST) + 1)
    return np.array([[summed(length, low) for low in range(count + 1)] for length in letters])


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
