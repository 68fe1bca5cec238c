"""Dropout by evaluation factor, for SELU networks and by noise: statistics, torch's results, drop-in behavior."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn as torch_nn
from torch.nn import functional as torch_functional

from homeostat import nn
from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn.functional import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
    gaussian_dropout,
)

MASKING = [
    (nn.Dropout, (6, 5)),
    (nn.Dropout1d, (6, 5, 4)),
    (nn.Dropout2d, (6, 5, 4, 3)),
    (nn.Dropout3d, (6, 5, 1, 2, 2)),
]
KINDS = [nn.Dropout, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.GaussianDropout]
SATURATION = 1.0507009873554804934193349852946 * 1.6732632423543772848170429916717  # SELU's constants, appendix A4

sizes = st.tuples(st.integers(1, 40), st.integers(1, 60), st.integers(1, 30))
probabilities = st.floats(0.05, 0.9)


@settings(max_examples=25, deadline=None)
@given(sizes, probabilities, st.integers(0, 2**40))
def test_shares_of_masks(shape, p, seed):
    """Within six standard errors of p, for values and for channels; scaled leaves what stays as it is."""
    x = torch.randn(shape) + 10
    for function, units in ((dropout, x.numel()), (dropout1d, shape[0] * shape[1])):
        output = function(x, p, mode="scaled", seed=seed)
        kept = output != 0
        assert torch.equal(output[kept], x[kept])
        error = math.sqrt(p * (1 - p) / units)
        assert abs(kept.double().mean().item() - (1 - p)) < 6 * error + 1 / units
        torch.testing.assert_close(function(x, p, seed=seed), output / (1 - p))


@settings(max_examples=25, deadline=None)
@given(sizes, probabilities, st.integers(0, 2**40))
def test_moments_of_noise(shape, p, seed):
    """Mean 1 and variance p / (1 - p), within six standard errors: of a normal variance, sqrt(2 / n) of itself."""
    factor, variance = gaussian_dropout(torch.ones(shape, dtype=torch.float64), p, seed=seed), p / (1 - p)
    count = factor.numel()
    assert abs(factor.mean().item() - 1) < 6 * math.sqrt(variance / count)
    spread = (factor - 1).square().mean().item()
    assert abs(spread - variance) < 6 * variance * math.sqrt(2 / count) * max(1, 6 / math.sqrt(count))


@settings(max_examples=25, deadline=None)
@given(sizes, probabilities, st.integers(0, 2**40))
def test_alpha_dropout_takes_the_two_values_of_the_formula(shape, p, seed):
    """Every value is a (x or -s) + b, where dropout with this seed keeps or drops it."""
    x = torch.randn(shape, dtype=torch.float64)
    a = ((1 - p) * (1 + p * SATURATION**2)) ** -0.5
    b = a * p * SATURATION
    for function, mask in ((alpha_dropout, dropout), (feature_alpha_dropout, dropout1d)):
        kept = mask(torch.ones_like(x), p, seed=seed) != 0
        expected = a * torch.where(kept, x, -SATURATION) + b
        torch.testing.assert_close(function(x, p, True, seed=seed), expected)


def test_alpha_dropout_keeps_mean_and_variance():
    torch.manual_seed(0)
    x = torch.randn(1000, 1000)
    for p in (0.05, 0.1, 0.5):
        y = alpha_dropout(x, p, True)
        assert abs(y.mean().item()) < 5e-3  # five standard errors, 1e-3 each
        assert abs(y.var().item() - 1) < 1e-2  # of the variance, about 1.4e-3 to 2e-3


@pytest.mark.parametrize("name", ["AlphaDropout", "FeatureAlphaDropout"])
def test_alpha_dropout_has_torchs_distribution(name):
    """The same pair of values as torch's layer gives to a constant input, and the same share within six errors."""
    torch.manual_seed(0)
    x, p = torch.full((200, 500, 1), 0.3), 0.3
    mine, theirs = (getattr(module, name)(p)(x) for module in (nn, torch_nn))
    torch.testing.assert_close(mine.unique(), theirs.unique(), atol=1e-6, rtol=1e-5)
    low = mine.min()
    shares = [(values < low + 1e-3).double().mean().item() for values in (mine, theirs)]
    assert all(abs(share - p) < 6 * math.sqrt(p * (1 - p) / 100_000) for share in shares)


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_ends_of_p(kind, p):
    x = torch.randn(4, 3, 2)
    if kind is nn.GaussianDropout and p == 1:
        with pytest.raises(InvalidValue, match=r"GaussianDropout: p must lie in \[0, 1\), but got 1.0"):
            kind(p)
        layer = kind()
        layer.p = 1
        with pytest.raises(InvalidValue, match=r"gaussian_dropout: p must lie in \[0, 1\)"):
            layer(x)
        return
    output = kind(p)(x)
    assert output is x if p == 0 else torch.equal(output, torch.zeros_like(x))


@pytest.mark.parametrize(("layer", "shape"), MASKING)
def test_scaled_dropout_multiplies_in_evaluation(layer, shape):
    x, scaled = torch.randn(shape), layer(0.25, mode="scaled")
    assert repr(scaled) == f"{layer.__name__}(p=0.25, inplace=False, mode='scaled')"
    torch.manual_seed(3)
    output = scaled(x)
    torch.manual_seed(3)
    assert torch.equal(output != 0, layer(0.25)(x) != 0)
    assert torch.equal(scaled.eval()(x), x * 0.75)
    assert torch.equal(layer(0.0, mode="scaled").eval()(x), x)
    assert not layer(1.0, mode="scaled").eval()(x).any()
    inplace = layer(0.25, True, mode="scaled").eval()
    given = x.clone()
    assert inplace(given) is given
    assert torch.equal(given, x * 0.75)


