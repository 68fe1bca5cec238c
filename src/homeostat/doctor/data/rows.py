"""Rows that occur twice: in both splits, in one, with different labels; and the order in which examples are stored.

Exact equality of inputs, found by hashing. Not random but for the sample.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.parts.layers import tensors_in

_MOST_HASHED = 1 << 28  # bytes per split; hashing takes about a second per gigabyte
_SMALL_SPACE = 10.0  # possible inputs per training example, below which equal examples are to be expected
_FEW_VALUES = 64  # of a column, for the possible inputs to be counted


@dataclass(frozen=True)
class Overlap:
    """Equal inputs within and across the splits."""

    train_rows: int
    valid_rows: int
    shared: float
    """The share of validation examples whose inputs occur in training too."""
    natural: float
    """The share of training examples whose inputs occur in training twice: so many would be shared by chance."""
    coverage: float
    """The share of the training split that was looked at; `shared` may be larger by this factor."""
    identical: bool
    """Whether both splits are the same examples."""
    small_space: bool
    """Whether there are so few possible inputs that equal ones say nothing."""
    contradicting: float = 0.0
    """The share of training examples whose inputs occur again in training with another label; nan for values."""

    @property
    def excess(self) -> float:
        """The share of validation examples that is in training beyond what chance would give."""
        return max(0.0, self.shared - self.natural)

    @property
    def error(self) -> float:
        """The standard error of `excess`."""
        spread = self.shared * (1 - self.shared) / max(1, self.valid_rows)
        return math.sqrt(spread + self.natural * (1 - self.natural) / max(1, self.train_rows))


@dataclass(frozen=True)
class Order:
    """How much stored neighbors are alike, in what the batches of an unshuffled training would be."""

    batches: int
    alike: float
    """The intraclass correlation of the targets within batches: 0 for a random order, 1 where a batch is all alike."""
    z: float
    """The same in standard errors of a random order."""


def find_overlap(train: Examples, valid: Examples, score: Score) -> Overlap:
    """Equal inputs within training, and in both splits."""
    first, second = _hashes(train), _hashes(valid)
    counts = Counter(first)
    shared = [h in counts for h in second]
    whole = len(train) if train.total is None else max(train.total, len(train))
    return Overlap(
        train_rows=len(first),
        valid_rows=len(second),
        shared=float(np.mean(shared)),
        natural=sum(count for count in counts.values() if count > 1) / len(first),
        coverage=len(first) / whole,
        identical=counts == Counter(second),
        small_space=_is_small_space(train, len(counts)),
        contradicting=_contradicting(first, train, score),
    )


def rows_in_both(train: Examples, valid: Examples) -> Tensor:
    """Which validation examples have inputs that occur in training: a boolean tensor (len(valid),).

    Examples:
        >>> train = Examples(torch.tensor([[1.0], [2.0]]), torch.zeros(2), 2)
        >>> rows_in_both(train, Examples(torch.tensor([[2.0], [3.0]]), torch.zeros(2), 2))
        tensor([ True, False])
    """
    known = set(_hashes(train, most=sys.maxsize))
    return torch.tensor([h in known for h in _hashes(valid, most=sys.maxsize)])


def stored_order(train: Examples, score: Score, batch_size: int) -> Order | None:
    """How much the targets of consecutive examples are alike; None for fewer than three batches, or constant targets.

    The intraclass correlation of a one-way analysis of variance, with the batches as groups (Fisher 1925).
    """
    values = _target_columns(train, score)
    size = max(2, batch_size)  # batches of one have no within; neighbors tell as much
    count = len(values) // size if values is not None else 0
    if values is None or count < 3:
        return None
    groups = values[: count * size].reshape(count, size, -1)
    within = float(((groups - groups.mean(1, keepdims=True)) ** 2).sum() / (count * (size - 1)))
    between = float(size * ((groups.mean(1) - groups.mean((0, 1))) ** 2).sum() / (count - 1))
    if within + between <= 0:
        return None
    alike = (between - within) / (between + (size - 1) * within)
    # under a random order F = between / within has a variance of about 2 / (groups - 1) for each free column
    columns = max(1, groups.shape[2] - 1)
    z = (between / max(within, 1e-12) - 1) / math.sqrt(2 / (count - 1) / columns)
    return Order(count, alike, z)


def _target_columns(train: Examples, score: Score) -> np.ndarray | None:
    labels = score.labels(train.targets).cpu().numpy() if score.kind != "other" else train.targets.cpu().numpy()
    if score.kind in ("multiclass", "binary") and labels.ndim == 1:
        present, numbers = np.unique(labels, return_inverse=True)
        return np.eye(len(present))[numbers] if len(present) <= 1000 else None
    values = labels.reshape(len(labels), -1)[:, :64].astype(float)
    if not np.isfinite(values).all():
        return None
    spread = values.std(0)
    return (values / np.where(spread > 0, spread, 1.0))[:, spread > 0]


def _hashes(examples: Examples, most: int = _MOST_HASHED) -> list[bytes]:
    """A digest of each example's inputs, of the first so many that make `most` bytes; -0.0 counts as 0.0."""
    tensors = [tensor.detach() for tensor in tensors_in(examples.inputs)]
    width = max(1, sum(tensor[:1].nbytes for tensor in tensors))
    rows = min(len(examples), max(1, most // width))
    parts = [_bytes(tensor[:rows]) for tensor in tensors]
    if sum(part.shape[1] for part in parts) <= 16:  # short rows are their own digest
        return [b"".join(row) for row in zip(*(map(bytes, part) for part in parts), strict=True)]
    found = []
    for row in range(rows):
        digest = hashlib.blake2b(digest_size=16)
        for part in parts:
            digest.update(part[row].data)
        found.append(digest.digest())
    return found


def _bytes(tensor: Tensor) -> np.ndarray:
    values = tensor.cpu()
    if values.is_floating_point():
        values = values.float() + 0.0
    flat = values.reshape(len(values), -1).contiguous()
    return np.ascontiguousarray(flat.view(torch.uint8).numpy() if flat.shape[1] else np.zeros((len(flat), 1), np.uint8))


def _is_small_space(train: Examples, distinct: int) -> bool:
    """Whether there are few inputs that could occur: products of the numbers of values of discrete columns."""
    inputs = train.only_tensor()
    if inputs is None or inputs.numel() == 0:
        return False
    table = inputs.detach().reshape(len(inputs), -1)
    if table.shape[1] > _FEW_VALUES:
        return False
    possible = 1.0
    for column in table.T:
        values = len(torch.unique(column))
        if values > _FEW_VALUES:
            return False
        possible *= values
    return possible <= _SMALL_SPACE * max(distinct, 1)


def _contradicting(hashes: list[bytes], train: Examples, score: Score) -> float:
    if score.kind in ("regression", "other"):
        return math.nan
    labels = score.labels(train.targets[: len(hashes)]).cpu().numpy()
    labels = labels.reshape(len(labels), -1)
    first: dict[bytes, np.ndarray] = {}
    broken: set[bytes] = set()
    for key, label in zip(hashes, labels, strict=True):
        known = first.setdefault(key, label)
        if known is not label and bool(((known != label) & (known >= 0) & (label >= 0)).any()):
            broken.add(key)
    return sum(key in broken for key in hashes) / len(hashes)
