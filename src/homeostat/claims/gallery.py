"""All evidence on one page: a card per claim, each opening to its experiment; and the verdicts as Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from homeostat.claims.claim import Word
from homeostat.claims.draw import renamed
from homeostat.claims.evidence import Evidence
from homeostat.claims.registry import THEMES
from homeostat.page import template
from homeostat.page.text import duration
from homeostat.study.factors import level_text
from homeostat.study.results.wording import counted
from homeostat.study.show.export import write_text

FILE = "index.html"
_MOST_ROWS = 40
_VERBS: dict[Word, str] = {"holds": "hold", "fails": "fail", "undecided": "undecided"}


def write_gallery(found: Sequence[Evidence], directory: Path | str) -> Path:
    """Write the page of all evidence to `directory`/index.html; returns its path.

    Raises: StorageError if it cannot be written.
    """
    path = Path(directory) / FILE
    write_text(path, render(found))
    return path


def render(found: Sequence[Evidence]) -> str:
    """The page as text."""
    known = {evidence.claim.id: evidence for evidence in found}
    themes = [
        (name, [_card(known[claim.id]) for claim in claims if claim.id in known]) for name, claims in THEMES.items()
    ]
    own = [_card(evidence) for evidence in found if all(evidence.claim not in claims for claims in THEMES.values())]
    context = {
        "kind": "claims",
        "title": "the lectures, tried",
        "version": version("homeostat"),
        "counts": tally(evidence.verdict.word for evidence in found),
        "forms": sorted({f"{evidence.scale} form" for evidence in found}, reverse=True),
        "themes": [(name, cards) for name, cards in [*themes, ("Claims of your own", own)] if cards],
        "environment": [(name, str(text)) for name, text in (found[0].environment.items() if found else ())],
        "spent": duration(sum(evidence.seconds for evidence in found)),
    }
    return template.render("homeostat.claims", "gallery", context)


def tally(words: Iterable[Word]) -> str:
    """How many claims come to which verdict.

    Example:
        >>> tally(["holds", "undecided", "holds"])
        '2 hold, 1 undecided'
    """
    counts = Counter(words)
    return ", ".join(f"{counts[word]} {verb}" for word, verb in _VERBS.items() if counts[word])


def summary(found: Sequence[Evidence]) -> str:
    """Verdicts as Markdown, for the folder in which the evidence of each claim has a folder of its own."""
    head = [f"# Verdicts: {tally(evidence.verdict.word for evidence in found)}", ""]
    if found:
        machine = " · ".join(f"{name} {text}" for name, text in found[0].environment.items())
        seconds = sum(evidence.seconds for evidence in found)
        head += [f"{machine}; trials ran for {duration(seconds)}. Seeds are 0, 1, ... for every claim.", ""]
    head += ["| claim | what the lecture says | verdict | number | seeds | trials | |", "|---|---|---|---|---|---|---|"]
    lines = []
    for evidence in found:
        cells = (
            evidence.claim.id, evidence.claim.sentence, evidence.verdict.word, evidence.verdict.number,
            str(evidence.setup.seeds), str(len(evidence.frame)), f"[figure]({evidence.claim.id}/figure.svg)",
        )  # fmt: skip
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join([*head, *lines]) + "\n"


def _card(evidence: Evidence) -> dict[str, Any]:
    claim, setup = evidence.claim, evidence.setup
    varied = "; ".join(f"{name}: {', '.join(map(level_text, known))}" for name, known in setup.factors.items())
    facts = [
        ("Hypothesis", claim.hypothesis),
        ("Varied", varied),
        ("Begun", evidence.date),
        ("Source", claim.source),
        ("Others", claim.literature),
    ]
    return {
        "id": claim.id,
        "sentence": claim.sentence,
        "word": evidence.verdict.word,
        "number": evidence.verdict.number,
        "says": evidence.verdict.says,
        "criterion": claim.criterion,
        "data": f"{setup.data}; {counted(setup.seeds, 'seed')}, {counted(len(evidence.frame), 'trial')}",
        "figure": renamed(evidence.figure, claim.id),
        "facts": [fact for fact in facts if fact[1]],
        "command": evidence.command,
        "heads": list(evidence.frame.columns),
        "rows": [[_cell(value) for value in row] for row in _summary(evidence).to_numpy(dtype=object)],
        "failures": [text.partition("\n")[0] for text in evidence.failures],
    }


def _summary(evidence: Evidence) -> pd.DataFrame:
    """The trials, or where there are many, their means over seeds."""
    frame = evidence.frame
    if len(frame) <= _MOST_ROWS:
        return frame
    factors = list(evidence.setup.factors)
    means = frame.groupby(factors, sort=False).mean(numeric_only=True).reset_index()
    return means.assign(seed=f"mean of {evidence.setup.seeds}")[list(frame.columns)]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else level_text(value) if value is None else str(value)
