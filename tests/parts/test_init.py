import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn
from torch.nn.utils import prune

from homeostat.errors import InvalidValue
from homeostat.parts import init
from homeostat.parts.activation import ACTIVATIONS, make_activation
from homeostat.parts.init import MODES, SCHEMES, initialize_, layer_fans


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


VARIANCES = {  # of a weight with fan_in 400 and fan_out 250, from the papers
    "he_normal_": 2 / 400,
    "he_uniform_": 2 / 400,
    "xavier_normal_": 2 / 650,
    "xavier_uniform_": 2 / 650,
    "fan_in_uniform_": 1 / (3 * 400),
}


@pytest.mark.parametrize("name", VARIANCES)
def test_variance_and_shape_of_the_distribution(name):
    weight = getattr(init, name)(torch.empty(250, 400), generator=generator())
    values = weight.flatten().double().numpy()
    deviation = math.sqrt(VARIANCES[name])
    if "uniform" in name:
        bound = math.sqrt(3) * deviation
        reference = stats.uniform(-bound, 2 * bound)
        assert abs(values).max() <= bound
    else:
        reference = stats.norm(0, deviation)
    # 100,000 draws: a wrong variance (He for Xavier, fan_out for fan_in) has p below 1e-100.
    assert stats.kstest(values, reference.cdf).pvalue > 1e-3


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4).map(lambda s: [20 * s[0], 20 * s[1], *s[2:]]),
    scale=st.floats(0.01, 100),
    mode=st.sampled_from(MODES),
    distribution=st.sampled_from(["normal", "uniform"]),
    seed=st.integers(0, 10**6),
)
def test_variance_scaling_has_variance_scale_over_fan(shape, scale, mode, distribution, seed):
    weight = torch.empty(shape, dtype=torch.float64)
    init.variance_scaling_(weight, scale, mode, distribution, generator=generator(seed))
    kernel = math.prod(shape[2:])
    fan = {"fan_in": shape[1] * kernel, "fan_out": shape[0] * kernel, "fan_avg": (shape[0] + shape[1]) / 2 * kernel}[
        mode
    ]
    variance = weight.square().mean().item() * fan / scale
    # The mean of n squares of variance-1 draws: deviation √(2/n) for normal ones, less for uniform ones.
    assert abs(variance - 1) < 6 * math.sqrt(2 / weight.numel())


@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (init.he_normal_, lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu")),
        (lambda w: init.he_uniform_(w, "fan_out"), lambda w: nn.init.kaiming_uniform_(w, 0, "fan_out", "relu")),
        (lambda w: init.he_normal_(w, negative_slope=0.3), lambda w: nn.init.kaiming_normal_(w, 0.3)),
        (lambda w: init.xavier_normal_(w, 2.0), lambda w: nn.init.xavier_normal_(w, 2.0)),
        (init.xavier_uniform_, nn.init.xavier_uniform_),
        (lambda w: init.orthogonal_(w, 1.5), lambda w: nn.init.orthogonal_(w, 1.5)),
    ],
    ids=["he_normal", "he_uniform", "he_normal_leaky", "xavier_normal", "xavier_uniform", "orthogonal"],
)
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (8, 4, 3, 3)])
def test_the_same_generator_state_gives_the_values_of_torch(ours, torchs, shape):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = torchs(torch.empty(shape))
        torch.manual_seed(0)
        torch.testing.assert_close(ours(torch.empty(shape)), expected)


@settings(deadline=None, max_examples=30)
@given(rows=st.integers(1, 40), columns=st.integers(1, 40), length=st.floats(0.1, 10))
def test_orthogonal_rows_or_columns_have_length_gain(rows, columns, length):
    weight = init.orthogonal_(torch.empty(rows, columns, dtype=torch.float64), length, generator=generator())
    product = weight @ weight.T if rows <= columns else weight.T @ weight
    torch.testing.assert_close(product, length**2 * torch.eye(len(product), dtype=torch.float64))


