"""Normalization of rows: every backend against float64 torch, in values, statistics and gradients."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from homeostat.errors import InvalidType, InvalidValue
from homeostat.kernels.norm_rows import norm_rows, norm_rows_gradient, normalize

# (examples, groups, length): odd, one value, many short rows, rows of several chunks, rows too long for the cache
SIZES = [(5, 3, 7), (1, 1, 1), (300, 1, 16), (40, 1, 1500), (3, 1, 20001), (2, 5, 4001)]
VARIANTS = ((True, False), (1.0, 0.0, 0.01), (True, False), (True, False))


def case(examples, groups, length, weighted, added, *, dtype=torch.float32, mean=0.0, seed=0):
    """(input, weight, bias, residual), which require gradients, and the output's gradient."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    columns = groups * length
    x, r, grad = draw(examples, columns) + mean, draw(examples, columns), draw(examples, columns)
    w, b = draw(columns), draw(columns)
    tensors = [x, w if weighted else None, b if weighted else None, r if added else None]
    return [t if t is None else t.to(dtype).requires_grad_() for t in tensors], grad.to(dtype)


def by_torch(tensors, length, groups, eps, center, slope):
    """The same in float64, by torch's own functions."""
    x, w, b, r = tensors
    rows = x.reshape(-1, groups, length)
    z = functional.layer_norm(rows, (length,), eps=eps) if center else functional.rms_norm(rows, (length,), eps=eps)
    z = z.reshape(x.shape)
    z = z if w is None else z * w
    z = z if b is None else z + b
    z = z if r is None else z + r
    return functional.leaky_relu(z, slope) if slope else functional.relu(z)


def with_gradients(function, tensors, grad):
    output = function(tensors)
    present = [t for t in tensors if t is not None]
    return [output.detach(), *torch.autograd.grad(output, present, grad)]


def assert_close(actual, expected, tolerance):
    """Within `tolerance` of the largest expected magnitude, or of 1."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a.double() - e.double()).abs().max() <= tolerance * e.double().abs().max().clamp(min=1)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(("examples", "groups", "length"), SIZES)
def test_output_and_gradients_are_those_of_torch_in_float64(backend, examples, groups, length):
    every = 1 if length < 1000 else 5
    for center, slope, weighted, added in list(itertools.product(*VARIANTS))[::every]:
        tensors, grad = case(examples, groups, length, weighted, added)
        double = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
        settings = (length, groups, 0.1, center, slope)
        actual = with_gradients(lambda t, s=settings: normalize(*t, *s, backend)[0], tensors, grad)
        assert_close(actual, with_gradients(lambda t, s=settings: by_torch(t, *s), double, grad.double()), 3e-6)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("size", [(64, 1, 1000), (64, 4, 16), (4, 1, 20001), (2, 1, 50_000)])
@pytest.mark.parametrize("slope", [1.0, 0.0])
def test_a_mean_of_10000_and_a_deviation_of_1_cost_no_digits(backend, size, slope):
    examples, groups, length = size
    tensors, grad = case(examples, groups, length, True, False, mean=1e4)
    double = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    settings = (length, groups, 1e-5, True, slope)
    actual = with_gradients(lambda t: normalize(*t, *settings, backend)[0], tensors, grad)
    # away from the activation's edge, where rounding alone decides on which side a value is
    expected = with_gradients(lambda t: by_torch(t, *settings), double, grad.double())
    if slope != 1:
        z = by_torch([double[0], *double[1:]], length, groups, 1e-5, True, 1.0)
        assert ((z > 1e-5) == (actual[0] > 1e-5)).double().mean() > 0.9999
        actual, expected = actual[:1], expected[:1]
    assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("first", [1e6, -1e3])
def test_outliers_at_the_start_of_a_row_cost_no_digits(backend, first):
    """The kernel subtracts the mean of a row's first values, which may be anywhere."""
    x = torch.randn(8, 4096, generator=torch.Generator().manual_seed(1))
    x[:, :64] += first
    y, mean, variance = normalize(x, None, None, None, 4096, 1, 1e-5, True, 1.0, backend)
    double = x.double()
    torch.testing.assert_close(mean, double.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance, double.var(1, correction=0), rtol=1e-5, atol=0)
    assert_close([y], [functional.layer_norm(double, (4096,))], 1e-5)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("length", [2, 1500, 20001])
