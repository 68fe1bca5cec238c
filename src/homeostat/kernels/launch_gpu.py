"""How a Triton kernel is launched, and how numbers reach it whole and without compiling it anew for each value.

A kernel is compiled per dtype, per choice of its constants and per divisibility of its sizes, never per seed,
probability or eps: integers are declared with their width, and reals travel as the 64 bits of a double, because
Triton would pass a Python float as float32. Programs are counted along one grid axis, whose limit is 2**31 - 1.
Not random.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

REALS = {torch.float64: tl.float64}
"""The type to compute in, for tensors whose type is not computed with in float32."""

_double, _word, _long, _words = (struct.Struct(code) for code in ("<d", "<q", "<Q", "<ii"))


def launch(kernel: Any, programs: int, tensor: Tensor, *arguments: Any, warps: int = 4, **constants: Any) -> None:
    """Run `programs` programs of a kernel on the tensor's device and its current stream, without waiting for them."""
    if tensor.device.type == "cuda" and tensor.device.index != torch.cuda.current_device():
        with torch.cuda.device(tensor.device):
            kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=True, **constants)
    else:
        kernel[(programs,)](*arguments, num_warps=warps, enable_fp_fusion=True, **constants)


def bits(value: float) -> int:
    """A double as a signed 64-bit integer; `real` turns it back inside a kernel.

    Example:
        >>> hex(bits(1.0))
        '0x3ff0000000000000'
    """
    return _word.unpack(_double.pack(value))[0]


def halves(value: int) -> tuple[int, int]:
    """The lower and upper 32 bits of an integer, as signed integers.

    Example:
        >>> halves(2**32 + 2**31)
        (-2147483648, 1)
    """
    low, high = _words.unpack(_long.pack(value & 0xFFFFFFFFFFFFFFFF))
    return low, high


@triton.jit
def real(number, REAL: tl.constexpr):
    """Inside a kernel: the number whose `bits` came as an argument, in type REAL."""
    return number.to(tl.int64).to(tl.float64, bitcast=True).to(REAL)


INTERPRETED = tl.constexpr(not isinstance(real, triton.JITFunction))


@triton.jit
def beside(index, value):
    """The 32-bit index itself, held by the threads that hold the loaded value of the same shape.

    Threads load several neighbors at once, and hold one where the compiler is free to choose: whatever is computed from
    an index would have to change hands through shared memory to meet the values. The compiler cannot see through this.
    """
    if INTERPRETED:
        return index
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r,r", [index, value.to(tl.float32)], dtype=index.dtype, is_pure=True, pack=1
    )
