"""Rows of the ledger as pandas frames, with every level, NaN and infinity as it was stored.

Nothing here is random.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

# What the frame of trials has beside factors and metrics.
COLUMNS = ("trial", "treatment", "seed", "status", "attempt", "seconds", "failure", "warnings")


def trials(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """See `Ledger.trials`.

    Args:
        rows: (trial, treatment, seed, config, status, attempt, seconds, failure, warnings, metrics), JSON as text.
    """
    configs = [json.loads(row[3]) for row in rows]
    metrics = [json.loads(row[9] or "{}") for row in rows]
    columns: dict[str, Any] = {name: np.array([row[i] for row in rows], int) for i, name in enumerate(COLUMNS[:3])}
    columns |= {name: _objects(config.get(name) for config in configs) for name in _names(configs)}
    columns["status"] = _objects(row[4] for row in rows)
    columns["attempt"] = np.array([row[5] for row in rows], int)
    columns["seconds"] = np.array([row[6] for row in rows], float)
    columns["failure"] = _objects(row[7] for row in rows)
    columns["warnings"] = _objects(json.loads(row[8] or "[]") for row in rows)
    columns |= {name: np.array([m.get(name) for m in metrics], float) for name in _names(metrics)}
    return pd.DataFrame(columns)


def curves(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """See `Ledger.curves`.

    Args:
        rows: (trial, treatment, seed, epoch, record), the record as JSON text.
    """
    records = [json.loads(row[4]) for row in rows]
    names = ("trial", "treatment", "seed", "epoch")
    columns = {name: np.array([row[i] for row in rows], int) for i, name in enumerate(names)}
    columns |= {name: np.array([record.get(name) for record in records], float) for name in _names(records)}
    return pd.DataFrame(columns)


def _names(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all records, in order of first appearance."""
    return list(dict.fromkeys(name for record in records for name in record))


def _objects(values: Iterable[Any]) -> pd.Series:
    return pd.Series(list(values), dtype=object)
