"""`homeostat claims list` and `homeostat claims run`."""

from __future__ import annotations

from typing import Annotated

import typer

from homeostat.cli.application import app, leave, loading

claims = typer.Typer(no_args_is_help=True, help="Try the claims of the lectures: experiments with honest verdicts.")
app.add_typer(claims, name="claims")


@claims.command("list", epilog="Example: homeostat claims list")
def list_() -> None:
    """List every claim: its id, what the lecture says, and where."""

    def run() -> int:
        with loading():
            from homeostat import commands_claims

        return commands_claims.list_claims()

    leave(run, "Stopped.")


@claims.command(epilog="Example: homeostat claims run bn-backward init-variance --quick --out claims")
def run(
    names: Annotated[list[str] | None, typer.Argument(help="Ids of claims.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All claims.")] = False,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="On embedded data, each in less than a minute on two cores; default: in full."),
    ] = False,
    seeds: Annotated[int | None, typer.Option(help="Seeds; default: each claim's own number.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Worker processes, one thread each; default: the number of cores. 0: this process."),
    ] = None,
    out: Annotated[str, typer.Option(help="Folder for trials, figures and the gallery.")] = "claims",
) -> None:
    """Run claims and write a gallery: a page with a card per claim. The same command goes on where one was stopped."""

    def work() -> int:
        with loading():
            from homeostat import commands_claims

        return commands_claims.run_claims(
            names or [], everything=everything, quick=quick, seeds=seeds, workers=workers, out=out
        )

    leave(work, "Stopped. The same command goes on where this one was.")
