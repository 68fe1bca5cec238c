"""Calls that never return are interrupted, and somebody else's alarm still rings."""

import contextlib
import signal
import threading
import time

import pytest

from homeostat.doctor.budget import Budget
from homeostat.doctor.guard import interrupted
from homeostat.errors import HomeostatError


def sleeps_for_ever():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(60)


def test_a_call_that_never_returns_is_named():
    before = signal.getsignal(signal.SIGALRM)
    said = r"examine: .*test_guard.py.*in sleeps_for_ever has not returned after 0 s"
    with pytest.raises(HomeostatError, match=said), interrupted(Budget(seconds=0.1), "examine", least_grace=0.1):
        sleeps_for_ever()
    assert signal.getsignal(signal.SIGALRM) is before


def test_an_alarm_that_was_set_before_still_rings():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with interrupted(Budget(seconds=10.0), "examine"):
            time.sleep(0.05)
        assert rung == []
        time.sleep(0.4)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, left, interval)


def test_steps_and_other_threads_have_no_limit():
    seen = []

    def work():
        with interrupted(Budget(seconds=0.01), "examine", least_grace=0.01):
            time.sleep(0.1)
            seen.append("thread")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    with interrupted(Budget(steps=3), "examine", least_grace=0.01):
        time.sleep(0.1)
        seen.append("steps")
    assert seen == ["thread", "steps"]
