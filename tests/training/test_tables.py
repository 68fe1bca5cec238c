"""A table becomes a task whose encoding is learned from training rows alone, and a bad table is refused by name."""

import datetime
import decimal
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.training.columns import typed
from homeostat.training.datasets import load_task
from homeostat.training.tablefiles import read_table
from homeostat.training.tables import table_task


def houses(rows=200, seed=0):
    """Mixed columns with missing values; price depends on size and town."""
    draw = np.random.default_rng(seed)
    size = draw.normal(120, 30, rows)
    town = draw.choice(["Ulm", "Bonn", "Kiel"], rows)
    frame = pd.DataFrame(
        {
            "size": np.where(draw.random(rows) < 0.1, np.nan, size),
            "rooms": draw.integers(1, 8, rows),
            "town": np.where(draw.random(rows) < 0.1, None, town),
            "garden": draw.random(rows) < 0.5,
            "price": 3000 * size + 20_000 * (town == "Bonn") + draw.normal(0, 5000, rows),
        }
    )
    frame["dear"] = np.where(frame["price"] > frame["price"].median(), "yes", "no")
    return frame


def saved(frame, path, **options):
    frame.to_csv(path, index=False, **options)
    return path


def text(tmp_path, content, name="table.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(content.encode(encoding))
    return path


def rows_of(task):
    return np.concatenate([split.x.numpy() for split in (task.train, task.valid, task.test)])


# -- what a good table becomes ----------------------------------------------------------------------------------------


def test_mixed_columns_for_classification(tmp_path):
    task = load_task(saved(houses().drop(columns="price"), tmp_path / "houses.csv"), target="dear")
    columns = task.description["columns"]
    assert columns["numeric"] == ["size", "rooms", "garden"]
    assert columns["with_missing_indicator"] == ["size"]
    assert columns["categories"] == {"town": 4}  # the missing value is a level of its own
    assert task.input_shape == (3 + 1 + 4,)
    assert (task.name, task.kind, task.default_model, task.outputs) == ("houses", "vector", "mlp", 2)
    assert (task.description["classes"], task.description["target"]) == (["no", "yes"], "dear")
    assert task.description["problem"] == "classification"
    assert [len(split) for split in (task.train, task.valid, task.test)] == [120, 40, 40]
    json.dumps(task.description)
    x = task.train.x
    assert x[:, :3].mean(0).abs().max() < 1e-5
    assert ((x[:, 3:] == 0) | (x[:, 3:] == 1)).all()  # indicators and levels are left as they are
    assert (x[:, 4:].sum(1) == 1).all()
    assert task.prepare(x).equal(x)


def test_regression_is_standardized_by_training_and_measured_in_the_targets_unit(tmp_path):
    frame = houses().drop(columns="dear")
    task = load_task(saved(frame, tmp_path / "houses.csv"), target="price")
    assert (task.loss, task.metric, task.outputs) == ("mse", "rmse", 1)
    mean, deviation = task.target_unit
    assert abs(task.train.y.mean()) < 1e-5
    assert task.train.y.std(correction=0) == pytest.approx(1, abs=1e-5)
    prices = np.concatenate([split.y.double().numpy() * deviation + mean for split in task.data])
    assert np.allclose(np.sort(prices), np.sort(frame["price"]), rtol=1e-4)
    # what always predicts the training mean is wrong by the deviation of the test prices around it, in euros
    test = task.test.y.double().numpy() * deviation + mean
    wrong = task.measure(task.test.y * 0, task.test.y)
    assert wrong == pytest.approx(np.sqrt(np.mean((test - mean) ** 2)), rel=1e-5)


def test_what_is_learned_from_values_is_learned_from_training_rows_alone(tmp_path):
    frame = houses().drop(columns="price")
    path = saved(frame, tmp_path / "houses.csv")
    before = load_task(path, target="dear")
    # change rows that are not in training: nothing about the training split may move
    training = {tuple(row) for row in np.round(before.train.x.numpy(), 4).tolist()}
    everything = table_task(path, "dear")
    labels = np.array([{"no": 0, "yes": 1}[value] for value in frame["dear"]])
    from homeostat.training.splits import stratified_split

    _, valid, test = stratified_split(labels)
    frame.loc[np.concatenate([valid, test]), "size"] = 1e6
    frame.loc[np.concatenate([valid, test]), "town"] = "Atlantis"
    after = load_task(saved(frame, path), target="dear")
    assert {tuple(row) for row in np.round(after.train.x.numpy(), 4).tolist()} == training
    assert after.train.x.equal(everything.train.x)
    assert (after.test.x[:, -4:] == 0).all()  # a level that training never saw
    assert after.fingerprint != before.fingerprint


def test_parquet_tsv_gzip_and_other_forms_give_the_same_task(tmp_path):
    frame = houses().drop(columns="price")
    base = load_task(saved(frame, tmp_path / "a.csv"), target="dear")
    frame.to_parquet(tmp_path / "a.parquet")
    saved(frame, tmp_path / "a.tsv", sep="\t")
    saved(frame, tmp_path / "semicolon.csv", sep=";")
    saved(frame, tmp_path / "german.csv", sep=";", decimal=",")
    saved(frame, tmp_path / "bom.csv", encoding="utf-8-sig")
    saved(frame, tmp_path / "wide.csv", encoding="utf-16")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    frame.to_csv(tmp_path / "labels.csv")  # with pandas' row labels in a first column without a name
    others = ("a.parquet", "a.tsv", "semicolon.csv", "german.csv", "bom.csv", "wide.csv", "b.csv.gz", "labels.csv")
    for other in others:
        assert load_task(tmp_path / other, target="dear").fingerprint == base.fingerprint, other


def test_the_split_is_seeded(tmp_path):
    path = saved(houses(), tmp_path / "houses.csv")
    first = load_task(path, target="dear", seed=1)
    assert load_task(path, target="dear", seed=1).fingerprint == first.fingerprint
    assert load_task(path, target="dear", seed=2).fingerprint != first.fingerprint
    assert "seed 1" in first.description["split"]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["a", "b"] * 50, "classification"),
        ([True, False] * 50, "classification"),
        ([0, 1, 2, 3] * 25, "classification"),
        ([1.0, 2.0] * 50, "classification"),
        (list(range(20)) * 5, "classification"),
        (list(range(25)) * 4, "regression"),
        ([0.5, 1.5] * 50, "regression"),
        (list(range(100)), "regression"),
    ],
)
def test_the_target_decides_between_classes_and_numbers(values, problem, tmp_path):
    frame = pd.DataFrame({"x": np.arange(100.0), "y": values})
    for path in (saved(frame, tmp_path / "t.csv"), tmp_path / "t.parquet"):
        if path.suffix == ".parquet":
            frame.to_parquet(path)
        task = load_task(path, target="y")
        assert task.description["problem"] == problem
        assert "different" in task.description["problem_reason"] or "text" in task.description["problem_reason"]


