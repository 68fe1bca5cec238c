"""A table as a task: columns become features, the target decides between classification and regression.

Rows are split 60/20/20, seeded, stratified by class for classification. What is learned from values (medians, means,
deviations, levels, which columns vary) is learned from the training rows alone:
- numeric columns: missing values become the median and an indicator column says where; then mean 0 and deviation 1;
- categories: one column of 0 and 1 per level, a level of its own for missing values; at most 50 columns per category,
  the rarest levels sharing one; a level that training never saw is all zeros, or the shared one;
- columns that do not vary in the training rows are dropped, and the description says so.

The target: text, booleans and categories are classes. Whole numbers with at most 20 different values, each in five rows
on average, are classes too. All other numbers are regressed: standardized by the training rows, measured in their unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from homeostat.errors import InvalidValue, invalid, unknown
from homeostat.training.columns import as_numbers, as_text, typed
from homeostat.training.splits import plain_split, stratified_split
from homeostat.training.tablefiles import read_table
from homeostat.training.task import Task

MOST_CLASSES = 20  # different whole numbers that may still be classes
ROWS_PER_CLASS = 5
MOST_LEVELS = 50  # columns that one category may become
FEWEST_ROWS = 10
_NO_VALUE = "(missing)"
Problem = Literal["auto", "classification", "regression"]


def table_task(path: Path, target: str | None, *, seed: int = 0, problem: Problem = "auto") -> Task:
    """The task of predicting one column of a table from the others.

    Args:
        path: a .csv, .tsv (also .gz), .parquet or .pq file.
        target: the name of the column to predict.
        seed: the data seed of the split.
        problem: "classification" or "regression" where the rule of this module would decide otherwise.
    Raises: InvalidValue naming the file, column, row or class that cannot be used.
    """
    frame, facts = read_table(path)
    wanted = _target(frame, target, path, problem)
    features, notes = _features(frame.drop(columns=[wanted.name]))
    parts = _split(wanted, len(frame), seed)
    features, constant = _varying(features, parts[0])
    notes["dropped"] |= constant
    if features.columns.empty:
        raise invalid("load_task", "table", "have a column to learn from", str(path), f"Dropped: {notes['dropped']}.")
    arrays, encoding = _encoded(features, parts)
    y, unit = _standardized_target(wanted, parts[0])
    return Task(
        data=[(torch.from_numpy(x), torch.from_numpy(y[part])) for x, part in zip(arrays, parts, strict=True)],
        name=path.name.split(".")[0],
        loss="cross_entropy" if wanted.classes else "mse",
        classes=wanted.classes or None,
        standardize=False,  # done here: columns of 0 and 1 stay as they are
        target_unit=unit,
        seed=seed,
        description={
            "source": str(path),
            "file": facts,
            "target": wanted.name,
            "problem": "classification" if wanted.classes else "regression",
            "problem_reason": wanted.reason,
            "columns": {**encoding, **notes},
            "split": f"60/20/20 %, {'stratified' if wanted.classes else 'random'}, seed {seed}",
            "seed": seed,
        },
    )


@dataclass(frozen=True)
class _Target:
    """The target column: class numbers with the classes' names, or numbers with no names; and why it is which."""

    name: str
    values: np.ndarray
    classes: tuple[str, ...]
    reason: str


def _target(frame: pd.DataFrame, target: str | None, path: Path, problem: Problem) -> _Target:
    if target is None:
        cure = f"Say which column is to be predicted (--target). Columns: {', '.join(frame.columns)}."
        raise invalid("load_task", "target", "be given for a table", None, cure)
    if target not in frame.columns:
        raise unknown("load_task", f"column of {path.name}", target, frame.columns)
    if len(frame) < FEWEST_ROWS:
        raise invalid("load_task", "table", f"hold at least {FEWEST_ROWS} rows", f"{len(frame)} in {path}", "")
    series = frame[target]
    missing = int(series.isna().sum())
    if missing:
        row = int(np.flatnonzero(series.isna().to_numpy())[0]) + 1
        shown = f"{missing} missing, the first in row {row} below the header"
        raise invalid("load_task", f"target {target!r}", "have a value in every row", shown, "Remove those rows.")
    if series.nunique() < 2:
        cure = "There is nothing to learn from a constant target."
        raise invalid("load_task", f"target {target!r}", "vary", f"{series.iloc[0]!r} in every row", cure)
    return _decided(series, target, problem)