@pytest.mark.parametrize("center", [True, False])
def test_a_row_whose_squares_overflow_is_normalized_like_the_others(backend, length, center):
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(0))
    x[1] *= 1e25
    settings = (length, 1, 1e-5, center, 1.0)
    expected = by_torch([x.double(), None, None, None], *settings)
    assert_close([normalize(x, None, None, None, *settings, backend)[0]], [expected], 1e-5)


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("center", [True, False])
def test_statistics_are_those_of_the_rows(backend, center):
    x = torch.randn(6, 40, dtype=torch.float64) + 3
    _, mean, variance = normalize(x, None, None, None, 8, 5, 1e-5, center, 1.0, backend)
    rows = x.reshape(30, 8)
    torch.testing.assert_close(mean, rows.mean(1) if center else torch.zeros(30, dtype=torch.float64))
    torch.testing.assert_close(variance, rows.var(1, correction=0) if center else rows.square().mean(1))
    assert not mean.requires_grad
    assert not variance.requires_grad


@settings(max_examples=40, deadline=None)
@given(
    examples=st.integers(1, 70), groups=st.integers(1, 4), length=st.integers(1, 80), center=st.booleans(),
    slope=st.sampled_from([1.0, 0.0, 0.01]), weighted=st.booleans(), added=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_compiled_kernel_agrees_with_the_reference(examples, groups, length, center, slope, weighted, added, seed):
    tensors, grad = case(examples, groups, length, weighted, added, dtype=torch.float64, seed=seed)

    def run(backend):
        return with_gradients(
            lambda t: normalize(*t, length, groups, 0.1, center, slope, backend)[0], tensors, grad
        )  # fmt: skip

    assert_close(run("numba"), run("reference"), 1e-11)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_gradients_of_first_and_second_order_by_differences(backend):
    for center, slope, weighted, added in itertools.product(*VARIANTS):
        tensors, _ = case(2, 2, 3, weighted, added, dtype=torch.float64)
        present = [t for t in tensors if t is not None]

        def function(*given, tensors=tensors, settings=(3, 2, 0.1, center, slope)):
            remaining = iter(given)
            return normalize(*(t if t is None else next(remaining) for t in tensors), *settings, backend)[0]

        assert torch.autograd.gradcheck(function, present)
        assert torch.autograd.gradgradcheck(function, present)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4)))
def test_only_the_gradients_that_are_needed_are_returned(needed):
    tensors, grad = case(4, 1, 8, True, True)
    for tensor, wanted in zip(tensors, needed, strict=True):
        tensor.requires_grad_(wanted)
    output = normalize(*tensors, 8, 1, 1e-5, True, 0.0, None)[0]
    assert output.requires_grad == any(needed)
    if any(needed):
        output.backward(grad)
    assert [tensor.grad is not None for tensor in tensors] == list(needed)


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_rows_at_the_edge_of_the_activation_and_beyond_numbers(backend):
    residual = torch.tensor([[-torch.inf, torch.nan, torch.inf, 0.0]], requires_grad=True)
    x, grad = torch.zeros(1, 4), torch.tensor([[torch.inf, 2.0, 3.0, 4.0]])
    for slope, values, gradients in (
        (0.0, [0.0, torch.nan, torch.inf, 0.0], [0.0, 2.0, 3.0, 0.0]),
        (0.5, [-torch.inf, torch.nan, torch.inf, 0.0], [torch.inf, 2.0, 3.0, 2.0]),
    ):
        y = normalize(x, None, None, residual, 4, 1, 1e-5, True, slope, backend)[0]
        torch.testing.assert_close(y[0], torch.tensor(values), equal_nan=True)
        assert torch.autograd.grad(y, residual, grad)[0][0].tolist() == gradients


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_nan_and_infinity_stay_in_their_row(backend):
    x = torch.randn(4, 100)
    x[1, 70], x[2, 3] = torch.nan, torch.inf
    y = normalize(x, None, None, None, 100, 1, 1e-5, True, 1.0, backend)[0]
    assert y.isfinite().all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_any_strides_give_a_contiguous_output_with_the_same_values(backend):
    base = torch.randn(6, 10, 8)
    weight = torch.randn(16)[::2]
    expected = normalize(base, weight.clone(), None, base, 8, 1, 1e-5, True, 0.0, backend)[0]
    for view in (base.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([base, base], 2)[:, :, :8]):
        assert not view.is_contiguous()
        x = view.detach().requires_grad_()
        y = normalize(x, weight, None, view, 8, 1, 1e-5, True, 0.0, backend)[0]
        assert y.is_contiguous()
        assert torch.equal(y, expected)
        y.sum().backward()
        assert x.grad is not None


