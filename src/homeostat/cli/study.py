"""`homeostat study`, `status` and `export`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from homeostat.cli.application import app, leave, loading
from homeostat.cli.options import (
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
    Track,
)
from homeostat.errors import invalid


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
        int | None,
        typer.Option(
            help="Seeds; each treatment is trained under every one; default: 5, or those of --after; with --until 30."
        ),
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
    after: Annotated[
        str | None,
        typer.Option(
            help="An earlier study: what it has done is taken over, its factors and seeds are the default. For more "
            "seeds, or with --design fold-over, fold-over:FACTOR or follow-up.",
            metavar="DIR",
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
        int | None,
        typer.Option(
            help="Treatments of an optimal design; the most of a fraction; what a follow-up adds.",
            show_default=False,
        ),
    ] = None,
    interactions: Annotated[
        list[str] | None,
        typer.Option(
            help="What an optimal design or a follow-up estimates beside main effects: all, none, or name:name; "
            "repeatable; default: all, where that is affordable.",
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
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run trials again that were given up, as with a larger --timeout.")
    ] = False,
    out: Annotated[str | None, typer.Option(help="Directory of the study; default: studies/NAME-HASH.")] = None,
    data_seed: DataSeed = 0,
    vitals: Annotated[
        bool, typer.Option("--vitals", help="Keep what happens in every step of training; see homeostat export.")
    ] = False,
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
    asked |= {"after": after, "runs": runs, "interactions": interactions or None, "until": until, "tune": tune or None}
    base = {"model": model, "epochs": epochs}
    planned = {"delta": delta, "spread": spread, "pilot": pilot}
    for name, value in planned.items():
        if value is not None and not plan:
            raise invalid(f"--{name}", "it", "be given with --plan", value, "It says nothing about a study that runs.")

    def run() -> int:
        from homeostat.study.running import launch

        if not plan and on is None:
            launch.warm(("homeostat.training.objective", "torch._dynamo"))  # workers get ready while this process does
        with loading():
            from homeostat import commands

        return commands.study(
            asked, base, settings or [], recipe, config,
            workers=workers, timeout=timeout, memory=memory, anyway=anyway, retry_failed=retry_failed, out=out,
            data_seed=data_seed, vitals=vitals, on=on, cpus=cpus, gpus=gpus, track=track,
            planned=planned if plan else None,
        )  # fmt: skip

    leave(run, "Stopped. The same command goes on where this one was.")


@app.command(epilog="Example: homeostat status studies/digits-1a2b3c4d --watch")
def status(
    directory: Annotated[str, typer.Argument(help="The directory of a study.", show_default=False)],
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until it has ended.")] = False,
) -> None:
    """Say how a study stands: what is done, what runs, what failed, the strongest effects so far; disturbs nothing."""

    def run() -> int:
        with loading():
            from homeostat import commands_study

        return commands_study.status(directory, watch=watch)

    leave(run, "Stopped.")


@app.command(epilog="Example: homeostat export studies/digits-1a2b3c4d --out tables")
def export(
    directory: Annotated[str, typer.Argument(help="The directory of a study.", show_default=False)],
    out: Annotated[str | None, typer.Option(help="Where the files go; default: the study's directory.")] = None,
) -> None:
    """Write what a study has stored as Parquet: trials, learning curves, and vitals of every step where it kept them.

    It may still be running; nothing is disturbed.
    """

    def run() -> int:
        with loading():
            from homeostat import commands_study

        return commands_study.export(directory, out=out)

    leave(run, "Stopped. Files that were written are whole.")
