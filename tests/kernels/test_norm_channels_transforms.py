"""Normalization by channels under autograd, torch.compile, torch.export, torch.func, checkpointing and threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from homeostat.kernels import norm_channels
from homeostat.kernels.norm_channels import affine, gradient_sums, input_gradient, normalize, statistics

BACKENDS = ["numba", "reference"]


@pytest.fixture
def tensors():
    """Input, weight, bias, residual: float64, small; far enough from the activation's corner for differences."""
    generator = torch.Generator().manual_seed(3)

    def make(*size):
        return torch.randn(size, generator=generator, dtype=torch.float64).requires_grad_()

    return make(3, 4, 2, 3), make(4), make(4), make(3, 4, 2, 3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("groups", [0, 2, 4])
def test_first_and_second_derivatives(tensors, groups, add, backend):
    x, weight, bias, residual = tensors

    def output(x, weight, bias, *residual):
        return normalize(x, weight, bias, residual[0] if residual else None, groups, 1e-5, 0.01, backend)[0]

    args = (x, weight, bias, residual) if add else (x, weight, bias)
    assert torch.autograd.gradcheck(output, args)
    assert torch.autograd.gradgradcheck(output, args)


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives_with_given_statistics(tensors, backend):
    mean, variance = torch.linspace(-1, 1, 4), torch.linspace(0.5, 2, 4)

    def output(x, weight, bias, residual):
        return affine(x, mean, variance, weight, bias, residual, 1e-5, 0.01, backend)

    assert torch.autograd.gradcheck(output, tensors)
    assert torch.autograd.gradgradcheck(output, tensors)


@pytest.mark.parametrize("wanted", range(4))
def test_only_what_is_needed_gets_a_gradient(tensors, wanted):
    given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors)]
    normalize(*given, 0, 1e-5, 0.0, None)[0].sum().backward()
    assert [t.grad is not None for t in given] == [i == wanted for i in range(4)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slope", [0.01, 1.0])
def test_operators_are_registered_as_torch_wants_them(tensors, backend, slope):
    x, weight, bias, residual = tensors
    last = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    mean, variance = torch.zeros(4), torch.ones(4)
    for groups, extra in ((0, None), (2, residual)):
        torch.library.opcheck(normalize.dispatched, (last, weight, bias, extra, groups, 1e-5, slope, backend))
    torch.library.opcheck(affine.dispatched, (x, mean, variance, weight, None, residual, 1e-5, slope, backend))
    x, weight, bias, residual = (t.detach() for t in tensors)
    whole = statistics(x, backend)
    torch.library.opcheck(statistics.dispatched, (x, backend))
    given = (residual, x, whole, weight, bias)
    kept = None if slope == 1 else x
    torch.library.opcheck(gradient_sums.dispatched, (*given, kept, 1e-5, slope, backend))
    torch.library.opcheck(input_gradient.dispatched, (*given, torch.ones(2, 4).double(), 1e-5, slope, backend))


@pytest.mark.parametrize("groups", [0, 2])
def test_compiled_code_gives_the_same_numbers(tensors, groups):
    def loss(x, weight, bias, residual):
        return normalize(x * 1.0, weight, bias, residual, groups, 1e-5, 0.0, None)[0].square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*tensors), tensors)
    for actual, truth in zip(torch.autograd.grad(compiled(*tensors), tensors), expected, strict=True):
        torch.testing.assert_close(actual, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [0, 2])
