"""The GPU kernels on a GPU: are they right, and how near are they to the speed of memory?

First the masks of CPU and GPU, bit for bit, and every operation in float16, bfloat16, float32 and float64 against the
plain-torch reference on the same device. Then, for each operation and size, the bytes that it must move over its time,
as a share of what a device copy of the tensor reaches, and the times of torch's own operators, eager and compiled,
relative to it. Times are medians of single launches with an empty cache (triton.testing.do_bench), so they are the
device's; the last table is the wall time of a call in a row of calls, which is the host's where tensors are small.

    python benchmarks/gpu.py [--quick]

On a machine without CUDA nothing is measured, and it says so.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as plain

from homeostat.kernels import augment as augmentation
from homeostat.kernels import dropout as drops
from homeostat.kernels import moments as watching
from homeostat.nn import functional as ours

HALVES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-5, torch.float64: 1e-11}
SEED = torch.tensor([2**61 + 12345, 2**31 + 99])
MASKS = [  # shape, dims, example, position
    ((4096, 1024), 2, 0, 0), ((1025, 777), 2, 3, 2**32 - 5), ((100_003,), 1, 0, 0), ((64, 64, 32, 32), 4, 0, 0),
    ((33, 20, 7, 9), 4, 2**33 + 1, 2**40), ((33, 20, 7, 9), 2, 5, 0), ((33, 20, 7, 9), 1, 5, 0), ((7, 3), 2, 1, 0),
]  # fmt: skip


class Case(NamedTuple):
    """An operation at one size: ours, torch's, what it is given, and how many times it must move its input's bytes."""

    name: str
    ours: Callable[..., Tensor]
    torchs: Callable[..., Tensor]
    tensors: tuple[Tensor, ...]
    passes: float
    backward_passes: float = 0  # 0: forward only


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer sizes, and no torch.compile")
    quick = parser.parse_args().quick
    if not torch.cuda.is_available():
        print("No CUDA device here: not measured.")
        return
    import triton

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}, "
          f"python {platform.python_version()}")  # fmt: skip
    wrong = check("cuda")
    bandwidth(quick)
    calls()
    if wrong:
        sys.exit(f"{wrong} wrong results.")


def check(device: str) -> int:
    """Compare with the CPU and with the reference; print what differs; return how many do."""
    torch.manual_seed(0)
    wrong, count = 0, 0
    for name, good in itertools.chain(masks(device), operations(device)):
        count += 1
        if not good:
            wrong += 1
            print(f"WRONG {name}")
    print(f"{count - wrong} of {count} checks passed.")
    return wrong


def masks(device: str) -> Iterator[tuple[str, bool]]:
    """Dropped units on the device and on the CPU, for shapes, places, dtypes and layouts; and augmented images."""
    for (shape, dims, example, position), dtype, last in itertools.product(MASKS, TOLERANCE, (False, True)):
        x = torch.ones(shape, dtype=dtype)
        if last and len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        settings = (SEED, 0.3, dims, example, position)
        y = drops.dropout(x.to(device), *settings, "triton").cpu()
        yield f"mask {shape} {dims} {example} {position} {dtype}", torch.equal(y, drops.dropout(x, *settings, None))
    for size, mode in itertools.product((32, 45), ("reflect", "constant")):
        x = (torch.rand(65, 3, size, size) * 256).to(torch.uint8)
        settings = {"crop": 4, "padding_mode": mode, "flip": 0.5, "cutout": 8, "mean": 120.0, "std": 60.0}
        y = augmentation.augment(x.to(device), SEED, **settings, backend="triton").cpu()
        yield f"augment {size} {mode}", torch.equal(y, augmentation.augment(x, SEED, **settings))


def operations(device: str) -> Iterator[tuple[str, bool]]:
    """Outputs and gradients against the reference, which for float16 and bfloat16 computes in float32."""
    for dtype, residual, activation in itertools.product(TOLERANCE, (False, True), (None, "relu")):
        for name, operation, shape, form in normalizations():
            far = 100.0 if dtype == torch.float32 else 0.0
            x = (torch.randn(shape, device=device) + far).to(dtype).contiguous(memory_format=form)
            r = torch.randn(shape, device=device).to(dtype) if residual else None
            w, b = torch.randn(2, shape[-1] if len(shape) == 2 else shape[1], device=device).to(dtype)
            results = []
            before = operation(x, w, b, r, None, "reference").detach()
            grad = (
                torch.randn(shape, device=device).masked_fill(before.abs() < 0.01, 0).to(dtype)
            )  # no matter of rounding
            for backend in ("triton", "reference"):
                inputs = [None if t is None else t.clone().requires_grad_() for t in (x, w, b, r)]
                y = operation(*inputs, activation, backend)
                needed = [t for t in inputs if t is not None]
                results.append([y, *torch.autograd.grad(y, needed, grad, allow_unused=True)])
            good = all(is_close(*pair, TOLERANCE[dtype]) for pair in zip(*results, strict=True))
            yield f"{name} {tuple(shape)} {form} {dtype} residual={residual} {activation}", good
    for dtype, shape in itertools.product(TOLERANCE, ((100_003,), (512, 300), (33, 40, 9, 9))):
        x = torch.randn(shape, device=device).to(dtype)
        x.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, 0.0])
        for dim in (None, 1) if len(shape) > 1 else (None,):
            both = [torch.stack(watching.moments(x, dim=dim, bound=1.0, backend=b)) for b in ("triton", "reference")]
            yield f"moments {shape} {dtype} {dim}", is_close(*both, 1e-6)


def normalizations() -> Iterator[tuple[str, Callable[..., Tensor], tuple[int, ...], torch.memory_format]]:
    """Name, operation(input, weight, bias, residual, activation, backend), shape and memory format."""

    def batch(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, activation: Any, backend: str) -> Tensor:
        return ours.batch_norm(x, None, None, w, b, True, activation=activation, residual=r, backend=backend)

    def group(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, activation: Any, backend: str) -> Tensor:
        return ours.group_norm(x, 4, w, b, activation=activation, residual=r, backend=backend)

    def layer(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, activation: Any, backend: str) -> Tensor:
        return ours.layer_norm(x, x.shape[1:], w, b, activation=activation, residual=r, backend=backend)

    def rms(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None, activation: Any, backend: str) -> Tensor:
        return ours.rms_norm(x, x.shape[1:], w, activation=activation, residual=r, backend=backend)

    flat = torch.contiguous_format
    for form, shape in itertools.product((flat, torch.channels_last), ((16, 64, 32, 32), (33, 20, 7, 9))):
        yield "batch norm", batch, shape, form
        yield "group norm", group, shape, form
    yield "batch norm", batch, (1000, 130), flat
    for columns in (64, 1000, 8192, 20000):
        yield "layer norm", layer, (300, columns), flat
        yield "rms norm", rms, (300, columns), flat


def is_close(one: Tensor | None, other: Tensor | None, tolerance: float) -> bool:
    """Within tolerance of the other's largest magnitude; NaN where the other is NaN."""
    if one is None or other is None:
        return one is other
    one, other = one.double(), other.double()
    if not torch.equal(one.isnan(), other.isnan()):
        return False
    one, other = one.nan_to_num(), other.nan_to_num()
    return ((one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1)).item()


