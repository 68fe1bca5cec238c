"""The kernels against torch eager, torch.compile, kornia and a plain copy on a CPU: ratios within one run.

Each row interleaves its contenders, so that a busy moment hits all of them; a ratio is a contender's time divided by
homeostat's in the same round, and its median and quartiles over the rounds are printed. Forward + backward means
`module(x).backward(gradient)` with gradients for the input and the parameters. Float32 throughout.

    python benchmarks/kernels.py [--threads 2] [--only norm] [--no-compile]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import homeostat as hs
from homeostat import environment
from homeostat.kernels.augment import augment
from homeostat.kernels.dropout import draw_seed
from homeostat.kernels.moments import moments

SECONDS_PER_ROW = 4.0
LAST = torch.channels_last
IMAGES = ((64, 64, 32, 32), (128, 32, 28, 28))
MLP = ((64, 512), (256, 1024), (1024, 1024), (4096, 1024), (4096, 4096))


@dataclass(frozen=True)
class Row:
    """One comparison: what homeostat does, and what others do in its place, by name."""

    name: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]]


def rows(compiling: bool) -> Iterator[Row]:
    yield from dropout_rows(compiling)
    yield from norm_rows(compiling)
    yield from pooling_rows()
    yield from small_rows()
    yield from moments_rows()
    yield from augment_rows()
    yield from step_rows()


def dropout_rows(compiling: bool) -> Iterator[Row]:
    x = torch.randn(IMAGES[0])
    ours, torchs = hs.nn.Dropout(0.5), nn.Dropout(0.5)
    others: dict[str, Callable[[], object]] = {"eager": lambda: torchs(x), "copy": x.clone}
    if compiling:
        compiled = torch.compile(nn.Dropout(0.5))
        others["compile"] = lambda: compiled(x)
    yield Row("dropout forward 64x64x32x32", lambda: ours(x), others)
    last = x.to(memory_format=LAST)
    others = {"eager": lambda: torchs(last), "copy": last.clone}
    yield Row("dropout forward 64x64x32x32, channels_last", lambda: ours(last), others)
    for shape in MLP:
        name = "x".join(map(str, shape))
        yield Row(f"dropout forward + backward {name}", both(ours, shape), {"eager": both(torchs, shape)})


def norm_rows(compiling: bool) -> Iterator[Row]:
    for residual in (False, True):
        for shape in IMAGES:
            name = f"batch norm {'+ add ' if residual else ''}+ relu {'x'.join(map(str, shape))}"
            ours = hs.nn.BatchNorm2d(shape[1], activation="relu")
            theirs = TorchNormRelu(shape[1])
            for layout, label in ((LAST, "channels_last"), (torch.contiguous_format, "contiguous")):
                others = {
                    "eager": both(theirs, shape, LAST, residual),
                    "eager, contiguous": both(theirs, shape, torch.contiguous_format, residual),
                }
                if compiling:
                    torch.compiler.reset()
                    others["compile"] = both(torch.compile(theirs), shape, layout, residual)
                yield Row(f"{name}, {label}", both(ours, shape, layout, residual), others)
    shape = (4096, 1024)
    pairs = {
        "layer norm": (hs.nn.LayerNorm(1024), nn.LayerNorm(1024)),
        "group norm": (hs.nn.GroupNorm(32, 1024), nn.GroupNorm(32, 1024)),
        "rms norm": (hs.nn.RMSNorm(1024), nn.RMSNorm(1024)),
    }
    for name, (ours, theirs) in pairs.items():
        yield Row(f"{name} forward + backward 4096x1024", both(ours, shape), {"eager": both(theirs, shape)})


def pooling_rows() -> Iterator[Row]:
    for shape in ((64, 16, 28, 28), (64, 32, 14, 14), *IMAGES):
        ours, theirs = both(hs.nn.MaxPool2d(2), shape, LAST), both(nn.MaxPool2d(2), shape, LAST)
        name = "x".join(map(str, shape))
        yield Row(f"max pool 2x2 forward + backward {name} channels_last", ours, {"eager": theirs})


def small_rows() -> Iterator[Row]:
    shape = (64, 128)
    pairs = {
        "dropout": (hs.nn.Dropout(0.5), nn.Dropout(0.5)),
        "batch norm": (hs.nn.BatchNorm1d(128), nn.BatchNorm1d(128)),
        "batch norm + relu": (hs.nn.BatchNorm1d(128, activation="relu"), TorchNormRelu(128)),
        "layer norm": (hs.nn.LayerNorm(128), nn.LayerNorm(128)),
        "group norm": (hs.nn.GroupNorm(8, 128), nn.GroupNorm(8, 128)),
        "rms norm": (hs.nn.RMSNorm(128), nn.RMSNorm(128)),
    }
    for name, (ours, theirs) in pairs.items():
        yield Row(f"small {name} forward + backward 64x128", both(ours, shape), {"eager": both(theirs, shape)})
    images = (16, 8, 8, 8)
    spatial = {
        "instance norm": (hs.nn.InstanceNorm2d(8), nn.InstanceNorm2d(8)),
        "group norm": (hs.nn.GroupNorm(4, 8), nn.GroupNorm(4, 8)),
    }
    for name, (ours, theirs) in spatial.items():
        yield Row(f"small {name} forward + backward 16x8x8x8", both(ours, images), {"eager": both(theirs, images)})
    x = torch.randn(shape, requires_grad=True)
    for name, (ours, theirs) in pairs.items():
        yield Row(f"small {name} forward 64x128", lambda m=ours: m(x), {"eager": lambda m=theirs: m(x)})


def moments_rows() -> Iterator[Row]:
    x = torch.randn(IMAGES[0])
    others = {"copy": x.clone, "reductions": lambda: reductions(x, 3.0)}
    yield Row("moments 64x64x32x32", lambda: moments(x, bound=3.0), others)
    channels = {"copy": x.clone}
    yield Row("moments per channel 64x64x32x32", lambda: moments(x, dim=1, bound=3.0), channels)


def reductions(x: Tensor, bound: float) -> tuple[Tensor, ...]:
    """What `moments` computes, by torch's own reductions."""
    size = x.abs()
    variance, mean = torch.var_mean(x)
    beyond, zeros = (size > bound).float().mean(), (x == 0).float().mean()
    return mean, variance, size.amax(), zeros, beyond, (~torch.isfinite(x)).sum()


def augment_rows() -> Iterator[Row]:
    from kornia import augmentation as K

    images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8)
    mean, std = torch.tensor([125.0, 123.0, 114.0]), torch.tensor([63.0, 62.0, 66.0])
    steps = [
        K.RandomCrop((32, 32), padding=4, padding_mode="reflect"),
        K.RandomHorizontalFlip(0.5),
        K.RandomErasing(p=1.0, scale=(0.0625, 0.0625), ratio=(1.0, 1.0)),
        K.Normalize(mean / 255, std / 255),
    ]
    theirs = K.AugmentationSequential(*steps, data_keys=["input"])

    def ours() -> Tensor:
        return augment(images, draw_seed(), crop=4, flip=0.5, cutout=8, mean=mean.tolist(), std=std.tolist())

    others = {"kornia": lambda: theirs(images.float() / 255), "copy as float": images.float}
    yield Row("crop + flip + cutout + normalize 512x3x32x32", ours, others)


def step_rows() -> Iterator[Row]:
    ours = step(cnn(hs.nn, fused=True), LAST)
    others = {
        "torch.nn, channels_last": step(cnn(nn, fused=False), LAST),
        "torch.nn, default layout": step(cnn(nn, fused=False), torch.contiguous_format),
    }
    yield Row("training step of the small cnn", ours, others)


class TorchNormRelu(nn.Module):
    """relu(batch_norm(x) + residual) in torch's own operators."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.norm._check_input_dim = lambda input: None  # also for (N, C)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        output = self.norm(input)
        return F.relu(output if residual is None else output + residual)


def cnn(home: object, *, fused: bool) -> nn.Sequential:
    """Two stages of convolution, batch norm, ReLU, pool, dropout and a linear layer, for 28x28 images."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        norm = home.BatchNorm2d(after, activation="relu") if fused else home.BatchNorm2d(after)
        layers += [nn.Conv2d(before, after, 3, padding=1), norm, *([] if fused else [nn.ReLU()])]
        layers += [nn.MaxPool2d(2), home.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def step(model: nn.Module, layout: torch.memory_format) -> Callable[[], object]:
    """One training step on 64 images, batch of the layout's memory format."""
    model = model.to(memory_format=layout)
    x = torch.randn(64, 1, 28, 28).to(memory_format=layout)
    y = torch.randint(0, 10, (64,))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return run


def both(
    module: nn.Module,
    shape: tuple[int, ...],
    layout: torch.memory_format = torch.contiguous_format,
    residual: bool = False,
) -> Callable[[], object]:
    """Forward and backward of a module on fresh normal input."""

    def leaf() -> Tensor:
        return torch.randn(shape).to(memory_format=layout).requires_grad_()

    inputs = [leaf(), leaf()] if residual else [leaf()]
    gradient = torch.randn_like(module(*inputs).detach())
    leaves = [*inputs, *module.parameters()]

    def run() -> None:
        for tensor in leaves:
            tensor.grad = None
        module(*inputs).backward(gradient)

    return run


def measure(row: Row) -> None:
    """Interleave the contenders for a few seconds; print our time and everybody's ratio."""
    contenders = {"homeostat": row.ours, **row.others}
    for run in contenders.values():  # compile, allocate, warm the caches
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    started = time.perf_counter()
    while time.perf_counter() - started < SECONDS_PER_ROW or len(times["homeostat"]) < 7:
        for name, run in contenders.items():
            before = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - before)
    ours = times["homeostat"]
    print(f"{row.name}: {statistics.median(ours) * 1e3:.3f} ms, n = {len(ours)}")
    for name in row.others:
        ratios = [theirs / mine for theirs, mine in zip(times[name], ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"    {name:26} {statistics.median(times[name]) * 1e3:9.3f} ms   {middle:6.2f} x  ({low:.2f} - {high:.2f})"
        )


def first_calls() -> None:
    """What the first call costs in a new process, before and after the compiled code is on disk."""
    script = """if True:
        import time, torch, homeostat as hs
        x = torch.randn(64, 16, 28, 28, requires_grad=True)
        modules = {"dropout": hs.nn.Dropout(0.5), "batch norm + relu": hs.nn.BatchNorm2d(16, activation="relu")}
        for name, module in modules.items():
            started = time.perf_counter()
            module(x).sum().backward()
            print(f"    {name} {time.perf_counter() - started:.2f} s", flush=True)
        """
    with tempfile.TemporaryDirectory() as cache:
        for state in ("compiling", "from the disk"):
            print(f"first forward + backward in a process, {state}:", flush=True)
            subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "NUMBA_CACHE_DIR": cache})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="only rows whose name contains this")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which needs a C++ compiler")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    print(
        ", ".join(f"{name} {value}" for name, value in environment.describe().items()), f"threads {arguments.threads}"
    )
    for row in rows(compiling=not arguments.no_compile):
        if arguments.only in row.name:
            measure(row)
    if not arguments.only:
        first_calls()


if __name__ == "__main__":
    main()
