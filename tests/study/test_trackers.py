"""Trackers hear what the ledger holds, in order; and whatever a tracker does, the study does not notice."""

import math
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest
from objectives import eventually, make_ledger

from homeostat.errors import HomeostatError, InvalidType, InvalidValue
from homeostat.study.state.lease import Holder
from homeostat.study.trackers import Run, as_trackers, tracking
from homeostat.study.trackers.feed import Feed
from homeostat.study.trackers.lane import Lane

RUN = Run("a study", 0, 1, 0, 0, {"norm": "batch", "dropout": 0.2, "augment": False})


class Notes:
    """A tracker that remembers."""

    def __init__(self):
        self.calls = []

    def trial_started(self, run):
        self.calls.append(("started", run.trial, run.attempt, dict(run.config)))

    def epoch_reported(self, run, epoch, values):
        self.calls.append(("epoch", run.trial, run.attempt, epoch, dict(values)))

    def trial_ended(self, run, ending, metrics):
        self.calls.append(("ended", run.trial, run.attempt, ending, dict(metrics)))

    def study_concluded(self, summary, report):
        self.calls.append(("concluded", summary, report))


class Raising(Notes):
    def epoch_reported(self, run, epoch, values):
        super().epoch_reported(run, epoch, values)
        raise ConnectionError("no route to the tracker")


class Hanging(Notes):
    def __init__(self):
        super().__init__()
        self.gate = threading.Event()

    def trial_started(self, run):
        self.gate.wait(60)
        super().trial_started(run)


def claimed(ledger):
    return ledger.claim(Holder.current(), 30.0)


def applied(feed, tracker):
    for method, arguments in feed.changes():
        getattr(tracker, method)(*arguments)


def test_a_feed_tells_each_thing_once_and_in_order(tmp_path):
    ledger, tracker = make_ledger(tmp_path, 2), Notes()
    feed = Feed(tmp_path, "a study")
    first = claimed(ledger)
    ledger.report(first, 0, {"loss": 2.0}, 30.0)
    applied(feed, tracker)
    applied(feed, tracker)
    ledger.report(first, 1, {"loss": math.inf}, 30.0)
    applied(feed, tracker)
    ledger.report(first, 2, {"loss": 0.5}, 30.0)
    ledger.finish(first, {"y": 7.0}, 1.0)
    applied(feed, tracker)
    applied(feed, tracker)
    feed.close()
    assert tracker.calls == [
        ("started", 0, 1, {"x": 0}),
        ("epoch", 0, 1, 0, {"loss": 2.0}),
        ("epoch", 0, 1, 1, {"loss": math.inf}),
        ("epoch", 0, 1, 2, {"loss": 0.5}),
        ("ended", 0, 1, "done", {"y": 7.0}),
    ]


def test_a_feed_tells_attempts_apart_and_what_became_of_them(tmp_path):
    ledger, tracker = make_ledger(tmp_path, 1), Notes()
    feed = Feed(tmp_path, "a study")
    first = claimed(ledger)
    applied(feed, tracker)
    ledger.report(first, 0, {"loss": 1.0}, 30.0)
    ledger.release(first)
    second = claimed(ledger)
    applied(feed, tracker)
    ledger.fail(second, "no", retries=0)
    applied(feed, tracker)
    feed.close()
    assert tracker.calls == [
        ("started", 0, 1, {"x": 0}),
        ("epoch", 0, 1, 0, {"loss": 1.0}),
        ("ended", 0, 1, "unfinished", {}),
        ("started", 0, 2, {"x": 0}),
        ("ended", 0, 2, "quarantined", {}),
    ]


def test_a_trial_that_comes_and_goes_between_two_looks_is_told_whole_and_one_from_before_is_not(tmp_path):
    ledger, tracker = make_ledger(tmp_path, 2), Notes()
    ledger.finish(claimed(ledger), {"y": 1.0}, 1.0)
    feed = Feed(tmp_path, "a study")
    second = claimed(ledger)
    ledger.report(second, 0, {"loss": 1.0}, 30.0)
    ledger.finish(second, {"y": 2.0}, 1.0)
    applied(feed, tracker)
    feed.close()
    assert [call[:2] for call in tracker.calls] == [("started", 1), ("epoch", 1), ("ended", 1)]


