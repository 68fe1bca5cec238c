"""A stored task is the same task, opened memory-mapped in any process; a folder that bears a fingerprint is whole."""

import json
import multiprocessing
import os
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.training.cache import cache_folder, open_task, receive_task, storable, store_task, task_files
from homeostat.training.datasets import load_task
from homeostat.training.task import Task


def table(tmp_path):
    draw = np.random.default_rng(0)
    path = tmp_path / "table.csv"
    pd.DataFrame({"x": draw.normal(size=50), "c": ["a", "b"] * 25, "y": draw.normal(50, 9, 50)}).to_csv(
        path, index=False
    )
    return load_task(path, target="y")


@pytest.mark.parametrize("name", ["digits", "spirals", "curve", "table"])
def test_a_task_survives_storing(name, tmp_path):
    task = table(tmp_path) if name == "table" else load_task(name, seed=2)
    opened = open_task(store_task(task, tmp_path / "tasks"))
    assert opened.fingerprint == task.fingerprint
    for ours, theirs in zip(opened.data, task.data, strict=True):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)
        assert ours.x.dtype == theirs.x.dtype
    assert torch.equal(opened.sample(9)[0], task.sample(9)[0])
    settings = ("name", "kind", "loss", "metric", "goal", "outputs", "target_unit", "default_model", "seed")
    assert all(getattr(opened, setting) == getattr(task, setting) for setting in settings)
    assert opened.description == json.loads(json.dumps(task.description))
    assert opened.measure(torch.ones(3, opened.outputs), torch.ones(3)) == task.measure(
        torch.ones(3, task.outputs), torch.ones(3)
    )


def test_batches_of_an_opened_task_are_channels_last_and_writing_to_them_leaves_the_file_alone(tmp_path):
    folder = store_task(load_task("digits"), tmp_path)
    opened = open_task(folder)
    batch = next(opened.train.batches(0, 0, "full"))[0]
    assert batch.is_contiguous(memory_format=torch.channels_last)
    batch.fill_(7)
    assert int(open_task(folder).train.x.max()) == 255


def fingerprint_of(folder, results):
    task = open_task(folder)
    results.put((task.fingerprint, float(task.sample(100)[0].sum())))


def test_another_process_opens_the_same_task(tmp_path):
    task = load_task("digits")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=fingerprint_of, args=(store_task(task, tmp_path), results))
    process.start()
    found = results.get(timeout=120)
    process.join()
    assert found == (task.fingerprint, float(task.sample(100)[0].sum()))


def test_storing_again_writes_nothing(tmp_path):
    task = load_task("digits")
    folder = store_task(task, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert store_task(load_task("digits"), tmp_path) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == [task.fingerprint]


@pytest.mark.parametrize("damage", ["cut x", "cut y", "no json", "half json", "version"])
def test_a_damaged_folder_is_told_and_made_anew(damage, tmp_path):
    task = load_task("digits")
    folder = store_task(task, tmp_path)
    if damage.startswith("cut"):
        path = folder / f"train_{damage[-1]}.npy"
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "no json":
        (folder / "task.json").unlink()
    elif damage == "half json":
        (folder / "task.json").write_text('{"version": 1, "set')
    else:
        held = json.loads((folder / "task.json").read_text())
        (folder / "task.json").write_text(json.dumps({**held, "version": 99}))
    with pytest.raises(HomeostatError, match="holds no whole task"):
        open_task(folder)
    assert torch.equal(open_task(store_task(task, tmp_path)).train.x, task.train.x)


def test_what_killed_writers_left_is_swept_after_a_day(tmp_path):
    old, young = tmp_path / ".writing-old", tmp_path / ".writing-young"
    for folder in (old, young):
        folder.mkdir()
        (folder / "train_x.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 90_000, time.time() - 90_000))
    store_task(load_task("spirals"), tmp_path)
    assert not old.exists()
    assert young.exists()


def test_code_is_not_stored(tmp_path):
    x, y = torch.rand(20, 2), torch.arange(20) % 2
    own = Task(data=((x, y), None, None), model=lambda: nn.Linear(2, 2))
    assert not storable(own)
    assert not storable(Task(data=((x.to(torch.bfloat16), y), None, None)))
    with pytest.raises(InvalidValue, match="tensors and names"):
        store_task(own, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(HomeostatError, match=r"cannot be written.*HOMEOSTAT_CACHE"):
        store_task(load_task("spirals"), blocked / "tasks")


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(HomeostatError, match="No space left"):
        store_task(load_task("spirals"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    assert store_task(load_task("spirals")).parent == tmp_path / "tasks"
    monkeypatch.delenv("HOMEOSTAT_CACHE")
    assert cache_folder().name == "homeostat"


def test_a_task_travels_as_files_to_a_machine_without_it_and_only_there(tmp_path):
    task = load_task("digits")
    files = task_files(store_task(task, tmp_path / "here"))
    asked = []

    def fetch():
        asked.append(True)
        return files

    for _ in range(2):
        folder = receive_task(task.fingerprint, fetch, tmp_path / "there")
    opened = open_task(folder)
    assert len(asked) == 1
    assert opened.fingerprint == task.fingerprint
    assert all(torch.equal(ours.x, theirs.x) for ours, theirs in zip(opened.data, task.data, strict=True))
    assert opened.description == json.loads(json.dumps(task.description))


def test_what_arrives_in_pieces_is_refused(tmp_path):
    files = task_files(store_task(load_task("digits"), tmp_path / "here"))
    del files["test_y.npy"]
    with pytest.raises(HomeostatError, match="holds no whole task"):
        receive_task("0" * 16, lambda: files, tmp_path / "there")
