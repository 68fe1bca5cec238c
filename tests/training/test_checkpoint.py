import os
import subprocess
import sys

import pytest
import torch

from homeostat.errors import HomeostatError
from homeostat.training.checkpoint import MANIFEST, Checkpoints


def _saved(directory, epochs=3):
    checkpoints = Checkpoints(directory)
    for epoch in range(1, epochs + 1):
        tensors = {"model/w": torch.full((2, 3), float(epoch)), "best/w": torch.tensor(epoch)}
        checkpoints.save(epoch, tensors, {"epoch": epoch, "loss": float("nan")})
    return checkpoints


def _newest(directory):
    return max(directory.glob("epoch-*.safetensors"))


def test_the_newest_checkpoint_comes_back(tmp_path):
    _saved(tmp_path)
    tensors, state = Checkpoints(tmp_path).load()
    assert torch.equal(tensors["model/w"], torch.full((2, 3), 3.0))
    assert tensors["best/w"].shape == ()
    assert state["epoch"] == 3
    assert state["loss"] != state["loss"]


def test_an_empty_or_absent_directory_holds_none(tmp_path):
    assert Checkpoints(tmp_path).load() is None
    assert Checkpoints(tmp_path / "absent").load() is None


def test_two_are_kept_and_no_temporary_file(tmp_path):
    (tmp_path / ".epoch-000001.safetensors.123").write_bytes(b"left by a killed process")
    _saved(tmp_path, epochs=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        MANIFEST,
        "epoch-000004.safetensors",
        "epoch-000005.safetensors",
    ]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_truncate, _flip_a_bit, os.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(tmp_path, damage):
    _saved(tmp_path)
    damage(_newest(tmp_path))
    with pytest.warns(RuntimeWarning, match="epoch-000003.*using the one before"):
        _, state = Checkpoints(tmp_path).load()
    assert state["epoch"] == 2


KILLED = """
import os, sys, warnings
import torch
from homeostat.training.checkpoint import Checkpoints

def save(checkpoints, epoch):
    checkpoints.save(epoch, {"w": torch.full((3,), float(epoch))}, {"epoch": epoch})

warnings.simplefilter("error")
for place in ("written", "stored"):
    for time in range(1, 7):  # two files per checkpoint: the weights, then the manifest
        folder = f"{sys.argv[1]}/{place}{time}"
        if os.fork() == 0:
            os.environ["HOMEOSTAT_FAILPOINTS"] = f"checkpoint.{place}=kill:{time}"
            checkpoints = Checkpoints(folder)
            for epoch in (1, 2, 3):
                save(checkpoints, epoch)
            os._exit(0)
        ended = os.waitstatus_to_exitcode(os.wait()[1])
        found = Checkpoints(folder).load()
        print(ended, 0 if found is None else found[1]["epoch"], 0 if found is None else int(found[0]["w"][0]))
        save(Checkpoints(folder), 4)
        assert sorted(os.listdir(folder))[-1] == "epoch-000004.safetensors"
        assert not [name for name in os.listdir(folder) if name.startswith(".")]
"""


def test_a_process_that_is_killed_while_it_saves_leaves_the_checkpoint_before_whole(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # the renamed manifest is what counts: it is the second file of each checkpoint
    written = ["-9 0 0", "-9 0 0", "-9 1 1", "-9 1 1", "-9 2 2", "-9 2 2"]
    stored = ["-9 0 0", "-9 1 1", "-9 1 1", "-9 2 2", "-9 2 2", "-9 3 3"]
    assert done.stdout.splitlines() == written + stored


@pytest.mark.parametrize("content", ["", "{", '[{"file": "x"}]', "7", '[{"file": "../../etc/passwd", "sha256": "0"}]'])
def test_a_damaged_manifest_starts_again(tmp_path, content):
    _saved(tmp_path)
    (tmp_path / MANIFEST).write_text(content)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Checkpoints(tmp_path).load() is None


def test_a_hostile_pickle_is_not_executed(tmp_path):
    import hashlib
    import json
    import pickle

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    content = pickle.dumps(Hostile())
    (tmp_path / "epoch-000009.safetensors").write_bytes(content)
    entry = {"file": "epoch-000009.safetensors", "epoch": 9, "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / MANIFEST).write_text(json.dumps([entry]))
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert Checkpoints(tmp_path).load() is None
    assert not (tmp_path / "executed").exists()


def test_tensors_that_share_memory_and_layouts_survive(tmp_path):
    shared = torch.arange(6.0).reshape(2, 3)
    images = torch.arange(16.0).reshape(1, 4, 2, 2).to(memory_format=torch.channels_last)
    Checkpoints(tmp_path).save(1, {"a": shared, "b": shared, "c": shared.T, "d": images}, {})
    tensors, _ = Checkpoints(tmp_path).load()
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared.T)
    assert torch.equal(tensors["d"], images)


def test_a_directory_that_cannot_be_made_is_an_error_with_a_cure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeostatError, match=r"cannot write to .*choose another directory"):
        _saved(tmp_path / "file" / "below")


def test_preparing_shows_that_a_directory_can_be_written_and_leaves_it_empty(tmp_path):
    Checkpoints(tmp_path / "new").prepare()
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(HomeostatError, match=r"cannot write to .*choose another directory"):
        Checkpoints(tmp_path / "file" / "below").prepare()


def test_where_no_checkpoint_is_whole_the_warning_says_that_it_starts_again(tmp_path):
    _saved(tmp_path)
    for path in tmp_path.glob("epoch-*"):
        path.write_bytes(b"")
    with pytest.warns(RuntimeWarning) as told:
        assert Checkpoints(tmp_path).load() is None
    assert "starting again from the first epoch" in str(told[-1].message)
    assert all("using the one before it" in str(each.message) for each in told[:-1])
