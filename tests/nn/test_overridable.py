"""homeostat's dropout functions can be seen and taken over from outside, as torch's."""

import warnings

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from homeostat.nn import functional as fast


class Calls(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


class Own(torch.Tensor):
    pass


WEIGHTLESS = ("dropout", "dropout1d", "alpha_dropout", "feature_alpha_dropout", "gaussian_dropout", "drop_path")


@pytest.mark.parametrize("name", WEIGHTLESS)
@pytest.mark.parametrize("training", [False, True])
def test_a_mode_sees_one_call_with_the_same_result(name, training):
    function, x = getattr(fast, name), torch.randn(4, 3, 5)
    expected = function(x, 0.5, training, seed=3)
    with Calls() as calls:
        found = function(x, 0.5, training, seed=3)
        named = function(input=x, training=training, seed=3, **{"drop_prob" if name == "drop_path" else "p": 0.5})
    assert torch.equal(found, expected)
    assert torch.equal(named, expected)
    assert calls.functions == [function, function]


def test_weights_are_dropped_under_a_mode_too():
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    expected = fast.drop_connect_linear(x, weight, seed=1)
    with Calls() as calls:
        assert torch.equal(fast.drop_connect_linear(x, weight, seed=1), expected)
    assert calls.functions[0] is fast.drop_connect_linear


def test_a_subclass_of_tensor_stays_one():
    x = torch.randn(4, 3).as_subclass(Own)
    assert type(fast.dropout(x, 0.5, seed=0)) is Own


def test_fx_takes_the_function_for_a_leaf():
    class Functional(nn.Module):
        def forward(self, x):
            return fast.dropout(x, 0.5, self.training, seed=7)

    traced = torch.fx.symbolic_trace(Functional())
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [fast.dropout]
    x = torch.randn(4, 3)
    assert torch.equal(traced(x), fast.dropout(x, 0.5, seed=7))


def test_warnings_point_at_the_caller():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fast.dropout2d(torch.randn(4, 3, 5))
    assert caught[0].filename == __file__
