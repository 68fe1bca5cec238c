"""`load_task` finds named tasks, reads every published form of the image sets, and says what to do where it cannot."""

import gzip
import io
import math
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pooch
import pytest
import torch
from PIL import Image

from homeostat.errors import HomeostatError, InvalidValue
from homeostat.training.datasets import load_task

TRAIN, TEST = 240, 40


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No test reaches the internet or the user's cache."""

    def refuse(url, **_):
        raise OSError(f"no route to {url}")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setenv("HOMEOSTAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HOMEOSTAT_DATA", raising=False)


def gray_arrays():
    """A small set in the form of MNIST: every pixel of image n is n modulo 251, so that pairs can be followed."""
    arrays = {}
    for split, count in (("train", TRAIN), ("test", TEST)):
        number = np.arange(count)
        arrays[f"x_{split}"] = np.broadcast_to((number % 251).astype(np.uint8)[:, None, None], (count, 28, 28)).copy()
        arrays[f"y_{split}"] = (number % 10).astype(np.uint8)
    return arrays


def color_arrays():
    arrays = gray_arrays()
    for split in ("train", "test"):
        x = np.repeat(arrays[f"x_{split}"][:, :1, :1, None], 3, axis=3)
        arrays[f"x_{split}"] = np.broadcast_to(x, (len(x), 32, 32, 3)) + np.array([0, 1, 2], np.uint8)
    return arrays


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", size) for size in array.shape)
    return header + array.tobytes()


def idx_files(folder, arrays, *, zipped=False, dotted=False):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    for name, key in zip(names, ("x_train", "y_train", "x_test", "y_test"), strict=True):
        name = f"{name.replace('-idx', '.idx') if dotted else name}-ubyte"
        raw = idx(arrays[key])
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)


def cifar_files(folder, arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for name, x, y in [
        *((f"data_batch_{n + 1}.bin", arrays["x_train"][n::5], arrays["y_train"][n::5]) for n in range(5)),
        ("test_batch.bin", arrays["x_test"], arrays["y_test"]),
    ]:
        rows = np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], axis=1)
        (folder / name).write_bytes(rows.astype(np.uint8).tobytes())


def check(task, shape):
    assert [len(split) for split in (task.train, task.valid, task.test)] == (
        [200, 40, 40] if shape[0] == 1 else [192, 48, 40]
    )
    assert task.input_shape == shape
    assert task.outputs == 10
    assert task.train.x.dtype == torch.uint8
    for split in (task.train, task.valid, task.test):
        assert torch.equal(split.x[:, 0, 0, 0] % 10, split.y.to(torch.uint8))
        if shape[0] == 3:
            assert torch.equal(split.x[:, 2, 3, 4], split.x[:, 0, 0, 0] + 2)
    seen = torch.cat([task.train.x[:, 0, 0, 0], task.valid.x[:, 0, 0, 0]])
    assert sorted(seen.tolist()) == list(range(TRAIN))
    assert task.test.y.tolist() == [number % 10 for number in range(TEST)]  # the official test split, as it is
    assert torch.bincount(task.valid.y).min() == torch.bincount(task.valid.y).max() or shape[0] == 3


# -- names without files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sizes", "shape", "outputs"),
    [
        ("digits", [1078, 360, 359], (1, 8, 8), 10),
        ("spirals", [540, 180, 180], (2,), 3),
        ("curve", [20, 200, 200], (1,), 1),
    ],
)
def test_embedded_and_synthetic_tasks(name, sizes, shape, outputs):
    task = load_task(name)
    assert [len(split) for split in (task.train, task.valid, task.test)] == sizes
    assert (task.input_shape, task.outputs, task.name) == (shape, outputs, name)
    assert load_task(name).fingerprint == task.fingerprint
    assert load_task(name, seed=1).fingerprint != task.fingerprint
    assert load_task(name, seed=1).seed == 1
    assert task.description["seed"] == 0


def test_digits_are_small_images_for_an_mlp_whose_splits_have_all_classes():
    task = load_task("digits")
    assert (task.kind, task.default_model) == ("image", "mlp")
    assert int(task.train.x.max()) == 255
    assert len(task.train.x.unique()) == 17
    for split in (task.train, task.valid, task.test):
        counts = torch.bincount(split.y, minlength=10) / len(split)
        assert torch.allclose(counts, torch.full((10,), 0.1), atol=0.01)


def test_a_spiral_cannot_be_told_by_a_line_and_can_be_told_by_its_neighbors():
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    task = load_task("spirals")
    x, y = task.train.x.numpy(), task.train.y.numpy()
    test = task.test.x.numpy(), task.test.y.numpy()
    assert LogisticRegression().fit(x, y).score(*test) < 0.65
    assert KNeighborsClassifier(5).fit(x, y).score(*test) > 0.9


