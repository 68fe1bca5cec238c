"""Limits of curvature against optimizers that diverge beyond them, and the loss along a step."""

import math

import pytest
import torch
from exact_hessians import cross_entropy, exact_hessian, problem
from torch import nn

from homeostat.doctor.curvature.sharpness import curvature
from homeostat.doctor.curvature.stability import stability_of
from homeostat.doctor.curvature.surface import MULTIPLES
from homeostat.doctor.training import Training


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
