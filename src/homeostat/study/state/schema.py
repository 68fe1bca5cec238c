"""The tables of a study's database, their version, and how those of an older version are brought up to date.

What the rows mean is the ledger's business. Nothing here is random.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from homeostat.errors import InvalidValue
from homeostat.study.state.storage import Storage, StorageError

SCHEMA = 3

_TRIALS = """
CREATE TABLE trials (
    trial INTEGER PRIMARY KEY,                 -- its place in the run order, from 0
    treatment INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    config TEXT NOT NULL,                      -- JSON: the level of each factor
    status TEXT NOT NULL DEFAULT 'pending' CHECK (
        status IN ('waiting', 'pending', 'running', 'done', 'quarantined')),
    attempt INTEGER NOT NULL DEFAULT 0,        -- how many were started
    deaths INTEGER NOT NULL DEFAULT 0,         -- how many of them failed by the trial's own fault
    token TEXT, worker TEXT, holder TEXT,      -- of the running attempt
    deadline REAL,                             -- of its lease, on the monotonic clock
    seconds REAL, metrics TEXT, failure TEXT, warnings TEXT,
    started REAL                               -- of the newest attempt, on the monotonic clock of its machine's boot
);
CREATE INDEX trials_by_status ON trials (status, trial);
"""
_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE curves (
    trial INTEGER NOT NULL, epoch INTEGER NOT NULL, attempt INTEGER NOT NULL, record TEXT NOT NULL,
    steps BLOB,                                -- what was said of each step: see `vitals`; NULL: nothing
    PRIMARY KEY (trial, epoch)
) WITHOUT ROWID;
"""
_UPGRADES = {  # what makes the next version of each; 1 had no trials that wait, and no `started`; 2 no `steps`
    1: f"""
ALTER TABLE trials RENAME TO trials_1;
DROP INDEX trials_by_status;
{_TRIALS}
INSERT INTO trials SELECT *, NULL FROM trials_1;
DROP TABLE trials_1
""",
    2: "ALTER TABLE curves ADD COLUMN steps BLOB",
}


def version(storage: Storage) -> int | None:
    """The version of what is stored (None: nothing yet).

    Raises: StorageError if it is not a study; InvalidValue if a newer homeostat wrote it.
    """
    tables = {name for (name,) in storage.read("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables:
        return None
    found = []
    if {"meta", "trials", "curves"} <= tables:
        found = storage.read("SELECT value FROM meta WHERE key = 'schema'")
    if not found:
        raise StorageError(f"{storage.path}: this is a SQLite database, but not a study. Give another directory.")
    stored = int(found[0][0])
    if stored > SCHEMA:
        raise InvalidValue(
            f"{storage.path}: a newer homeostat wrote this study (schema {stored}, this one knows up to {SCHEMA}). "
            "Upgrade homeostat, or give another directory."
        )
    return stored


def create(storage: Storage, configuration: str, rows: Iterable[tuple[int, int, str]]) -> None:
    """Make tables and rows, unless another process has; either way, show that the file can be written.

    Args:
        configuration: of the study, as JSON.
        rows: (treatment, seed, config as JSON) of every trial, in run order.
    """
    with storage.writing("create") as connection:
        if not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]:
            for statement in (_TABLES + _TRIALS).split(";\n"):
                connection.execute(statement)
            meta = {"schema": SCHEMA, "configuration": configuration, "created": time.time(), "spent": 0.0}
            connection.executemany("INSERT INTO meta VALUES (?, ?)", [(key, str(meta[key])) for key in meta])
            connection.executemany(
                "INSERT INTO trials (trial, treatment, seed, config) VALUES (?, ?, ?, ?)",
                [(trial, *row) for trial, row in enumerate(rows)],
            )
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('opened', ?)", (str(time.time()),))


def upgrade(storage: Storage) -> None:
    """Bring tables of an older version up to date; nothing that is stored changes."""
    with storage.writing("upgrade") as connection:
        stored = int(connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])
        for old in range(stored, SCHEMA):
            for statement in _UPGRADES[old].split(";\n"):
                connection.execute(statement)
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(SCHEMA),))
