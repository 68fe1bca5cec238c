"""What became of each trial, and the tables that follow from that without any model: means and divergence.

Pure functions of the trials; nothing is dropped here without being counted.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from homeostat.errors import invalid
from homeostat.inference import Interval, mean_interval, share_difference, share_interval
from homeostat.study.design import Design
from homeostat.study.factors import TAKEN, Level


def metric_names(trials: pd.DataFrame, design: Design) -> tuple[str, ...]:
    """The columns of the trials that are metrics: numeric, and neither a factor nor one that every table has.

    The metric `diverged` is a flag, shown as a count, and not among them.
    """
    other = TAKEN | {factor.name for factor in design.factors}
    return tuple(str(name) for name in trials.columns if name not in other and _numbers(trials[name]) is not None)


def tidy(trials: pd.DataFrame, design: Design, response: str, metrics: Sequence[str]) -> pd.DataFrame:
    """The trials sorted by treatment and seed, levels as the design has them, metrics as floats, with their `outcome`.

    Returns: the columns of `trials`, and `outcome`: "ok", "diverged", "failed", "spared" or "missing".
    Raises: InvalidValue where a trial does not belong to the design or stands there twice.
    """
    lacking = [name for name in ("treatment", "seed", "status") if name not in trials.columns]
    if lacking:
        raise invalid("analyze", "trials", f"have the columns {lacking}", list(trials.columns))
    frame = trials.sort_values(["treatment", "seed"], kind="stable").reset_index(drop=True)
    _check_rows(frame, design)
    for factor in design.factors:
        levels = [design.treatments.at[treatment, factor.name] for treatment in frame["treatment"]]
        frame[factor.name] = pd.Series(levels, index=frame.index, dtype=object)
    for metric in metrics:
        frame[metric] = _numbers(frame[metric])
    frame["outcome"] = outcomes(frame, response)
    return frame


def outcomes(frame: pd.DataFrame, response: str) -> list[str]:
    """What became of each trial: "ok", "diverged" (not finite, or flagged so), "failed", "spared" or "missing"."""
    done = frame["status"] == "done"
    values = frame[response].to_numpy(dtype=float) if response in frame else np.full(len(frame), np.nan)
    gone = ~np.isfinite(values)
    if "diverged" in frame:
        flag = _numbers(frame["diverged"])
        gone |= (flag.fillna(0.0) != 0).to_numpy() if flag is not None else False
    found = np.where(gone, "diverged", "ok")
    kinds = {"quarantined": "failed", "waiting": "spared"}
    others = [kinds.get(status, "missing") for status in frame["status"]]
    found = np.where(done, found, others)
    return [str(outcome) for outcome in found]


def treatment_table(
    frame: pd.DataFrame,
    design: Design,
    metrics: Sequence[str],
    confidence: float = 0.95,
    shares: Collection[str] = (),
) -> pd.DataFrame:
    """Counts, mean seconds and the mean of every metric with its t-interval over seeds, per treatment.

    Args:
        frame: from `tidy`.
        shares: the metrics whose values are shares, such as accuracies: their intervals are cut to [0, 1], where the
            mean lies in any case, so that they hold it as often as before.
    Returns: index treatment; the factors; n (finished), diverged, failed, missing, seconds; m, m_low, m_high for every
        metric m, over the trials that are "ok" and whose value is finite.
    """
    places = frame.groupby("treatment").indices
    outcome, none = frame["outcome"].to_numpy(), np.array([], dtype=int)
    columns = {name: frame[name].to_numpy(dtype=float) for name in [*metrics, "seconds"] if name in frame}
    rows = []
    for treatment in design.treatments.index:
        own = places.get(treatment, none)
        ok, diverged = own[outcome[own] == "ok"], own[outcome[own] == "diverged"]
        failed = int((outcome[own] == "failed").sum())
        row: dict[str, float] = {"n": len(ok) + len(diverged), "diverged": len(diverged), "failed": failed}
        spared = int((outcome[own] == "spared").sum())
        row["missing"] = len(design.seeds) - row["n"] - failed - spared
        finished = np.concatenate([ok, diverged])
        row["seconds"] = (
            mean_interval(_finite(columns["seconds"][finished])).estimate if "seconds" in columns else np.nan
        )
        for metric in metrics:
            interval = mean_interval(_finite(columns[metric][ok]), confidence)
            low, high = np.clip([interval.low, interval.high], *((0.0, 1.0) if metric in shares else (None, None)))
            row |= {metric: interval.estimate, f"{metric}_low": low, f"{metric}_high": high}
        rows.append(row)
    return pd.concat([design.treatments, pd.DataFrame(rows, index=design.treatments.index)], axis=1)


def divergence_table(frame: pd.DataFrame, design: Design, confidence: float = 0.95) -> pd.DataFrame:
    """How many of the finished trials at each level diverged, as an outcome of its own, and how many failed.

    Intervals take trials for independent: Wilson's for a share, Newcombe's for its difference from that at the base
    level. Where some treatments diverge always and others never they are a little wide.

    Returns: columns factor, level, diverged, of (finished), failed, share, share_low, share_high, difference,
        difference_low, difference_high (level minus base; 0 at the base level; NaN without finished trials); one row
        per level, in the order of the design.
    """
    rows = []
    for factor in design.factors:
        base = (0, 0)
        for level in factor.levels:
            outcome = frame.loc[[held == level for held in frame[factor.name]], "outcome"]
            count, of = int((outcome == "diverged").sum()), int(outcome.isin(["ok", "diverged"]).sum())
            base = (count, of) if level == factor.base else base
            share, risk = share_interval(count, of, confidence), share_difference((count, of), base, confidence)
            risk = Interval(0.0, 0.0, 0.0) if level == factor.base and of else risk
            row: dict[str, object] = {"factor": factor.name, "level": level, "diverged": count, "of": of}
            row |= {"failed": int((outcome == "failed").sum())}
            row |= dict(zip(("share", "share_low", "share_high"), share[:3], strict=True))
            rows.append(row | dict(zip(("difference", "difference_low", "difference_high"), risk[:3], strict=True)))
    table = pd.DataFrame(rows)
    table["level"] = pd.Series([row["level"] for row in rows], dtype=object)
    return table


def divergence_by_level(treatments: pd.DataFrame, factor: str) -> dict[Level, tuple[int, int]]:
    """How many of the finished trials diverged at each level of a factor, as (diverged, finished).

    Args:
        treatments: from `treatment_table`.
    """
    found: dict[Level, tuple[int, int]] = {}
    for level, diverged, finished in zip(treatments[factor], treatments["diverged"], treatments["n"], strict=True):
        before = found.get(level, (0, 0))
        found[level] = (before[0] + int(diverged), before[1] + int(finished))
    return found


def _check_rows(frame: pd.DataFrame, design: Design) -> None:
    known = set(range(len(design.treatments)))
    for column, allowed in (("treatment", known), ("seed", set(design.seeds))):
        strange = sorted(set(frame[column]) - allowed)
        if strange:
            cure = "Are these the trials of another study?"
            raise invalid("analyze", f"every {column} of trials", "belong to the design", strange[:5], cure)
    twice = frame[frame.duplicated(["treatment", "seed"])]
    if len(twice):
        pair = tuple(int(twice.iloc[0][name]) for name in ("treatment", "seed"))
        raise invalid("analyze", "each (treatment, seed)", "stand in trials once", pair)


def _numbers(column: pd.Series) -> pd.Series | None:
    """The column as floats, or None where it holds something that is no number."""
    try:
        return column.astype(float)
    except (TypeError, ValueError):
        return None


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]
