"""What a study calls: a task and a base recipe as `objective(config, seed, trial) -> metrics`.

A config is a set of changes to the base recipe. Nothing here knows about studies; a `trial`, if one is given, only has
a directory for checkpoints and a `report` for the learning curve.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from homeostat import seeds, usercode
from homeostat.errors import HomeostatError, InvalidValue, NoEffectWarning, invalid, invalid_type
from homeostat.training.cache import open_task, receive_task, storable, store_task, task_files
from homeostat.training.datasets import load_task
from homeostat.training.evaluation import Evaluation
from homeostat.training.idle import IdleFactors, idle_settings
from homeostat.training.inputs import Inputs, check_corruption
from homeostat.training.loop import Fit, fit
from homeostat.training.metrics import Goal
from homeostat.training.models import build_model, is_built_in
from homeostat.training.recipe import Recipe
from homeostat.training.sources import TensorSource
from homeostat.training.task import Task
from homeostat.training.user import short_traceback

_CHECKPOINT_SECONDS = 1.0  # of training, which is what a trial that is killed loses at most, and its epoch


class Trial(Protocol):
    """What a fit needs of the trial it is run for."""

    directory: Path

    def report(self, epoch: int, **values: float) -> None: ...

    def step(self, step: int, **values: Any) -> None: ...


def fit_trial(
    task: Task,
    recipe: Recipe,
    seed: int,
    trial: Trial | None,
    *,
    model: torch.nn.Module | None = None,
    vitals: bool = False,
) -> Fit:
    """A fit that keeps its checkpoints with its trial and reports every epoch to it; without a trial, just a fit.

    Args:
        model: a module to train in place of the one that task, recipe and seed build.
        vitals: see `Objective`.
    """
    if trial is None:
        return fit(task, recipe, seed, model=model)

    def report(row: dict[str, float]) -> None:
        trial.report(int(row["epoch"]), **{name: value for name, value in row.items() if name != "epoch"})

    def note(step: int, values: dict[str, Any]) -> None:
        trial.step(step, **values)

    return fit(
        task, recipe, seed, model=model, directory=trial.directory, checkpoint_every=_CHECKPOINT_SECONDS,
        on_epoch=report, on_step=note if vitals else None,
    )  # fmt: skip


class Objective:
    """Callable (config, seed) -> metrics: `recipe.varied(config)` trained on `task` under `seed`.

    Args:
        task: what is learned.
        recipe: the base recipe; None: every setting's default.
        spec: "package.module:function" where the task came from there, so that another process can load it again. A
            task of tensors and names travels without: it is stored once, and opened memory-mapped.
        vitals: whether trials say what happened in every step: loss, learning_rate, gradient_norm, weight_norm and
            update_ratio. It costs time, and changes no result.
    """

    # Optimizers import it when the first one is made, which takes a second: once for all workers of a study, then.
    preload = ("torch._dynamo",)

    def __init__(
        self, task: Task, recipe: Recipe | None = None, *, spec: str | None = None, vitals: bool = False
    ) -> None:
        self.task = task
        self.recipe = recipe or Recipe()
        self.spec = spec
        self.vitals = vitals
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
        """What results depend on beside a treatment: a study is only resumed when this is the same.

        `code` has a digest (`usercode.digest`) of each piece that the user wrote: the function that the task came from,
        its model, loss and metric; it is left out where there are none.
        """
        task = self.task
        pieces = {"task": _builder(self.spec), "model": task.model, "loss": task.loss, "metric": task.metric}
        code = {name: found for name, piece in pieces.items() if (found := usercode.digest(piece)) is not None}
        return {
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "task": task.fingerprint,
            "torch": torch.__version__,
            **({"code": code} if code else {}),
        }

    def describe(self, config: Mapping[str, Any]) -> str:
        """The recipe of a treatment, as TOML: what was varied, and what differs from the defaults."""
        return self.recipe.varied(config).to_toml(also=config)

    def __reduce__(self) -> tuple[Any, ...]:
        if storable(self.task):
            return _opened, (str(store_task(self.task)), self.recipe, self.vitals)
        if self.spec is not None:
            return _loaded, (self.spec, self.task.seed, self.recipe, self.vitals)
        return functools.partial(Objective, vitals=self.vitals), (self.task, self.recipe)

    def carried(self) -> tuple[Callable[..., Objective], dict[str, np.ndarray]] | None:
        """For machines that do not share this one's disk: what makes this objective there, and the files it needs.

        None where the task is code, which has to be there already.
        """
        if not storable(self.task):
            return None
        folder = store_task(self.task)
        return functools.partial(_received, folder.name, self.recipe, self.vitals), task_files(folder)

    def __call__(self, config: Mapping[str, Any], seed: int, trial: Trial | None = None) -> dict[str, float]:
        """Train one treatment under one seed; the metrics are those of `Fit`."""
        return fit_trial(self.task, self.recipe.varied(config), seed, trial, vitals=self.vitals).metrics

    def check(self, treatments: Iterable[Mapping[str, Any]]) -> None:
        """Try every treatment for one batch, forward, loss, metric and backward, before a study spends time on any.

        Raises: InvalidValue naming the first treatment that cannot be trained, and why, with the user's own frames; or
            a factor that has no effect in any treatment.
        """
        factors = IdleFactors()
        for config in treatments:
            try:
                recipe = self.recipe.varied(config)
                with seeds.isolated(0, "check"):
                    factors.add(config, recipe, self._check_one(recipe))
            except HomeostatError as error:
                raise InvalidValue(f"{_said(config)}: {error}") from None
            except Exception as error:  # whatever a user's model may raise
                raise InvalidValue(
                    f"{_said(config)}: the model does not run on a batch of this task:{_reason(error)}"
                ) from error
        factors.check()

    def _check_one(self, recipe: Recipe) -> dict[str, str]:
        """Try a recipe; which of its settings have no effect, and why."""
        if recipe.compile:
            _check_compiler()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoEffectWarning)  # each trial tells it again, where the report collects it
            model = build_model(self.task, recipe, 0)
        input, target = self.task.train.head(8 if recipe.batch_size == "full" else min(8, recipe.batch_size))
        cpu = torch.device("cpu")
        inputs = Inputs(self.task, recipe, cpu)
        Evaluation(self.task, recipe, 0, cpu)
        input, wanted = inputs.for_training(
            input, target, *(seeds.torch_generator(0, "check", name) for name in ("augment", "mix"))
        )
        check_corruption(self.task, recipe.corruption)
        model.train()
        output = model(input)
        if not isinstance(output, torch.Tensor):
            cure = "Return what the loss compares with the targets, and nothing else."
            raise invalid_type("Task", "the model's output", "be one tensor", type(output).__name__, cure)
        self._check_logits(output)
        loss = self.task.loss_function(label_smoothing=recipe.label_smoothing)(output, wanted)
        if not isinstance(loss, torch.Tensor) or loss.dim() != 0:
            shown = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(loss).__name__}"
            raise InvalidValue(f"the loss must be one number in a tensor, but has {shown}. Average over the batch.")
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise InvalidValue("the model has no trainable parameters. Set requires_grad on those to train.")
        if not loss.requires_grad:
            raise InvalidValue("the loss does not depend on any trainable parameter. Is a detach() or no_grad() there?")
        self._check_metric(model, output.detach().float(), target)
        loss.backward()
        return idle_settings(recipe, model, built_in=is_built_in(self.task, recipe))

    def _check_logits(self, output: torch.Tensor) -> None:
        """One logit per class, for those too that the batch lacks; where their number costs no reading of all data."""
        known = self.task.classes is not None or isinstance(self.task.train, TensorSource)
        if self.task.loss == "cross_entropy" and known and output.ndim > 1 and output.shape[1] < self.task.outputs:
            classes = self.task.outputs
            cure = "The last layer must give one logit per class."
            raise invalid("Task", "the model's output", f"have {classes} columns for {classes} classes", output, cure)

    def _check_metric(self, model: torch.nn.Module, output: torch.Tensor, target: torch.Tensor) -> None:
        """Try a metric of the user's own on a batch; one that needs more, on the validation split."""
        if isinstance(self.task.metric, str):
            return
        try:
            self.task.measure(output, target)
        except HomeostatError:
            raise
        except Exception:  # a few examples may lack a class, say
            model.eval()
            with torch.no_grad():
                pairs = [(model(self.task.prepare(x)).float(), y) for x, y in self.task.valid.batches(0, 0, 128)]
            outputs, targets = map(torch.cat, zip(*pairs, strict=True))
            try:
                self.task.measure(outputs, targets)
            except Exception as error:
                raise InvalidValue(f"the metric {self.task.metric_name!r} fails:{_reason(error)}") from error


