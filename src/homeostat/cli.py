"""The command line: options and help. What commands do is in `commands` and `commands_doctor`, loaded when one runs.

Exit codes: 0 done; 1 an error of homeostat's own; 2 something in the request cannot be used (nothing was lost), which
it cannot either where no trial of a study ended well; 3 a study ended, but some of its trials failed; 4 the worst that
an examination found is a warning; 5 it found an error; 6 a training is ill and no repair was confirmed; 130 interrupted
(the same command goes on where it stopped).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from homeostat.cli_options import (
    TASK_HELP,
    Cpus,
    DataSeed,
    Epochs,
    Gpus,
    Model,
    On,
    RecipeFile,
    Settings,
    Target,
    TaskArgument,
    Track,
)
from homeostat.errors import HomeostatError, invalid

app = typer.Typer(
    name="homeostat",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Find out what is wrong with a network, which initialization, normalization and regularization it needs, and "
    "prove it.",
    epilog="Exit codes: 0 done · 1 internal error · 2 unusable input · 3 some trials failed · 4 warnings found · "
    "5 errors found · 6 not repaired · 130 interrupted.",
)


@app.command(
    epilog="Example: homeostat study digits --factor norm=none,batch --factor dropout=0,0.2 --seeds 5 --epochs 20"
)
def study(
    task: Annotated[
        str | None,
        typer.Argument(help=TASK_HELP, show_default=False),
    ] = None,
    factor: Annotated[
        list[str] | None,
        typer.Option(
            "--factor",
            "-f",
            help="What is varied: name=level,level,... with a setting of the recipe as name, the simplest level first; "
            "with ' @ other=level' behind it, only where the other has that level; repeatable. Default: five "
            "techniques that suit the task.",
            metavar="NAME=A,B",
        ),
    ] = None,
    target: Target = None,
    model: Model = None,
    epochs: Epochs = None,
    seeds: Annotated[
        int | None, typer.Option(help="Seeds; each treatment is trained under every one; default: 5, with --until 30.")
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(help="Stop adding seeds when effects are known to ± this, or clear; or best: the best treatment."),
    ] = None,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            help="Nuisance factor: each treatment is judged at its best level; repeatable.", metavar="NAME=A,B"
        ),
    ] = None,
    design: Annotated[
        str | None,
        typer.Option(
            help="full, fractional, plackett-burman, screening, orthogonal, optimal, or auto: full up to 32 "
            "treatments, else a fraction of two-level factors, else D-optimal; default: auto."
        ),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Resolution of a fractional design: 3, 4 or 5; default: 5.")
    ] = None,
    runs: Annotated[
        int | None, typer.Option(help="Treatments of an optimal design; the most of a fraction.", show_default=False)
    ] = None,
    interactions: Annotated[
        list[str] | None,
        typer.Option(
            help="What an optimal design estimates beside main effects: all, none, or name:name; repeatable; "
            "default: all, where that is affordable.",
            metavar="NAME:NAME",
        ),
    ] = None,
    response: Annotated[
        str | None, typer.Option(help="The metric to judge by; default: the task's metric on the validation split.")
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="The least gain worth a technique, in the metric's unit (0.01 = a point); default: 0."),
    ] = None,
    recipe: RecipeFile = None,
    settings: Settings = None,
    config: Annotated[
        str | None,
        typer.Option(help="TOML file with task, seeds and tables recipe and factors; the command line overrides it."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Worker processes, one thread each; default: the number of cores. 0: this process and its threads."
        ),
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(help="How long a trial may take, such as 90s or 10m; then it has failed.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="How much memory a worker may hold, such as 4G; then its trial has failed.")
    ] = None,
    on: On = None,
    cpus: Cpus = None,
    gpus: Gpus = None,
    track: Track = None,
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on although code, data or settings changed, if the design did not.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Directory of the study; default: studies/NAME-HASH.")] = None,
    data_seed: DataSeed = 0,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Run nothing: print the design, what it tells apart, the seeds that it takes, and the time."
        ),
    ] = False,
    delta: Annotated[
        float | None, typer.Option(help="For --plan: the effect to see, in the metric's unit.", show_default=False)
    ] = None,
    spread: Annotated[
        float | None,
        typer.Option(help="For --plan: the standard deviation of runs of one treatment between seeds."),
    ] = None,
    pilot: Annotated[
        str | None, typer.Option(help="For --plan: the directory of a study that tells spread and time.", metavar="DIR")
    ] = None,
) -> None:
    """Measure which techniques help, alone and together: every treatment under the same seeds, effects with intervals.

    The same command goes on where an earlier one was stopped. The report is DIRECTORY/report.html.
    """
    asked: dict[str, Any] = {"task": task, "target": target, "seeds": seeds, "design": design, "resolution": resolution}
    asked |= {"response": response, "margin": margin, "factors": factor or None}
    asked |= {"runs": runs, "interactions": interactions or None, "until": until, "tune": tune or None}
    base = {"model": model, "epochs": epochs}
    planned = {"delta": delta, "spread": spread, "pilot": pilot}
    for name, value in planned.items():
        if value is not None and not plan:
            raise invalid(f"--{name}", "it", "be given with --plan", value, "It says nothing about a study that runs.")

    def run() -> int:
        from homeostat.study import launch

        if not plan and on is None:
            launch.warm(("homeostat.training.objective", "torch._dynamo"))  # workers get ready while this process does
        from homeostat import commands

        return commands.study(
            asked, base, settings or [], recipe, config,
            workers=workers, timeout=timeout, memory=memory, anyway=anyway, out=out, data_seed=data_seed,
            on=on, cpus=cpus, gpus=gpus, track=track, planned=planned if plan else None,
        )  # fmt: skip

    _leave(run, "Stopped. The same command goes on where this one was.")


@app.command(epilog="Example: homeostat status studies/digits-1a2b3c4d --watch")
def status(
    directory: Annotated[str, typer.Argument(help="The directory of a study.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until it has ended.")] = False,
) -> None:
    """Say how a study stands: what is done, what runs, what failed, the strongest effects so far; disturbs nothing."""

    def run() -> int:
        from homeostat import commands_study

        return commands_study.status(directory, watch=watch)

    _leave(run, "Stopped.")


@app.command(epilog="Example: homeostat fit digits --recipe recipe.toml --seed 3 --out fits/digits")
def fit(
    task: TaskArgument,
    recipe: RecipeFile = None,
    settings: Settings = None,
    target: Target = None,
    model: Model = None,
    epochs: Epochs = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, data order and masks.")] = 0,
    out: Annotated[
        str | None,
        typer.Option(help="Directory for checkpoints, model.safetensors, recipe.toml and metrics.json."),
    ] = None,
    data_seed: DataSeed = 0,
) -> None:
    """Train one recipe once; with --out the same command goes on where an earlier one was stopped."""
    base = {"model": model, "epochs": epochs}

    def run() -> int:
        from homeostat import commands

        return commands.fit(task, base, settings or [], recipe, target=target, seed=seed, out=out, data_seed=data_seed)

    _leave(
        run, "Stopped. The same command goes on where this one was." if out else "Stopped. Nothing was kept: no --out."
    )


@app.command(epilog="Example: homeostat fold fits/digits --task digits --onnx model.onnx")
def fold(
    source: Annotated[
        str,
        typer.Argument(
            help="package.module:function returning (model, sample), or the directory of a fit.", show_default=False
        ),
    ],
    task: Annotated[str | None, typer.Option(help="The task that the fit was made on; for a directory.")] = None,
    target: Target = None,
    onnx: Annotated[str | None, typer.Option(help="Write the folded model as an ONNX file, checked.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the folded weights as a safetensors file.")] = None,
) -> None:
    """Fold batch normalization into the layers beside it and take dropout out, with outputs compared."""

    def run() -> int:
        from homeostat import commands

        return commands.fold(source, task=task, target=target, onnx=onnx, out=out)

    _leave(run, "Stopped. Nothing was written.")


@app.command(epilog="Example: homeostat recipe")
def recipe() -> None:
    """List the settings of a recipe: what --set changes and what --factor varies."""

    def run() -> int:
        from homeostat import commands

        return commands.recipe()

    _leave(run, "Stopped.")


TrainingArgument = Annotated[
    str,
    typer.Argument(
        help="package.module:function returning a homeostat.Training: model, loss, optimizer and data.",
        show_default=False,
    ),
]
TrainingSeed = Annotated[int, typer.Option(help="Seed of batches, masks and augmentation.")]


@app.command(epilog="Example: homeostat examine my_project.train:training --format html --out report.html")
def examine(
    training: TrainingArgument,
    budget: Annotated[str, typer.Option(help='Time in all, such as 30s or 2m; or "500 steps" for every run.')] = "30s",
    seed: TrainingSeed = 0,
    select: Annotated[
        list[str] | None, typer.Option(help="Only these codes, or all that begin so (SIG, SIG003); repeatable.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="Not these codes; the longer beginning decides; repeatable.")
    ] = None,
    style: Annotated[
        str | None,
        typer.Option("--format", help="table, json, sarif or html; default: what the suffix of --out says, or table."),
    ] = None,
    out: Annotated[str | None, typer.Option(help="Write the result to this file; default: standard output.")] = None,
    baseline: Annotated[
        str | None, typer.Option(help="File of accepted findings, which do not count.", metavar="FILE")
    ] = None,
    write_baseline: Annotated[
        str | None, typer.Option(help="Accept what is found now: write that file.", metavar="FILE")
    ] = None,
    fail_on: Annotated[str, typer.Option(help="The least severity that fails: warning, error or never.")] = "warning",
) -> None:
    """Examine a training: what is wrong with it, by which evidence, and what to do. Nothing of yours is changed.

    Exit code 4: the worst that was found is a warning; 5: it is an error.
    """

    def run() -> int:
        from homeostat import commands_doctor

        return commands_doctor.examine(
            training, budget=budget, seed=seed, select=select, ignore=ignore, style=style, out=out,
            baseline=baseline, write_baseline=write_baseline, fail_on=fail_on,
        )  # fmt: skip

    _leave(run, "Stopped. Nothing was written.")


@app.command(epilog="Example: homeostat repair my_project.train:training --unsafe --out repaired")
def repair(
    training: TrainingArgument,
    unsafe: Annotated[
        bool,
        typer.Option("--unsafe", help="Try changes too that alter the function the model computes now."),
    ] = False,
    budget: Annotated[str, typer.Option(help='Time in all, such as 2m; or "500 steps" for every run.')] = "2m",
    seed: TrainingSeed = 0,
    out: Annotated[
        str | None, typer.Option(help="Directory for report.html, changes.diff and model.safetensors.")
    ] = None,
) -> None:
    """Repair a training: the smallest set of changes that helps, as lines of code, with the proof by paired runs.

    Exit code 6: the training is ill, and no repair was confirmed.
    """

    def run() -> int:
        from homeostat import commands_doctor

        return commands_doctor.repair(training, unsafe=unsafe, budget=budget, seed=seed, out=out)

    _leave(run, "Stopped. Nothing was written.")


@app.command(epilog="Example: homeostat explain SIG003")
def explain(
    code: Annotated[
        str | None, typer.Argument(help="A rule's code or name, or the beginning of codes.", show_default=False)
    ] = None,
) -> None:
    """Print what a rule checks, why, from which threshold on, and how to repair it; without a code, list all rules."""

    def run() -> int:
        from homeostat import commands_doctor

        return commands_doctor.explain(code)

    _leave(run, "Stopped.")


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from homeostat import __version__

        typer.echo(f"homeostat {__version__}")
        raise typer.Exit


def _leave(run: Callable[[], int], interrupted: str) -> NoReturn:
    """Run a command and leave with its exit code; Ctrl-C at any time says what became of the work."""
    try:
        code = run()
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        code = 130
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    _settle_streams()
    try:
        app()
    except HomeostatError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        sys.exit(2)


def _settle_streams() -> None:
    """Standard streams that are closed stay quiet, and characters that the terminal cannot show become "?"."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # another file would take the number, and get what is printed
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