def test_the_decision_can_be_overruled(tmp_path):
    path = saved(pd.DataFrame({"x": np.arange(100.0), "y": [1, 2, 3, 4] * 25}), tmp_path / "t.csv")
    assert table_task(path, "y", problem="regression").loss == "mse"
    assert table_task(path, "y", problem="classification").description["classes"] == ["1", "2", "3", "4"]


def test_types_that_only_parquet_has(tmp_path):
    rows = 60
    frame = pd.DataFrame(
        {
            "nullable": pd.array([1, None, 3] * 20, dtype="Int64"),
            "flag": pd.array([True, None, False] * 20, dtype="boolean"),
            "amount": [decimal.Decimal("1.5"), decimal.Decimal("2.25"), None] * 20,
            "day": pd.date_range("2024-01-01", periods=rows),
            "date": [datetime.date(2024, 1, 1) + datetime.timedelta(days=n) for n in range(rows)],
            "lasting": pd.to_timedelta(np.arange(rows), unit="h"),
            "level": pd.Categorical(["low", "high", None] * 20),
            "y": [0, 1, 1] * 20,
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    task = load_task(tmp_path / "t.parquet", target="y")
    columns = task.description["columns"]
    assert columns["numeric"] == ["nullable", "flag", "amount", "day", "date", "lasting"]
    assert columns["with_missing_indicator"] == ["nullable", "flag", "amount"]
    assert columns["categories"] == {"level": 3}
    assert columns["read_as"]["day"] == "dates, as days since 1970"


def test_columns_that_hold_nothing_to_learn_from_are_dropped_with_a_note(tmp_path):
    frame = houses()[["size", "dear"]].assign(
        id=range(200), constant=1, empty=np.nan, name=[f"house {n}" for n in range(200)], when="2024-05-01"
    )
    task = load_task(saved(frame, tmp_path / "t.csv"), target="dear")
    dropped = task.description["columns"]["dropped"]
    assert dropped["id"] == "row labels"
    assert dropped["constant"] == dropped["when"] == "constant in the training rows"
    assert dropped["empty"] == "no value"
    assert dropped["name"].startswith("text with 200 different values")
    assert task.input_shape == (2,)


def test_a_category_with_very_many_levels_is_capped(tmp_path):
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"place": [f"p{n}" for n in draw.integers(0, 90, 600)], "y": [0, 1] * 300})
    task = load_task(saved(frame, tmp_path / "t.csv"), target="y")
    assert task.input_shape == (50,)
    assert task.description["columns"]["rare_levels_joined"] == ["place"]


