"""What an objective may rely on, and what becomes of its result, its warnings and its mistakes."""

import errno
import functools
import math
import os
import threading
import warnings

import numpy as np
import pytest
from objectives import eventually, make_ledger

from homeostat.errors import HomeostatError, InvalidType, InvalidValue, NoEffectWarning
from homeostat.study.running.runner import Rules, work
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import StaleClaim
from homeostat.study.state.storage import StorageError

HOLDER = Holder.current("me")


@pytest.fixture
def ledger(tmp_path):
    return make_ledger(tmp_path / "study", 2)


def run(ledger, objective, **rules):
    return list(work(ledger, objective, HOLDER, Rules(**rules)))


def test_results_are_stored_with_their_time(ledger):
    assert run(ledger, lambda config, seed: {"y": config["x"] + seed}) == [("done", 0, ""), ("done", 1, "")]
    trials = ledger.trials()
    assert trials["y"].tolist() == [0.0, 1.0]
    assert (trials["seconds"] > 0).all()


def test_an_objective_with_a_trial_has_a_directory_and_reports(ledger, tmp_path):
    seen = []

    def objective(config, seed, trial):
        seen.append((trial.number, trial.attempt, trial.directory))
        (trial.directory / "checkpoint").write_text("half")
        for epoch in range(3):
            trial.report(epoch, loss=1 / (epoch + 1), valid=math.nan)
        return {"y": 1.0}

    run(ledger, objective)
    assert seen == [(number, 1, tmp_path / "study" / "trials" / str(number)) for number in (0, 1)]
    assert ledger.curves()["loss"].tolist() == [1, 1 / 2, 1 / 3] * 2
    assert not any((tmp_path / "study" / "trials").iterdir())  # results are in the ledger


def test_the_directory_survives_a_failed_attempt(ledger):
    def objective(config, seed, trial):
        checkpoint = trial.directory / "checkpoint"
        if trial.attempt == 1:
            checkpoint.write_text("epoch 3")
            raise RuntimeError("out of luck")
        return {"y": float(checkpoint.read_text() == "epoch 3")}

    run(ledger, objective)
    assert ledger.trials()["y"].tolist() == [1.0, 1.0]


def test_a_partial_or_object_that_takes_a_trial_is_given_one(ledger):
    class Callable:
        def __call__(self, config, seed, trial=None):
            return {"y": trial.number}

    run(ledger, functools.partial(Callable().__call__))
    assert ledger.trials()["y"].tolist() == [0.0, 1.0]


def test_anything_that_is_a_number_is_a_metric(ledger):
    class Scalar:  # as torch has them
        def __float__(self):
            return 0.25

    given = {"a": True, "b": 3, "c": np.float32(0.5), "d": Scalar(), "e": math.inf, "f": np.array(2.0), "g": math.nan}
    run(ledger, lambda config, seed: given)
    found = ledger.trials().loc[0, list(given)].tolist()
    assert found[:6] == [1.0, 3.0, 0.5, 0.25, math.inf, 2.0]
    assert math.isnan(found[6])


def test_warnings_are_kept_with_the_trial_each_once(ledger):
    def objective(config, seed):
        for i in range(50):
            warnings.warn("dropout changed nothing", NoEffectWarning, stacklevel=1)
            warnings.warn(f"number {i % 2}", RuntimeWarning, stacklevel=1)
            warnings.warn("old", DeprecationWarning, stacklevel=1)
        return {"y": 1.0}

    run(ledger, objective)
    expected = ["NoEffectWarning: dropout changed nothing", "RuntimeWarning: number 0", "RuntimeWarning: number 1"]
    assert ledger.trials()["warnings"].tolist() == [expected] * 2


def test_an_exception_is_retried_then_quarantined_with_a_short_traceback(ledger):
    def objective(config, seed):
        if seed == 0:
            raise ValueError("no such layer")
        return {"y": 1.0}

    events = run(ledger, objective, retries=1)
    assert [event[:2] for event in events] == [("failed", 0), ("quarantined", 0), ("done", 1)]
    row = ledger.trials().loc[0]
    assert (row["status"], row["attempt"]) == ("quarantined", 2)
    first, *frames = row["failure"].splitlines()
    assert first == "ValueError: no such layer"
    assert "in objective" in frames[0]
    assert not any("study/runner.py" in frame for frame in frames)


def test_an_error_with_text_that_no_encoding_holds_is_the_trials_own(ledger):
    def objective(config, seed):
        if seed == 0:
            raise ValueError("no file \udcff here")
        return {"y": 1.0}

    assert [event[:2] for event in run(ledger, objective, retries=0)] == [("quarantined", 0), ("done", 1)]
    assert ledger.trials()["failure"][0].startswith("ValueError: no file \\udcff here\n")


@pytest.mark.parametrize("error", [SystemExit(2), MemoryError("too much"), RecursionError("deep")])
def test_no_exception_of_a_trial_ends_the_worker(ledger, error):
    def objective(config, seed):
        if seed == 0:
            raise error
        return {"y": 1.0}

    run(ledger, objective, retries=0)
    assert ledger.trials()["status"].tolist() == ["quarantined", "done"]


