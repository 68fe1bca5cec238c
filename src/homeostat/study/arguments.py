"""What `Study` is called with, checked: errors are in its name. Nothing here is random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from homeostat.errors import invalid, invalid_type
from homeostat.study.design import Design, Interactions, Kind, make_design
from homeostat.study.factors import Factor, Level
from homeostat.study.running.runner import Objective


def design_of(
    factors: Design | Mapping[str, Sequence[Level]] | Iterable[Factor | str],
    seeds: int | Sequence[int] | None,
    kind: Kind,
    resolution: int | None,
    runs: int | None,
    interactions: Interactions | None,
) -> Design:
    """The design itself, or the one that the other arguments say; see `make_design`."""
    if not isinstance(factors, Design):
        blocks = 5 if seeds is None else seeds
        found = make_design(factors, blocks, kind, resolution, runs=runs, interactions=interactions)
    elif kind != "auto" or any(given is not None for given in (seeds, resolution, runs, interactions)):
        cure = "A Design says which seeds and treatments are run."
        raise invalid("Study", "seeds, design and what belongs to it", "not be given besides a Design", seeds, cure)
    else:
        found = factors
    for seed in found.seeds:
        if not -(2**63) <= seed < 2**63:
            raise invalid("Study", "each seed", "fit into 64 bits", seed)
    return found


def homes(objective: Objective) -> tuple[str, ...]:
    """The modules that workers should have imported for an objective of homeostat's own; none for any other."""
    home = type(objective).__module__
    return (home, *getattr(objective, "preload", ())) if home.startswith("homeostat.") else ()


def as_count(argument: str, value: int) -> int:
    """A number of things, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid_type("Study", argument, "be an integer", value)
    if value < 0:
        raise invalid("Study", argument, "be at least 0", value)
    return value


def as_number(argument: str, value: float) -> float:
    """A finite number, 0 or more."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_type("Study", argument, "be a number", value)
    if not (math.isfinite(value) and value >= 0):
        raise invalid("Study", argument, "be finite and at least 0", value)
    return float(value)
