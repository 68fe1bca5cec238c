"""How a study stands as others see it: what is told, and that to look changes nothing."""

import io
import itertools
import os
import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from rich.console import Console

from homeostat.study.running import interim
from homeostat.study.running.interim import Aside, Interim, Strongest, strongest
from homeostat.study.running.status import read_status, rendered
from homeostat.study.state.lease import Holder, Process
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError
from homeostat.study.study import Study

FACTORS = {"norm": ["none", "[red]batch[/]"], "dropout": [0, 0.5]}
HERE = Holder.current("me")
JUDGED = {"response": "valid_accuracy", "goal": "maximize", "margin": 0.0}


def measured(config, seed):
    return {"valid_accuracy": 0.8 + 0.05 * (config["norm"] != "none") - 0.04 * config["dropout"] + 0.001 * seed}


@pytest.fixture
def study(tmp_path):
    return Study(measured, FACTORS, 3, directory=tmp_path / "study", workers=0)


@pytest.fixture
def ledger(study):
    rows = [(treatment, seed, study.design.config(treatment)) for treatment, seed in study.design.run_order()]
    ledger = Ledger.create_or_open(study.directory, study.configuration, rows)
    yield ledger
    ledger.close()


def finish(ledger, count, seconds=10.0):
    for _ in range(count):
        claim = ledger.claim(HERE, 30)
        ledger.finish(claim, measured(claim.config, claim.seed), seconds)


def text_of(status):
    text = io.StringIO()
    console = Console(file=text, width=400, color_system=None)
    console.print(rendered(status, console))
    return text.getvalue()


def gone():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.communicate()
    return Process.of(child.pid)


def test_counts_running_trials_failures_time_left_and_effects_are_told(study, ledger):
    finish(ledger, 5)
    for text in ("ValueError: [bold]no\n  File x", "MemoryError"):
        ledger.fail(ledger.claim(HERE, 30), text, retries=2, final=text == "MemoryError")
    running = ledger.claim(HERE, 30)
    status = read_status(study.directory)
    assert (status.counts.done, status.counts.running, status.counts.quarantined) == (5, 1, 1)
    assert [each.trial for each in status.running] == [running.trial]
    assert status.running[0].pid == os.getpid()
    assert 0 <= status.running[0].seconds < 30
    # 12 trials: 5 done in 10 s each, 1 given up, 1 running that was begun just now, 5 to come, one worker
    assert status.left == pytest.approx(60, abs=10)
    assert status.strongest.seeds == 1
    said = text_of(status)
    assert f"{study.directory}: 5 of 12 trials are done, 1 running, 1 failed." in said
    assert f"pid {os.getpid()}" in said
    assert "norm=[red]batch[/]" in said
    assert "given up" in said
    assert "MemoryError" in said
    assert (
        "--retry-failed" not in said
    )  # before the study has ended    assert "Strongest effects so far (1 of 3 seeds are complete)" in said
    assert "norm: none → [red]batch[/]" in said
    assert "+5.0 points" in said


def test_a_trial_that_failed_before_it_is_tried_again_is_shown_with_the_first_line(study, ledger):
    ledger.fail(ledger.claim(HERE, 30), "ValueError: [bold]no\n  File x", retries=2)
    status = read_status(study.directory)
    assert [(each.why, each.given_up, each.attempts) for each in status.failed] == [("ValueError: [bold]no", False, 1)]
    assert "will be tried again" in text_of(status)
    finish(ledger, 1)
    assert read_status(study.directory).failed == ()


def test_to_look_recovers_no_lease_and_changes_nothing(study, ledger):
    finish(ledger, 4)
    process = gone()
    ledger.claim(replace(HERE, process=process, driver=process), 30)  # both are dead
    ledger.claim(HERE, -1)  # its lease is over
    before = ledger._storage.read("SELECT * FROM trials")
    status = read_status(study.directory)
    assert ledger._storage.read("SELECT * FROM trials") == before
    assert [each.held for each in status.running] == [False, False]
    said = text_of(status)
    assert said.count("its worker is gone") == 2
    assert "Nobody is working on it. The same command goes on where it stopped." in said
    assert status.left is None


def test_whoever_looks_cannot_write(study, ledger):
    looking = Ledger.open(study.directory, read_only=True)
    with pytest.raises(StorageError, match="readonly"):
        looking.claim(HERE, 30)
    looking.close()
    assert ledger.counts().pending == 12


def test_a_finished_study_has_a_status_too(study):
    study.run(progress=False)
    status = read_status(study.directory)
    assert status.counts.ended
    said = text_of(status)
    assert "12 of 12 trials are done." in said
    assert "The study has ended." in said
    assert "Strongest effects\n" in said


