"""D-optimal designs of any factors, levels and interactions in a given number of treatments.

The search is `exchange`; here is what it is asked. Random are its starts, a pure function of `seed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.errors import HomeostatError, invalid, invalid_type
from homeostat.study.design.arrays import smallest_array
from homeostat.study.design.design import Design
from homeostat.study.design.exchange import coordinate_exchange
from homeostat.study.design.factorial import Factors, every_combination
from homeostat.study.design.model import (
    Columns,
    Effect,
    Interactions,
    as_model,
    combinations,
    effect_name,
    efficiency,
    parameters,
    present,
)
from homeostat.study.design.screening import hadamard
from homeostat.study.factors import Factor, as_factors

_MOST_SEARCHES, _WORK = 150, 60_000  # of the search by default; treatments × coefficients × searches


def optimal_design(
    factors: Factors,
    seeds: int | Sequence[int] = 5,
    *,
    runs: int | None = None,
    interactions: Interactions = "all",
    searches: int | None = None,
    seed: int = 0,
) -> Design:
    """The base treatment and others that together tell most of the main effects and the interactions asked for.

    Most means: the determinant of X'X, for which a search looks; `Design.d_efficiency` says how near it came to what a
    treatment of the full factorial tells, which no choice of crossed factors exceeds.

    Args:
        factors: see `as_factors`; nested ones too.
        seeds: a number of seeds or the seeds themselves.
        runs: treatments; at least the number of coefficients. Default: a quarter more than that. With as many as there
            are combinations, all are run.
        interactions: "all", "none", or pairs of names such as ("norm", "dropout") or "norm:dropout".
        searches: from how many starts to look. Default: up to 150, fewer for large designs.
        seed: the design is a pure function of it and the other arguments.
    Raises: InvalidValue for unusable factors, interactions, or too few runs.
    Source: see `coordinate_exchange`.
    Example:
        >>> factors = {"norm": ["none", "batch", "layer"], "init": ["keep", "he"], "depth": [2, 4, 8], "clip": [0, 1]}
        >>> design = optimal_design(factors, runs=12, interactions=["norm:init"])
        >>> len(design.treatments), design.combinations, design.find(design.base)
        (12, 36, 0)
    """
    known = as_factors(factors)
    model = as_model("optimal_design", known, interactions)
    least = parameters(known, model)
    wanted = least + -(-least // 4) if runs is None else checked_runs("optimal_design", runs)
    if wanted < least:
        cure = "Fewer interactions, fewer levels or more runs."
        raise invalid("optimal_design", "runs", f"be at least {least}, the number of coefficients", wanted, cure)
    if combinations(known) <= wanted:
        return Design.at(known, every_combination("optimal_design", known), seeds, "full", model)
    base = np.zeros((1, len(known)), dtype=int)
    start = _orthogonal_start(known, wanted) if len(model) == len(known) else None
    positions = augmented("optimal_design", known, model, base, wanted - 1, searches=searches, seed=seed, start=start)
    return Design.at(known, positions, seeds, "optimal", model)


def augmented(
    where: str,
    factors: tuple[Factor, ...],
    model: tuple[Effect, ...],
    fixed: np.ndarray,
    added: int,
    *,
    searches: int | None,
    seed: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """Positions of the fixed treatments, then of those that a search adds, in the order of their levels.

    Raises: HomeostatError where no treatments were found with which the model can be estimated.
    """
    columns, sizes = Columns(factors, model), [len(factor.levels) for factor in factors]
    work = (len(fixed) + added) * parameters(factors, model)
    count = min(_MOST_SEARCHES, max(10, _WORK // work)) if searches is None else searches
    found = coordinate_exchange(
        columns, sizes, fixed, added, searches=count, seed=seed, start=start, same=lambda rows: present(factors, rows)
    )
    if efficiency(columns(found)) == 0.0:
        texts = ", ".join(effect_name(effect) for effect in model)
        raise HomeostatError(f"{where}: no {added} treatments were found that estimate {texts}. Ask for more runs.")
    own = present(factors, found[len(fixed) :])
    return np.vstack([fixed, own[np.lexsort(own.T[::-1])]])


def checked_runs(where: str, runs: object) -> int:
    """The number of runs, 1 or more."""
    if isinstance(runs, bool) or not isinstance(runs, int | np.integer):
        raise invalid_type(where, "runs", "be an integer", runs)
    if runs < 1:
        raise invalid(where, "runs", "be at least 1", runs)
    return int(runs)


def _orthogonal_start(factors: Sequence[Factor], runs: int) -> np.ndarray | None:
    """The treatments beside the base of an orthogonal design of just this size, where there is one."""
    sizes = [len(factor.levels) for factor in factors]
    if any(factor.within is not None for factor in factors):
        return None
    if set(sizes) == {2} and runs % 4 == 0 and (matrix := hadamard(runs)) is not None:
        rows = (matrix[:, 1 : 1 + len(sizes)] != matrix[0, 1 : 1 + len(sizes)]).astype(int)
    else:
        found = smallest_array(sizes)
        rows = np.zeros((0, len(sizes)), int) if found is None else found
    return rows[1:] if len(rows) == runs and len(np.unique(rows, axis=0)) == runs else None