def test_iso_dates_and_numbers_stored_as_text_are_numbers():
    dates = typed(pd.Series(["1970-01-02", None, "1970-01-03T12:00:00"], name="when"))
    assert dates.values.dropna().tolist() == [1.0, 2.5]
    assert typed(pd.Series(["1", " 2.5 ", None], name="n", dtype=object)).values.dropna().tolist() == [1.0, 2.5]


@given(st.lists(st.one_of(st.none(), st.floats(-1e9, 1e9)), min_size=3, max_size=40))
def test_a_numeric_column_keeps_its_values_and_its_gaps(values):
    column = typed(pd.Series(values, name="x", dtype=object))
    if all(value is None for value in values):
        assert column.kind == "dropped"
    else:
        assert column.kind == "numeric"
        expected = [np.nan if value is None else value for value in values]
        assert np.array_equal(column.values.to_numpy(), expected, equal_nan=True)


@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)] * 2),
        min_size=1,
        max_size=10,
    )
)
def test_any_text_that_is_quoted_is_read_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("quoted") / "t.csv"
    pd.DataFrame(rows, columns=["a", "b"]).assign(n=1).to_csv(path, index=False, quoting=1)
    frame, _ = read_table(path)
    assert len(frame) == len(rows)


# -- what a bad table gets --------------------------------------------------------------------------------------------

