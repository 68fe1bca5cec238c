"""`homeostat fit`, `fold` and `recipe`."""

from __future__ import annotations

from typing import Annotated

import typer

from homeostat.cli.application import app, leave, loading
from homeostat.cli.options import (
    DataSeed,
    Epochs,
    Model,
    RecipeFile,
    Settings,
    Target,
    TaskArgument,
)


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
        with loading():
            from homeostat import commands

        return commands.fit(task, base, settings or [], recipe, target=target, seed=seed, out=out, data_seed=data_seed)

    leave(
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
        with loading():
            from homeostat import commands

        return commands.fold(source, task=task, target=target, onnx=onnx, out=out)

    leave(run, "Stopped. Nothing was written.")


@app.command(epilog="Example: homeostat recipe")
def recipe() -> None:
    """List the settings of a recipe: what --set changes and what --factor varies."""

    def run() -> int:
        with loading():
            from homeostat import commands

        return commands.recipe()

    leave(run, "Stopped.")