def test_gain_keeps_the_mean_square_of_normal_inputs():
    z = torch.randn(1_000_000, generator=generator(), dtype=torch.float64)
    for name in ACTIVATIONS:
        after = make_activation(name)(z).square().mean().item()
        assert abs(init.gain(name) ** 2 * after - 1) < 0.01
    assert init.gain("relu") == pytest.approx(math.sqrt(2))
    assert init.gain("selu") == pytest.approx(1, abs=1e-3)
    assert init.gain("identity") == pytest.approx(1)


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(
            nn.Conv2d(3, 32, 3, groups=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2),
            nn.GroupNorm(4, 16),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 10),
        )


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.weight", "4.bias", "7.weight", "7.bias"]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_weight_is_set_biases_are_zero_and_norms_neutral(scheme):
    model = network()
    for parameter in model.parameters():
        nn.init.constant_(parameter.data, 123.0)
    model[1].running_mean.fill_(5.0)
    assert initialize_(model, scheme, generator=generator()) == NAMES
    for name, parameter in model.named_parameters():
        assert (parameter != 123).all()
        if name.endswith("bias"):
            assert (parameter == 0).all()
    assert (model[1].weight == 1).all()
    assert (model[4].weight == 1).all()
    assert (model[1].running_mean == 0).all()


def test_the_values_of_the_simple_schemes():
    model = nn.Linear(300, 300)
    initialize_(model, "constant", generator=generator(), value=0.5)
    assert (model.weight == 0.5).all()
    initialize_(model, "zeros", generator=generator())
    assert (model.weight == 0).all()
    initialize_(model, "normal", generator=generator(), std=0.2)
    assert model.weight.std().item() == pytest.approx(0.2, rel=0.02)
    initialize_(model, "he_normal", generator=generator(), gain=3.0)
    assert model.weight.std().item() == pytest.approx(3 / math.sqrt(300), rel=0.02)
    initialize_(model, "he_normal", generator=generator(), activation="leaky_relu")
    assert model.weight.std().item() == pytest.approx(math.sqrt(2 / (1 + 0.01**2) / 300), rel=0.02)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("constant", "zeros")])
def test_only_the_generator_decides(scheme):
    first, second, other = network(), network(), network()
    torch.manual_seed(1)
    initialize_(first, scheme, generator=generator(3))
    state = torch.manual_seed(2).get_state()
    initialize_(second, scheme, generator=generator(3))
    initialize_(other, scheme, generator=generator(4))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_layers_without_weights_do_not_shift_the_draws():
    plain = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    decorated = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    initialize_(plain, "he_normal", generator=generator())
    initialize_(decorated, "he_normal", generator=generator())
    assert torch.equal(plain[1].weight, decorated[3].weight)


def test_values_do_not_depend_on_memory_format_and_hardly_on_precision():
    models = [nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3).to(memory_format=torch.channels_last), nn.Conv2d(8, 8, 3).half()]
    for model in models:
        initialize_(model, "he_uniform", generator=generator())
    assert torch.equal(models[0].weight, models[1].weight)
    assert models[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(models[0].weight.half(), models[2].weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(200, 100), (64, 200)),
        (nn.Conv1d(16, 32, 5), (16, 16, 200)),
        (nn.Conv2d(32, 64, 3, groups=4), (8, 32, 20, 20)),
        (nn.Conv2d(16, 32, 3, stride=2), (16, 16, 49, 49)),
        (nn.ConvTranspose2d(64, 32, 4, stride=2, groups=2), (8, 64, 16, 16)),
        (nn.ConvTranspose2d(64, 32, 3), (8, 64, 16, 16)),
    ],
)
def test_fan_in_keeps_the_forward_and_fan_out_the_backward_mean_square(layer, shape):
    middle = (slice(None), slice(None), *[slice(6, -6)] * (len(shape) - 2))
    x = torch.randn(shape, generator=generator(1)).requires_grad_()
    initialize_(layer, "he_normal", generator=generator(), gain=1.0)
    y = layer(x)
    assert y[middle if y.ndim > 2 else ...].square().mean().item() == pytest.approx(1, rel=0.15)
    initialize_(layer, "he_normal", generator=generator(), gain=1.0, mode="fan_out")
    (gradient,) = torch.autograd.grad(layer(x), x, torch.randn(y.shape, generator=generator(2)))
    inner = (slice(None), slice(None), *[slice(4, -4)] * (len(shape) - 2))
    assert gradient[inner if gradient.ndim > 2 else ...].square().mean().item() == pytest.approx(1, rel=0.15)


