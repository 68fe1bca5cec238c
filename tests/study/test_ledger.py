"""What may be relied on in the ledger: every trial is given out once, stale writes are refused, values come back."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objectives import CONFIGURATION, closed_ledgers, make_ledger, notes, rows  # noqa: F401 - a fixture

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.study.state.lease import Holder, Process
from homeostat.study.state.ledger import Ledger, StaleClaim
from homeostat.study.state.storage import StorageError

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


def dead_process():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    assert process.alive()
    child.communicate(b"\n")
    assert not process.alive()
    return process


def test_trials_are_claimed_in_run_order_each_once(ledger):
    claims = [ledger.claim(HOLDER, 30) for _ in range(5)]
    assert [claim.trial for claim in claims[:4]] == [0, 1, 2, 3]
    assert claims[4] is None
    assert claims[3].config == {"x": 1}
    assert (claims[3].treatment, claims[3].seed, claims[3].attempt) == (1, 1, 1)
    assert len({claim.token for claim in claims[:4]}) == 4


def test_trials_are_added_once_behind_those_that_are_there(ledger):
    wanted = [(treatment, seed, {"x": treatment}) for seed in range(3) for treatment in range(2)]
    first = ledger.claim(HOLDER, 30)
    ledger.finish(first, {"y": 5.0}, 0.1)
    for _ in range(2):
        ledger.extend(wanted)
    trials = ledger.trials()
    assert trials["trial"].tolist() == [*range(6)]
    assert trials[["treatment", "seed"]].tail(2).to_numpy().tolist() == [[0, 2], [1, 2]]
    assert trials["y"].iloc[0] == 5.0


def test_sixteen_processes_at_once_claim_every_trial_exactly_once(tmp_path):
    script = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from objectives import make_ledger, note
from homeostat.study.state.lease import Holder
for child in range(16):
    if os.fork() == 0:
        ledger = make_ledger({str(tmp_path / "study")!r}, 60)
        while claim := ledger.claim(Holder.current(), 30):
            note({str(tmp_path / "log")!r}, str(claim.trial))
            ledger.finish(claim, {{"y": claim.trial}}, 0.0)
        os._exit(0)
sys.exit(max(os.waitstatus_to_exitcode(os.wait()[1]) for child in range(16)))
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=100)
    assert sorted(map(int, notes(tmp_path / "log"))) == list(range(60))
    trials = make_ledger(tmp_path / "study", 60).trials()
    assert (trials["status"] == "done").all()
    assert (trials["y"] == trials["trial"]).all()
    assert (trials["attempt"] == 1).all()


def test_a_stale_token_writes_nothing(ledger):
    stale = ledger.claim(HOLDER, 30)
    ledger.release(stale)
    fresh = ledger.claim(HOLDER, 30)
    assert (fresh.trial, fresh.attempt) == (stale.trial, 2)
    for write in (
        lambda: ledger.report(stale, 0, {"loss": 1.0}, 30),
        lambda: ledger.finish(stale, {"y": 1.0}, 1.0),
        lambda: ledger.fail(stale, "broken", 2),
        lambda: ledger.renew(stale, 30),
    ):
        with pytest.raises(StaleClaim, match="trial 0: attempt 1 no longer holds it"):
            write()
    ledger.release(stale)  # gives nothing back
    ledger.finish(fresh, {"y": 2.0}, 1.0)
    assert ledger.trials().loc[0, ["status", "y"]].tolist() == ["done", 2.0]
    assert ledger.curves().empty


def test_a_finished_trial_can_be_finished_no_second_time(ledger):
    claim = ledger.claim(HOLDER, 30)
    ledger.finish(claim, {"y": 1.0}, 1.0)
    with pytest.raises(StaleClaim):
        ledger.finish(claim, {"y": 2.0}, 1.0)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.dictionaries(st.text(min_size=1, max_size=20), st.floats(), min_size=1, max_size=4))
def test_metrics_and_curves_come_back_bit_for_bit(tmp_path_factory, values):
    values = {f"m{name}": value for name, value in values.items()}
    ledger = make_ledger(tmp_path_factory.mktemp("study"), 1)
    claim = ledger.claim(HOLDER, 30)
    ledger.report(claim, 3, values, 30)
    ledger.finish(claim, values, 1.5)
    for frame in (ledger.trials(), ledger.curves()):
        for name, value in values.items():
            found = float(frame.loc[0, name])
            assert found == value or (math.isnan(found) and math.isnan(value))
            assert math.copysign(1, found) == math.copysign(1, value) or math.isnan(value)
    ledger.close()


def test_levels_keep_their_types(tmp_path):
    levels = [None, True, 1, 0.5, 1.0, "none", "=1+1", "\x00é</script>"]
    with_levels = [(i, 0, {"level": level}) for i, level in enumerate(levels)]
    ledger = Ledger.create_or_open(tmp_path, {}, with_levels)
    found = ledger.trials()["level"].tolist()
    ledger.close()
    assert [(type(x), x) for x in found] == [(type(x), x) for x in levels]


def test_the_table_of_trials_has_every_trial_and_a_column_per_metric(ledger):
    for metrics in ({"y": 1.0}, {"z": math.inf}):
        ledger.finish(ledger.claim(HOLDER, 30), metrics, 2.0, ["NoEffectWarning: nothing"])
    ledger.fail(ledger.claim(HOLDER, 30), "ValueError: no", 2, final=True)
    trials = ledger.trials()
    assert list(trials.columns) == [
        *("trial", "treatment", "seed", "x", "status", "attempt", "seconds", "failure", "warnings", "y", "z"),
    ]
    assert trials["status"].tolist() == ["done", "done", "quarantined", "pending"]
    assert trials["warnings"].tolist() == [["NoEffectWarning: nothing"]] * 2 + [[], []]
    assert trials["failure"].tolist() == [None, None, "ValueError: no", None]
    assert trials["z"].tolist()[1] == math.inf
    assert trials[["y", "z"]].isna().sum().tolist() == [3, 3]


def test_reporting_an_epoch_again_replaces_it_and_a_shorter_second_attempt_leaves_no_tail(ledger):
    first = ledger.claim(HOLDER, 30)
    for epoch in range(4):
        ledger.report(first, epoch, {"loss": 1.0}, 30)
    ledger.release(first)
    second = ledger.claim(HOLDER, 30)
    for epoch in (1, 2):  # epoch 0 was in its checkpoint
        ledger.report(second, epoch, {"loss": 2.0}, 30)
    ledger.finish(second, {"y": 0.0}, 1.0)
    curves = ledger.curves()
    assert curves["epoch"].tolist() == [0, 1, 2]
    assert curves["loss"].tolist() == [1.0, 2.0, 2.0]
    assert curves[["trial", "treatment", "seed"]].iloc[0].tolist() == [0, 0, 0]


def test_failures_are_forgiven_up_to_retries_then_the_trial_is_quarantined(ledger):
    fates = []
    for _ in range(3):
        claim = ledger.claim(HOLDER, 30)
        assert claim.trial == 0
        fates.append(ledger.fail(claim, "ValueError: no", 2))
    assert fates == ["pending", "pending", "quarantined"]
    assert ledger.claim(HOLDER, 30).trial == 1
    assert ledger.counts().quarantined == 1


def test_interruptions_are_not_the_trials_fault(ledger):
    for _ in range(10):
        ledger.release(ledger.claim(HOLDER, 30))
    ledger.claim(HOLDER, 30)
    ledger.release_worker("me")
    claim = ledger.claim(HOLDER, 30)
    assert claim.attempt == 12
    assert ledger.fail(claim, "first failure", 1) == "pending"


def test_a_lease_lives_as_long_as_it_is_renewed(ledger):
    claim = ledger.claim(HOLDER, 0.0)
    assert ledger.expired() == ["me"]
    ledger.renew(claim, 30)
    assert ledger.expired() == []
    ledger.recover(retries=2)
    assert ledger.counts().running == 1
    ledger.report(claim, 0, {"loss": 1.0}, 0.0)
    assert ledger.expired() == ["me"]


@pytest.mark.parametrize(
    ("change", "lease", "fate"),
    [
        (lambda gone: {}, 30, "held"),
        (lambda gone: {"boot": "another"}, 30, "abandoned"),
        (lambda gone: {"process": gone, "driver": gone}, 30, "abandoned"),
        (lambda gone: {"driver": gone}, 30, "held"),  # the worker is about to notice
        (lambda gone: {"process": gone}, 30, "held"),  # the driver is about to say how it died
        (lambda gone: {"process": gone}, -1, "died"),
        (lambda gone: {}, -1, "died"),
        (lambda gone: {"driver": gone}, -1, "abandoned"),
        (lambda gone: {"space": "pid:[1]", "process": gone, "driver": gone}, 30, "held"),
        (lambda gone: {"space": "pid:[1]"}, -1, "abandoned"),
    ],
)
def test_what_becomes_of_a_lease(ledger, change, lease, fate):
    holder = replace(HOLDER, **change(dead_process()))
    claim = ledger.claim(holder, lease)
    assert holder.fate(time.monotonic() + lease, time.monotonic()) == fate
    ledger.recover(retries=0)
    status = ledger.trials()["status"][claim.trial]
    assert status == {"held": "running", "abandoned": "pending", "died": "quarantined"}[fate]


def test_a_process_is_not_mistaken_for_a_later_one_with_its_number():
    me = Process.current()
    assert me.alive()
    assert not replace(me, born=me.born - 100).alive()


def test_a_dead_worker_is_buried_with_its_trial(ledger):
    claim = ledger.claim(HOLDER, 30)
    assert ledger.bury("somebody else", "gone", 2) == []
    assert ledger.bury("me", "killed", 0) == [(claim.trial, "quarantined")]
    assert ledger.trials()["failure"][claim.trial] == "killed"


def test_trials_that_wait_are_given_to_nobody_until_they_are_admitted(ledger):
    ledger.finish(ledger.claim(HOLDER, 30), {"y": 1.0}, 1.0)  # of seed 0
    assert not ledger.sequential
    ledger.hold([0, 1])
    assert ledger.sequential
    assert ledger.trials()["status"].tolist() == ["done", "waiting", "pending", "waiting"]  # seed 0 was begun
    assert (ledger.counts().waiting, ledger.counts().planned) == (2, 4)
    assert ledger.claim(HOLDER, 30).trial == 2
    assert ledger.claim(HOLDER, 30) is None
    ledger.admit([1], [1])
    assert ledger.claim(HOLDER, 30).trial == 3
    ledger.admit([0, 1], [0, 1])
    assert ledger.trials()["status"].tolist() == ["done", "pending", "running", "running"]


def test_where_there_is_nothing_to_hold_a_study_is_not_sequential(ledger):
    while claim := ledger.claim(HOLDER, 30):
        ledger.finish(claim, {"y": 1.0}, 1.0)
    ledger.hold([0, 1])
    assert not ledger.sequential


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
    ],
)
def test_a_directory_that_cannot_be_is_refused(tmp_path, name, message):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=message):
        make_ledger(tmp_path / name)


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


def test_a_table_of_a_thousand_trials_is_quick(tmp_path):
    ledger = make_ledger(tmp_path / "study", 1000)
    start = time.perf_counter()
    while claim := ledger.claim(HOLDER, 30):
        ledger.report(claim, 0, {"loss": 0.5}, 30)
        ledger.finish(claim, {"y": 1.0}, 0.1)
    assert len(ledger.trials()) == len(ledger.curves()) == 1000
    assert time.perf_counter() - start < 30


def test_the_configuration_is_plain_json(ledger):
    (text,) = ledger._storage.read("SELECT value FROM meta WHERE key = 'configuration'")[0]
    assert json.loads(text) == CONFIGURATION
    assert len(rows(4)) == ledger.counts().planned
