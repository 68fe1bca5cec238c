"""What comes into early stopping and goes out of it: numbers of any kind, directions, states for JSON. Not random."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown

Number = float | Tensor
"""A number, a numpy scalar, or a tensor of one element on any device."""

State = dict[str, Any]

MODES = ("min", "max", "auto")

_GROWING = ("acc", "auc", "f1", "precision", "recall", "score", "r2", "iou", "dice", "bleu")
_SHRINKING = (
    *("loss", "err", "mse", "mae", "rmse", "perplexity", "nll", "hinge", "entropy"),
    *("brier", "fid", "cost", "distance", "divergence"),
)


def as_number(where: str, argument: str, value: object) -> float:
    """A number, numpy scalar or tensor of one element as a float; an error in `where`'s name for anything else."""
    item = getattr(value, "item", None)
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(item() if callable(item) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise invalid_type(where, argument, "be a number or a tensor of one element", value) from None


def as_numbers(where: str, value: Number | Iterable[Number]) -> list[float]:
    """One number or several as a list of floats."""
    if isinstance(value, Tensor) and value.ndim:
        value = value.detach().reshape(-1).tolist()
    if isinstance(value, Iterable) and not (isinstance(value, Tensor | str | bytes) or getattr(value, "ndim", 1) == 0):
        return [as_number(where, "train_loss", loss) for loss in value]
    return [as_number(where, "train_loss", value)]


def to_json(state: Mapping[str, Any]) -> State:
    """The state with numbers that JSON does not know written as text."""

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(entry) for entry in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in state.items()}


def from_json(state: Mapping[str, Any]) -> State:
    """The inverse of `to_json`."""

    def number(value: Any) -> Any:
        if isinstance(value, list):
            return [number(entry) for entry in value]
        return float(value) if isinstance(value, str) else value

    return {name: number(value) for name, value in state.items()}


def direction(where: str, monitor: str, mode: str | None) -> str:
    """min or max; auto tells from the value's name, and is an error in `where`'s name where that does not tell.

    None tells from the name as well, and is min where that does not tell.

    Example:
        >>> direction("EarlyStopping", "val_loss", "auto"), direction("EarlyStopping", "val_accuracy", None)
        ('min', 'max')
    """
    if mode is not None and mode not in MODES:
        raise unknown(where, "mode", mode, MODES)
    if mode is not None and mode != "auto":
        return mode
    shrinks, grows = (any(word in monitor.lower() for word in words) for words in (_SHRINKING, _GROWING))
    if shrinks == grows and mode is None:
        return "min"
    if shrinks == grows:
        raise invalid(where, "mode", "be min or max where the name does not tell", monitor)
    return "min" if shrinks else "max"
