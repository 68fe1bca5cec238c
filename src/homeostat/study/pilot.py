"""What an earlier study says for planning the next: how runs of one treatment vary, and how long a trial takes.

A pure function of the ledger. Nothing here is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from homeostat.errors import invalid, unknown
from homeostat.inference import LinearModel
from homeostat.study.results.outcomes import outcomes
from homeostat.study.state.ledger import Ledger


@dataclass(frozen=True)
class Pilot:
    """How the trials of a study varied.

    Attributes:
        response: the metric.
        spread: the standard deviation of runs of one treatment under different seeds, beyond what a seed does to all
            treatments alike.
        low, high: its 95 % interval, if runs vary normally.
        df: the degrees of freedom that it has.
        seconds: of a trial, the mean.
    """

    response: str
    spread: float
    low: float
    high: float
    df: int
    seconds: float


def read_pilot(directory: Path | str, response: str | None = None) -> Pilot:
    """The spread and the time of the trials that a study's directory holds, without those that diverged.

    Args:
        directory: of a study with two or more seeds.
        response: the metric; default: the one that the study judged by.
    Raises: StorageError where there is no study; InvalidValue for an unknown metric, or too few trials to say anything.
    """
    ledger = Ledger.open(directory)
    try:
        trials, configuration = ledger.trials(), ledger.configuration
        done = trials[trials["status"] == "done"]
        metric = response or configuration.get("response") or (ledger.first_metric() if len(done) else "")
    finally:
        ledger.close()
    where = f"pilot {str(directory)!r}"
    if len(done) and metric not in done:
        raise unknown(where, "metric", metric, [name for name in done.columns if done[name].dtype == float])
    own = trials[[outcome == "ok" for outcome in outcomes(trials, metric)]]
    tuned = list(configuration.get("design", {}).get("tune", {}))  # at other levels of these it is another treatment
    treatment = own.groupby(["treatment", *tuned], sort=False).ngroup()
    df, squares = _left(treatment.to_numpy(), own["seed"].to_numpy(), own[metric].to_numpy()) if len(own) else (0, 0.0)
    if df < 1:
        cure = "Run two or more seeds, each with the same treatments."
        raise invalid(where, "finished trials", "repeat treatments under several seeds", len(own), cure)
    low, high = (float(np.sqrt(squares / special.chdtri(df, tail))) for tail in (0.025, 0.975))
    return Pilot(metric, float(np.sqrt(squares / df)), low, high, df, float(own["seconds"].mean()))


def _left(treatment: np.ndarray, seed: np.ndarray, y: np.ndarray) -> tuple[int, float]:
    """Degrees of freedom and sum of squares beside treatments and seeds; beside treatments, where there is only one."""
    groups = [treatment] if len(set(treatment.tolist())) == 1 else [treatment, seed]
    columns = [np.equal.outer(group, np.unique(group)).astype(float) for group in groups]
    model = LinearModel(np.hstack(columns))
    return model.df_resid, float((model.residuals(y) ** 2).sum())
