"""ONNX's own backend tests of single nodes, run on these layers: inputs, outputs and tolerances are onnx's.

Dropout's masks are onnx's too: a hook puts them where a layer draws its own, so that thresholds, scaling and modes are
the layer's. What clipping and penalties compute is compared with Clip and the L1 and L2 reductions.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from homeostat import nn
from homeostat.kernels import norm_rows, philox_reference
from homeostat.parts.clip import clip_grad_norm_, clip_grad_value_
from homeostat.parts.penalty import l1_penalty, l2_penalty

LAYERS = {
    "LayerNormalization": 19,
    "RMSNormalization": 19,
    "Dropout": 12,
    "BatchNormalization": 4,
    "GroupNormalization": 2,
    "InstanceNormalization": 2,
}
"""How many cases there are of each node that a layer computes: 58."""

REDUCTIONS = {
    "ReduceL1": l1_penalty,
    "ReduceSumSquare": lambda x: 2 * l2_penalty(x),
    "ReduceL2": lambda x: clip_grad_norm_(with_gradient(x), 1.0),
}


@pytest.fixture(scope="module")
def cases():
    """Every case of one node with one of the operators of this file, by operator; they take seconds to collect."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # onnx's cases overflow on purpose while they are made
        from onnx.backend.test.case.node import collect_testcases

        every = collect_testcases(None)
    found = {operator: [] for operator in (*LAYERS, *REDUCTIONS, "Clip")}
    for case in every:
        nodes = case.model.graph.node
        if len(nodes) == 1 and nodes[0].op_type in found:
            found[nodes[0].op_type].append(case)
    return found


def settings(case):
    """The attributes of a case's node."""
    from onnx.helper import get_attribute_value

    return {attribute.name: get_attribute_value(attribute) for attribute in case.model.graph.node[0].attribute}


def arrays(values):
    return [torch.from_numpy(np.array(value)) for value in values]


def with_gradient(values):
    parameter = torch.zeros_like(values, requires_grad=True)
    parameter.grad = values.clone()
    return parameter


def loaded(layer, weight, bias=None, **buffers):
    """The layer with a node's scale, shift and statistics as its parameters and buffers."""
    own = layer.state_dict()
    given = {"weight": weight, "bias": bias, **buffers}
    layer.load_state_dict({name: given.get(name, own[name]) for name in own}, strict=True)
    return layer


def layer_normalization(inputs, axis=-1, epsilon=1e-5, **more):
    x, weight, bias = inputs
    layer = loaded(nn.LayerNorm(x.shape[axis:], eps=epsilon), weight, bias)
    length = x.shape[axis:].numel()
    _, mean, variance = norm_rows.normalize(x, weight, bias, None, length, 1, epsilon, True, 1.0, None)
    shape = (*x.shape[:axis], *(1 for _ in x.shape[axis:]))
    deviation = (variance + epsilon).rsqrt()
    return layer(x), mean.reshape(shape).float(), deviation.reshape(shape).float()


def rms_normalization(inputs, axis=-1, epsilon=1e-5, **more):
    x, weight = inputs
    return (loaded(nn.RMSNorm(x.shape[axis:], eps=epsilon), weight)(x),)


def batch_normalization(inputs, epsilon=1e-5, momentum=0.9, training_mode=0):
    x, weight, bias, mean, variance = inputs
    layer = nn.BatchNorm2d(x.shape[1], epsilon, 1 - momentum, unbiased=False)
    loaded(layer, weight, bias, running_mean=mean, running_var=variance).train(bool(training_mode))
    return layer(x), layer.running_mean, layer.running_var


def group_normalization(inputs, num_groups, epsilon=1e-5):
    x, weight, bias = inputs
    return (loaded(nn.GroupNorm(num_groups, x.shape[1], epsilon), weight, bias)(x),)


def instance_normalization(inputs, epsilon=1e-5):
    x, weight, bias = inputs
    return (loaded(nn.InstanceNorm2d(x.shape[1], epsilon, affine=True), weight, bias)(x),)


def dropout(inputs, seed=0, ratio=0.5):
    """Its mask as onnx defines it: drawn by NumPy's old generator from the node's seed."""
    x, *rest = inputs
    p = rest[0].item() if rest else ratio
    layer = nn.Dropout(p, backend="reference").train(len(rest) > 1 and bool(rest[1]))
    keep = torch.from_numpy(np.random.RandomState(seed).uniform(0, 1, x.shape) >= p)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(philox_reference, "words", lambda *places: (keep * (2**32 - 1)).flatten(1))
        return layer(x), layer(torch.ones_like(x)) != 0


NODES = {
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "BatchNormalization": batch_normalization,
    "GroupNormalization": group_normalization,
    "InstanceNormalization": instance_normalization,
    "Dropout": dropout,
}


def compare(case, compute):
    """Whether the outputs that the case asks for are what the layer gives, within the case's tolerance."""
    for inputs, expected in case.data_sets:
        outputs = compute(arrays(inputs), **settings(case))
        names = list(case.model.graph.node[0].output)
        assert len(names) == len(expected)
        for name, output, truth in zip(names, outputs, expected, strict=False):
            assert tuple(output.shape) == np.shape(truth), f"{case.name}: {name}"
            np.testing.assert_allclose(
                output.detach().numpy(), truth, rtol=case.rtol, atol=case.atol, err_msg=f"{case.name}: {name}"
            )


@pytest.mark.parametrize("operator", LAYERS)
def test_every_case_of_a_layer(cases, operator):
    for case in cases[operator]:
        compare(case, NODES[operator])
    assert len(cases[operator]) == LAYERS[operator]


def test_there_are_58_cases(cases):
    assert sum(len(cases[operator]) for operator in LAYERS) == 58


def test_the_injected_mask_decides(cases):
    """A case of training with a mask, and the same with another mask: the hook is what makes them agree."""
    case = next(case for case in cases["Dropout"] if case.name == "test_training_dropout_mask")
    compare(case, dropout)
    with pytest.raises(AssertionError):
        compare(case, lambda inputs, seed: dropout(inputs, seed + 1))


def test_clipping_by_value_is_clip_with_opposite_bounds(cases):
    compared = 0
    for case in cases["Clip"]:
        for inputs, (expected,) in case.data_sets:
            bounds = [float(bound) for bound in inputs[1:] if np.size(bound) == 1]
            if len(bounds) == 2 and bounds[0] == -bounds[1]:
                parameter = with_gradient(arrays(inputs)[0])
                clip_grad_value_(parameter, bounds[1])
                np.testing.assert_allclose(parameter.grad, expected, rtol=case.rtol, atol=case.atol)
                compared += 1
    assert compared == 5


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_penalties_and_norms_are_reductions(cases, operator):
    """Along one axis, or all: each line of the input is one tensor of parameters."""
    for case in cases[operator]:
        for inputs, (expected,) in case.data_sets:
            x, axes = arrays(inputs)
            lines = x.movedim(axes.item(), -1).flatten(0, -2) if axes.numel() else x.reshape(1, -1)
            values = [REDUCTIONS[operator](line).item() for line in lines]
            np.testing.assert_allclose(values, np.ravel(expected), rtol=case.rtol, atol=case.atol, err_msg=case.name)
    assert len(cases[operator]) == 9