@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize(("shape", "length"), [((0, 4), 4), ((3, 0), 0), ((0, 0), 0)])
def test_empty_inputs_give_empty_outputs_and_gradients_of_zero(backend, shape, length):
    x, weight = torch.empty(shape, requires_grad=True), torch.ones(length, requires_grad=True)
    y, mean, _ = normalize(x, weight, None, None, length, 1, 1e-5, True, 1.0, backend)
    y.sum().backward()
    assert y.shape == shape
    assert mean.numel() == 0
    assert x.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(length))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("single", [False, True], ids=["same dtype", "float32 weight"])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype, single):
    tensors, grad = case(6, 1, 50, True, True, dtype=dtype)
    if single:
        tensors[1:3] = [t.detach().float().requires_grad_() for t in tensors[1:3]]
    double = [t.detach().double().requires_grad_() for t in tensors]
    settings = (50, 1, 1e-5, True, 0.01)
    actual = with_gradients(lambda t: normalize(*t, *settings, None)[0], tensors, grad)
    assert [t.dtype for t in actual[1:]] == [t.dtype for t in tensors]
    expected = with_gradients(lambda t: by_torch(t, *settings), double, grad.double())
    half = torch.finfo(dtype).eps / 2
    assert ((actual[0].double() - expected[0]).abs() <= 1.001 * half * expected[0].abs() + 1e-5).all()
    assert_close(actual, expected, torch.finfo(dtype).eps)


@pytest.mark.parametrize(("examples", "groups", "length"), [(300, 1, 96), (70, 4, 500), (3, 1, 20001), (130, 3, 7)])
def test_the_number_of_threads_changes_nothing(examples, groups, length):
    tensors, grad = case(examples, groups, length, True, False)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(
                with_gradients(lambda t: normalize(*t, length, groups, 1e-5, True, 0.0, "numba")[0], tensors, grad)
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_what_does_not_fit_is_refused():
    x, w = torch.ones(2, 6), torch.ones(6)

    def call(x=x, w=w, b=None, r=None, length=6, groups=1):
        normalize(x, w, b, r, length, groups, 1e-5, True, 1.0, None)

    call()
    with pytest.raises(InvalidType, match=r"normalize: input must be a floating tensor, .* Convert it first"):
        call(x=x.long())
    with pytest.raises(InvalidValue, match="multiple of 5 elements"):
        call(w=None, length=5)
    with pytest.raises(InvalidType, match=r"weight must have the input's dtype, torch.float32"):
        call(w=w.double())
    with pytest.raises(InvalidType, match=r"bias must have the input's dtype"):
        call(b=w.half())
    with pytest.raises(InvalidType, match=r"bias must have the weight's dtype, torch.float32"):
        call(x=x.half(), b=w.half())
    with pytest.raises(InvalidValue, match="weight must have 6 elements"):
        call(w=torch.ones(5))
    with pytest.raises(InvalidValue, match="weight must have 6 elements on the input's device, cpu"):
        call(w=torch.ones(6, device="meta"))
    with pytest.raises(InvalidValue, match=r"residual must have the input's shape, \(2, 6\)"):
        call(r=torch.ones(6, 2))
    with pytest.raises(InvalidType, match="residual must have the input's dtype"):
        call(r=x.double())


def test_a_gradient_kernel_has_no_gradient_of_its_own():
    (x, w, b, _), grad = case(2, 1, 4, True, False)
    _, statistics = norm_rows(x.detach(), w, b, None, 4, 1, 1e-5, True, 1.0, None)
    results = norm_rows_gradient(
        grad, x.detach(), w.detach(), b.detach(), None, statistics, 4, 1, 1e-5, True, 1.0, True, None
    )
    assert [tuple(r.shape) for r in results] == [(2, 4), (4,), (4,), (0,)]
    assert not any(r.requires_grad for r in results)
