"""What may be relied on in the ledger: every trial is given out once, stale writes are refused, values come back."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from objectives import CONFIGURATION, make_ledger, notes, rows

from homeostat.study.state.lease import Holder, Process
from homeostat.study.state.ledger import Ledger, StaleClaim

HOLDER = Holder.current("me")


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