def test_both_modes_agree_in_the_mean():
    x, count = torch.rand(1, 50).double(), 20_000
    for mode in ("inverted", "scaled"):
        layer = nn.Dropout(0.3, mode=mode)
        torch.manual_seed(0)
        outputs = layer(x.expand(count, -1))
        error = outputs.std(0) / math.sqrt(count)
        assert ((outputs.mean(0) - layer.eval()(x)[0]).abs() < 6 * error).all()


def test_an_infinite_value_that_is_dropped_is_zero_in_either_mode():
    x = torch.full((100,), torch.inf)
    for mode in ("inverted", "scaled"):
        output = dropout(x, 0.5, mode=mode, seed=1)
        assert set(output.tolist()) == {0.0, torch.inf}
    assert not alpha_dropout(x, 0.5, True, seed=1).isnan().any()


@pytest.mark.parametrize("function", [alpha_dropout, feature_alpha_dropout, gaussian_dropout])
def test_functions_share_the_rules_of_dropout(function):
    x = torch.randn(8, 6, 4)
    whole = function(x, 0.4, True, seed=7)
    assert torch.equal(
        torch.cat([function(x[:3], 0.4, True, seed=7), function(x[3:], 0.4, True, seed=7, offset=3)]), whole
    )
    torch.manual_seed(5)
    first = function(x, 0.4, True)
    torch.manual_seed(5)
    assert torch.equal(function(x, 0.4, True), first)
    generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(function(x, 0.4, True, generator=generator), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert function(x, 0.4, False) is x
    target = x.clone()
    assert function(target, 0.4, True, True, seed=7) is target
    assert torch.equal(target, whole)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        output = function(x.to(dtype), 0.4, True, seed=7)
        assert output.dtype == dtype
        torch.testing.assert_close(output.float(), whole, atol=0.05, rtol=0.02)
    with pytest.raises(InvalidValue, match=r"p must lie in \[0, 1\]"):
        function(x, 1.5)
    with pytest.raises(InvalidType, match="floating"):
        function(torch.ones(2, 2, dtype=torch.int64), 0.5, True)
    if function is not feature_alpha_dropout:
        assert function(torch.tensor(1.0), 0.4, True).shape == ()


def test_reseeding_globally_changes_nothing_for_a_given_seed():
    x = torch.randn(5, 4)
    for function in (alpha_dropout, gaussian_dropout, dropout):
        outputs = []
        for seed in (0, 1):
            torch.manual_seed(seed)
            outputs.append(function(x, 0.5, True, seed=9))
        assert torch.equal(*outputs)


def test_defaults_are_torchs():
    x = torch.ones(3, 4)
    assert alpha_dropout(x) is x
    assert feature_alpha_dropout(x) is x
    assert torch.equal(torch_functional.alpha_dropout(x), x)
    for name in ("AlphaDropout", "FeatureAlphaDropout"):
        mine, theirs = getattr(nn, name)(), getattr(torch_nn, name)()
        assert repr(mine) == repr(theirs)
        assert isinstance(mine, type(theirs))
        x = torch.randn(3, 4, requires_grad=True)
        getattr(nn, name)(inplace=True)(x)  # torch's layer does not write to its input either, whatever it says


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_compiled_code(kind):
    layer, x = kind(0.4), torch.randn(16, 8, 4)
    outputs = []
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.manual_seed(1)
        outputs.append(each(x))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(1)
    outputs.append(compiled(x))
    for output in outputs:
        torch.testing.assert_close(output, outputs[0])
    assert not torch.equal(compiled(x), outputs[0])
    assert not layer.state_dict()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_shares_draws_where_it_is_told_to(kind, randomness):
    output = torch.func.vmap(kind(0.5), randomness=randomness)(torch.ones(3, 8, 4))
    assert torch.equal(output[0], output[1]) == (randomness == "same")


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_the_dtype(kind):
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in (torch.float32, torch.bfloat16):
            for layer in (kind(0.4), kind(0.4).eval()):
                assert layer(torch.ones(4, 3, 2, dtype=dtype)).dtype == dtype


def test_modes_that_are_none_are_refused():
    with pytest.raises(InvalidValue, match=r"Dropout2d: unknown mode 'scale'. Did you mean 'scaled'\?"):
        nn.Dropout2d(0.5, mode="scale")
    for function in (dropout, dropout2d, dropout3d):
        with pytest.raises(InvalidValue, match="unknown mode"):
            function(torch.ones(2, 2, 2, 2), mode="none", training=False)


def test_layers_pickled_before_they_had_a_mode_still_work():
    layer = nn.Dropout(0.5)
    del vars(layer)["mode"]
    assert repr(layer) == "Dropout(p=0.5, inplace=False)"
    assert layer(torch.ones(20)).unique().tolist() == [0.0, 2.0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_torchs():
    parts = [torch.randn(2, 6), torch.randn(3, 6)]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(parts, layout=layout)
        for name, arguments in (("LayerNorm", (6,)), ("RMSNorm", (6,))):
            mine, theirs = (getattr(module, name)(*arguments) for module in (nn, torch_nn))
            if name == "RMSNorm" and layout is torch.strided:
                continue  # torch has none either
            for one, other in zip(mine(nested).unbind(), theirs(nested).unbind(), strict=True):
                assert torch.equal(one, other)
        assert nn.Dropout(0.5)(nested).is_nested
        rectified = nn.LayerNorm(6, activation="relu")(nested)
        assert all((part >= 0).all() for part in rectified.unbind())
