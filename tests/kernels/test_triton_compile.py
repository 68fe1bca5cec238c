"""Every Triton kernel compiles for an NVIDIA GPU, which needs none, and float32 and shorter values stay in registers.

The interpreter, in which the kernels are tested without a GPU, knows nothing of the compiler's types and rules. The
work is done by this file as a program: in this process Triton may be interpreting.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

TYPES = {
    torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8",
}  # fmt: skip
HALVES_AND_SINGLES = (torch.float32, torch.bfloat16)
SEED = torch.tensor([2**40 + 7, 9])


def test_every_kernel_compiles_and_spills_nothing(triton_device: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", __file__]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = done.stdout.splitlines()
    names = {line.split()[0] for line in lines}
    assert names >= {
        "_elements", "_singles", "_units", "_units_last", "_normalize", "_gradient", "_parameter_sums", "moments",
        "merge", "apply", "sums", "merge_sums", "apply_gradient", "_moments", "_merge", "_augment", "_add",
    }  # fmt: skip
    assert not [line for line in lines if not line.endswith(" spills 0") and "REAL=fp64" not in line]


def main() -> None:
    """Launch all kernels on tensors without data, with a launch that compiles and prints what the compiler says."""
    from homeostat.kernels import augment_gpu, dropout_gpu, moments_gpu, noise_gpu, norm_channels_gpu, norm_rows_gpu

    for module in (augment_gpu, dropout_gpu, moments_gpu, noise_gpu, norm_channels_gpu, norm_rows_gpu):
        module.launch = Compiler()
    for dtype in HALVES_AND_SINGLES:
        launch_dropout(dropout_gpu.dropout, dtype)
        launch_rows(norm_rows_gpu, dtype)
        launch_channels(norm_channels_gpu, dtype)
        for shape in ((1, 1, 4096), (4096, 64, 1), (8, 64, 1024)):
            moments_gpu.moments(empty(dtype, *shape), 1.0)
    for dtype in (*HALVES_AND_SINGLES, torch.uint8):
        noise_gpu.add_noise(empty(dtype, 8, 3, 32, 32), SEED, 0.1, 0)
    for table in (torch.empty(3, 256), None):
        images = empty(torch.uint8 if table is not None else torch.float32, 8, 3, 32, 32)
        augment_gpu.augment_batch(images, SEED, table, torch.empty(3), 4, 4, table is None, 0.5, 8, 0)
    launch_rows(norm_rows_gpu, torch.float64)


def empty(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def launch_dropout(dropout: Any, dtype: torch.dtype) -> None:
    images = empty(dtype, 8, 64, 8, 8)
    last = images.contiguous(memory_format=torch.channels_last)
    for x, dims, position in (
        (images, 4, 0), (images, 4, 2**32 - 1), (last, 4, 0), (images, 2, 0), (last, 2, 0), (images, 1, 0),
        (empty(dtype, 64, 49), 2, 0), (empty(dtype, 64, 48), 2, 0), (empty(dtype, 4096), 1, 0),
    ):  # fmt: skip
        dropout(x, SEED, 0.5, dims, 0, position)


def launch_rows(module: Any, dtype: torch.dtype) -> None:
    for groups, length, residual in (
        (1, 1024, False),
        (1, 1024, True),
        (1, 8192, True),
        (8, 100, False),
        (1, 9000, False),
    ):
        x, w = empty(dtype, 64, groups * length), empty(dtype, groups * length)
        settings = (length, groups, 1e-5, True, 0.0)
        _, statistics = module.normalize(x, w, w, x if residual else None, *settings)
        module.gradient(x, x, w, w, x if residual else None, statistics, *settings, True)


def launch_channels(module: Any, dtype: torch.dtype) -> None:
    w = empty(dtype, 64)
    for size in (32, 7) if dtype == torch.float32 else (32,):
        for form in (torch.contiguous_format, torch.channels_last):
            x = empty(dtype, 8, 64, size, size).contiguous(memory_format=form)
            for groups, residual in ((0, None), (0, x), (2, None)):
                settings = (groups, 1e-5, 0.0)
                _, mean, variance = module.normalize(x, w, w, residual, *settings)
                module.gradient(x, x, w, w, residual, mean, variance, *settings)


class Compiler:
    """Stands for `launch_gpu.launch`: compiles for compute capability 9.0 what would have been launched."""

    seen: frozenset[str] = frozenset()

    def __call__(
        self, kernel: Any, programs: int, tensor: Any, *arguments: Any, warps: int = 4, **constants: Any
    ) -> None:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        signature, fixed, hints = {}, {}, {}
        given = iter(arguments)
        for index, parameter in enumerate(kernel.params):
            value = constants[parameter.name] if parameter.is_constexpr else next(given)
            if parameter.is_constexpr or value is None:
                signature[parameter.name], fixed[(index,)] = "constexpr", value
                continue
            tensors = isinstance(value, torch.Tensor)
            signature[parameter.name] = "*" + TYPES[value.dtype] if tensors else parameter.annotation_type
            if tensors or (not parameter.do_not_specialize and value % 16 == 0):
                hints[(index,)] = [["tt.divisibility", 16]]
        key = str((kernel.__name__, signature, fixed, hints, warps))
        if key not in Compiler.seen:
            Compiler.seen |= {key}
            source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=hints)
            options = {"num_warps": warps, "enable_fp_fusion": True}
            compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
            types = " ".join(kind for kind in signature.values() if kind.startswith("*"))
            chosen = " ".join(f"{kernel.params[at].name}={value}" for (at,), value in fixed.items())
            print(kernel.__name__, types, chosen, f"warps={warps}", resources(compiled.asm["cubin"]))


def resources(cubin: bytes) -> str:
    """The registers of a thread, and the bytes that it keeps in memory because registers do not suffice."""
    spec = find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    tool = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text.stdout)
    assert found is not None, text.stdout
    return f"registers {found[1]} spills {found[2]}"


if __name__ == "__main__":
    main()
