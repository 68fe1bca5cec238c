"""A folder of images becomes a task of one size and color; files that are no pictures are listed in one error."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from homeostat.errors import InvalidValue
from homeostat.training.datasets import load_task


def picture(path, size=(12, 10), color=(200, 30, 90), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, color).convert(mode)
    image.save(path, **options)
    return path


def folder(root, classes=("cat", "dog"), count=10, **options):
    """`count` pictures per class; the red of class n is 50 n, so that pictures and labels can be matched."""
    for number, name in enumerate(classes):
        for index in range(count):
            picture(root / name / f"{index}.png", color=(50 * number, 100, 200), **options)
    return root


def test_classes_are_subfolders_and_pixels_are_kept(tmp_path):
    task = load_task(folder(tmp_path / "pets", ("dog", "cat", "emu")))
    assert (task.name, task.kind, task.default_model, task.outputs) == ("pets", "image", "cnn", 3)
    assert task.description["classes"] == ["cat", "dog", "emu"]
    assert [len(split) for split in (task.train, task.valid, task.test)] == [18, 6, 6]
    assert task.input_shape == (3, 10, 12)
    for split in (task.train, task.valid, task.test):
        assert split.x.dtype == torch.uint8
        red = torch.tensor([50, 0, 100])  # dog came first, so cat is 50
        assert torch.equal(split.x[:, 0, 4, 4].long(), red[split.y])
        assert (split.x[:, 2] == 200).all()
    assert load_task(tmp_path / "pets").fingerprint == task.fingerprint
    assert load_task(tmp_path / "pets", seed=1).description["seed"] == 1


def test_gray_only_if_all_are_gray(tmp_path):
    root = folder(tmp_path / "gray", mode="L")
    assert load_task(root).input_shape == (1, 10, 12)
    picture(root / "cat" / "color.png")
    task = load_task(root)
    assert task.input_shape == (3, 10, 12)
    assert task.description["color"] == "RGB"


def test_the_most_frequent_size_wins_and_others_are_cropped_to_it_undistorted(tmp_path):
    root = folder(tmp_path / "mixed")
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 26:54] = 255  # the middle 24 columns are what is left of 80 × 20 at 12 × 10
    Image.fromarray(wide).save(root / "cat" / "wide.png")
    picture(root / "dog" / "double.png", size=(24, 20))
    task = load_task(root)
    assert task.description["height_width"] == [10, 12]
    assert (task.description["resized"], task.description["cropped"]) == (2, 1)
    everything = torch.cat([split.x for split in (task.train, task.valid, task.test)])
    white = (everything.float().mean((1, 2, 3)) > 254).sum()
    assert white == 1


def test_large_pictures_are_made_at_most_64_pixels_long(tmp_path):
    root = folder(tmp_path / "large", size=(400, 300))
    task = load_task(root)
    assert task.input_shape == (3, 48, 64)
    assert (task.description["resized"], task.description["cropped"]) == (20, 0)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("P", "png"), ("RGBA", "png"), ("1", "png"), ("L", "jpg"), ("CMYK", "jpg")]
)
def test_any_color_mode_is_read(mode, suffix, tmp_path):
    root = folder(tmp_path / "modes")
    picture(root / "cat" / f"odd.{suffix}", mode=mode)
    assert load_task(root).description["pictures"] == 21


def test_sixteen_bits_keep_their_range(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.fromarray(np.full((8, 8), 256 * (40 * index + 7), np.uint16)).save(tmp_path / name / f"{index}.png")
    task = load_task(tmp_path)
    values = torch.cat([split.x.flatten(1)[:, 0] for split in (task.train, task.valid, task.test)])
    assert sorted(set(values.tolist())) == [7, 47, 87, 127, 167]


def test_the_orientation_that_a_camera_notes_is_applied(tmp_path):
    root = folder(tmp_path / "camera", count=4, size=(10, 20))
    image = Image.new("RGB", (20, 10), (9, 9, 9))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(root / "cat" / "turned.jpg", exif=exif)
    task = load_task(root)
    assert task.input_shape == (3, 20, 10)
    assert task.description["resized"] == 0


def test_hidden_files_links_and_other_files_are_left_out(tmp_path):
    root = folder(tmp_path / "tidy")
    (root / ".cache").mkdir()
    (root / "cat" / ".DS_Store").write_bytes(b"x")
    (root / "cat" / "._0.png").write_bytes(b"x")
    (root / "cat" / "notes.txt").write_text("good cats")
    os.symlink(root, root / "cat" / "loop")
    os.symlink(root, root / "loop")
    picture(root / "cat" / "deeper" / "more.png")
    task = load_task(root)
    assert task.description["pictures"] == 21
    assert task.description["classes"] == ["cat", "dog"]
    assert task.description["left_out"] == {".txt": 1}


@pytest.mark.parametrize(
    ("splits", "sizes"),
    [(("train", "valid", "test"), [20, 8, 8]), (("train", "val"), [16, 8, 4]), (("train", "test"), [16, 4, 8])],
)
def test_folders_for_the_splits_are_taken_as_they_are(splits, sizes, tmp_path):
    for split in splits:
        folder(tmp_path / split, count=10 if split == "train" else 4)
    task = load_task(tmp_path)
    assert [len(split) for split in (task.train, task.valid, task.test)] == sizes
    assert "train/" in task.description["split"]
    assert (len(splits) == 3) == ("stratified" not in task.description["split"])


def test_a_class_that_training_lacks_is_named(tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", ("cat", "fox"))
    with pytest.raises(InvalidValue, match=r"among those of training, \['cat', 'dog'\], but got 'fox'"):
        load_task(tmp_path)


def spoiled(root):
    """A folder with every kind of file that is no picture, and one good class."""
    folder(root)
    good = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "cat" / "page.png").write_text("<!DOCTYPE html><html>404</html>")
    (root / "dog" / "text.jpg").write_text("hello")
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).save(buffer, "PNG")
    (root / "dog" / "cut.png").write_bytes(buffer.getvalue()[:1500])
    (root / "dog" / "head.png").write_bytes(good[:20])
    return root


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_that_is_called_like_a_picture_is_not_waited_for(tmp_path):
    folder(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(InvalidValue, match=r"pipe.png \(not a file\)"):
        load_task(tmp_path)


def test_files_that_are_no_pictures_are_listed_with_the_reason(tmp_path):
    with pytest.raises(InvalidValue) as caught:
        load_task(spoiled(tmp_path / "spoiled"))
    told = str(caught.value)
    assert "5 of the picture files" in told
    assert os.path.join("cat", "empty.png") + " (0 bytes)" in told
    assert os.path.join("cat", "page.png") + " (a web page, not a picture)" in told
    assert os.path.join("dog", "text.jpg") + " (not a picture)" in told
    assert os.path.join("dog", "cut.png") in told
    assert os.path.join("dog", "head.png") in told


def test_many_bad_files_are_counted(tmp_path):
    root = folder(tmp_path / "bad")
    for index in range(12):
        (root / "dog" / f"x{index:02}.png").write_bytes(b"")
    with pytest.raises(InvalidValue, match=r"12 of the picture files .* and 7 more"):
        load_task(root)


def test_a_picture_that_would_fill_the_memory_is_refused_undecoded(tmp_path, monkeypatch):
    root = folder(tmp_path / "bomb")
    picture(root / "cat" / "bomb.png", size=(60, 60))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidValue, match=r"bomb\.png \(more than 1000 pixels\)"):
        load_task(root)


def test_folders_without_classes_are_refused(tmp_path):
    picture(tmp_path / "flat" / "1.png")
    with pytest.raises(InvalidValue, match=r"0 subfolders .* flat/cat/1\.png"):
        load_task(tmp_path / "flat")
    with pytest.raises(InvalidValue, match="1 subfolders"):
        load_task(folder(tmp_path / "one", ("cat",)))
    root = folder(tmp_path / "hollow")
    (root / "emu").mkdir()
    with pytest.raises(InvalidValue, match="class folder 'emu' must hold pictures"):
        load_task(root)


def test_a_class_with_one_picture_is_named(tmp_path):
    root = folder(tmp_path / "lonely")
    picture(root / "emu" / "1.png")
    with pytest.raises(InvalidValue, match="class 'emu' must have at least two examples"):
        load_task(root)


def test_everything_unreadable_is_told_too(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    with pytest.raises(InvalidValue, match="2 of the picture files"):
        load_task(tmp_path)
