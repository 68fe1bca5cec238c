"""Normalization of rows on a GPU or in Triton's interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homeostat.kernels.norm_rows import norm_rows, norm_rows_gradient

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of masked values

SHAPES = [(3, 1, 7), (5, 2, 8), (33, 1, 64), (1, 1, 1), (0, 2, 4)]  # examples, groups, length
CASES = [  # center, slope, weight and bias, residual
    (True, 1.0, True, False),
    (False, 0.0, True, True),
    (True, 0.01, True, True),
    (True, 0.0, False, False),
]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3}  # of the largest value, or of 1


def check(got: Tensor, expected: Tensor, tolerance: float) -> None:
    assert got.shape == expected.shape
    if got.numel():
        largest = max(1.0, expected.abs().max().item())
        assert (got.cpu().double() - expected.double()).abs().max().item() <= tolerance * largest


def compare(
    device: str, sizes: tuple[int, int, int], dtype: torch.dtype, case: tuple[bool, float, bool, bool], eps: float
) -> None:
    examples, groups, length = sizes
    center, slope, affine, residual = case
    far = 1e4 if center and dtype == torch.float32 else 0  # float16 has no digits left there
    x = (torch.randn(examples, groups * length, dtype=torch.float64) + far).to(dtype)
    w, b = (torch.randn(groups * length).to(dtype) if affine else None for _ in range(2))
    r = torch.randn(x.shape).to(dtype) if residual else None
    there = [None if t is None else t.to(device) for t in (x, w, b, r)]
    settings = (length, groups, eps, center, slope)
    y, statistics = norm_rows(*there, *settings, "triton")
    expected, known = norm_rows(x, w, b, r, *settings, "reference")
    tolerance = TOLERANCE[dtype]
    check(y, expected, tolerance)
    check(statistics, known, tolerance)
    d = torch.randn(x.shape).to(dtype)
    output = expected if residual and slope != 1 else None
    tensors = (d, x, w, b, output, known)
    there = [None if t is None else t.to(device) for t in tensors]
    got = norm_rows_gradient(*there, *settings, True, "triton")
    for one, other in zip(got, norm_rows_gradient(*tensors, *settings, True, "reference"), strict=True):
        check(one, other, 3 * tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_values_and_gradients_are_the_references(
    triton_device: str, sizes: tuple[int, int, int], case: tuple[bool, float, bool, bool], dtype: torch.dtype
) -> None:
    compare(triton_device, sizes, dtype, case, 1e-5)


def test_float16(triton_device: str) -> None:
    compare(triton_device, (5, 2, 33), torch.float16, CASES[1], 1e-5)


@pytest.mark.parametrize("case", CASES[:2])
def test_rows_that_do_not_fit_a_program(
    triton_device: str, case: tuple[bool, float, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    if triton_device == "cpu":  # shorter rows are long enough
        from homeostat.kernels import norm_rows_gpu

        monkeypatch.setattr(norm_rows_gpu, "LONGEST", 256)
        monkeypatch.setattr(norm_rows_gpu, "_CHUNK", 256)
        compare(triton_device, (18, 2, 300), torch.float32, case, 1e-5)
    else:
        compare(triton_device, (20, 2, 20000), torch.float32, case, 1e-5)


def test_an_infinity_stays_in_its_row(triton_device: str) -> None:
    x = torch.randn(4, 16, device=triton_device)
    x[1, 3] = torch.inf
    y, _ = norm_rows(x, None, None, None, 16, 1, 1e-5, True, 1.0, "triton")
    assert y[1].isnan().any()
    assert y[[0, 2, 3]].isfinite().all()


def test_relu_of_minus_infinity_is_zero(triton_device: str) -> None:
    x = torch.randn(2, 8, device=triton_device)
    residual = torch.full_like(x, -torch.inf)
    y, _ = norm_rows(x, None, None, residual, 8, 1, 1e-5, True, 0.0, "triton")
    assert torch.equal(y, torch.zeros_like(y))


def test_autograd_goes_through_the_kernels(triton_device: str) -> None:
    x = torch.randn(5, 12, dtype=torch.float64)
    w, b = torch.randn(2, 12, dtype=torch.float64)
    grads = []
    for device, backend in ((triton_device, "triton"), ("cpu", "reference")):
        inputs = [t.to(device).requires_grad_() for t in (x, w, b)]
        y, _ = norm_rows(*inputs, None, 12, 1, 1e-5, True, 0.0, backend)
        grads.append([g.cpu() for g in torch.autograd.grad(y.square().sum(), inputs)])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
