"""Independent random streams as a pure function of (seed, purpose), and a way to keep global state untouched.

Every random decision of homeostat has a name, its purpose: ("weights",), ("order", epoch), ("split", "digits"). The
stream of a purpose depends on the seed and the purpose alone, never on what was drawn before, so that two treatments
under one seed share weights, data order and masks (common random numbers) and a resumed run needs no replay.
No function here reads or changes global random state, but for `isolated`, which puts it back.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Purpose = str | int

_LAZY = ("cuda", "xpu")
"""Devices that come up when they are first used; a seed that they get before waits until then."""


def derive(seed: int, *purpose: Purpose) -> int:
    """The seed of the stream named `purpose` under `seed`: an integer in [0, 2**63).

    Distinct (seed, purpose) pairs give values that are independent for every practical use (SHA-256 of their text).

    Args:
        seed: any integer.
        purpose: names and numbers that say what the stream is for.
    Example:
        >>> derive(0, "order", 3) == derive(0, "order", 3)
        True
        >>> derive(0, "order", 3) == derive(1, "order", 3)
        False
    """
    text = json.dumps([int(seed), *purpose])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def numpy_generator(seed: int, *purpose: Purpose) -> np.random.Generator:
    """A NumPy generator at the start of the stream `purpose`."""
    return np.random.default_rng(derive(seed, *purpose))


def torch_generator(seed: int, *purpose: Purpose, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator on `device` at the start of the stream `purpose`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *purpose))


@contextmanager
def isolated(seed: int, *purpose: Purpose) -> Iterator[None]:
    """Run code that draws from global random state (Python, NumPy, torch) on the stream `purpose`; put the state back.

    For code that is not ours: a user's model builder, torch's own layer constructors, a dataset's transforms.

    Example:
        >>> import torch
        >>> with isolated(0, "weights"):
        ...     first = torch.rand(2)
        >>> with isolated(0, "weights"):
        ...     second = torch.rand(2)
        >>> torch.equal(first, second)
        True
    """
    before = global_state()
    base = derive(seed, *purpose)
    random.seed(base)
    np.random.seed(base % 2**32)  # noqa: NPY002 - the legacy global state is the one other people's code reads
    _seed_torch(base)
    try:
        yield
    finally:
        set_global_state(before)


def _seed_torch(seed: int) -> None:
    """Seed every device there is. Where that is the CPU alone, a hundred times faster than `torch.manual_seed`.

    That one keeps its caller's stack, for good, in case that a GPU should come up later.
    """
    import torch

    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def global_state() -> dict[str, Any]:
    """The global random state of Python, NumPy and torch (every device), to be given to `set_global_state`.

    A CUDA or XPU device that is not in use yet has none but the seed that it was told to begin with.
    """
    import torch

    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    for name in _LAZY:
        device = getattr(torch, name)
        state[name] = device.get_rng_state_all() if device.is_initialized() else copy(device._lazy_seed_tracker)
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_global_state(state: dict[str, Any]) -> None:
    """Put back what `global_state` returned."""
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    for name in _LAZY:
        device, saved = getattr(torch, name), state[name]
        if isinstance(saved, list):
            device.set_rng_state_all(saved)
        elif device.is_initialized():  # meanwhile: it begins as it would have, with what waited for it or with anything
            for seed, *_ in [call for call in saved.get_calls() if call] or [(device.seed_all,)]:
                seed()
        else:
            vars(device._lazy_seed_tracker).update(vars(saved))
    if "mps" in state:
        torch.mps.set_rng_state(state["mps"])
