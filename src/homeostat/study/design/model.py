"""What is estimated: effects by the names of their factors, and the columns of the model matrix that they stand for.

Levels are counted from 0, the base level; ABSENT stands where a nested factor has no level. Nothing here is random.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.study.factors import Factor, Level

Effect: TypeAlias = tuple[str, ...]  # the names of its factors: one for a main effect, two for an interaction
Interactions: TypeAlias = Literal["all", "none"] | Iterable[str | Sequence[str]]

ABSENT = -1


def effect_name(effect: Effect) -> str:
    """The name of an effect: "norm", or "norm × dropout" for an interaction."""
    return " × ".join(effect)


def all_effects(factors: Sequence[Factor]) -> tuple[Effect, ...]:
    """Main effects and two-factor interactions, main effects first.

    A nested factor has no interaction with its parent, and none with a factor that exists only where it does not.
    """
    names = tuple((factor.name,) for factor in factors)
    pairs = ((one.name, two.name) for one, two in itertools.combinations(factors, 2) if _meet(one, two))
    return (*names, *pairs)


def as_model(where: str, factors: Sequence[Factor], interactions: Interactions) -> tuple[Effect, ...]:
    """The main effects of all factors and the interactions asked for, in the order of `all_effects`.

    Args:
        where: the callable that asks, for errors.
        interactions: "all", "none", or pairs of names: ("norm", "dropout") or "norm:dropout".
    Raises: InvalidValue for a factor that does not exist, or a pair that is not of two factors that meet.
    Example:
        >>> factors = [Factor(name, (0, 1)) for name in "abc"]
        >>> as_model("example", factors, ["c:a"])
        (('a',), ('b',), ('c',), ('a', 'c'))
    """
    possible = all_effects(factors)
    if interactions == "all":
        return possible
    if interactions == "none":
        return possible[: len(factors)]
    if isinstance(interactions, str) or not isinstance(interactions, Iterable):
        cure = "For example: [('norm', 'dropout')]."
        raise invalid_type(where, "interactions", "be 'all', 'none' or a list of pairs", interactions, cure)
    wanted = {_as_pair(where, factors, possible, pair) for pair in interactions}
    return tuple(effect for effect in possible if len(effect) == 1 or frozenset(effect) in wanted)


def parameters(factors: Sequence[Factor], effects: Iterable[Effect]) -> int:
    """How many coefficients the intercept and these effects have together."""
    free = {factor.name: len(factor.levels) - 1 for factor in factors}
    return 1 + sum(math.prod(free[name] for name in effect) for effect in effects)


def combinations(factors: Sequence[Factor]) -> int:
    """How many treatments there are: combinations of levels, where a nested factor counts only within its parent."""
    nested: dict[tuple[str, Level], int] = {}
    for factor in factors:
        if factor.within is not None:
            nested[factor.within] = nested.get(factor.within, 1) * len(factor.levels)
    free = [factor for factor in factors if factor.within is None]
    return math.prod(sum(nested.get((factor.name, level), 1) for level in factor.levels) for factor in free)


def present(factors: Sequence[Factor], positions: np.ndarray) -> np.ndarray:
    """The positions of levels, shape (m, factors), with ABSENT where a nested factor's parent lacks its level."""
    found = positions.copy()
    names = [factor.name for factor in factors]
    for column, factor in enumerate(factors):
        if factor.within is not None:
            parent = names.index(factor.within[0])
            found[positions[:, parent] != factors[parent].levels.index(factor.within[1]), column] = ABSENT
    return found


