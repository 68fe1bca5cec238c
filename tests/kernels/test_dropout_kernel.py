"""Dropout's kernels: every backend against the reference, bit for bit, in every layout, cut and number of threads."""

from __future__ import annotations

import pytest
import torch

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels.augment import augment_batch
from homeostat.kernels.drop_connect import drop_connect
from homeostat.kernels.dropout import draw_seed, dropout
from homeostat.kernels.dropout_reference import threshold
from homeostat.kernels.noise import add_noise
from homeostat.kernels.norm_rows import norm_rows
from homeostat.kernels.philox_reference import words

SEED = torch.tensor([0x123456789ABCDEF, 2**40 + 5])
SHAPES = [
    (1,), (7,), (5000,), (3, 1), (6, 5), (9, 31), (4, 32), (7, 33), (13, 2049), (2, 5000), (5, 3, 7), (5, 3, 7, 5),
    (8, 16, 6, 6), (3, 64, 3, 3), (9, 2500, 1, 2), (2, 3, 50, 50), (8, 7, 1, 1), (5, 2, 3, 4, 5), (0, 4), (4, 0),
    (4, 3, 0, 2),
]  # fmt: skip
PLACES = [(0, 0), (1, 0), (3, 2**32 - 17), (2**33 + 2, 2**40 + 5), (4, 7)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def layouts(shape: tuple[int, ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """The same values contiguous, with channels last, transposed, and with gaps."""
    x = torch.randn(shape, dtype=dtype)
    found = [x]
    if x.dim() in (4, 5):
        found.append(x.contiguous(memory_format=torch.channels_last if x.dim() == 4 else torch.channels_last_3d))
    if x.dim() > 1:
        found.append(x.transpose(0, 1).contiguous().transpose(0, 1))
    found.append(torch.stack([x, x], -1)[..., 0])
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_masks_are_the_references_bit_for_bit(shape, dtype, threads):
    inputs = layouts(shape, dtype)
    for dims in range(1, len(shape) + 1):
        for example, position in PLACES:
            expected = dropout(inputs[0], SEED, 0.3, dims, example, position, "reference")
            for x in inputs:
                for count in (1, 2):
                    threads(count)
                    output = dropout(x, SEED, 0.3, dims, example, position, "numba")
                    assert torch.equal(output, expected)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_mask_is_what_the_definition_says(backend):
    x = torch.randn(6, 5, 2)
    keep = words(SEED, 6, 5, 3, 2).reshape(6, 5, 1) >= round(0.25 * 2**32)
    assert torch.equal(dropout(x, SEED, 0.25, 2, 3, 2, backend), torch.where(keep, x * (4 / 3), torch.zeros(())))


def test_more_values_than_a_block_holds_on_several_threads(threads):
    x = torch.randn(9, 64, 33, 31).contiguous(memory_format=torch.channels_last)
    for dims in (1, 2, 4):
        expected = dropout(x, SEED, 0.5, dims, 2, 0, "reference")
        for count in (1, 2, 3):
            threads(count)
            assert torch.equal(dropout(x, SEED, 0.5, dims, 2, 0, "numba"), expected)
            assert torch.equal(dropout(x.contiguous(), SEED, 0.5, dims, 2, 0, "numba"), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 2, 3, 4, 7])
def test_parts_of_a_batch_get_the_masks_of_the_whole(dims, cut):
    x = torch.randn(10, 40, 3)
    whole = dropout(x, SEED, 0.5, dims, 5, 0, None)
    parts = [dropout(x[:cut], SEED, 0.5, dims, 5, 0, None), dropout(x[cut:], SEED, 0.5, dims, 5 + cut, 0, None)]
    assert torch.equal(torch.cat(parts), whole)


def test_examples_cut_along_their_places_get_the_masks_of_the_whole():
    x = torch.randn(6, 100)
    left, right = dropout(x[:, :37], SEED, 0.5, 2, 0, 0, None), dropout(x[:, 37:], SEED, 0.5, 2, 0, 37, None)
    assert torch.equal(torch.cat([left, right], 1), dropout(x, SEED, 0.5, 2, 0, 0, None))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dims", [1, 2, 4])
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_dropped_units_are_zero_even_where_the_input_is_not_finite(backend, dims, form):
    x = torch.randn(7, 40, 2, 3).contiguous(memory_format=form)
    keep = dropout(torch.ones_like(x), SEED, 0.5, dims, 0, 0, backend) != 0
    for bad in (torch.nan, torch.inf, -torch.inf):
        output = dropout(torch.full_like(x, bad), SEED, 0.5, dims, 0, 0, backend)
        assert torch.equal(output[~keep], torch.zeros(int((~keep).sum())))
        assert torch.equal(output[keep].nan_to_num(1, 2, 3), torch.full_like(output[keep], bad).nan_to_num(1, 2, 3))


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("dims", [1, 2])
def test_extreme_probabilities(backend, dims):
    x = torch.randn(64, 100)
    assert torch.equal(dropout(x, SEED, 0.0, dims, 0, 0, backend), x)
    assert torch.equal(dropout(x, SEED, 2.0**-34, dims, 0, 0, backend), x)
    assert torch.equal(dropout(x, SEED, 1.0, dims, 0, 0, backend), torch.zeros_like(x))
    assert torch.equal(dropout(x * torch.inf, SEED, 1 - 2.0**-40, dims, 0, 0, backend), torch.zeros_like(x))


def test_the_share_that_is_dropped_is_p():
    x = torch.ones(64, 1 << 14)
    for p in (1e-3, 0.1, 0.5, 0.9):
        share = (dropout(x, SEED, p, 2, 0, 0, None) == 0).double().mean().item()
        assert abs(share - p) < 4.5 * (p * (1 - p) / x.numel()) ** 0.5
    assert threshold(1e-9) == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_the_cpu_rounds_once(dtype):
    x = torch.randn(8, 40).to(dtype)
    exact = dropout(x.double(), SEED, 0.3, 2, 0, 0, None)
    output = dropout(x, SEED, 0.3, 2, 0, 0, None)
    assert output.dtype == dtype
    torch.testing.assert_close(output, exact.float().to(dtype), rtol=0, atol=0)


def test_memory_format_is_kept():
    x = torch.randn(5, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    for backend in ("numba", "reference"):
        for dims in (1, 2, 4):
            output = dropout(x, SEED, 0.5, dims, 0, 0, backend)
            assert output.is_contiguous(memory_format=torch.channels_last)
        assert dropout(x, SEED, 0.5, 3, 0, 0, backend).is_contiguous()


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_derivatives_of_both_orders(backend):
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def squared(x):
        return dropout(x, SEED, 0.4, 2, 1, 0, backend) ** 2

    assert torch.autograd.gradcheck(squared, x)
    assert torch.autograd.gradgradcheck(squared, x)


def test_the_gradient_is_dropped_like_the_input_and_only_the_seed_is_kept():
    x, grad, kept = torch.randn(9, 40, requires_grad=True), torch.randn(9, 40), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        output = dropout(x, SEED, 0.5, 2, 0, 0, None)
    output.backward(grad)
    assert torch.equal(x.grad, torch.where(output == 0, 0.0, grad * 2))
    assert [(tuple(t.shape), t.dtype) for t in kept] == [((2,), torch.int64)]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_opcheck(form, dims):
    x = torch.randn(5, 3, 4, 2).contiguous(memory_format=form).requires_grad_()
    torch.library.opcheck(dropout.dispatched, (x, SEED, 0.5, dims, 1, 2, None))


def test_a_transposed_input_passes_opcheck():
    x = torch.randn(4, 6).t().requires_grad_()
    torch.library.opcheck(dropout.dispatched, (x, SEED, 0.5, 2, 0, 0, None))


def test_the_draw_is_an_operator_that_compilers_leave_alone():
    operator = torch.ops.homeostat.draw_seed.default
    assert torch.Tag.nondeterministic_seeded in operator.tags
    torch.library.opcheck(operator, (torch.empty(2, dtype=torch.int64),), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="This torch has no such tag.")
def test_compilers_leave_what_draws_out_of_cuda_graphs():
    for operator in (dropout, add_noise, augment_batch, drop_connect):
        assert torch.Tag.cudagraph_unsafe in operator.dispatched.tags
    assert torch.Tag.cudagraph_unsafe not in norm_rows.dispatched.tags


def test_batching_over_inputs_shares_masks_and_over_seeds_does_not():
    x, seeds = torch.randn(3, 5, 40), torch.tensor([[1, 2], [3, 4], [5, 6]])
    one = [dropout(part, SEED, 0.5, 2, 0, 0, None) for part in x]
    for axis in (0, 1, 2):
        batched = torch.func.vmap(lambda x: dropout(x, SEED, 0.5, 2, 0, 0, None), in_dims=axis, out_dims=axis)
        assert torch.equal(batched(x.movedim(0, axis)), torch.stack(one, axis))
    own = torch.stack([dropout(part, seed, 0.5, 2, 0, 0, None) for part, seed in zip(x, seeds, strict=True)])
    assert torch.equal(torch.func.vmap(lambda x, seed: dropout(x, seed, 0.5, 2, 0, 0, None))(x, seeds), own)
    same = torch.stack([dropout(x[0], seed, 0.5, 2, 0, 0, None) for seed in seeds])
    assert torch.equal(torch.func.vmap(lambda seed: dropout(x[0], seed, 0.5, 2, 0, 0, None))(seeds), same)


def test_batched_gradients_of_both_orders():
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    mask = dropout(torch.ones_like(x[0]), SEED, 0.5, 2, 0, 0, None)

    def cubes(x):
        return (dropout(x, SEED, 0.5, 2, 0, 0, None) ** 3).sum()

    gradient = torch.func.vmap(torch.func.grad(cubes))(x)
    torch.testing.assert_close(gradient, 3 * x**2 * mask**3)
    hessian = torch.func.jacrev(torch.func.jacrev(cubes))(x[0]).reshape(20, 20)
    torch.testing.assert_close(hessian, (6 * x[0] * mask**3).flatten().diag())


def test_seeds_come_from_the_generator_alone():
    first = draw_seed(torch.Generator().manual_seed(3))
    assert first.dtype == torch.int64
    assert first.shape == (2,)
    assert torch.equal(first, draw_seed(torch.Generator().manual_seed(3)))
    torch.manual_seed(3)
    assert torch.equal(first, draw_seed())
    assert not torch.equal(first, draw_seed())
    with torch.device("meta"):
        assert draw_seed().device.type == "cpu"


BAD = [
    ({"input": torch.ones(2, 2, dtype=torch.int64)}, InvalidType, "input must be floating"),
    ({"dims": 0}, InvalidValue, r"dims must lie in \[1, 2\]"),
    ({"dims": 3}, InvalidValue, r"dims must lie in \[1, 2\]"),
    ({"p": -0.1}, InvalidValue, r"p must lie in \[0, 1\], but got -0.1"),
    ({"p": 1.5}, InvalidValue, r"p must lie in \[0, 1\]"),
    ({"p": float("nan")}, InvalidValue, r"p must lie in \[0, 1\]"),
    ({"seed": torch.tensor([1.0, 2.0])}, InvalidValue, "seed must be int64"),
    ({"seed": torch.tensor([1])}, InvalidValue, "seed must be int64"),
    ({"example": -1}, InvalidValue, "example must be at least 0"),
    ({"example": 2**34 - 1}, InvalidValue, "example must be at least 0"),
    ({"position": -1}, InvalidValue, "position must be at least 0"),
    ({"backend": "numbda"}, InvalidValue, "Did you mean 'numba'"),
    ({"input": torch.ones(2, 2, dtype=torch.float16), "backend": "numba"}, InvalidValue, "float32 or float64"),
]


@pytest.mark.parametrize(("change", "kind", "message"), BAD)
def test_bad_arguments_are_refused(change, kind, message):
    good = {"input": torch.ones(2, 2), "seed": SEED, "p": 0.5, "dims": 2, "example": 0, "position": 0, "backend": None}
    with pytest.raises(kind, match=message):
        dropout(*{**good, **change}.values())
