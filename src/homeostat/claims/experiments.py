"""What many claims' experiments share: a task or a part of it, and a recipe trained on it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.training.datasets import load_task
from homeostat.training.loop import Fit
from homeostat.training.objective import Trial, fit_trial
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


@functools.cache
def task_named(name: str) -> Task:
    """A task by name, loaded once per process."""
    return load_task(name)


@functools.lru_cache(maxsize=16)
def part_of(name: str, train: int, test: int | None = None, *, seed: int) -> Task:
    """A task with so many examples of each split (None: all), drawn by the seed.

    Validation, which every epoch ends with and claims only watch, takes a fifth of as many as training.
    """
    whole = task_named(name)
    splits = []
    for number, (split, count) in enumerate(((whole.train, train), (whole.valid, train // 5), (whole.test, test))):
        order = torch.randperm(len(split), generator=seeds.torch_generator(seed, "claim", "part", number))
        splits.append(split.batch(order[:count].sort().values))
    return Task(data=splits, name=f"{name}-{train}", classes=whole.classes, default_model=whole.default_model)


def few(name: str, examples: int | None, seed: int) -> Task:
    """A task with so many of its training examples, drawn by the seed, and tested on the others too; None: as it is."""
    task = task_named(name)
    if examples is None:
        return task
    x, y = task.train.head(len(task.train))
    order = torch.randperm(len(y), generator=seeds.torch_generator(seed, "claim", "few"))
    kept, left = order[:examples], order[examples:]
    test_x, test_y = task.test.head(len(task.test))
    test = (torch.cat([test_x, x[left]]), torch.cat([test_y, y[left]]))
    return dataclasses.replace(task, data=((x[kept], y[kept]), task.valid, test))


def fitted(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str | Task, recipe: Mapping[str, Any]
) -> Fit:
    """A recipe varied by the config, trained on a task; resumed, and its epochs reported, where there is a trial."""
    found = task_named(task) if isinstance(task, str) else task
    settings = Recipe().varied(dict(recipe)).varied(dict(config))
    return fit_trial(found, settings, seed, trial)


def trained(
    config: Mapping[str, Any], seed: int, trial: Trial | None = None, *, task: str, recipe: Mapping[str, Any]
) -> dict[str, float]:
    """The metrics of `fitted`: what a claim about training measures."""
    return fitted(config, seed, trial, task=task, recipe=recipe).metrics


def outputs_of(predict: Callable[[Tensor], Tensor], inputs: Tensor, size: int) -> Tensor:
    """Outputs for all inputs, so many at a time, on the CPU."""
    return torch.cat([predict(part).detach().cpu() for part in inputs.split(size)])
