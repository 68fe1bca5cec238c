"""What each column of a table is: a number, a category, or nothing a network can use. Nothing here is random.

The rules, in order:
- numbers, booleans (0 and 1) and dates (days since 1970) are numeric; infinite values are an error;
- text that is at least four fifths numbers is a numeric column with stray text, which is an error naming the first;
- text formatted as numbers ("$1,200", "35 %") is an error;
- other text is a category; if nearly every value is different (an id, a name, free text), the column is dropped;
- whole numbers that are all different, in a column called id, index or row, are row labels and are dropped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from homeostat.errors import InvalidValue, invalid
from homeostat.training.tablefiles import INDEX_NAME

MOSTLY = 0.8  # a text column with this share of numbers was meant to be numeric
_LABEL = re.compile(r"(.*[_\s.-])?(id|idx|index|row|rownum|row_?number|unnamed: ?\d+)", re.IGNORECASE)
_DATE = re.compile(r"\d{4}-\d{2}(-\d{2}.*)?")
_FORMATTED = re.compile(
    r"[$€£¥]\s*[+-]?[\d.,' ]+|[+-]?[\d.,' ]+\s*[$€£¥%]|[+-]?\d{1,3}([,' ]\d{3})+(\.\d+)?|[+-]?\d+,\d+"
)
_LARGEST = 1e100  # beyond it, squares overflow double precision


@dataclass(frozen=True)
class Column:
    """A column of features.

    Attributes:
        kind: "numeric" (float64 values, NaN where missing), "category" (text, None where missing), or "dropped".
        note: why it was dropped, or how it was read; "" if there is nothing to tell.
    """

    kind: Literal["numeric", "category", "dropped"]
    values: pd.Series
    note: str = ""


def typed(series: pd.Series) -> Column:
    """What the column `series` is, with its values in one type.

    Raises: InvalidValue naming column, row and value for infinite values, stray text and formatted numbers.
    """
    name = str(series.name)
    if series.isna().all():
        return Column("dropped", series, "no value")
    numbers, note = as_numbers(series)
    if numbers is not None:
        if name == INDEX_NAME or (_LABEL.fullmatch(name) and _all_different_integers(numbers)):
            return Column("dropped", series, "row labels")
        return Column("numeric", numbers, note)
    text = as_text(series)
    known = text.dropna()
    distinct = known.nunique()
    if distinct > 0.5 * len(known) and (distinct > 20 or (distinct == len(known) and distinct > 10)):
        return Column(
            "dropped", series, f"text with {distinct} different values in {len(known)} rows: ids or free text"
        )
    return Column("category", text)


def as_numbers(series: pd.Series) -> tuple[pd.Series | None, str]:
    """The column as float64, NaN where a value is missing, and a note on how it was read; None if it is not numeric.

    Raises: InvalidValue naming column and row of an infinite value.
    """
    numbers, note = _numbers(series)
    if numbers is not None:
        _check_finite(numbers, str(series.name))
    return numbers, note


def as_text(series: pd.Series) -> pd.Series:
    """The column as plain text, None where a value is missing.

    Raises: InvalidValue if it was meant to be numeric: most values are numbers, or numbers with signs around them.
    """
    name = str(series.name)
    known = series.dropna()
    if series.dtype == object and any(isinstance(value, (list, dict, set, np.ndarray)) for value in known):
        raise invalid("load_task", f"column {name!r}", "hold one value per row", known.iloc[0], "Unfold or remove it.")
    text = known.astype(str).str.strip()
    numeric = pd.to_numeric(text, errors="coerce").notna()
    if numeric.mean() >= MOSTLY and not numeric.all():
        row = int(np.flatnonzero((series.notna()).to_numpy())[int(np.argmin(numeric.to_numpy()))])
        stray = int((~numeric).sum())
        more = f" ({stray} such values)" if stray > 1 else ""
        raise InvalidValue(
            f"load_task: column {name!r} must hold numbers, as {int(numeric.sum())} of its {len(text)} values do, "
            f"but row {row + 1} below the header holds {series.iloc[row]!r}{more}. "
            "Correct it, leave it empty if it is missing, or remove the column."
        )
    different = text.unique().tolist()
    formatted = [value for value in different if _FORMATTED.fullmatch(value)]
    if len(formatted) >= MOSTLY * len(different):
        cure = "Write plain numbers: no thousands separators, units or percent signs, and a point for decimals."
        raise invalid("load_task", f"column {name!r}", "hold plain numbers", formatted[0], cure)
    result = pd.Series([None] * len(series), index=series.index, name=series.name, dtype=object)
    result[series.notna()] = text.astype(object)
    return result


def _numbers(series: pd.Series) -> tuple[pd.Series | None, str]:
    dtype, name = series.dtype, series.name
    if isinstance(dtype, pd.CategoricalDtype):
        return None, ""
    if pd.api.types.is_datetime64_any_dtype(dtype):
        return _days(series), "dates, as days since 1970"
    if pd.api.types.is_timedelta64_dtype(dtype):
        return series.dt.total_seconds() / 86_400, "durations, in days"
    if pd.api.types.is_complex_dtype(dtype):
        raise invalid("load_task", f"column {name!r}", "hold real numbers", "complex numbers", "Split it into two.")
    found = "boolean" if pd.api.types.is_bool_dtype(dtype) else pd.api.types.infer_dtype(series, skipna=True)
    if found in ("boolean", "integer", "floating", "mixed-integer-float", "decimal"):
        values = [float(value) for value in series.dropna()] if series.dtype == object else None
        if values is None:
            numbers = pd.Series(series.to_numpy(dtype=np.float64, na_value=np.nan), index=series.index, name=name)
        else:
            numbers = pd.Series(np.nan, index=series.index, name=name)
            numbers[series.notna()] = values
        return numbers, "true and false, as 1 and 0" if found == "boolean" else ""
    if found in ("datetime", "datetime64", "date"):
        return _days(pd.to_datetime(series, utc=True)), "dates, as days since 1970"
    if found == "string":
        known = series.dropna().astype(str).str.strip()
        as_numbers = pd.to_numeric(known, errors="coerce")
        if as_numbers.notna().all():  # numbers that were stored as text
            return as_numbers.astype(np.float64).reindex(series.index), "numbers, stored as text"
        if _DATE.fullmatch(str(known.iloc[0])):
            dates = pd.to_datetime(known, format="ISO8601", errors="coerce", utc=True)
            if dates.notna().all():
                return _days(dates).reindex(series.index), "dates, as days since 1970"
    return None, ""


def _days(dates: pd.Series) -> pd.Series:
    aware = dates if getattr(dates.dtype, "tz", None) is not None else dates.dt.tz_localize("UTC")
    return pd.Series((aware - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1), name=dates.name)


def _check_finite(numbers: pd.Series, name: str) -> None:
    values = numbers.to_numpy()
    wrong = np.flatnonzero(np.abs(values) > _LARGEST)  # NaN, a missing value, is not larger than anything
    if len(wrong):
        shown = f"{values[wrong[0]]:g} in row {wrong[0] + 1} below the header ({len(wrong)} such values)"
        raise invalid("load_task", f"column {name!r}", "hold finite numbers", shown, "Leave a missing value empty.")


def _all_different_integers(numbers: pd.Series) -> bool:
    return bool(numbers.is_unique and numbers.notna().all() and (numbers == numbers.round()).all())
