"""Experiments that many claims share: a recipe trained on a task, and what it reports."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from homeostat.study.running.runner import Trial
from homeostat.training.datasets import load_task
from homeostat.training.loop import Fit, fit
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


@functools.cache
def task_named(name: str) -> Task:
    """A task by name, loaded once per process."""
    return load_task(name)


def fitted(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str | Task, recipe: Mapping[str, Any]
) -> Fit:
    """A recipe varied by the config, trained on a task; resumed, and its epochs reported, where there is a trial."""
    found = task_named(task) if isinstance(task, str) else task
    settings = Recipe().varied(dict(recipe)).varied(dict(config))
    if trial is None:
        return fit(found, settings, seed)

    def report(row: dict[str, float]) -> None:
        trial.report(int(row["epoch"]), **{name: value for name, value in row.items() if name != "epoch"})

    return fit(found, settings, seed, directory=trial.directory, on_epoch=report)


def trained(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """The metrics of `fitted`: what a claim about training measures."""
    return fitted(config, seed, trial, task=task, recipe=recipe).metrics