@dataclass(frozen=True, eq=False)
class Columns:
    """From positions of levels to rows of the model matrix, whose columns are orthonormal over all treatments.

    The columns of a factor are Helmert contrasts scaled to mean square 1, two levels are -1 and +1, and an interaction
    has the products. Averaged over the full factorial, X'X / n is the identity; so |X'X / n|^(1/p) is the D-efficiency.
    With nested factors "over the full factorial" means: every level of every factor equally often.

    Args:
        factors: k of them.
        effects: of one or two factors each.
    """

    factors: Sequence[Factor]
    effects: Sequence[Effect]

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Rows of the model matrix, intercept first.

        Args:
            positions: shape (m, k); what `present` makes ABSENT may be anything.
        Returns: shape (m, p).
        """
        held = present(self.factors, positions)
        tables, left, right = self._recipe
        own = np.hstack([np.ones((len(held), 1)), *(table[held[:, i]] for i, table in enumerate(tables))])
        found: np.ndarray = own[:, left] * own[:, right]
        return found if self._scale is None else found * self._scale

    @property
    def owners(self) -> list[Effect]:
        """Whose each column behind the intercept is, length p - 1."""
        free = {factor.name: len(factor.levels) - 1 for factor in self.factors}
        return [effect for effect in self.effects for _ in range(math.prod(free[name] for name in effect))]

    @cached_property
    def _recipe(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """Of each factor its table, the last row for ABSENT; and of each column the two that it is the product of."""
        tables, places, start = [], {}, 1
        for factor in self.factors:
            count = len(factor.levels)
            tables.append(np.vstack([contrasts(count), np.zeros((1, count - 1))]))
            places[factor.name] = range(start, start + count - 1)
            start += count - 1
        pairs = [(0, 0)]
        for effect in self.effects:
            pairs += itertools.product(places[effect[0]], places[effect[1]] if len(effect) > 1 else (0,))
        left, right = np.array(pairs).T
        return tables, left, right

    @cached_property
    def _scale(self) -> np.ndarray | None:
        """One number per column that makes up for the treatments in which a nested factor is absent."""
        if all(factor.within is None for factor in self.factors):
            return None
        levels = {factor.name: len(factor.levels) for factor in self.factors}
        within = {factor.name: factor.within[0] for factor in self.factors if factor.within is not None}
        parents = [{within[name] for name in effect if name in within} for effect in self.owners]
        return np.sqrt([1, *(math.prod(levels[parent] for parent in own) for own in parents)])


def contrasts(count: int) -> np.ndarray:
    """Orthogonal contrasts of `count` levels (Helmert), each of mean 0 and mean square 1: shape (count, count - 1).

    Example:
        >>> contrasts(2).tolist()
        [[-1.0], [1.0]]
    """
    table = np.zeros((count, count - 1))
    for column in range(count - 1):
        table[: column + 1, column], table[column + 1, column] = -1.0, column + 1.0
    scaled: np.ndarray = table * np.sqrt(count / (table**2).sum(axis=0))
    return scaled


def efficiency(x: np.ndarray) -> float:
    """The D-efficiency |X'X / n|^(1/p) of a model matrix coded by `Columns`; 0 where it has less than full rank.

    Args:
        x: shape (n, p).
    """
    if x.shape[0] < x.shape[1]:
        return 0.0
    size = np.linalg.svd(x, compute_uv=False)
    if size[-1] <= size[0] * len(x) * np.finfo(float).eps:
        return 0.0
    return float(np.exp(np.mean(np.log(size**2 / len(x)))))


def distinct(rows: np.ndarray) -> np.ndarray:
    """The first of each set of equal rows, in their order."""
    first = np.unique(rows, axis=0, return_index=True)[1]
    found: np.ndarray = rows[np.sort(first)]
    return found


def _meet(one: Factor, two: Factor) -> bool:
    """Whether some treatment has a level of both, and each of them with more than one level of the other."""
    for factor, other in ((one, two), (two, one)):
        if factor.within is not None and factor.within[0] == other.name:
            return False
    both = one.within is not None and two.within is not None and one.within[0] == two.within[0]
    return not both or one.within == two.within


def _as_pair(
    where: str, factors: Sequence[Factor], possible: tuple[Effect, ...], pair: str | Sequence[str]
) -> frozenset[str]:
    names = [name.strip() for name in pair.split(":")] if isinstance(pair, str) else list(pair)
    for name in names:
        if name not in {factor.name for factor in factors}:
            raise unknown(where, "factor in interactions", name, [factor.name for factor in factors])
    if len(names) != 2 or names[0] == names[1]:
        raise invalid(where, "each interaction", "be of two factors", pair, "For example: norm:dropout.")
    if frozenset(names) not in {frozenset(effect) for effect in possible}:
        cure = "One of them is nested within the other, or they are never there together."
        raise invalid(where, "each interaction", "be of two factors that are varied together", pair, cure)
    return frozenset(names)
