"""What the command `homeostat status` does. It needs no torch, and answers while others train."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live

from homeostat.study.status import Onlooker, rendered

_REFRESH_SECONDS = 2.0


def status(directory: str, *, watch: bool) -> int:
    """Print how a study stands, once or again and again until it has ended or Ctrl-C; returns the exit code."""
    console = Console()
    with Onlooker(directory) as onlooker:
        if not watch:
            console.print(rendered(onlooker.look(), console))
            return 0
        with Live(console=console, auto_refresh=False) as live:
            try:
                ended = 0
                while ended < 2:  # a sequential study may look as if it had ended, between two seeds
                    seen = onlooker.look()
                    live.update(rendered(seen, console), refresh=True)
                    ended = ended + 1 if seen.counts.ended else 0
                    time.sleep(_REFRESH_SECONDS if ended < 2 else 0.0)
            except KeyboardInterrupt:  # to stop looking is no interruption of anything
                pass
    return 0
