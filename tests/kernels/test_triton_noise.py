"""Noise on a GPU or in Triton's interpreter: the reference's numbers, to rounding."""

from __future__ import annotations

import pytest
import torch

from homeostat.kernels.noise import add_noise

SEED = torch.tensor([2**62 + 12345, 2**31 + 7])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("shape", "form", "example"),
    [
        ((5, 3, 8, 8), torch.channels_last, 0),
        ((5, 3, 8, 9), torch.contiguous_format, 2**33 + 1),
        ((7, 600), torch.contiguous_format, 3),
        ((1, 1, 5, 5), torch.contiguous_format, 2),
        ((0, 3, 4, 4), torch.contiguous_format, 0),
    ],
    ids=str,
)
def test_the_reference_s_numbers(
    triton_device: str, shape: tuple[int, ...], form: torch.memory_format, example: int, dtype: torch.dtype
) -> None:
    x = (torch.rand(shape) * 256).to(dtype).contiguous(memory_format=form)
    got = add_noise(x.to(triton_device), SEED, 20.0, example, "triton").cpu()
    expected = add_noise(x, SEED, 20.0, example, "reference")
    assert (got.dtype, got.stride()) == (expected.dtype, expected.stride())
    if dtype == torch.uint8:  # a sum near one half may be rounded the other way
        assert ((got.int() - expected.int()).abs() <= 1).all()
        assert (got != expected).float().sum() <= 1
    else:
        step = 2**-7 if dtype == torch.bfloat16 else 0  # one sum may be rounded to a neighbor
        torch.testing.assert_close(got, expected, rtol=step, atol=1e-3)
