"""What is shown of a running study, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from homeostat.study.running import progress
from homeostat.study.running.interim import Effect, Strongest
from homeostat.study.state.ledger import Counts


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def shown(terminal, clock, steps, **more):
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=120, color_system=None)
    with progress.shown(console, lambda trial: f"norm=[bold], seed {trial}", **more) as watch:
        for seconds, what in steps:
            clock[0] += seconds
            (watch.tick if isinstance(what, Counts) else watch.event)(what)
    return text.getvalue()


def test_elsewhere_there_is_a_line_every_few_seconds_at_most(clock):
    steps = [(0, Counts(pending=10))] + [(1, Counts(pending=9 - done, running=1, done=done)) for done in range(10)]
    lines = shown(False, clock, steps).splitlines()
    assert lines == ["4 of 10 trials, 1 running, 8 s left", "9 of 10 trials, 1 running, 1 s left"]


def test_elsewhere_a_long_silence_is_a_sign_of_life(clock):
    steps = [(1, Counts(pending=1, running=1))] * 70
    assert len(shown(False, clock, steps).splitlines()) == 3


def test_time_left_counts_only_what_was_done_since_this_driver_came(clock):
    steps = [(0, Counts(pending=2, done=98)), (10, Counts(pending=1, done=99))]
    assert shown(False, clock, steps) == "99 of 100 trials, 0 running, 10 s left\n"


def test_a_terminal_has_a_bar(clock):
    text = shown(True, clock, [(0, Counts(pending=3, running=1)), (1, Counts(done=3, quarantined=1))])
    assert "trials" in text
    assert "4/4" in text
    assert "finished, 1 failed" in text


def test_a_terminal_has_the_strongest_effects_below_the_bar(clock):
    found = Strongest(2, (Effect("norm: none → [red]batch[/]", "+1.3 points [0.8, 1.8]", "helps"),))
    asked = []

    def strongest(done):
        asked.append(done)
        return found

    text = shown(True, clock, [(0, Counts(pending=3, done=1)), (1, Counts(pending=2, done=2))], strongest=strongest)
    assert asked == [1, 2]
    assert "Strongest effects so far (complete seeds: 2)" in text
    assert "norm: none → [red]batch[/]  +1.3 points [0.8, 1.8]  helps" in text
    assert shown(False, clock, [(9, Counts(pending=3, done=1))], strongest=strongest).count("\n") == 1
    assert asked == [1, 2]


@pytest.mark.parametrize("terminal", [False, True])
def test_failures_are_told_in_a_line_each_up_to_a_number(clock, terminal):
    steps = [(0, ("failed", n, "ValueError: [red]no[/]\n  File x")) for n in range(50)] + [(0, ("done", 3, ""))]
    text = shown(terminal, clock, steps)
    assert "Trial 3 (norm=[bold], seed 3) failed and will be tried again: ValueError: [red]no[/]" in text
    assert text.count("ValueError") == 20
    assert "File x" not in text
    assert text.count("Further failures are not shown") == 1
