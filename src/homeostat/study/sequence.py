"""A sequential study: seeds are added one by one, and after each a look decides whether another is needed.

The design's seeds are the most that may be run. At first two of them are, for one seed has no spread; all others wait
in the ledger. Looks happen only where every trial that was admitted has ended, so what is looked at, and with it what
is run, does not depend on how many workers there are, who died meanwhile, or how many drivers share the study: whoever
comes to the end of a seed looks, and all see the same. `stopping.look` says what may be concluded however often one
looks; here is who waits for whom, and what the report says. Nothing here is random.

How narrow is narrow enough is no part of what results depend on: a study may be resumed with another aim, or without
one, and then goes on from where it is. What is always valid stays so; a study that was ever sequential is judged by
intervals that are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from homeostat.errors import invalid, invalid_type
from homeostat.inference.sequential import PLANNED
from homeostat.page.text import percent
from homeostat.study.design import Design
from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.results.conclusion import conclude
from homeostat.study.results.effects import Goal, oriented
from homeostat.study.results.wording import counted, listed
from homeostat.study.state.ledger import Ledger
from homeostat.study.stopping import Look, look

Until: TypeAlias = float | Literal["best"]

FIRST = 2  # seeds that are run before the first look
MOST = 30  # seeds of a sequential study where none are asked for
_LEAST = FIRST + 1  # seeds of a design in which there is something to decide


@dataclass(frozen=True, eq=False)
class Schedule:
    """When a study may end before all its seeds were run.

    Attributes:
        design: with all seeds that may be run, in their order.
        until: half the width at which an effect's interval is narrow enough, in the response's unit (0: only effects
            that are beyond or within the margin are settled); "best": until one treatment is left that may be the best,
            treatments that are clearly worse, or whose runs were all lost, being given up on the way; None: all seeds
            are run.
        goal, margin: see `analyze`.
    """

    design: Design
    until: Until | None
    goal: Goal
    margin: float

    def hold(self, ledger: Ledger) -> None:
        """Let all seeds wait but the first two and those that have been begun; to be called before any trial is run."""
        if self.until is not None:
            ledger.hold(self.design.seeds[FIRST:])

    def advance(self, ledger: Ledger, response: str | None) -> bool:
        """Admit the trials that are needed next; whether there is anything to run.

        Args:
            response: the metric to judge; None: the first that the objective names.
        """
        while True:
            trials = ledger.trials()
            if trials["status"].isin(["pending", "running"]).any():
                return True
            wanted = self._wanted(trials, lambda: response or ledger.first_metric())
            if wanted is None:
                return False
            ledger.admit(*wanted)

    def look(self, trials: pd.DataFrame, response: str) -> tuple[Analysis, Look]:
        """Analysis of the seeds that were begun, with its look; the intervals of effects are those of the look.

        Args:
            trials: from `Ledger.trials`.
        """
        design = replace(self.design, seeds=_begun(trials, self.design))
        own = trials[trials["seed"].isin(design.seeds)]
        analysis = analyze(own, design, response=response, goal=self.goal, margin=self.margin)
        found = look(analysis, target=_target(self.until), planned=min(PLANNED, max(2, len(self.design.seeds))))
        return analysis, found

    def _wanted(self, trials: pd.DataFrame, response: Callable[[], str]) -> tuple[Sequence[int], Sequence[int]] | None:
        """Seeds and treatments of which the waiting trials are run next; None: none are."""
        waiting = trials[trials["status"] == "waiting"]
        everything = tuple(self.design.treatments.index)
        if waiting.empty or self.until is None:
            return None if waiting.empty else (self.design.seeds, everything)
        begun = _begun(trials, self.design)
        gaps = [seed for seed in begun if seed in set(waiting["seed"])]
        if gaps and self.until != "best":  # left by a study that gave treatments up
            return gaps, everything
        if len(begun) == len(self.design.seeds) or not (trials["status"] == "done").any():
            return None  # nothing is left, or nothing works
        analysis, found = self.look(trials, response())
        alive = _alive(analysis, found) if self.until == "best" else everything
        enough = len(alive) < 2 if self.until == "best" else found.settled
        return None if enough else ([self.design.seeds[len(begun)]], alive)


def as_until(until: float | str | None, design: Design) -> Until | None:
    """The aim of a sequential study, checked.

    Raises: InvalidType, InvalidValue for what is neither a width nor "best", or for a design of fewer than three seeds.
    """
    if until is None:
        return None
    if isinstance(until, bool) or not isinstance(until, int | float | str):
        raise invalid_type("Study", "until", "be a number or 'best'", until)
    if until != "best" and (isinstance(until, str) or not (math.isfinite(until) and until >= 0)):
        cure = "Half the width at which intervals are narrow enough, in the response's unit: 0.005 is half a point."
        raise invalid("Study", "until", "be 'best', or finite and at least 0", until, cure)
    if len(design.seeds) < _LEAST:
        cure = f"The seeds are the most that may be run, such as {MOST}; the first {FIRST} always are."
        raise invalid("Study", "seeds", f"be at least {_LEAST} with until", len(design.seeds), cure)
    return "best" if isinstance(until, str) else float(until)


def always_valid(analysis: Analysis, found: Look) -> Analysis:
    """The analysis with intervals, p-values and verdicts of effects that hold at every look together."""
    table, own = analysis.effects.copy(), found.effects
    judged = table["estimable"].to_numpy()
    for name in ("low", "high", "p", "p_holm"):
        values = own[name].to_numpy(dtype=float)
        table.loc[judged, name] = np.where(np.isfinite(values), values, np.nan)
    rows = zip(own.itertuples(index=False), table.loc[judged, "kind"], strict=True)
    table.loc[judged, "verdict"] = [_verdict(row, kind == "main", oriented(analysis.goal)) for row, kind in rows]
    said = conclude(
        analysis.treatments, table, analysis.recommendation, analysis.model, analysis.units,
        response=analysis.response, goal=analysis.goal,
    )  # fmt: skip
    return replace(analysis, effects=table, summary=said)


def told(trials: pd.DataFrame, design: Design, until: Until | None, found: Look, analysis: Analysis) -> list[str]:
    """What the report says of how the study went, in sentences: first, what was run and what was saved.

    Args:
        trials: from `Ledger.trials`.
        design: with all the seeds that might have been run.
        until: see `Schedule`.
        found, analysis: of the last look.
    """
    waiting, planned, seeds = saved(trials), len(trials), len(analysis.design.seeds)
    run = f"{counted(planned - waiting, 'trial')} of at most {planned:,} were run, {waiting:,} were saved"
    ended = (
        f"Seeds were added one by one: {seeds} of at most {len(design.seeds)}. {run if waiting else 'All were run'}."
    )
    unit = analysis.unit
    if until is None:
        why = "In the end all seeds were run."
    elif until == "best":
        left = [f"treatment {number}" for number in _alive(analysis, found)]
        verb = "is the best" if len(left) == 1 else "may be the best"
        sure = f"clearly worse than another (wrong in at most {percent(1 - analysis.confidence)} of studies)"
        lost = "" if len(left) == len(found.alive) else ", or lost every run"
        why = f"{listed(left)} {verb}; the others were {sure}{lost}."
        why = why if len(left) < len(design.treatments) else "No treatment was clearly worse than another."
    else:
        open_ = int((found.effects["state"] == "open").sum())
        width = f"known to ±{unit.amount(until, math.nan, math.nan)}" if until else "known as precisely as asked for"
        settled = f"Every effect is beyond the margin, within it, or {width}."
        why = f"{counted(open_, 'effect')} would have needed more seeds." if open_ else settled
    limits = (
        "The intervals and p-values of effects hold at every look together, whenever the study ended, and for all "
        "effects together; that makes them wider. Those of treatments, of combinations and of the recommended gain are "
        "of a number of seeds fixed beforehand, and hold a little less often after looking."
    )
    return [ended, why, limits]


def saved(trials: pd.DataFrame) -> int:
    """How many planned trials were not needed."""
    return int((trials["status"] == "waiting").sum())


def _begun(trials: pd.DataFrame, design: Design) -> tuple[int, ...]:
    """The seeds of which any trial was admitted, in the order of the design."""
    admitted = set(trials.loc[trials["status"] != "waiting", "seed"])
    return tuple(seed for seed in design.seeds if seed in admitted)


def _alive(analysis: Analysis, found: Look) -> tuple[int, ...]:
    """The treatments that may be the best; one of which no run has given a result so far is not among them."""
    some = set(analysis.model.treatment.tolist())
    return tuple(number for number in found.alive if number in some)


def _target(until: Until | None) -> float:
    return until if isinstance(until, float) else 0.0


def _verdict(row: Any, main: bool, sign: int) -> str:
    """As `Analysis.effects` has it, from a row of `Look.effects`."""
    if row.state == "within":
        return "within the margin"
    if row.state != "beyond" and not (row.low > 0 or row.high < 0):
        return "no clear effect"
    better, worse = ("helps", "hurts") if main else ("strengthens", "weakens")
    words = better if sign * row.estimate > 0 else worse
    return words if row.state == "beyond" else f"perhaps {words}"
