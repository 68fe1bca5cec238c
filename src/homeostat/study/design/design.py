"""A design: which treatments a study runs, under which seeds, in which order, and what it cannot tell apart.

A design is data: a frame of treatments (one per row, one factor per column) and the seeds, which are the blocks; every
treatment meets every seed. How it was made is the business of the modules beside this one. What it can tell is found
here, in its own matrix, because generators of designs have been wrong before. The order of trials is random, but a pure
function of its seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from homeostat import seeds as streams
from homeostat.errors import invalid, invalid_type
from homeostat.study.design import model as columns_of
from homeostat.study.design.description import described
from homeostat.study.design.model import ABSENT, Columns, Effect, effect_name
from homeostat.study.factors import Factor, Level, as_factors


@dataclass(frozen=True, eq=False)
class Design:
    """The treatments and seeds of a study. Built by `make_design` and the functions beside it.

    Attributes:
        factors: what is varied.
        treatments: index "treatment" 0..T-1, one object column per factor holding levels, None where a nested factor is
            absent. Treatment 0 is the base treatment wherever the design contains it; those built here do.
        seeds: the blocks; every treatment is run under each of them.
        kind: "full", "fractional", "plackett-burman", "screening", "orthogonal", "optimal" or "augmented".
        resolution: of a regular fraction, the length of the shortest word of its defining relation; None for others.
        generators: of a fraction, texts such as "crop = −norm × dropout", where +1 is the second level.
        model: the effects that the design is meant to estimate, main effects first; interactions that are not among
            them are taken to be zero. Default: all main effects and two-factor interactions.
    """

    factors: tuple[Factor, ...]
    treatments: pd.DataFrame
    seeds: tuple[int, ...]
    kind: str = "full"
    resolution: int | None = None
    generators: tuple[str, ...] = ()
    model: tuple[Effect, ...] = ()

    def __post_init__(self) -> None:
        if not self.model:
            object.__setattr__(self, "model", self.effects)

    @classmethod
    def at(
        cls,
        factors: tuple[Factor, ...],
        positions: np.ndarray,
        seeds: int | Sequence[int],
        kind: str,
        model: tuple[Effect, ...] = (),
    ) -> Design:
        """The design whose treatments have their levels at these positions, shape (treatments, factors)."""
        rows = [
            [None if place == ABSENT else factor.levels[place] for factor, place in zip(factors, row, strict=True)]
            for row in columns_of.present(factors, positions)
        ]
        return cls(factors, _frame(factors, rows), as_seeds(seeds), kind, model=model)

    @property
    def trials(self) -> int:
        """How many trials the study has: treatments × seeds."""
        return len(self.treatments) * len(self.seeds)

    @property
    def combinations(self) -> int:
        """How many treatments the full factorial of these factors has."""
        return columns_of.combinations(self.factors)

    @property
    def base(self) -> dict[str, Level]:
        """The base treatment: every factor at its first level."""
        return self._without_absent({factor.name: factor.base for factor in self.factors})

    def config(self, treatment: int) -> dict[str, Level]:
        """The levels of one treatment by factor name; a nested factor that is absent is left out.

        Raises: InvalidValue if the design has no such treatment.
        """
        if not 0 <= treatment < len(self.treatments):
            raise invalid("Design.config", "treatment", f"lie in 0..{len(self.treatments) - 1}", treatment)
        held = zip(self.factors, self._rows[treatment], strict=True)
        return self._without_absent({factor.name: level for factor, level in held})

    def find(self, config: Mapping[str, Level]) -> int | None:
        """The number of the treatment with these levels, or None where the design does not run it."""
        held = self._without_absent(config)
        return self._numbers.get(
            tuple(held.get(factor.name) if factor.within else held[factor.name] for factor in self.factors)
        )

    def run_order(self, order_seed: int = 0) -> list[tuple[int, int]]:
        """All trials as (treatment, seed), block by block, the treatments of each block in random order.

        Block by block, so that a study that ends early has whole blocks; in random order, so that a drift of the
        machine during a block is not taken for an effect.

        Args:
            order_seed: the order is a pure function of it.
        """
        order = []
        for seed in self.seeds:
            shuffled = streams.numpy_generator(order_seed, "run order", seed).permutation(len(self.treatments))
            order += [(int(treatment), seed) for treatment in shuffled]
        return order

    @property
    def effects(self) -> tuple[Effect, ...]:
        """All main effects and two-factor interactions, by the names of their factors, main effects first."""
        return columns_of.all_effects(self.factors)

    @property
    def estimated(self) -> tuple[Effect, ...]:
        """The effects of the model, of those that cannot be told apart the first."""
        groups = [[effect for effect, _ in group if effect in self.model] for group in self.alias_sets]
        hidden = {effect for group in groups for effect in group[1:]}
        return tuple(effect for effect in self.model if effect not in hidden)

    @cached_property
    def positions(self) -> np.ndarray:
        """The positions of the levels of every treatment, shape (treatments, factors); -1 where a factor is absent."""
        found = [
            [ABSENT if level is None and factor.within else factor.levels.index(level) for level in column]
            for factor, column in zip(self.factors, zip(*self._rows, strict=True), strict=True)
        ]
        return np.array(found).T

    def columns(self, effect: Effect) -> np.ndarray:
        """The columns of an effect in the model matrix of the treatments: shape (treatments, product of levels - 1).

        They are products of `Factor.coding`, zero where a nested factor is absent.
        """
        block = np.ones((len(self.treatments), 1))
        for name in effect:
            block = np.einsum("ti,tj->tij", block, self._coded[name]).reshape(len(block), -1)
        return block

    @cached_property
    def alias_sets(self) -> tuple[tuple[tuple[Effect, int], ...], ...]:
        """Effects that this design cannot tell apart at all, found in the design matrix itself.

        Each set lists (effect, sign) with main effects first; the first has sign +1. What can be estimated is the sum
        of the set with those signs. Only sets of two or more are listed. Effects with one column are compared, that is,
        those of two-level factors; `alias_matrix` has what is mixed up in part.
        """
        groups: dict[bytes, list[tuple[Effect, int]]] = {}
        for effect in self.effects:
            block = self.columns(effect)
            if block.shape[1] == 1 and block.any():
                sign = 1 if block[np.flatnonzero(block[:, 0])[0], 0] > 0 else -1
                groups.setdefault(np.int8(sign * block[:, 0]).tobytes(), []).append((effect, sign))
        return tuple(
            tuple((effect, sign * group[0][1]) for effect, sign in group) for group in groups.values() if len(group) > 1
        )

    @property
    def aliases(self) -> pd.DataFrame:
        """Main effects and two-factor interactions that cannot be told apart: columns effect, aliased_with.

        One row per effect that has aliases; `aliased_with` names them all, with "−" before one of opposite sign.
        """
        rows = [
            {"effect": effect_name(effect), "aliased_with": _alias_text(group, position)}
            for group in self.alias_sets
            for position, (effect, _) in enumerate(group)
        ]
        return pd.DataFrame(rows, columns=["effect", "aliased_with"])

    @cached_property
    def alias_matrix(self) -> pd.DataFrame:
        """By how much each effect that is not estimated biases each that is: rows estimated, columns the others.

        With X1 the columns of the estimated effects and X2 those of the others, the estimates have the expectation
        b1 + (X1'X1)^-1 X1'X2 b2. An entry is that number between effects of one column, with its sign (1/3 in a
        Plackett-Burman design of 12 treatments), and otherwise the spectral norm of its block: the most that an effect
        of size 1 can give. Columns are coded to mean square 1.

        Source: Box & Wilson 1951, On the experimental attainment of optimum conditions.
        """
        others = tuple(effect for effect in self.effects if effect not in self.estimated)
        one, two = (Columns(self.factors, effects) for effects in (self.estimated, others))
        given = np.linalg.lstsq(one(self.positions), two(self.positions)[:, 1:], rcond=None)[0][1:]
        mine, theirs = _places(one.owners), _places(two.owners)
        table = np.zeros((len(self.estimated), len(others)))
        for i, effect in enumerate(self.estimated):
            for j, other in enumerate(others):
                block = given[np.ix_(mine[effect], theirs[other])]
                table[i, j] = block[0, 0] if block.size == 1 else np.linalg.norm(block, 2)
        table[np.abs(table) < 1e-9] = 0.0
        names = [pd.Index([effect_name(effect) for effect in own], dtype=object) for own in (self.estimated, others)]
        return pd.DataFrame(table, index=names[0], columns=names[1])

    @cached_property
    def d_efficiency(self) -> float:
        """How much a treatment tells of the estimated effects, as a share of what one of the full factorial tells.

        |X'X / n|^(1/p) with columns of mean square 1 over the full factorial; 0 where they cannot all be estimated.
        """
        return columns_of.efficiency(Columns(self.factors, self.estimated)(self.positions))

    def to_dict(self) -> dict[str, Any]:
        """The design as plain data that JSON holds exactly; `from_dict` brings it back."""
        data: dict[str, Any] = {
            "factors": {factor.name: _plain(factor) for factor in self.factors},
            "treatments": [list(row) for row in self._rows],
            "seeds": list(self.seeds),
            "kind": self.kind,
            "resolution": self.resolution,
            "generators": list(self.generators),
        }
        return data if self.model == self.effects else data | {"model": [list(effect) for effect in self.model]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Design:
        """The design that `to_dict` described.

        Raises: InvalidValue where a key is missing or a treatment has a level that its factor does not have.
        """
        missing = [key for key in ("factors", "treatments", "seeds") if key not in data]
        if missing:
            raise invalid("Design.from_dict", "data", f"have the keys {missing}", sorted(data))
        factors = as_factors(data["factors"])
        for row in data["treatments"]:
            if len(row) != len(factors) or not _fits(factors, row):
                raise invalid("Design.from_dict", "each treatment", "hold one level of each factor", row)
        model = tuple(tuple(effect) for effect in data.get("model", ()))
        strange = [effect for effect in model if effect not in columns_of.all_effects(factors)]
        if strange:
            raise invalid("Design.from_dict", "model", "hold main effects and two-factor interactions", strange)
        return cls(
            factors,
            _frame(factors, data["treatments"]),
            as_seeds(data["seeds"]),
            data.get("kind", "full"),
            data.get("resolution"),
            tuple(data.get("generators", ())),
            model,
        )

    def describe(self) -> str:
        """The design in a few lines: how many trials, of what, and what they cannot tell apart."""
        return described(self)

    def _without_absent(self, config: Mapping[str, Level]) -> dict[str, Level]:
        nested = {factor.name: factor.within for factor in self.factors if factor.within is not None}
        return {
            name: level
            for name, level in config.items()
            if name not in nested or config.get(nested[name][0]) == nested[name][1]
        }

    @cached_property
    def _rows(self) -> list[tuple[Level, ...]]:
        return [tuple(row) for row in self.treatments.itertuples(index=False, name=None)]

    @cached_property
    def _numbers(self) -> dict[tuple[Level, ...], int]:
        return {row: number for number, row in enumerate(self._rows)}

    @cached_property
    def _coded(self) -> dict[str, np.ndarray]:
        coded = {}
        for factor, places in zip(self.factors, self.positions.T, strict=True):
            coded[factor.name] = np.vstack([factor.coding, np.zeros((1, len(factor.levels) - 1))])[places]
        return coded


def as_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
    """The seeds themselves, from their number or from a list.

    Raises: InvalidValue for none or one twice; InvalidType for what are no integers.
    """
    if isinstance(seeds, bool) or not isinstance(seeds, int | np.integer | Iterable) or isinstance(seeds, str):
        raise invalid_type("Design", "seeds", "be a number of seeds or a list of seeds", seeds)
    if isinstance(seeds, int | np.integer):
        if seeds < 1:
            raise invalid("Design", "seeds", "be at least 1", seeds, "Five seeds are a good start.")
        return tuple(range(int(seeds)))
    found = list(seeds)
    for seed in found:
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
            raise invalid_type("Design", "each seed", "be an integer", seed)
    if not found or len(set(found)) < len(found):
        raise invalid("Design", "seeds", "be one or more distinct integers", found)
    return tuple(int(seed) for seed in found)


def _fits(factors: Sequence[Factor], row: Sequence[Level]) -> bool:
    """Whether a row has a level of each factor, and None exactly where a nested one is absent."""
    held = dict(zip((factor.name for factor in factors), row, strict=True))
    return all(
        held[factor.name] in factor.levels
        if factor.within is None or held[factor.within[0]] == factor.within[1]
        else held[factor.name] is None
        for factor in factors
    )


def _frame(factors: tuple[Factor, ...], rows: Iterable[Sequence[Level]]) -> pd.DataFrame:
    """Rows of levels as a frame that keeps each level as it is (no column becomes float, no None becomes NaN)."""
    held = [
        [
            f.levels[f.levels.index(x)] if x is not None or not f.within else None
            for x, f in zip(row, factors, strict=True)
        ]
        for row in rows
    ]
    cells = np.empty((len(held), len(factors)), dtype=object)
    for i, row in enumerate(held):
        cells[i] = row
    frame = pd.DataFrame(cells, columns=pd.Index([f.name for f in factors], dtype=object), dtype=object)
    frame.index.name = "treatment"
    return frame


def _plain(factor: Factor) -> Any:
    levels = list(factor.levels)
    return levels if factor.within is None else {"levels": levels, "within": list(factor.within)}


def _places(owners: Sequence[Effect]) -> dict[Effect, list[int]]:
    found: dict[Effect, list[int]] = {}
    for place, effect in enumerate(owners):
        found.setdefault(effect, []).append(place)
    return found


def _alias_text(group: tuple[tuple[Effect, int], ...], position: int) -> str:
    own = group[position][1]
    others = [pair for place, pair in enumerate(group) if place != position]
    return ", ".join(("" if sign == own else "−") + effect_name(effect) for effect, sign in others)
