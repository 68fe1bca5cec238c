"""Which backend runs a kernel on a tensor: Numba on the CPU, Triton on a GPU, plain torch everywhere.

`backend_for` says what is chosen automatically. What is asked for explicitly either runs or is an error; there is no
silent fallback. All backends compute the same numbers: masks and draws bit for bit, sums to rounding. Not random.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from homeostat.errors import invalid, unknown

BACKENDS: tuple[str, ...] = ("numba", "triton", "reference")
"""numba: compiled for the CPU; triton: compiled for the GPU; reference: plain torch operators, on any device."""

_SUFFIXES = {"numba": "cpu", "triton": "gpu", "reference": "reference"}

_NUMBA = (torch.float32, torch.float64)
_TRITON = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def backend_for(tensor: Tensor) -> str:
    """The backend that kernels choose for this tensor when none is asked for.

    numba for float32 and float64 on a CPU, triton for float16, bfloat16, float32 and float64 on a CUDA device where
    Triton is installed, reference for everything else (float16 and bfloat16 on a CPU, other devices).

    Example:
        >>> backend_for(torch.zeros(2)), backend_for(torch.zeros(2, dtype=torch.bfloat16))
        ('numba', 'reference')
    """
    if tensor.device.type == "cpu" and tensor.dtype in _NUMBA:
        return "numba"
    if tensor.device.type == "cuda" and tensor.dtype in _TRITON and triton_is_installed():
        return "triton"
    return "reference"


def widest_dtype(device: torch.device) -> torch.dtype:
    """The dtype of statistics: float64 where the device has it, else float32 (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def choose(where: str, tensor: Tensor, backend: str | None) -> str:
    """The backend for a call: the one asked for, if it can run on this tensor, or the automatic one for None.

    Raises: InvalidValue, in the name of the callable `where`, for an unknown backend or one that cannot run.
    """
    if backend is None:
        return backend_for(tensor)
    if backend == "numba" and (tensor.device.type != "cpu" or tensor.dtype not in _NUMBA):
        raise invalid(where, "input", "be float32 or float64 on a CPU for backend 'numba'", tensor)
    if backend == "triton":
        if not triton_is_installed():
            raise invalid(where, "backend", "be installed", backend, "Triton comes with torch's CUDA builds.")
        if tensor.dtype not in _TRITON or (tensor.device.type != "cuda" and not interpreting()):
            cure = "On a CPU, Triton runs only in its interpreter: set TRITON_INTERPRET=1 before anything imports it."
            raise invalid(where, "input", "be floating and on a CUDA device for backend 'triton'", tensor, cure)
    if backend not in BACKENDS:
        raise unknown(where, "backend", backend, BACKENDS)
    return backend


@cache
def implementation(stem: str, backend: str) -> ModuleType:
    """A stem's functions for a backend, imported when they are first needed: Numba and Triton take their time.

    Example:
        >>> implementation("moments", "reference").__name__
        'homeostat.kernels.moments_reference'
    """
    return import_module(f"homeostat.kernels.{stem}_{_SUFFIXES[backend]}")


@cache
def triton_is_installed() -> bool:
    """Whether the package triton can be imported."""
    return find_spec("triton") is not None


def interpreting() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which needs no GPU and is slow: for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"
