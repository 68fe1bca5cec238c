"""Memory for large outputs. Not random.

Allocators often return large blocks to the system, so a large output is made of fresh pages, and the system hands out
pages of 4 KB one by one: that can take longer than dropout or normalization. Linux gives pages of 2 MB to whoever asks.
"""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch
from torch import Tensor

LARGE = 8 * 2**20
"""Bytes from which on large pages are asked for."""

_PAGE = 2 * 2**20


def empty_like(tensor: Tensor, large: int = LARGE) -> Tensor:
    """torch.empty_like, on large pages where the tensor has `large` bytes and lies in the memory of a Linux CPU.

    Example:
        >>> empty_like(torch.zeros(2, 3)).shape
        torch.Size([2, 3])
    """
    empty = torch.empty_like(tensor)
    if empty.numel() * empty.element_size() >= large and empty.device.type == "cpu":
        _use_large_pages(empty.data_ptr(), empty.numel() * empty.element_size())
    return empty


def _use_large_pages(address: int, size: int) -> None:
    """Ask for them where whole ones fit; a system that refuses leaves everything as it was."""
    first = -(-address // _PAGE) * _PAGE
    advise = _advise()
    if advise is not None:
        advise(first, (address + size - first) // _PAGE * _PAGE, mmap.MADV_HUGEPAGE)


@cache
def _advise() -> Any:
    """The system's madvise, or None where it or the advice is unknown."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return advise