def _decided(series: pd.Series, target: str, problem: Problem) -> _Target:
    """Classes or numbers, by the rule at the top of this file."""
    column = None if isinstance(series.dtype, pd.CategoricalDtype) else _numeric(series)
    if column is None or pd.api.types.is_bool_dtype(series.dtype):
        if problem == "regression":
            raise invalid("load_task", f"target {target!r}", "hold numbers for regression", series.iloc[0], "")
        text = as_text(series)
        if text.nunique() > max(MOST_CLASSES, len(text) // 2):
            shown = f"{text.nunique()} different texts in {len(text)} rows"
            raise invalid("load_task", f"target {target!r}", "have few classes", shown, "Is it an id or free text?")
        return _classes(
            text.to_numpy(dtype=object), sorted(set(text)), target, "the column holds text, true/false or levels"
        )
    whole, distinct = bool((column == np.round(column)).all()), len(np.unique(column))
    few = whole and distinct <= MOST_CLASSES and len(column) >= ROWS_PER_CLASS * distinct
    if problem == "classification" or (problem == "auto" and few):
        names = [f"{value:g}" for value in np.unique(column)]
        reason = f"{distinct} different {'whole ' if whole else ''}numbers in {len(column)} rows"
        return _classes(np.array([f"{value:g}" for value in column], dtype=object), names, target, reason)
    kind = "whole numbers" if whole else "numbers with decimals"
    return _Target(target, column, (), f"{distinct} different values, {kind}, in {len(column)} rows")


def _numeric(series: pd.Series) -> np.ndarray | None:
    numbers, note = as_numbers(series)
    if note.startswith(("dates", "durations")):
        raise invalid("load_task", f"target {series.name!r}", "be a number or a class", series.iloc[0], "It is a date.")
    return None if numbers is None else numbers.to_numpy()


def _classes(values: np.ndarray, names: Sequence[str], target: str, reason: str) -> _Target:
    number = {name: index for index, name in enumerate(names)}
    return _Target(target, np.array([number[value] for value in values], dtype=np.int64), tuple(names), reason)


def _features(frame: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The usable columns, each float64 or object, and notes on those that were dropped or read in a special way."""
    columns = {str(name): typed(frame[name]) for name in frame.columns}
    dropped = {name: column.note for name, column in columns.items() if column.kind == "dropped"}
    read = {name: column.note for name, column in columns.items() if column.kind != "dropped" and column.note}
    kept = {name: column.values for name, column in columns.items() if column.kind != "dropped"}
    return pd.DataFrame(kept, index=frame.index), {"dropped": dropped, "read_as": read}


def _varying(features: pd.DataFrame, train: np.ndarray) -> tuple[pd.DataFrame, dict[str, str]]:
    """The columns with at least two values, a missing one included, in the training rows."""
    counts = features.iloc[train].nunique(dropna=False)
    empty = features.iloc[train].isna().all()
    constant = {str(name): "constant in the training rows" for name in features.columns[(counts < 2) | empty]}
    return features.drop(columns=list(constant)), constant


def _split(wanted: _Target, rows: int, seed: int) -> list[np.ndarray]:
    if wanted.classes:
        where = f"load_task: target {wanted.name!r}"
        return stratified_split(wanted.values, seed=seed, where=where, names=wanted.classes)
    return plain_split(rows, seed=seed, where="load_task")


def _encoded(features: pd.DataFrame, parts: Sequence[np.ndarray]) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The features of each part as float32 (rows, features), encoded by what the first part teaches."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import MissingIndicator, SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numeric = [str(name) for name in features.columns if features[name].dtype == np.float64]
    category = [str(name) for name in features.columns if name not in numeric]
    features = features.fillna(dict.fromkeys(category, _NO_VALUE))
    steps = []
    if numeric:
        steps.append(("number", make_pipeline(SimpleImputer(strategy="median"), StandardScaler()), numeric))
        steps.append(("missing", MissingIndicator(features="missing-only", error_on_new=False), numeric))
    if category:
        levels = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=MOST_LEVELS, sparse_output=False)
        steps.append(("level", levels, category))
    transformer = ColumnTransformer(steps).fit(features.iloc[parts[0]])
    arrays = [_transformed(transformer, features, part) for part in parts]
    if not all(np.isfinite(array).all() for array in arrays):
        raise InvalidValue("load_task: a column's values are too far apart to be standardized. Rescale or remove it.")
    with_missing = features[numeric].iloc[parts[0]].isna().any()
    counts = {name: int(features[name].iloc[parts[0]].nunique()) for name in category}
    return arrays, {
        "numeric": numeric,
        "with_missing_indicator": [name for name in numeric if with_missing[name]],
        "categories": counts,
        "rare_levels_joined": [name for name, count in counts.items() if count > MOST_LEVELS],
        "features": arrays[0].shape[1],
    }


def _transformed(transformer: Any, features: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
    """The encoded rows as float32, piece by piece: scikit-learn works in double precision, which takes more room."""
    pieces = np.split(rows, range(20_000, len(rows), 20_000))
    return np.concatenate([transformer.transform(features.iloc[piece]).astype(np.float32) for piece in pieces])


def _standardized_target(wanted: _Target, train: np.ndarray) -> tuple[np.ndarray, tuple[float, float] | None]:
    if wanted.classes:
        return wanted.values, None
    mean, deviation = float(wanted.values[train].mean()), float(wanted.values[train].std())
    if deviation == 0:
        cure = "All other values fell into validation and test; there is too little to learn from."
        raise invalid("load_task", f"target {wanted.name!r}", "vary in the training rows", mean, cure)
    return ((wanted.values - mean) / deviation).astype(np.float32), (mean, deviation)
