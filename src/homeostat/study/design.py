"""Designs: which treatments a study runs, under which seeds, in which order, and what it cannot tell apart.

A design is data: a frame of treatments (one per row, one factor per column) and the seeds, which are the blocks; every
treatment meets every seed. Full factorials take any levels; two-level regular fractions come from pydoe, and the
resolution of each is measured here by brute force, because generators of fractions have been wrong before. The order of
trials is random, but a pure function of its seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from homeostat import seeds as streams
from homeostat.errors import InvalidValue, invalid, invalid_type
from homeostat.study import fraction
from homeostat.study.factors import Factor, Level, as_factors
from homeostat.study.wording import counted

Factors = Mapping[str, Sequence[Level]] | Iterable[Factor | str]
Effect = tuple[str, ...]  # the names of its factors: one for a main effect, two for an interaction

MOST_TREATMENTS = 100_000
MOST_FULL = 32  # treatments of a full factorial that "auto" runs in full
_EXPLAINED = (
    "A generator is how one factor follows from others in every run; the resolution is what that mixes up: III main "
    "effects with two-factor interactions, IV such interactions with each other, V neither."
)
_ROMAN = {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII", 9: "IX", 10: "X"}


@dataclass(frozen=True, eq=False)
class Design:
    """The treatments and seeds of a study. Built by `full_factorial`, `fractional_factorial` or `make_design`.

    Attributes:
        factors: what is varied.
        treatments: index "treatment" 0..T-1, one object column per factor holding levels. Treatment 0 is the base
            treatment wherever the design contains it; those built here do.
        seeds: the blocks; every treatment is run under each of them.
        kind: "full" or "fractional".
        resolution: of a fraction, the length of the shortest word of its defining relation; None for a full factorial.
        generators: of a fraction, texts such as "crop = −norm × dropout", where +1 is the second level.
    """

    factors: tuple[Factor, ...]
    treatments: pd.DataFrame
    seeds: tuple[int, ...]
    kind: str = "full"
    resolution: int | None = None
    generators: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """How many trials the study has: treatments × seeds."""
        return len(self.treatments) * len(self.seeds)

    @property
    def combinations(self) -> int:
        """How many treatments the full factorial of these factors has."""
        return math.prod(len(factor.levels) for factor in self.factors)

    @property
    def base(self) -> dict[str, Level]:
        """The base treatment: every factor at its first level."""
        return {factor.name: factor.base for factor in self.factors}

    def config(self, treatment: int) -> dict[str, Level]:
        """The levels of one treatment by factor name.

        Raises: InvalidValue if the design has no such treatment.
        """
        if not 0 <= treatment < len(self.treatments):
            raise invalid("Design.config", "treatment", f"lie in 0..{len(self.treatments) - 1}", treatment)
        return {factor.name: level for factor, level in zip(self.factors, self._rows[treatment], strict=True)}

    def find(self, config: Mapping[str, Level]) -> int | None:
        """The number of the treatment with these levels, or None where the design does not run it."""
        return self._numbers.get(tuple(config[factor.name] for factor in self.factors))

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
        """The main effects and two-factor interactions, by the names of their factors, main effects first."""
        names = [factor.name for factor in self.factors]
        return (*((name,) for name in names), *itertools.combinations(names, 2))

    def columns(self, effect: Effect) -> np.ndarray:
        """The columns of an effect in the model matrix of the treatments: shape (treatments, product of levels - 1)."""
        block = np.ones((len(self.treatments), 1))
        for name in effect:
            block = np.einsum("ti,tj->tij", block, self._coded[name]).reshape(len(block), -1)
        return block

    @cached_property
    def alias_sets(self) -> tuple[tuple[tuple[Effect, int], ...], ...]:
        """Effects that this design cannot tell apart, found in the design matrix itself.

        Each set lists (effect, sign) with main effects first; the first has sign +1. What can be estimated is the sum
        of the set with those signs. Only sets of two or more are listed.
        """
        groups: dict[bytes, list[tuple[Effect, int]]] = {}
        for effect in self.effects:
            block = self.columns(effect)
            if block.shape[1] == 1:
                sign = 1 if block[0, 0] > 0 else -1
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

    def to_dict(self) -> dict[str, Any]:
        """The design as plain data that JSON holds exactly; `from_dict` brings it back."""
        return {
            "factors": {factor.name: list(factor.levels) for factor in self.factors},
            "treatments": [list(row) for row in self._rows],
            "seeds": list(self.seeds),
            "kind": self.kind,
            "resolution": self.resolution,
            "generators": list(self.generators),
        }

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
            if len(row) != len(factors) or any(x not in f.levels for x, f in zip(row, factors, strict=True)):
                raise invalid("Design.from_dict", "each treatment", "hold one level of each factor", row)
        return cls(
            factors,
            _frame(factors, data["treatments"]),
            _as_seeds(data["seeds"]),
            data.get("kind", "full"),
            data.get("resolution"),
            tuple(data.get("generators", ())),
        )

    def describe(self) -> str:
        """The design in a few lines: how many trials, of what, and what they cannot tell apart."""
        count = f"{counted(len(self.treatments), 'treatment')} × {counted(len(self.seeds), 'seed')}"
        what = f"the full factorial of {', '.join(str(factor) for factor in self.factors)}"
        if self.kind == "fractional":
            share = f"1/{self.combinations // len(self.treatments)}"
            what = f"{share} of {what}, resolution {_ROMAN.get(self.resolution or 0, self.resolution)}"
        lines = [f"{count} = {counted(self.trials, 'trial')}: {what}."]
        if self.generators:
            lines.append(f"Generators: {'; '.join(self.generators)}.")
        if self.kind == "fractional":
            lines.append(_EXPLAINED)
        if self.alias_sets:
            same = "; ".join(_equation(group) for group in self.alias_sets)
            lines.append(f"Cannot be told apart: {same}.")
        elif self.kind == "fractional":
            lines.append("Every main effect and two-factor interaction can be told apart from the others.")
        return "\n".join(lines)

    @cached_property
    def _rows(self) -> list[tuple[Level, ...]]:
        return [tuple(row) for row in self.treatments.itertuples(index=False, name=None)]

    @cached_property
    def _numbers(self) -> dict[tuple[Level, ...], int]:
        return {row: number for number, row in enumerate(self._rows)}

    @cached_property
    def _coded(self) -> dict[str, np.ndarray]:
        coded = {}
        for factor in self.factors:
            positions = [factor.levels.index(level) for level in self.treatments[factor.name]]
            coded[factor.name] = factor.coding[positions]
        return coded


def full_factorial(factors: Factors, seeds: int | Sequence[int] = 5) -> Design:
    """Every combination of levels under every seed.

    Args:
        factors: see `as_factors`.
        seeds: a number of seeds (0, 1, ...) or the seeds themselves.
    Raises: InvalidValue for unusable factors or seeds, or more than 100,000 treatments.
    Example:
        >>> full_factorial({"norm": ["none", "batch"], "dropout": [0, 0.5]}, seeds=3).trials
        12
    """
    known = as_factors(factors)
    count = math.prod(len(factor.levels) for factor in known)
    if count > MOST_TREATMENTS:
        cure = "Run a fraction of it, or fewer factors."
        raise invalid("full_factorial", "number of treatments", f"be at most {MOST_TREATMENTS:,}", count, cure)
    rows = itertools.product(*(factor.levels for factor in known))
    return Design(known, _frame(known, rows), _as_seeds(seeds))


def fractional_factorial(
    factors: Factors, seeds: int | Sequence[int] = 5, *, resolution: int | None = None, runs: int | None = None
) -> Design:
    """A regular two-level fraction that contains the base treatment.

    Resolution III aliases main effects with two-factor interactions, IV two-factor interactions with each other, V
    neither. Among fractions of the same size the one of highest resolution is taken.

    Args:
        factors: three or more, two levels each.
        seeds: a number of seeds or the seeds themselves.
        resolution: at least this, in the fewest runs. Default: V, or for fewer than five factors one half of the full
            factorial.
        runs: instead, at most this many treatments, at the highest resolution that they allow.
    Raises: InvalidValue where no such fraction exists, with what does.
    Source: Box & Hunter 1961, The 2^(k-p) fractional factorial designs.
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
    reached = fraction.word_length(matrix)
    names = [factor.name for factor in known]
    rows = [[factor.levels[int(x > 0)] for factor, x in zip(known, row, strict=True)] for row in matrix]
    frame = _frame(known, rows)
    return Design(known, frame, _as_seeds(seeds), "fractional", reached, fraction.generators(names, matrix))


