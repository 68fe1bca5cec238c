"""Eigenvalues against exact Hessians, and that measuring them changes nothing."""

import copy
import math

import pytest
import torch
from exact_hessians import cross_entropy, exact_hessian, problem
from torch import nn

from homeostat import nn as fast
from homeostat.doctor.curvature.lanczos import lanczos, power_iteration
from homeostat.doctor.curvature.sharpness import curvature
from homeostat.errors import HomeostatError, InvalidType, InvalidValue


def symmetric(values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.as_tensor(values, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[0]
    return basis @ values.diag() @ basis.T


def start(size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 2, 3, 30, 200])
def test_lanczos_finds_the_largest_eigenvalues(size):
    matrix = symmetric(torch.linspace(-3, 2, size) ** 3)
    top = min(3, size)
    found = lanczos(lambda v: matrix @ v, start(size), top=top, tolerance=1e-8, max_iterations=300)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:top]
    assert found.converged
    assert found.values == pytest.approx(expected.tolist(), rel=1e-6, abs=1e-9)


def test_the_most_positive_is_meant_and_not_the_largest_magnitude():
    matrix = symmetric([-50.0, -1.0, 0.5, 2.0])
    assert lanczos(lambda v: matrix @ v, start(4)).values[0] == pytest.approx(2.0)
    assert power_iteration(lambda v: matrix @ v, start(4)).values[0] == pytest.approx(-50.0)


def test_power_iteration_agrees():
    matrix = symmetric(torch.linspace(0, 1, 40) ** 2)
    by_power = power_iteration(lambda v: matrix @ v, start(40), tolerance=1e-8)
    assert by_power.converged
    assert lanczos(lambda v: matrix @ v, start(40), tolerance=1e-8).values == pytest.approx(by_power.values, rel=1e-9)


def test_the_vector_belongs_to_the_value():
    matrix = symmetric(torch.linspace(0, 1, 40) ** 2)
    found = lanczos(lambda v: matrix @ v, start(40), tolerance=1e-8)
    torch.testing.assert_close(matrix @ found.vector, found.values[0] * found.vector, rtol=0, atol=1e-6)


def test_a_small_memory_only_costs_products():
    matrix = symmetric(torch.linspace(0, 1, 60) ** 3)
    whole = lanczos(lambda v: matrix @ v, start(60), tolerance=1e-6)
    pieces = lanczos(lambda v: matrix @ v, start(60), tolerance=1e-6, max_iterations=500, most_values=60 * 6)
    assert pieces.converged
    assert pieces.values == pytest.approx(whole.values, rel=1e-6)
    assert pieces.products > whole.products


def test_a_search_that_ends_early_says_so():
    matrix = symmetric(torch.linspace(0.9, 1, 200))
    found = lanczos(lambda v: matrix @ v, start(200), tolerance=1e-10, max_iterations=5)
    assert not found.converged
    assert found.products == 5
    assert found.residual > 1e-10


def test_no_curvature_is_zero():
    found = lanczos(torch.zeros_like, start(5))
    assert found.converged
    assert found.values == (0.0,)


def test_a_start_without_length_is_refused():
    with pytest.raises(InvalidValue, match="start must be a vector with a finite length"):
        lanczos(lambda v: v, torch.zeros(3))
    with pytest.raises(InvalidValue, match="top must lie in"):
        lanczos(lambda v: v, torch.ones(3), top=0)


# --- the Hessian of networks ---


@pytest.mark.parametrize("method", ["double_backward", "differences"])
def test_the_sharpness_is_the_largest_eigenvalue_of_the_hessian(method):
    model, batch = problem()
    expected = torch.linalg.eigvalsh(exact_hessian(model, batch, cross_entropy)).flip(0)[:2].tolist()
    found = curvature(model, batch, loss_fn=cross_entropy, top=2, tolerance=1e-6, method=method)
    assert found.converged
    assert found.eigenvalues == pytest.approx(expected, rel=1e-5)
    assert found.sharpness == found.eigenvalues[0]
    assert found.method == {"double_backward": "double backward"}.get(method, "finite differences in float64")
    assert math.isnan(found.limit)
    assert found.losses == ()