@pytest.mark.parametrize(
    ("returned", "kind", "message"),
    [
        (None, InvalidType, "its result must be a dict of metrics, but got None"),
        (0.5, InvalidType, "its result must be a dict of metrics, but got 0.5"),
        ({}, InvalidValue, "must hold at least one metric"),
        ({"y": "0.5"}, InvalidType, "y must be one number, but got '0.5'"),
        ({"y": [0.5]}, InvalidType, "y must be one number"),
        ({"y": None}, InvalidType, "y must be one number"),
        ({3: 0.5}, InvalidType, "each name of a metric must be a text, but got 3"),
        ({"seconds": 0.5}, InvalidValue, "'seconds'"),
        ({"x": 0.5}, InvalidValue, "'x'"),
        ({"y\udcff": 0.5}, InvalidValue, "each name of a metric must be text that UTF-8 can hold"),
        ({"outcome": 0.5}, InvalidValue, "metric 'outcome' must not take columns that are there already"),
        ({"y": 0.5, "missing": 0.5}, InvalidValue, "metric 'missing'"),
        ({"y": 0.5, "y_low": 0.4}, InvalidValue, "but got ['y_low']"),
        ({"diverged": 0.0}, InvalidValue, "must hold at least one metric"),
        ({"z": 0.5}, InvalidValue, "its result must hold 'y', but got ['z']"),
    ],
)
def test_a_result_that_cannot_be_used_stops_a_study_that_has_no_other(ledger, returned, kind, message):
    with pytest.raises(kind) as caught:
        run(ledger, lambda config, seed: returned, response="y")
    assert message in str(caught.value)
    assert ledger.counts().pending == 2


def test_a_result_that_cannot_be_used_costs_one_trial_where_others_have_worked(ledger):
    run(ledger, lambda config, seed: {"y": 1.0} if seed == 0 else None)
    trials = ledger.trials()
    assert trials["status"].tolist() == ["done", "quarantined"]
    assert trials["attempt"].tolist() == [1, 1]
    assert "its result must be a dict of metrics" in trials["failure"][1]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_not_the_trials_fault(ledger, wrapped):
    def objective(config, seed):
        try:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint")
        except OSError as error:
            if wrapped:
                raise RuntimeError("could not save") from error
            raise

    with pytest.raises(StorageError, match=r"checkpoint: No space left on device. Free some space"):
        run(ledger, objective, retries=0)
    assert ledger.counts().pending == 2


def test_the_objective_cannot_change_the_stored_configuration(ledger):
    def objective(config, seed):
        config["x"] = 99
        return {"y": 1.0}

    run(ledger, objective)
    assert ledger.trials()["x"].tolist() == [0, 0]


def test_ctrl_c_gives_the_trial_back(ledger):
    def objective(config, seed):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ledger, objective)
    assert ledger.counts().pending == 2


def test_an_attempt_that_lost_its_trial_is_dropped(ledger):
    """Even if the objective swallows the refusal."""
    refused = []

    def objective(config, seed, trial):
        if trial.attempt == 1 and seed == 0:
            ledger.release_worker("me")  # as if the lease had run out
            try:
                trial.report(0, loss=1.0)
            except HomeostatError as error:
                refused.append(type(error))
        return {"y": trial.attempt}

    events = run(ledger, objective)
    assert refused == [StaleClaim]
    assert [event[:2] for event in events] == [("lost", 0), ("done", 0), ("done", 1)]
    assert ledger.trials()["y"].tolist() == [2.0, 1.0]


def test_a_silent_objective_keeps_its_lease(ledger):
    def objective(config, seed):
        before = deadline()
        eventually(lambda: deadline() > before)
        return {"y": 1.0}

    def deadline():
        return ledger._storage.read("SELECT MAX(deadline) FROM trials")[0][0]

    run(ledger, objective, lease=0.3)
    assert ledger.counts().done == 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("heartbeat")]


@pytest.mark.parametrize(
    ("epoch", "values", "message"),
    [
        (-1, {}, "epoch must be an integer of at least 0, but got -1"),
        (0.5, {}, "epoch must be an integer"),
        (0, {"seed": 1.0}, "names must not be columns of the table of curves, but got ['seed']"),
        (0, {"loss": "low"}, "loss must be one number, but got 'low'"),
        (0, {"loss\udcff": 1.0}, "names must be text that UTF-8 can hold"),
    ],
)
def test_a_report_that_cannot_be_used_is_an_error_of_the_trial(ledger, epoch, values, message):
    run(ledger, lambda config, seed, trial: trial.report(epoch, **values), retries=0)
    assert message in ledger.trials()["failure"][0]


def test_an_objective_may_change_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()

    def objective(config, seed, trial):
        os.chdir(tmp_path / "elsewhere")
        (trial.directory / "checkpoint").write_text("half")
        return {"y": 1.0}

    assert [kind for kind, *_ in run(make_ledger("study", 2), objective)] == ["done", "done"]
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_names_the_directory_where_the_error_does_not(ledger, tmp_path):
    def objective(config, seed):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(StorageError, match=f"{tmp_path / 'study'}: No space left on device. Free some space"):
        run(ledger, objective)
