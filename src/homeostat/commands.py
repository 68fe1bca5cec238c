"""What the commands of the command line do: settings from file and flags, then the library's own calls."""

from __future__ import annotations

import shlex
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from homeostat import environment
from homeostat.errors import HomeostatError, invalid, unknown
from homeostat.parts.export_onnx import export_onnx
from homeostat.parts.fold import fold as fold_model
from homeostat.parts.fold import plan_folding
from homeostat.study.design import Design, make_design
from homeostat.study.factors import Factor, as_factors, level_text, parse_level
from homeostat.study.study import Study, StudyInterrupted
from homeostat.training.datasets import load_task
from homeostat.training.export import load_model, save_fit, weights_of, write_file
from homeostat.training.loop import fit as fit_recipe
from homeostat.training.objective import Objective
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task
from homeostat.training.user import user_model

_STUDY_KEYS = ("task", "target", "seeds", "design", "resolution", "response", "margin", "recipe", "factors")
_CHECKING = "Trying everything on one batch (the first time on a machine, kernels are compiled: some seconds) ..."


def study(
    asked: dict[str, Any],
    base: dict[str, Any],
    settings: list[str],
    recipe_file: str | None,
    config_file: str | None,
    *,
    workers: int | None,
    out: str | None,
    data_seed: int,
) -> int:
    """Run the study that the command line and its TOML file ask for; returns the exit code."""
    console = Console()
    _check_out(out)
    request = {**_study_file(config_file), **{key: value for key, value in asked.items() if value is not None}}
    if not request.get("task"):
        raise invalid("study", "the task", "be named", None, "Example: homeostat study digits.")
    recipe = _recipe(recipe_file, request.get("recipe", {}), settings, base)
    with console.status(f"Reading {escape(str(request['task']))} ...") as status:
        task = load_task(request["task"], target=request.get("target"), seed=data_seed)
        factors = as_factors(request["factors"]) if request.get("factors") else _five_techniques(task)
        _check_names(factors)
        design = _design(factors, request)
        objective = Objective(task, recipe, spec=request["task"])
        response = request.get("response", objective.response)
        if response not in objective.goals:
            raise unknown("study", "response", response, objective.goals)
        status.update(_CHECKING)
        objective.check(design.config(treatment) for treatment in design.treatments.index)
    running = Study(
        objective,
        design,
        directory=out,
        name=task.name,
        response=response,
        goal=objective.goals[response],
        margin=request.get("margin", 0.0),
        workers=workers,
        info={
            "title": f"{task.name}: which techniques help?",
            "command": shlex.join(["homeostat", *sys.argv[1:]]),
            "task": task.description,
            "base_recipe": recipe.to_toml(),
            "environment": environment.describe(),
        },
    )
    try:
        result = running.run()
    except StudyInterrupted as stop:
        console.print(f"[yellow]{stop}[/]", highlight=False)
        return 130
    from homeostat.study.summary import print_summary  # brings matplotlib, which the trials need not wait for

    print_summary(result.analysis, console)
    _say(console, f"\nReport: {result.report}\nRecipe: {result.directory / 'recipe.toml'}")
    return 3 if result.analysis.failed else 0


def fit(
    spec: str,
    base: dict[str, Any],
    settings: list[str],
    recipe_file: str | None,
    *,
    target: str | None,
    seed: int,
    out: str | None,
    data_seed: int,
) -> int:
    """Train one recipe once and print what was measured; returns the exit code."""
    console = Console()
    _check_out(out)
    recipe = _recipe(recipe_file, {}, settings, base)
    with console.status(f"Reading {escape(spec)} ...") as status:
        task = load_task(spec, target=target, seed=data_seed)
        objective = Objective(task, recipe)
        status.update(_CHECKING)
        objective.check([{}])
    with warnings.catch_warnings(record=True) as told, _epochs(console, recipe.epochs) as show:
        done = fit_recipe(task, recipe, seed, directory=Path(out) / "checkpoints" if out else None, on_epoch=show)
    for text in dict.fromkeys(str(warning.message) for warning in told):
        _say(console, f"! {text}")
    for name, value in done.metrics.items():
        _say(console, f"{name:>24}  {value:.6g}")
    if out:
        save_fit(done, Path(out))
        _say(console, f"Weights, recipe and metrics: {out}")
    return 0


