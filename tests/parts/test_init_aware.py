"""Activation-aware initialization: what deep nets keep, and which variances that takes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from init_models import BOUND, FUNCTIONS, KNOWN, Calls, deep, generator, hidden, normal
from torch import nn
from torch.nn import functional as F

from homeostat.parts.init import initialize_
from homeostat.parts.init.gains import backward_gain, gain


@pytest.mark.parametrize("scheme", ["he", "xavier", "orthogonal"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_thirty_layers_keep_the_mean_square(name, scheme):
    model = deep(FUNCTIONS[name])
    done = initialize_(model, scheme, sample=normal(64, 128), generator=generator())
    assert len(done.rows) == 31
    assert min(hidden(done)) > 1 / BOUND
    assert max(hidden(done)) < BOUND


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "gelu", "squared relu", "hardswish"])
def test_where_the_plain_schemes_fail(name):
    for scheme in ("he_normal", "xavier_normal", "fan_in_uniform"):
        done = initialize_(deep(FUNCTIONS[name]), scheme, sample=normal(64, 128), generator=generator())
        ratios = [row.forward for row in done.rows[5:-1]]
        last = hidden(done)[-1]
        assert (
            not (1 / BOUND < last < BOUND) or max(abs(math.log(r * gain(FUNCTIONS[name]) ** -2)) for r in ratios) > 0.2
        )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lsuv_gives_variance_one(name):
    model = deep(FUNCTIONS[name])
    x = normal(64, 128)
    initialize_(model, "lsuv", sample=x, generator=generator())
    outputs = []
    for layer in [*model.layers, model.head]:
        layer.register_forward_hook(lambda module, args, output: outputs.append(output.clone()))
    model(x)
    assert len(outputs) == 31
    for output in outputs:
        assert output.var(correction=0).item() == pytest.approx(1, abs=0.011)


def test_lsuv_starts_from_orthogonal_matrices():
    model = deep(torch.relu, depth=3)
    initialize_(model, "lsuv", sample=normal(64, 128), generator=generator())
    for layer in model.layers:
        product = layer.weight @ layer.weight.T
        torch.testing.assert_close(product / product[0, 0], torch.eye(128), atol=1e-4, rtol=0)


@settings(deadline=None, max_examples=25)
@given(
    widths=st.tuples(st.integers(30, 80), st.integers(30, 80), st.integers(30, 80)),
    name=st.sampled_from(sorted(FUNCTIONS)),
    scheme=st.sampled_from(["he", "xavier"]),
    mode=st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
    seed=st.integers(0, 10**6),
)
def test_the_variance_of_the_weights_is_gain_squared_over_fan(widths, name, scheme, mode, seed):
    first, middle, last = widths
    function = FUNCTIONS[name]
    model = Calls(
        lambda self, x: self.c(function(self.b(function(self.a(x))))),
        a=nn.Linear(first, middle), b=nn.Linear(middle, last), c=nn.Linear(last, 50),
    )  # fmt: skip
    x = normal(500, first, seed=seed)
    done = initialize_(model, scheme, sample=x / x.square().mean().sqrt(), generator=generator(seed), mode=mode)
    row = done.rows[1]
    backward = scheme == "he" and mode == "fan_out"
    expected = (backward_gain if backward else gain)(KNOWN[name])
    if "corrected" not in row.note:
        assert row.gain == pytest.approx(expected, rel=1e-6)
    fans = {"fan_in": middle, "fan_out": last, "fan_avg": (middle + last) / 2}
    fan = fans["fan_avg" if scheme == "xavier" else mode]
    # The mean of n squares of standard normal numbers has deviation √(2 / n).
    assert abs(row.std**2 * fan / row.gain**2 - 1) < 6 * math.sqrt(2 / (middle * last))
    assert model.b.weight.square().mean().sqrt().item() == pytest.approx(row.std, rel=1e-5)
    assert (model.b.bias == 0).all()


def test_the_first_layer_sees_the_input_and_the_last_has_gain_one():
    model = deep(torch.tanh, depth=3)
    done = initialize_(model, "he", sample=3 * normal(64, 128), generator=generator())
    assert next(round(row.gain, 3) for row in done.rows) == 1
    assert done.rows[0].activation == "input"
    assert "mean square 9" in done.rows[0].note
    assert done.rows[-1].gain == 1
    assert "last layer" in done.rows[-1].note
    assert all(row.activation == "tanh" for row in done.rows[1:])


def test_fan_out_keeps_the_gradient():
    model = deep(torch.tanh, width=256)
    done = initialize_(model, "he", sample=normal(64, 256), generator=generator(), mode="fan_out")
    assert done.rows[3].gain == pytest.approx(backward_gain("tanh"), rel=1e-9)
    narrowing = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 64))
    rows = initialize_(narrowing, "he", sample=normal(512, 64), generator=generator(), mode="fan_out").rows
    for row, expected in zip(rows, (2, 2, 1), strict=True):
        assert row.backward == pytest.approx(expected, rel=6 * math.sqrt(2 / 32))


def test_ratios_are_those_of_autograd():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    x = normal(32, 8).double()
    done = initialize_(model, "he", sample=x, generator=generator())
    inner = model[1](model[0](x)).detach().requires_grad_()
    out = model[2](inner)
    assert done.rows[1].forward == pytest.approx((out.square().mean() / inner.square().mean()).item())
    assert done.rows[1].mean_square == pytest.approx(out.square().mean().item())
    weight = model[2].weight.detach()
    cotangent = normal(200_000, 4, seed=5).double()  # another one: the ratio is an average of the same
    expected = (cotangent @ weight).square().mean().item()
    assert done.rows[1].backward == pytest.approx(expected, rel=6 * math.sqrt(2 / (32 * 4)))


def test_convolutions_with_borders_and_pooling():
    def forward(self, x):
        for index, layer in enumerate(self.layers):
            x = F.silu(layer(x))
            x = F.max_pool2d(x, 2) if index == 10 else F.avg_pool2d(x, 2) if index == 20 else x
        return self.head(x.mean((2, 3)))

    layers = nn.ModuleList([nn.Conv2d(24, 24, 3, padding=1) for _ in range(30)])
    model = Calls(forward, layers=layers, head=nn.Linear(24, 3))
    x = normal(4, 24, 16, 16)
    plain = hidden(initialize_(model, "he_normal", sample=x, generator=generator()))
    he = hidden(initialize_(model, "he", sample=x, generator=generator()))
    assert plain[-1] < 1e-6  # zeros at the borders take away more and more
    assert min(he) > 0.1
    assert max(he) < 6
    assert max(hidden(initialize_(model, "lsuv", sample=x, generator=generator()))) < 3
