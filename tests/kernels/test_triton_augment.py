"""Augmentation on a GPU or in Triton's interpreter: the bits of the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from homeostat.kernels.augment import augment

SEED = torch.tensor([2**62 + 12345, 2**31 + 7])
CASES = [
    {"crop": (2, 3), "flip": 0.5, "cutout": 3, "mean": 120.0, "std": 50.0},
    {"crop": (9, 1), "padding_mode": "constant", "flip": 1.0, "cutout": 4, "fill": 0.5, "example": 2**33 + 1},
    {"flip": 0.3, "cutout": 50, "example": 3},
    {},
]


@pytest.mark.parametrize("layout", ["first", "last", "transposed"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(5, 3, 8, 8), (2, 1, 11, 33), (0, 3, 4, 4)], ids=str)
def test_the_bits_of_the_reference(
    triton_device: str, shape: tuple[int, ...], case: dict[str, Any], dtype: torch.dtype, layout: str
) -> None:
    x = (torch.rand(shape) * 256).to(dtype)
    if layout == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    got = augment(x.to(triton_device), SEED, **case, backend="triton").cpu()
    expected = augment(x, SEED, **case, backend="reference")
    assert got.dtype == expected.dtype
    assert got.stride() == expected.stride()
    assert torch.equal(got, expected)


def test_parts_of_a_batch_are_as_in_the_whole(triton_device: str) -> None:
    x = (torch.rand(7, 3, 16, 16, device=triton_device) * 256).to(torch.uint8)
    settings: dict[str, Any] = {"crop": 4, "flip": 0.5, "cutout": 5, "backend": "triton"}
    parts = [augment(x[:3], SEED, **settings), augment(x[3:], SEED, example=3, **settings)]
    assert torch.equal(augment(x, SEED, **settings), torch.cat(parts))
