"""The table of vitals, when steps are watched, and whether what is measured is what it says."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from homeostat.doctor.watching.cadence import AFTERMATH, Cadence
from homeostat.doctor.watching.vitals import MEANINGS, STATISTICS, WHOLE, Vitals
from homeostat.doctor.watching.watch import watch
from homeostat.errors import InvalidValue


def run(model, inputs, targets, steps=1, loss_fn=nn.functional.mse_loss, lr=0.1, **options):
    """Train by SGD and watch every step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with watch(model, optimizer, every=1, **options) as w:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), targets)
            w.loss(loss)
            loss.backward()
            optimizer.step()
    return w.vitals


def test_a_table_gives_back_what_was_put_in():
    vitals = Vitals(["a", "b"])
    for step in range(0, 40, 2):
        row = vitals.blank()
        row[vitals.row("a"), vitals.column("std")] = step
        if step % 4 == 0:
            row[vitals.row("b"), vitals.column("std")] = -step
        vitals.append(step, row)
    assert len(vitals) == 20
    assert vitals.layers == ("a", "b", WHOLE)
    steps, values = vitals.of("b", "std")
    assert steps.tolist() == list(range(0, 40, 4))
    assert values.tolist() == [-step for step in range(0, 40, 4)]
    assert vitals.matrix("std").shape == (2, 20)
    assert vitals.last("a", "std") == 38
    assert math.isnan(vitals.last("a", "mean"))
    frame = vitals.frame()
    assert len(frame) == 30
    assert frame[frame.layer == "b"]["value"].sum() == -sum(range(0, 40, 4))


def test_a_table_only_grows():
    vitals = Vitals(["a"])
    vitals.append(3, vitals.blank())
    with pytest.raises(InvalidValue, match="come after 3"):
        vitals.append(3, vitals.blank())
    with pytest.raises(InvalidValue, match="shape"):
        vitals.append(4, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="read-only"):
        vitals.values[0, 0, 0] = 1.0


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(InvalidValue, match="Did you mean 'update'"):
        Vitals(["a"]).of("a", "updates")
    with pytest.raises(InvalidValue, match="layer 'b'"):
        Vitals(["a"]).of("b", "update")


def test_every_statistic_is_explained():
    assert all(len(text) > 5 for text in MEANINGS.values())


def test_outputs_are_measured_as_they_are():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 2))
    inputs = torch.randn(33, 5)
    with torch.no_grad():
        model[0].bias[:3] = -100.0  # three units that are never active
        hidden = model[0](inputs)
        active = hidden.relu()
    vitals = run(model, inputs, torch.zeros(33, 2))
    assert vitals.last("0", "mean") == pytest.approx(hidden.mean().item(), rel=1e-4)
    assert vitals.last("1", "std") == pytest.approx(active.std(correction=0).item(), rel=1e-4)
    assert vitals.last("1", "abs_max") == pytest.approx(active.max().item())
    assert vitals.last("1", "zeros") == pytest.approx((active == 0).double().mean().item())
    assert vitals.last("1", "dead") == pytest.approx(3 / 7)
    assert vitals.last("0", "dead") == 0
    assert vitals.last("1", "nonfinite") == 0


def test_units_of_convolutions_are_channels():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 1))
    with torch.no_grad():
        model[0].bias[1] = -100.0
    vitals = run(model, torch.randn(4, 1, 6, 6), torch.zeros(4, 1))
    assert vitals.last("1", "dead") == 1 / 4


def test_few_values_say_nothing_about_dead_units():
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    assert math.isnan(run(model, torch.randn(4, 3), torch.zeros(4, 1)).last("1", "dead"))


@pytest.mark.parametrize(
    ("activation", "slope"),
    [
        (nn.Tanh(), lambda x: 1 - x.tanh() ** 2),
        (nn.Sigmoid(), lambda x: 4 * x.sigmoid() * (1 - x.sigmoid())),
        (nn.Softsign(), lambda x: 1 / (1 + x.abs()) ** 2),
        (nn.Hardtanh(-1, 3), lambda x: ((x > -1) & (x < 3)).double()),
        (nn.Hardsigmoid(), lambda x: (x.abs() < 3).double()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_saturated_is_where_less_than_a_hundredth_of_the_slope_is_left(activation, slope):
    inputs = torch.linspace(-12, 12, 400).reshape(100, 4)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), activation)
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    expected = (slope(inputs) < 0.01).double().mean().item()
    assert run(model, inputs, torch.zeros(100, 4)).last("1", "saturated") == pytest.approx(expected, abs=0.011)


def test_a_rectifier_does_not_saturate():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert math.isnan(run(model, torch.randn(20, 4), torch.zeros(20, 4)).last("1", "saturated"))


def test_gradient_update_and_weight_are_those_of_the_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 2))
    inputs, targets = torch.randn(20, 5), torch.randn(20, 2)
    nn.functional.mse_loss(model(inputs), targets).backward()
    first, last = model[0], model[2]
    whole = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    layer = math.hypot(first.weight.grad.norm().item(), first.bias.grad.norm().item())
    weight, gradient = first.weight.norm().item(), first.weight.grad.norm().item()
    ratio = first.weight.grad.square().mean().sqrt() / last.weight.grad.square().mean().sqrt()
    vitals = run(model, inputs, targets, lr=0.25)
    assert vitals.last("0", "gradient") == pytest.approx(layer, rel=1e-5)
    assert vitals.last(WHOLE, "gradient") == pytest.approx(whole, rel=1e-5)
    assert vitals.last("0", "weight") == pytest.approx(weight, rel=1e-6)
    assert vitals.last("0", "update") == pytest.approx(0.25 * gradient / weight, rel=1e-4)
    assert vitals.last(WHOLE, "gradient_ratio") == pytest.approx(ratio.item(), rel=1e-5)
    assert vitals.last(WHOLE, "learning_rate") == 0.25
    assert math.isnan(vitals.last("0", "rotation"))  # there is no step before the first


