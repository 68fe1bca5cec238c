"""How kernels are tested: small tensors use several threads too, and Triton runs without a GPU.

Triton's kernels run on a GPU where there is one, else in Triton's interpreter, which tests/conftest.py asks for.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from homeostat.kernels import launch


@pytest.fixture(autouse=True)
def threads_for_small_work(monkeypatch):
    """Let tensors of a test's size be divided among threads."""
    monkeypatch.setattr(launch, "ELEMENTS_PER_THREAD", 512)


@pytest.fixture(scope="session")
def triton_device() -> str:
    """Where Triton's kernels run; a test that needs them is skipped without Triton, unless HOMEOSTAT_REQUIRE has it."""
    if find_spec("triton") is None:
        if "triton" in os.environ.get("HOMEOSTAT_REQUIRE", "").split(","):
            pytest.fail("HOMEOSTAT_REQUIRE asks for triton, which is not installed.")
        pytest.skip("Triton is not installed.")
    if torch.cuda.is_available():
        return "cuda"
    from homeostat.kernels.launch_gpu import INTERPRETED

    assert INTERPRETED, "Something imported triton before this file could ask for its interpreter."
    return "cpu"