ROWS = "".join(f"{n},{n % 3},{'ab'[n % 2]}\n" for n in range(1, 31))
GOOD = "x,z,y\n" + ROWS


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "0 bytes"),
        ("\n \n", "only blank lines"),
        ("x,z,y\n", "at least one row"),
        ("x,z,y\n1,2,a\n3,4,b\n", "at least 10 rows"),
        (GOOD.replace("7,1,b\n", "7,1\n"), "line 8 has 2 fields"),
        (GOOD.replace("7,1,b\n", "7,1,b,9\n"), "line 8 has 4 fields"),
        (GOOD.replace("7,1,b\n", '7,"1,b\n'), "line"),
        (GOOD.replace("x,z", "x,x"), "column names must be different, but got ['x']"),
        (GOOD.replace("7,1,b", "7,n.v.,b"), "row 7 below the header holds 'n.v.'"),
        (GOOD.replace("7,1,b", "inf,1,b"), "column 'x' must hold finite numbers, but got 'inf in row 7"),
        (GOOD.replace("7,1,b", "7,1,"), "1 missing, the first in row 7"),
        (GOOD.replace(",b\n", ",a\n"), "vary"),
        (GOOD.replace("7,1,b", "7,1,c"), "class 'c' must have at least two examples"),
        ("y,c\n" + "a,1\nb,1\n" * 10, "a column to learn from"),
        ("x,y\n" + "".join(f"{n},person {n}\n" for n in range(50)), "Is it an id or free text?"),
        ("x,y\n" + "".join(f"2024-01-{n:02},2024-02-{n:02}\n" for n in range(1, 29)), "It is a date"),
        ("x,y\n" + "".join(f'"{n},500",{n % 2}\n' for n in range(1, 31)), "plain numbers"),
        ("x,y\n" + "".join(f"{n} %,{n % 2}\n" for n in range(1, 31)), "plain numbers"),
        ("x,y\n" + "".join(f"{n},{n}.5\n" for n in range(1, 31)) + "31,lots\n", "column 'y' must hold numbers"),
    ],
)
def test_a_bad_table_is_refused_and_the_place_is_named(content, says, tmp_path):
    with pytest.raises(InvalidValue) as caught:
        load_task(text(tmp_path, content), target="y")
    assert says in str(caught.value)


def test_many_ragged_lines_are_counted(tmp_path):
    with pytest.raises(InvalidValue, match=r"line 32 has 1 fields.*\(40 such lines\)"):
        load_task(text(tmp_path, GOOD + "1\n" * 40), target="y")


def test_bytes_that_are_no_text_are_refused(tmp_path):
    with pytest.raises(InvalidValue, match="text in UTF-8, but got 'byte 0xe9'"):
        load_task(text(tmp_path, GOOD.replace("7,1,b", "7,1,é"), encoding="latin-1"), target="y")
    broken = tmp_path / "t.parquet"
    broken.write_text(GOOD)
    with pytest.raises(InvalidValue, match="readable Parquet"):
        load_task(broken, target="y")
    broken = tmp_path / "t.csv.gz"
    broken.write_text(GOOD)
    with pytest.raises(InvalidValue, match="readable CSV"):
        load_task(broken, target="y")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("packed", [False, True])
def test_utf_16_is_read_with_a_byte_order_mark_and_refused_without(tmp_path, encoding, packed):
    def written(content):
        path = tmp_path / ("t.csv.gz" if packed else "t.csv")
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    with pytest.raises(InvalidValue, match=r"text in UTF-8, but got 'byte 0x00'\. It seems to be UTF-16 without a"):
        load_task(written(GOOD.encode(encoding)), target="y")
    marked = read_table(written(("\ufeff" + GOOD).encode(encoding)))[0]
    assert marked.equals(read_table(text(tmp_path, GOOD))[0])


def test_the_target_must_be_there(tmp_path):
    path = text(tmp_path, GOOD.replace("x,z,y", "size,rooms,price"))
    with pytest.raises(InvalidValue, match=r"\(--target\)\. Columns: size, rooms, price"):
        load_task(path)
    with pytest.raises(InvalidValue, match=r"unknown column of table\.csv 'prize'\. Did you mean 'price'"):
        load_task(path, target="prize")


def test_nested_and_complex_columns_are_refused(tmp_path):
    frame = pd.DataFrame({"x": [[1, 2]] * 12, "y": [0, 1] * 6})
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(HomeostatError, match="column 'x' must hold one value per row"):
        load_task(tmp_path / "t.parquet", target="y")
    with pytest.raises(InvalidValue, match="real numbers"):
        typed(pd.Series([1j, 2j], name="z"))
