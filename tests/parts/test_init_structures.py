"""Activation-aware initialization of models of every structure; what it leaves alone, and what it refuses."""

import math
from functools import partial

import pytest
import torch
from init_models import BOUND, Calls, deep, generator, hidden, normal
from torch import nn
from torch.nn import functional as F

from homeostat import nn as fast
from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.init import AWARE, initialize_
from homeostat.parts.init.gains import gain


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (
            lambda: nn.Sequential(nn.Linear(64, 128), nn.GLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)),
            (256, 64),
        ),
        (
            lambda: Calls(
                lambda self, x: self.c(torch.tanh(self.b(F.silu(self.a(x)) * self.g(x)))),
                a=nn.Linear(64, 64), g=nn.Linear(64, 64), b=nn.Linear(64, 64), c=nn.Linear(64, 2),
            ),
            (256, 64),
        ),
        (
            lambda: Calls(
                lambda self, x: self.c(torch.tanh(self.b(self.a(x).view(-1, 64, 4).amax(-1)))),
                a=nn.Linear(64, 256), b=nn.Linear(64, 64), c=nn.Linear(64, 2),
            ),
            (256, 64),
        ),
    ],
    ids=["glu", "gate", "maxout"],
)  # fmt: skip
def test_gates_are_measured(make, shape):
    done = initialize_(make(), "he", sample=normal(*shape), generator=generator())
    row = done.rows[-2]
    assert row.note == "measured"
    assert row.mean_square == pytest.approx(1, rel=6 * math.sqrt(2 / 64))


def test_a_concatenation_has_the_gain_of_the_mixture():
    model = Calls(
        lambda self, x: self.d(torch.tanh(self.c(torch.cat([F.relu(self.a(x)), torch.tanh(self.b(x))], 1)))),
        a=nn.Linear(32, 96), b=nn.Linear(32, 32), c=nn.Linear(128, 64), d=nn.Linear(64, 3),
    )  # fmt: skip
    rows = initialize_(model, "he", sample=normal(256, 32), generator=generator()).rows
    assert rows[2].activation == "relu | tanh"
    assert rows[2].gain == pytest.approx((0.75 / gain("relu") ** 2 + 0.25 / gain("tanh") ** 2) ** -0.5)


def test_norms_fused_activations_dropout_and_reshaping():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), fast.BatchNorm2d(8, activation="silu"), fast.Dropout(0.5), nn.Conv2d(8, 8, 3),
        nn.GroupNorm(2, 8), nn.Flatten(), nn.Hardtanh(), nn.Linear(128, 16), nn.PReLU(16), nn.Dropout(0.1),
        nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 2),
    )  # fmt: skip
    with torch.no_grad():
        model[8].weight.copy_(torch.linspace(-1, 1, 16))
    rows = initialize_(model, "he", sample=normal(16, 3, 8, 8), generator=generator()).rows
    assert [row.activation for row in rows] == ["input", "norm, silu", "norm, hardtanh", "prelu", "norm"]
    assert rows[1].gain == pytest.approx(gain("silu"))
    assert rows[2].gain == pytest.approx(gain("hardtanh"))
    assert rows[3].gain == pytest.approx((0.5 + torch.linspace(-1, 1, 16).square().mean().item() / 2) ** -0.5, rel=1e-5)


def test_running_statistics_modes_and_gradients_are_left_alone():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 2)).train()
    model[3].eval()
    state = torch.get_rng_state()
    initialize_(model, "he", sample=normal(16, 8), generator=generator())
    assert torch.equal(state, torch.get_rng_state())
    assert (model[1].running_mean == 0).all()
    assert (model[1].running_var == 1).all()
    assert model[1].num_batches_tracked == 0
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shared_weights_and_weights_that_the_sample_does_not_reach():
    layer = nn.Linear(64, 64)
    shared = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), layer, nn.Tanh(), layer, nn.ReLU(), nn.Linear(64, 2))
    rows = initialize_(shared, "he", sample=normal(32, 64), generator=generator()).rows
    assert rows[1].note == "used 2 times"
    assert rows[1].gain == pytest.approx((0.5 / gain("relu") ** 2 + 0.5 / gain("tanh") ** 2) ** -0.5)

    tied = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    tied[2].weight = tied[0].weight
    done = initialize_(tied, "he", sample=normal(32, 64), generator=generator())
    assert list(done) == ["0.weight", "0.bias", "2.bias", "4.weight", "4.bias"]
    assert done.rows[1].note == "shares its weight"

    idle = Calls(lambda self, x: self.b(F.relu(self.a(x))), a=nn.Linear(8, 8), b=nn.Linear(8, 2), c=nn.Linear(50, 40))
    done = initialize_(idle, "he", sample=normal(4, 8), generator=generator(), activation="tanh")
    assert done.rows[-1].layer == "c"
    assert "not reached" in done.rows[-1].note
    assert done.rows[-1].std == pytest.approx(gain("tanh") / math.sqrt(50), rel=6 * math.sqrt(2 / 2000))
    assert math.isnan(done.rows[-1].forward)


