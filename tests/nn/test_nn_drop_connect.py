"""Convolutions that drop their weights, and inference by moments: against plain torch and against sampling."""

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
from homeostat.nn import functional as F

CONVOLUTIONS = {
    1: (nn.DropConnectConv1d, torch_nn.Conv1d, F.drop_connect_conv1d, torch_functional.conv1d),
    2: (nn.DropConnectConv2d, torch_nn.Conv2d, F.drop_connect_conv2d, torch_functional.conv2d),
    3: (nn.DropConnectConv3d, torch_nn.Conv3d, F.drop_connect_conv3d, torch_functional.conv3d),
}
geometries = st.fixed_dictionaries(
    {
        "stride": st.integers(1, 2),
        "padding": st.sampled_from([0, 1, 2, "valid"]),
        "dilation": st.integers(1, 2),
        "groups": st.sampled_from([1, 2]),
    }
)


@pytest.mark.parametrize("dims", CONVOLUTIONS)
@settings(max_examples=8, deadline=None)
@given(st.integers(1, 4), geometries, st.integers(0, 2**40))
def test_every_example_is_convolved_with_its_own_weights(dims, count, geometry, seed):
    """The weights of example n are those that dropout gives to the n-th of stacked copies."""
    _, _, function, truth = CONVOLUTIONS[dims]
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, *(6,) * dims, generator=draw)
    weight, bias = torch.randn(6, 4 // geometry["groups"], *(2,) * dims, generator=draw), torch.randn(6, generator=draw)
    copies = F.dropout(weight.expand(count, *weight.shape), 0.4, seed=seed)
    settings = {"p": 0.4, "seed": seed, **geometry}
    output = function(x, weight, bias, per_example=True, **settings)
    expected = torch.cat([truth(x[n : n + 1], copies[n], bias, **geometry) for n in range(count)])
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)
    parts = [function(x[n : n + 1], weight, bias, per_example=True, offset=n, **settings) for n in range(count)]
    torch.testing.assert_close(torch.cat(parts), output, atol=1e-5, rtol=1e-4)
    one = function(x, weight, bias, **settings)
    torch.testing.assert_close(one, truth(x, F.dropout(weight, 0.4, seed=seed), bias, **geometry))
    torch.testing.assert_close(
        function(x[0], weight, bias, per_example=True, **settings), output[0], atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("dims", CONVOLUTIONS)
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
def test_evaluation_is_torchs_convolution(dims, mode):
    layer, plain, *_ = CONVOLUTIONS[dims]
    settings = {"padding": "same", "padding_mode": mode, "groups": 2, "bias": mode != "zeros"}
    mine, theirs = layer(4, 6, 3, **settings, p=0.3, per_example=True), plain(4, 6, 3, **settings)
    mine.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, *(5,) * dims)
    assert torch.equal(mine.eval()(x), theirs(x))
    assert mine.train()(x).shape == theirs(x).shape
    theirs.load_state_dict(mine.state_dict())
    assert repr(mine) == repr(theirs).replace(plain.__name__, layer.__name__)[:-1] + ", p=0.3, per_example=True)"


@pytest.mark.parametrize("per_example", [False, True])
def test_the_mean_over_masks_is_the_convolution(per_example):
    layer, count = nn.DropConnectConv2d(3, 2, 2, p=0.4, per_example=per_example).double(), 400
    x = torch.randn(1, 3, 3, 3).double()
    torch.manual_seed(0)
    batch = x.expand(count, -1, -1, -1)
    outputs = layer(batch) if per_example else torch.cat([layer(x) for _ in range(count)])
    error = outputs.std(0) / math.sqrt(count)
    assert ((outputs.mean(0) - layer.eval()(x)[0]).abs() < 6 * error).all()


def test_an_empty_batch_and_one_example_without_a_batch():
    layer = nn.DropConnectConv2d(3, 4, 2, per_example=True)
    assert layer(torch.ones(0, 3, 5, 5)).shape == (0, 4, 4, 4)
    assert layer(torch.ones(3, 5, 5)).shape == (4, 4, 4)
    assert nn.DropConnectConv2d(3, 4, 2)(torch.ones(3, 5, 5)).shape == (4, 4, 4)


@pytest.mark.parametrize("per_example", [False, True])
def test_autocast_half_precision_copies_and_compiled_code(per_example):
    layer, x = nn.DropConnectConv2d(3, 4, 3, per_example=per_example), torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert copy.deepcopy(layer).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    outputs = []
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for each in (layer, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), compiled):
        torch.manual_seed(1)
        outputs.append(each(x))
    for other in outputs:
        torch.testing.assert_close(other, outputs[0])
    vmapped = torch.func.vmap(layer, randomness="different")(x.unsqueeze(0).expand(2, -1, -1, -1, -1))
    assert not torch.equal(vmapped[0], vmapped[1])


def test_moments_are_those_over_all_masks():
    """Exactly, over the 2^6 masks of the six weights, each with its probability."""
    draw = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(size, generator=draw).double() for size in ((4, 3), (2, 3), (2,)))
    p, mean, square = 0.3, 0.0, 0.0
    for bits in range(64):
        keep = torch.tensor([bits >> place & 1 for place in range(6)]).double().reshape(2, 3)
        chance = torch.where(keep == 1, 1 - p, p).prod()
        output = torch_functional.linear(x, weight * keep / (1 - p), bias)
        mean, square = mean + chance * output, square + chance * output.square()
    torch.testing.assert_close(F.drop_connect_moments(x, weight, bias, p), (mean, square - mean.square()))


