"""Dropout layers and functions: torch's behavior where torch has it, and what a user may rely on beyond it."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as torch_functional
from torch.utils.checkpoint import checkpoint

from homeostat.errors import InvalidType, InvalidValue
from homeostat.nn.drop_connect import DropConnectLinear
from homeostat.nn.dropout import Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath
from homeostat.nn.functional.drop_connect import drop_connect_linear
from homeostat.nn.functional.dropout import (
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
)

LAYERS = [
    (Dropout, nn.Dropout, (6, 5)),
    (Dropout1d, nn.Dropout1d, (6, 5, 4)),
    (Dropout2d, nn.Dropout2d, (6, 5, 4, 3)),
    (Dropout3d, nn.Dropout3d, (6, 5, 4, 3, 2)),
]


@pytest.mark.parametrize(("layer", "torch_layer", "shape"), LAYERS)
def test_layers_are_torchs_with_the_same_settings(layer, torch_layer, shape):
    mine, other = layer(0.3, True), torch_layer(0.3, True)
    assert isinstance(mine, torch_layer)
    assert repr(mine) == repr(other)
    assert not mine.state_dict()
    x = torch.randn(shape)
    assert mine.eval()(x) is x
    assert layer(0.0)(x) is x
    kept = layer(0.5)(torch.ones(shape)) != 0
    if layer is not Dropout:
        kept = kept.flatten(2)
        assert torch.equal(kept.all(-1), kept.any(-1))
    assert 0 < kept.sum() < kept.numel()


def test_a_backend_is_shown_and_used():
    layer = Dropout(0.5, backend="reference")
    assert repr(layer) == "Dropout(p=0.5, inplace=False, backend='reference')"
    with pytest.raises(InvalidValue, match="float32 or float64"):
        Dropout(0.5, backend="numba")(torch.ones(2, dtype=torch.bfloat16))
    assert repr(DropPath(0.25, False)) == "DropPath(drop_prob=0.25, scale_by_keep=False)"


@pytest.mark.parametrize("layer", [Dropout, Dropout1d, Dropout2d, Dropout3d, DropPath])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_p_outside_of_the_unit_interval_is_refused(layer, p):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        layer(p)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        dropout(torch.ones(3), p, training=False)
    with pytest.raises(InvalidType, match="p must be a number"):
        dropout(torch.ones(3), "0.5")


def test_p_of_one_drops_everything_and_its_gradient():
    x = torch.full((3, 4), torch.inf, requires_grad=True)
    output = dropout(x, 1)
    output.sum().backward()
    assert not output.any()
    assert not x.grad.any()


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0), (5,), (2, 3, 4)])
def test_inputs_of_any_shape(shape):
    assert dropout(torch.ones(shape)).shape == shape


def test_torchs_generator_decides_and_nothing_else():
    x = torch.ones(8, 32)
    torch.manual_seed(1)
    first, second = dropout(x), dropout(x)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    random.seed(5)
    np.random.seed(5)  # the global state is what must not matter
    before = random.getstate(), np.random.get_state()[1].copy()
    assert torch.equal(dropout(x), first)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()
    own = [dropout(x, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(own[0], own[1])
    assert torch.equal(own[0], first)


def test_neither_evaluation_nor_p_of_zero_draws():
    state = torch.get_rng_state()
    for layer in (Dropout(0.0), Dropout(0.5).eval(), DropPath(0.0), DropConnectLinear(4, 4, p=0.5).eval()):
        state = torch.get_rng_state()
        layer(torch.ones(4, 4))
        assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_makes_parts_of_a_batch_agree_with_the_whole():
    x, seed = torch.randn(10, 6, 4, 3), torch.tensor([5, 6])
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        for function in (dropout, dropout2d, lambda x, **given: drop_path(x, 0.5, True, **given)):
            whole = function(x, seed=seed)
            assert torch.equal(torch.cat([function(x[:3], seed=seed), function(x[3:], seed=seed, offset=3)]), whole)
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(dropout(x, seed=5), dropout(x, seed=torch.tensor([5, 0])))


def test_arguments_that_contradict_are_refused():
    x = torch.ones(2, 2)
    with pytest.raises(InvalidValue, match="generator must be None where a seed is given"):
        dropout(x, seed=1, generator=torch.Generator())
    with pytest.raises(InvalidType, match="seed must be an integer"):
        dropout(x, seed=1.0)
    with pytest.raises(InvalidValue, match="seed must fit 64 bits"):
        dropout(x, seed=2**63)
    with pytest.raises(InvalidValue, match="example must be at least 0"):
        dropout(x, offset=-1)
    with pytest.raises(InvalidType, match="input must be floating"):
        dropout(torch.ones(2, dtype=torch.int32))


def test_in_place_works_as_in_torch():
    x = torch.ones(4, 5)
    assert dropout(x, 0.5, inplace=True) is x
    assert set(x.flatten().tolist()) <= {0.0, 2.0}
    leaf = torch.ones(4, 5, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        dropout(leaf, inplace=True)
    y = leaf * 3
    Dropout(0.5, inplace=True)(y)
    y.sum().backward()
    assert torch.equal(leaf.grad, y.detach())
    z = torch.ones(4, 5, requires_grad=True)
    used = z.exp()
    dropout(used, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        used.sum().backward()


def test_inputs_without_a_batch_are_read_as_torch_reads_them():
    channels = dropout1d(torch.ones(50, 3), seed=1)
    assert torch.equal(channels.all(1), channels.any(1))
    assert torch.equal(
        dropout3d(torch.ones(50, 2, 1, 3), seed=1), dropout1d(torch.ones(50, 6), seed=1).view(50, 2, 1, 3)
    )
    with pytest.warns(UserWarning, match=r"read as \(N, C, ...\)"):
        first = dropout2d(torch.ones(5, 50, 3), seed=1)
    assert torch.equal(first, dropout1d(torch.ones(5, 50, 3), seed=1))
    with pytest.warns(UserWarning, match=r"read as \(C, ...\)"):
        dropout3d(torch.ones(5, 4, 3))
    for function, size in ((dropout1d, (3,)), (dropout1d, (1, 2, 3, 4)), (dropout2d, (3,)), (dropout3d, ())):
        with pytest.raises(InvalidValue, match="input must have"):
            function(torch.ones(size))


def test_drop_path_drops_examples_and_may_leave_the_others_alone():
    x = torch.randn(64, 3, 2)
    output, unscaled = drop_path(x, 0.4, True, seed=2), drop_path(x, 0.4, True, False, seed=2)
    kept = output.flatten(1).any(1)
    assert 0 < kept.sum() < 64
    assert torch.equal(unscaled, torch.where(kept[:, None, None], x, 0.0))
    torch.testing.assert_close(output, unscaled / 0.6)
    assert drop_path(x, 0.4) is x
    with pytest.raises(InvalidValue, match="drop_prob must lie in"):
        DropPath(2)
    with pytest.raises(InvalidValue, match="first dimension of examples"):
        drop_path(torch.tensor(1.0), 0.5, True)


class TestDropConnect:
    def test_one_mask_for_a_batch(self):
        layer = DropConnectLinear(40, 30, p=0.25)
        torch.manual_seed(0)
        output = layer(torch.eye(40))
        torch.manual_seed(0)
        weight = dropout(layer.weight, 0.25)
        torch.testing.assert_close(output, weight.T + layer.bias)

    def test_a_mask_for_every_example(self):
        layer = DropConnectLinear(20, 10, bias=False, p=0.5, per_example=True)
        x = torch.ones(3, 4, 20)
        output = layer(x)
        assert output.shape == (3, 4, 10)
        assert torch.equal(output[:, :1].expand_as(output), output)
        assert not torch.allclose(output[0], output[1])
        alone = [drop_connect_linear(x[n : n + 1], layer.weight, per_example=True, seed=1, offset=n) for n in range(3)]
        together = drop_connect_linear(x, layer.weight, per_example=True, seed=1)
        assert torch.equal(torch.cat(alone), together)
        assert drop_connect_linear(x[0, 0], layer.weight, per_example=True, seed=1).shape == (10,)

    def test_evaluation_is_the_linear_layer(self):
        layer, other = DropConnectLinear(5, 4), nn.Linear(5, 4)
        other.load_state_dict(layer.state_dict())
        x = torch.randn(3, 5)
        assert torch.equal(layer.eval()(x), other(x))
        assert repr(layer) == "DropConnectLinear(in_features=5, out_features=4, bias=True, p=0.5, per_example=False)"

    def test_the_mean_over_masks_is_the_linear_layer(self):
        layer = DropConnectLinear(30, 2, p=0.5, per_example=True)
        x = torch.randn(30)
        outputs = layer(x.expand(20_000, 30))
        error = outputs.std(0) / 20_000**0.5
        assert ((outputs.mean(0) - nn.functional.linear(x, layer.weight, layer.bias)).abs() < 5 * error).all()

    @pytest.mark.parametrize("per_example", [False, True])
    def test_autocast(self, per_example):
        layer = DropConnectLinear(8, 4, per_example=per_example)
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(torch.randn(3, 8, dtype=torch.bfloat16))
        assert output.dtype == (torch.float32 if per_example else torch.bfloat16)
        output.float().sum().backward()
        assert layer.weight.grad.dtype == torch.float32

    def test_bad_arguments_are_refused(self):
        with pytest.raises(InvalidValue, match=r"DropConnectLinear: p must lie in \[0, 1\]"):
            DropConnectLinear(3, 4, p=2)
        with pytest.raises(InvalidValue, match=r"weight must have the shape \(O, I\)"):
            drop_connect_linear(torch.ones(2, 3), torch.ones(3), per_example=True)
        with pytest.raises(InvalidValue, match="which has 3 features"):
            drop_connect_linear(torch.ones(2, 3), torch.ones(5, 4), per_example=True)


def block(x: torch.Tensor) -> torch.Tensor:
    return dropout(x, 0.5).sin()


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_makes_the_same_mask_again(reentrant):
    x = torch.ones(16, 64, requires_grad=True)
    output = checkpoint(block, x, use_reentrant=reentrant)
    output.sum().backward()
    assert torch.equal(x.grad != 0, output != 0)


def test_compiled_checkpointing_makes_the_same_mask_again():
    compiled = torch.compile(lambda x: checkpoint(block, x, use_reentrant=False), fullgraph=True, backend="aot_eager")
    x = torch.ones(16, 64, requires_grad=True)
    output = compiled(x)
    output.sum().backward()
    assert torch.equal(x.grad != 0, output != 0)


def test_compiled_code_draws_what_eager_code_draws_and_anew_each_run():
    layers = nn.Sequential(Dropout(0.5), Dropout(0.2))
    x = torch.ones(16, 64, requires_grad=True)

    def twice(x):
        return layers(x), layers(x)

    compiled = torch.compile(twice, fullgraph=True, backend="aot_eager")
    torch.manual_seed(0)
    outputs = [*compiled(x), *compiled(x)]
    torch.manual_seed(0)
    for output, expected in zip(outputs, [*twice(x), *twice(x)], strict=True):
        assert torch.equal(output, expected)
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])
    outputs[0].sum().backward()
    assert torch.equal(x.grad, outputs[0].detach())


def test_exported_programs_draw_anew_each_run():
    x = torch.ones(8, 16)
    model = nn.Sequential(Dropout(0.5), Dropout1d(0.5), DropPath(0.5), DropConnectLinear(16, 4, per_example=True))
    program = torch.export.export(model, (x,)).module()
    torch.manual_seed(0)
    first, second = program(x), program(x)
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_shares_masks_where_torch_shares_them(randomness):
    x = torch.ones(3, 8, 32)
    for function in (dropout, torch_functional.dropout):
        output = torch.func.vmap(function, randomness=randomness)(x)
        assert torch.equal(output[0], output[1]) == (randomness == "same")
    compiled = torch.compile(torch.func.vmap(dropout, randomness=randomness), fullgraph=True, backend="aot_eager")
    output = compiled(x)
    assert torch.equal(output[0], output[1]) == (randomness == "same")


def test_vmap_refuses_randomness_it_was_not_told_about():
    with pytest.raises(RuntimeError, match="randomness error mode"):
        torch.func.vmap(dropout)(torch.ones(3, 8))
    assert torch.func.vmap(lambda x: dropout(x, seed=1))(torch.ones(3, 8)).shape == (3, 8)


def test_per_example_gradients_of_a_model():
    model = nn.Sequential(nn.Linear(4, 8), Dropout(0.5), nn.Linear(8, 1))
    parameters = dict(model.named_parameters())

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).sum()

    gradients = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0), randomness="different")(
        parameters, torch.randn(5, 1, 4)
    )
    dropped = gradients["2.weight"] == 0
    assert dropped.any()
    assert torch.equal(gradients["0.bias"][dropped[:, 0]], torch.zeros(int(dropped.sum())))


def test_layers_can_be_copied_and_autocast_keeps_the_dtype():
    layer = copy.deepcopy(Dropout(0.3))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(3, 4)).dtype == torch.float32
        assert layer(torch.ones(3, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_only_the_seed_is_kept():
    x, kept = torch.randn(6, 5, 4, 3, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        for function in (dropout, dropout2d, lambda x: drop_path(x, 0.5, True)):
            function(x)
    assert [t.dtype for t in kept] == [torch.int64] * 3
