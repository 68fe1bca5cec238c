"""Moments on a GPU or in Triton's interpreter, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from homeostat.kernels.moments import moments

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of sets without values

SHAPES = [(3000,), (300, 7), (4, 3, 50), (1,)]


@pytest.mark.parametrize("bound", [math.inf, 0.1, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moments_are_the_references(
    triton_device: str, shape: tuple[int, ...], dtype: torch.dtype, bound: float
) -> None:
    x = (torch.randn(shape, dtype=torch.float64) + (1e4 if dtype == torch.float32 else 0)).to(dtype)
    if x.numel() > 20:
        x.view(-1)[:8] = torch.tensor([math.nan, 1, math.inf, 0, 2, -math.inf, 0, 0.1])
    exact, tolerance = dtype == torch.float64, 1e-12 if dtype == torch.float64 else 2e-6
    for dim in (None, 1) if len(shape) > 1 else (None,):
        got = [value.cpu() for value in moments(x.to(triton_device), dim=dim, bound=bound, backend="triton")]
        expected = moments(x, dim=dim, bound=bound, backend="reference")
        for index, name in enumerate(expected._fields):
            rtol = tolerance if name in ("mean", "variance") else 1e-14
            atol = 1e-13 if exact else 1e-6 if name == "mean" else 0
            torch.testing.assert_close(got[index], expected[index], rtol=rtol, atol=atol, equal_nan=True, msg=name)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_empty(triton_device: str, shape: tuple[int, int]) -> None:
    for dim in (None, 1):
        got = moments(torch.ones(shape, device=triton_device), dim=dim, backend="triton")
        expected = moments(torch.ones(shape), dim=dim, backend="reference")
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one.cpu(), other, equal_nan=True)


def test_values_that_are_not_finite_cost_no_digits(triton_device: str) -> None:
    x = 1e4 + torch.randn(6000)
    x[:4500] = torch.nan
    got = moments(x.to(triton_device), backend="triton")
    assert got.nonfinite.item() == 4500
    assert math.isclose(got.variance.item(), x[4500:].double().var(correction=0).item(), rel_tol=1e-5)


def test_several_tiles_to_a_program(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from homeostat.kernels import moments_gpu

    monkeypatch.setattr(moments_gpu, "_TILE", 64)
    monkeypatch.setattr(moments_gpu, "_PROGRAMS", 2)
    monkeypatch.setattr(moments_gpu, "_WIDEST", 8)
    for shape in ((70, 20), (6, 5, 50)):
        x = 1e4 + torch.randn(shape)
        got = moments(x.to(triton_device), dim=1, bound=1e4, backend="triton")
        for one, other in zip(got, moments(x, dim=1, bound=1e4, backend="reference"), strict=True):
            torch.testing.assert_close(one.cpu(), other, rtol=2e-6, atol=0)
