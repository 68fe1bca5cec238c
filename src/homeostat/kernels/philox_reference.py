"""Philox4x32-10 in plain torch: the truth that every backend's draws are tested against.

A draw has a place: the stream (key and number), the example and the position within the example. Example n and
position e find their word at counter (e mod 2^32, e div 2^32, n div 4, stream), word n mod 4. So four examples share a
counter, and neighbors in memory, along positions or along channels, need no word of one another's: any layout is
vectorized alike, and a batch may be cut anywhere.
Source: Salmon et al. 2011, doi:10.1145/2063384.2063405.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LOW = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def philox(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """The four words of each counter under one key.

    Args:
        c0, c1, c2, c3: the counter's words, int64 tensors that broadcast or integers, in [0, 2**32).
        k0, k1: the key's words.
    Returns: four words, int64 in [0, 2**32).
    """
    for turn in range(10):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ (k0 + turn * _W0 & LOW), low1, high0 ^ c3 ^ (k1 + turn * _W1 & LOW), low0
    return c0, c1, c2, c3


def words(seed: Tensor, examples: int, positions: int, example: int = 0, position: int = 0) -> Tensor:
    """The draws of a block of places: int64 in [0, 2**32), shape (examples, positions), on the CPU.

    Args:
        seed: int64 of shape (2,): the key and the stream's number.
        example, position: where the block begins.
    """
    key, stream = (int(value) for value in seed.tolist())
    e = torch.arange(position, position + positions, device="cpu")
    first = example // 4
    n = torch.arange(first, -(-(example + examples) // 4), device="cpu")[:, None]
    four = philox(e & LOW, e >> 32, n, stream & LOW, key & LOW, key >> 32 & LOW)
    blocks = torch.stack([word.expand(len(n), positions) for word in four], 1).flatten(0, 1)
    return blocks[example - 4 * first :][:examples]


def _multiply(a: int, b: Any) -> tuple[Any, Any]:
    """The upper and lower word of a 32 by 32 bit product, without ever passing 2**63."""
    low = a * (b & 0xFFFF)
    middle = a * (b >> 16) + (low >> 16)
    return middle >> 16, (middle & 0xFFFF) << 16 | low & 0xFFFF
