"""The tensor functions that torch.nn.init has too: ranges, distributions, torch's arguments."""

import inspect
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts import init
from homeostat.parts.init.schemes import draw_


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


DRAWS = ("uniform_", "normal_", "trunc_normal_", "kaiming_normal_", "kaiming_uniform_")


@settings(deadline=None, max_examples=40)
@given(
    mean=st.floats(-5, 5),
    std=st.floats(0.05, 10),
    ends=st.tuples(st.floats(-6, 6), st.floats(0.01, 6)),
    seed=st.integers(0, 10**6),
)
def test_truncated_normal_draws_lie_in_the_interval_and_follow_the_distribution(mean, std, ends, seed):
    low, high = ends[0], ends[0] + ends[1]  # in units of std, up to 12 away from the mean
    a, b = mean + std * low, mean + std * high
    values = init.trunc_normal_(torch.empty(2000, dtype=torch.float64), mean, std, a, b, generator=generator(seed))
    assert a <= values.min()
    assert values.max() <= b
    reference = stats.truncnorm(low, high, loc=mean, scale=std)
    assert stats.kstest(values.numpy(), reference.cdf).pvalue > 1e-6


@pytest.mark.parametrize(("a", "b"), [(5.0, 6.0), (-9.0, -8.5), (20.0, 21.0), (-37.0, -36.0), (8.0, math.inf)])
def test_truncated_normal_far_in_the_tail(a, b):
    values = init.trunc_normal_(torch.empty(20_000, dtype=torch.float64), 0, 1, a, b, generator=generator())
    assert a <= values.min()
    assert values.max() <= b
    near = a if a > 0 else b  # beyond x the normal tail has mean about x + 1/x
    assert abs(abs(values.mean().item()) - abs(near)) < 1 / abs(near)
    assert len(values.unique()) > 19_000


def test_truncated_normal_in_single_and_half_precision_stays_in_the_interval():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        values = init.trunc_normal_(torch.empty(5000, dtype=dtype), 0, 1, -0.5, 0.25, generator=generator())
        assert values.dtype == dtype
        assert values.min() >= -0.5
        assert values.max() <= 0.25


def test_truncated_scaling_has_the_variance_asked_for():
    # Keras' VarianceScaling(distribution="truncated_normal") divides by 0.87962566103423978 for the same reason.
    weight = draw_(torch.empty(200_000), 0.3, "truncated", generator())
    assert weight.std().item() == pytest.approx(0.3, rel=5 / math.sqrt(2 * weight.numel()))
    assert weight.abs().max() <= 2 * 0.3 / 0.87962566103423978 + 1e-6
    assert (draw_(torch.ones(3), 0.0, "truncated", generator()) == 0).all()


@pytest.mark.parametrize("name", ["uniform_", "normal_", "trunc_normal_", "constant_", "zeros_", "ones_", *DRAWS[3:]])
def test_arguments_have_the_names_order_and_defaults_of_torch(name):
    ours, torchs = (inspect.signature(getattr(home, name)).parameters for home in (init, nn.init))
    assert [*ours] == [*torchs]
    assert [p.default for p in ours.values()] == [p.default for p in torchs.values()]


def test_the_same_generator_state_gives_the_values_of_torch():
    with torch.random.fork_rng(devices=[]):
        for ours, torchs in (
            (lambda w: init.uniform_(w, -1, 2), lambda w: nn.init.uniform_(w, -1, 2)),
            (lambda w: init.normal_(w, 1, 0.5), lambda w: nn.init.normal_(w, 1, 0.5)),
            (init.kaiming_normal_, nn.init.kaiming_normal_),
            (
                lambda w: init.kaiming_uniform_(w, 0.3, "fan_out", "tanh"),
                lambda w: nn.init.kaiming_uniform_(w, 0.3, "fan_out", "tanh"),
            ),
        ):
            torch.manual_seed(0)
            expected = torchs(torch.empty(20, 30))
            torch.manual_seed(0)
            torch.testing.assert_close(ours(torch.empty(20, 30)), expected)


