"""Tables of a study as CSV files that a spreadsheet can open without harm.

Nothing here is random.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from homeostat.failpoints import reach
from homeostat.study.storage import explained

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # how a spreadsheet recognizes a formula


def write_csv(frame: pd.DataFrame, path: Path, *, index: bool = False) -> None:
    """Write a table, all of it or nothing. Texts that a spreadsheet would run as a formula get a "'" in front.

    Floats are written so that they read back exactly; NaN is "NaN", None is empty, lists are joined by "; ".

    Raises: StorageError if the file cannot be written.
    """
    cells = frame.reset_index() if index else frame.copy()
    for position, dtype in enumerate(cells.dtypes):
        if dtype.kind not in "biuf":
            texts = np.empty(len(cells), dtype=object)
            texts[:] = [_cell(value) for value in cells.iloc[:, position]]
            cells.isetitem(position, texts)
    cells.columns = pd.Index([_cell(name) for name in cells.columns])
    write_text(path, cells.to_csv(index=False, na_rep="NaN"))


def write_text(path: Path, text: str) -> None:
    """Write a text file, all of it or nothing.

    Raises: StorageError if it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with explained(path):
        try:
            partial.write_text(text, encoding="utf-8", newline="")
            reach("table.written")
            os.replace(partial, path)
            reach("table.stored")
        finally:
            partial.unlink(missing_ok=True)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = "; ".join(str(item) for item in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
