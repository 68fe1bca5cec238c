"""A probe measures every layer on one batch, forward and backward, and leaves the user's objects alone."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.network import readings
from homeostat.doctor.network.copies import duplicates_of
from homeostat.doctor.network.probe import take
from homeostat.doctor.network.signals import rank_of, signal_of, similarity_of, slopes_of, spread_of
from homeostat.doctor.training import Training


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def training(model, outputs=3, inputs=4, count=128, loss=F.cross_entropy, **options):
    x = torch.randn(count, inputs, generator=seeded())
    y = torch.randint(outputs, (count,), generator=seeded(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Training(model, loss, optimizer, (x, y), None, batch_size=count, epochs=1, **options)


def probed(model, **options):
    given = training(model, **options)
    return take(given, given.examples("train"))


def mlp(activation=nn.ReLU):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 3))


def test_layers_come_in_order_with_role_and_size():
    probe = probed(mlp())
    assert [(layer.name, layer.role) for layer in probe.layers] == [
        ("0", "weight"), ("1", "activation"), ("2", "weight"), ("3", "activation"), ("4", "weight"),
    ]  # fmt: skip
    assert probe.outputs.shape == (128, 3)
    assert probe.loss == pytest.approx(math.log(3), rel=0.2)
    assert set(probe.gradients) == {f"{i}.{part}" for i in (0, 2, 4) for part in ("weight", "bias")}


def test_statistics_are_those_of_the_outputs():
    model = mlp()
    given = training(model)
    x = given.examples("train").inputs
    layer = take(given, given.examples("train")).layer("0")
    output = model[0](x).detach()
    assert layer.mean == pytest.approx(float(output.mean()), rel=1e-4, abs=1e-6)
    assert layer.std == pytest.approx(float(output.std(correction=0)), rel=1e-4)
    assert layer.abs_max == pytest.approx(float(output.abs().max()), rel=1e-6)
    assert layer.input_rms == pytest.approx(float(x.square().mean().sqrt()), rel=1e-4)


def test_gradients_are_those_of_the_loss():
    model = mlp()
    given = training(model)
    batch = given.examples("train")
    probe = take(given, batch)
    hidden = model[0](batch.inputs)
    hidden.retain_grad()
    F.cross_entropy(model[1:](hidden), batch.targets).backward()
    assert probe.layer("0").gradient_rms == pytest.approx(float(hidden.grad.square().mean().sqrt()), rel=1e-4)
    assert probe.layer("0").gradient_norm == pytest.approx(float(hidden.grad.norm()), rel=1e-4)
    assert probe.gradients["0.weight"] == pytest.approx(float(model[0].weight.grad.norm()), rel=1e-4)


def test_nothing_of_the_user_changes():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(8, 3))
    given = training(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first, second = (take(given, given.examples("train")) for _ in range(2))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert first.loss == second.loss


def test_bare_functions_are_activations_too():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.last(torch.sigmoid(self.first(x)))

    found = probed(Bare()).of("activation")
    assert [(layer.name, layer.bare) for layer in found] == [("sigmoid() after first", True)]
    assert found[0].slopes.steepest == pytest.approx(0.25, rel=0.05)


def test_functions_in_place_are_measured_on_what_they_were_given():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    facts = probed(model).layer("1")
    assert 0.2 < facts.saturated < 0.8
    assert facts.arriving.mean != facts.mean


def test_dead_units_are_counted():
    model = mlp()
    with torch.no_grad():
        model[0].bias[:12] = -100.0
    facts = probed(model).layer("1")
    assert facts.dead == 0.75
    assert readings.dead_share(facts) == 0.75
    assert math.isnan(readings.saturated_share(facts))


def test_saturation_is_found_for_any_function():
    class Squash(nn.Module):
        def forward(self, x):
            return (0.2 * x + 0.5).clamp(0, 1)

    model = mlp(Squash)
    calm = probed(model).layer("1")
    with torch.no_grad():
        model[0].weight.mul_(1000)
    wild = probed(model).layer("1")
    assert readings.saturated_share(calm) < 0.05
    assert readings.saturated_share(wild) > 0.95


def test_few_examples_say_nothing_about_dead_units():
    facts = probed(mlp(), count=4).layer("1")
    assert math.isnan(facts.dead)
    assert math.isnan(readings.dead_share(facts))


def test_units_of_a_convolution_are_channels():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    with torch.no_grad():
        model[0].bias[:3] = -100.0

    class Square(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return self.inner(x.reshape(-1, 1, 4, 4))

    facts = probed(Square(), inputs=16).layer("inner.1")
    assert facts.signal.units == 6
    assert facts.dead == 0.5


def test_twins_have_equal_weights_and_gradients():
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[0].bias.zero_()
    assert probed(model).layer("0").duplicates == 15 / 16
    assert probed(model).layer("0").twins == 0.0  # what follows treats them differently
    with torch.no_grad():
        model[2].weight.fill_(0.1)
        model[2].bias.zero_()
    assert probed(model).layer("0").twins == 15 / 16
    assert duplicates_of(nn.Linear(4, 1)) == pytest.approx((math.nan, math.nan), nan_ok=True)


LAYERS = {
    "lstm": lambda: nn.LSTM(3, 16, num_layers=2, bidirectional=True),
    "projected lstm": lambda: nn.LSTM(3, 16, proj_size=14),
    "gru": lambda: nn.GRU(3, 16),
    "rnn cell": lambda: nn.RNNCell(3, 16),
    "attention": lambda: nn.MultiheadAttention(16, 2),
    "attention to others": lambda: nn.MultiheadAttention(16, 2, kdim=3, vdim=5),
    "transposed convolution": lambda: nn.ConvTranspose2d(4, 32, 3, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_with_weights_tells_its_duplicates(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = LAYERS[name]()
    assert duplicates_of(layer)[0] == 0.0
    for parameter in layer.parameters():
        nn.init.constant_(parameter, 0.05) if parameter.dim() > 1 else None
    assert duplicates_of(layer)[0] > 0.9
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    assert duplicates_of(layer)[0] == 0.0  # so begin many on purpose


def test_units_with_inputs_of_their_own_are_no_duplicates():
    layer = nn.Conv2d(16, 16, 3, groups=16)
    nn.init.constant_(layer.weight, 1 / 9)
    assert duplicates_of(layer)[0] == 0.0


def test_parameters_that_functions_take_as_weights_are_layers():
    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Parameter(torch.randn(4, 16, generator=seeded()))
            self.bias = nn.Parameter(torch.zeros(3))
            self.last = nn.Parameter(torch.full((16, 3), 0.1))

        def forward(self, x):
            return torch.addmm(self.bias, torch.relu(x @ self.first), self.last)

    probe = probed(ByHand())
    assert [(layer.name, layer.kind, layer.role) for layer in probe.layers] == [
        ("first", "matmul", "weight"), ("relu() after first", "relu", "activation"), ("last", "addmm", "weight"),
    ]  # fmt: skip
    assert probe.layer("first").weight_gradient == pytest.approx(probe.gradients["first"])
    assert probe.layer("last").input_rms == pytest.approx(probe.layer("relu() after first").rms)
    assert probe.layer("first").duplicates == 0.0
    assert probe.layer("last").duplicates == pytest.approx(2 / 3)  # units are columns


def test_dropout_that_is_called_by_hand_is_noted():
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 3)

        def forward(self, x):
            x = self.layer(F.dropout(self.first(x), 0.6, self.training))
            return self.last(F.dropout(F.dropout(x, 0.0), 0.2, False))

    assert probed(Drops()).drops == (0.6,)


def test_a_loss_without_gradient_is_no_error():
    probe = probed(mlp(), loss=lambda out, y: (out.argmax(1) != y).float().mean())
    assert probe.gradients == {}
    assert "grad" in probe.error


@pytest.mark.parametrize(("kind", "cosine"), [("norm", 1.0), ("value", None)])
def test_clipping_is_measured(kind, cosine):
    clipping = probed(mlp(), clip=(kind, 1e-6)).clipping
    assert clipping.share > 0.9
    assert clipping.cosine == cosine or 0.4 < clipping.cosine < 0.95


def test_inputs_may_be_nested_and_outputs_picked():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x, scale):
            return {"logits": self.layer(x) * scale, "other": x}

    model = Two()
    x, y = torch.randn(32, 4, generator=seeded()), torch.zeros(32, dtype=torch.long)
    data = ({"x": x, "scale": torch.ones(32, 1)}, y)
    given = Training(
        model, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1), data, None, batch_size=8, epochs=1
    )
    assert take(given, given.examples("train")).outputs.shape == (32, 3)


def test_spread_and_similarity_and_rank():
    x = torch.randn(64, 32, generator=seeded())
    line = torch.linspace(-1, 1, 64)[:, None] * torch.ones(1, 32)
    assert spread_of(x) == pytest.approx(1.0, abs=0.02)
    assert spread_of(x + 100) == pytest.approx(0.01, rel=0.1)
    assert spread_of(torch.ones(64, 32)) == 0.0
    assert similarity_of(x + 100) > 0.99
    assert abs(similarity_of(x)) < 0.05
    assert rank_of(x) > 20
    assert rank_of(line) == pytest.approx(1.0, abs=1e-4)
    assert rank_of(torch.ones(64, 32)) == 0.0


def test_what_is_not_finite_is_counted_and_left_out():
    x = torch.tensor([[1.0, math.inf], [math.nan, 3.0]])
    found = signal_of(x, 1)
    assert found.nonfinite == 2
    assert found.mean == 2.0
    assert math.isnan(found.spread)


@pytest.mark.parametrize("shape", [(1, 4), (4,), (0, 4), (4, 1)])
def test_odd_shapes_are_taken(shape):
    x = torch.randn(shape, generator=seeded())
    assert signal_of(x, 1).nonfinite == 0
    assert math.isnan(rank_of(x)) or rank_of(x) >= 0


@pytest.mark.parametrize(
    ("function", "steepest", "growth"),
    [(torch.relu, 1.0, 1.0), (torch.sigmoid, 0.25, 0.1), (torch.exp, 3.6, 403.0), (torch.tanh, 1.0, 1.0)],
)
def test_slopes_tell_functions_apart(function, steepest, growth):
    found = slopes_of(function, torch.randn(256, 8, generator=seeded()), 1, "f")
    assert found.steepest == pytest.approx(steepest, rel=0.05)
    assert found.growth == pytest.approx(growth, rel=0.05) or found.growth <= 1.0 >= growth


def test_softmax_is_saturated_where_it_is_sure():
    x = torch.randn(256, 8, generator=seeded())
    soft, hard = (slopes_of(nn.Softmax(1), scale * x, 1, "softmax").saturated for scale in (1, 1000))
    assert soft < 0.05
    assert hard > 0.9


def test_what_is_not_elementwise_has_no_slopes():
    x = torch.randn(64, 8, generator=seeded())
    assert slopes_of(lambda x: x - x.mean(1, keepdim=True), x, 1, "centered") is None
    assert slopes_of(nn.Linear(8, 8), x, 1, "linear") is None


def test_the_best_constant_output_is_the_prior():
    logits, y = torch.randn(300, 3, generator=seeded()), torch.arange(300) % 3
    found = readings.output_scale(F.cross_entropy, 10 * logits, y)
    assert found.prior == pytest.approx(math.log(3), rel=1e-3)
    assert found.excess > 3
    shares = logits.softmax(1)
    entropy = readings.output_scale(lambda p, y: F.nll_loss(p.log(), y), shares, y)
    assert entropy.prior == pytest.approx(math.log(3), rel=1e-3)


def test_weight_scales_are_one_for_usual_schemes_and_the_factor_beyond():
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        for init in (nn.init.kaiming_normal_, nn.init.xavier_uniform_, nn.init.kaiming_uniform_):
            init(layer.weight, generator=seeded())
            assert readings.weight_scales(nn.Sequential(layer))["0"] == pytest.approx(1.0, abs=0.05)
        nn.init.normal_(layer.weight, std=10 * math.sqrt(2 / 64), generator=seeded())
        assert readings.weight_scales(nn.Sequential(layer))["0"] == pytest.approx(10, rel=0.05)
