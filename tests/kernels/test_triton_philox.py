"""Philox in Triton: the known answers of Random123, and the reference's words at any place."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from homeostat.kernels import philox_reference

if find_spec("triton") is None and "triton" not in os.environ.get("HOMEOSTAT_REQUIRE", "").split(","):
    pytest.skip("Triton is not installed.", allow_module_level=True)

import triton
import triton.language as tl

from homeostat.kernels.philox_gpu import draw, philox, stream

F = 0xFFFFFFFF
ANSWERS = [  # counter, key, words: kat_vectors of Random123 1.14, philox4x32 10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((F, F, F, F), (F, F), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@triton.jit
def answers(given, words):
    c0, c1, c2 = tl.load(given), tl.load(given + 1), tl.load(given + 2)
    c3, k0, k1 = tl.load(given + 3), tl.load(given + 4), tl.load(given + 5)
    w0, w1, w2, w3 = philox(
        c0.to(tl.uint32), c1.to(tl.uint32), c2.to(tl.uint32), c3.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32)
    )
    tl.store(words, w0.to(tl.int64))
    tl.store(words + 1, w1.to(tl.int64))
    tl.store(words + 2, w2.to(tl.int64))
    tl.store(words + 3, w3.to(tl.int64))


@triton.jit
def draws(words, key: tl.int32, key_high: tl.int32, number: tl.int32, example: tl.int64, position: tl.int64):
    at = tl.arange(0, 64)
    word = draw(position + at % 8, example + at // 8, key, key_high, number)
    tl.store(words + at, word.to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "expected"), ANSWERS)
def test_known_answers(
    triton_device: str, counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    words = torch.zeros(4, dtype=torch.int64, device=triton_device)
    answers[(1,)](torch.tensor([*counter, *key], device=triton_device), words, enable_fp_fusion=True)
    assert tuple(words.tolist()) == expected


@pytest.mark.parametrize(("example", "position"), [(0, 0), (5, 2**32 - 3), (2**33 + 1, 2**40)])
def test_draws_are_the_references(triton_device: str, example: int, position: int) -> None:
    seed = torch.tensor([2**63 - 25, 2**31 + 5])
    words = torch.zeros(8, 8, dtype=torch.int64, device=triton_device)
    draws[(1,)](words, *stream(seed), example, position, enable_fp_fusion=True)
    assert torch.equal(words.cpu(), philox_reference.words(seed, 8, 8, example, position))
