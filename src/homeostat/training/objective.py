"""What a study calls: a task and a base recipe as `objective(config, seed, trial) -> metrics`.

A config is a set of changes to the base recipe. Nothing here knows about studies; a `trial`, if one is given, only has
a directory for checkpoints and a `report` for the learning curve.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from homeostat import seeds
from homeostat.errors import HomeostatError, InvalidValue, NoEffectWarning
from homeostat.parts.augment import make_augment
from homeostat.training.cache import open_task, storable, store_task
from homeostat.training.datasets import load_task
from homeostat.training.loop import fit
from homeostat.training.metrics import Goal
from homeostat.training.models import build_model
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task


class Trial(Protocol):
    """What a fit needs of the trial it is run for."""

    directory: Path

    def report(self, epoch: int, **values: float) -> None: ...


class Objective:
    """Callable (config, seed) -> metrics: `recipe.varied(config)` trained on `task` under `seed`.

    Args:
        task: what is learned.
        recipe: the base recipe; None: every setting's default.
        spec: "package.module:function" where the task came from there, so that another process can load it again. A
            task of tensors and names travels without: it is stored once, and opened memory-mapped.
    """

    # Optimizers import it when the first one is made, which takes a second: once for all workers of a study, then.
    preload = ("torch._dynamo",)

    def __init__(self, task: Task, recipe: Recipe | None = None, *, spec: str | None = None) -> None:
        self.task = task
        self.recipe = recipe or Recipe()
        self.spec = spec
        self.name = task.name

    @property
    def goals(self) -> dict[str, Goal]:
        """The metrics of a trial by name, and whether each is to be maximized or minimized."""
        found: dict[str, Goal] = {}
        for split in ("train", "valid", "test"):
            found |= {f"{split}_{self.task.metric_name}": self.task.goal or "maximize", f"{split}_loss": "minimize"}
        return {**found, "epochs_run": "minimize", "seconds_per_epoch": "minimize"}

    @property
    def response(self) -> str:
        """What a study judges by where nothing else is asked for: the task's metric on the validation split."""
        return f"valid_{self.task.metric_name}"

    @property
    def goal(self) -> Goal:
        """Whether `response` is to be maximized or minimized."""
        return self.goals[self.response]

    @property
    def base(self) -> dict[str, Any]:
        """What results depend on beside a treatment: a study is only resumed when this is the same."""
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "task": self.task.fingerprint,
            "torch": torch.__version__,
        }

    def describe(self, config: Mapping[str, Any]) -> str:
        """The recipe of a treatment, as TOML."""
        return self.recipe.varied(config).to_toml()

    def __reduce__(self) -> tuple[Any, ...]:
        if storable(self.task):
            return _opened, (str(store_task(self.task)), self.recipe)
        if self.spec is not None:
            return _loaded, (self.spec, self.task.seed, self.recipe)
        return Objective, (self.task, self.recipe)

    def __call__(self, config: Mapping[str, Any], seed: int, trial: Trial | None = None) -> dict[str, float]:
        """Train one treatment under one seed; the metrics are those of `Fit`."""
        recipe = self.recipe.varied(config)
        if trial is None:
            return fit(self.task, recipe, seed).metrics

        def report(row: dict[str, float]) -> None:
            trial.report(int(row["epoch"]), **{name: value for name, value in row.items() if name != "epoch"})

        return fit(self.task, recipe, seed, directory=trial.directory, on_epoch=report).metrics

    def check(self, treatments: Iterable[Mapping[str, Any]]) -> None:
        """Try every treatment for one batch, forward and loss, before a study spends time on any.

        Raises: InvalidValue naming the first treatment that cannot be trained, and why.
        """
        for config in treatments:
            try:
                with seeds.isolated(0, "check"):
                    self._check_one(self.recipe.varied(config))
            except HomeostatError as error:
                raise InvalidValue(f"{_said(config)}: {error}") from None
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
                raise InvalidValue(
                    f"{_said(config)}: the model does not run on a batch of this task: {type(error).__name__}: {error}"
                ) from error

    def _check_one(self, recipe: Recipe) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # each trial tells it again, where the report collects it
            model = build_model(self.task, recipe, 0)
        input, target = self.task.train.head(8 if recipe.batch_size == "full" else min(8, recipe.batch_size))
        input = self.task.prepare(input)
        if recipe.augment != "none":
            input = make_augment(recipe.augment)(input, seeds.torch_generator(0, "check"))
        model.train()
        loss = self.task.loss_function(label_smoothing=recipe.label_smoothing)(model(input), target)
        if loss.dim() != 0:
            raise InvalidValue(
                f"the loss must be one number, but has shape {tuple(loss.shape)}. Average over the batch."
            )


def _said(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={level}" for name, level in config.items()) or "the base recipe"


def _opened(folder: str, recipe: Recipe) -> Objective:
    return Objective(open_task(folder), recipe)


def _loaded(spec: str, seed: int, recipe: Recipe) -> Objective:
    return Objective(load_task(spec, seed=seed), recipe, spec=spec)
