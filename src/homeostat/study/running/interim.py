"""The strongest effects of a study that is not finished, worked out seldom enough to cost the trials nothing.

Only seeds under which every treatment has ended count: they are complete blocks. They are judged as they will be at the
end: by the intervals of looks in a sequential study, by the metric that judges in a tuned one. In any other such a look
is for people's eyes; to stop by it takes the intervals of `stopping`. Nothing here is random.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import pandas as pd

from homeostat.errors import HomeostatError
from homeostat.study.design import Design
from homeostat.study.results.analysis import Analysis, analyze
from homeostat.study.sequence import Schedule, always_valid
from homeostat.study.state.ledger import Ledger
from homeostat.study.tuning import Grid, judged_by, tuned

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
    trials: pd.DataFrame,
    design: Design,
    judged: dict[str, Any],
    grid: Grid | None = None,
    sequential: bool = False,
    *,
    most: int = 4,
) -> Strongest:
    """The largest effects by the seeds that are complete; none where there is no such seed or nothing to say.

    Args:
        trials: from `Ledger.trials`.
        judged: response, goal and margin, as `analyze` takes them.
        grid: the nuisance factors; each treatment counts at its best level so far.
        sequential: see `Ledger.sequential`.
        most: how many are told.
    """
    unfinished = trials.loc[trials["status"].isin(_OPEN), "seed"]
    whole = trials[~trials["seed"].isin(unfinished)]
    if not (whole["status"] == "done").any():
        return Strongest()
    try:
        analysis = _analysis(whole, design, judged, grid, sequential)
    except HomeostatError:  # the end of the study will say it
        return Strongest()
    told = analysis.effects[analysis.effects["estimable"] & analysis.effects["estimate"].notna()]
    order = told["estimate"].abs().sort_values(ascending=False, kind="stable").index[:most]
    columns = (told.loc[order, name] for name in ("label", "estimate", "low", "high", "verdict"))
    found = [
        Effect(label, analysis.unit.gain(estimate, low, high), verdict)
        for label, estimate, low, high, verdict in zip(*columns, strict=True)
    ]
    return Strongest(int(whole.loc[whole["status"] != "waiting", "seed"].nunique()), tuple(found))


def _analysis(
    trials: pd.DataFrame, design: Design, judged: dict[str, Any], grid: Grid | None, sequential: bool
) -> Analysis:
    response, goal, margin = (judged[name] for name in ("response", "goal", "margin"))
    if grid is not None:
        own = tuned(trials, design, grid, metric=response, goal=goal)
        return analyze(own, design, response=judged_by(response, trials), goal=goal, margin=margin)
    if sequential:
        return always_valid(*Schedule(design, None, goal, margin).look(trials, response))
    return analyze(trials, design, **judged)


class Interim:
    """The strongest effects of a ledger, worked out anew when more trials are done, for 2 % of the time at most.

    Args:
        ledger: of the study.
        design, judged, grid: see `strongest`; a response of None stands for the first metric of the first result.
    """

    def __init__(self, ledger: Ledger, design: Design, judged: dict[str, Any], grid: Grid | None = None) -> None:
        self._ledger, self._design, self._judged, self._grid = ledger, design, judged, grid
        self._done, self._not_before = 0, time.monotonic() + _PAUSE
        self.found = Strongest()

    def __call__(self, done: int) -> Strongest:
        """The newest that is known.

        Args:
            done: how many trials are done now.
        """
        if self.due(done):
            self.look(done)
        return self.found

    def due(self, done: int) -> bool:
        """Whether there is something new, and enough time has passed since the last look."""
        return done > self._done and time.monotonic() >= self._not_before

    def look(self, done: int) -> None:
        """Find out anew."""
        now = time.monotonic()
        self._done, self.found = done, self.now()
        self._not_before = now + max(_PAUSE, (time.monotonic() - now) / _SHARE)

    def now(self) -> Strongest:
        """Worked out at once."""
        trials = self._ledger.trials()
        if not (trials["status"] == "done").any():
            return Strongest()
        judged = {**self._judged, "response": self._judged["response"] or self._ledger.first_metric()}
        return strongest(trials, self._design, judged, self._grid, self._ledger.sequential)


class Aside:
    """An `Interim` that keeps nobody waiting: a thread looks, and until it has, the look before is told.

    A context manager; when it ends, so has the thread.
    """

    def __init__(self, interim: Interim) -> None:
        self._interim = interim
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._thread is not None:
            self._thread.join()

    def __call__(self, done: int) -> Strongest:
        """The newest that is known; see `Interim`."""
        idle = self._thread is None or not self._thread.is_alive()
        if idle and self._interim.due(done):
            self._thread = threading.Thread(target=self._look, args=(done,), name="strongest effects", daemon=True)
            self._thread.start()
        return self._interim.found

    def _look(self, done: int) -> None:
        with suppress(HomeostatError):  # whatever is wrong with the ledger, the trials will say
            self._interim.look(done)