def test_trackers_hear_the_whole_study_and_its_end(tmp_path):
    ledger, tracker, told = make_ledger(tmp_path, 2), Notes(), []
    with tracking(tmp_path, "a study", [tracker], told.append) as tracked:
        for _ in range(2):
            ledger.finish(claimed(ledger), {"y": 1.0}, 1.0)
        tracked.conclude("all is well", tmp_path / "report.html")
    assert [call[0] for call in tracker.calls] == ["started", "ended", "started", "ended", "concluded"]
    assert told == []


def test_a_tracker_that_raises_is_told_of_once_and_left_alone(tmp_path):
    ledger, raising, healthy, told = make_ledger(tmp_path, 2), Raising(), Notes(), []
    with tracking(tmp_path, "a study", [raising, healthy], told.append) as tracked:
        for _ in range(2):
            claim = claimed(ledger)
            ledger.report(claim, 0, {"loss": 1.0}, 30.0)
            ledger.finish(claim, {"y": 1.0}, 1.0)
        tracked.conclude("all is well", tmp_path / "report.html")
    assert [call[0] for call in raising.calls] == ["started", "epoch"]
    assert [call[0] for call in healthy.calls] == ["started", "epoch", "ended"] * 2 + ["concluded"]
    assert told == [
        "The tracker Raising failed and is told no more (ConnectionError: no route to the tracker). The study goes on."
    ]


def test_a_tracker_that_hangs_stalls_nothing_and_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("homeostat.study.trackers.broadcast._PARTING", 0.2)
    ledger, hanging, healthy, told = make_ledger(tmp_path, 1), Hanging(), Notes(), []
    try:
        with tracking(tmp_path, "a study", [hanging, healthy], told.append):
            ledger.finish(claimed(ledger), {"y": 1.0}, 1.0)
        assert hanging.calls == []
        assert [call[0] for call in healthy.calls] == ["started", "ended"]
        assert told == ["The tracker Hanging does not answer and has missed the end. The study has not."]
    finally:
        hanging.gate.set()


def test_calls_wait_in_a_queue_of_bounded_length(tmp_path):
    hanging, told = Hanging(), []
    lane = Lane("slow", lambda: hanging, told.append, length=3)
    try:
        lane.put(("trial_started", (RUN,)))
        eventually(lane._queue.empty)  # it hangs in the first
        before = time.monotonic()
        for epoch in range(1000):
            lane.put(("epoch_reported", (RUN, epoch, {"loss": 1.0})))
        assert time.monotonic() - before < 10.0
    finally:
        hanging.gate.set()
    lane.finish()
    lane.join(time.monotonic() + 30)
    assert [call[3] for call in hanging.calls[1:]] == [0, 1, 2]
    assert told == [
        "The tracker slow does not keep up, and will miss some of what is told.",
        "The tracker slow has missed 997 calls.",
    ]


def test_a_tracker_that_cannot_be_made_is_told_of(tmp_path):
    told = []

    def make():
        raise SystemExit("log in first")

    lane = Lane("picky", make, told.append)
    lane.finish()
    lane.join(time.monotonic() + 30)
    assert told == ["The tracker picky failed and is told no more (SystemExit: log in first). The study goes on."]


def test_what_users_say(monkeypatch):
    tracker = Notes()
    assert as_trackers(None) == ()
    assert as_trackers([tracker, "tensorboard"]) == (tracker, "tensorboard")
    with pytest.raises(InvalidValue, match=r"unknown tracker 'tensorbord'\. Did you mean 'tensorboard'"):
        as_trackers("tensorbord")
    with pytest.raises(InvalidType, match="track must name trackers"):
        as_trackers([7])
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("homeostat.study.trackers.broadcast.find_spec", lambda name: None)
    with pytest.raises(HomeostatError, match=r"pip install 'homeostat\[wandb\]'"):
        as_trackers("wandb")


@pytest.mark.parametrize("trial", [0, 12345])
def test_names_of_runs_are_names_of_files(trial):
    config = {"../up": "a/b", "x": "é\0" * 300}
    name = Run("s", trial, 1, 0, 0, config).name
    assert name.startswith(f"{trial:04}-..")
    assert not set(name) & set("/\\\0\n: ")
    assert len(name) <= 120