def _builder(spec: str | None) -> object:
    """The function that a task came from; None where it came from elsewhere."""
    module, colon, name = (spec or "").partition(":")
    return getattr(sys.modules.get(module), name, None) if colon else None


def _said(config: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={level}" for name, level in config.items()) or "the base recipe"


@functools.cache
def _check_compiler() -> None:
    """See that torch.compile can compile something at all: it needs a C++ compiler."""
    try:
        torch.compile(lambda input: input.sin() + 1)(
            torch.zeros(4, device="cuda" if torch.cuda.is_available() else "cpu")
        )
    except Exception as error:
        cure = f"({str(error).splitlines()[0][:200]}) Install a C++ compiler such as g++, or leave compile out."
        raise invalid("Recipe", "compile", "be false where torch.compile does not work", True, cure) from error


def _reason(error: Exception) -> str:
    """The user's own frames and the error; of a well-known error, the cure."""
    text = short_traceback(error)
    if "more than 1 value per channel" in text:
        text += ". Statistics of a batch need more than one value: raise batch_size, or use layer, group or rms"
    return f"\n{text}" if "\n" in text else f" {text}"


def _opened(folder: str, recipe: Recipe, vitals: bool) -> Objective:
    return Objective(open_task(folder), recipe, vitals=vitals)


def _received(
    fingerprint: str, recipe: Recipe, vitals: bool, fetch: Callable[[], Mapping[str, np.ndarray]]
) -> Objective:
    return Objective(open_task(receive_task(fingerprint, fetch)), recipe, vitals=vitals)


def _loaded(spec: str, seed: int, recipe: Recipe, vitals: bool) -> Objective:
    return Objective(load_task(spec, seed=seed), recipe, spec=spec, vitals=vitals)
