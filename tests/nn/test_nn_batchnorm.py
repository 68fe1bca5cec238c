"""Batch normalization modules and functions against torch.nn's, and what they offer beyond."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn.activation import ACTIVATIONS, split
from homeostat.nn.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from homeostat.nn.functional.norm import batch_norm
from homeostat.nn.groupnorm import GroupNorm
from homeostat.parts import activation as parts

PAIRS = {2: (BatchNorm1d, nn.BatchNorm1d), 3: (BatchNorm1d, nn.BatchNorm1d), 4: (BatchNorm2d, nn.BatchNorm2d)}
PAIRS[5] = (BatchNorm3d, nn.BatchNorm3d)


def shuffle(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def assert_same(ours: nn.Module, theirs: nn.Module, x: torch.Tensor, seed: int = 0) -> None:
    """Output, gradients and buffers; theirs are computed in float64, since torch's own float32 may be further off."""
    exact = copy.deepcopy(theirs).double()
    results = []
    for module, dtype in ((ours, x.dtype), (exact, torch.float64)):
        own = x.detach().to(dtype, copy=True).requires_grad_()
        output = module(own)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        grads = torch.autograd.grad(output, [own, *module.parameters()], grad)
        results.append([output.detach(), *grads, *module.buffers()])
    theirs.load_state_dict(exact.state_dict())
    for actual, expected in zip(*results, strict=True):
        within = {"rtol": 1e-4, "atol": 2e-5 * max(1.0, float(expected.abs().max())), "check_dtype": False}
        torch.testing.assert_close(actual, expected, **within)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(st.integers(3, 9), st.integers(1, 20)).flatmap(
        lambda head: st.lists(st.integers(1, 7), max_size=3).map(lambda tail: (*head, *tail))
    ),
    affine=st.booleans(),
    track=st.booleans(),
    momentum=st.sampled_from([0.1, 0.5, None]),
    last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_modules_do_what_torchs_do(shape, affine, track, momentum, last, seed):
    kind, torchs = PAIRS[len(shape)]
    ours = shuffle(kind(shape[1], momentum=momentum, affine=affine, track_running_stats=track), seed)
    theirs = torchs(shape[1], momentum=momentum, affine=affine, track_running_stats=track)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + seed
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for training in (True, True, False):
        assert_same(ours.train(training), theirs.train(training), x, seed)


def test_state_dicts_fit_both_ways_and_modules_are_torchs():
    for kind, torchs in PAIRS.values():
        ours, theirs = kind(3, activation="relu"), torchs(3)
        assert isinstance(ours, torchs)
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())
        assert ours.state_dict()._metadata == theirs.state_dict()._metadata


def test_a_state_dict_from_before_batches_were_counted_loads():
    state = BatchNorm1d(3).state_dict()
    del state["num_batches_tracked"]
    state._metadata[""]["version"] = 1
    BatchNorm1d(3).load_state_dict(state)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("training", [True, False])
def test_activation_and_residual_are_applied_last(name, training):
    x, residual = torch.randn(6, 4, 5, 5), torch.randn(6, 4, 5, 5)
    ours, theirs = shuffle(BatchNorm2d(4, activation=name)).train(training), nn.BatchNorm2d(4).train(training)
    theirs.load_state_dict(ours.state_dict())
    act = parts.make_activation(name)
    torch.testing.assert_close(ours(x, residual=residual), act(theirs(x) + residual), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(x), act(theirs(x)), rtol=1e-5, atol=1e-5)


def test_activations_are_those_that_recipes_know():
    assert set(ACTIVATIONS) == set(parts.ACTIVATIONS)


def test_unbiased_false_keeps_the_populations_variance():
    x = torch.randn(5, 3)
    layer = BatchNorm1d(3, momentum=1.0, unbiased=False)
    layer(x)
    torch.testing.assert_close(layer.running_var, x.var(0, unbiased=False))
    assert "unbiased=False" in repr(layer)


@pytest.mark.parametrize("momentum", [1.0, 0.5, 0.1])
def test_running_statistics_keep_their_digits_beside_far_smaller_ones(momentum):
    x = 1e-4 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    ours, torchs = BatchNorm1d(3, momentum=momentum), nn.BatchNorm1d(3, momentum=momentum)
    ours(x), torchs(x)
    torch.testing.assert_close(ours.running_var, torchs.running_var, rtol=1e-6, atol=0)


def test_momentum_none_averages_all_batches():
    batches = torch.randn(4, 10, 3)
    layer = BatchNorm1d(3, momentum=None)
    for batch in batches:
        layer(batch)
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1)))
    torch.testing.assert_close(layer.running_var, batches.var(1).mean(0))