def test_tensorboard_files_hold_curves_levels_results_and_the_summary(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    from homeostat.study.trackers.tensorboard import TensorBoard

    tracker = TensorBoard(tmp_path, "a study")
    tracker.trial_started(RUN)
    tracker.epoch_reported(RUN, 0, {"loss": 0.5, "odd": math.nan})
    tracker.epoch_reported(RUN, 1, {"loss": 0.25})
    tracker.trial_ended(RUN, "done", {"y": 7.0})
    tracker.study_concluded("norm helps", tmp_path / "report.html")

    def values(folder):
        (file,) = [path for path in folder.iterdir() if path.is_file()]
        events = EventFileLoader(str(file)).Load()
        return [(event.step, value) for event in events for value in event.summary.value]

    found = values(tmp_path / "tensorboard" / RUN.name)
    curve = {(value.tag, step): value.tensor.float_val[0] for step, value in found if value.tensor.float_val}
    assert curve["loss", 0] == 0.5
    assert curve["loss", 1] == 0.25
    assert math.isnan(curve["odd", 0])
    assert curve["result/y", 0] == 7.0
    assert b"dropout" in found[0][1].metadata.plugin_data.content
    ((_, summary),) = values(tmp_path / "tensorboard")
    assert summary.tensor.string_val[0].startswith(b"norm helps")


def fake(monkeypatch, name, **members):
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def test_mlflow_is_called_as_its_client_wants(monkeypatch, tmp_path):
    """Against a fake of the calls: MLflow itself is not among the development tools."""
    calls = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return "17"

        def create_run(self, experiment_id, start_time=None, tags=None, run_name=None):
            calls.append(("create_run", experiment_id, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id=f"run {run_name}"))

        def log_batch(self, run_id, metrics=(), params=(), tags=()):
            assert run_id.startswith("run ")
            calls.append(("log_batch", [(m.key, m.value, m.step) for m in metrics], [(p.key, p.value) for p in params]))

        def set_terminated(self, run_id, status=None, end_time=None):
            calls.append(("set_terminated", status))

        def set_tag(self, run_id, key, value):
            calls.append(("set_tag", key, value))

        def log_artifact(self, run_id, local_path, artifact_path=None):
            calls.append(("log_artifact", local_path))

    def metric(key, value, timestamp, step):
        assert timestamp > 1e12  # milliseconds
        return SimpleNamespace(key=key, value=value, step=step)

    entities = fake(monkeypatch, "mlflow.entities", Metric=metric, Param=lambda k, v: SimpleNamespace(key=k, value=v))
    fake(monkeypatch, "mlflow", MlflowClient=Client, entities=entities)
    from homeostat.study.trackers.mlflow import MLflow

    tracker = MLflow(tmp_path, "a study")
    tracker.trial_started(RUN)
    tracker.epoch_reported(RUN, 3, {"valid loss %": 0.5})
    tracker.trial_ended(RUN, "quarantined", {})
    tracker.study_concluded("norm helps", tmp_path / "report.html")
    assert calls == [
        ("create_run", "17", RUN.name),
        ("log_batch", [], [("norm", "batch"), ("dropout", "0.2"), ("augment", "false"), ("seed", "0")]),
        ("log_batch", [("valid loss _", 0.5, 3)], []),
        ("set_terminated", "FAILED"),
        ("create_run", "17", "report"),
        ("set_tag", "mlflow.note.content", "norm helps"),
        ("log_artifact", str(tmp_path / "report.html")),
        ("set_terminated", None),
    ]


def test_wandb_gets_a_run_when_it_has_ended_and_is_offline_unless_asked(monkeypatch, tmp_path):
    """Against a fake of the calls: wandb itself is not among the development tools."""
    calls = []

    class Made:
        summary = SimpleNamespace(update=lambda values: calls.append(("summary", values)))

        def log(self, values, step):
            calls.append(("log", values, step))

        def finish(self, exit_code=None):
            calls.append(("finish", exit_code))

    def init(**settings):
        calls.append(("init", settings))
        return Made()

    monkeypatch.delenv("WANDB_MODE", raising=False)
    fake(monkeypatch, "wandb", init=init)
    from homeostat.study.trackers.wandb import WandB

    tracker = WandB(tmp_path, "a study")
    tracker.trial_started(RUN)
    tracker.epoch_reported(RUN, 0, {"loss": 0.5})
    assert calls == []
    tracker.trial_ended(RUN, "done", {"y": 7.0})
    kind, settings = calls.pop(0)
    assert kind == "init"
    assert (settings["mode"], settings["dir"], settings["project"]) == ("offline", str(tmp_path), "a-study")
    assert settings["config"] == {**RUN.config, "seed": 0, "trial": 0, "attempt": 1}
    assert calls == [("log", {"loss": 0.5}, 0), ("summary", {"y": 7.0}), ("finish", 0)]
