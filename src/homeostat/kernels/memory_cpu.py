"""How compiled loops talk to memory: reading ahead, and writing past the cache.

`write` stores without fetching what was there before and without displacing what the cache holds; it pays for outputs
that are larger than a cache. Loops that use it vectorize as long as the array starts at a multiple of `ALIGNMENT`.
Not random.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

ALIGNMENT = 64
"""Bytes: an array whose elements are stored by `write` must start at a multiple of it."""

AHEAD = 4096
"""Bytes that `prefetch` is best ahead of what is read: less comes too late, more is displaced before it is read."""

LARGE = 1 << 23
"""Bytes from which an output would not stay in the cache until it is read again."""


def passes_the_cache(address: int, nbytes: int, row_bytes: int) -> bool:
    """Whether an output of rows of `row_bytes` bytes is large and aligned enough to be stored by `write`."""
    return nbytes >= LARGE and not address % ALIGNMENT and not row_bytes % ALIGNMENT and _X86


_X86 = platform.machine().lower() in ("x86_64", "amd64")


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, which need not exist."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [place.type], kind)
        builder.call(function, [place, *(ir.Constant(number, n) for n in (0, 3, 1))])  # to read, keep it, data
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def write(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """`array[index] = value`, past the cache; `fence` makes it visible to other threads."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        store = builder.store(arguments[2], builder.gep(data, [arguments[1]], inbounds=True), align=ALIGNMENT)
        one = ir.Constant(ir.IntType(32), 1)
        store.set_metadata("nontemporal", builder.module.add_metadata([one]))
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def fence(typing_context: Any) -> Any:
    """All that this thread wrote becomes visible before anything that it writes afterwards."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen
