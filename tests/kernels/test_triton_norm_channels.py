"""Batch, instance and group normalization on a GPU or in Triton's interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from homeostat.kernels import norm_channels as kernels

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of masked values

SHAPES = [(9, 6), (5, 6, 7), (3, 4, 5, 6)]
CASES = [(1.0, True, False), (0.0, True, True), (0.01, False, False)]  # slope, weight and bias, residual
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3}  # of the largest value, or of 1


@pytest.fixture(params=[False, True], ids=["large", "small"])
def tiles(request: pytest.FixtureRequest, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, several to a program, and sets that do not fit one, so that small tensors take every way."""
    from homeostat.kernels import norm_channels_gpu

    if request.param:
        for name, value in (("_TILE", 32), ("_WIDEST", 4), ("_PROGRAMS", 4), ("LONGEST", 8)):
            monkeypatch.setattr(norm_channels_gpu, name, value)


def check(got: Any, expected: Any, tolerance: float) -> None:
    if not isinstance(expected, Tensor):
        for one, other in zip(got, expected, strict=True):
            check(one, other, tolerance)
        return
    assert got.shape == expected.shape
    if expected.numel():
        assert got.dtype == expected.dtype
        largest = max(1.0, expected.abs().max().item())
        assert (got.cpu().double() - expected.double()).abs().max().item() <= tolerance * largest


def made(shape: tuple[int, ...], dtype: torch.dtype, last: bool, affine: bool, residual: bool) -> list[Tensor | None]:
    """Input, weight, bias, residual; float32 far from zero."""
    x = (torch.randn(shape, dtype=torch.float64) + (1e4 if dtype == torch.float32 else 0)).to(dtype)
    x = x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x
    w, b = (torch.randn(shape[1]).to(dtype) if affine else None for _ in range(2))
    return [x, w, b, torch.randn(shape).to(dtype) if residual else None]


def on(device: str, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(device) for tensor in tensors]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("slope", "affine", "residual"), CASES)
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients_are_the_references(
    triton_device: str, shape: tuple[int, ...], last: bool, groups: int, slope: float, affine: bool, residual: bool
) -> None:
    compare(triton_device, shape, last, groups, slope, affine, residual, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("last", [False, True])
def test_other_dtypes(triton_device: str, last: bool, groups: int, dtype: torch.dtype) -> None:
    compare(triton_device, (3, 4, 2, 3), last, groups, 0.0, True, True, dtype)


def compare(
    device: str, shape: tuple[int, ...], last: bool, groups: int, slope: float, affine: bool, residual: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    x, w, b, r = made(shape, dtype, last, affine, residual)
    tolerance = TOLERANCE[dtype]
    settings = (groups, 1e-5, slope)
    expected = kernels.normalize(x, w, b, r, *settings, "reference")
    check(kernels.normalize(*on(device, x, w, b, r), *settings, "triton"), expected, tolerance)
    y, mean, variance = expected
    output = y if residual and slope != 1 else None
    tensors = (torch.randn(shape).to(dtype), x, w, b, output, mean, variance)
    got = kernels.normalize_backward(*on(device, *tensors), *settings, "triton")
    check(got, kernels.normalize_backward(*tensors, *settings, "reference"), 4 * tolerance)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("slope", "affine", "residual"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_given_statistics(triton_device: str, last: bool, slope: float, affine: bool, residual: bool) -> None:
    x, w, b, r = made((5, 6, 3, 4), torch.float32, last, affine, residual)
    mean, variance = 1e4 + torch.rand(6), 1 + torch.rand(6)
    y = kernels.affine(x, mean, variance, w, b, r, 1e-5, slope, "reference")
    got = kernels.affine(*on(triton_device, x, mean, variance, w, b, r), 1e-5, slope, "triton")
    check(got, y, 1e-5)
    tensors = (torch.randn(x.shape), x, mean, variance, w, b, y if residual and slope != 1 else None)
    got = kernels.affine_backward(*on(triton_device, *tensors), 1e-5, slope, "triton")
    check(got, kernels.affine_backward(*tensors, 1e-5, slope, "reference"), 4e-5)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize(("slope", "affine", "residual"), CASES)
@pytest.mark.parametrize("last", [False, True])
def test_partial_sums(triton_device: str, last: bool, slope: float, affine: bool, residual: bool) -> None:
    x, w, b, r = made((5, 6, 3, 4), torch.float32, last, affine, residual)
    known = kernels.statistics(x, "reference")
    check(kernels.statistics(x.to(triton_device), "triton"), known, 1e-5)
    y = kernels.normalize_with(x, known, w, b, r, 1e-5, slope, "reference")
    tensors = (torch.randn(x.shape), x, known, w, b, y if residual and slope != 1 else None)
    sums, masked = kernels.gradient_sums(*tensors, 1e-5, slope, "reference")
    got = kernels.gradient_sums(*on(triton_device, *tensors), 1e-5, slope, "triton")
    check(got, (sums, masked), 4e-5)
    if residual and slope != 1:
        tensors, slope = (masked, *tensors[1:]), 1.0
    tensors = (*tensors[:5], sums)
    got = kernels.input_gradient(*on(triton_device, *tensors), 1e-5, slope, "triton")
    check(got, kernels.input_gradient(*tensors, 1e-5, slope, "reference"), 4e-5)


def test_parts_merged_are_the_whole(triton_device: str) -> None:
    x = (torch.randn(7, 3, 5) + 1e4).to(triton_device)
    parts = torch.stack([kernels.statistics(part, "triton") for part in (x[:2], x[2:])])
    torch.testing.assert_close(kernels.merge(parts), kernels.statistics(x, "triton"), rtol=1e-7, atol=0)


@pytest.mark.parametrize("groups", [0, 2])
def test_empty(triton_device: str, groups: int) -> None:
    x = torch.ones(0, 4, 3, device=triton_device)
    y, mean, variance = kernels.normalize(x, None, None, None, groups, 1e-5, 1.0, "triton")
    assert y.shape == x.shape
    assert mean.shape == variance.shape == ((0, 2) if groups else (4,))


def test_autograd_goes_through_the_kernels(triton_device: str) -> None:
    x, w, b, r = (torch.randn(s, dtype=torch.float64) for s in ((4, 3, 5), (3,), (3,), (4, 3, 5)))
    grads = []
    for device, backend in ((triton_device, "triton"), ("cpu", "reference")):
        inputs = [t.to(device).requires_grad_() for t in (x, w, b, r)]
        y = kernels.normalize(*inputs, 0, 1e-5, 0.0, backend)[0]
        grads.append([g.cpu() for g in torch.autograd.grad(y.square().sum(), inputs)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
