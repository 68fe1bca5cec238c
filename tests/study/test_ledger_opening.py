"""Opening a ledger: the same study goes on, another one, a newer schema and what is no study are refused by name."""

import os
import sqlite3
import subprocess
import sys

import pytest
from objectives import CONFIGURATION, make_ledger

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError, explained

HOLDER = Holder.current("me")
FIRST_SCHEMA = """
CREATE TABLE trials (
    trial INTEGER PRIMARY KEY, treatment INTEGER NOT NULL, seed INTEGER NOT NULL, config TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'running', 'done', 'quarantined')),
    attempt INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    token TEXT, worker TEXT, holder TEXT, deadline REAL, seconds REAL, metrics TEXT, failure TEXT, warnings TEXT
)
"""


@pytest.fixture
def ledger(tmp_path):
    return make_ledger(tmp_path / "study")


def test_the_same_configuration_opens_and_keeps_what_is_there(ledger, tmp_path):
    ledger.finish(ledger.claim(HOLDER, 30), {"y": 1.0}, 1.0)
    again = make_ledger(tmp_path / "study")
    assert again.counts() == ledger.counts()
    assert again.counts().done == 1
    opened = Ledger.open(tmp_path / "study")
    assert opened.configuration == CONFIGURATION
    opened.close()


def test_another_configuration_is_refused_with_the_difference(ledger, tmp_path):
    with pytest.raises(InvalidValue) as caught:
        make_ledger(tmp_path / "study", configuration={"base": {"lr": 0.2}, "seeds": [1]})
    text = str(caught.value)
    assert "study.sqlite: this study was made with another configuration" in text
    assert "  base.lr: 0.1 → 0.2\n  seeds: (not set) → [1]\n" in text
    assert "Give another directory" in text


def test_a_newer_schema_is_refused(ledger, tmp_path):
    ledger._storage._connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    for opening in (lambda: make_ledger(tmp_path / "study"), lambda: Ledger.open(tmp_path / "study")):
        with pytest.raises(InvalidValue, match=r"a newer homeostat wrote this study \(schema 99"):
            opening()


def test_trials_of_the_first_schema_may_wait_once_they_are_brought_up_to_date(ledger, tmp_path):
    ledger.finish(ledger.claim(HOLDER, 30), {"y": 1.0}, 1.0)
    before = ledger.trials()
    ledger.close()
    with sqlite3.connect(tmp_path / "study" / "study.sqlite") as old:
        old.execute("ALTER TABLE trials DROP COLUMN started")
        old.execute("ALTER TABLE curves DROP COLUMN steps")
        old.execute("ALTER TABLE trials RENAME TO newer")
        old.execute(FIRST_SCHEMA)
        old.execute("INSERT INTO trials SELECT * FROM newer")
        old.execute("DROP TABLE newer")
        old.execute("CREATE INDEX trials_by_status ON trials (status, trial)")
        old.execute("UPDATE meta SET value = '1' WHERE key = 'schema'")
    old.close()
    again = make_ledger(tmp_path / "study")
    assert again.trials().equals(before)
    again.hold([1])
    assert again.counts().waiting == 2


def test_what_is_no_study_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "text"
    text.mkdir()
    (text / "study.sqlite").write_text("dear diary, " * 200)
    with pytest.raises(StorageError, match="not a study, nor any SQLite database"):
        make_ledger(text)
    assert (text / "study.sqlite").read_text() == "dear diary, " * 200

    other = tmp_path / "other"
    other.mkdir()
    with sqlite3.connect(other / "study.sqlite") as connection:
        connection.execute("CREATE TABLE addresses (name)")
        connection.execute("CREATE TABLE meta (something, else_again)")
    connection.close()
    before = (other / "study.sqlite").read_bytes()
    with pytest.raises(StorageError, match="a SQLite database, but not a study"):
        make_ledger(other)
    assert (other / "study.sqlite").read_bytes() == before


def test_a_damaged_study_is_named(ledger, tmp_path):
    ledger.close()
    path = tmp_path / "study" / "study.sqlite"
    path.write_bytes(path.read_bytes()[:5000] + b"\xff" * 3000)
    with pytest.raises(StorageError, match=r"study\.sqlite: "):
        make_ledger(tmp_path / "study").trials()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/study", "Part of the path is a file"),
        ("file", "A file stands there"),
        ("a" * 300, "cannot be used"),
        ("nul\0", "cannot be the name of a directory"),
        ("half \ud800", "cannot be the name of a directory"),
    ],
)
def test_a_directory_that_cannot_be_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=message):
        make_ledger(tmp_path / name)


def test_an_error_that_is_not_about_the_directory_is_left_as_it_is(tmp_path):
    with pytest.raises(ValueError, match="too odd"), explained(tmp_path):
        raise ValueError("too odd")


def test_odd_names_of_directories_work(tmp_path):
    for name in ("été ✓", "a?b#c%20", "x/../y", "'; DROP TABLE trials"):
        assert make_ledger(tmp_path / name).counts().pending == 4
        assert (tmp_path / name / "study.sqlite").exists()


def test_opening_where_there_is_none_says_so(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "study.sqlite").write_bytes(b"")  # killed before it wrote anything
    for name in ("missing", "empty", "begun"):
        with pytest.raises(HomeostatError, match="there is no study here"):
            Ledger.open(tmp_path / name)
    assert make_ledger(tmp_path / "begun").counts().pending == 4


def test_a_full_disk_is_named_before_anything_starts(tmp_path):
    """A limit on the size of files stands in for the disk."""
    script = f"""
import resource, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from objectives import make_ledger
from homeostat.study.state.storage import StorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    make_ledger({str(tmp_path / "study")!r}, 500)
except StorageError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "StorageError: " in done.stderr
    assert "study.sqlite: " in done.stderr
    assert "the disk" in done.stderr
    assert make_ledger(tmp_path / "study", 500).counts().pending == 500  # nothing half made is in the way
