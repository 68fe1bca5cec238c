"""An examination and a repair on a terminal: the sentence, the findings, what was changed and what it brought.

Nothing is computed here and nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from homeostat.doctor.finding import Finding, Severity
from homeostat.doctor.show.exhibits import MARKS, NAMES, evidence, facts, score_text, sentence, standing
from homeostat.doctor.show.rulebook import Family, RulePage
from homeostat.page.terminal import Printer

if TYPE_CHECKING:
    from homeostat.doctor.examine import Examination
    from homeostat.doctor.repair import Repair

_STYLES: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "info": "dim"}
_MOST_REMARKS = 6
_MOST_EVIDENCE = 5  # numbers beside a finding; the report has them all
_NARROW = 70  # columns; with fewer, findings are listed without columns


def print_examination(examination: Examination, console: Console, accepted: Iterable[str] = ()) -> None:
    """Print what an examination found, as wide as the console is.

    Args:
        accepted: fingerprints of findings that are counted in one line and not shown.
    """
    show = Printer(console)
    known = frozenset(accepted)
    shown = [finding for finding in examination.findings if finding.fingerprint not in known]
    show.text(sentence(examination.verdict), "bold")
    show.text(facts(examination), "dim")
    reached = standing(examination)
    if math.isfinite(reached.score):
        beside = ""
        if math.isfinite(reached.baseline):
            beside = f"; best baseline {score_text(reached.baseline)}: {reached.baseline_name}"
        show.text(f"{reached.metric} {score_text(reached.score)} {reached.progress}{beside}", "dim")
    _findings(shown, show)
    left_out = len(examination.findings) - len(shown)
    if left_out:
        show.text(f"{left_out} accepted, not shown", "dim")
    for note in examination.notes:
        show.item("!", note, "dim")


def print_repair(repair: Repair, console: Console) -> None:
    """Print what a repair changed, as lines of code, and what that brought."""
    show = Printer(console)
    show.text(repair.verdict, "bold")
    for place, change in enumerate(repair.changes, 1):
        show.heading(f"{place}. {change.what}{_where(change.where)}")
        origin = f"{change.code}, {change.safety}" if change.code else change.safety
        show.text(f"{change.why} [{origin}]", "dim")
        for line in change.diff.splitlines():
            style = {"-": "red", "+": "green"}.get(line[:1], "")
            show.say(line, style)
    if repair.advice:
        show.heading("What only you can change")
        for advice in repair.advice:
            show.item("•", advice)


def print_page(page: RulePage, console: Console) -> None:
    """Print the documentation of a rule."""
    show = Printer(console)
    show.text(page.name, "bold")
    show.text(page.summary)
    for heading, body in page.sections:
        show.heading(heading)
        for paragraph in body.split("\n\n"):
            show.text(paragraph)
    if page.requires:
        show.heading("Explained by")
        show.text(", ".join(page.requires))


def print_families(found: Sequence[Family], console: Console) -> None:
    """Print the list of all rules."""
    show = Printer(console)
    for place, family in enumerate(found):
        if place:
            console.print()
        show.text(f"{family.letters}  {family.title}", "bold")
        table = Table.grid(padding=(0, 2))
        for page in family.pages:
            table.add_row(show.cell(page.code), show.cell(page.slug), show.cell(page.summary, "dim"))
        show.table(table)


def _findings(findings: Sequence[Finding], show: Printer) -> None:
    remarks = [finding for finding in findings if finding.severity == "info"]
    left_out = remarks[_MOST_REMARKS:]
    rows = [finding for finding in findings if finding not in left_out]
    if not rows:
        return
    show.console.print()
    if show.console.width < _NARROW:
        for finding in rows:
            show.item(MARKS[finding.severity], f"{_head(finding)}: {finding.message}", _STYLES[finding.severity])
            for text, style in _beside(finding):
                show.console.print(Padding(show.cell(text, style), (0, 0, 0, 2)))
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 1, 0), header_style="dim")
        for name in ("", "rule", "what was found, and what to do"):
            table.add_column(name, overflow="fold")
        for finding in rows:
            what = Text("\n").join(
                [show.cell(sentence(finding.message)), *(show.cell(*pair) for pair in _beside(finding))]
            )
            mark = show.cell(f"{MARKS[finding.severity]} {NAMES[finding.severity][0]}", _STYLES[finding.severity])
            rule = [show.cell(finding.code), show.cell(finding.slug, "dim")]
            where = [show.cell(f"in {finding.layer}")] if finding.layer else []
            table.add_row(mark, Text("\n").join([*rule, *where]), what)
        show.table(table)
    show.more(len(left_out))


def _head(finding: Finding) -> str:
    return f"{finding.code} {finding.slug}{f' in {finding.layer}' if finding.layer else ''}"


def _beside(finding: Finding) -> list[tuple[str, str]]:
    """What stands below a finding's message, with its style."""
    numbers = ", ".join(f"{name} {text}" for name, text in evidence(finding)[:_MOST_EVIDENCE])
    lines = [(numbers, "dim")] if numbers else []
    if finding.proof is not None:
        lines.append((f"Tried: {finding.proof.text}", "cyan"))
    if finding.consequence_of:
        lines.append((f"Explained by {finding.consequence_of}", "dim"))
    return [*lines, (f"→ {finding.remedy}", "")] if finding.remedy else lines


def _where(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
