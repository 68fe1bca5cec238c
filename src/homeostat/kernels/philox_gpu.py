"""Philox4x32-10 for GPU kernels.

A counter's words may be single numbers or blocks: what does not vary within a block is computed once per program, so
that the first rounds cost half. A 32 by 32 bit product is one wide multiplication that yields both of its words.
Source: Salmon et al. 2011, doi:10.1145/2063384.2063405.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.kernels.launch_gpu import halves

_M0, _M1 = tl.constexpr(0xD2511F53), tl.constexpr(0xCD9E8D57)
_W0, _W1 = tl.constexpr(0x9E3779B9), tl.constexpr(0xBB67AE85)


def stream(seed: Tensor) -> tuple[int, int, int]:
    """The arguments `key`, `key_high`, `number` of a kernel that draws from the stream of a seed, 32 bits each.

    Raises: HomeostatError while a CUDA graph is captured, which would repeat them at every replay.
    """
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        raise HomeostatError(
            "Random numbers cannot be captured in a CUDA graph: every replay would repeat them. Leave what drops or "
            "augments out of the graph, or take torch's layers: homeostat.use(model, 'torch')."
        )
    key, number = seed.tolist()
    return *halves(key), halves(number)[0]


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """The four words of each counter under one key; all arguments and results are uint32."""
    for _ in tl.static_range(10):
        p0, p1 = c0.to(tl.uint64) * _M0, c2.to(tl.uint64) * _M1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0, k1 = tl.add(k0, _W0, sanitize_overflow=False), tl.add(k1, _W1, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def draw_four(low, high, quad, key, key_high, number):
    """The words of examples 4 * quad + (0, 1, 2, 3) at position high * 2**32 + low, given what `stream` says."""
    return philox(
        low.to(tl.uint32), high.to(tl.uint32), quad.to(tl.uint32), number.to(tl.uint32), key.to(tl.uint32),
        key_high.to(tl.uint32),
    )  # fmt: skip


@triton.jit
def draw(position, example, key, key_high, number):
    """The word of an example at a position, both int64 blocks, given what `stream` says."""
    w0, w1, w2, w3 = draw_four(position, position >> 32, example >> 2, key, key_high, number)
    turn = example & 3
    return tl.where(turn < 2, tl.where(turn == 0, w0, w1), tl.where(turn == 2, w2, w3))
