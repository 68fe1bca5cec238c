"""The one application that commands are registered with, how a command loads what it needs, and how it is left."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, NoReturn

import typer

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


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from homeostat import __version__

        typer.echo(f"homeostat {__version__}")
        raise typer.Exit


@contextmanager
def loading() -> Iterator[None]:
    """Import what is large: nothing of it is garbage, and Python need not look, neither now nor when it leaves."""
    if "torch" in sys.modules:  # a process of somebody else's, with garbage of its own
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


def leave(run: Callable[[], int], interrupted: str) -> NoReturn:
    """Run a command and leave with its exit code; Ctrl-C at any time says what became of the work."""
    try:
        code = run()
    except KeyboardInterrupt:
        typer.echo(interrupted, err=True)
        code = 130
    raise typer.Exit(code)