def test_the_curves_noise_is_the_best_that_can_be_reached():
    task = load_task("curve")
    truth = torch.sin(3 * task.test.x)
    assert task.measure(truth, task.test.y) == pytest.approx(0.3, abs=0.05)
    assert (task.loss, task.metric, task.goal) == ("mse", "rmse", "minimize")
    # a polynomial through all 20 points is far from them elsewhere: the data invite overfitting
    x, y = task.train.x[:, 0].double().numpy(), task.train.y.double().numpy()
    through = np.polynomial.Chebyshev.fit(x, y, 19)
    error = math.sqrt(np.mean((through(task.test.x[:, 0].numpy()) - task.test.y.numpy()) ** 2))
    assert error > 0.6


# -- image sets from HOMEOSTAT_DATA -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("form", ["npz", "idx", "idx.gz", "dotted", "torchvision"])
def test_gray_sets_in_every_form(name, form, tmp_path, monkeypatch):
    arrays, root = gray_arrays(), tmp_path / "data"
    root.mkdir()
    if form == "npz":
        np.savez_compressed(root / f"{name.replace('-', '_')}.npz", **arrays)
    elif form == "torchvision":
        idx_files(root / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw", arrays)
    else:
        idx_files(root / name, arrays, zipped=form == "idx.gz", dotted=form == "dotted")
    monkeypatch.setenv("HOMEOSTAT_DATA", str(root))
    task = load_task(name)
    check(task, (1, 28, 28))
    assert str(root) in task.description["source"]


@pytest.mark.parametrize("form", ["folder", "root", "archive", "npz", "encoded"])
def test_cifar10_in_every_form(form, tmp_path, monkeypatch):
    arrays, root = color_arrays(), tmp_path / "data"
    root.mkdir()
    if form in ("folder", "root"):
        cifar_files(root / "cifar-10-batches-bin" if form == "folder" else root, arrays)
    elif form == "archive":
        cifar_files(tmp_path / "cifar-10-batches-bin", arrays)
        with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as archive:
            archive.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    elif form == "npz":
        np.savez(root / "cifar10.npz", **arrays)
    else:
        stored = {key: value for key, value in arrays.items() if key.startswith("y")}
        for split in ("train", "test"):
            encoded = [io.BytesIO() for _ in arrays[f"x_{split}"]]
            for file, picture in zip(encoded, arrays[f"x_{split}"], strict=True):
                Image.fromarray(picture).save(file, "PNG")  # lossless, so that pixels can be compared
            raws = [file.getvalue() for file in encoded]
            stored[f"x_{split}_jpeg"] = np.frombuffer(b"".join(raws), np.uint8)
            stored[f"x_{split}_off"] = np.cumsum([0, *map(len, raws)])
        np.savez(root / "cifar10_jpeg.npz", class_names=np.array(["a"]), **stored)
    monkeypatch.setenv("HOMEOSTAT_DATA", str(root))
    check(load_task("cifar10"), (3, 32, 32))


def test_idx_files_without_a_folder_of_their_own_are_told_apart(tmp_path, monkeypatch):
    arrays = gray_arrays()
    arrays["y_train"][:8] = [9, 0, 0, 3, 0, 2, 7, 2]  # how the labels of Fashion-MNIST begin
    idx_files(tmp_path, arrays)
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    assert load_task("fashion-mnist").outputs == 10
    with pytest.raises(HomeostatError, match="could not be downloaded"):
        load_task("mnist")


class Evil:
    def __reduce__(self):
        return (print, ("unpickled!",))


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_the_python_version_of_cifar10_is_refused_unopened(form, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "cifar-10-batches-py"
    if form == "folder":
        folder.mkdir()
        (folder / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    else:
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(InvalidValue, match=r"unpickle.*cifar-10-binary\.tar\.gz"):
        load_task("cifar10")
    assert "unpickled!" not in capsys.readouterr().out


def broken_files(folder, damage):
    """MNIST-like files of which one is damaged in the named way."""
    idx_files(folder / "mnist", gray_arrays(), zipped=damage.startswith("gz"))
    images = folder / "mnist" / f"train-images-idx3-ubyte{'.gz' if damage.startswith('gz') else ''}"
    raw = images.read_bytes()
    if damage in ("cut", "gz cut"):
        images.write_bytes(raw[: len(raw) // 2])
    elif damage in ("html", "gz html"):
        images.write_bytes(b"<html>404</html>")
    elif damage == "empty":
        images.write_bytes(b"")
    elif damage == "missing":
        images.unlink()
    elif damage == "floats":
        images.write_bytes(raw[:2] + b"\x0d" + raw[3:])


@pytest.mark.parametrize("damage", ["cut", "gz cut", "html", "gz html", "empty", "missing", "floats"])
def test_a_damaged_idx_file_is_named(damage, tmp_path, monkeypatch):
    broken_files(tmp_path, damage)
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(InvalidValue, match="train-images-idx3-ubyte"):
        load_task("mnist")


@pytest.mark.parametrize("damage", ["cut", "objects", "keys", "labels", "shape", "text"])
def test_a_damaged_npz_is_named(damage, tmp_path, monkeypatch):
    arrays, path = gray_arrays(), tmp_path / "mnist.npz"
    if damage == "objects":
        arrays["x_train"] = np.array([Evil()], dtype=object)
    elif damage == "keys":
        del arrays["y_test"]
    elif damage == "labels":
        arrays["y_train"][3] = 10
    elif damage == "shape":
        arrays["y_train"] = arrays["y_train"][:-1]
    np.savez(path, **arrays)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif damage == "text":
        path.write_text("not an archive")
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(InvalidValue, match=r"mnist\.npz"):
        load_task("mnist")


@pytest.mark.parametrize("damage", ["cut", "missing", "archive"])
def test_a_damaged_cifar_file_is_named(damage, tmp_path, monkeypatch):
    if damage == "archive":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b nothing")
    else:
        cifar_files(tmp_path, color_arrays())
        path = tmp_path / "data_batch_3.bin"
        path.write_bytes(path.read_bytes()[:-1]) if damage == "cut" else path.unlink()
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(InvalidValue, match="data_batch_3" if damage != "archive" else "cifar-10-binary"):
        load_task("cifar10")


# -- downloads --------------------------------------------------------------------------------------------------------


def test_without_network_the_error_names_the_cure():
    with pytest.raises(HomeostatError, match=r"Set HOMEOSTAT_DATA to a folder that holds mnist\.npz") as caught:
        load_task("mnist")
    assert "no route to https://ossci-datasets" in str(caught.value)
    assert "no route to https://storage.googleapis.com" in str(caught.value)  # the second mirror was tried


def test_a_set_that_is_not_in_the_data_folder_is_downloaded_and_the_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path))
    with pytest.raises(HomeostatError, match=f"not in HOMEOSTAT_DATA='{tmp_path}' either"):
        load_task("cifar10")
    monkeypatch.setenv("HOMEOSTAT_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InvalidValue, match="name a folder that exists"):
        load_task("mnist")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_downloads_are_asked_for_with_a_sha256_and_kept_in_the_cache(name, tmp_path, monkeypatch):
    asked = []

    def retrieve(url, *, known_hash, path, fname):
        asked.append(known_hash)
        assert path.is_relative_to(tmp_path / "cache")
        path.mkdir(parents=True, exist_ok=True)
        if name == "cifar10":
            cifar_files(tmp_path / "made", color_arrays())
            with tarfile.open(path / fname, "w:gz") as archive:
                archive.add(tmp_path / "made", "cifar-10-batches-bin")
        else:
            idx_files(path, gray_arrays(), zipped=True)
        return str(path / fname)

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    check(load_task(name), (3, 32, 32) if name == "cifar10" else (1, 28, 28))
    assert len(asked) == (1 if name == "cifar10" else 4)
    assert all(known.startswith("sha256:") and len(known) == 71 for known in asked)


# -- what is not a task -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("mnits", "Did you mean 'mnist'"),
        ("Digits", "Did you mean 'digits'"),
        ("", "unknown task"),
        ("no_such_table.csv", "a file or folder that exists"),
        ("folder/task.py:build", "write folder.task:build"),
        ("task.py", "write task:function"),
    ],
)
def test_an_unknown_spec_gets_the_nearest_thing(spec, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidValue) as caught:
        load_task(spec)
    assert says in str(caught.value)


def test_a_misspelled_file_gets_the_nearest_one_and_an_unknown_kind_the_known_ones(tmp_path):
    (tmp_path / "houses.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InvalidValue, match=r"Did you mean .*houses\.csv"):
        load_task(tmp_path / "house.csv", target="b")
    with zipfile.ZipFile(tmp_path / "houses.xlsx", "w"):
        pass
    with pytest.raises(InvalidValue, match=r"end in one of \.csv"):
        load_task(tmp_path / "houses.xlsx", target="b")


def test_a_target_is_for_tables_alone():
    with pytest.raises(InvalidValue, match=r"be given for a table only, but got 'price'\. 'digits' is not a table"):
        load_task("digits", target="price")
