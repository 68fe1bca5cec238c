"""How a compiled CPU kernel is built, cached and run on several threads.

A kernel is a template: given the element type, it returns a Python function of one argument, the address of its
arguments, which Numba compiles to a C function on its first use and caches on disk. The arguments are a struct whose
fields are named once, by `Fields`; tensors travel as addresses. One launch runs the kernel on several threads, and
`share` tells each of them which units of the work are its own.

Threads: on Linux they are torch's own OpenMP team (`GOMP_parallel`), so that kernels and torch's operators share their
threads instead of fighting for cores; Numba's threading layers are not used. Any number of Python threads may launch
at once: the interpreter's lock is released and each launch has its own team. Where torch has no such team (macOS,
Windows) and in a forked child, where OpenMP must not be used again, a pool of Python threads does the same.
The number of threads never changes a result. Not random.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

ELEMENTS_PER_THREAD = 32768
"""The least work that a second thread is woken for, as in torch; waiting for it may cost more than less work does."""

FASTMATH = {"contract", "nsz", "reassoc"}
"""What the compiler may do with sums and products: nothing that assumes away NaN and infinities."""

REALS = {torch.float32: np.float32, torch.float64: np.float64, torch.uint8: np.uint8}
"""The element types that kernels are compiled for; uint8 is for augmentation alone."""


class Fields:
    """The named arguments of a kernel, a struct that Python packs and Numba reads as a record; integers come first.

    Example:
        >>> Fields("x y rows", "scale").names
        ('x', 'y', 'rows', 'scale')
    """

    def __init__(self, integers: str, reals: str = "") -> None:
        whole, fractional = integers.split(), reals.split()
        self.names = (*whole, *fractional)
        kinds = [("first", "i8"), ("threads", "i8"), *((n, "i8") for n in whole), *((n, "f8") for n in fractional)]
        self.record = np.dtype(kinds)
        self.pack = struct.Struct(f"{len(whole) + 2}q{len(fractional)}d").pack


class Kernel:
    """A template and its fields; called with a dtype, the number of threads and values in the order of the fields."""

    def __init__(self, template: Callable[[Any], Callable[[Any], None]], fields: Fields) -> None:
        self.template = template
        self.fields = fields
        self._entries: dict[torch.dtype, _Entry] = {}

    def __call__(self, dtype: torch.dtype, threads: int, *values: float) -> None:
        """Run on `threads` threads and return when all are done; the interpreter's lock is released meanwhile."""
        entry = self._entries.get(dtype) or self.compile(dtype)
        if threads == 1:
            entry.call(self.fields.pack(0, 1, *values))
        elif _team is not None:
            _team(entry.address, self.fields.pack(0, 1, *values), threads, 0)
        else:
            blocks = [self.fields.pack(thread, threads, *values) for thread in range(threads)]
            others = [_pool().submit(entry.call, block) for block in blocks[1:]]
            entry.call(blocks[0])
            for other in others:
                other.result()

    def compile(self, dtype: torch.dtype) -> _Entry:
        """The C function for one element type, from the cache on disk where it has been compiled before."""
        self._entries[dtype] = _Entry(self.template(REALS[dtype]))
        return self._entries[dtype]


class _Entry:
    """A compiled C function, its address, and a way to call it from Python."""

    def __init__(self, function: Callable[[Any], None]) -> None:
        signature = types.void(types.voidptr)
        try:
            compiled = cfunc(signature, cache=True, fastmath=FASTMATH, error_model="numpy")(function)
        except RuntimeError:  # no directory to cache in
            compiled = cfunc(signature, fastmath=FASTMATH, error_model="numpy")(function)
        self.address = compiled.address
        self.call = _CALL(compiled.address)
        self._code = compiled  # the machine code lives as long as this object does


def kernel(fields: Fields) -> Callable[[Callable[[Any], Callable[[Any], None]]], Kernel]:
    """Decorator: make a `Kernel` of a template.

    Example:
        >>> from numba import carray
        >>> DOUBLE = Fields("x y count")
        >>> @kernel(DOUBLE)
        ... def double(real):
        ...     record, size = DOUBLE.record, np.dtype(real).itemsize
        ...     def run(block):
        ...         a = carray(block, (1,), record)[0]
        ...         begin, end = share(a, a.count)
        ...         x = carray(pointer(a.x + begin * size), (end - begin,), real)
        ...         y = carray(pointer(a.y + begin * size), (end - begin,), real)
        ...         for i in range(end - begin):
        ...             y[i] = x[i] + x[i]
        ...     return run
        >>> x, y = torch.arange(3.0), torch.empty(3)
        >>> double(x.dtype, threads_for(3, 3), x.data_ptr(), y.data_ptr(), 3)
        >>> y
        tensor([0., 2., 4.])
    """
    return lambda template: Kernel(template, fields)


def threads_for(elements: int, units: int) -> int:
    """How many threads to use for `elements` numbers that come in `units` indivisible pieces of work."""
    if elements < 2 * ELEMENTS_PER_THREAD:
        return 1
    return max(1, min(torch.get_num_threads(), units, elements // ELEMENTS_PER_THREAD))


@intrinsic
def pointer(typing_context: Any, address: Any) -> Any:
    """An integer address as a pointer, for `numba.carray`.

    A kernel makes one array per contiguous run, starting at its first element: indices that start at 0 need no test
    for negative ones, and only then do loops vectorize.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), codegen


_team_thread = types.ExternalFunction("homeostat_team_thread", types.int32())
_team_size = types.ExternalFunction("homeostat_team_size", types.int32())


@njit(inline="always")
def share(a: Any, units: Any) -> Any:
    """(begin, end) of the units 0..units-1 that are this thread's own, given the kernel's arguments.

    In a team, `first` is 0, `threads` is 1 and OpenMP knows the rest; in the pool it is the other way round.
    """
    size = np.int64(_team_size())
    mine = a.first * size + np.int64(_team_thread())
    threads = a.threads * size
    return units * mine // threads, units * (mine + 1) // threads


_CALL = ctypes.CFUNCTYPE(None, ctypes.c_char_p)


def _load_team() -> Any:
    """GOMP_parallel of the OpenMP library that torch itself uses, or None; binds what compiled code calls."""
    try:
        library = ctypes.CDLL(None)
        symbols = [library.omp_get_thread_num, library.omp_get_num_threads, library.GOMP_parallel]
    except (AttributeError, OSError, TypeError):
        symbols = []
    if not symbols or not torch.backends.openmp.is_available():
        alone = [cfunc(types.int32())(answer) for answer in (lambda: 0, lambda: 1)]
        _bind([entry.address for entry in alone])
        return None
    _bind([ctypes.cast(symbol, ctypes.c_void_p).value for symbol in symbols[:2]])
    team = symbols[2]
    team.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
    team.restype = None
    return team


def _bind(addresses: list[Any]) -> None:
    for name, address in zip(("homeostat_team_thread", "homeostat_team_size"), addresses, strict=True):
        binding.add_symbol(name, address)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, (os.cpu_count() or 2) - 1), thread_name_prefix="homeostat-kernel")


def _forget_threads() -> None:
    """In a forked child: neither the team's threads nor the pool's have come along."""
    global _team
    _team = None
    _pool.cache_clear()


_team = _load_team()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_forget_threads)
