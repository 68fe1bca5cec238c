"""Memory for large outputs: whole large pages inside the tensor, asked for where they exist."""

from __future__ import annotations

import mmap

import pytest
import torch

from homeostat.kernels import allocation
from homeostat.kernels.allocation import empty_like

PAGE = 2 << 20


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no such advice")
def test_only_whole_pages_inside_a_large_tensor_are_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(allocation, "_advise", lambda: lambda *arguments: asked.append(arguments))
    empty_like(torch.empty(1000))
    assert not asked
    large = empty_like(torch.empty(4 * PAGE, dtype=torch.uint8), large=PAGE)
    address, size, advice = asked[0]
    assert address % PAGE == 0
    assert size % PAGE == 0
    assert large.data_ptr() <= address
    assert address + size <= large.data_ptr() + large.numel()
    assert size >= 2 * PAGE
    assert advice == mmap.MADV_HUGEPAGE


def test_a_large_tensor_has_the_layout_of_its_model():
    model = torch.empty(64, 8, 32, 32).contiguous(memory_format=torch.channels_last)
    large = empty_like(model, large=1)
    assert large.stride() == model.stride()
    assert large.dtype == model.dtype


def test_a_system_without_the_advice_changes_nothing(monkeypatch):
    monkeypatch.setattr(allocation, "_advise", lambda: None)
    assert empty_like(torch.empty(PAGE), large=1).shape == (PAGE,)