@pytest.mark.parametrize(
    "norm",
    [nn.BatchNorm1d(6), fast.BatchNorm1d(6), fast.LayerNorm(6), fast.RMSNorm(6), fast.GroupNorm(2, 6)],
    ids=lambda norm: f"{type(norm).__module__.split('.')[0]}-{type(norm).__name__}",
)
def test_both_ways_agree_on_normalized_networks(norm):
    model, batch = problem(norm)
    one, other = (
        curvature(model, batch, loss_fn=cross_entropy, tolerance=1e-6, method=method).sharpness
        for method in ("double_backward", "differences")
    )
    assert one == pytest.approx(other, rel=1e-5)


def test_frozen_parameters_have_no_curvature():
    model, batch = problem()
    model[0].requires_grad_(False)
    expected = torch.linalg.eigvalsh(exact_hessian(model, batch, cross_entropy))[-1].item()
    assert curvature(model, batch, loss_fn=cross_entropy, tolerance=1e-6).sharpness == pytest.approx(expected, rel=1e-5)


class Once(torch.autograd.Function):
    """A square whose gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Squares(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(4, 6), nn.Linear(6, 3), function

    def forward(self, x):
        return self.last(self.function(self.first(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_without_a_second_derivative_are_met_by_differences(dtype):
    torch.manual_seed(0)
    model = Squares(Once.apply).to(dtype)
    twin = copy.deepcopy(model)
    twin.function = torch.square
    batch = problem(dtype=dtype)[1]
    found = curvature(model, batch, loss_fn=cross_entropy, tolerance=1e-5)
    expected = curvature(twin, batch, loss_fn=cross_entropy, tolerance=1e-5)
    assert expected.method == "double backward"
    assert found.method == "finite differences in float64"
    assert found.sharpness == pytest.approx(expected.sharpness, rel=1e-3)
    with pytest.raises(HomeostatError, match=r'no second derivative.*method="differences"'):
        curvature(model, batch, loss_fn=cross_entropy, method="double_backward")


def test_attention_has_a_second_derivative():
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    batch = torch.randn(4, 5, 8), torch.randn(4, 5, 8)
    found = curvature(model, batch, loss_fn=nn.functional.mse_loss, max_iterations=40)
    assert found.method == "double backward"
    assert found.sharpness > 0


def test_half_precision_is_measured_in_single():
    model, batch = problem()
    expected = curvature(model, batch, loss_fn=cross_entropy).sharpness
    model.to(torch.bfloat16)
    found = curvature(model, (batch[0].to(torch.bfloat16), batch[1]), loss_fn=cross_entropy)
    assert found.sharpness == pytest.approx(expected, rel=0.1)


def test_a_loss_that_is_linear_in_the_weights_has_none():
    model = nn.Linear(3, 1)
    found = curvature(model, (torch.ones(2, 3), torch.zeros(2, 1)), loss_fn=lambda output, target: output.sum())
    assert found.sharpness == 0


# --- nothing is changed, and nothing depends on global state ---


@pytest.mark.parametrize("method", ["double_backward", "differences"])
def test_nothing_of_the_user_is_changed(method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    batch = problem(dtype=torch.float32)[1]
    optimizer = torch.optim.Adam(model.parameters())
    cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
    gradients = [p.grad.clone() for p in model.parameters()]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    state = torch.get_rng_state()
    first = curvature(model, batch, loss_fn=cross_entropy, optimizer=optimizer, method=method)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert curvature(model, batch, loss_fn=cross_entropy, optimizer=optimizer, method=method) == first


def test_what_cannot_be_used_is_refused():
    model, batch = problem()
    with pytest.raises(InvalidType, match="curvature: loss_fn must be given with a model"):
        curvature(model, batch)
    with pytest.raises(InvalidType, match=r"batch must be \(inputs, targets\)"):
        curvature(model, batch[0], loss_fn=cross_entropy)
    with pytest.raises(InvalidType, match=r"subject must be a Training or a torch\.nn\.Module"):
        curvature("model")
    with pytest.raises(InvalidValue, match="unknown method 'exact'"):
        curvature(model, batch, loss_fn=cross_entropy, method="exact")
    with pytest.raises(InvalidValue, match="hold parameters of the model"):
        curvature(model, batch, loss_fn=cross_entropy, optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0))
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    with pytest.raises(HomeostatError, match="the loss is nan"):
        curvature(model, batch, loss_fn=cross_entropy)
