"""Folding of what is called as a function, and of homeostat's own layers and models."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from fold_models import Calls, Functional, folded, outputs, reason, settle
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidValue
from homeostat.nn import functional as fast
from homeostat.nn.functional import batch_norm
from homeostat.parts import surgery
from homeostat.parts.fold import fold, plan_folding
from homeostat.parts.fold.check import relative_difference
from homeostat.parts.norm import LastAxisBatchNorm

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = torch.randn(3, 6, 7, 7)
X2 = torch.randn(3, 4, 9, 9)


# Functions instead of modules


def test_functional_calls_are_rewritten():
    new, _ = folded(nn.Sequential(Functional(4), Functional(4)), X2, 2)
    assert not {"weight", "running_mean"} & {name.split(".")[1] for name in new.state_dict()}
    assert type(new[0]).__name__ == "Functional"
    assert new[0].note == "kept"


def test_a_functional_model_by_itself_is_rewritten():
    folded(Functional(4), X2, 1)
    folded(Functional(4), (X2, X2), 1)


def test_a_rewritten_forward_insists_on_the_arguments_it_saw():
    model = settle(Calls(lambda self, x, scale=2.0: self.part(x, None, scale), part=Functional(4)))
    new = fold(model, X2)
    assert torch.allclose(new(X2), model.eval()(X2), atol=1e-4)
    with pytest.raises(InvalidValue, match=re.escape("scale must be 2.0")):
        new(X2, scale=3.0)


def test_the_function_on_a_modules_parameters():
    """As in PyTorch issue #122070: nothing but the run shows this norm."""

    def forward(self, x):
        bn = self.bn
        return torch.batch_norm(
            self.conv(x), bn.weight, bn.bias, bn.running_mean, bn.running_var, False, 0.1, bn.eps, False
        )

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    Model.forward = forward
    folded(Model(), X2, 1)


def test_a_forward_that_cannot_be_traced_is_refused():
    class Branching(Functional):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    assert "cannot be rewritten" in reason(Branching(4), X2)


class Varying(nn.Module):
    """Passes on what it is given."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)

    def forward(self, x, *args, **kwargs):
        bn = self.bn
        y = F.batch_norm(self.conv(x), bn.running_mean, bn.running_var, bn.weight, bn.bias)
        return self.rest(y, *args, **kwargs)

    def rest(self, y, residual=None, scale=1.0, *, negative=False, **more):
        y = y if residual is None else y + residual
        return (-y if negative else y) * scale


@pytest.mark.parametrize(
    ("sample", "others", "why"),
    [
        ((X2,), ((X2, SMALL),), r"places of args must be \[\]"),
        ((X2, SMALL), ((X2,), (X2, X2, 2.0)), r"places of args must be \[0\]"),
        ((X2, None, 2.0), ((X2, None, 3.0),), r"args\[1\] must be 2\.0"),
        ({"x": X2, "negative": True}, ({"x": X2}, {"x": X2, "scale": 1.0}), r"keys of kwargs must be \['negative'\]"),
        ({"x": X2, "negative": True, "other": 1}, ({"x": X2, "negative": False, "other": 1},), r"kwargs\['negative'\]"),
        ({"x": X2, "residual": SMALL}, (), ""),
    ],
)
def test_a_rewritten_forward_with_variable_arguments(sample, others, why):
    new, _ = folded(Varying(), sample, 1)
    for copied in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        assert relative_difference(outputs(new, sample)[0], outputs(copied, sample)[0]) == 0
        for other in others:
            with pytest.raises(InvalidValue, match=why):
                outputs(copied, other)


class FastCall(nn.Module):
    """Batch normalization by homeostat's function, with all that it can do more."""

    def __init__(self, activation=None, residual=False, behind=False):
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(4, 6, 3)
        self.head = nn.Conv2d(6, 3, 1)
        self.activation, self.residual, self.behind = activation, residual, behind

    def forward(self, x):
        y = self.conv(x).sigmoid() if self.behind else self.conv(x)
        function = fast.batch_norm if self.residual else batch_norm  # by either way
        residual = self.other(x) if self.residual else None
        bn = self.bn
        y = function(
            y, bn.running_mean, bn.running_var, bn.weight, bn.bias, activation=self.activation, residual=residual
        )
        return self.head(y)


@pytest.mark.parametrize("activation", [None, "identity", "relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("residual", [False, True])
def test_homeostats_function_is_rewritten(activation, residual):
    new, plan = folded(FastCall(activation, residual), X2, 1)
    assert plan.folded[0].into == ("conv (Conv2d)",)
    assert relative_difference(outputs(new, X2)[0], outputs(pickle.loads(pickle.dumps(new)), X2)[0]) == 0


def test_homeostats_function_before_a_layer():
    _, plan = folded(FastCall(behind=True), X2, 1)
    assert plan.folded[0].into == ("head (Conv2d)",)
    assert "activation or a residual" in reason(FastCall("relu", behind=True), X2)
    assert "activation or a residual" in reason(FastCall(None, True, behind=True), X2)


@pytest.mark.parametrize(
    "between", [hs.nn.Dropout(0.3, mode="scaled"), hs.nn.Dropout2d(0.9, mode="scaled"), Calls(lambda self, x: x * -0.5)]
)
def test_a_constant_factor_between(between):
    """The factor stays, and the shift takes it into account."""
    new, plan = folded(nn.Sequential(nn.Conv2d(4, 6, 3), between, nn.BatchNorm2d(6)), X2, 1)
    assert plan.folded[0].into == ("0 (Conv2d)",)
    assert type(new[1]) is type(between)
    _, plan = folded(nn.Sequential(nn.Sigmoid(), nn.BatchNorm2d(4), between, nn.Flatten(), nn.Linear(324, 3)), X2, 1)
    assert plan.folded[0].into == ("4 (Linear)",)


def test_a_factor_of_zero_or_of_a_tensor_stops_it():
    for between in (hs.nn.Dropout(1.0, mode="scaled"), Calls(lambda self, x: x * torch.tensor(2.0))):
        assert "not into what is before it" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), between, nn.BatchNorm2d(6)), X2)


