"""What running a claim gave: verdict, data, figure, and how to get it again."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from homeostat.claims.claim import Claim, Setup, Verdict
from homeostat.page.svg import Picture
from homeostat.study.show.export import write_csv, write_text


@dataclass(frozen=True, eq=False, repr=False)
class Evidence:
    """What a claim's experiment showed.

    Attributes:
        claim: what was claimed.
        verdict: what the data say.
        frame: one row per trial: the levels, seed and metrics.
        figure: the same as a picture.
        setup: how it was run.
        scale: "quick" or "full".
        date: on which it was begun, "2026-11-22".
        seconds: for which it ran, over all its runs.
        environment: machine and versions.
        failures: of trials that did not end well, the last texts.
    """

    claim: Claim
    verdict: Verdict
    frame: pd.DataFrame
    figure: Picture
    setup: Setup
    scale: str
    date: str
    seconds: float
    environment: Mapping[str, str]
    failures: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that runs it again."""
        words = ["homeostat", "claims", "run", self.claim.id, *(["--quick"] if self.scale == "quick" else [])]
        return shlex.join([*words, "--seeds", str(self.setup.seeds)])

    def __repr__(self) -> str:
        return f"Evidence({self.claim.id}: {self.verdict.word}, {self.verdict.number}, n={len(self.frame)})"

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        said = f"<b>{html.escape(self.verdict.word)}</b> · {html.escape(self.verdict.number)}"
        words = (self.claim.sentence, said, html.escape(self.verdict.says))
        text = "".join(f"<p>{word}</p>" for word in (html.escape(words[0]), *words[1:]))
        return f'<div style="background: #fffffe; color: #1a1a1a; padding: 4px 12px">{text}{self.figure.wide}</div>'

    def save(self, directory: Path) -> None:
        """Write trials.csv, figure.svg and evidence.json, each all of it or nothing."""
        write_csv(self.frame, directory / "trials.csv")
        write_text(directory / "figure.svg", standalone(self.figure))
        told = {
            "id": self.claim.id,
            "verdict": self.verdict.word,
            "number": self.verdict.number,
            "says": self.verdict.says,
            "trials": len(self.frame),
            "seeds": self.setup.seeds,
            "data": self.setup.data,
            "scale": self.scale,
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "command": self.command,
            "environment": dict(self.environment),
            "failures": list(self.failures),
        }
        write_text(directory / "evidence.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def standalone(figure: Picture) -> str:
    """The wide form of a figure as an SVG file that needs no page around it."""
    background = '<rect width="100%" height="100%" fill="#fffffe"/>'
    opening, _, rest = figure.wide.partition(">")
    font = 'font-family="system-ui, Helvetica, Arial, sans-serif"'
    named = opening.replace("<svg", f'<svg xmlns="http://www.w3.org/2000/svg" {font}', 1)
    return f"{named}>{background}{rest}\n"
