"""Instance and group normalization modules and functions against torch.nn's, and what they offer beyond."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn.functional.norm import group_norm, instance_norm
from homeostat.nn.groupnorm import GroupNorm
from homeostat.nn.instancenorm import InstanceNorm1d, InstanceNorm2d, InstanceNorm3d

PAIRS = {3: (InstanceNorm1d, nn.InstanceNorm1d), 4: (InstanceNorm2d, nn.InstanceNorm2d)}
PAIRS[5] = (InstanceNorm3d, nn.InstanceNorm3d)


def randomize(module: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


def assert_same(ours: nn.Module, theirs: nn.Module, x: torch.Tensor) -> None:
    """Output, gradients and buffers; theirs are computed in float64, since torch's own float32 may be further off."""
    exact = copy.deepcopy(theirs).double()
    results = []
    for module, dtype in ((ours, x.dtype), (exact, torch.float64)):
        own = x.detach().to(dtype, copy=True).requires_grad_()
        output = module(own)
        grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        grads = torch.autograd.grad(output, [own, *module.parameters()], grad)
        results.append([output.detach(), *grads, *module.buffers()])
    theirs.load_state_dict(exact.state_dict())
    for actual, expected in zip(*results, strict=True):
        within = {"rtol": 1e-4, "atol": 5e-5 * max(1.0, float(expected.abs().max())), "check_dtype": False}
        torch.testing.assert_close(actual, expected, **within)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 20)).flatmap(
        lambda head: st.lists(st.integers(2, 6), min_size=1, max_size=3).map(lambda tail: (*head, 3, *tail)[:5])
    ),
    affine=st.booleans(),
    track=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_instance_norm_does_what_torchs_does(shape, affine, track, last, seed):
    kind, torchs = PAIRS[len(shape)]
    ours = randomize(kind(shape[1], affine=affine, track_running_stats=track), seed)
    theirs = torchs(shape[1], affine=affine, track_running_stats=track)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, torchs)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + seed
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    for training in (True, True, False):
        assert_same(ours.train(training), theirs.train(training), x)


@settings(max_examples=25, deadline=None)
@given(
    examples=st.integers(2, 5),
    groups=st.integers(1, 5),
    per_group=st.integers(2, 5),
    tail=st.lists(st.integers(1, 6), max_size=3),
    affine=st.booleans(),
    last=st.booleans(),
)
def test_group_norm_does_what_torchs_does(examples, groups, per_group, tail, affine, last):
    channels = groups * per_group
    ours, theirs = GroupNorm(groups, channels, affine=affine), nn.GroupNorm(groups, channels, affine=affine)
    theirs.load_state_dict(randomize(ours, 1).state_dict())
    ours.load_state_dict(theirs.state_dict())
    assert isinstance(ours, nn.GroupNorm)
    x = torch.randn((examples, channels, *tail), generator=torch.Generator().manual_seed(channels))
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    assert_same(ours, theirs, x)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", None])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 5)], ids=str)
def test_activation_and_residual_are_applied_last(name, shape):
    x, residual = torch.randn(shape), torch.randn(shape)
    act = getattr(nn.functional, name) if name else nn.Identity()
    ours, theirs = GroupNorm(2, 6, activation=name), nn.GroupNorm(2, 6)
    torch.testing.assert_close(ours(x, residual), act(theirs(x) + residual), rtol=1e-5, atol=1e-5)
    if len(shape) == 4:
        ours, theirs = InstanceNorm2d(6, activation=name), nn.InstanceNorm2d(6)
        torch.testing.assert_close(ours(x, residual), act(theirs(x) + residual), rtol=1e-5, atol=1e-5)


def test_an_input_without_a_batch():
    x, residual = torch.randn(3, 5, 5), torch.randn(3, 5, 5)
    ours, theirs = InstanceNorm2d(3), nn.InstanceNorm2d(3)
    torch.testing.assert_close(ours(x, residual), theirs(x) + residual)


def test_running_statistics_are_means_over_the_examples():
    x = torch.randn(4, 3, 6)
    layer = InstanceNorm1d(3, momentum=1.0, track_running_stats=True, unbiased=False)
    layer(x)
    torch.testing.assert_close(layer.running_mean, x.mean((0, 2)))
    torch.testing.assert_close(layer.running_var, x.var(2, unbiased=False).mean(0))


@pytest.mark.parametrize("layer", [InstanceNorm1d(4, track_running_stats=True), GroupNorm(2, 4, activation="relu")])
def test_compiled_layers_give_the_same_numbers(layer):
    layer, other = copy.deepcopy(layer), copy.deepcopy(layer)
    x = torch.randn(3, 4, 6, requires_grad=True)
    outputs = layer(x), torch.compile(other, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*[torch.autograd.grad(output.square().sum(), x)[0] for output in outputs])
    for actual, expected in zip(other.buffers(), layer.buffers(), strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_of_every_example():
    """vmap over examples, as for differential privacy: group normalization does not mix them."""
    layer = randomize(GroupNorm(2, 4), 2)
    x = torch.randn(5, 4, 6)
    parameters = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(parameters, one):
        return torch.func.functional_call(layer, parameters, (one[None],)).square().sum()

    grads = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(grads[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-4)


def test_a_channel_count_that_has_no_effect_is_warned_of():
    with pytest.warns(UserWarning, match="num_features is 4"):
        InstanceNorm1d(4)(torch.randn(2, 3, 5))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: InstanceNorm2d(3)(torch.ones(2, 3)), ValueError, "InstanceNorm2d: input must have 4 dimensions, or 3"),
        (lambda: InstanceNorm1d(3)(torch.ones(2, 3, 1)), ValueError, "more than 1 position"),
        (lambda: InstanceNorm1d(3, affine=True)(torch.ones(2, 4, 5)), ValueError, "input must have 3 channels"),
        (lambda: InstanceNorm1d(3, activation="rleu"), ValueError, "Did you mean 'relu'"),
        (lambda: instance_norm(torch.ones(2, 3, 4), use_input_stats=False), ValueError, "running_mean must be given"),
        (lambda: instance_norm(torch.ones(2, 3, 4), eps=-1.0), ValueError, "eps must be"),
        (lambda: GroupNorm(4, 6), ValueError, "GroupNorm: num_groups must be positive and divide num_channels, 6"),
        (lambda: GroupNorm(0, 6), ValueError, "num_groups must be positive"),
        (lambda: GroupNorm(2, 6)(torch.ones(2, 4, 5)), ValueError, "GroupNorm: input must have 6 channels"),
        (lambda: group_norm(torch.ones(2, 6, 5), 4), ValueError, "divide the 6 channels"),
        (lambda: group_norm(torch.ones(1, 6), 6), ValueError, "more than 1 value per group"),
        (lambda: group_norm(torch.ones(2, 6).int(), 2), TypeError, "be a floating tensor"),
    ],
)
def test_mistakes_are_told(call, error, words):
    with pytest.raises(error, match=words) as told:
        call()
    assert isinstance(told.value, InvalidValue | InvalidType)
