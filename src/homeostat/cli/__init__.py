"""The command line: options and help. What commands do is in modules beside it, `commands` and `commands_...`.

Those are loaded when one runs, so that help needs no torch.

Exit codes: 0 done; 1 an error of homeostat's own; 2 something in the request cannot be used (nothing was lost), which
it cannot either where no trial of a study ended well; 3 a study ended, but some of its trials failed; 4 the worst that
an examination found is a warning; 5 it found an error; 6 a training stays ill, since no repair was confirmed that makes
it well; 130 interrupted (the same command goes on where it stopped).
"""

from __future__ import annotations

import io
import os
import sys

# isort: off
from homeostat.cli import study, training, doctor, claims  # noqa: F401  # their commands, in the order of the help

# isort: on
from homeostat.cli.application import app as app
from homeostat.errors import HomeostatError


def main() -> None:
    """Run the command line; errors meant for the user are printed without a traceback."""
    _settle_streams()
    try:
        app()
    except HomeostatError as error:
        from rich.console import Console

        from homeostat.page.terminal import Printer

        Printer(Console(stderr=True)).say(f"error: {error}", "red")
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