def test_frozen_weights_stay_and_what_follows_is_measured():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    model[0].weight.data.mul_(100)
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    done = initialize_(model, "lsuv", sample=normal(32, 64), generator=generator())
    assert torch.equal(before, model[0].weight)
    assert "0.weight" not in done
    assert done.rows[0].note == "frozen: left as it is"
    assert done.rows[1].mean_square == pytest.approx(1, abs=0.1)
    model[1] = nn.Tanh()
    row = initialize_(model, "he", sample=normal(32, 64), generator=generator()).rows[1]
    assert "for mean square" in row.note  # tanh's gain where everything is saturated
    assert row.gain == pytest.approx(1, abs=0.05)


def test_parametrized_weights():
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(32, 32)), nn.ReLU(), norm(nn.Linear(32, 32)), nn.Tanh(), nn.Linear(32, 2))
    rows = initialize_(model, "he", sample=normal(64, 32), generator=generator()).rows
    assert rows[1].std == pytest.approx(math.sqrt(2 / 32), rel=6 * math.sqrt(2 / 1024))
    spectral = nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), spectral(nn.Linear(32, 32)), nn.Tanh(), nn.Linear(32, 2))
    rows = initialize_(model, "he", sample=normal(64, 32), generator=generator()).rows
    assert "parametrization decides" in rows[1].note
    for _ in range(100):  # power iteration without a gap: the error after k steps is about log(32) / 2k
        model(normal(2, 32))
    assert torch.linalg.matrix_norm(model.eval()[2].weight, 2).item() == pytest.approx(1, abs=0.05)


def test_parameters_used_without_a_layer():
    model = Calls(
        lambda self, x: F.linear(torch.tanh(F.relu(x @ self.first + self.shift) @ self.second), self.third, self.bias),
        first=nn.Parameter(torch.ones(64, 100)), shift=nn.Parameter(torch.zeros(100)),
        second=nn.Parameter(torch.ones(100, 80)), third=nn.Parameter(torch.ones(5, 80)),
        bias=nn.Parameter(torch.ones(5)),
    )  # fmt: skip
    done = initialize_(model, "he", sample=normal(256, 64), generator=generator())
    assert list(done) == ["first", "second", "third", "bias"]
    assert [(row.fan_in, row.fan_out) for row in done.rows] == [(64, 100), (100, 80), (80, 5)]
    assert done.rows[1].gain == pytest.approx(gain("relu"))
    assert done.rows[1].std == pytest.approx(math.sqrt(2 / 100), rel=6 * math.sqrt(2 / 8000))
    assert (model.bias == 0).all()
    assert initialize_(model, "he_normal", generator=generator()) == []  # without a sample nobody knows of them


def test_convolutions_without_a_layer():
    model = Calls(
        lambda self, x: F.conv_transpose2d(F.relu(F.conv2d(x, self.down, stride=2, groups=2)), self.up, stride=2),
        down=nn.Parameter(torch.ones(8, 2, 3, 3)), up=nn.Parameter(torch.ones(8, 6, 4, 4)),
    )  # fmt: skip
    layers = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), nn.ReLU(), nn.ConvTranspose2d(8, 6, 4, stride=2, bias=False)
    )
    x = normal(2, 4, 12, 12)
    bare = initialize_(model, "he", sample=x, generator=generator())
    held = initialize_(layers, "he", sample=x, generator=generator())
    assert [(r.fan_in, r.fan_out) for r in bare.rows] == [(r.fan_in, r.fan_out) for r in held.rows]
    assert torch.equal(model.down, layers[0].weight)
    assert torch.equal(model.up, layers[2].weight)


def test_attention():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    x = normal(8, 10, 32)
    he = initialize_(model, "he", sample=x, generator=generator()).rows
    assert {row.activation for row in he if "out_proj" in row.layer} == {"attention"}
    assert {round(row.gain, 6) for row in he if row.layer.endswith("linear2")} == {round(gain("gelu"), 6)}
    initialize_(model, "lsuv", sample=x, generator=generator())
    seen = []
    for block in model.layers:
        block.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[0]))
        block.linear2.register_forward_hook(lambda module, args, output: seen.append(output))
    model.eval()(x)
    for output in seen:
        assert output.var(correction=0).item() == pytest.approx(1, abs=0.011)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions(dtype):
    model = deep(F.gelu, depth=6).to(dtype)
    for scheme in ("he", "lsuv"):
        done = initialize_(model, scheme, sample=normal(64, 128).to(dtype), generator=generator())
        assert 1 / BOUND < min(hidden(done)) <= max(hidden(done)) < BOUND
        assert all(parameter.dtype == dtype for parameter in model.parameters())


