"""The strongest effects of a study that is not finished, worked out seldom enough to cost the trials nothing.

Only seeds under which every treatment has ended count: they are complete blocks. Such a look is for people's eyes; to
stop a study by it takes the intervals of `stopping`. Nothing here is random.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from homeostat.errors import HomeostatError
from homeostat.study.analysis import analyze
from homeostat.study.design import Design
from homeostat.study.ledger import Ledger
from homeostat.study.tuning import Grid, tuned

_SHARE = 0.02  # of the time, at most, that goes into looking
_PAUSE = 3.0  # seconds between two looks at least
_OPEN = ("pending", "running")


@dataclass(frozen=True)
class Effect:
    """One effect in words: "norm: none → batch", "+1.3 points [0.8, 1.8]", "helps"."""

    label: str
    amount: str
    verdict: str


@dataclass(frozen=True)
class Strongest:
    """The largest effects, by so many complete seeds."""

    seeds: int = 0
    effects: tuple[Effect, ...] = ()


def strongest(
    trials: pd.DataFrame, design: Design, judged: dict[str, Any], grid: Grid | None = None, *, most: int = 4
) -> Strongest:
    """The largest effects by the seeds that are complete; none where there is no such seed or nothing to say.

    Args:
        trials: from `Ledger.trials`.
        judged: response, goal and margin, as `analyze` takes them.
        grid: the nuisance factors; each treatment counts at its best level so far.
        most: how many are told.
    """
    trials = trials[trials["status"] != "waiting"]
    unfinished = trials.loc[trials["status"].isin(_OPEN), "seed"]
    whole = trials[~trials["seed"].isin(unfinished)]
    if not (whole["status"] == "done").any():
        return Strongest()
    try:
        if grid is not None:
            whole = tuned(whole, design, grid, metric=judged["response"], goal=judged["goal"])
        analysis = analyze(whole, design, **judged)
    except HomeostatError:  # the end of the study will say it
        return Strongest()
    told = analysis.effects[analysis.effects["estimable"] & analysis.effects["estimate"].notna()]
    order = told["estimate"].abs().sort_values(ascending=False, kind="stable").index[:most]
    columns = (told.loc[order, name] for name in ("label", "estimate", "low", "high", "verdict"))
    found = [
        Effect(label, analysis.unit.gain(estimate, low, high), verdict)
        for label, estimate, low, high, verdict in zip(*columns, strict=True)
    ]
    return Strongest(int(whole["seed"].nunique()), tuple(found))


class Interim:
    """The strongest effects of a ledger, worked out anew when more trials are done, for 2 % of the time at most.

    Args:
        ledger: of the study.
        design, judged, grid: see `strongest`; a response of None stands for the first metric of the first result.
    """

    def __init__(self, ledger: Ledger, design: Design, judged: dict[str, Any], grid: Grid | None = None) -> None:
        self._ledger, self._design, self._judged, self._grid = ledger, design, judged, grid
        self._done, self._not_before = 0, time.monotonic() + _PAUSE
        self._found = Strongest()

    def __call__(self, done: int) -> Strongest:
        """The newest that is known.

        Args:
            done: how many trials are done now.
        """
        now = time.monotonic()
        if done > self._done and now >= self._not_before:
            self._found, self._done = self.now(), done
            spent = time.monotonic() - now
            self._not_before = now + max(_PAUSE, spent / _SHARE)
        return self._found

    def now(self) -> Strongest:
        """Worked out at once."""
        trials = self._ledger.trials()
        if not (trials["status"] == "done").any():
            return Strongest()
        judged = {**self._judged, "response": self._judged["response"] or self._ledger.first_metric()}
        return strongest(trials, self._design, judged, self._grid)
