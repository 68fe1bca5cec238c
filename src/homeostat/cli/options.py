"""Options that commands of the command line share, and those that say where a study runs and who is told."""

from __future__ import annotations

from typing import Annotated

import typer

TASK_HELP = (
    "digits, spirals, curve, mnist, fashion-mnist, cifar10; a .csv, .tsv or .parquet file; a folder of images (one "
    "subfolder per class); or package.module:function returning a homeostat.Task."
)
TaskArgument = Annotated[
    str,
    typer.Argument(help=TASK_HELP, show_default=False),
]
Target = Annotated[str | None, typer.Option(help="The column to predict, where the task is a table.")]
DataSeed = Annotated[int, typer.Option(help="Seed of the train / validation / test split.")]
RecipeFile = Annotated[
    str | None, typer.Option("--recipe", help="TOML file with the recipe; default: every setting's default.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting of the recipe, key=value; repeatable.", metavar="KEY=VALUE"),
]
Model = Annotated[
    str | None, typer.Option(help="Built-in model: mlp, cnn, resnet, plain, alexnet or inception; default: the task's.")
]
Epochs = Annotated[int | None, typer.Option(help="Passes over the training split; default: the recipe's (20).")]
On = Annotated[
    str | None,
    typer.Option(help="Run trials on a Ray cluster: ray, or ray://host:10001; see docs/cluster.md.", metavar="ADDRESS"),
]
Cpus = Annotated[float | None, typer.Option(help="For --on: CPUs, and threads, of a trial; default: 1.")]
Gpus = Annotated[float | None, typer.Option(help="For --on: GPUs of a trial; 0.5 lets two share one; default: 0.")]
Track = Annotated[
    str | None, typer.Option(help="Tell trackers: tensorboard, mlflow, wandb; several with commas.", metavar="NAMES")
]
