import math
from fnmatch import fnmatchcase

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.penalty import (
    add_penalty_gradients_,
    decay_weights_,
    elastic_net_penalty,
    l1_penalty,
    l2_penalty,
    param_groups_weight_decay,
    penalty_by_layer,
    soft_threshold_,
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


@pytest.mark.parametrize(
    "penalty",
    [l1_penalty, l2_penalty, lambda weights: elastic_net_penalty(weights, 0.3, 0.7)],
    ids=["l1", "l2", "both"],
)
def test_penalties_are_differentiable_twice(penalty):
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, dtype=torch.float64, generator=generator) for shape in ((3, 4), (5,), ())]
    for weight in weights:  # |w| has no derivative at zero; a step of gradcheck must not cross it
        weight.add_(weight.sign() * 0.1).requires_grad_()
    assert torch.autograd.gradcheck(lambda *each: penalty(each), weights)
    assert torch.autograd.gradgradcheck(lambda *each: penalty(each), weights)


@settings(deadline=None)
@given(numbers, st.floats(0, 10), st.floats(0, 10))
def test_the_elastic_net_is_the_sum_of_both(values, l1, l2):
    weight = torch.tensor(values, dtype=torch.float64)
    expected = l1 * weight.abs().sum() + l2 * weight.square().sum() / 2
    torch.testing.assert_close(elastic_net_penalty([weight, weight], l1, l2), expected)


# -- the proximal step -------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(numbers, st.floats(0, 10), st.floats(0, 10))
def test_the_proximal_step_is_the_definition(values, threshold, shrinkage):
    weight = torch.tensor(values, dtype=torch.float64)
    expected = weight.sign() * (weight.abs() - threshold).clamp(min=0) / (1 + shrinkage)
    moved = weight.clone().requires_grad_()
    soft_threshold_(moved, threshold, shrinkage)
    torch.testing.assert_close(moved.detach(), expected)
    within = weight.abs() <= threshold
    assert not moved.detach()[within].any()  # exactly zero
    assert not (moved.detach()[within & (weight != 0)].signbit()).any()


@settings(deadline=None, max_examples=30)
@given(st.floats(-3, 3), st.floats(0, 2), st.floats(0, 2), st.lists(st.floats(-4, 4), min_size=5, max_size=5))
def test_the_proximal_step_is_the_minimum(value, threshold, shrinkage, others):
    def objective(v):
        return 0.5 * (v - value) ** 2 + threshold * abs(v) + shrinkage * 0.5 * v**2

    weight = torch.tensor([value], dtype=torch.float64)
    soft_threshold_(weight, threshold, shrinkage)
    assert all(objective(weight.item()) <= objective(other) + 1e-12 for other in others)


