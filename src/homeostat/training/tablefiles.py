"""Reading a table from CSV, TSV or Parquet, and refusing files whose rows or names cannot be trusted. Not random.

pandas fills short lines with missing values and renames duplicate columns in silence; here both are errors.
"""

from __future__ import annotations

import csv
import gzip
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from homeostat.errors import InvalidValue, invalid

INDEX_NAME = "(index)"  # what a first column without a name is called: the row labels that pandas writes
_MISSING = ("?",)  # besides what pandas takes as missing: "", NA, N/A, NaN, null, None, ...
_DELIMITERS = (",", ";", "\t", "|")
_SAVE_AS = "Save the table as CSV in UTF-8; an .xlsx file must be exported first."
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_DECIMAL_POINT = re.compile(r"[+-]?\d+\.\d+")


def read_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table in a file, one row per example, and what was found out about the file.

    Text may begin with a byte order mark, in UTF-8 or UTF-16. The delimiter of a .tsv is the tab; of a .csv the one of
    comma, semicolon, tab and bar that splits the header into most names. A semicolon may go with decimal commas.

    Raises: InvalidValue naming the line, column or byte that is wrong; for an empty file; for duplicate column names.
    """
    if path.name.lower().endswith((".parquet", ".pq")):
        frame, facts = _read_parquet(path), {"format": "Parquet"}
        frame.columns = pd.Index([str(name) for name in frame.columns])
        _check_names(list(frame.columns), path)
    else:
        frame, facts = _read_text(path)
    if len(frame) == 0:
        raise invalid("load_task", "table", "hold at least one row below its header", str(path), "The file has none.")
    return frame, {**facts, "rows": len(frame)}


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow

    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        cure = f"({str(error).splitlines()[0][:200]}) The file may be damaged or of another format."
        raise invalid("load_task", "table", "be a readable Parquet file", str(path), cure) from error


def _read_text(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    try:
        encoding = _encoding(path)
        delimiter = _delimiter(path, encoding)
        header, decimal = _scan(path, encoding, delimiter)
        _check_names(header, path)
        frame = pd.read_csv(
            path,
            sep=delimiter,
            encoding=encoding,
            names=header,
            header=0,
            index_col=False,
            na_values=list(_MISSING),
            skipinitialspace=True,
            low_memory=False,  # one type per column, not one per piece of the file
            decimal=decimal,
        )
    except UnicodeDecodeError as error:
        shown = f"byte 0x{error.object[error.start]:02x}"
        raise invalid("load_task", str(path), "be text in UTF-8", shown, _SAVE_AS) from error
    except (csv.Error, pd.errors.ParserError, gzip.BadGzipFile, EOFError) as error:
        raise invalid("load_task", "table", "be a readable CSV file", str(path), f"({error})") from error
    return frame, {"format": "text", "delimiter": delimiter, "encoding": encoding, "decimal": decimal}


def _opened(path: Path, encoding: str) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding, newline="")
    return path.open(encoding=encoding, newline="")


def _encoding(path: Path) -> str:
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        start = file.read(4096)
    if not start:
        raise invalid("load_task", "table", "not be empty", str(path), "The file has 0 bytes.")
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in start:
        wide = max(start[::2].count(0), start[1::2].count(0)) > len(start) // 4
        guess = "It seems to be UTF-16 without a byte order mark. " if wide else ""
        raise invalid("load_task", str(path), "be text in UTF-8", "byte 0x00", guess + _SAVE_AS)
    return "utf-8-sig"


def _delimiter(path: Path, encoding: str) -> str:
    if ".tsv" in path.name.lower():
        return "\t"
    with _opened(path, encoding) as file:
        header = next((line for line in file if line.strip()), "")
    if not header:
        raise invalid("load_task", "table", "not be empty", str(path), "The file has only blank lines.")
    return max(_DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter))))


def _scan(path: Path, encoding: str, delimiter: str) -> tuple[list[str], str]:
    """The header, and the decimal mark; every line is checked to have as many fields as the header."""
    header: list[str] = []
    wrong: list[str] = []
    count = 0
    marks: Counter[str] = Counter()
    for line, row in _rows(path, encoding, delimiter):
        if not header:
            header = [name.strip() for name in row]
        elif len(row) != len(header):
            count += 1
            if len(wrong) < 3:
                wrong.append(f"line {line} has {len(row)} fields")
        elif delimiter == ";" and line < 1000:
            marks.update("," for field in row if _DECIMAL_COMMA.fullmatch(field))
            marks.update("." for field in row if _DECIMAL_POINT.fullmatch(field))
    if wrong:
        more = f" ({count} such lines)" if count > len(wrong) else ""
        raise InvalidValue(
            f"load_task: every line of {path} must have {len(header)} fields as its header has, but {', '.join(wrong)}"
            f"{more}. A field that contains the delimiter {delimiter!r} must be quoted."
        )
    named = [name or (INDEX_NAME if place == 0 else f"column {place + 1}") for place, name in enumerate(header)]
    return named, "," if marks[","] and not marks["."] else "."


def _rows(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of each line that is not blank."""
    with _opened(path, encoding) as file:
        # strict: a quote that is never closed is an error, instead of one field with the rest of the file in it
        reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True, strict=True)
        try:
            for row in reader:
                if row:
                    yield reader.line_num, row
        except csv.Error as error:
            raise csv.Error(f"line {reader.line_num}: {error}") from error


def _check_names(names: list[str], path: Path) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise invalid("load_task", "column names", "be different", twice, f"Rename them in the header of {path}.")