def test_moments_are_those_of_wan_et_al():
    """Their weights are not divided by 1 - p: M = (1 - p) W', V = p (1 - p) W'^2 x^2 with W' = W / (1 - p)."""
    x, weight, p = torch.randn(5, 4).double(), torch.randn(3, 4).double(), 0.4
    theirs = weight / (1 - p)
    mean, variance = F.drop_connect_moments(x, weight, p=p)
    torch.testing.assert_close(mean, (1 - p) * x @ theirs.T)
    torch.testing.assert_close(variance, p * (1 - p) * x.square() @ theirs.square().T)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_inference_by_moments_is_the_mean_over_masks(activation):
    """Many inputs make a unit normal; with samples the layer then gives what averaging over masks gives."""
    count = 20_000
    layer = nn.DropConnectLinear(200, 4, p=0.5, per_example=True, activation=activation, samples=count).double()
    x = torch.randn(1, 200).double()
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = layer(x.expand(count, -1))
        inferred = layer.eval()(x)[0]
        layer.samples = 0
        naive = layer(x)[0]
    error = outputs.std(0) * math.sqrt(2 / count)
    # Skew and kurtosis of a sum of 200 leave 1 % of the spread.
    assert ((inferred - outputs.mean(0)).abs() < 6 * error + 0.01 * outputs.std(0)).all()
    assert (naive - outputs.mean(0)).abs().max() > 3 * (inferred - outputs.mean(0)).abs().max()


def test_inference_of_a_rectifier_has_its_closed_form():
    """E relu(u) = mu Phi(mu / s) + s phi(mu / s), within six standard errors of the samples."""
    x, weight, p, samples = torch.randn(6, 20).double(), torch.randn(5, 20).double(), 0.3, 4000
    mean, variance = F.drop_connect_moments(x, weight, p=p)
    deviation, normal = variance.sqrt(), torch.distributions.Normal(0.0, 1.0)
    z = mean / deviation
    expected = mean * normal.cdf(z) + deviation * normal.log_prob(z).exp()
    output = F.drop_connect_expectation(x, weight, p=p, activation="relu", samples=samples, seed=1)
    assert ((output - expected).abs() < 6 * deviation / math.sqrt(samples)).all()


def test_samples_have_the_rules_of_dropout():
    x, weight = torch.randn(6, 20), torch.randn(5, 20)

    def infer(x, **more):
        return F.drop_connect_expectation(x, weight, samples=4, **more)

    whole = infer(x, seed=3)
    torch.testing.assert_close(torch.cat([infer(x[:2], seed=3), infer(x[2:], seed=3, offset=2)]), whole)
    torch.manual_seed(0)
    first = infer(x)
    state = torch.get_rng_state()
    torch.testing.assert_close(infer(x, generator=torch.Generator().manual_seed(0)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert infer(x[0]).shape == (5,)
    assert infer(x.reshape(2, 3, 20)).shape == (2, 3, 5)
    torch.testing.assert_close(infer(x, p=0.0), torch_functional.relu(x @ weight.T))
    zero = torch.zeros(1, 20, requires_grad=True)
    infer(zero).sum().backward()
    assert zero.grad.isfinite().all()
    for dtype in (torch.float16, torch.bfloat16):
        output = F.drop_connect_expectation(x.to(dtype) * 100, weight.to(dtype), samples=4, seed=3)
        assert output.dtype == dtype
        assert output.isfinite().all()


def test_an_activation_belongs_to_the_layer_in_training_too():
    layer, plain = nn.DropConnectLinear(8, 4, activation="relu"), nn.DropConnectLinear(8, 4)
    plain.load_state_dict(layer.state_dict())
    x, outputs = torch.randn(5, 8), []
    for each in (layer, plain):
        torch.manual_seed(0)
        outputs.append(each(x))
    assert torch.equal(outputs[0], outputs[1].relu())
    assert torch.equal(layer.eval()(x), plain.eval()(x).relu())
    text = repr(nn.DropConnectLinear(8, 4, activation="relu", samples=9, backend="reference"))
    assert text.endswith("p=0.5, per_example=False, activation='relu', samples=9, backend='reference')")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 3}, "samples must be 0, or positive with an activation"),
        ({"samples": 3, "activation": "relu", "p": 1.0}, "samples must be 0, or positive with an activation"),
        ({"samples": -1, "activation": "relu"}, "samples must be 0, or positive"),
        ({"activation": "rely"}, "Did you mean 'relu'"),
        ({"p": 1.5}, r"p must lie in \[0, 1\]"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings, message):
    with pytest.raises(InvalidValue, match=message):
        nn.DropConnectLinear(3, 2, **settings)


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidValue, match=r"DropConnectConv2d: p must lie in \[0, 1\]"):
        nn.DropConnectConv2d(3, 2, 3, p=-1)
    with pytest.raises(InvalidType, match="samples must be an integer"):
        nn.DropConnectLinear(3, 2, activation="relu", samples=2.0)
    with pytest.raises(InvalidType, match="samples must be an integer"):
        F.drop_connect_expectation(torch.ones(2, 3), torch.ones(4, 3), samples=2.5)
    with pytest.raises(InvalidValue, match="samples must be at least 1"):
        F.drop_connect_expectation(torch.ones(2, 3), torch.ones(4, 3), samples=0)
    with pytest.raises(InvalidValue, match=r"drop_connect_moments: p must lie in \[0, 1\)"):
        F.drop_connect_moments(torch.ones(2, 3), torch.ones(4, 3), p=1)
    with pytest.raises(InvalidValue, match="drop_connect_conv2d: weight must have 4 dimensions"):
        F.drop_connect_conv2d(torch.ones(1, 2, 3, 3), torch.ones(2, 2))
    with pytest.raises(InvalidValue, match="drop_connect_conv2d: input must have 4 dimensions, or 3"):
        F.drop_connect_conv2d(torch.ones(2, 3), torch.ones(2, 2, 1, 1))
