"""Tasks by name, by file and by function: `load_task` is the one door, for the command line and for Python.

Here are the data that need no file: digits, spirals and curve. Downloads, tables, folders of images and user functions
have their own modules, imported when they are asked for. Random only in the data seed: a split or a synthetic sample.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from homeostat import seeds
from homeostat.errors import InvalidValue, invalid, unknown
from homeostat.training.splits import stratified_split
from homeostat.training.task import Task

TABLE_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet", ".pq")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def load_task(spec: str | os.PathLike[str], *, target: str | None = None, seed: int = 0) -> Task:
    """The task that `spec` names.

    Args:
        spec: a name (digits, spirals, curve, mnist, fashion-mnist, cifar10); a table (.csv, .tsv, .parquet), with
            `target`; a folder of images, one subfolder per class; or "package.module:function", a function of your own
            that returns a Task, imported from the current folder or from what is installed. A name comes before a
            folder of that name: write ./digits for a folder called digits.
        target: the column of a table that is to be predicted.
        seed: the data seed: it decides splits that are not given, and the sample of a synthetic task.
    Raises: InvalidValue naming what is wrong and the nearest thing that exists.
    Example:
        >>> task = load_task("digits")
        >>> len(task.train), len(task.valid), len(task.test), task.input_shape, task.outputs
        (1078, 360, 359, (1, 8, 8), 10)
    """
    text = os.fspath(spec)
    path = Path(text).expanduser()
    if text in TASKS:
        found, loader = text, TASKS[text]
    elif text and path.is_dir():
        from homeostat.training.images import image_folder

        found, loader = text, lambda seed: image_folder(path, seed=seed)
    elif text.partition(":")[0].endswith(".py"):
        raise _file_of_code(text)
    elif path.is_file() or (_looks_like_file(text) and not _FUNCTION.fullmatch(text)):
        return _table(path, target, seed)
    elif _FUNCTION.fullmatch(text):
        from homeostat.training.user import user_task

        found, loader = text, lambda seed: user_task(text, seed=seed)
    else:
        raise _unknown_task(text)
    if target is not None:
        raise invalid("load_task", "target", "be given for a table only", target, f"{found!r} is not a table.")
    return loader(seed)


def digits(seed: int = 0) -> Task:
    """Handwritten digits, 1,797 images of 8×8 pixels, ten classes; embedded in scikit-learn, there in 0..16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy((bunch.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    y = torch.from_numpy(bunch.target.astype(np.int64))
    parts = stratified_split(bunch.target, seed=seed, where="digits")
    return Task(
        data=tuple((x[part], y[part]) for part in map(torch.from_numpy, parts)),
        name="digits",
        classes=[str(digit) for digit in range(10)],
        default_model="mlp",
        seed=seed,
        description=_origin("scikit-learn's load_digits (UCI optdigits)", "60/20/20 %, stratified", seed),
    )


def spirals(seed: int = 0) -> Task:
    """Three interleaved spirals in the plane, 300 noisy points each: a small task that a linear model cannot solve."""
    generator = seeds.numpy_generator(seed, "data", "spirals")
    arm = np.repeat(np.arange(3), 300)
    radius = np.sqrt(generator.uniform(0.02, 1.0, arm.size))
    angle = 2 * np.pi * (arm / 3 + 1.5 * radius)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1) + generator.normal(0, 0.055, (arm.size, 2))
    x, y = torch.from_numpy(points.astype(np.float32)), torch.from_numpy(arm)
    parts = stratified_split(arm, seed=seed, where="spirals")
    return Task(
        data=tuple((x[part], y[part]) for part in map(torch.from_numpy, parts)),
        name="spirals",
        classes=["first arm", "second arm", "third arm"],
        seed=seed,
        description=_origin("synthetic: three spirals of 1.5 turns with noise 0.055", "60/20/20 %, stratified", seed),
    )


def curve(seed: int = 0) -> Task:
    """The small regression on which a large network overfits: 20 noisy points of sin(3x) on [-1, 1].

    Validation and test have 200 points each with the same noise (deviation 0.3), so that a metric of 0.3 is the best
    that can be reached on them; a network that passes through the 20 points stays above it.
    """
    generator = seeds.numpy_generator(seed, "data", "curve")

    def sample(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = np.sort(generator.uniform(-1, 1, (count, 1)), axis=0)
        y = np.sin(3 * x) + generator.normal(0, 0.3, (count, 1))
        return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y[:, 0].astype(np.float32))

    return Task(
        data=(sample(20), sample(200), sample(200)),
        loss="mse",
        name="curve",
        seed=seed,
        description=_origin("synthetic: sin(3x) + noise 0.3", "20/200/200 points, drawn anew", seed),
    )


def _downloaded(name: str) -> Callable[[int], Task]:
    def load(seed: int = 0) -> Task:
        from homeostat.training.downloads import downloaded_task

        return downloaded_task(name, seed=seed)

    return load


TASKS: dict[str, Callable[[int], Task]] = {
    "digits": digits,
    "spirals": spirals,
    "curve": curve,
    **{name: _downloaded(name) for name in ("mnist", "fashion-mnist", "cifar10")},
}


def _origin(source: str, split: str, seed: int) -> dict[str, object]:
    return {"source": source, "split": f"{split}, seed {seed}", "seed": seed}


def _looks_like_file(text: str) -> bool:
    return text.lower().endswith(TABLE_SUFFIXES) or os.sep in text or "/" in text


def _file_of_code(text: str) -> InvalidValue:
    """The error for my_project/task.py, with or without :function, where my_project.task:function is meant."""
    file, _, function = text.partition(":")
    module = file.removesuffix(".py").strip("./\\").replace("/", ".").replace("\\", ".")
    cure = f"For a task of your own write {module}:{function or 'function'}."
    return invalid("load_task", "spec", "be a name, a table, a folder or package.module:function", text, cure)


def _table(path: Path, target: str | None, seed: int) -> Task:
    if not path.exists():
        nearby = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, nearby, n=1)
        cure = f"Did you mean {str(path.parent / close[0])!r}?" if close else "Check the path and the current folder."
        raise invalid("load_task", "spec", "be a file or folder that exists", str(path), cure)
    if not path.name.lower().endswith(TABLE_SUFFIXES):
        raise invalid("load_task", "spec", f"end in one of {', '.join(TABLE_SUFFIXES)}", str(path), "")
    from homeostat.training.tables import table_task

    return table_task(path, target, seed=seed)


def _unknown_task(text: str) -> InvalidValue:
    error = unknown("load_task", "task", text, TASKS)
    also = "Or a table (.csv, .tsv, .parquet), a folder of images, or package.module:function."
    return InvalidValue(f"{error} {also}")
