"""Maximum pooling by 2x2: torch's values and gradients bit for bit, in every layout, with whatever numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as torch_functional

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels.max_pool import is_compiled, max_pool, max_pool_pick, max_pool_spread
from homeostat.nn import MaxPool2d
from homeostat.nn import functional as F

SHAPES = [(2, 1, 2, 2), (3, 16, 4, 6), (2, 17, 5, 7), (4, 35, 8, 3), (1, 64, 28, 28), (5, 3, 2, 9)]
LAST = torch.channels_last


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Few different ones, so that windows have equal values, with NaN, infinities and zeros of both signs."""
    some = torch.tensor([0.0, -0.0, 1.0, -2.0, 0.5, torch.inf, -torch.inf, torch.nan], dtype=dtype)
    return some[torch.randint(len(some), shape, generator=torch.Generator().manual_seed(seed))]


def both(x: torch.Tensor, backend: str) -> list[list[torch.Tensor]]:
    """Values and gradients by the kernel and by torch."""
    rows = []
    for function in (lambda x: max_pool(x, backend)[0], lambda x: torch_functional.max_pool2d(x, 2)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = function(leaf)
        grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
        rows.append([y.detach(), *torch.autograd.grad(y, leaf, grad)])
    return rows


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    for own, other in zip(ours, theirs, strict=True):
        assert own.dtype is other.dtype
        assert own.stride() == other.stride()
        torch.testing.assert_close(own, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_is_torch_bit_for_bit(shape, dtype):
    x = numbers(*shape, dtype=dtype).contiguous(memory_format=LAST)
    if shape[1] > 1:
        assert is_compiled(x)
        assert_same(*both(x, "numba"))
    assert_same(*both(x, "reference"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_reference_serves_every_layout_and_half_precision(dtype):
    x = numbers(3, 5, 6, 7).to(dtype)
    for form in (torch.contiguous_format, LAST):
        assert_same(*both(x.contiguous(memory_format=form), "reference"))
    torch.testing.assert_close(
        max_pool(x.transpose(2, 3), "reference")[0], torch_functional.max_pool2d(x.transpose(2, 3), 2), equal_nan=True
    )


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 40), st.integers(2, 12), st.integers(2, 12)),
    seed=st.integers(0, 2**31),
    threads=st.integers(1, 3),
)
def test_any_shape_and_number_of_threads(shape, seed, threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert_same(*both(numbers(*shape, seed=seed).contiguous(memory_format=LAST), "numba"))
    finally:
        torch.set_num_threads(before)


def test_a_gradient_in_another_layout_counts_the_same():
    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=LAST).requires_grad_()
    y = max_pool(x, None)[0]
    grad = torch.randn(2, 16, 2, 2)
    (found,) = torch.autograd.grad(y, x, grad, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, grad.contiguous(memory_format=LAST))
    assert torch.equal(found, again)
    assert found.is_contiguous(memory_format=LAST)


@pytest.mark.parametrize("form", [torch.contiguous_format, LAST])
def test_gradients_of_both_orders(form):
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64).contiguous(memory_format=form).requires_grad_()
    for function in (lambda x: max_pool(x, None)[0], lambda x: max_pool(x * x.sin(), None)[0]):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


def test_spreading_and_picking_are_adjoint():
    x, places = torch.randn(2, 6, 5, 4), max_pool(torch.randn(2, 6, 5, 4), None)[1]
    y = torch.randn(2, 6, 2, 2)
    one = (max_pool_spread(y, places, 5, 4, None) * x).sum()
    torch.testing.assert_close(one, (max_pool_pick(x, places, None) * y).sum())


@pytest.mark.parametrize("form", [torch.contiguous_format, LAST])
def test_it_is_an_operator_that_torch_can_trust(form):
    x = torch.randn(2, 3, 5, 4).contiguous(memory_format=form)
    places = max_pool(x, None)[1]
    for operator, args in (
        (max_pool, (x.clone(memory_format=torch.preserve_format).requires_grad_(), None)),
        (max_pool_spread, (torch.randn(2, 3, 2, 2).contiguous(memory_format=form), places, 5, 4, None)),
        (max_pool_pick, (x, places, None)),
    ):
        torch.library.opcheck(operator.dispatched, args)


def test_the_transforms_of_torch_func():
    x = torch.randn(3, 2, 4, 5, 4)
    found = torch.func.vmap(lambda x: max_pool(x, None)[0])(x)
    assert torch.equal(found, torch.stack([torch_functional.max_pool2d(each, 2) for each in x]))
    found = torch.func.grad(lambda x: max_pool(x, None)[0].square().sum())(x[0])
    assert torch.equal(found, torch.func.grad(lambda x: torch_functional.max_pool2d(x, 2).square().sum())(x[0]))


@pytest.mark.parametrize(
    ("backend", "x", "error"),
    [
        ("numba", torch.zeros(2, 3, 4, 4), InvalidValue),  # channels first
        ("numba", torch.zeros(2, 3, 4, 4, dtype=torch.float16), InvalidValue),
        ("fast", torch.zeros(2, 3, 4, 4), InvalidValue),
        (None, torch.zeros(2, 3, 4, 4, dtype=torch.int64), InvalidType),
        (None, torch.zeros(2, 3, 1, 4), InvalidValue),
        (None, torch.zeros(3, 4, 4), InvalidValue),
    ],
)
def test_what_cannot_be_pooled_is_refused(backend, x, error):
    with pytest.raises(error, match="max_pool"):
        max_pool(x, backend)


def test_places_must_fit():
    with pytest.raises(InvalidValue, match="places"):
        max_pool_spread(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), 4, 4, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 2}, {"kernel_size": (2, 2), "stride": (2, 2)}, {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "stride": 1}, {"kernel_size": 2, "ceil_mode": True}, {"kernel_size": 2, "dilation": 2},
        {"kernel_size": (2, 1)}, {"kernel_size": 2, "padding": 1},
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", [torch.contiguous_format, LAST])
def test_the_layer_is_torch_s_whatever_its_settings(settings, form):
    x = numbers(3, 16, 7, 6).contiguous(memory_format=form)
    layer, other = MaxPool2d(**settings), torch.nn.MaxPool2d(**settings)
    rows = []
    for module in (layer, other):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = module(leaf)
        rows.append([y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y))])
    assert_same(*rows)
    assert torch.nn.MaxPool2d.extra_repr(layer) == layer.extra_repr()


def test_torch_s_own_function_is_seen_by_modes_compilers_and_exporters():
    from torch.overrides import TorchFunctionMode

    class Seen(TorchFunctionMode):
        def __init__(self):
            super().__init__()
            self.functions = []

        def __torch_function__(self, function, types, args=(), kwargs=None):
            self.functions.append(function)
            return function(*args, **(kwargs or {}))

    x = torch.randn(2, 16, 4, 4).contiguous(memory_format=LAST)
    with Seen() as seen:
        F.max_pool2d(x, 2)
    assert torch_functional.max_pool2d in seen.functions or torch.max_pool2d in seen.functions
    targets = [str(node.target) for node in torch.export.export(MaxPool2d(2), (x,)).graph.nodes]
    assert any("aten.max_pool2d" in target for target in targets)
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(values, F.max_pool2d(x, 2))
    assert indices.dtype is torch.int64


def test_one_example_without_a_batch_and_empty_batches():
    for x in (torch.randn(3, 4, 4), torch.zeros(0, 3, 4, 4)):
        assert torch.equal(F.max_pool2d(x, 2), torch_functional.max_pool2d(x, 2))
