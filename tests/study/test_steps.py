"""What trials say of single steps: stored with their epoch, compressed, and written as Parquet."""

import math
import sqlite3

import numpy as np
import pandas as pd
import pytest
from objectives import make_ledger
from typer.testing import CliRunner

from homeostat.cli import app
from homeostat.errors import InvalidValue
from homeostat.study.running.runner import Rules, Trial, work
from homeostat.study.show.export import write_parquet
from homeostat.study.state.lease import Holder
from homeostat.study.state.ledger import Ledger
from homeostat.study.state.storage import StorageError
from homeostat.study.state.vitals import pack, unpack
from homeostat.study.study import Study

ODD = {"../../etc/passwd": 1.5, "file": math.inf, "Größe, =1+1": -0.0, "</script>": math.nan, "a/b": 5e-324}


def walk(config, seed, trial):
    """Ten steps in each of two epochs."""
    for epoch in range(2):
        for step in range(10):
            trial.step(10 * epoch + step, loss=1 / (1 + step), gradient=config["x"] + seed / 7)
        trial.report(epoch, valid_loss=0.5)
    return {"y": float(config["x"])}


def test_values_come_back_bit_for_bit_under_any_name():
    steps = [{"step": number, **{name: value * (number + 1) for name, value in ODD.items()}} for number in range(50)]
    columns = unpack(pack(steps))
    assert list(columns) == ["step", *ODD]
    for name, value in ODD.items():
        np.testing.assert_array_equal(columns[name], [value * (number + 1) for number in range(50)])
    assert pack(steps) == pack(steps)


def test_what_a_step_does_not_say_is_not_a_number():
    columns = unpack(pack([{"step": 0, "a": 1.0}, {"step": 1, "b": 2.0}]))
    np.testing.assert_array_equal(columns["a"], [1.0, math.nan])
    np.testing.assert_array_equal(columns["b"], [math.nan, 2.0])


def test_a_thousand_steps_that_vary_little_take_a_fraction_of_their_bytes():
    steps = [{"step": number, "lr": 0.001, "loss": round(1 / (1 + number), 3)} for number in range(1000)]
    assert len(pack(steps)) < 3 * 8 * 1000 / 4


def test_steps_are_stored_with_the_epoch_that_ends_with_them(tmp_path):
    study = Study(walk, {"x": [0, 1]}, 2, directory=tmp_path / "study", workers=2)
    study.run(progress=False)
    ledger = Ledger.open(tmp_path / "study", read_only=True)
    frames = list(ledger.vitals())
    ledger.close()
    assert [len(frame) for frame in frames] == [20] * 4
    for frame in frames:
        assert frame["step"].tolist() == list(range(20))
        assert frame["epoch"].tolist() == [0] * 10 + [1] * 10
        config = study.design.config(frame["treatment"][0])
        assert (frame["gradient"] == config["x"] + frame["seed"] / 7).all()


def test_a_second_attempt_replaces_what_the_first_one_said(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    for attempt, epochs in ((1, (0, 1, 2)), (2, (1,))):  # epoch 0 was in its checkpoint
        claim = ledger.claim(Holder.current("me"), 30)
        trial = Trial(ledger, claim)
        for epoch in epochs:
            trial.step(epoch, attempt=attempt)
            trial.report(epoch, loss=1.0)
        if attempt == 1:
            ledger.release(claim)
    ledger.finish(claim, {"y": 0.0}, 1.0)
    (frame,) = ledger.vitals()
    assert frame["attempt"].tolist() == [1, 2]
    assert frame["epoch"].tolist() == [0, 1]


def test_an_epoch_reported_again_without_steps_has_none(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    trial = Trial(ledger, ledger.claim(Holder.current("me"), 30))
    trial.step(0, loss=1.0)
    trial.report(0, loss=1.0)
    trial.report(0, loss=1.0)
    assert list(ledger.vitals()) == []


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        (-1, {"loss": 1.0}, "step must be an integer of at least 0"),
        (True, {"loss": 1.0}, "step must be an integer of at least 0"),
        (0, {"epoch": 1.0}, "names must not be columns of the table of steps"),
    ],
)
def test_steps_that_cannot_be_are_refused(tmp_path, step, values, message):
    ledger = make_ledger(tmp_path / "study")
    with pytest.raises(InvalidValue, match=message):
        Trial(ledger, ledger.claim(Holder.current("me"), 30)).step(step, **values)