def test_trials_that_wait_are_counted_apart(study, ledger):
    ledger.hold(study.design.seeds[1:])
    finish(ledger, 3)
    ledger.claim(HERE, 30)
    said = text_of(read_status(study.directory))
    assert "3 of 12 trials are done, 1 running, 8 waiting for what others show." in said
    assert "At most about" in said
    ledger.release_worker("me")
    finish(ledger, 1)
    said = text_of(read_status(study.directory))
    assert "4 of 12 trials are done, 8 not needed." in said
    assert "The study has ended." in said


def test_a_trial_of_another_boot_has_no_age(study, ledger):
    ledger.claim(replace(HERE, boot="another"), 30)
    (running,) = read_status(study.directory).running
    assert (running.seconds, running.held) == (None, False)


def test_of_many_failures_some_are_shown_and_the_others_counted(tmp_path):
    def failing(config, seed):
        raise ValueError("always" if config["x"] else "never mind")

    many = Study(failing, {"x": [0, 1]}, 13, directory=tmp_path / "many", workers=0, retries=0)
    with pytest.raises(Exception, match="no trial ended well"):
        many.run(progress=False)
    said = text_of(read_status(many.directory))
    assert said.count("ValueError") == 20
    assert "... and 6 more." in said
    assert "With --retry-failed it also runs what was given up." in said


def test_only_seeds_whose_trials_have_all_ended_count(study, ledger):
    judged = {"response": "valid_accuracy", "goal": "maximize", "margin": 0.0}
    finish(ledger, 3)
    assert strongest(ledger.trials(), study.design, judged) == Strongest()
    ledger.fail(ledger.claim(HERE, 30), "ValueError", retries=0)  # the fourth of the first seed
    finish(ledger, 5)
    found = strongest(ledger.trials(), study.design, judged, most=2)
    assert found.seeds == 2
    assert [effect.label for effect in found.effects] == ["norm: none → [red]batch[/]", "dropout: 0 → 0.5"]


def test_effects_are_worked_out_when_there_is_news_and_for_two_percent_of_the_time(study, ledger, monkeypatch):
    now, asked = [1000.0], []

    def slow(*_, **__):
        asked.append(now[0])
        now[0] += 1.0  # it takes a second
        return Strongest(len(asked))

    monkeypatch.setattr(interim.time, "monotonic", lambda: now[0])
    look = Interim(ledger, study.design, JUDGED)
    monkeypatch.setattr(interim, "strongest", slow)
    finish(ledger, 1)
    for tick in range(400):
        look(1 + tick // 10)  # news every ten seconds
        now[0] += 1.0
    assert 5 <= len(asked) <= 9
    assert min(later - sooner for sooner, later in itertools.pairwise(asked)) >= 50
    known = len(asked)
    for _ in range(100):
        look(40)
        now[0] += 1.0
    assert len(asked) == known  # no news


def test_who_looks_aside_keeps_nobody_waiting(study, ledger, monkeypatch):
    began, may_end = threading.Event(), threading.Event()

    def slow(*asked):
        began.set()
        may_end.wait(60)
        return Strongest(7)

    monkeypatch.setattr(interim, "strongest", slow)
    monkeypatch.setattr(interim, "_PAUSE", 0.0)
    finish(ledger, 1)
    with Aside(Interim(ledger, study.design, JUDGED)) as look:
        assert look(1) == Strongest()
        assert began.wait(60)
        assert look(2) == Strongest()  # the thread is still at it
        may_end.set()
    assert look(2) == Strongest(7)


def test_what_goes_wrong_aside_is_left_to_the_trials(study, ledger, monkeypatch):
    monkeypatch.setattr(interim, "_PAUSE", 0.0)
    ledger.close()
    with Aside(Interim(ledger, study.design, JUDGED)) as look:
        look(1)
    assert look(1) == Strongest()


def homeostat(*words):
    environment = os.environ | {"COLUMNS": "400", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "homeostat", "status", *map(str, words)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=250)


def test_the_command_says_how_a_study_stands_and_where_there_is_none(study, tmp_path):
    study.run(progress=False)
    done = homeostat(study.directory, "--watch")  # which ends, because the study has
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 of 12 trials are done." in done.stdout
    missing = homeostat(tmp_path)
    assert missing.returncode == 2
    assert "there is no study here. Give the directory of a study." in missing.stderr


def test_the_command_needs_no_torch(study, ledger):
    code = (
        "import sys; from homeostat.commands_study import status; "
        f"code = status({str(study.directory)!r}, watch=False); print(code, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[-1] == "0 False"
