"""What the commands of the command line do: settings from file and flags, then the library's own calls."""

from __future__ import annotations

import shlex
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from homeostat import environment
from homeostat.errors import HomeostatError, invalid, unknown
from homeostat.page.terminal import Printer
from homeostat.parts.fold import fold as fold_model
from homeostat.parts.fold import plan_folding
from homeostat.study.design import KINDS, Design, fold_over, follow_up, make_design, plan
from homeostat.study.design.design import as_seeds
from homeostat.study.factors import Factor, as_factors, level_text, parse_level
from homeostat.study.pilot import read_pilot
from homeostat.study.remote.cluster import Cluster
from homeostat.study.sequence import MOST, Until
from homeostat.study.study import Study, StudyInterrupted
from homeostat.study.takeover import Earlier
from homeostat.training.datasets import load_task
from homeostat.training.export import load_model, save_fit, weights_of, write_file
from homeostat.training.loop import fit as fit_recipe
from homeostat.training.objective import Objective
from homeostat.training.recipe import Recipe
from homeostat.training.task import Task
from homeostat.training.user import user_model

_STUDY_KEYS = (
    *("task", "target", "seeds", "design", "resolution", "runs", "interactions", "response", "margin"),
    *("until", "after", "recipe", "factors", "tune"),
)
_QUICK = 15.0  # seconds that an epoch may take for a plan to time one
_CHECKING = "Trying everything on one batch (the first time on a machine, kernels are compiled: some seconds) ..."


def study(
    asked: dict[str, Any],
    base: dict[str, Any],
    settings: list[str],
    recipe_file: str | None,
    config_file: str | None,
    *,
    workers: int | None,
    timeout: str | None,
    memory: str | None,
    anyway: bool,
    retry_failed: bool,
    out: str | None,
    data_seed: int,
    vitals: bool = False,
    on: str | None = None,
    cpus: float | None = None,
    gpus: float | None = None,
    track: str | None = None,
    planned: Mapping[str, Any] | None = None,
) -> int:
    """Run the study that the command line and its TOML file ask for, or plan it; returns the exit code.

    Args:
        planned: None: run it. Otherwise delta, spread and pilot of its plan, each None where it is not given.
    """
    console = Console()
    show = Printer(console)
    _check_out(out)
    request = {**_study_file(config_file), **{key: value for key, value in asked.items() if value is not None}}
    if not request.get("task"):
        raise invalid("study", "the task", "be named", None, "Example: homeostat study digits.")
    recipe = _recipe(recipe_file, request.get("recipe", {}), settings, base)
    with console.status(show.cell(f"Reading {request['task']} ...")):
        task = load_task(request["task"], target=request.get("target"), seed=data_seed)
        earlier = None if request.get("after") is None else Earlier.read(request["after"])
        factors = as_factors(request["factors"]) if request.get("factors") else ()
        if not factors and earlier is None:
            factors = _five_techniques(task)
        tune = as_factors(request["tune"]) if request.get("tune") else None
        _check_names((*factors, *(tune or ())))
        first = None if earlier is None else earlier.design
        design = _design(factors, request, first) if first is None or factors else _further(first, request)
        objective = Objective(task, recipe, spec=request["task"], vitals=vitals)
        response = request.get("response", objective.response)
        if response not in objective.goals:
            raise unknown("study", "response", response, objective.goals)
    running = Study(
        objective,
        design,
        directory=out,
        name=task.name,
        response=response,
        goal=objective.goals[response],
        margin=request.get("margin", 0.0),
        until=_until(request.get("until")),
        tune=tune,
        after=None if earlier is None else earlier.directory,
        workers=workers,
        on=_cluster(on, cpus, gpus),
        track=track,
        timeout=timeout,
        memory=memory,
        info={
            "title": f"{task.name}: which techniques help?",
            "command": shlex.join(["homeostat", *sys.argv[1:]]),
            "task": task.description,
            "base_recipe": recipe.to_toml(),
            "environment": environment.describe(),
        },
    )
    if planned is not None:
        with console.status(_CHECKING):
            objective.check(running.configs)
        _print_plan(console, running, objective, response, planned, workers)
        return 0
    try:
        result = running.run(anyway=anyway, retry_failed=retry_failed)
    except StudyInterrupted as stop:
        console.print(f"[yellow]{stop}[/]", highlight=False)
        return 130
    from homeostat.study.show.summary import print_summary  # brings matplotlib, which the trials need not wait for

    print_summary(result.analysis, console)
    show.say(f"\nReport: {result.report}\nRecipe: {result.directory / 'recipe.toml'}")
    return 3 if (result.trials["status"] == "quarantined").any() else 0


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
    show = Printer(console)
    _check_out(out)
    recipe = _recipe(recipe_file, {}, settings, base)
    with console.status(show.cell(f"Reading {spec} ...")) as status:
        task = load_task(spec, target=target, seed=data_seed)
        objective = Objective(task, recipe)
        status.update(_CHECKING)
        objective.check([{}])
    with warnings.catch_warnings(record=True) as told, _epochs(console, recipe.epochs) as on_epoch:
        done = fit_recipe(task, recipe, seed, directory=Path(out) / "checkpoints" if out else None, on_epoch=on_epoch)
    for text in dict.fromkeys(str(warning.message) for warning in told):
        show.say(f"! {text}")
    for name, value in done.metrics.items():
        show.say(f"{name:>24}  {value:.6g}")
    if out:
        save_fit(done, Path(out))
        show.say(f"Weights, recipe and metrics: {out}")
    return 0


