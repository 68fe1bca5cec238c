"""How kernels are launched: threads, forks, the pool that stands in for OpenMP, and the cache on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numba import carray

from homeostat.kernels import launch
from homeostat.kernels.launch import Fields, kernel, pointer, share, threads_for

COUNT = 100_003
THREE_TIMES = Fields("x y count", "factor")


@kernel(THREE_TIMES)
def scaled(real):
    record, size = THREE_TIMES.record, np.dtype(real).itemsize

    def run(block):
        a = carray(block, (1,), record)[0]
        begin, end = share(a, a.count)
        x = carray(pointer(a.x + begin * size), (end - begin,), real)
        y = carray(pointer(a.y + begin * size), (end - begin,), real)
        for i in range(end - begin):
            y[i] = x[i] * real(a.factor)

    return run


def run(x: torch.Tensor, threads: int, factor: float = 3.0) -> torch.Tensor:
    y = torch.full_like(x, torch.nan)
    scaled(x.dtype, threads, x.data_ptr(), y.data_ptr(), len(x), factor)
    return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("team", [True, False], ids=["openmp", "pool"])
def test_every_unit_is_done_once_by_any_number_of_threads(dtype, threads, team, monkeypatch):
    if not team:
        monkeypatch.setattr(launch, "_team", None)
    x = torch.arange(COUNT, dtype=dtype)
    assert torch.equal(run(x, threads), 3 * x)


def test_several_python_threads_may_launch_at_once():
    inputs = [torch.full((COUNT,), float(i)) for i in range(16)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(lambda i: run(inputs[i], 2, factor=i + 1), range(16)))
    assert all(torch.equal(output, torch.full((COUNT,), float(i * (i + 1)))) for i, output in enumerate(outputs))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_after_the_parent_used_its_team():
    script = """
        import os, sys
        import numpy as np  # in the child, torch's own operators may wait for OpenMP threads that did not come along
        import torch
        from homeostat.kernels.dropout import dropout

        torch.set_num_threads(2)
        x, seed = torch.ones(64, 4096), torch.tensor([1, 2])
        mask = dropout(x, seed, 0.5, 2, 0, 0, None)
        child = os.fork()
        if child == 0:
            again = dropout(x, seed, 0.5, 2, 0, 0, None)
            os._exit(0 if np.array_equal(again.numpy(), mask.numpy()) else 3)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert python(script).returncode == 0


def test_fewer_threads_than_asked_for_still_do_everything():
    script = """
        import torch
        from homeostat.kernels.dropout import dropout

        torch.set_num_threads(2)
        dropped = dropout(torch.ones(64, 4096), torch.tensor([1, 2]), 0.5, 2, 0, 0, "numba")
        reference = dropout(torch.ones(64, 4096), torch.tensor([1, 2]), 0.5, 2, 0, 0, "reference")
        assert torch.equal(dropped, reference)
    """
    assert python(script, OMP_THREAD_LIMIT="1").returncode == 0


def test_a_second_process_finds_compiled_code_on_disk(tmp_path):
    script = """
        import torch
        from homeostat.kernels.dropout import dropout

        dropout(torch.ones(4, 4), torch.tensor([1, 2]), 0.5, 2, 0, 0, "numba")
    """
    written = []
    for _ in range(2):
        assert python(script, NUMBA_CACHE_DIR=str(tmp_path)).returncode == 0
        written.append({path: path.stat().st_mtime_ns for path in Path(tmp_path).rglob("*.nbc")})
    assert written[0]
    assert written[0] == written[1]


def test_without_a_directory_to_cache_in_kernels_compile_all_the_same(monkeypatch):
    def no_cache(*args, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return cfunc(*args, **options)

    cfunc = launch.cfunc
    monkeypatch.setattr(launch, "cfunc", no_cache)
    fresh = launch.Kernel(scaled.template, THREE_TIMES)
    x, y = torch.ones(3), torch.empty(3)
    fresh(x.dtype, 1, x.data_ptr(), y.data_ptr(), 3, 3.0)
    assert y.tolist() == [3, 3, 3]


def test_small_work_stays_on_one_thread_and_large_work_uses_what_torch_may_use(monkeypatch):
    monkeypatch.undo()  # what the folder's tests have set
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert threads_for(64 * 128, 64) == 1
        assert threads_for(10**6, 10**3) == 2
        assert threads_for(10**6, 1) == 1
    finally:
        torch.set_num_threads(before)


def python(script: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    return subprocess.run(command, check=False, env={**os.environ, **environment}, timeout=120)
