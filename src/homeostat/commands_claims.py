"""What the commands `homeostat claims list` and `homeostat claims run` do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from homeostat.claims.evidence import Evidence
from homeostat.claims.gallery import summary, write_gallery
from homeostat.claims.registry import CLAIMS, THEMES, claim_of
from homeostat.claims.run import check_count, run, stored
from homeostat.errors import HomeostatError, invalid
from homeostat.page.terminal import Printer
from homeostat.study.show.export import write_text
from homeostat.study.study import StudyInterrupted

_LINE = 600
_COLORS = {"holds": "green", "fails": "red", "undecided": "yellow"}


def list_claims() -> int:
    """Print every claim by theme; returns the exit code."""
    console = Console()
    console = console if console.is_terminal else Console(width=_LINE)  # a claim per line, for other programs
    for theme, claims in THEMES.items():
        console.print(f"\n[bold]{escape(theme)}[/]")
        rows = Table("claim", "what the lecture says", "where", box=None, pad_edge=False, show_header=False)
        for claim in claims:
            rows.add_row(claim.id, escape(claim.sentence), escape(claim.source), style=None)
        console.print(rows, highlight=False)
    return 0


def run_claims(
    names: list[str], *, everything: bool, quick: bool, seeds: int | None, workers: int | None, out: str
) -> int:
    """Run claims, print their verdicts, write the gallery; returns the exit code, 3 where an experiment failed."""
    console = Console()
    show = Printer(console)
    if everything == bool(names):
        raise invalid("claims run", "claims", "be named, or all be run with --all", names, "See homeostat claims list.")
    chosen = list(CLAIMS.values()) if everything else [claim_of(name) for name in dict.fromkeys(names)]
    check_count("seeds", seeds, 1)
    check_count("workers", workers, 0)
    if not out or (Path(out).exists() and not Path(out).is_dir()):
        raise invalid("claims run", "out", "be a folder", out)
    if not quick:
        console.print("[dim]In full, a claim takes from a minute to hours; with --quick, less than a minute.[/]")
    found: dict[str, Evidence] = {}
    failed = 0
    try:
        for place, claim in enumerate(chosen, start=1):
            console.print(f"[dim]{place} of {len(chosen)}[/] {claim.id}: {escape(claim.sentence)}", highlight=False)
            try:
                evidence = run(claim, quick=quick, seeds=seeds, workers=workers, out=out)
            except HomeostatError as error:
                failed += 1
                console.print(Text.assemble(("  failed ", "red"), show.code(str(error))))
                continue
            found[claim.id] = evidence
            verdict = evidence.verdict
            word = (f"  {verdict.word} ", _COLORS[verdict.word])
            console.print(Text.assemble(word, show.code(f"{verdict.number}. {verdict.says}")))
    except StudyInterrupted as stop:
        console.print(f"[yellow]{escape(str(stop))}[/]", highlight=False)
        return 130
    finally:
        if found:
            page = _write(found, quick, Path(out), console)
            show.say(f"\nGallery: {page}")
    return 3 if failed else 0


def _write(found: Mapping[str, Evidence], quick: bool, out: Path, console: Console) -> Path:
    """The page and the table of what was run now, and of what the folder has from earlier."""
    with console.status("Drawing what was run earlier") if console.is_terminal else nullcontext():
        every = [found.get(claim.id) or stored(claim, quick=quick, out=out) for claim in CLAIMS.values()]
    known = [evidence for evidence in every if evidence is not None]
    directory = out / ("quick" if quick else "full")
    write_text(directory / "README.md", summary(known))
    return write_gallery(known, directory)