def fold(source: str, *, task: str | None, target: str | None, onnx: str | None, out: str | None) -> int:
    """Fold a model, say what became of its layers, and write what is asked for; returns the exit code."""
    console = Console()
    show = Printer(console)
    with console.status(show.cell(f"Reading {source} ...")):
        if ":" in source and not Path(source).exists():
            model, sample = user_model(source)
        elif task is None:
            cure = "A directory holds weights, and the task says the shapes: add --task digits, for example."
            raise invalid("fold", "--task", "be named for the directory of a fit", None, cure)
        else:
            model, sample = load_model(Path(source), load_task(task, target=target))
    with console.status("Folding, and comparing the outputs ..."):
        show.say(str(plan_folding(model, sample)))
        folded = fold_model(model, sample)
    if out is not None:
        write_file(Path(out), weights_of(folded))
        show.say(f"Weights: {out}")
    if onnx is not None:
        from homeostat.parts.export_onnx import export_onnx  # brings torch's exporter, which a study need not wait for

        with console.status("Exporting to ONNX, and comparing with ONNX Runtime ..."):
            export_onnx(folded, sample, onnx)
        show.say(f"ONNX: {onnx}")
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


def _check_out(out: str | None) -> None:
    if out is not None and not out.strip():
        raise invalid("--out", "the directory", "have a name", out, "Is a variable of the shell empty?")


def _cluster(on: str | None, cpus: float | None, gpus: float | None) -> Cluster | None:
    for name, value in (("--cpus", cpus), ("--gpus", gpus)):
        if value is not None and on is None:
            raise invalid(name, "it", "be given with --on", value, "Trials on this machine have --workers.")
    return None if on is None else Cluster(on, 1 if cpus is None else cpus, gpus or 0)


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


def _design(factors: tuple[Factor, ...], request: Mapping[str, Any], first: Design | None) -> Design:
    kind = request.get("design", "auto")
    if kind.partition(":")[0] in ("fold-over", "follow-up"):
        cure = "It adds treatments to those of an earlier study: --after DIR, without --factor."
        raise invalid("study", "--design", "go with --after and without --factor", kind, cure)
    if kind not in KINDS:
        raise unknown("study", "design", kind, KINDS)
    asked = {"resolution": request.get("resolution"), "runs": request.get("runs")}
    return make_design(factors, _seeds(request, first), kind, interactions=_interactions(request), **asked)


