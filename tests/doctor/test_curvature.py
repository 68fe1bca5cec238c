"""Eigenvalues against exact Hessians, limits against optimizers that diverge beyond them, the loss along a step."""

import copy
import math

import pytest
import torch
from torch import nn

from homeostat import nn as fast
from homeostat.doctor.curvature.lanczos import lanczos, power_iteration
from homeostat.doctor.curvature.sharpness import curvature
from homeostat.doctor.curvature.stability import stability_of
from homeostat.doctor.curvature.surface import MULTIPLES
from homeostat.doctor.training import Training
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


def problem(norm=None, activation=nn.Tanh, dtype=torch.float64):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), *([norm] if norm else []), activation(), nn.Linear(6, 3)).to(dtype)
    inputs = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)).to(dtype)
    return model, (inputs, inputs[:, :3].argmax(1))


def exact_hessian(model, batch, loss_fn):
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    sizes = [model.get_parameter(name).numel() for name in names]
    shapes = [model.get_parameter(name).shape for name in names]
    flat = torch.cat([model.get_parameter(name).detach().reshape(-1) for name in names])

    def loss(vector):
        parts = [part.reshape(shape) for part, shape in zip(vector.split(sizes), shapes, strict=True)]
        return loss_fn(torch.func.functional_call(model, dict(zip(names, parts, strict=True)), (batch[0],)), batch[1])

    return torch.autograd.functional.hessian(loss, flat)


cross_entropy = nn.functional.cross_entropy


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


# --- limits ---


class Quadratic(nn.Module):
    """Half a (w - 1)^2, whose sharpness is a."""

    def __init__(self, sharpness):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.sharpness = sharpness

    def forward(self, x):
        return self.sharpness / 2 * (self.weight - 1).square() + 0 * x


def quadratic(sharpness, optimizer, **options):
    model = Quadratic(sharpness)
    return model, optimizer(model.parameters(), **options), (torch.zeros(1, 1).double(), torch.zeros(1))


def mean(output, target):
    return output.mean()


def distance_after(model, optimizer, batch, steps=400):
    for _ in range(steps):
        optimizer.zero_grad()
        mean(model(batch[0]), None).backward()
        optimizer.step()
    return abs(model.weight.item() - 1)


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    "dampened": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "dampening": 0.5}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_diverges_above_its_limit_and_not_below(name):
    kind, options = OPTIMIZERS[name]
    limit = curvature(*_with(kind, options, 1.0)).limit
    for factor in (0.97, 1.03):
        model, optimizer, batch = quadratic(factor * limit, kind, **options)
        ratio = curvature(model, batch, loss_fn=mean, optimizer=optimizer).ratio
        assert ratio == pytest.approx(factor)
        diverged = distance_after(model, optimizer, batch) > 1
        assert diverged == (factor > 1)


def _with(kind, options, sharpness):
    model, optimizer, batch = quadratic(sharpness, kind, **options)
    training = Training(model, mean, optimizer, batch, None, batch_size=1, epochs=1)
    return (training,)


def test_the_limits_are_those_of_the_papers():
    parameter = nn.Parameter(torch.zeros(2))
    for kind, options, expected in (
        (torch.optim.SGD, {"lr": 0.1}, 2 / 0.1),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}, 2 * 1.9 / 0.1),
        (torch.optim.Adam, {"lr": 0.01}, 38 / 0.01),
        (torch.optim.AdamW, {"lr": 0.01, "betas": (0.5, 0.9)}, 6 / 0.01),
        (torch.optim.RMSprop, {"lr": 0.01}, 2 / 0.01),
        (torch.optim.Adagrad, {"lr": 0.01}, 2 / 0.01),
    ):
        optimizer = kind([parameter], **options)
        parameter.grad = torch.ones(2)
        optimizer.step()
        assert stability_of(optimizer, [parameter]).limit == pytest.approx(expected)


ADAPTIVE = {
    "adam": (torch.optim.Adam, {"lr": 1e-2}, "exp_avg_sq"),
    "amsgrad": (torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}, "exp_avg_sq"),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-2}, "square_avg"),
}


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_frozen_adaptive_optimizer_diverges_above_its_limit(name, factor):
    kind, options, slot = ADAPTIVE[name]
    model, optimizer, batch = quadratic(1.0, kind, **options)
    distance_after(model, optimizer, batch, steps=1)
    state = optimizer.state[model.weight]
    state["step"] = torch.tensor(1e6)  # far beyond any correction of bias
    for place in {slot, "max_exp_avg_sq"} & set(state):
        state[place].fill_(1.0)
    model.sharpness = factor * curvature(model, batch, loss_fn=mean, optimizer=optimizer).limit
    found = curvature(model, batch, loss_fn=mean, optimizer=optimizer)
    assert found.preconditioned
    assert found.ratio == pytest.approx(factor, rel=1e-6)
    for group in optimizer.param_groups:  # P as it is, for good: the theory's frozen preconditioner
        group.update({"betas": (0.9, 1.0)} if "betas" in group else {"alpha": 1.0})
    if "betas" in optimizer.param_groups[0]:
        return _frozen_adam(model, optimizer, factor)
    with torch.no_grad():
        model.weight.fill_(2.0)
    assert (distance_after(model, optimizer, batch) > 1) == (factor > 1)
    return None


