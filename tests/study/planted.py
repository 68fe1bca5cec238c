"""Trials of a synthetic objective with planted effects, as a ledger would return them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd

from homeostat.study.design import Design
from homeostat.study.factors import Level
from homeostat.study.results.analysis import Analysis

Config = dict[str, Level]


def planted(
    design: Design,
    mean: Callable[[Config], float],
    *,
    noise: float = 0.01,
    blocks: float = 0.02,
    diverges: Callable[[Config], bool] = lambda config: False,
    pending: Iterable[int] = (),
    failed: Iterable[int] = (),
    metric: str = "valid_score",
    seed: int = 0,
) -> pd.DataFrame:
    """One row per trial: mean of the treatment + what its seed gives to all + normal noise.

    Args:
        diverges: which treatments end with NaN under every seed.
        pending, failed: positions in the run order of trials that are not done, or quarantined.
    """
    draws = np.random.default_rng(seed)
    of_block = dict(zip(design.seeds, draws.normal(0, blocks, len(design.seeds)), strict=True))
    rows = []
    for number, (treatment, block) in enumerate(design.run_order()):
        config = design.config(treatment)
        value = mean(config) + of_block[block] + draws.normal(0, noise)
        test = value - 0.01 + draws.normal(0, noise / 4)
        gone = diverges(config)
        row = {"trial": number, "treatment": treatment, "seed": block, **config, "status": "done", "attempt": 1}
        row |= {"seconds": 2.0, "failure": None, "warnings": [], "diverged": float(gone)}
        row |= {metric: np.nan if gone else value, metric.replace("valid", "test"): np.nan if gone else test}
        if number in set(pending) | set(failed):
            row |= {"status": "pending", metric: np.nan, metric.replace("valid", "test"): np.nan, "diverged": np.nan}
        if number in set(failed):
            row |= {"status": "quarantined", "failure": "Traceback ...\nRuntimeError: out of memory"}
        rows.append(row)
    return pd.DataFrame(rows)


def effect(analysis: Analysis, label: str) -> pd.Series:
    """One row of the table of effects."""
    return analysis.effects.set_index("label").loc[label]
