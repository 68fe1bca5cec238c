"""A folder of images as a task: one subfolder per class, decoded once to uint8 arrays of one size.

The size is the most frequent one, made smaller, if need be, so that its longer side is at most 64 pixels. Pictures of
another shape are cropped at the center to it, so that nothing is distorted. Gray if all files are gray, else RGB.
Folders train/, valid/ (or val/) and test/ with the same classes are the splits; a missing one is split off, stratified.
Hidden files, links to folders and files that are no pictures by their suffix are left out. Random in the split alone.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import psutil
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from homeostat.errors import HomeostatError, InvalidValue, invalid
from homeostat.training.splits import stratified_split
from homeostat.training.task import Task

LONGEST_SIDE = 64  # pixels
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
_SPLITS = {"train": ("train", "training"), "valid": ("valid", "val", "validation"), "test": ("test", "testing")}
_GRAY = ("1", "L", "LA", "I;16", "I;16L", "I;16B")
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that swap width and height
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError, Image.DecompressionBombWarning)


_Bad: TypeAlias = tuple[Path, BaseException]


@dataclass(frozen=True)
class _Picture:
    """A file with its class number, and what its header says: size after its orientation is applied, and color mode."""

    path: Path
    label: int
    size: tuple[int, int] = (0, 0)
    gray: bool = False


def image_folder(root: Path, *, seed: int = 0) -> Task:
    """The task of telling the subfolders of `root` apart.

    Args:
        root: holds a folder per class, or train/, valid/ and test/ that hold these.
        seed: the data seed of splits that are not there as folders.
    Raises: InvalidValue for a folder without classes, a class with one picture, and files that are no readable pictures
        (one error that lists them).
    """
    folders = _split_folders(root)
    classes = _classes(folders.get("train", root), root)
    skipped: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # damaged EXIF and the like; what matters is whether the picture can be decoded
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        listed = {name: _listed(folder, classes, skipped) for name, folder in folders.items()}
        bad: list[_Bad] = []
        splits = {name: _examined(pictures, bad) for name, pictures in listed.items()}
        everything = [picture for pictures in splits.values() for picture in pictures]
        if not everything:
            raise _unreadable(bad, root)
        size, gray = _common_size(everything), all(picture.gray for picture in everything)
        _check_memory(len(everything), size, gray, root)
        decoded = {name: _decoded(pictures, size, gray, bad) for name, pictures in splits.items()}
    if bad:
        raise _unreadable(bad, root)
    data, split = _with_missing_splits(decoded, classes, seed)
    other = sum(picture.size != size for picture in everything)
    return Task(
        data=data,
        name=root.resolve().name or "images",
        classes=classes,
        seed=seed,
        description={
            "source": str(root),
            "split": split,
            "seed": seed,
            "pictures": len(everything),
            "height_width": [size[1], size[0]],
            "resized": other,
            "cropped": sum(not _same_shape(picture.size, size) for picture in everything),
            "color": "gray" if gray else "RGB",
            "left_out": dict(skipped),
        },
    )


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits by name; {"all": root} if classes lie directly in `root`."""
    there = {entry.name.lower(): entry for entry in _subfolders(root)}
    found = {split: there[name] for split, names in _SPLITS.items() for name in names if name in there}
    return found if "train" in found and len(found) > 1 else {"all": root}


def _subfolders(folder: Path) -> list[Path]:
    """Folders in `folder` that are neither hidden nor links: a link may lead back to where it is."""
    entries = (Path(entry.path) for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False))
    return sorted(entry for entry in entries if not entry.name.startswith((".", "__")))


def _classes(folder: Path, root: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _subfolders(folder))
    if len(names) < 2:
        shown, name = f"{len(names)} subfolders in {folder}", root.resolve().name
        cure = f"Put the pictures of each class in its own folder: {name}/cat/1.png, {name}/dog/1.png. "
        cure += "Hidden folders and links to folders do not count."
        raise invalid("load_task", "folder of images", "have a subfolder for each of at least two classes", shown, cure)
    return names


def _listed(folder: Path, classes: Sequence[str], skipped: Counter[str]) -> list[_Picture]:
    """The picture files of every class, at any depth, in the order of their names."""
    strange = [entry.name for entry in _subfolders(folder) if entry.name not in classes]
    if strange:
        raise invalid(
            "load_task", f"classes in {folder}", f"be among those of training, {list(classes)}", strange[0], ""
        )
    pictures = []
    for label, name in enumerate(classes):
        found = list(_pictures(folder / name, skipped))
        if not found and folder.name.lower() not in (*_SPLITS["valid"], *_SPLITS["test"]):
            expected = f"hold pictures ({', '.join(SUFFIXES[:4])}, ...)"
            raise invalid("load_task", f"class folder {name!r}", expected, str(folder / name), "Fill or remove it.")
        pictures += [_Picture(path, label) for path in found]
    return pictures


def _pictures(folder: Path, skipped: Counter[str]) -> Iterator[Path]:
    for place, inner, files in os.walk(folder, followlinks=False):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for name in sorted(files):
            if name.startswith("."):
                continue
            if name.lower().endswith(SUFFIXES):
                yield Path(place) / name
            else:
                skipped[Path(name).suffix or "(no suffix)"] += 1


