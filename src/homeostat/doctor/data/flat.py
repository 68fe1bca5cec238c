"""Inputs of any shape as a table, one row of numbers per example, for small models and statistics.

Numbers that are not finite become their column's mean; what has very many columns is pooled (images) or sketched.
Random in the sketch alone, by a fixed stream: the same columns always fall together.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat import seeds
from homeostat.doctor.examples import Examples
from homeostat.parts.layers import tensors_in

MOST_FEATURES = 1024
"""Columns beyond this many are pooled or sketched: small models then take tenths of a second."""
MOST_NUMBERS = 1 << 26
"""Numbers in a sample: 256 MB in single precision, 447 photographs of 3 x 224 x 224."""
_CHUNK = 1 << 22  # numbers made double precision at once
_HUGE = 1e100  # its square is still a number
_FEWEST = 64  # examples, however large
_FEW_CHANNELS = 4  # gray, gray and alpha, RGB, RGB and alpha: what tells channels from pixels


def numbers_of(examples: Examples) -> Tensor | None:
    """The inputs, if they are one tensor of quantities: floats, bytes or booleans; None for token ids and nests."""
    inputs = examples.only_tensor()
    if inputs is None or inputs.dim() == 0 or inputs.numel() == 0:
        return None
    return inputs if inputs.is_floating_point() or inputs.dtype in (torch.uint8, torch.bool) else None


def sample(examples: Examples, count: int, seed: int, *purpose: str) -> Examples:
    """At most `count` examples drawn without replacement, in stored order; fewer of very large ones."""
    width = sum(tensor[:1].numel() for tensor in tensors_in(examples.inputs))
    count = min(count, max(_FEWEST, MOST_NUMBERS // max(1, width)))
    if len(examples) <= count:
        return examples
    generator = seeds.torch_generator(seed, "doctor", "sample", *purpose)
    return examples.select(torch.randperm(len(examples), generator=generator)[:count].sort().values)


def channel_dim(shape: torch.Size | tuple[int, ...], last: bool = False) -> int:
    """Which dimension of inputs of this shape, batch first, counts kinds of quantity: columns or channels.

    Args:
        shape: at least two dimensions.
        last: True where of three dimensions the last is meant: a sequence of features.
    Example:
        >>> channel_dim((8, 3, 32, 32)), channel_dim((8, 32, 32, 3)), channel_dim((8, 5))
        (1, 3, 1)
    """
    end = len(shape) - 1
    if end <= 1:
        return end
    if end >= 3 and shape[end] <= _FEW_CHANNELS < shape[1]:
        return end
    return end if last and end == 2 else 1


def flat(inputs: Tensor, most: int = MOST_FEATURES) -> np.ndarray:
    """A table (n, columns) in double precision of inputs (n, ...), with at most `most` columns, all finite.

    Args:
        inputs: from `numbers_of`; take a sample first where there are many.
    """
    size = max(1, _CHUNK // max(1, inputs[:1].numel()))
    table = filled(np.concatenate([_rows(part, most) for part in inputs.detach().split(size)]))
    return _sketched(table, most) if table.shape[1] > most else table


def filled(table: np.ndarray) -> np.ndarray:
    """The table with the mean of its column (0 where there is none) in place of every number that is not finite."""
    bad = ~(np.abs(table) < _HUGE)
    if not bad.any():
        return table
    counts = np.maximum((~bad).sum(0), 1)
    means = np.where(bad, 0.0, table).sum(0) / counts
    return np.where(bad, means, table)


def standardized(table: np.ndarray, like: np.ndarray | None = None) -> np.ndarray:
    """Columns with mean 0 and deviation 1, measured on `like` (the table itself); constant columns become 0."""
    mean, deviation = moments(table if like is None else like)
    return np.where(deviation > 0, (table - mean) / np.where(deviation > 0, deviation, 1.0), 0.0)


def moments(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each column; the deviation of a column that is constant up to rounding is 0."""
    mean, deviation = table.mean(0), table.std(0)
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 0.0)  # 1e-7: float32's rounding


def _rows(inputs: Tensor, most: int) -> np.ndarray:
    values = inputs.to("cpu", torch.float64)
    if values.dim() == 4 and values.shape[1:].numel() > most:
        values = _pooled(values, most)
    return np.array(values.reshape(len(values), -1).numpy())


def _pooled(images: Tensor, most: int) -> Tensor:
    """Images made smaller by averaging, until all channels together have at most `most` pixels."""
    if channel_dim(images.shape) == 3:
        images = images.permute(0, 3, 1, 2)
    side = max(1, int((most / images.shape[1]) ** 0.5))
    height, width = (min(side, size) for size in images.shape[2:])
    return F.adaptive_avg_pool2d(images, (height, width))


def _sketched(table: np.ndarray, most: int) -> np.ndarray:
    """Standardized columns added up with random signs in `most` groups, which keeps angles (Charikar et al. 2002)."""
    rng = seeds.numpy_generator(0, "doctor", "sketch")
    signs = rng.choice([-1.0, 1.0], table.shape[1])
    groups = np.sort(rng.permutation(table.shape[1]) % most)
    order = rng.permutation(table.shape[1])
    starts = np.searchsorted(groups, np.arange(most))
    return np.add.reduceat((standardized(table) * signs)[:, order], starts, axis=1)
