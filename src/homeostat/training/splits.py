"""Seeded splits of examples into training, validation and test parts, stratified by class or plain.

Random in the choice of examples alone, through a stream of `homeostat.seeds`: the same seed gives the same split.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from homeostat import seeds
from homeostat.errors import invalid

THREE_WAY = (0.6, 0.2, 0.2)  # training, validation, test


def stratified_split(
    labels: np.ndarray,
    shares: Sequence[float] = THREE_WAY,
    *,
    seed: int = 0,
    where: str = "Task",
    names: Sequence[object] | None = None,
) -> list[np.ndarray]:
    """Split examples so that every part has the classes in nearly the same proportion.

    A class with few members goes to the first part (training) before the others: with two members, one is for training.
    Rounding is carried from class to class, so that the sizes of the parts are right to within one example.

    Args:
        labels: class numbers 0..C-1, shape (N,), integer.
        shares: the share of each part; they sum to 1.
        seed: the data seed.
        where: who asks, for errors.
        names: a name per class, for errors.
    Returns: one sorted int64 array of indices per share.
    Raises: InvalidValue if a class has one example, or a part would be empty.
    Example:
        >>> train, test = stratified_split(np.array([0, 0, 0, 0, 1, 1]), (0.5, 0.5))
        >>> len(train), len(test)
        (3, 3)
    """
    labels = np.asarray(labels)
    present, counts = np.unique(labels, return_counts=True)
    for label, count in zip(present.tolist(), counts.tolist(), strict=True):
        if count == 1:
            name = names[label] if names is not None else label
            cure = "It cannot be in training and in a test at once: add examples of it, or leave the class out."
            raise invalid(where, f"class {name!r}", "have at least two examples", 1, cure)
    generator = seeds.numpy_generator(seed, "split", "stratified")
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    carry = np.zeros(len(shares))
    for label in present:
        members = generator.permutation(np.flatnonzero(labels == label))
        quota = len(members) * np.asarray(shares, dtype=float) + carry
        sizes = _rounded(quota, len(members))
        carry = quota - sizes
        for part, piece in zip(parts, np.split(members, np.cumsum(sizes)[:-1]), strict=True):
            part.append(piece)
    return _checked([np.sort(np.concatenate(part)) for part in parts], where)


def plain_split(
    count: int, shares: Sequence[float] = THREE_WAY, *, seed: int = 0, where: str = "Task"
) -> list[np.ndarray]:
    """Split `count` examples at random into parts of the given shares.

    Returns: one sorted int64 array of indices per share.
    Raises: InvalidValue if a part would be empty.
    Example:
        >>> [len(part) for part in plain_split(10)]
        [6, 2, 2]
    """
    order = seeds.numpy_generator(seed, "split", "plain").permutation(count)
    sizes = _rounded(count * np.asarray(shares, dtype=float), count)
    return _checked([np.sort(part) for part in np.split(order, np.cumsum(sizes)[:-1])], where)


def _rounded(quota: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers near `quota` that sum to `total`, none negative and the first at least one."""
    sizes = np.maximum(np.floor(quota + 1e-9), 0).astype(np.int64)
    sizes[0] = max(sizes[0], 1)
    while (missing := total - int(sizes.sum())) != 0:
        gap = quota - sizes
        if missing < 0:
            gap = np.where(sizes > np.eye(len(sizes), dtype=np.int64)[0], gap, np.inf)
            sizes[int(np.argmin(gap))] -= 1
        else:
            sizes[int(np.argmax(gap))] += 1
    return sizes


def _checked(parts: list[np.ndarray], where: str) -> list[np.ndarray]:
    if any(len(part) == 0 for part in parts):
        total = sum(len(part) for part in parts)
        raise invalid(where, "data", f"be enough for {len(parts)} parts", f"{total} examples", "Add examples.")
    return [part.astype(np.int64) for part in parts]