def test_a_value_that_is_no_number_fails_its_trial_alone(tmp_path):
    def objective(config, seed, trial):
        trial.step(0, loss="high" if config["x"] == 0 and seed == 0 else 1.0)
        trial.report(0, loss=1.0)
        return {"y": 1.0}

    ledger = make_ledger(tmp_path / "study")
    events = list(work(ledger, objective, Holder.current("me"), Rules(retries=0)))
    assert [event[0] for event in events] == ["quarantined", "done", "done", "done"]
    assert "Trial.step: loss must be one number" in events[0][2]


def test_a_damaged_blob_is_an_error_and_never_unpickled(tmp_path):
    ledger = make_ledger(tmp_path / "study")
    trial = Trial(ledger, ledger.claim(Holder.current("me"), 30))
    trial.step(0, loss=1.0)
    trial.report(0, loss=1.0)
    values = np.random.default_rng(0).normal(size=100)
    blob = pack([{"step": value} for value in values])
    middle = len(blob) // 2  # of the compressed numbers
    for bad in (b"", b"PK", blob[:-30], blob[:middle] + bytes([blob[middle] ^ 255]) + blob[middle + 1 :]):
        ledger._storage._connection.execute("UPDATE curves SET steps = ?", (bad,))
        with pytest.raises(StorageError, match="cannot be read"):
            list(ledger.vitals())


def test_export_writes_parquet_that_reads_back(tmp_path):
    study = Study(walk, {"x": [0, 1], "norm": ["none", 2]}, 2, directory=tmp_path / "study", workers=0)
    result = study.run(progress=False)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "study"), "--out", str(tmp_path / "tables")])
    assert done.exit_code == 0, done.output
    assert "vitals.parquet: 160 rows" in done.output
    trials, curves, vitals = (
        pd.read_parquet(tmp_path / "tables" / f"{name}.parquet") for name in ("trials", "curves", "vitals")
    )
    assert trials["x"].tolist() == result.trials["x"].tolist()
    assert trials["norm"].tolist() == [str(level) for level in result.trials["norm"]]
    pd.testing.assert_frame_equal(curves, result.curves)
    assert len(vitals) == 8 * 20
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == [
        "curves.parquet",
        "trials.parquet",
        "vitals.parquet",
    ]


def test_export_says_what_is_not_there(tmp_path):
    Study(lambda config, seed: {"y": 1.0 * seed}, {"x": [0, 1]}, 2, directory=tmp_path / "s", workers=0).run(False)
    done = CliRunner().invoke(app, ["export", str(tmp_path / "s")])
    assert "No vitals are stored." in done.output
    assert not (tmp_path / "s" / "vitals.parquet").exists()


def test_pieces_with_other_columns_make_one_table(tmp_path):
    pieces = [pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [0.5], "b": ["x"]})]
    assert write_parquet(lambda: iter(pieces), tmp_path / "t.parquet") == 3
    found = pd.read_parquet(tmp_path / "t.parquet")
    assert found["a"].tolist() == [1.0, 2.0, 0.5]
    assert found["b"].isna().tolist() == [True, True, False]
    assert found["b"][2] == "x"


def test_a_ledger_from_before_there_were_steps_has_none(tmp_path):
    make_ledger(tmp_path / "study").close()
    with sqlite3.connect(tmp_path / "study" / "study.sqlite") as old:
        old.execute("ALTER TABLE curves DROP COLUMN steps")
        old.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    old.close()
    ledger = Ledger.open(tmp_path / "study", read_only=True)
    assert list(ledger.vitals()) == []
    ledger.close()
