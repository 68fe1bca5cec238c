"""Levels that are the same thing under two names: their trials give the same results to the last bit.

A pure function of the trials.
"""

from __future__ import annotations

import itertools

import numpy as np

from homeostat.study.factors import Factor, Level
from homeostat.study.results.analysis import Analysis
from homeostat.study.results.wording import counted, setting

_LEAST = 3  # pairs of equal trials that are no accident


def twins(analysis: Analysis) -> list[str]:
    """A warning for each two levels of a factor between which no metric of any pair of trials differs.

    A pair are two trials under one seed that differ in that factor alone. Metrics that are times are left out.
    """
    if analysis.model.constant:
        return []
    metrics = [name for name in analysis.metrics if not name.startswith("seconds")]
    rows = analysis.frame[analysis.frame["outcome"] == "ok"]
    keys = zip(rows["treatment"], rows["seed"], strict=True)
    values = dict(zip(keys, rows[metrics].to_numpy(dtype=float), strict=True))
    found = []
    for factor in analysis.design.factors:
        for one, other in itertools.combinations(factor.levels, 2):
            pairs = _pairs(analysis, values, factor, one, other)
            if len(pairs) >= _LEAST and all(np.array_equal(*pair, equal_nan=True) for pair in pairs):
                both = f"{setting(factor.name, one)} and {setting(factor.name, other)}"
                same = f"gave exactly the same results in all {counted(len(pairs), 'pair')} of trials"
                found.append(f"{both} {same}: here they are the same thing, or the factor does nothing.")
    return found


def _pairs(
    analysis: Analysis, values: dict[tuple[int, int], np.ndarray], factor: Factor, one: Level, other: Level
) -> list[tuple[np.ndarray, np.ndarray]]:
    design, found = analysis.design, []
    for number in design.treatments.index:
        config = design.config(number)
        if factor.name in config and config[factor.name] == one:
            partner = design.find(analysis.model.changed(config, {factor.name: other}))
            found += [
                (values[number, seed], values[partner, seed])
                for seed in design.seeds
                if partner is not None and (number, seed) in values and (partner, seed) in values
            ]
    return found
