import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from homeostat import nn as fast
from homeostat.errors import HomeostatError, InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.dropout import make_dropout
from homeostat.parts.ensemble import enumerate_masks, mc_dropout


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@settings(max_examples=15, deadline=None)
@given(
    widths=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    p=st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99)),
    count=st.integers(1, 5),
    layers=st.sampled_from([(nn.Dropout, nn.Dropout), (fast.Dropout, nn.Dropout), (fast.Dropout, fast.Dropout)]),
)
def test_it_is_the_sum_over_all_masks(widths, p, count, layers):
    torch.manual_seed(sum(widths) + count)
    first, second = widths
    model = nn.Sequential(
        nn.Linear(3, first), layers[0](p[0]), nn.Tanh(), nn.Linear(first, second), layers[1](p[1]), nn.Linear(second, 2)
    ).double()
    x = torch.randn(count, 3).double()
    exact = enumerate_masks(model, x)
    assert exact.kind == "classification"
    assert len(exact.samples) == 2 ** (first + second)
    mean, square = torch.zeros(count, 2).double(), torch.zeros(count, 2).double()
    for mask in itertools.product([0.0, 1.0], repeat=first + second):
        keep = torch.tensor(mask).double()
        chances = [p[0]] * first + [p[1]] * second
        weight = math.prod([1 - q if stays else q for q, stays in zip(chances, mask, strict=True)])
        hidden = torch.tanh(model[0](x) * keep[:first] / (1 - p[0]))
        output = model[5](model[3](hidden) * keep[first:] / (1 - p[1])).softmax(1)
        mean, square = mean + weight * output, square + weight * output**2
    torch.testing.assert_close(exact.mean, mean)
    torch.testing.assert_close(exact.variance, square - mean**2, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(exact.weights.sum(), torch.tensor(1.0).double())


def test_a_linear_map_has_the_mean_of_its_evaluation():
    model = nn.Sequential(nn.Dropout(0.3), nn.Linear(16, 3)).double()
    x = torch.randn(4, 16).double()
    exact = enumerate_masks(model, x, kind="regression")
    torch.testing.assert_close(exact.mean, model.eval()(x))
    variance = (model[1].weight.square() @ x.square().T).T * 0.3 / 0.7
    torch.testing.assert_close(exact.variance, variance)


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.last(F.dropout(torch.tanh(self.first(x)), 0.4, self.training))


class FastFunctional(nn.Module):
    """One of homeostat's functions, told the mode as torch's are."""

    def __init__(self, function, *args, **kwargs):
        super().__init__()
        self.function, self.args, self.kwargs = function, args, kwargs
        self.last = nn.LazyLinear(1)

    def forward(self, x):
        return self.last(self.function(x, *self.args, training=self.training, **self.kwargs).flatten(1))


CASES = {
    "fast functional": (FastFunctional(fast.functional.dropout, 0.4), (5, 3), 3),
    "fast functional, scaled": (FastFunctional(fast.functional.dropout, p=0.4, mode="scaled"), (5, 3), 3),
    "fast functional channels": (FastFunctional(fast.functional.dropout2d, 0.4), (5, 3, 2, 2), 3),
    "fast functional alpha": (FastFunctional(fast.functional.alpha_dropout, 0.4), (5, 3), 3),
    "fast functional path": (FastFunctional(fast.functional.drop_path, drop_prob=0.4), (5, 3), 1),
    "unscaled": (FastFunctional(fast.functional.drop_path, 0.4, scale_by_keep=False), (5, 3), 1),
    "last axis": (nn.Sequential(make_dropout(0.3, "channel"), nn.Flatten(), nn.Linear(12, 1)), (5, 4, 3), 3),
    "functional": (Functional(), (5, 3), 4),
    "channels": (nn.Sequential(nn.Dropout1d(0.3), nn.Flatten(), nn.Linear(12, 1)), (5, 3, 4), 3),
    "fast channels": (nn.Sequential(fast.Dropout1d(0.3), nn.Flatten(), nn.Linear(12, 1)), (5, 3, 4), 3),
    "fast maps": (nn.Sequential(fast.Dropout2d(0.3), nn.Flatten(), nn.Linear(12, 1)), (5, 3, 2, 2), 3),
    "alpha": (nn.Sequential(nn.AlphaDropout(0.3), nn.Linear(3, 1)), (5, 3), 3),
    "fast alpha": (nn.Sequential(fast.AlphaDropout(0.3), nn.Linear(3, 1)), (5, 3), 3),
    "feature alpha": (nn.Sequential(nn.FeatureAlphaDropout(0.3), nn.Flatten(), nn.Linear(12, 1)), (5, 3, 4), 3),
    "path": (nn.Sequential(fast.DropPath(0.3), nn.Linear(3, 1)), (5, 3), 1),
    "unscaled path": (nn.Sequential(fast.DropPath(0.3, scale_by_keep=False), nn.Linear(3, 1)), (5, 3), 1),
    "scaled": (nn.Sequential(fast.Dropout(0.3, mode="scaled"), nn.Linear(3, 1)), (5, 3), 3),
    "in place": (nn.Sequential(nn.Dropout(0.3, inplace=True), nn.Linear(3, 1)), (5, 3), 3),
    "fast in place": (nn.Sequential(fast.Dropout(0.3, inplace=True), nn.Linear(3, 1)), (5, 3), 3),
    "all dropped": (nn.Sequential(nn.Linear(3, 9), nn.Dropout(1.0), nn.Linear(9, 3), nn.Dropout(0.2)), (5, 3), 3),
}


@pytest.mark.parametrize("name", CASES)
def test_sampling_agrees_with_it(name):
    """Mean and variance of 500 samples, each within 6 standard errors of the exact value."""
    model, shape, units = CASES[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model.eval()(x)  # lazy layers get their sizes
    kept = x.clone()
    exact = enumerate_masks(model.train(), x, kind="regression")
    assert len(exact.samples) == 2**units
    assert torch.equal(x, kept)
    sampled = mc_dropout(model, 500, seed=1, kind="regression")(x)
    assert torch.equal(x, kept)
    assert ((sampled.mean - exact.mean).abs() <= 6 * (exact.variance / 500).sqrt() + 1e-6).all()
    centered = (exact.samples - exact.mean).double()
    fourth = (exact.weights[:, None, None] * centered**4).sum(0)
    error = ((fourth - exact.variance.double() ** 2).clamp_min(0) / 500).sqrt()
    assert ((sampled.variance - exact.variance).abs() <= 6 * error + 1e-3 * exact.variance + 1e-6).all()


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    model[1].eval()
    before, modes, random = states(model), [m.training for m in model.modules()], torch.get_rng_state()
    enumerate_masks(model, torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert modes == [m.training for m in model.modules()]
    assert torch.equal(random, torch.get_rng_state())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nests_of_inputs_and_a_layer_called_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, a, b):
            return self.drop(a) + self.drop(b)

    a, b = torch.rand(3, 2), torch.rand(3, 2)
    exact = enumerate_masks(Twice(), {"a": a, "b": b}, kind="regression")
    assert len(exact.samples) == 16
    torch.testing.assert_close(exact.mean, a + b)
    torch.testing.assert_close(exact.variance, a**2 + b**2)
    torch.testing.assert_close(enumerate_masks(Twice(), (a, b), kind="regression").mean, a + b)


class Interacting(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x) - x.mean(0) * torch.arange(len(x))[:, None]


class Sequences(nn.Module):
    """Reads (T, N, F), with as many steps as examples."""

    def __init__(self):
        super().__init__()
        self.drop, self.recurrent = nn.Dropout(0.5), nn.RNN(2, 2)

    def forward(self, x):
        return self.recurrent(self.drop(x))[0]


class OwnDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 0.5

    def forward(self, x):
        return x * torch.bernoulli(torch.full_like(x, 0.5)) if self.training else x


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (nn.Dropout(0.5), (2, 17), "at most 16 units .* got 17.*mc_dropout"),
        (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False), nn.Dropout(0.5)), (3, 2), None),
        (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2, track_running_stats=False)), (3, 2), "one by one"),
        (Interacting(), (3, 2), "one by one"),
        (Sequences(), (2, 2, 2), "one by one"),
        (nn.GRU(2, 2, 2, dropout=0.5), (3, 4, 2), "masks can be listed"),
        (nn.TransformerEncoderLayer(2, 1, 2, dropout=0.1, batch_first=True), (2, 2, 2), "masks can be listed"),
        (fast.DropConnectLinear(2, 2), (3, 2), "masks can be listed"),
        (fast.GaussianDropout(0.5), (3, 2), "masks can be listed"),
        (nn.Sequential(OwnDropout(), nn.Linear(2, 1)), (3, 2), "masks can be listed"),
        (nn.Sequential(nn.Flatten(0), nn.Dropout(0.5)), (3, 2), "have 3 examples first"),
    ],
)
def test_what_cannot_be_enumerated_is_refused(model, shape, said):
    before = [m.training for m in model.modules()]
    x = torch.randn(shape)
    if said is None:  # statistics in front of the dropout are those of the batch, as the model has them
        assert enumerate_masks(model, x).mean.shape == shape
        return
    with pytest.raises(InvalidValue, match=said):
        enumerate_masks(model, x)
    assert before == [m.training for m in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


class Mixed(nn.Module):
    """A layer and a function: to miss the function is to give a wrong answer for exact."""

    def __init__(self, function):
        super().__init__()
        self.function, self.drop = function, nn.Dropout(0.5)

    def forward(self, x):
        return self.function(self.drop(x), training=self.training)


def test_functions_of_homeostat_are_seen_beside_layers():
    x = torch.tensor([[1.0, 2.0]])
    exact = enumerate_masks(Mixed(fast.functional.dropout), x, kind="regression")
    assert len(exact.samples) == 16
    torch.testing.assert_close(exact.mean, x)
    torch.testing.assert_close(exact.variance, 3 * x**2)  # each of two factors has mean square 2
    for function in (fast.functional.gaussian_dropout, connected):
        with pytest.raises(InvalidValue, match=r"masks can be listed.*got '(gaussian_dropout|drop_connect_linear)'"):
            enumerate_masks(Mixed(function), x)
    always = enumerate_masks(nn.Sequential(Always()), x, kind="regression")
    torch.testing.assert_close(always.variance, x**2)


def connected(x, training):
    return fast.functional.drop_connect_linear(x, torch.eye(2), training=training)


class Always(nn.Module):
    def forward(self, x):
        return fast.functional.dropout(x)


def test_other_mistakes():
    with pytest.raises(InvalidType, match="max_units must be an integer, but got '3'"):
        enumerate_masks(nn.Dropout(), torch.ones(2, 2), "3")
    with pytest.raises(InvalidType, match="model"):
        enumerate_masks(lambda x: x, torch.ones(2, 2))
    with pytest.raises(InvalidType, match="batch"):
        enumerate_masks(nn.Dropout(), torch.tensor(1.0))
    with pytest.warns(NoEffectWarning, match="nothing in the model drops"):
        assert len(enumerate_masks(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)), torch.ones(2, 2)).samples) == 1

    class Fickle(nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            return F.dropout(x, 0.5) if self.calls < 3 else x

    with pytest.raises(HomeostatError, match="same way"):
        enumerate_masks(Fickle(), torch.ones(2, 2))