def test_samples_of_every_kind_and_outputs_of_every_kind():
    model = Calls(
        lambda self, x, y=None: {"a": self.c(F.relu(self.a(x) + self.b(y))), "b": [self.d(x), torch.arange(3)]},
        a=nn.Linear(8, 16), b=nn.Linear(4, 16), c=nn.Linear(16, 2), d=nn.Linear(8, 1),
    )  # fmt: skip
    x, y = normal(32, 8), normal(32, 4)
    for sample in ((x, y), [x, y], {"x": x, "y": y}):
        rows = initialize_(model, "he", sample=sample, generator=generator()).rows
        assert all(math.isfinite(row.backward) for row in rows)
    words = Calls(
        lambda self, i: self.b(F.relu(self.a(self.e(i)))), e=nn.Embedding(9, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 2)
    )
    before = words.e.weight.clone()
    rows = initialize_(words, "he", sample=torch.arange(9), generator=generator()).rows
    assert rows[0].activation == "input"
    assert torch.equal(before, words.e.weight)


@pytest.mark.parametrize("scheme", [*AWARE, "orthogonal"])
def test_only_the_generator_decides(scheme):
    x = normal(16, 128)
    models = [deep(F.gelu, depth=3) for _ in range(3)]
    for model, seed, other in zip(models, (3, 3, 4), (1, 2, 3), strict=True):
        torch.manual_seed(other)
        state = torch.get_rng_state()
        initialize_(model, scheme, sample=x, generator=generator(seed))
        assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(models[0].head.weight, models[2].head.weight)


def test_samples_that_say_nothing():
    for sample, word in ((torch.zeros(4, 128), "variance 0"), (torch.full((4, 128), math.inf), "variance nan")):
        model = deep(torch.tanh, depth=2)
        assert word in initialize_(model, "lsuv", sample=sample, generator=generator()).rows[0].note
        initialize_(model, "he", sample=sample, generator=generator())
        assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("scheme", ["he", "lsuv", "he_normal"])
def test_missing_values_in_the_sample_are_refused(scheme):
    model, sample = deep(torch.tanh, depth=2), normal(4, 128)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sample[2, 5] = math.nan
    with pytest.raises(InvalidValue, match="sample must hold no NaN"):
        initialize_(model, scheme, sample=(sample,), generator=generator())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_models_without_weights_and_of_one_layer():
    done = initialize_(nn.ReLU(), "he", sample=normal(3), generator=generator())
    assert not done
    assert done == []
    assert str(done) == "no weights"
    assert initialize_(nn.Linear(4, 2), "lsuv", sample=normal(64, 4), generator=generator()) == ["weight", "bias"]


def test_own_gain():
    model = deep(torch.tanh, depth=2)
    rows = initialize_(model, "he", sample=normal(16, 128), generator=generator(), gain=0.5).rows
    assert [row.gain for row in rows] == [0.5, 0.5, 0.5]
    assert rows[0].std == pytest.approx(0.5 / math.sqrt(128), rel=0.05)


def test_what_cannot_be_done_is_refused_before_anything_changes():
    model = deep(torch.tanh, depth=2)
    before = [parameter.clone() for parameter in model.parameters()]
    call = partial(initialize_, model, generator=generator())
    with pytest.raises(InvalidValue, match=r"sample must be given for scheme 'he'.*use 'he_normal'"):
        call("he")
    with pytest.raises(InvalidValue, match="sample must be given for scheme 'lsuv'"):
        call("lsuv")
    with pytest.raises(InvalidValue, match="sample must be given for residual='zero'"):
        call("he_normal", residual="zero")
    with pytest.raises(InvalidValue, match=r"unknown residual 'zer'\. Did you mean 'zero'"):
        call("he", sample=normal(2, 128), residual="zer")
    with pytest.raises(InvalidValue, match="be without any DataParallel"):
        initialize_(nn.DataParallel(model), "he", sample=normal(2, 128))
    with pytest.raises(InvalidValue, match="initialize_: model must hold no lazy layer"):
        initialize_(nn.LazyLinear(3), "he", sample=normal(2, 128))
    with pytest.raises(InvalidType, match=r"initialize_: model must be a torch.nn.Module"):
        initialize_(torch.relu, "he", sample=normal(2, 2))
    with pytest.raises(InvalidType, match=r"initialize_: model must be a torch.nn.Module"):
        initialize_([nn.Linear(2, 2)], "zeros")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        call("he", sample=normal(2, 5))
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


def test_a_model_that_fails_half_way_is_as_it_was():
    def forward(self, x):
        if x.requires_grad or self.a.weight.std() > 0.5:
            raise RuntimeError("no")
        return self.b(self.a(x))

    model = Calls(forward, a=nn.Linear(2, 500), b=nn.Linear(500, 2))
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="no"):
        initialize_(model, "he", sample=normal(3, 2), generator=generator())
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
