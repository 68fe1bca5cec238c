"""D-optimal designs by coordinate exchange: rows of level positions that make |X'X| large. Random are only the starts.

From a start each row in turn takes the one change of a level that raises the determinant most, until no row has any.
What a change is worth follows from the inverse of X'X at hand, which a rank-two update then carries along, so that the
determinant itself is computed once per search. A search begins with random rows, or with the best of its chain of
searches in which one row of ten is replaced by a random one; of all searches the best design is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np

from homeostat import seeds as streams

Expand: TypeAlias = Callable[[np.ndarray], np.ndarray]

_RIDGE = 1e-4  # times the identity, added to X'X / n: a start may be singular
_GAIN = 1e-7  # a relative gain of the determinant below this is rounding
_PASSES = 100  # over all rows; fewer than ten are usual
_CHAIN = 15  # searches from one random start
_REPLACED = 0.1  # of the rows, from one search of a chain to the next


def coordinate_exchange(
    expand: Expand,
    levels: Sequence[int],
    fixed: np.ndarray,
    added: int,
    *,
    searches: int,
    seed: int = 0,
    start: np.ndarray | None = None,
    same: Expand = lambda positions: positions,
) -> np.ndarray:
    """Rows of positions that make the determinant of X'X as large as the search can.

    Args:
        expand: from positions, shape (m, k), to rows of the model matrix, shape (m, p).
        levels: of each of the k factors, how many.
        fixed: rows that the design has in any case, shape (f, k); f may be 0.
        added: how many rows to find; there must be that many that are not fixed, and f + added must be at least p.
        searches: how many, 1 or more.
        seed: the result is a pure function of it and the other arguments.
        start: rows to begin the first search with, shape (added, k), none of them fixed or twice.
        same: brings positions that mean one treatment to one form; no treatment is taken twice.
    Returns: shape (f + added, k): the fixed rows, then the others.
    Source: Meyer & Nachtsheim 1995, The coordinate-exchange algorithm for constructing exact optimal experimental
        designs; Fedorov 1972 for what an exchange is worth.
    """
    space = _Space(expand, np.array(levels), len(fixed), same)
    best = current = np.vstack([fixed, np.zeros((0, len(levels)), int) if start is None else start])
    most = reached = -np.inf
    for search in range(searches):
        draws = streams.numpy_generator(seed, "coordinate exchange", search)
        if search % _CHAIN:
            kept = draws.permutation(added)[: added - max(1, round(_REPLACED * added))]
            begun = np.vstack([fixed, current[len(fixed) + np.sort(kept)]])
        else:
            begun, reached = fixed if search or start is None else best, -np.inf
        rows = _improved(space, _filled(space, begun, len(fixed) + added, draws), draws)
        size = _log_determinant(expand(rows))
        if size >= reached:
            current, reached = rows, size
        if size > most + 1e-9 or search == 0:
            best, most = rows, size
    return best


@dataclass(frozen=True, eq=False)
class _Space:
    """What a search may change: coordinates by level, in all rows but the first `fixed`."""

    expand: Expand
    levels: np.ndarray
    fixed: int
    same: Expand

    @cached_property
    def changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Every change of one coordinate, as its factor and its step: two arrays of shape (sum of levels - 1,)."""
        steps = [(factor, step) for factor, count in enumerate(self.levels) for step in range(1, count)]
        factor, step = np.array(steps).T
        return factor, step

    def changed(self, row: np.ndarray) -> np.ndarray:
        """The rows that differ from this one in one coordinate, shape (sum of levels - 1, k)."""
        factor, step = self.changes
        found = np.repeat(row[None], len(factor), axis=0)
        found[np.arange(len(factor)), factor] = (row[factor] + step) % self.levels[factor]
        return found


def _filled(space: _Space, rows: np.ndarray, count: int, draws: np.random.Generator) -> np.ndarray:
    """The rows, and random ones behind them that are new treatments, up to `count`."""
    while len(rows) < count:
        more = draws.integers(0, space.levels, size=(count - len(rows), len(space.levels)))
        rows = np.vstack([rows, more])
        rows = rows[np.sort(np.unique(space.same(rows), axis=0, return_index=True)[1])]
    return rows


def _improved(space: _Space, rows: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    rows = rows.copy()
    for _ in range(_PASSES):
        x, held, changed = space.expand(rows), space.same(rows), False
        inverse = np.linalg.inv(x.T @ x + _RIDGE * len(x) * np.eye(x.shape[1]))
        for place in space.fixed + draws.permutation(len(rows) - space.fixed):
            others = space.changed(rows[place])
            y = space.expand(others)
            found = _best(inverse, x[place], y, space.same(others), held)
            if found is not None:
                inverse = _exchanged(inverse, x[place], y[found])
                rows[place], x[place], held[place] = others[found], y[found], space.same(others[found][None])[0]
                changed = True
        if not changed:
            break
    return rows


def _best(inverse: np.ndarray, x: np.ndarray, y: np.ndarray, others: np.ndarray, held: np.ndarray) -> int | None:
    """Which of the rows y to take in place of x: the largest gain that is no treatment of the design already."""
    across, own = y @ inverse, inverse @ x
    gain = (1 + np.einsum("ij,ij->i", across, y)) * (1 - x @ own) + (y @ own) ** 2 - 1
    for place in np.argsort(-gain, kind="stable"):
        if gain[place] <= _GAIN:
            return None
        if not (held == others[place]).all(axis=1).any():
            return int(place)
    return None


def _exchanged(inverse: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The inverse of X'X + yy' - xx' from that of X'X, by Woodbury's identity."""
    pair = np.column_stack([y, x])
    weighted = inverse @ pair
    core = np.diag([1.0, -1.0]) + pair.T @ weighted
    found: np.ndarray = inverse - weighted @ np.linalg.solve(core, weighted.T)
    return found


def _log_determinant(x: np.ndarray) -> float:
    sign, size = np.linalg.slogdet(x.T @ x / len(x))
    return float(size) if sign > 0 else -np.inf
