"""Readers of the files in which image data sets are published: IDX, the CIFAR binary version, and .npz.

Every reader returns uint8 arrays and never unpickles anything. Nothing here is random.
"""

from __future__ import annotations

import gzip
import io
import itertools
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from homeostat.errors import InvalidValue, invalid

Arrays = dict[str, np.ndarray]  # x_train, y_train, x_test, y_test; images (N, H, W) or (N, H, W, C)
SPLIT_KEYS = ("x_train", "y_train", "x_test", "y_test")
_CIFAR_ROW = 1 + 3 * 32 * 32


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, plain or gzipped (LeCun's format: magic, sizes, bytes).

    Raises: InvalidValue naming the file if it is not IDX, not uint8, or cut off.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise invalid("read_idx", "file", "be a readable IDX file", str(path), _broken(error)) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != 8:
        raise invalid("read_idx", "file", "begin with the magic number of an IDX file of bytes", str(path), _broken())
    dimensions = raw[3]
    shape = tuple(np.frombuffer(raw, ">u4", dimensions, 4).tolist()) if len(raw) >= 4 + 4 * dimensions else None
    if shape is None or len(raw) != 4 + 4 * dimensions + int(np.prod(shape)):
        raise invalid("read_idx", "file", f"hold {shape} bytes", f"{path} of {len(raw)} bytes", _broken())
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def read_cifar_folder(folder: Path) -> Arrays:
    """The arrays of CIFAR-10's binary version: data_batch_1.bin to data_batch_5.bin and test_batch.bin."""
    return _cifar(lambda name: (folder / name).read_bytes(), str(folder))


def read_cifar_archive(path: Path) -> Arrays:
    """The same from cifar-10-binary.tar.gz, read inside the archive; nothing is unpacked."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(member.name).name: member for member in archive.getmembers() if member.isfile()}

            def content(name: str) -> bytes:
                file = archive.extractfile(members[name]) if name in members else None
                if file is None:
                    raise FileNotFoundError(name)
                return file.read()

            return _cifar(content, str(path))
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise invalid("read_cifar_archive", "file", "be a readable .tar.gz", str(path), _broken(error)) from error


def read_npz(path: Path) -> Arrays:
    """The arrays x_train, y_train, x_test, y_test of an .npz file.

    Pictures may also be encoded files, one after the other: x_train_jpeg (bytes) and x_train_off (N + 1 offsets).
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files if key != "class_names"}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        cure = "Arrays of Python objects are refused, because unpickling runs code. " + _broken(error)
        raise invalid("read_npz", "file", "be an .npz file of plain arrays", str(path), cure) from error
    for split in ("train", "test"):
        if f"x_{split}_jpeg" in arrays and f"x_{split}_off" in arrays:
            arrays[f"x_{split}"] = _decoded(arrays.pop(f"x_{split}_jpeg"), arrays.pop(f"x_{split}_off"), path)
    missing = [key for key in SPLIT_KEYS if key not in arrays]
    if missing:
        raise invalid(
            "read_npz", "file", f"hold {', '.join(SPLIT_KEYS)}", str(path), f"{', '.join(missing)} are missing."
        )
    return {key: arrays[key] for key in SPLIT_KEYS}


def check_images(arrays: Arrays, classes: int, where: str) -> None:
    """Raise InvalidValue unless `arrays` are uint8 images with one label in 0..classes-1 each."""
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or len(x) == 0:
            raise invalid(where, f"x_{split}", "be uint8 images (N, H, W) or (N, H, W, C)", x, "")
        if y.shape != (len(x),) or y.dtype.kind not in "ui" or int(y.min()) < 0 or int(y.max()) >= classes:
            raise invalid(where, f"y_{split}", f"be {len(x)} integers from 0 to {classes - 1}", y, "")


def _cifar(content: Callable[[str], bytes], where: str) -> Arrays:
    rows = {}
    for split, names in (
        ("train", [f"data_batch_{number}.bin" for number in range(1, 6)]),
        ("test", ["test_batch.bin"]),
    ):
        raws = []
        for name in names:
            try:
                raws.append(content(name))
            except OSError as error:
                cure = "The binary version of CIFAR-10 has data_batch_1.bin to data_batch_5.bin and test_batch.bin."
                raise invalid("cifar10", "folder", f"hold {name}", where, cure) from error
            if not raws[-1] or len(raws[-1]) % _CIFAR_ROW:
                shown = f"{name} of {len(raws[-1])} bytes in {where}"
                raise invalid("cifar10", "file", f"hold records of {_CIFAR_ROW} bytes", shown, _broken())
        rows[split] = np.frombuffer(b"".join(raws), np.uint8).reshape(-1, _CIFAR_ROW)
    arrays: Arrays = {}
    for split, row in rows.items():
        arrays[f"x_{split}"] = np.ascontiguousarray(row[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        arrays[f"y_{split}"] = row[:, 0].copy()
    return arrays


def _decoded(buffer: np.ndarray, offsets: np.ndarray, path: Path) -> np.ndarray:
    """Pictures decoded from encoded files that lie one after the other in `buffer`."""
    from PIL import Image

    raw, bounds = buffer.tobytes(), offsets.tolist()
    if len(bounds) < 2 or sorted(bounds) != bounds or bounds[0] < 0 or bounds[-1] > len(raw):
        raise invalid("read_npz", "offsets", "ascend within the encoded bytes", str(path), _broken())
    pictures = np.empty(0, np.uint8)
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        try:
            with Image.open(io.BytesIO(raw[start:stop])) as image:
                picture = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError) as error:
            raise invalid("read_npz", f"picture {index}", "be a readable image", str(path), _broken(error)) from error
        if index == 0:
            pictures = np.empty((len(bounds) - 1, *picture.shape), np.uint8)
        if picture.shape != pictures.shape[1:]:
            raise InvalidValue(f"read_npz: picture {index} of {path} has another size than the first one.")
        pictures[index] = picture
    return pictures


def _broken(error: BaseException | None = None) -> str:
    reason = f"({type(error).__name__}: {error}) " if error else ""
    return f"{reason}The file may be damaged or cut off; download it again."