def test_a_factor_that_differs_from_call_to_call_stops_it():
    model = Calls(
        lambda self, x: self.bn(self.conv(x) * 2.0) + self.bn(self.conv(x)),
        conv=nn.Conv2d(4, 6, 3),
        bn=nn.BatchNorm2d(6),
    )
    assert "multiplied differently" in reason(model, X2)


def test_a_very_deep_model():
    """Deeper than Python's stack."""
    layers = [nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Tanh()) for _ in range(250)]
    folded(nn.Sequential(*layers), torch.randn(2, 2, 3, 3), 250, rtol=1e-4)


def test_subclasses_of_layers():
    class Padded(nn.Conv2d):
        """Pads by itself; does take a bias."""

        def forward(self, input):
            size = max(1, int(input.shape[-1]) % 2)
            return F.conv2d(F.pad(input, [size] * 4), self.weight, self.bias)

    class NormAct(nn.BatchNorm2d):
        def forward(self, input):
            return F.silu(super().forward(input))

    class Biasless(nn.Conv2d):
        """Takes no bias whatever is there."""

        def forward(self, input):
            return F.conv2d(input, self.weight, None, self.stride)

    folded(nn.Sequential(Padded(4, 6, 3, bias=False), NormAct(6)), X2, 1)
    folded(nn.Sequential(Biasless(4, 6, 3, bias=False), nn.BatchNorm2d(6)), X2, 1)
    folded(nn.Sequential(Biasless(4, 6, 3), nn.BatchNorm2d(6)), X2, 1)


class FrozenBatchNorm2d(nn.Module):
    def __init__(self, channels):
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.ones(channels))

    def forward(self, x):
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return scale * x + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


def test_frozen_norm_by_its_arithmetic():
    new, _ = folded(nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), FrozenBatchNorm2d(6), nn.ReLU()), X2, 1)
    assert isinstance(new[1], nn.Identity)


def test_frozen_norm_that_does_more_is_refused():
    class ReluFrozenBatchNorm2d(FrozenBatchNorm2d):
        def forward(self, x):
            return super().forward(x).relu()

    assert "more than a constant scale" in reason(nn.Sequential(nn.Conv2d(4, 6, 3), ReluFrozenBatchNorm2d(6)), X2)


# homeostat's own layers


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "gelu", "tanh"])
def test_fused_layers_leave_their_activation(activation):
    model = nn.Sequential(nn.Conv2d(4, 6, 3), hs.nn.BatchNorm2d(6, activation=activation), hs.nn.Dropout2d(0.3))
    new, _ = folded(model, X2, 1)
    assert not any(type(module).__module__.startswith("homeostat.nn") for module in new.modules())


def test_fused_layers_leave_their_addition():
    model = Calls(
        lambda self, x: self.bn(self.conv(x), residual=x),
        conv=nn.Conv2d(4, 4, 3, padding=1),
        bn=hs.nn.BatchNorm2d(4, activation="relu"),
    )
    folded(model, X2, 1)
    model.function = lambda self, x: self.bn(y := self.conv(x), y)
    assert "goes to BatchNorm2d" in reason(model, X2)


def test_last_axis_norm():
    model = nn.Sequential(
        nn.Linear(6, 5), LastAxisBatchNorm(5, activation="relu"), LastAxisBatchNorm(5), nn.Linear(5, 2)
    )
    folded(model, torch.randn(3, 7, 6), 2)


def test_a_model_after_surgery():
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(294, 8), nn.ReLU(), nn.Linear(8, 2))
    surgery.set_norm_(model, "batch", X2)
    surgery.set_dropout_(model, 0.4, "all", sample=X2)
    _, plan = folded(model, X2, 2)
    assert len(plan.removed) == 3


def test_stochastic_depth_and_dropped_weights_are_removed():
    class StochasticDropPath(nn.Module):
        def forward(self, x):
            return x if not self.training else x * 0

    model = nn.Sequential(
        hs.nn.DropConnectLinear(6, 5), nn.BatchNorm1d(5), hs.nn.DropPath(0.2), StochasticDropPath(), nn.AlphaDropout()
    )
    new, plan = folded(model, torch.randn(4, 6), 1)
    assert len(plan.removed) == 4
    assert [type(module) for module in new] == [nn.Linear, *[nn.Identity] * 4]


@pytest.mark.parametrize("model", ["mlp", "cnn", "resnet"])
def test_homeostats_own_models(model):
    task = hs.load_task("digits")
    recipe = hs.Recipe(model=model, norm="batch", dropout=0.2, epochs=1, batch_size=256)
    trained = hs.fit(task, recipe, seed=0).model
    sample = task.sample(8)[0]
    plan = plan_folding(trained, sample)
    assert plan.folded
    assert not plan.refused
    new = fold(trained, sample)
    assert relative_difference(outputs(trained, sample)[0], outputs(new, sample)[0]) < 1e-5
