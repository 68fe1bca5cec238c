"""Dropout on a GPU or in Triton's interpreter: the masks of the reference, bit for bit, in every shape and layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from homeostat.errors import HomeostatError
from homeostat.kernels.dropout import dropout

SEED = torch.tensor([0x7EDC_BA98_8765_4321, 0x1122_3344_F566_7788])
SHAPES = [
    ((70,), 1),  # one position per example
    ((7, 7), 2),  # a few: places run on into the next examples
    ((3, 1), 2),
    ((6, 256), 2),  # whole blocks
    ((2, 4100), 2),  # blocks and a rest
    ((5, 8, 6, 7), 4),
    ((5, 8, 6, 7), 3),
    ((5, 8, 6, 7), 2),
    ((5, 8, 6, 7), 1),
    ((2, 3, 2, 3, 5), 5),
    ((2, 3, 2, 3, 5), 2),
]
PLACES = [(0, 0), (3, 2**32 - 5), (2**33 + 2, 2**34 + 1)]  # across the upper word; far away


@pytest.mark.parametrize(("example", "position"), PLACES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(("shape", "dims"), SHAPES, ids=str)
def test_mask_and_values_are_the_references(
    triton_device: str, shape: tuple[int, ...], dims: int, last: bool, example: int, position: int
) -> None:
    x = torch.randn(shape)
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1) if len(shape) > 1 else torch.randn(2 * len(x))[::2]
    arguments = (SEED, 0.3, dims, example, position)
    got = dropout(x.to(triton_device), *arguments, "triton").cpu()
    expected = dropout(x, *arguments, "reference")
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert got.stride() == expected.stride()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("shape", "dims"), [((9, 40), 2), ((70,), 1), ((4, 6, 5, 3), 2)], ids=str)
def test_other_dtypes_have_the_same_mask(
    triton_device: str, dtype: torch.dtype, shape: tuple[int, ...], dims: int
) -> None:
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    got = dropout(x.to(triton_device), SEED, 0.4, dims, 0, 0, "triton").cpu()
    expected = dropout(x, SEED, 0.4, dims, 0, 0, "reference")
    assert torch.equal(got == 0, expected == 0)
    # the interpreter cuts off where bfloat16 should be rounded: one unit in the last place, 2**-7 at most
    torch.testing.assert_close(got, expected, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=0)


@pytest.mark.parametrize("p", [0.0, 1.0, 1e-12, 1 - 1e-12, 0.75])
def test_probabilities(triton_device: str, p: float) -> None:
    x = torch.randn(5, 300)
    got = dropout(x.to(triton_device), SEED, p, 2, 0, 0, "triton").cpu()
    assert torch.equal(got, dropout(x, SEED, p, 2, 0, 0, "reference"))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty(triton_device: str, shape: tuple[int, ...]) -> None:
    assert dropout(torch.ones(shape, device=triton_device), SEED, 0.5, 2, 0, 0, "triton").shape == shape


@pytest.mark.parametrize("dims", [1, 2, 4])
def test_a_dropped_unit_is_zero_even_if_it_was_not_finite(triton_device: str, dims: int) -> None:
    x = torch.full((8, 8, 2, 2), torch.inf, device=triton_device)
    x[:, ::2] = torch.nan
    assert (dropout(x, SEED, 0.5, dims, 0, 0, "triton") == 0).any()


def test_gradient_drops_what_the_forward_dropped(triton_device: str) -> None:
    x = torch.randn(6, 50, device=triton_device, requires_grad=True)
    y = dropout(x, SEED, 0.5, 2, 0, 0, "triton")
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(grad, dropout(torch.ones_like(x), SEED, 0.5, 2, 0, 0, "triton"))
    assert torch.equal(grad == 0, y == 0)


def test_parts_of_a_batch_have_the_masks_of_the_whole(triton_device: str) -> None:
    x = torch.ones(11, 64, device=triton_device)

    def dropped(part: Tensor, example: int) -> Tensor:
        return dropout(part, SEED, 0.5, 2, example, 0, "triton")

    whole = dropped(x, 0)
    assert torch.equal(whole, torch.cat([dropped(x[:3], 0), dropped(x[3:4], 3), dropped(x[4:], 4)]))


def test_a_graph_that_would_repeat_its_mask_cannot_be_captured(
    triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(HomeostatError, match=r"CUDA graph.*every replay"):
        dropout(torch.ones(4, 8, device=triton_device), SEED, 0.5, 2, 0, 0, "triton")