def test_bfloat16_input_with_float32_parameters():
    """What autocast does: convolutions give bfloat16, normalization keeps its parameters in float32."""
    x = torch.randn(8, 4, 5, 5)
    ours, theirs = shuffle(BatchNorm2d(4)), nn.BatchNorm2d(4)
    theirs.load_state_dict(ours.state_dict())
    output = ours(x.bfloat16())
    assert output.dtype is torch.bfloat16
    torch.testing.assert_close(output.float(), theirs(x), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        block = nn.Sequential(nn.Conv2d(4, 4, 1), BatchNorm2d(4, activation="relu"))
        loss = block(x).float().square().mean()
    loss.backward()
    assert block[1].weight.grad.dtype is torch.float32


def test_an_empty_batch_changes_no_running_statistics():
    layer = BatchNorm2d(3)
    x = torch.empty(0, 3, 2, 2, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.running_mean.any()
    assert (layer.running_var == 1).all()
    assert not layer.weight.grad.any()


def test_compiled_training_updates_the_running_statistics():
    layer = BatchNorm2d(4, momentum=None, activation="relu")
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)
        expected, actual = layer(x), compiled(x)
        torch.testing.assert_close(actual, expected)
        grads = [torch.autograd.grad(out.square().sum(), x)[0] for out in (actual, expected)]
        torch.testing.assert_close(*grads)
    for actual, expected in zip(other.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_exported_for_inference():
    layer, x = BatchNorm2d(4, activation="relu").eval(), torch.randn(2, 4, 3, 3)
    assert torch.equal(torch.export.export(layer, (x,)).module()(x), layer(x))


def test_gradients_of_functional_calls_in_inference():
    layer, x = shuffle(BatchNorm1d(3)).eval(), torch.randn(5, 3)
    buffers = dict(layer.named_buffers())

    def loss(parameters, x):
        return torch.func.functional_call(layer, (parameters, buffers), (x,)).square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    grads = torch.func.grad(loss)(parameters, x)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad)


def test_modules_can_be_copied_and_pickled():
    layer = shuffle(BatchNorm2d(4, activation="leaky_relu", backend="reference"))
    x = torch.randn(3, 4, 2, 2)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
    assert "activation='leaky_relu', backend='reference'" in repr(layer)


def test_without_bias():
    layer = BatchNorm1d(3, bias=False)
    assert layer.bias is None
    torch.testing.assert_close(layer(torch.randn(9, 3)).mean(0), torch.zeros(3), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: BatchNorm2d(3)(torch.ones(2, 3)), ValueError, "BatchNorm2d: input must have 4 dimensions"),
        (lambda: BatchNorm1d(3)(torch.ones(2, 3, 4, 5)), ValueError, "BatchNorm1d: input must have 2 or 3 dimensions"),
        (lambda: BatchNorm3d(3)(torch.ones(2, 3, 4, 5)), ValueError, "BatchNorm3d: input must have 5 dimensions"),
        (lambda: BatchNorm1d(3)(torch.ones(1, 3)), ValueError, "more than 1 value per channel in training"),
        (lambda: BatchNorm1d(3)(torch.ones(4, 5)), ValueError, "BatchNorm1d: input must have 3 channels"),
        (lambda: BatchNorm1d(3)(torch.ones(4, 3).double()), TypeError, "have the input's dtype"),
        (lambda: BatchNorm1d(3)(torch.ones(4, 3), torch.ones(3)), ValueError, "residual must have the input's shape"),
        (lambda: BatchNorm1d(3, activation="rleu"), ValueError, "Did you mean 'relu'"),
        (lambda: BatchNorm1d(3, activation=nn.ReLU()), TypeError, "activation must be a name or None"),
        (lambda: BatchNorm1d(3, backend="cuda"), ValueError, "unknown backend 'cuda'"),
        (lambda: BatchNorm1d(3, eps=0.0)(torch.ones(4, 3)), ValueError, "eps must be positive"),
        (lambda: batch_norm(torch.ones(4, 3), None, None), ValueError, "running_mean must be given"),
        (lambda: batch_norm(torch.ones(4, 3), torch.ones(3), None), ValueError, "running_var must be given"),
        (lambda: batch_norm(torch.ones(4, 3).half(), None, None, training=True, backend="numba"), ValueError, "numba"),
    ],
)
def test_mistakes_are_told(call, error, words):
    with pytest.raises(error, match=words) as told:
        call()
    assert isinstance(told.value, InvalidValue | InvalidType)


def test_a_mistake_changes_nothing():
    layer = BatchNorm1d(3)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.ones(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_split_gives_the_slope_or_the_function():
    assert split("x", None) == split("x", "identity") == (1.0, None)
    assert split("x", "relu") == (0.0, None)
    slope, function = split("x", "gelu")
    assert slope == 1.0
    assert torch.equal(function(torch.ones(2)), nn.functional.gelu(torch.ones(2)))


def test_wrong_channels_are_an_error_about_the_input():
    with pytest.raises(InvalidValue, match="BatchNorm1d: input must have 3 channels"):
        BatchNorm1d(3)(torch.randn(4, 5))
    with pytest.raises(InvalidValue, match="BatchNorm1d: input must have 3 channels"):
        BatchNorm1d(3, affine=False).eval()(torch.randn(4, 5))
    with pytest.raises(InvalidValue, match="GroupNorm: input must have 4 channels"):
        GroupNorm(2, 4)(torch.randn(4, 6))
    # without parameters and statistics torch takes any
    assert BatchNorm1d(3, affine=False, track_running_stats=False)(torch.randn(4, 5)).shape == (4, 5)
    assert GroupNorm(2, 4, affine=False)(torch.randn(4, 6)).shape == (4, 6)
