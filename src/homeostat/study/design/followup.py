"""Runs that follow a design and separate what it could not: fold-over, and D-optimal augmentation.

The treatments of the first design come first, under their numbers, so that what was measured stays where it was. Random
are only the starts of the search, a pure function of `seed`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat.errors import invalid, unknown
from homeostat.study.design.design import Design
from homeostat.study.design.factorial import two_levels
from homeostat.study.design.model import Columns, Effect, Interactions, as_model, distinct, parameters
from homeostat.study.design.optimal import augmented, checked_runs
from homeostat.study.factors import Factor


def fold_over(design: Design, factor: str | None = None) -> Design:
    """The design and its mirror image, in which all factors, or one, have the other of their two levels.

    Folded over in all factors, no main effect is mixed up with a two-factor interaction any more. Folded over in one,
    its main effect and all its interactions are free of all others.

    Args:
        design: of two-level factors.
        factor: the one to fold over; default: all.
    Returns: a design of up to twice as many treatments, kind "augmented". Its model has the main effects, then every
        interaction that can be estimated beside what is in it already.
    Raises: InvalidValue for other factors, or where the mirror image has no new treatment.
    Source: Box & Hunter 1961, The 2^(k-p) fractional factorial designs.
    Example:
        >>> from homeostat.study.design.factorial import fractional_factorial
        >>> first = fractional_factorial({name: [0, 1] for name in "abcdefg"}, resolution=3)
        >>> [max(len(group[0][0]) for group in one.alias_sets) for one in (first, fold_over(first))]
        [1, 2]
    """
    two_levels("fold_over", design.factors, 2)
    names = [known.name for known in design.factors]
    if factor is not None and factor not in names:
        raise unknown("fold_over", "factor", factor, names)
    turned = [factor in (None, name) for name in names]
    mirrored = np.where(turned, 1 - design.positions, design.positions)
    positions = distinct(np.vstack([design.positions, mirrored]))
    if len(positions) == len(design.treatments):
        cure = "The mirror image of this design is the design itself."
        raise invalid("fold_over", "factor", "lead to new treatments", factor, cure)
    model = _estimable(design.factors, positions, design.effects)
    return Design.at(design.factors, positions, design.seeds, "augmented", model)


def follow_up(
    design: Design,
    interactions: Interactions,
    runs: int | None = None,
    *,
    searches: int | None = None,
    seed: int = 0,
) -> Design:
    """The design and further treatments, chosen so that these interactions are estimated besides what is so far.

    Args:
        design: what was run.
        interactions: "all", or those to separate, as pairs of names: ("norm", "dropout") or "norm:dropout".
        runs: how many treatments to add. Default: the fewest that can do.
        searches, seed: see `optimal_design`.
    Returns: a design of kind "augmented".
    Raises: InvalidValue for unknown factors, too few runs, or more than there are treatments left; HomeostatError where
        no such treatments were found.
    Source: Meyer, Steinberg & Box 1996, Follow-up designs to resolve confounding in multifactor experiments.
    Example:
        >>> from homeostat.study.design.factorial import fractional_factorial
        >>> first = fractional_factorial({name: [0, 1] for name in "abcd"}, resolution=4)
        >>> both = follow_up(first, ["a:b", "c:d"])
        >>> len(first.treatments), len(both.treatments), ("a", "b") in both.estimated and ("c", "d") in both.estimated
        (8, 9, True)
    """
    asked = as_model("follow_up", design.factors, interactions)
    wanted = set(asked) | set(_estimable(design.factors, design.positions, design.estimated))
    model = tuple(effect for effect in design.effects if effect in wanted)
    rank = int(np.linalg.matrix_rank(Columns(design.factors, model)(design.positions)))
    least = parameters(design.factors, model) - rank
    added = max(1, least) if runs is None else checked_runs("follow_up", runs)
    if added < least:
        cure = "Each further coefficient takes a treatment."
        raise invalid("follow_up", "runs", f"be at least {least}", added, cure)
    left = design.combinations - len(design.treatments)
    if added > left:
        raise invalid("follow_up", "runs", f"be at most {left}, the treatments that are left", added)
    positions = augmented("follow_up", design.factors, model, design.positions, added, searches=searches, seed=seed)
    return Design.at(design.factors, positions, design.seeds, "augmented", model)


def _estimable(factors: Sequence[Factor], positions: np.ndarray, effects: Sequence[Effect]) -> tuple[Effect, ...]:
    """The effects, in their order, of which every column is independent of those of all before it."""
    basis = np.full((len(positions), 1), len(positions) ** -0.5)
    kept = []
    for effect in effects:
        block = Columns(factors, (effect,))(positions)[:, 1:]
        u, size, _ = np.linalg.svd(block - basis @ (basis.T @ block), full_matrices=False)
        if len(u) - basis.shape[1] >= block.shape[1] and size[-1] > 1e-8 * len(u) ** 0.5:
            basis = np.hstack([basis, u])
            kept.append(effect)
    return tuple(kept)
