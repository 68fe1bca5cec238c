"""`homeostat examine`, `repair` and `explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from homeostat.cli.application import app, leave, loading

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
        with loading():
            from homeostat import commands_doctor

        return commands_doctor.examine(
            training, budget=budget, seed=seed, select=select, ignore=ignore, style=style, out=out,
            baseline=baseline, write_baseline=write_baseline, fail_on=fail_on,
        )  # fmt: skip

    leave(run, "Stopped. Nothing was written.")


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

    Exit code 6: the training stays ill; no repair was confirmed, or one that makes it better and not well.
    """

    def run() -> int:
        with loading():
            from homeostat import commands_doctor

        return commands_doctor.repair(training, unsafe=unsafe, budget=budget, seed=seed, out=out)

    leave(run, "Stopped. Nothing was written.")


@app.command(epilog="Example: homeostat explain SIG003")
def explain(
    code: Annotated[
        str | None, typer.Argument(help="A rule's code or name, or the beginning of codes.", show_default=False)
    ] = None,
) -> None:
    """Print what a rule checks, why, from which threshold on, and how to repair it; without a code, list all rules."""

    def run() -> int:
        with loading():
            from homeostat import commands_doctor

        return commands_doctor.explain(code)

    leave(run, "Stopped.")