def _frozen_adam(model, optimizer, factor):
    """Adam's recursion with P = 1 by hand, since beta2 = 1 leaves nothing of v's own correction."""
    weight, average, rate = 2.0, 0.0, optimizer.param_groups[0]["lr"]
    for _ in range(400):
        average = 0.9 * average + 0.1 * model.sharpness * (weight - 1)
        weight -= rate * average
    assert (abs(weight - 1) > 1) == (factor > 1)


def test_preconditioned_sharpness_is_that_of_the_scaled_hessian():
    model, batch = problem()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    metric = torch.cat(
        [
            ((1 - 0.9**3) * ((optimizer.state[p]["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8)).reshape(-1)
            for p in model.parameters()
        ]
    )
    hessian = exact_hessian(model, batch, cross_entropy)
    expected = torch.linalg.eigvals(hessian / metric[:, None]).real.max().item()
    found = curvature(model, batch, loss_fn=cross_entropy, optimizer=optimizer, tolerance=1e-7)
    assert found.sharpness == pytest.approx(expected, rel=1e-4)
    assert found.ratio == pytest.approx(expected / 3800, rel=1e-4)


def test_groups_with_rates_of_their_own_are_scaled():
    model, batch = problem()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.4}]
    rates = torch.cat(
        [torch.full((p.numel(),), 0.1 if p in set(model[0].parameters()) else 0.4) for p in model.parameters()]
    )
    hessian = exact_hessian(model, batch, cross_entropy)
    expected = torch.linalg.eigvals(rates.double()[:, None] * hessian).real.max().item() / 2
    optimizer = torch.optim.SGD(groups)
    found = curvature(model, batch, loss_fn=cross_entropy, optimizer=optimizer, tolerance=1e-7)
    assert found.ratio == pytest.approx(expected, rel=1e-4)


def test_coupled_decay_adds_to_the_curvature_and_decoupled_does_not():
    for kind, added in ((torch.optim.SGD, 0.5), (torch.optim.AdamW, 0.0)):
        model, optimizer, batch = quadratic(2.0, kind, lr=0.1, weight_decay=0.5)
        plain_model, plain, _ = quadratic(2.0, kind, lr=0.1, weight_decay=0.0)
        for m, o in ((model, optimizer), (plain_model, plain)):
            distance_after(m, o, batch, steps=1)
            with torch.no_grad():
                m.weight.zero_()
        one = curvature(model, batch, loss_fn=mean, optimizer=optimizer).sharpness
        other = curvature(plain_model, batch, loss_fn=mean, optimizer=plain).sharpness
        assert one - other == pytest.approx(added, abs=1e-9)


def test_maximizing_turns_the_curvature_around():
    model, optimizer, batch = quadratic(2.0, torch.optim.SGD, lr=0.1, maximize=True)
    assert curvature(model, batch, loss_fn=mean, optimizer=optimizer).sharpness == pytest.approx(-2.0)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.Rprop, torch.optim.Adam])
def test_where_no_limit_is_known_it_says_why(kind):
    model, optimizer, batch = quadratic(2.0, kind, lr=0.1)
    found = curvature(model, batch, loss_fn=mean, optimizer=optimizer)
    assert math.isnan(found.limit)
    assert math.isnan(found.ratio)
    assert found.note
    assert found.sharpness == pytest.approx(2.0)


# --- along the step ---


def test_the_loss_along_the_step_is_that_of_the_optimizers_own_step():
    model, optimizer, batch = quadratic(2.0, torch.optim.SGD, lr=0.25)
    found = curvature(model, batch, loss_fn=mean, optimizer=optimizer)
    # the gradient at 0 is -2 and the step 0.5
    assert dict(found.losses) == pytest.approx({m: (0.5 * m - 1) ** 2 for m in MULTIPLES})
    assert found.best_multiple == 2.0
    assert (found.loss, found.gradient) == (pytest.approx(1.0), pytest.approx(2.0))


def test_the_step_is_clipped_as_the_training_clips():
    model, optimizer, batch = quadratic(2.0, torch.optim.SGD, lr=0.25)
    training = Training(model, mean, optimizer, batch, None, batch_size=1, epochs=1, clip=1.0)
    assert dict(curvature(training).losses)[1.0] == pytest.approx((0.25 - 1) ** 2, rel=1e-5)


def test_a_batch_of_the_training_is_taken():
    model, batch = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = Training(model, cross_entropy, optimizer, batch, None, batch_size=10, epochs=1)
    given = curvature(model, batch, loss_fn=cross_entropy, optimizer=optimizer)
    assert curvature(training).sharpness == pytest.approx(given.sharpness, rel=1e-6)
    half = curvature(training, (batch[0][:10], batch[1][:10]))
    assert half.sharpness != pytest.approx(given.sharpness, rel=1e-3)


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
