"""Write docs/claims/README.md and its figures from the evidence of `homeostat claims run`, quick and full.

    python docs/verdicts.py [build/claims]

`make claims` runs it. What a folder lacks stays as it was last time, so that full forms may be run one by one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from homeostat.claims.gallery import tally
from homeostat.claims.registry import CLAIMS
from homeostat.page.text import duration

PAGE = Path(__file__).parent / "claims"
SCALES = ("quick", "full")


def main(source: Path) -> None:
    """Take over figures and evidence, then write the table from what has been taken over."""
    for scale in SCALES:
        for claim in CLAIMS:
            evidence = source / scale / claim / "evidence.json"
            if evidence.exists():
                (PAGE / scale).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(evidence, PAGE / scale / f"{claim}.json")
                shutil.copyfile(evidence.with_name("figure.svg"), PAGE / scale / f"{claim}.svg")
    known = {scale: {claim: _read(PAGE / scale / f"{claim}.json") for claim in CLAIMS} for scale in SCALES}
    (PAGE / "README.md").write_text(table(known), encoding="utf-8")


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(known: dict[str, dict[str, dict[str, Any] | None]]) -> str:
    """The page: how either form was run, a row per claim, and a section."""
    lines = [
        "# Verdicts",
        "",
        "What the lectures' claims come to; [claims](../claims.md) says how. Seeds are 0, 1, ...",
        "",
    ]
    lines += [f"- {_said(scale, [each for each in known[scale].values() if each])}" for scale in SCALES]
    lines += ["", f"| claim | what the lecture says | {' | '.join(SCALES)} |", "|---|---|---|---|"]
    for id, claim in CLAIMS.items():
        cells = [f"[{id}](#{id})", claim.sentence, *(_cell(scale, known[scale][id]) for scale in SCALES)]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    for id in CLAIMS:
        lines += ["", *_section(id, {scale: known[scale][id] for scale in SCALES})]
    return "\n".join(lines) + "\n"


def _section(id: str, known: dict[str, dict[str, Any] | None]) -> list[str]:
    """What was asked, what was seen, and beside it what others measured."""
    claim = CLAIMS[id]
    lines = [f"## {id}", "", f"{claim.hypothesis} ({claim.source})", "", claim.criterion, ""]
    for scale, found in known.items():
        if found is not None:
            lines.append(f"- {scale}: {found['data']}. **{found['verdict']}**, {found['number']}. {found['says']}")
    return [*lines, f"- others: {claim.literature}"] if claim.literature else lines


def _said(scale: str, found: list[dict[str, Any]]) -> str:
    """In which state, where, when and for how long a form was run."""
    if not found:
        return f"**{scale}**: not run."
    verdicts = tally(each["verdict"] for each in found)
    part = "" if len(found) == len(CLAIMS) else f" of {len(found)} claims out of {len(CLAIMS)}"
    dates = sorted({each["date"] for each in found})
    places = sorted({" · ".join(f"{name} {text}" for name, text in each["environment"].items()) for each in found})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    spent = duration(sum(each["seconds"] for each in found))
    return f"**{scale}**{part}: {verdicts}. {when}; trials ran for {spent} on {'; '.join(places)}."


def _cell(scale: str, found: dict[str, Any] | None) -> str:
    if found is None:
        return "not run"
    seeds = "1 seed" if found["seeds"] == 1 else f"{found['seeds']} seeds"
    number = f"{found['number']}; {seeds}, {found['trials']} trials"
    return f"**{found['verdict']}** {number} [figure]({scale}/{found['id']}.svg)"


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "build/claims"))
