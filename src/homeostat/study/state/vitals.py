"""What an objective says of every step of training, as compressed blobs: one per epoch of a trial.

A blob is NumPy's .npz format, one array of float64 per name, read without pickle. Nothing here is random.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from homeostat.study.state.storage import StorageError


def pack(steps: Sequence[Mapping[str, float]]) -> bytes:
    """The steps of an epoch as a blob, NaN where a step has no value of a name; the same bytes for the same values."""
    names = dict.fromkeys(name for step in steps for name in step)
    columns: dict[str, Any] = {name: np.array([step.get(name, np.nan) for step in steps], float) for name in names}
    blob = io.BytesIO()
    np.savez_compressed(blob, **{f"_{name}": column for name, column in columns.items()})  # "file" is a name as well
    return blob.getvalue()


def unpack(blob: bytes) -> dict[str, np.ndarray]:
    """The columns of a blob.

    Raises: StorageError where it is damaged.
    """
    try:
        with np.load(io.BytesIO(blob), allow_pickle=False) as stored:
            return {name[1:]: stored[name] for name in stored.files}
    except Exception as error:  # of zipfile, zlib, struct or numpy
        raise StorageError(f"The values of an epoch's steps cannot be read: {error}.") from error


def frame(rows: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """The steps of one trial.

    Args:
        rows: (trial, treatment, seed, epoch, blob) of its epochs.
    """
    parts = []
    for trial, treatment, seed, epoch, blob in rows:
        columns = unpack(blob)
        where = {"trial": trial, "treatment": treatment, "seed": seed, "epoch": epoch}
        parts.append(pd.DataFrame({**where, "step": columns.pop("step").astype(int), **columns}))
    return pd.concat(parts, ignore_index=True)