def make_design(
    factors: Factors,
    seeds: int | Sequence[int] = 5,
    kind: Literal["auto", "full", "fractional"] = "full",
    resolution: int | None = None,
) -> Design:
    """A full or a fractional factorial by name, as the command line asks for it.

    Args:
        factors, seeds: see `full_factorial`.
        kind: "full", "fractional", or "auto": full up to `MOST_FULL` treatments; with more, where every factor has two
            levels, the fraction of resolution V or the best there is. "auto" with a resolution is fractional.
        resolution: of a fraction; None: V, see `fractional_factorial`.
    Raises: InvalidValue for another kind, for a resolution of a full factorial, and what the designs refuse.
    Example:
        >>> small, large = ({name: [0, 1] for name in names} for names in ("abcde", "abcdef"))
        >>> make_design(small, kind="auto").kind, make_design(large, kind="auto").kind
        ('full', 'fractional')
    """
    if kind == "auto":
        factors = as_factors(factors)
        many = math.prod(len(factor.levels) for factor in factors) > MOST_FULL
        if resolution is None and many and all(len(factor.levels) == 2 for factor in factors):
            return _best_fraction(factors, seeds)
        kind = "full" if resolution is None else "fractional"
    if kind == "fractional":
        return fractional_factorial(factors, seeds, resolution=resolution)
    if kind != "full":
        raise invalid("make_design", "kind", "be 'auto', 'full' or 'fractional'", kind)
    if resolution is not None:
        raise invalid("make_design", "resolution", "be None for a full factorial", resolution, "Ask for a fraction.")
    return full_factorial(factors, seeds)