def test_fans_of_plain_layers_are_those_of_torch():
    for layer in (nn.Linear(3, 5), nn.Conv2d(3, 5, (2, 3)), nn.Conv3d(4, 6, 2)):
        assert layer_fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)
        assert init.tensor_fans(layer.weight) == layer_fans(layer)


def test_attention_projections_are_set_one_by_one():
    packed, split = nn.MultiheadAttention(32, 4), nn.MultiheadAttention(32, 4, kdim=16, vdim=8)
    changed = initialize_(packed, "orthogonal", generator=generator(), gain=1.0)
    assert changed == ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
    for matrix in packed.in_proj_weight.chunk(3):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(32), atol=1e-5, rtol=0)
    changed = initialize_(split, "he_normal", generator=generator())
    assert changed[:3] == ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    assert split.v_proj_weight.std().item() == pytest.approx(math.sqrt(2 / 8), rel=0.2)


def test_frozen_parameters_and_other_layers_are_left_alone():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 4), nn.LSTM(4, 4), nn.BatchNorm1d(4))
    model[1].requires_grad_(False)
    model[3].requires_grad_(False)
    model[3].running_mean.fill_(2.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert initialize_(model, "zeros", generator=generator()) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("sampled", [False, True])
def test_norms_without_parameters_get_fresh_statistics_except_in_frozen_parts(sampled):
    def part():
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))

    model = nn.Sequential(part().requires_grad_(False), part(), nn.BatchNorm1d(4, track_running_stats=False))
    model[0][1].running_mean.fill_(2.0)
    model[1][1].running_mean.fill_(2.0)
    initialize_(model, "he_normal", sample=torch.ones(3, 4) if sampled else None, generator=generator())
    assert (model[0][1].running_mean == 2).all()
    assert (model[1][1].running_mean == 0).all()


def test_a_shared_weight_is_drawn_once():
    model = nn.ModuleDict({"first": nn.Linear(6, 6), "second": nn.Linear(6, 6)})
    model["second"].weight = model["first"].weight
    assert initialize_(model, "he_normal", generator=generator()) == ["first.weight", "first.bias", "second.bias"]
    alone = nn.Linear(6, 6)
    initialize_(alone, "he_normal", generator=generator())
    assert torch.equal(alone.weight, model["second"].weight)


def test_a_parametrized_weight_is_set_through_its_parametrization():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(50, 50))
    assert initialize_(layer, "he_normal", generator=generator()) == ["weight", "bias"]
    plain = nn.Linear(50, 50)
    initialize_(plain, "he_normal", generator=generator())
    torch.testing.assert_close(layer.weight, plain.weight)


def test_what_cannot_be_set_is_refused_before_anything_changes():
    class Negated(nn.Module):
        def forward(self, weight):
            return -weight

    one_way = nn.Linear(3, 3)
    nn.utils.parametrize.register_parametrization(one_way, "weight", Negated())
    pruned = nn.Linear(3, 3)
    prune.l1_unstructured(pruned, "weight", 0.5)
    for layer, reason in (
        (nn.LazyLinear(3), "lazy: run one batch"),
        (one_way, "no right_inverse"),
        (pruned, "pruning"),
    ):
        model = nn.Sequential(nn.Linear(3, 3), layer)
        before = model[0].weight.clone()
        with pytest.raises(InvalidValue, match=f"1.weight.*{reason}"):
            initialize_(model, "zeros", generator=generator())
        assert torch.equal(model[0].weight, before)