def test_rotation_is_the_angle_to_the_last_watched_step():
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    angles = [0.0, 1e-4, 0.7]
    with watch(layer, optimizer, every=1) as w:
        for length, angle in zip((1.0, 1.0, 5.0), np.cumsum(angles), strict=True):
            with torch.no_grad():
                layer.weight.copy_(length * torch.tensor([[math.cos(angle), math.sin(angle)]]))
            optimizer.zero_grad()
            layer(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    steps, rotation = w.vitals.of("Linear", "rotation")
    assert steps.tolist() == [1, 2]
    assert rotation == pytest.approx(angles[1:], rel=1e-2)


def test_large_weights_are_measured_by_a_sample():
    torch.manual_seed(0)
    model = nn.Linear(700, 300, bias=False)
    model(torch.randn(8, 700)).square().mean().backward()
    expected = 0.1 * (model.weight.grad.norm() / model.weight.norm()).item()
    model.zero_grad()
    torch.manual_seed(0)
    model = nn.Linear(700, 300, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=1) as w:
        model(torch.randn(8, 700)).square().mean().backward()
        optimizer.step()
    assert w.vitals.last("Linear", "weight") == pytest.approx(math.sqrt(700 * 300 / 3 / 700), rel=0.01)
    assert w.vitals.last("Linear", "update") == pytest.approx(expected, rel=0.1)


def test_drift_is_the_distance_of_batch_and_running_statistics():
    norm = nn.BatchNorm1d(3, momentum=0.0)  # running statistics stay at mean 0 and variance 1
    model = nn.Sequential(nn.Linear(3, 3), norm, nn.Linear(3, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(3))
        model[0].bias.fill_(2.0)
    inputs = torch.randn(500, 3)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0, correction=0)
    assert run(model, inputs, torch.zeros(500, 1)).last("1", "drift") == pytest.approx(2.0, rel=1e-3)


def test_layers_stand_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(3, 1)
            self.table = nn.Embedding(4, 3)
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            return self.last(self.first(self.table(x)))

    vitals = run(Backwards(), torch.randint(0, 4, (8,)), torch.zeros(8, 1))
    assert vitals.layers == ("first", "last", "table", WHOLE)
    assert vitals.last("table", "gradient") > 0


def test_a_weight_made_of_others_counts_them_as_its_own():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 1))
    vitals = run(model, torch.randn(8, 3), torch.zeros(8, 1))
    assert vitals.layers == ("0", "1", WHOLE)
    assert vitals.last("0", "update") > 0


def test_the_loss_is_recorded_from_a_module_or_as_told():
    model, loss_fn = nn.Linear(3, 1), nn.MSELoss()
    inputs, targets = torch.randn(8, 3), torch.zeros(8, 1)
    expected = loss_fn(model(inputs), targets).item()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, every=1, loss_fn=loss_fn) as w:
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    assert w.vitals.last(WHOLE, "loss") == pytest.approx(expected)
    assert not loss_fn._forward_hooks
    assert run(nn.Linear(3, 1), inputs, targets, loss_fn=lambda *_: torch.tensor(2.0, requires_grad=True)).last(
        WHOLE, "loss"
    ) == pytest.approx(2.0)


def test_names_of_statistics_are_one_list():
    assert Vitals([]).statistics == STATISTICS


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize("cost", [0.01, 0.03, 0.2])
def test_the_cost_stays_below_its_limit(cost):
    clock = Clock()
    cadence = Cadence(cost, clock=clock)
    cadence.start()
    watched = []
    for step in range(20_000):
        due = cadence.due(step)
        clock.now += 1.0
        if due:
            clock.now += 2.0
            cadence.watched(step, 2.0 / AFTERMATH)
            watched.append(step)
    assert watched[:3] == [0, 1, 2]
    assert cadence.share == pytest.approx(2.0 * len(watched) / clock.now)
    assert cadence.share <= cost
    assert len(watched) >= 50  # and it is used
    gaps = np.diff(watched)
    assert max(gaps[len(gaps) // 2 :]) <= 20_000 / 50 + 2.0 / cost + 1


def test_time_outside_does_not_count():
    clock = Clock()
    cadence = Cadence(clock=clock)
    cadence.start()
    clock.now = 5.0
    cadence.stop()
    clock.now = 100.0
    cadence.start()
    clock.now = 101.0
    assert cadence.elapsed == 6.0


@pytest.mark.parametrize("cost", [0, -0.1, 1.5, float("nan"), "much"])
def test_a_cost_that_is_none_is_refused(cost):
    with pytest.raises(InvalidValue, match=r"watch: cost must lie in \(0, 1\]"):
        Cadence(cost)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
def test_an_interval_that_is_none_is_refused(every):
    with pytest.raises(InvalidValue, match="watch: every must be a whole number"):
        Cadence(every=every)