def _examined(pictures: Sequence[_Picture], bad: list[_Bad]) -> list[_Picture]:
    """The pictures with size and color from their headers; files without a picture's header are added to `bad`."""
    known = []
    for picture in pictures:
        try:
            if not stat.S_ISREG(picture.path.stat().st_mode):  # reading a pipe would wait for ever
                raise UnidentifiedImageError
            with Image.open(picture.path) as image:
                width, height = image.size
                sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
                size = (height, width) if sideways else (width, height)
                known.append(_Picture(picture.path, picture.label, size, image.mode in _GRAY))
        except _BROKEN as error:
            bad.append((picture.path, error))
    return known


def _common_size(pictures: Sequence[_Picture]) -> tuple[int, int]:
    """(width, height): the most frequent size (the larger of equally frequent ones), scaled down to 64 pixels."""
    counts = Counter(picture.size for picture in pictures)
    width, height = max(counts, key=lambda size: (counts[size], size))
    shrink = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def _check_memory(count: int, size: tuple[int, int], gray: bool, root: Path) -> None:
    need, free = count * size[0] * size[1] * (1 if gray else 3), psutil.virtual_memory().available
    if 2 * need > free:  # the splits are copied once
        shown = f"{need / 2**30:.1f} GiB for {count} pictures in {root}"
        raise invalid("load_task", "folder of images", f"fit twice in {free / 2**30:.1f} GiB of memory", shown, "")


def _decoded(
    pictures: Sequence[_Picture], size: tuple[int, int], gray: bool, bad: list[_Bad]
) -> tuple[np.ndarray, np.ndarray]:
    """All pictures as uint8 (N, H, W, C) with their labels; files that cannot be decoded are added to `bad`."""
    x = np.empty((len(pictures), size[1], size[0], 1 if gray else 3), np.uint8)

    def decode(index: int) -> None:
        try:
            x[index] = _pixels(pictures[index].path, size, gray)
        except _BROKEN as error:
            bad.append((pictures[index].path, error))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoding releases the interpreter's lock
        list(pool.map(decode, range(len(pictures))))
    return x, np.array([picture.label for picture in pictures], dtype=np.int64)


def _pixels(path: Path, size: tuple[int, int], gray: bool) -> np.ndarray:
    mode = "L" if gray else "RGB"
    with Image.open(path) as image:
        image.draft(mode, (4 * size[0], 4 * size[1]))  # a large JPEG is decoded at a fraction of its size
        upright: Any = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
            upright = Image.fromarray((np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8))
        elif upright.mode in ("I", "F"):
            raise ValueError(f"its pixels have mode {upright.mode}, 32 bits; convert it to 8 bits")
        elif upright.mode in ("P", "PA"):
            upright = upright.convert("RGBA")
        upright = upright.convert(mode)
        if upright.size != size:
            upright = ImageOps.fit(upright, size, Image.Resampling.BILINEAR)
        return np.asarray(upright).reshape(size[1], size[0], -1)


def _unreadable(bad: list[_Bad], root: Path) -> InvalidValue:
    bad.sort(key=lambda item: item[0])
    shown = [f"{path.relative_to(root)} ({_reason(path, error)})" for path, error in bad[:5]]
    more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
    return InvalidValue(
        f"load_task: {len(bad)} of the picture files in {root} cannot be read: {', '.join(shown)}{more}. "
        "Replace or remove them."
    )


def _reason(path: Path, error: BaseException) -> str:
    """Why a file is no picture, in the user's words."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "not a file"
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as unreadable:
        return str(unreadable.strerror or unreadable)
    if not start:
        return "0 bytes"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return "a web page, not a picture"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    return "not a picture" if isinstance(error, UnidentifiedImageError) else str(error)[:80]


def _with_missing_splits(
    decoded: dict[str, tuple[np.ndarray, np.ndarray]], classes: Sequence[str], seed: int
) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], str]:
    """(train, valid, test) as tensors, and a sentence on where they come from."""
    given = [f"{name}/" for name in decoded if name != "all"]
    missing = [name for name in ("valid", "test") if name not in decoded]
    if missing:
        x, y = decoded["all"] if "all" in decoded else decoded["train"]
        shares = [1 - 0.2 * len(missing), *[0.2] * len(missing)]
        parts = stratified_split(y, shares, seed=seed, where="load_task", names=classes)
        decoded |= {name: (x[part], y[part]) for name, part in zip(["train", *missing], parts, strict=True)}
    data = []
    for name in ("train", "valid", "test"):
        x, y = decoded[name]
        if len(x) == 0:
            raise HomeostatError(f"load_task: the folder {name}/ holds no picture. Fill or remove it.")
        data.append((torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)))
    drawn = f"{' and '.join(missing)}: 20 % each, stratified, seed {seed}" if missing else ""
    folders = f"folders {', '.join(given)}" if given else ""
    return data, "; ".join(part for part in (folders, drawn) if part)


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes have the same ratio of sides, to within a pixel of the second."""
    return abs(size[0] * other[1] / size[1] - other[0]) < 1
