"""The SQLite file under a study: opening it safely, short transactions, and errors that a user can act on.

What the tables mean is the ledger's business. Nothing here is random.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from homeostat.errors import HomeostatError
from homeostat.failpoints import reach

BUSY_SECONDS = 60.0  # how long a transaction waits for another process's; a frozen one is killed earlier, by its lease
FULL = (errno.ENOSPC, errno.EDQUOT)


class StorageError(HomeostatError):
    """The study's directory cannot be read or written; nothing that was stored is lost."""


class Storage:
    """One connection to a SQLite file, safe to share among the threads of this process.

    Args:
        path: the file; its directory must exist.
        create: whether a missing file is made.
        read_only: refuse to write; SQLite may still put in order what a killed process left.
    Raises: StorageError naming the file and a cure.
    """

    def __init__(self, path: Path, *, create: bool, read_only: bool = False) -> None:
        self.path = path
        self._lock = threading.RLock()
        with explained(path):
            mode = "rwc" if create else "rw"
            self._connection = sqlite3.connect(
                f"{path.resolve().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,  # transactions are written out below
                check_same_thread=False,  # the heartbeat's thread takes turns by the lock
            )
            if read_only:
                self._connection.execute("PRAGMA query_only = ON")

    def use_wal(self) -> None:
        """Let readers and one writer work at the same time; the file remembers it."""
        until = time.monotonic() + BUSY_SECONDS
        with self._lock, explained(self.path):
            while self._connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                try:
                    self._connection.execute("PRAGMA journal_mode = WAL")
                    return  # where the file system cannot have it, the file stays as it is, which is slower
                except sqlite3.OperationalError as error:  # SQLite does not wait here for others who open the file
                    if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                        raise
                    time.sleep(0.01)

    def read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """All rows of a SELECT."""
        with self._lock, explained(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def writing(self, name: str = "other", *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it is stored, or nothing.

        Args:
            name: of its failpoints.
            durable: True: stored means that it survives a power cut (the file is flushed). False: it survives the
                death of any process, and a power cut may take the last of it.
        """
        with self._lock, explained(self.path):
            self._connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                reach(f"{name}.written")
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        reach(f"{name}.stored")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock, explained(self.path):
            self._connection.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into StorageError, naming `path` and a cure."""
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", None) or ""
        raise StorageError(f"{path}: {_sqlite_reason(name, error)}") from error
    except OSError as error:
        raise StorageError(f"{path}: {_file_reason(error)}") from error
    except ValueError as error:
        if _can_be_a_path(path):
            raise  # it is about something else
        reason = f"this cannot be the name of a directory ({error}). Give another directory."
        raise StorageError(f"{path}: {reason}") from error


def _can_be_a_path(path: Path) -> bool:
    """Whether the system would look for a file of that name at all."""
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _sqlite_reason(name: str, error: sqlite3.Error) -> str:
    reasons = {
        "SQLITE_FULL": "the disk is full. Free some space; the same command then resumes where this one stopped.",
        "SQLITE_IOERR": "the file could not be read or written. Is the disk full, over quota, or gone? Then the same "
        "command resumes.",
        "SQLITE_READONLY": "the file cannot be written. Check its permissions and those of its directory.",
        "SQLITE_CANTOPEN": "the file cannot be opened. Check that it exists and that its directory can be written.",
        "SQLITE_NOTADB": "this is not a study, nor any SQLite database. Give another directory.",
        "SQLITE_CORRUPT": "the database is damaged. Restore it from a copy, or start again in another directory.",
        "SQLITE_BUSY": f"another process has kept the file locked for {BUSY_SECONDS:.0f} seconds. Is it stuck, or is "
        "the directory on a network file system? Keep studies on a local disk.",
    }
    known = next((text for prefix, text in reasons.items() if name.startswith(prefix)), "SQLite cannot go on.")
    return f"{known} ({error})"


def _file_reason(error: OSError) -> str:
    cures = {
        FileExistsError: "A file stands there; give another directory.",
        NotADirectoryError: "Part of the path is a file; give another directory.",
        PermissionError: "Give a directory that you may write to.",
    }
    cure = next((text for kind, text in cures.items() if isinstance(error, kind)), "Give another directory.")
    if error.errno is not None and error.errno in FULL:
        cure = "Free some space; the same command then resumes where this one stopped."
    return f"the directory cannot be used ({error.strerror or error}). {cure}"