@pytest.mark.parametrize("name", DRAWS)
def test_only_the_generator_decides(name):
    fill = getattr(init, name)
    torch.manual_seed(1)
    first = fill(torch.empty(4, 5), generator=generator(3))
    state = torch.manual_seed(2).get_state()
    assert torch.equal(first, fill(torch.empty(4, 5), generator=generator(3)))
    assert not torch.equal(first, fill(torch.empty(4, 5), generator=generator(4)))
    assert torch.equal(torch.get_rng_state(), state)


def test_fills_return_the_tensor_itself_and_need_no_detach():
    weight = nn.Parameter(torch.empty(3, 4))
    for fill in (init.uniform_, init.normal_, init.trunc_normal_, init.zeros_, init.ones_):
        assert fill(weight) is weight
    assert init.constant_(weight, 0.25) is weight
    assert (weight == 0.25).all()
    assert weight.requires_grad
    assert weight.grad_fn is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: init.uniform_(w, 2, 1), "uniform_: a must be at most b"),
        (lambda w: init.normal_(w, 0, -1), "normal_: std must be finite and at least 0"),
        (lambda w: init.normal_(w, math.nan), "mean must be finite"),
        (lambda w: init.trunc_normal_(w, std=0), "std must be above 0"),
        (lambda w: init.trunc_normal_(w, a=1, b=1), "a must be below b"),
        (lambda w: init.trunc_normal_(w, a=60, b=61), "has no probability"),
        (lambda w: init.trunc_normal_(w, a=math.nan), "a must be below b"),
    ],
)
def test_numbers_that_cannot_be_used_are_refused(call, message):
    weight = torch.full((2, 3), 7.0)
    with pytest.raises(InvalidValue, match=message):
        call(weight)
    assert (weight == 7).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: init.he_normal_(w[0]), "he_normal_: tensor must have at least two dimensions"),
        (lambda w: init.he_uniform_(w, "fanin"), "he_uniform_: unknown mode 'fanin'. Did you mean 'fan_in'"),
        (lambda w: init.xavier_normal_(w, math.nan), "xavier_normal_: gain must be finite"),
        (lambda w: init.orthogonal_(w[0]), "orthogonal_: tensor must have at least two dimensions"),
        (lambda w: init.kaiming_normal_(w, nonlinearity="gelu"), "kaiming_normal_: unknown nonlinearity 'gelu'"),
    ],
)
def test_errors_name_the_function_that_was_called(call, message):
    weight = torch.full((2, 3), 7.0)
    with pytest.raises(InvalidValue, match=message):
        call(weight)
    assert (weight == 7).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: init.normal_(w, 0, "1"), "normal_: std must be a number, but got '1'"),
        (lambda w: init.he_normal_(w, negative_slope="0.1"), "he_normal_: negative_slope must be a number"),
        (lambda w: init.variance_scaling_(w, None), "variance_scaling_: scale must be a number, but got None"),
        (lambda w: init.constant_(w, "1"), "constant_: val must be a number"),
        (
            lambda w: init.he_normal_(w, generator=3),
            "generator must be a torch.Generator or None, but got 3. For a",
        ),
        (lambda w: init.trunc_normal_(w, generator=3), "generator must be a torch.Generator or None"),
        (lambda w: init.orthogonal_([1.0]), "orthogonal_: tensor must be a tensor"),
        (lambda w: init.xavier_normal_(torch.nn.Linear(2, 2)), "tensor must be a tensor.* there is initialize_"),
        (lambda w: init.he_normal_(w.long()), "he_normal_: tensor must be floating"),
        (lambda w: init.uniform_(w.long()), "uniform_: tensor must be floating"),
    ],
)
def test_types_that_cannot_be_used_are_refused(call, message):
    weight = torch.full((2, 3), 7.0)
    with pytest.raises(InvalidType, match=message):
        call(weight)
    assert (weight == 7).all()