def bandwidth(quick: bool) -> None:
    """Print the table: forward, and forward with backward where there is one."""
    compiled = [] if quick else ["torch.compile"]
    print("\ntime on the device (median), share of a device copy's bandwidth, torch's time as a multiple of ours")
    print(f"{'operation':28} {'dtype':9} {'shape':20} {'us':>8} {'copy':>6} {'eager':>6} {'compile':>8}")
    for dtype in (torch.float32, torch.bfloat16):
        for case in cases(dtype, quick):
            report(case, case.name, case.passes, False, compiled)
            if case.backward_passes:
                report(case, f"{case.name}, both ways", case.passes + case.backward_passes, True, compiled)


def report(case: Case, name: str, passes: float, both: bool, compiled: list[str]) -> None:
    x = case.tensors[0]
    own = timed(way(case.ours, case, both))
    eager = timed(way(case.torchs, case, both))
    other = torch.empty_like(x)
    copied = timed(lambda: other.copy_(x))
    share = passes * copied / (2 * own)
    faster = ""
    if compiled:
        torch.compiler.reset()
        faster = f"{timed(way(torch.compile(case.torchs), case, both)) / own:7.2f}x"
    shape = "x".join(str(size) for size in x.shape)
    dtype = str(x.dtype).removeprefix("torch.")
    print(f"{name:28} {dtype:9} {shape:20} {own:8.1f} {share:5.0%} {eager / own:5.2f}x {faster:>8}", flush=True)


def way(function: Callable[..., Tensor], case: Case, both: bool) -> Callable[[], Any]:
    """The call to time: forward alone without gradients, or forward and backward."""
    if not both:

        def forward() -> Any:
            with torch.no_grad():
                return function(*case.tensors)

        return forward
    inputs = [t.detach().clone().requires_grad_() for t in case.tensors]
    grad = torch.randn_like(case.tensors[0])
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


def timed(function: Callable[[], Any]) -> float:
    """Microseconds on the device, the median; the cache is emptied before each call."""
    from triton.testing import do_bench

    return 1000 * do_bench(function, warmup=20, rep=60, return_mode="median")