def _further(first: Design, request: Mapping[str, Any]) -> Design:
    """The design of an earlier study with other seeds, or with treatments added to its own."""
    started = replace(first, seeds=as_seeds(_seeds(request, first)))
    kind, _, factor = request.get("design", "auto").partition(":")
    for name in ("resolution", "runs", "interactions"):
        if request.get(name) is not None and (kind != "follow-up" or name == "resolution"):
            cure = "The design is the earlier study's; --design follow-up takes --runs and --interactions."
            raise invalid("study", f"--{name}", "be left out with --after and without --factor", request[name], cure)
    if kind == "follow-up":
        if request.get("interactions") is None:
            cure = "Example: --interactions norm:dropout."
            raise invalid("study", "--interactions", "name what a follow-up separates", None, cure)
        return follow_up(started, _interactions(request) or "all", request.get("runs"))
    if kind == "fold-over":
        return fold_over(started, factor or None)
    if kind != "auto":
        cure = "Without --factor, an earlier study goes on: with more --seeds, or --design fold-over or follow-up."
        raise invalid("study", "--design", "be fold-over or follow-up with --after", kind, cure)
    return started


def _seeds(request: Mapping[str, Any], first: Design | None) -> int | Sequence[int]:
    """The seeds that are asked for; default: an earlier study's, otherwise five; with --until what may be needed."""
    few: Sequence[int] = range(5) if first is None else first.seeds
    return request.get("seeds", few if request.get("until") is None else max(MOST, len(few)))


def _interactions(request: Mapping[str, Any]) -> Any:
    asked = request.get("interactions")
    return asked[0] if isinstance(asked, list) and asked in (["all"], ["none"]) else asked


def _until(asked: float | str | None) -> Until | None:
    """The aim of a sequential study; a number may come as text."""
    try:
        return asked if asked is None else float(asked)
    except ValueError:
        if asked == "best":
            return "best"
        raise invalid("study", "until", "be a number or 'best'", asked) from None


def _print_plan(
    console: Console,
    study: Study,
    objective: Objective,
    response: str,
    planned: Mapping[str, Any],
    workers: int | None,
) -> None:
    """Print what the design will see and cost."""
    show = Printer(console)
    delta, spread, seconds = planned["delta"], planned["spread"], None
    pilot = None if planned["pilot"] is None else read_pilot(planned["pilot"], response)
    if pilot is not None:
        seconds, spread = pilot.seconds, pilot.spread if spread is None else spread
    else:
        with console.status("Timing the base treatment ..."):
            seconds = _timed(objective, study.design)
    if study.grid is not None:
        show.say(f"{study.grid.describe(study.design)} Below, a trial stands for all its levels.")
        seconds = None if seconds is None else seconds * len(study.grid.settings)
    processes = max(1, environment.available_cores() if workers is None else workers)
    show.say(str(plan(study.design, delta=delta, spread=spread, seconds=seconds, workers=processes)))
    if pilot is not None and planned["spread"] is None:
        show.say(
            f"The spread is the pilot's: {pilot.spread:.3g}, with 95 % between {pilot.low:.3g} and {pilot.high:.3g}."
        )
    elif seconds is not None and pilot is None:
        show.say("The time was measured on a few epochs of the base treatment, on one thread.")
    if study.earlier is not None:
        show.say(f"{study.done_before} of the trials are done in {study.earlier.directory}, and need not be run.")
    show.say("Nothing was run and nothing was written: this is a plan.")


def _timed(objective: Objective, design: Design) -> float | None:
    """The seconds of a trial on one thread, from four epochs of the base treatment; None where those take too long."""
    start = time.perf_counter()
    objective.check(design.config(treatment) for treatment in design.treatments.index)
    eight = (time.perf_counter() - start) / len(design.treatments)  # examples, so that an epoch is shorter than these
    if eight * len(objective.task.train) / 8 > _QUICK:
        return None
    threads, took = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for epochs in (1, 1, 2):  # the first warms up
            short = Objective(objective.task, objective.recipe.varied({"epochs": epochs}))
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the study tells them
                short(design.base, 0)
            took.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return took[1] + (objective.recipe.epochs - 1) * max(0.0, took[2] - took[1])


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