def test_arguments_that_cannot_be_used_are_refused():
    layer = nn.Linear(3, 3)
    before = layer.weight.clone()
    with pytest.raises(InvalidValue, match=r"unknown scheme 'he_norml'. Did you mean 'he_normal'"):
        initialize_(layer, "he_norml", generator=generator())
    with pytest.raises(InvalidValue, match="unknown mode 'fanin'"):
        initialize_(layer, "he_normal", mode="fanin", generator=generator())
    with pytest.raises(InvalidValue, match="unknown activation"):
        initialize_(layer, "orthogonal", activation="rel", generator=generator())
    with pytest.raises(InvalidValue, match="std must be finite and at least 0"):
        initialize_(layer, "normal", std=-1.0, generator=generator())
    with pytest.raises(InvalidValue, match="scale must be finite"):
        init.variance_scaling_(torch.empty(2, 2), math.inf)
    with pytest.raises(InvalidValue, match="unknown distribution"):
        init.variance_scaling_(torch.empty(2, 2), distribution="cauchy")
    with pytest.raises(InvalidValue, match="at least two dimensions"):
        init.he_normal_(torch.empty(3))
    assert torch.equal(layer.weight, before)


def test_empty_tensors_are_fine():
    for name in (*VARIANCES, "orthogonal_"):
        assert getattr(init, name)(torch.empty(0, 3), generator=generator()).shape == (0, 3)
        assert getattr(init, name)(torch.empty(3, 0), generator=generator()).shape == (3, 0)


def test_the_values_of_the_other_simple_schemes():
    model = nn.Linear(400, 100)
    n = model.weight.numel()
    for scheme, variance, largest in (
        ("lecun_normal", 1 / 400, math.inf),
        ("lecun_uniform", 1 / 400, math.sqrt(3 / 400)),
        ("trunc_normal", 0.2**2, 2 * 0.2 / 0.8796),
    ):
        initialize_(model, scheme, generator=generator(), std=0.2)
        assert abs(model.weight.square().mean().item() / variance - 1) < 6 * math.sqrt(2 / n)
        assert model.weight.abs().max() <= largest


def test_the_result_reads_like_a_list_and_shows_a_table():
    done = initialize_(network(), "xavier_uniform", generator=generator())
    assert done
    assert list(done) == list(done.parameters) == NAMES
    assert (len(done), done[0], done[-2:]) == (10, "0.weight", ["7.weight", "7.bias"])
    assert "3.bias" in done
    assert done != NAMES[1:]
    assert [row.layer for row in done.rows] == ["0", "3", "7"]
    assert [row.kind for row in done.rows] == ["Conv2d", "ConvTranspose2d", "Linear"]
    assert (done.rows[1].fan_in, done.rows[1].fan_out) == (32 * 16 / 4, 16 * 16)
    assert math.isnan(done.rows[0].forward)
    lines = str(done).splitlines()
    assert lines[0].split() == [*done.frame().columns]
    assert len(lines) == 4
    assert done.frame().shape == (3, 11)
    assert "<td>ConvTranspose2d</td>" in done._repr_html_()
    assert not initialize_(nn.ReLU(), "zeros")
    assert "<" not in initialize_(nn.ReLU(), "zeros")._repr_html_().partition("<tbody>")[2].partition("</tbody>")[0]


def test_a_sample_fills_the_table_and_changes_no_weight():
    x = torch.randn(4, 3, 9, 9, generator=generator(1))
    for scheme in ("he_normal", "xavier_uniform", "constant", "trunc_normal"):
        without, given_one = network(), network()
        initialize_(without, scheme, generator=generator())
        done = initialize_(given_one, scheme, sample=x, generator=generator())
        for a, b in zip(without.parameters(), given_one.parameters(), strict=True):
            assert torch.equal(a, b)
        assert all(row.forward > 0 for row in done.rows)
        assert [row.activation for row in done.rows] == ["input", "norm, relu", "norm, adaptive_avg_pool2d"]