def test_transforms_of_functions(tensors, groups):
    x, weight, bias, residual = (t.detach() for t in tensors)

    def loss(x, weight):
        return normalize(x, weight, bias, residual, groups, 1e-5, 0.0, None)[0].square().sum()

    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    actual = torch.func.grad(loss, argnums=(0, 1))(x, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

    several = torch.stack([x, 2 * x, x.flip(0)])
    mapped = torch.func.vmap(torch.func.grad(loss), (0, None))(several, weight)
    one_by_one = torch.stack([torch.func.grad(loss)(one, weight) for one in several])
    torch.testing.assert_close(mapped, one_by_one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("groups", [0, 2])
@pytest.mark.parametrize("mapped", [(0, None, None), (1, 0, 2), (None, 0, None), (2, None, 0)], ids=str)
def test_any_arguments_may_be_mapped(groups, mapped):
    sizes = ((3, 4, 5), (4,), (3, 4, 5))
    given = [
        torch.randn(size if at is None else (*size[:at], 2, *size[at:])) for size, at in zip(sizes, mapped, strict=True)
    ]

    def output(x, weight, residual):
        return normalize(x, weight, None, residual, groups, 1e-5, 0.0, None)

    one_by_one = [
        output(*(value if at is None else value.select(at, i) for value, at in zip(given, mapped, strict=True)))
        for i in range(2)
    ]
    for actual, parts in zip(torch.func.vmap(output, mapped)(*given), zip(*one_by_one, strict=True), strict=True):
        torch.testing.assert_close(actual, torch.stack(parts))


def test_exported_programs_run(tensors):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return normalize(x, None, None, None, 0, 1e-5, 0.0, None)[0]

    x = tensors[0].detach()
    program = torch.export.export(Layer(), (x,))
    assert torch.equal(program.module()(x), Layer()(x))


def test_checkpointing_computes_the_same_gradients(tensors):
    def output(x, weight):
        return normalize(x, weight, None, None, 0, 1e-5, 0.0, None)[0]

    x, weight = tensors[:2]
    expected = torch.autograd.grad(output(x, weight).square().sum(), (x, weight))
    again = checkpoint(output, x, weight, use_reentrant=False)
    for actual, truth in zip(torch.autograd.grad(again.square().sum(), (x, weight)), expected, strict=True):
        assert torch.equal(actual, truth)


def test_what_is_saved_for_the_backward_pass():
    """Without residual the activation's side is recomputed: the output is not kept."""
    x, residual = torch.randn(4, 3, 8, 8, requires_grad=True), torch.randn(4, 3, 8, 8)
    for extra, large in ((None, 1), (residual, 2)):
        saved: list[torch.Tensor] = []

        def keep(t, saved=saved):
            return saved.append(t) or t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            normalize(x, None, None, extra, 0, 1e-5, 0.0, None)
        assert sum(t.numel() == x.numel() for t in saved) == large


def test_an_output_changed_in_place_is_noticed():
    """The output's sign is needed with a residual: changing it would give a wrong gradient."""
    x = torch.randn(4, 3, requires_grad=True)
    output = normalize(x, None, None, torch.randn(4, 3), 0, 1e-5, 0.0, None)[0]
    output.neg_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_several_python_threads_may_normalize_at_once():
    inputs = [torch.randn(64, 16) * (i + 1) + i for i in range(64)]
    expected = [normalize(x, None, None, None, 0, 1e-5, 0.0, "numba") for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        actual = list(pool.map(lambda x: normalize(x, None, None, None, 0, 1e-5, 0.0, "numba"), inputs * 8))
    for i, result in enumerate(actual):
        assert all(torch.equal(a, b) for a, b in zip(result, expected[i % 64], strict=True))


@pytest.mark.parametrize("momentum", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_running_statistics_move_towards_the_new_ones(momentum, dtype):
    mean, variance = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, 4.0]).double()
    running_mean, running_var = torch.zeros(2, dtype=dtype), torch.ones(2, dtype=dtype)
    before = running_mean._version
    norm_channels.update_running(running_mean, running_var, mean, variance, momentum, 2.0)
    tolerance = 1e-2 if dtype is torch.bfloat16 else 1e-6
    torch.testing.assert_close(running_mean.double(), 0.1 * mean, rtol=tolerance, atol=0)
    torch.testing.assert_close(running_var.double(), 0.9 + 0.2 * variance, rtol=tolerance, atol=0)
    assert running_mean._version > before
