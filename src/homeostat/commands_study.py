"""What the commands `homeostat status` and `export` do. They need no torch, and answer while others train."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live

from homeostat.page.terminal import Printer
from homeostat.study.running.status import Onlooker, rendered
from homeostat.study.show.export import write_parquet
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import explained

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


def export(directory: str, *, out: str | None) -> int:
    """Write a study's tables as Parquet files and say where; returns the exit code."""
    console = Console()
    folder = Path(directory if out is None else out)
    ledger = Ledger.open(directory, read_only=True)
    try:
        with explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        tables = {
            "trials": lambda: iter([ledger.trials()]),
            "curves": lambda: iter([ledger.curves()]),
            "vitals": ledger.vitals,
        }
        for name, frames in tables.items():
            path = folder / f"{name}.parquet"
            with console.status(f"Writing {name} ..."):
                rows = write_parquet(frames, path)
            Printer(console).say(f"{path}: {rows} rows" if rows else f"No {name} are stored.")
    finally:
        ledger.close()
    return 0