def effect_name(effect: Effect) -> str:
    """The name of an effect: "norm", or "norm × dropout" for an interaction."""
    return " × ".join(effect)


def _best_fraction(factors: tuple[Factor, ...], seeds: int | Sequence[int]) -> Design:
    """The fraction of resolution V, or of the highest below it that is within reach."""
    blocks = _as_seeds(seeds)
    for resolution in (5, 4):
        try:
            return fractional_factorial(factors, blocks, resolution=resolution)
        except InvalidValue:  # the search for so many factors gave up
            continue
    return fractional_factorial(factors, blocks, resolution=3)


def _check_fraction(factors: tuple[Factor, ...], resolution: int | None, runs: int | None) -> None:
    where, count = "fractional_factorial", len(factors)
    for factor in factors:
        if len(factor.levels) != 2:
            cure = "Fractions have two levels per factor; leave levels out, or run the full factorial."
            raise invalid(where, f"levels of {factor.name!r}", "be two", list(factor.levels), cure)
    if count < 3:
        raise invalid(where, "factors", "be three or more", [f.name for f in factors], "Run the full factorial.")
    if resolution is not None and runs is not None:
        raise invalid(where, "resolution and runs", "not both be given", (resolution, runs))
    if resolution is not None and not 3 <= resolution <= count:
        cure = f"A fraction of {count} factors reaches at most {count}, in half of the runs of the full factorial."
        raise invalid(where, "resolution", f"lie in 3..{count}", resolution, cure)


def _frame(factors: tuple[Factor, ...], rows: Iterable[Sequence[Level]]) -> pd.DataFrame:
    """Rows of levels as a frame that keeps each level as it is (no column becomes float, no None becomes NaN)."""
    held = [[f.levels[f.levels.index(x)] for x, f in zip(row, factors, strict=True)] for row in rows]
    cells = np.empty((len(held), len(factors)), dtype=object)
    for i, row in enumerate(held):
        cells[i] = row
    frame = pd.DataFrame(cells, columns=pd.Index([f.name for f in factors], dtype=object), dtype=object)
    frame.index.name = "treatment"
    return frame


def _as_seeds(seeds: int | Sequence[int]) -> tuple[int, ...]:
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


def _alias_text(group: tuple[tuple[Effect, int], ...], position: int) -> str:
    own = group[position][1]
    others = [pair for place, pair in enumerate(group) if place != position]
    return ", ".join(("" if sign == own else "−") + effect_name(effect) for effect, sign in others)


def _equation(group: tuple[tuple[Effect, int], ...]) -> str:
    return " = ".join(("" if sign > 0 else "−") + effect_name(effect) for effect, sign in group)
