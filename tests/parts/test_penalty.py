import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.parts.penalty import (
    add_penalty_gradients_,
    decay_weights_,
    l1_penalty,
    l2_penalty,
    param_groups_weight_decay,
    split_parameters,
)

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=0, max_size=20)


def parameter(values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_values_are_those_of_the_definition():
    weights = [parameter([3.0, -4.0]), parameter([[0.0, 1.0]])]
    assert l1_penalty(weights).item() == 8
    assert l2_penalty(weights).item() == 13
    assert l1_penalty([]).item() == 0


@settings(deadline=None)
@given(numbers, st.floats(0, 10), st.floats(0, 10))
def test_the_added_gradient_is_that_of_the_penalties_in_the_loss(values, l1, l2):
    added, in_loss = parameter(values), parameter(values)
    added.grad = torch.full_like(added, 0.5)
    (0.5 * in_loss.sum() + l1 * l1_penalty(in_loss) + l2 * l2_penalty(in_loss)).backward()
    add_penalty_gradients_(added, l1, l2)
    torch.testing.assert_close(added.grad, in_loss.grad)


def test_parameters_without_a_gradient_are_skipped_and_repeated_ones_count_once():
    used, unused = parameter([2.0]), parameter([2.0])
    used.grad = torch.zeros_like(used)
    add_penalty_gradients_([used, unused, used], l1=1.0, l2=1.0)
    assert used.grad.item() == 3
    assert unused.grad is None
    assert l1_penalty([used, used]).item() == 2
    add_penalty_gradients_([unused], l1=1.0)


def test_half_precision_is_summed_in_float32():
    weight = torch.full((4096,), 8.0, dtype=torch.float16)
    assert l2_penalty(weight).item() == 4096 * 32
    assert l2_penalty(weight).dtype == torch.float32


@settings(deadline=None)
@given(numbers, st.floats(0, 1))
def test_decoupled_decay_multiplies(values, factor):
    weight = parameter(values)
    decay_weights_(weight, factor)
    torch.testing.assert_close(weight.detach(), factor * torch.tensor(values, dtype=torch.float64))


def test_decay_reaches_a_repeated_parameter_once():
    weight = parameter([4.0])
    decay_weights_([weight, weight], 0.5)
    assert weight.item() == 2


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_numbers_that_cannot_be_used_are_refused(value):
    weight = parameter([1.0])
    with pytest.raises(InvalidValue, match="l1 must be finite and at least 0"):
        add_penalty_gradients_(weight, l1=value)
    with pytest.raises(InvalidValue, match="factor must lie in"):
        decay_weights_(weight, value)
    with pytest.raises(InvalidValue, match="weight_decay must be finite"):
        param_groups_weight_decay(nn.Linear(2, 2), value)


def test_a_sparse_gradient_is_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InvalidValue, match=r"dense gradients.*sparse=False"):
        add_penalty_gradients_(embedding.parameters(), l2=0.1)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.norm = nn.LayerNorm((3, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(()))
        self.decoder = nn.Linear(4, 10)
        self.decoder.weight = self.embedding.weight


def names(model, parameters):
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return [known[id(parameter)] for parameter in parameters]


def test_biases_norms_and_vectors_are_exempt_and_shared_parameters_come_once():
    model = Network()
    decayed, exempt = split_parameters(model)
    assert names(model, decayed) == ["embedding.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert set(names(model, exempt)) == {
        "scale",
        "attention.in_proj_bias",
        "attention.bias_k",
        "attention.bias_v",
        "attention.out_proj.bias",
        "norm.weight",
        "norm.bias",
        "decoder.bias",
    }


def test_a_weight_that_a_norm_shares_with_a_layer_decays():
    for order in (("norm", "layer"), ("layer", "norm")):
        parts = {"norm": nn.LayerNorm((4, 4)), "layer": nn.Linear(4, 4)}
        parts["norm"].weight = parts["layer"].weight
        decayed, _ = split_parameters(nn.ModuleDict({name: parts[name] for name in order}))
        assert decayed == [parts["layer"].weight]


@pytest.mark.parametrize("pattern", ["embedding.weight", "decoder.weight", "embed*"])
def test_groups_are_those_of_timm(pattern):
    model = Network()
    groups = param_groups_weight_decay(model, 0.05, no_weight_decay_list=["attention.in_proj_weight", pattern])
    assert [group["weight_decay"] for group in groups] == [0.0, 0.05]
    assert {"attention.in_proj_weight", "embedding.weight"} <= set(names(model, groups[0]["params"]))
    assert names(model, groups[1]["params"]) == ["attention.out_proj.weight"]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(len(group["params"]) for group in groups) == len(trainable)
    torch.optim.AdamW(groups)
