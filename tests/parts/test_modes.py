from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat import nn as fast
from homeostat.parts.modes import (
    FAST_DROPPING_FUNCTIONS,
    DropoutCalls,
    device_of,
    drop_probability,
    dropping,
    map_tensors,
    only_training,
)


class DropBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop_prob = 0.25


class StochasticDepth(nn.Module):
    pass


class DropoutNetwork(nn.Sequential):
    pass


@pytest.mark.parametrize(
    ("module", "p"),
    [
        (nn.Dropout(0.1), 0.1), (nn.Dropout3d(0.2), 0.2), (nn.FeatureAlphaDropout(0.3), 0.3),
        (fast.Dropout2d(0.4), 0.4), (fast.GaussianDropout(0.2), 0.2), (fast.DropPath(0.1), 0.1),
        (fast.DropConnectLinear(2, 2, p=0.6), 0.6),
        (nn.MultiheadAttention(2, 1, dropout=0.7), 0.7), (nn.MultiheadAttention(2, 1), 0), (nn.LSTM(2, 2), 0),
        (nn.LSTM(2, 2, 2, dropout=0.5), 0.5), (DropBlock(), 0.25), (StochasticDepth(), 1), (nn.Linear(2, 2), 0),
        (DropoutNetwork(nn.Dropout(0.5)), 0),
    ],
)  # fmt: skip
def test_what_drops(module, p):
    assert drop_probability(module) == p


def test_modes_come_back_without_train_and_eval_being_called():
    class Stubborn(nn.Sequential):
        def train(self, mode=True):
            raise AssertionError

    model = Stubborn(nn.Dropout(0.5), nn.BatchNorm1d(2), nn.Dropout(0.0))
    model[1].training = False
    before = [module.training for module in model.modules()]

    def fails(context):
        with context:
            raise KeyboardInterrupt

    with only_training(model, [model[1]]):
        assert [module.training for module in model.modules()] == [False, False, True, False]
    with dropping(model):
        assert [module.training for module in model.modules()] == [False, True, False, False]
    for context in (only_training(model, []), dropping(model)):
        with pytest.raises(KeyboardInterrupt):
            fails(context)
        assert before == [module.training for module in model.modules()]


@pytest.mark.parametrize(
    "function",
    [F.dropout, F.dropout1d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout, torch.feature_dropout],
)
def test_functions_drop_in_evaluation(function):
    x = torch.ones(4, 50, 3)
    with DropoutCalls() as calls:
        assert not torch.equal(function(x, 0.5, False), x)
        assert torch.equal(function(x, 0.0, False), x)
        assert calls.count == 1
    assert torch.equal(function(x, 0.5, False), x)


@pytest.mark.parametrize("dropout", [F.dropout, torch.dropout, fast.functional.dropout])
def test_functions_are_called_otherwise(dropout):
    x = torch.ones(4, 50)
    with DropoutCalls(lambda p, training: (p / 2, not training)) as calls:
        assert torch.equal(dropout(x, 0.5, True), x)
        assert calls.count == 0
        assert dropout(x, 0.5, False).max().item() == pytest.approx(1 / 0.75)
        assert calls.count == 1


@pytest.mark.parametrize("name", sorted(function.__name__ for function in FAST_DROPPING_FUNCTIONS))
def test_homeostats_functions_drop_in_evaluation(name):
    function = getattr(fast.functional, name)
    weights = {"linear": (6, 6), "conv1d": (3, 3, 1), "conv2d": (3, 3, 1, 1), "conv3d": (3, 3, 1, 1, 1)}
    shapes = {"dropout2d": (20, 3, 6, 6), "dropout3d": (20, 3, 2, 2, 2), "drop_connect_linear": (20, 6)}
    shapes |= {"drop_connect_conv2d": (20, 3, 2, 2), "drop_connect_conv3d": (20, 3, 2, 2, 2)}
    x = torch.randn(shapes.get(name, (20, 3, 6)))
    arguments = [x]
    if name.startswith("drop_connect"):
        arguments.append(torch.randn(weights[name.removeprefix("drop_connect_")]))
    p = "drop_prob" if name == "drop_path" else "p"
    evaluated = function(*arguments, training=False, **{p: 0.5})
    with DropoutCalls() as calls:
        assert not torch.equal(function(*arguments, training=False, **{p: 0.5}), evaluated)
        assert calls.count == 1
        assert torch.equal(function(*arguments, training=False, **{p: 0.0}), evaluated)
        assert calls.count == 1
    assert torch.equal(function(*arguments, training=False, **{p: 0.5}), evaluated)


def test_nests_of_tensors():
    pair = namedtuple("pair", ["a", "b"])
    nest = {"x": [torch.ones(1), "text"], "y": pair(torch.ones(1), None), "z": (torch.ones(1),)}
    doubled = map_tensors(lambda tensor: 2 * tensor, nest)
    assert doubled == {"x": [2, "text"], "y": pair(2, None), "z": (2,)}
    assert isinstance(doubled["y"], pair)
    assert device_of(nn.ReLU()) is None
    assert device_of(nn.BatchNorm1d(2, affine=False)) == torch.device("cpu")