def fold(source: str, *, task: str | None, target: str | None, onnx: str | None, out: str | None) -> int:
    """Fold a model, say what became of its layers, and write what is asked for; returns the exit code."""
    console = Console()
    with console.status(f"Reading {escape(source)} ..."):
        if ":" in source and not Path(source).exists():
            model, sample = user_model(source)
        elif task is None:
            cure = "A directory holds weights, and the task says the shapes: add --task digits, for example."
            raise invalid("fold", "--task", "be named for the directory of a fit", None, cure)
        else:
            model, sample = load_model(Path(source), load_task(task, target=target))
    with console.status("Folding, and comparing the outputs ..."):
        _say(console, str(plan_folding(model, sample)))
        folded = fold_model(model, sample)
    if out is not None:
        write_file(Path(out), weights_of(folded))
        _say(console, f"Weights: {out}")
    if onnx is not None:
        with console.status("Exporting to ONNX, and comparing with ONNX Runtime ..."):
            export_onnx(folded, sample, onnx)
        _say(console, f"ONNX: {onnx}")
    return 0


def recipe() -> int:
    """Print every setting of a recipe with its default, its choices and its meaning; returns the exit code."""
    table = Table("setting", "default", "meaning", box=None, pad_edge=False)
    for name, setting in Recipe.model_fields.items():
        choices = [str(word) for word in get_args(setting.annotation) if isinstance(word, str)]
        meaning = f"{setting.description} ({', '.join(choices)})" if len(choices) > 1 else setting.description
        table.add_row(name, level_text(setting.default), escape(meaning or ""))
    Console().print(table, highlight=False)
    return 0


def _say(console: Console, text: str) -> None:
    """Print a text as it is: names and paths of the user's may look like rich's markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _check_out(out: str | None) -> None:
    if out is not None and not out.strip():
        raise invalid("--out", "the directory", "have a name", out, "Is a variable of the shell empty?")


def _study_file(path: str | None) -> dict[str, Any]:
    """The TOML file of a study: task, target, seeds, design, ..., and the tables recipe and factors."""
    if path is None:
        return {}
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise HomeostatError(f"study: cannot read {path!r}: {error}. Give the path of a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise HomeostatError(f"study: {path!r} is not valid TOML: {error}.") from None
    for key in found:
        if key in Recipe.model_fields:
            raise invalid(
                f"study: {path!r}", "the study's keys", "not hold a setting", key, "It belongs under [recipe]."
            )
        if key not in _STUDY_KEYS:
            raise unknown(f"study: {path!r}", "key", key, _STUDY_KEYS)
    return found


def _recipe(path: str | None, table: Mapping[str, Any], settings: list[str], flags: Mapping[str, Any]) -> Recipe:
    """The base recipe: its file, then the study file's table, then --set, then --model and --epochs."""
    recipe = Recipe.load(path) if path else Recipe()
    changes = dict(table)
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise invalid("--set", "a setting", "read key=value", setting, "Example: --set lr=0.01.")
        changes[key.strip()] = parse_level(value.strip())
    changes |= {key: value for key, value in flags.items() if value is not None}
    return recipe.varied(changes)


def _check_names(factors: tuple[Factor, ...]) -> None:
    for factor in factors:
        if factor.name not in Recipe.model_fields:
            raise unknown("study", "factor", factor.name, Recipe.model_fields)


def _five_techniques(task: Task) -> tuple[Factor, ...]:
    """What is compared where nothing is asked for: one technique of each kind that suits the data and the loss."""
    factors = {"init": ["keep", "he_normal"], "norm": ["none", "batch"], "dropout": [0, 0.2], "weight_decay": [0, 0.5]}
    if len(task.input_shape) == 3 and min(task.input_shape[1:]) >= 16:  # a pixel more or less is much of a small image
        factors["augment"] = ["none", "crop"]
    elif task.loss == "cross_entropy":
        factors["label_smoothing"] = [0, 0.1]
    else:
        factors["clip_norm"] = ["none", 1.0]
    return as_factors(factors)


def _design(factors: tuple[Factor, ...], request: Mapping[str, Any]) -> Design:
    seeds = request.get("seeds", 5)
    kind, resolution = request.get("design", "auto"), request.get("resolution")
    if kind not in ("auto", "full", "fractional"):
        raise unknown("study", "design", kind, ("auto", "full", "fractional"))
    return make_design(factors, seeds, kind=kind, resolution=resolution)


@contextmanager
def _epochs(console: Console, epochs: int) -> Iterator[Callable[[dict[str, float]], None]]:
    """A progress bar over the epochs of a fit that shows the newest losses."""
    columns = (
        TextColumn("epoch"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=epochs)

        def show(row: dict[str, float]) -> None:
            losses = f"train loss {row['train_loss']:.4g}, valid loss {row['valid_loss']:.4g}"
            progress.update(bar, completed=row["epoch"] + 1, description=losses)

        yield show
