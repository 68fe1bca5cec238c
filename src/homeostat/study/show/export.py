"""Tables of a study as files: CSV that a spreadsheet can open without harm, Parquet for programs.

Nothing here is random.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from homeostat.failpoints import reach
from homeostat.study.factors import level_text
from homeostat.study.state.storage import explained

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
    """Write a text file, all of it or nothing. What UTF-8 cannot hold is written out.

    Raises: StorageError if it cannot be written.
    """
    with explained(path), _whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        reach("table.written")
    reach("table.stored")


def write_parquet(frames: Callable[[], Iterator[pd.DataFrame]], path: Path) -> int:
    """Write a table that comes in pieces, all of it or nothing; no file where there are no rows.

    Columns of the pieces may differ. Texts and levels of mixed types become text, numbers stay exactly what they are.

    Args:
        frames: called twice: for the columns, then for the rows.
    Returns: how many rows there are.
    Raises: StorageError if the file cannot be written.
    """
    types: dict[str, list[pa.DataType]] = {}
    for frame in frames():
        for name, kind in _types(frame).items():
            types.setdefault(name, []).append(kind)
    schema = pa.schema([(name, _common(kinds)) for name, kinds in types.items()])
    rows = 0
    with explained(path), _whole(path) as partial:
        with parquet.ParquetWriter(partial, schema, compression="zstd") as writer:
            for frame in frames():
                writer.write_table(_table(frame, schema))
                rows += len(frame)
        if not rows:
            partial.unlink()
    return rows


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to be written beside `path`, which takes its place where the block ends well and has left it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield partial
        if partial.exists():
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _types(frame: pd.DataFrame) -> dict[str, pa.DataType]:
    """What each column is in Parquet: levels of one kind stay what they are."""
    plain = {"b": pa.bool_(), "i": pa.int64(), "u": pa.uint64(), "f": pa.float64()}
    types = {}
    for name, column in frame.items():
        if column.dtype.kind in plain:
            types[str(name)] = plain[column.dtype.kind]
            continue
        kinds = {type(value) for value in column if value is not None}
        if kinds == {list}:
            types[str(name)] = pa.list_(pa.string())
        elif kinds == {bool}:
            types[str(name)] = pa.bool_()
        elif kinds and kinds <= {int, float}:
            types[str(name)] = pa.float64() if float in kinds else pa.int64()
        else:
            types[str(name)] = pa.string()
    return types


def _common(kinds: Sequence[pa.DataType]) -> pa.DataType:
    """What a column is whose pieces are these."""
    different = set(kinds)
    if len(different) == 1:
        return kinds[0]
    return pa.float64() if different == {pa.int64(), pa.float64()} else pa.string()


def _table(frame: pd.DataFrame, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        values = list(frame[field.name]) if field.name in frame else [None] * len(frame)
        if field.type == pa.string():
            values = [value if value is None or isinstance(value, str) else level_text(value) for value in values]
        columns.append(pa.array(values, field.type, from_pandas=False))
    return pa.table(columns, schema=schema)


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        value = "; ".join(str(item) for item in value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