def cases(dtype: torch.dtype, quick: bool) -> Iterator[Case]:
    """The operations and sizes of the table."""

    def made(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda").to(dtype)

    for rows, columns in ((1024, 1024), (4096, 4096), (16384, 8192))[2 if quick else 0 :]:
        x, w, b = made(rows, columns), made(columns), made(columns)
        yield Case("dropout", lambda x: ours.dropout(x, 0.3), lambda x: plain.dropout(x, 0.3), (x,), 2, 2)
        yield Case("layer norm", lambda x, w, b: ours.layer_norm(x, w.shape, w, b),
                   lambda x, w, b: plain.layer_norm(x, w.shape, w, b), (x, w, b), 2, 3)  # fmt: skip
        yield Case("rms norm", lambda x, w: ours.rms_norm(x, w.shape, w),
                   lambda x, w: plain.rms_norm(x, w.shape, w), (x, w), 2, 3)  # fmt: skip
        yield Case("moments", our_moments, torchs_moments, (x,), 1)
    for shape, form in itertools.product(((16, 64, 32, 32), (64, 64, 32, 32), (128, 256, 56, 56))[2 if quick else 0 :],
                                         (torch.contiguous_format, torch.channels_last)):  # fmt: skip
        x, r = (made(*shape).contiguous(memory_format=form) for _ in range(2))
        w, b = made(shape[1]), made(shape[1])
        kind = " (last)" if form is torch.channels_last else ""
        yield Case("batch norm relu" + kind, our_batch_norm, torchs_batch_norm, (x, w, b), 3, 5)
        yield Case("batch norm add relu" + kind, our_batch_norm, torchs_batch_norm, (x, w, b, r), 4, 7)
        yield Case("group norm relu" + kind, our_group_norm, torchs_group_norm, (x, w, b), 3 if kind else 2, 5)
    if dtype == torch.float32:
        for shape in ((512, 3, 32, 32), (2048, 3, 128, 128))[1 if quick else 0 :]:
            images = (torch.rand(shape, device="cuda") * 256).to(torch.uint8)
            yield Case("augment", our_augmentation, torchs_augmentation, (images,), 5)


def our_batch_norm(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None = None) -> Tensor:
    return ours.batch_norm(x, None, None, w, b, True, activation="relu", residual=r)


def torchs_batch_norm(x: Tensor, w: Tensor, b: Tensor, r: Tensor | None = None) -> Tensor:
    y = plain.batch_norm(x, None, None, w, b, True)
    return plain.relu(y if r is None else y + r)


def our_group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return ours.group_norm(x, 32, w, b, activation="relu")


def torchs_group_norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return plain.relu(plain.group_norm(x, 32, w, b))


def our_moments(x: Tensor) -> Tensor:
    return watching.moments(x, bound=1.0).mean


def torchs_moments(x: Tensor) -> Tensor:
    """The same statistics as reductions of torch's; of values that are all finite."""
    size = x.abs()
    variance, mean = torch.var_mean(x.float(), correction=0)
    shares = [(x == 0).sum(), (size > 1).sum(), (~x.isfinite()).sum()]
    return torch.stack([variance, mean, size.max().float(), *(share.float() for share in shares)])


def our_augmentation(images: Tensor) -> Tensor:
    return augmentation.augment(images, SEED, crop=4, flip=0.5, cutout=8, mean=120.0, std=60.0)


def torchs_augmentation(images: Tensor) -> Tensor:
    """The least that torch could do: the same crop for all, no flip and no cutout, and the normalization."""
    padded = plain.pad(images.float(), (4, 4, 4, 4), mode="reflect")
    cut = padded[:, :, 2 : 2 + images.shape[2], 3 : 3 + images.shape[3]]
    return ((cut - 120) / 60).contiguous(memory_format=torch.channels_last)


def calls() -> None:
    """Print what a call costs in a row of calls: for small tensors that is the host's work, not the device's."""
    print("\nwall time of a call in a row of 200 calls, us (forward without gradients)")
    x = torch.randn(1024, 1024, device="cuda")
    w, images = torch.randn(1024, device="cuda"), torch.randn(16, 64, 32, 32, device="cuda")
    v = torch.randn(64, device="cuda")
    for name, own, torchs in (
        ("dropout", lambda: ours.dropout(x, 0.3), lambda: plain.dropout(x, 0.3)),
        ("layer norm", lambda: ours.layer_norm(x, w.shape, w, w), lambda: plain.layer_norm(x, w.shape, w, w)),
        ("batch norm relu", lambda: our_batch_norm(images, v, v), lambda: torchs_batch_norm(images, v, v)),
        ("moments", lambda: our_moments(x), lambda: torchs_moments(x)),
    ):
        print(f"{name:28} {wall(own):8.1f}, torch {wall(torchs):8.1f}")


def wall(function: Callable[[], Any], calls: int = 200) -> float:
    with torch.no_grad():
        for _ in range(20):
            function()
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / calls * 1e6


if __name__ == "__main__":
    main()
