"""Tasks on disk: arrays as .npy files and a task.json, which worker processes open memory-mapped.

A task lies in a folder named by its fingerprint under the user's cache folder. It is written under a temporary name and
renamed, so that a folder that bears a fingerprint is whole. Nothing is pickled. Nothing is random.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from homeostat.errors import HomeostatError, invalid
from homeostat.training.sources import Source, TensorSource
from homeostat.training.standardize import Standardization
from homeostat.training.task import Task

_VERSION = 1
_PREFIX = ".writing-"
_SPLITS = ("train", "valid", "test")


def cache_folder() -> Path:
    """The folder for downloads and stored tasks: HOMEOSTAT_CACHE, else the user's cache folder of the system."""
    text = os.environ.get("HOMEOSTAT_CACHE", "")
    return Path(text).expanduser() if text else Path(platformdirs.user_cache_dir("homeostat"))


def storable(task: Task) -> bool:
    """Whether a task can be stored: its splits are tensors, and loss, metric and model are names, not code."""
    named = task.model is None and isinstance(task.loss, str) and isinstance(task.metric, str)
    return named and all(_plain(split) for split in task.data)


def store_task(task: Task, root: Path | None = None) -> Path:
    """Write a task to disk, unless it is there already.

    Args:
        task: a task for which `storable` is true.
        root: the folder that holds stored tasks; None: `cache_folder() / "tasks"`.
    Returns: the folder to give to `open_task`.
    Raises: InvalidValue if the task is not storable; HomeostatError if the folder cannot be written.
    """
    if not storable(task):
        cure = "Datasets, DataLoaders, models and functions are code; load such a task again in each process."
        raise invalid("store_task", "task", "consist of tensors and names", task.name, cure)
    return _placed(task.fingerprint, lambda folder: _write(task, folder), root)


def task_files(folder: Path) -> dict[str, np.ndarray]:
    """The files of a stored task by name, each as its bytes, for a machine that does not share this one's disk."""
    return {path.name: np.fromfile(path, dtype=np.uint8) for path in sorted(folder.iterdir())}


def receive_task(fingerprint: str, fetch: Callable[[], Mapping[str, np.ndarray]], root: Path | None = None) -> Path:
    """Store a task here whose files another machine has, unless it is here already.

    Args:
        fingerprint: the task's.
        fetch: gets what `task_files` returned there; only called where the task is missing.
        root: as for `store_task`.
    Returns: the folder to give to `open_task`.
    Raises: HomeostatError if the folder cannot be written, or what comes is no whole task.
    """

    def write(folder: Path) -> None:
        for name, content in fetch().items():
            content.tofile(folder / Path(name).name)

    folder = _placed(fingerprint, write, root)
    open_task(folder)
    return folder


def open_task(folder: Path | str) -> Task:
    """The task stored in `folder`, its arrays memory-mapped: processes share the pages, and opening reads little.

    Raises: HomeostatError if the folder holds no task, a damaged one, or one of another version.
    """
    folder = Path(folder)
    try:
        held = json.loads((folder / "task.json").read_text(encoding="utf-8"))
        if held["version"] != _VERSION:
            raise ValueError(f"version {held['version']}, but this is version {_VERSION}")
        splits = [_opened(folder, split) for split in _SPLITS]
        settings = held["settings"]
        constants = settings.pop("standardize")
        task = Task(
            data=splits,
            standardize=Standardization(tuple(constants["mean"]), tuple(constants["deviation"]))
            if constants
            else False,
            target_unit=tuple(settings.pop("target_unit"))
            if settings.get("target_unit")
            else settings.pop("target_unit"),
            **settings,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HomeostatError(
            f"open_task: {folder} holds no whole task ({error}). Delete it; it is made anew."
        ) from error
    task.__dict__["fingerprint"] = folder.name
    return task


def _placed(fingerprint: str, write: Callable[[Path], None], root: Path | None) -> Path:
    """The folder of that fingerprint, written under another name and renamed unless it is there and whole."""
    root = root or cache_folder() / "tasks"
    folder = root / fingerprint
    if _whole(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        written = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    except OSError as error:
        raise HomeostatError(
            f"store_task: {root} cannot be written ({error}). Set HOMEOSTAT_CACHE to a folder that can."
        ) from error
    try:
        write(written)
        if folder.exists():  # damaged: it was not whole
            shutil.rmtree(folder)
        written.rename(folder)
    except OSError as error:
        if not _whole(folder):  # another process may have finished the same folder meanwhile
            cure = "Free some space, or set HOMEOSTAT_CACHE to another folder."
            raise HomeostatError(f"store_task: {folder} cannot be written ({error}). {cure}") from error
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return folder


def _write(task: Task, folder: Path) -> None:
    constants = task.standardization
    settings: dict[str, Any] = {
        "loss": task.loss,
        "metric": task.metric,
        "goal": task.goal,
        "name": task.name,
        "classes": list(task.classes) if isinstance(task.classes, (list, tuple)) else task.classes,
        "target_unit": task.target_unit,
        "default_model": task.default_model,
        "seed": task.seed,
        "description": dict(task.description),
        "standardize": constants.to_dict() if constants else None,
    }
    for name, split in zip(_SPLITS, task.data, strict=True):
        x, y = split.x, split.y
        np.save(folder / f"{name}_x.npy", (x.permute(0, 2, 3, 1) if x.ndim == 4 else x).cpu().numpy())
        np.save(folder / f"{name}_y.npy", y.cpu().numpy())
    text = json.dumps({"version": _VERSION, "settings": settings}, indent=1)
    (folder / "task.json").write_text(text, encoding="utf-8")  # last: its presence says that the arrays are there


def _plain(split: Source) -> bool:
    """Tensors of a type that NumPy has too."""
    return isinstance(split, TensorSource) and torch.bfloat16 not in (split.x.dtype, split.y.dtype)


def _sweep(root: Path) -> None:
    """Remove what writers that were killed have left, once it is a day old."""
    for left in root.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 86_400:
                shutil.rmtree(left, ignore_errors=True)


def _opened(folder: Path, split: str) -> TensorSource:
    # mode "c" maps the file privately: pages are shared until written to, and torch gets a writable array
    x = torch.from_numpy(np.load(folder / f"{split}_x.npy", mmap_mode="c", allow_pickle=False))
    y = torch.from_numpy(np.load(folder / f"{split}_y.npy", allow_pickle=False))
    return TensorSource(x.permute(0, 3, 1, 2) if x.ndim == 4 else x, y)


def _whole(folder: Path) -> bool:
    try:
        open_task(folder)
    except HomeostatError:
        return False
    return True