def test_proximal_gradient_descent_finds_the_lasso_of_scikit_learn():
    from sklearn.linear_model import ElasticNet

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 8, dtype=torch.float64, generator=generator)
    y = x[:, :2] @ torch.tensor([2.0, -1.0], dtype=torch.float64) + 0.1 * torch.randn(
        40, dtype=torch.float64, generator=generator
    )
    alpha, ratio = 0.2, 0.7
    expected = ElasticNet(alpha=alpha, l1_ratio=ratio, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(x, y).coef_
    weight = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    lr = 0.2
    for _ in range(500):
        gradient = torch.autograd.grad(((x @ weight - y) ** 2).mean() / 2, weight)[0]
        with torch.no_grad():
            weight.sub_(lr * gradient)
        soft_threshold_(weight, lr * alpha * ratio, lr * alpha * (1 - ratio))
    torch.testing.assert_close(weight.detach(), torch.tensor(expected), atol=1e-8, rtol=0)
    assert (weight == 0).sum() == (expected == 0).sum() > 0


def test_the_proximal_step_reaches_repeated_and_several_tensors_once_and_leaves_what_is_no_number():
    first, second = torch.tensor([2.0, math.nan, math.inf]), torch.tensor([-2.0], dtype=torch.bfloat16)
    soft_threshold_(iter([first, second, first]), 0.5)
    assert first[[0, 2]].tolist() == [1.5, math.inf]
    assert first[1].isnan()
    assert second.item() == -1.5
    soft_threshold_([], 0.5, 0.5)


def test_layers_add_up_to_the_penalty_of_all_and_shared_weights_count_once():
    model = Network()
    by_layer = penalty_by_layer(model, l1_penalty)
    assert list(by_layer) == ["embedding", "attention", "attention.out_proj"]
    decayed, _ = split_parameters(model)
    torch.testing.assert_close(sum(by_layer.values()), l1_penalty(decayed))
    by_layer["attention"].backward()
    assert torch.equal(model.attention.in_proj_weight.grad, model.attention.in_proj_weight.sign())
    torch.testing.assert_close(sum(penalty_by_layer(model).values()), l2_penalty(decayed))
    assert penalty_by_layer(nn.LayerNorm(3)) == {}
    own = nn.Module()
    own.weight = nn.Parameter(torch.ones(2, 2))
    assert penalty_by_layer(own) == {"": 2.0}


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_numbers_that_cannot_be_used_are_refused(value):
    weight = parameter([1.0])
    with pytest.raises(InvalidValue, match="l1 must be finite and at least 0"):
        add_penalty_gradients_(weight, l1=value)
    with pytest.raises(InvalidValue, match="l2 must be finite and at least 0"):
        elastic_net_penalty(weight, 1.0, value)
    with pytest.raises(InvalidValue, match="threshold must be finite and at least 0"):
        soft_threshold_(weight, value)
    with pytest.raises(InvalidValue, match="shrinkage must be finite and at least 0"):
        soft_threshold_(weight, 0.1, value)
    assert weight.item() == 1
    with pytest.raises(InvalidValue, match="factor must lie in"):
        decay_weights_(weight, value)
    with pytest.raises(InvalidValue, match="weight_decay must be finite"):
        param_groups_weight_decay(nn.Linear(2, 2), value)


def test_what_holds_no_tensors_is_refused():
    model = nn.Linear(2, 2)
    calls = [l1_penalty, l2_penalty, add_penalty_gradients_]
    calls += [lambda weights: elastic_net_penalty(weights, 1, 1), lambda weights: soft_threshold_(weights, 1)]
    calls += [lambda weights: decay_weights_(weights, 0.5)]
    for call in calls:
        with pytest.raises(InvalidType, match=r"parameters must be tensors.*model.parameters\(\)"):
            call(model)
        with pytest.raises(InvalidType, match=r"parameters must hold tensors alone"):
            call(model.named_parameters())


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


@pytest.mark.parametrize("pattern", ["encoder.weight", "decoder.weight"])
def test_a_module_held_twice_is_exempt_by_either_name(pattern):
    layer = nn.Linear(4, 4)
    exempt, decayed = param_groups_weight_decay(nn.ModuleDict({"encoder": layer, "decoder": layer}), 0.05, [pattern])
    assert exempt["params"] == [layer.weight, layer.bias]
    assert decayed["params"] == []


@pytest.mark.parametrize("function", [split_parameters, penalty_by_layer, param_groups_weight_decay])
def test_parameters_in_the_place_of_a_model_are_refused(function):
    with pytest.raises(InvalidType, match=f"{function.__name__}: model must be a torch.nn.Module, .* pass the model"):
        function(nn.Linear(2, 2).parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: param_groups_weight_decay(w, "0.1"), "weight_decay must be a number, but got '0.1'"),
        (
            lambda w: param_groups_weight_decay(w, 0.1, "bias"),
            r"no_weight_decay_list must be a list.* Pass \['bias'\]",
        ),
        (lambda w: penalty_by_layer(w, "l1"), "penalty must be a function such as l1_penalty, but got"),
        (lambda w: elastic_net_penalty(w.parameters(), "1", 0), "l1 must be a number"),
        (lambda w: add_penalty_gradients_(w.parameters(), l2=None), "l2 must be a number, but got None"),
        (lambda w: decay_weights_(w.parameters(), "1"), "factor must be a number"),
        (lambda w: soft_threshold_(w.parameters(), "1"), "threshold must be a number"),
    ],
)
def test_types_that_cannot_be_used_are_refused(call, message):
    layer = nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(InvalidType, match=message):
        call(layer)
    assert torch.equal(layer.weight, before)


def test_groups_are_those_of_timm_but_for_wide_scales_and_biases():
    """timm.optim.param_groups_weight_decay: ndim <= 1, a name that ends in .bias, or a pattern."""

    def by_shape(model, patterns):
        exempt, decayed = [], []
        for name, parameter in model.named_parameters():
            listed = any(fnmatchcase(name, pattern) for pattern in patterns)
            (exempt if parameter.ndim <= 1 or name.endswith(".bias") or listed else decayed).append(parameter)
        return [exempt, decayed]

    def same(groups, others):
        return [[id(p) for p in group["params"]] for group in groups] == [[id(p) for p in other] for other in others]

    for model in (
        nn.Transformer(8, 2, 1, 1, batch_first=True),
        nn.LSTM(3, 4),
        nn.Embedding(3, 4),
        nn.Sequential(nn.Conv2d(1, 2, 3)),
    ):
        for patterns in ((), ("encoder*", "weight")):
            assert same(param_groups_weight_decay(model, 0.1, patterns), by_shape(model, patterns))
    for model in (nn.LayerNorm((3, 4)), nn.MultiheadAttention(4, 2, add_bias_kv=True)):
        assert not same(param_groups_weight_decay(model, 0.1), by_shape(model, ()))
