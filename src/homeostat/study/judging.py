"""From the table of trials to the analysis of a study of any kind: plain, sequential, or with tuned nuisance factors.

A pure function of the trials; `Study` hands it the ledger's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import pandas as pd

from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.sequence import Schedule, always_valid, told
from homeostat.study.show.sections import Section, sequence_section, tuning_section
from homeostat.study.tuning import Grid, Tuning, tune
from homeostat.study.twins import twins


@dataclass(frozen=True, eq=False)
class Judged:
    """What the trials of a study say.

    Attributes:
        analysis: see `Analysis`.
        trials: those that it rests on: all that were run, and of a tuned study those at the levels that were chosen.
        sections: what the report has besides.
        tuning: of a study with nuisance factors.
    """

    analysis: Analysis
    trials: pd.DataFrame
    sections: tuple[Section, ...] = ()
    tuning: Tuning | None = None


def judge(trials: pd.DataFrame, schedule: Schedule, grid: Grid | None, *, response: str, sequential: bool) -> Judged:
    """Analyze the trials of a study.

    Args:
        trials: from `Ledger.trials`.
        schedule: design, goal, margin and aim.
        grid: the nuisance factors.
        response: the metric to judge, or to choose nuisance levels by.
        sequential: whether trials ever waited for what others would show.
    """
    found = _judged(trials, schedule, grid, response, sequential)
    warnings = [*found.analysis.warnings, *twins(found.analysis)]
    return replace(found, analysis=replace(found.analysis, warnings=warnings))


def _judged(trials: pd.DataFrame, schedule: Schedule, grid: Grid | None, response: str, sequential: bool) -> Judged:
    if grid is not None:
        return _tuned(trials, schedule, grid, response)
    if sequential:
        analysis, found = schedule.look(trials, response)
        analysis = always_valid(analysis, found)
        said = told(trials, schedule.design, schedule.until, found, analysis)
        analysis = replace(analysis, summary=f"{analysis.summary} {said[0]}")
        run = trials[trials["status"] != "waiting"]
        return Judged(analysis, run, (sequence_section(said, analysis, found),))
    return Judged(
        analyze(trials, schedule.design, response=response, goal=schedule.goal, margin=schedule.margin), trials
    )


def _tuned(trials: pd.DataFrame, schedule: Schedule, grid: Grid, metric: str) -> Judged:
    goal, margin = schedule.goal, schedule.margin
    tuning = tune(trials, schedule.design, grid, metric=metric, goal=goal, margin=margin)
    analysis = analyze(tuning.trials, schedule.design, response=tuning.judged, goal=goal, margin=margin)
    # What is said of studies judged by test data does not hold where the choice was made by validation data.
    rest = [text for text in analysis.warnings if not text.startswith("Judged on test data")]
    analysis = replace(analysis, warnings=[*tuning.warnings, *rest])
    return Judged(analysis, tuning.trials, (tuning_section(tuning, analysis),), tuning)
