"""Dropout layers by kind, their probability and its course over training, and layers that drop their weights."""

from __future__ import annotations

import copy
import math

import pytest
import surgery_models as models
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.dropout import (
    KINDS,
    PLACES,
    SCHEDULES,
    drop_path_rates,
    dropout_at,
    dropout_kind,
    is_dropout,
    make_dropout,
    set_drop_connect_,
    set_p_,
)
from homeostat.parts.dropout_layers import LastAxisDropout
from homeostat.parts.layers import call, tensors_in


def test_drops_with_probability_p_and_keeps_the_mean():
    torch.manual_seed(0)
    p, count = 0.3, 100_000
    y = make_dropout(p)(torch.ones(count))
    dropped = (y == 0).sum().item()
    assert abs(dropped - p * count) < 5 * math.sqrt(count * p * (1 - p))
    torch.testing.assert_close(y[y != 0], torch.full_like(y[y != 0], 1 / (1 - p)))


def test_evaluation_is_the_identity():
    x = torch.randn(5)
    assert torch.equal(make_dropout(0.9).eval()(x), x)


def test_set_p_reaches_every_dropout_layer_and_names_those_that_changed():
    model = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Dropout2d(0.5), nn.AlphaDropout(0.2)), nn.Linear(2, 2))
    assert set_p_(model, 0.2) == ["0", "1.0"]
    assert [module.p for module in model.modules() if is_dropout(module)] == [0.2, 0.2, 0.2]
    assert set_p_(model, 0.2) == []


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan, True, "0.5"])
def test_a_probability_outside_its_range_is_refused(p):
    layer = nn.Dropout(0.5)
    for attempt in (lambda: make_dropout(p), lambda: set_p_(layer, p)):
        with pytest.raises(InvalidValue, match=r"p must be a number in \[0, 1\]"):
            attempt()
    assert layer.p == 0.5


@pytest.mark.parametrize("dims", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_layers_of_every_kind_fit_their_place(kind, dims):
    layer = make_dropout(0.3, kind, dims)
    assert layer.p == 0.3
    assert is_dropout(layer)
    assert dropout_kind(layer) == kind
    shape = (6, 5, 4) if dims == 0 else (6, 4, *(3,) * dims)
    x = torch.rand(shape) + 1
    assert torch.equal(layer.eval()(x), x)
    torch.manual_seed(0)
    output = layer.train()(x)
    assert output.shape == x.shape
    assert not torch.equal(output, x)
    if kind == "channel":
        kept = (output != 0).movedim(1 if dims else -1, 1).flatten(2)
        assert torch.equal(kept.all(-1), kept.any(-1))
        assert 0 < kept.sum() < kept.numel()


def test_channels_on_the_last_axis():
    layer, x = LastAxisDropout(0.5), torch.rand(40, 3, 2, 8) + 1
    torch.manual_seed(0)
    output = layer(x)
    torch.manual_seed(0)
    expected = hs.nn.functional.dropout1d(x.movedim(-1, 1).flatten(2), 0.5)
    torch.testing.assert_close(output, expected.unflatten(2, (3, 2)).movedim(1, -1))
    rows = torch.ones(50, 8)
    torch.manual_seed(0)
    output = layer(rows)
    torch.manual_seed(0)
    assert torch.equal(output, hs.nn.Dropout(0.5)(rows))
    inplace = LastAxisDropout(0.5, True)
    assert inplace(x) is x
    torch.testing.assert_close(LastAxisDropout(0.25, mode="scaled").eval()(rows[None]), rows[None] * 0.75)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.Dropout(), "element"), (nn.Dropout1d(), "channel"), (nn.Dropout3d(), "channel"),
        (nn.AlphaDropout(), "alpha"), (nn.FeatureAlphaDropout(), "alpha"), (hs.nn.GaussianDropout(), "gaussian"),
        (LastAxisDropout(), "channel"), (hs.nn.DropPath(), None), (hs.nn.DropConnectLinear(2, 2), None),
    ],
)  # fmt: skip
def test_kinds_of_layers(module, kind):
    assert dropout_kind(module) == kind


def test_kinds_and_dims_that_are_none_are_refused():
    with pytest.raises(InvalidValue, match=r"unknown kind 'chanel'. Did you mean 'channel'\?"):
        make_dropout(0.5, "chanel")
    with pytest.raises(InvalidValue, match="dims must be 0, 1, 2 or 3, but got 4"):
        make_dropout(0.5, "channel", 4)
    with pytest.raises(InvalidValue, match=r"p must lie in \[0, 1\)"):
        make_dropout(1.0, "gaussian")


def test_set_p_reaches_layers_that_drop_weights_and_none_by_depth():
    model = nn.ModuleDict({
        "unit": hs.nn.GaussianDropout(0.1), "weight": hs.nn.DropConnectLinear(2, 2), "depth": hs.nn.DropPath(0.3),
        "filter": hs.nn.DropConnectConv2d(2, 2, 1), "attention": nn.MultiheadAttention(2, 1, dropout=0.2),
    })  # fmt: skip
    assert set_p_(model, 0.25) == ["unit", "weight", "filter"]
    assert model["depth"].drop_prob == 0.3
    assert model["attention"].dropout == 0.2
    assert set_p_(model, {"weight": 0.5, "unit": 0.25}) == ["weight"]
    assert model["weight"].p == 0.5
    with pytest.raises(InvalidValue, match=r"unknown dropout layer 'wait'. Did you mean 'weight'"):
        set_p_(model, {"unit": 0.0, "wait": 0.5})
    with pytest.raises(InvalidValue, match=r"set_p_: p must lie in \[0, 1\), but got 1"):
        set_p_(model, 1)
    assert model["unit"].p == 0.25
    assert model["weight"].p == 0.5


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1))
def test_a_course_stays_between_nothing_and_p(schedule, p, progress):
    assert 0 <= dropout_at(schedule, p, progress) <= p


def test_the_courses():
    at = [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [dropout_at("constant", 0.4, t) for t in at] == [0.4] * 5
    assert [dropout_at("ramp", 0.4, t) for t in at] == [0.0, 0.1, 0.2, pytest.approx(0.3), 0.4]
    assert [dropout_at("early", 0.4, t) for t in at] == [0.4, 0.2, 0.0, 0.0, 0.0]
    # Morerio et al. 2017, equation 3: theta = (1 - theta_bar) exp(-gamma t) + theta_bar is the probability of keeping
    keep = [(1 - 0.6) * math.exp(-10 * t) + 0.6 for t in at]
    assert [1 - dropout_at("curriculum", 0.4, t) for t in at] == pytest.approx(keep)
    for arguments, message in (
        (("late", 0.5, 0.0), "unknown schedule 'late'"),
        (("ramp", 1.5, 0.0), r"p must be a number in \[0, 1\]"),
        (("ramp", 0.5, 1.1), r"progress must be a number in \[0, 1\], but got 1.1"),
        (("ramp", 0.5, math.nan), r"progress must be a number in \[0, 1\]"),
    ):
        with pytest.raises(InvalidValue, match=message):
            dropout_at(*arguments)


def test_rates_of_stochastic_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 1) == [0.3]
    assert drop_path_rates(0, 3) == [0, 0, 0]
    for arguments in ((1.5, 3), (0.1, 0), (0.1, 2.0), ("0.1", 3)):
        with pytest.raises(InvalidValue, match=r"drop_path_rates: (drop_prob|depth) must be"):
            drop_path_rates(*arguments)


class TestDropConnect:
    """Layers that drop their weights, in anybody's model."""

    @pytest.mark.parametrize("where", PLACES)
    @pytest.mark.parametrize("name", models.ALL)
    @pytest.mark.filterwarnings("ignore::homeostat.errors.NoEffectWarning")  # an encoder has no weights on its input
    def test_evaluation_stays_and_training_drops(self, name, where):
        model, sample = models.ALL[name]()
        set_p_(model, 0.0)
        expected = tensors_in(call(model.eval(), sample))
        modules, parameters = dict(model.named_modules()), {id(parameter) for parameter in model.parameters()}
        changes = set_drop_connect_(model, 0.5, where, sample=sample)
        assert dict(model.named_modules()) == modules
        assert {id(parameter) for parameter in model.parameters()} == parameters
        for each in (copy.deepcopy(model), model):
            torch.testing.assert_close(tensors_in(call(each.eval(), sample)), expected)
        if changes:
            torch.manual_seed(0)
            first, second = (tensors_in(call(model.train(), sample)) for _ in range(2))
            assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    @pytest.mark.parametrize(("where", "kinds"), [("hidden", [0, 1, 1]), ("input", [1, 0, 0]), ("all", [1, 1, 1])])
    def test_places(self, where, kinds):
        model, sample = models.mlp()
        set_drop_connect_(model, 0.25, where, sample=sample, per_example=True)
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        assert [isinstance(module, hs.nn.DropConnectLinear) for module in linear] == [bool(kind) for kind in kinds]
        assert all(module.per_example and module.p == 0.25 for module in linear if hasattr(module, "p"))

    def test_layers_that_drop_weights_already_get_p(self):
        model, sample = models.mlp()
        set_drop_connect_(model, 0.25, sample=sample)
        changes = set_drop_connect_(model, 0.5, sample=sample)
        assert [what for what, _ in changes] == ["p 0.25 → 0.5", "p 0.25 → 0.5"]
        assert not set_drop_connect_(model, 0.5, sample=sample)
        set_drop_connect_(model, 0, sample=sample)
        x, plain = sample, models.mlp()[0]
        plain.load_state_dict(model.state_dict())
        torch.testing.assert_close(model.train()(x), plain.train()(x))

    def test_hooks_optimizers_parametrizations_and_pickles(self):
        model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.ReLU(), nn.Conv1d(3, 2, 1))
        x, seen = torch.randn(2, 3, 4), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[2].register_forward_hook(lambda *call: seen.append(call))
        expected = model(x)
        changes = set_drop_connect_(model, 0.5, "all", sample=x)
        assert [what for what, _ in changes] == [
            "ParametrizedLinear → DropConnectLinear(0.5)",
            "Conv1d → DropConnectConv1d(0.5)",
        ]
        torch.testing.assert_close(model.eval()(x), expected)
        seen.clear()
        before = model[0].weight.clone()
        model.train()(x).sum().backward()
        optimizer.step()
        assert len(seen) == 1
        assert not torch.equal(model[0].weight, before)

    def test_what_is_neither_linear_nor_convolution_is_left_with_a_note(self):
        class Own(nn.Linear):
            def forward(self, input):
                return super().forward(input) * 2

        model, x = nn.Sequential(Own(4, 4), nn.Unflatten(1, (2, 2)), nn.ConvTranspose1d(2, 2, 2)), torch.randn(3, 4)
        with pytest.warns(NoEffectWarning, match=r"'0' \(Own\) is neither Linear nor Conv1d, 2d, 3d: left alone"):
            assert not set_drop_connect_(model, 0.5, "all", sample=x)
        model.append(nn.Linear(3, 1))
        assert len(set_drop_connect_(model, 0.5, "all", sample=x).notes) == 2
        with pytest.warns(NoEffectWarning, match="no weight layer for where='hidden'"):
            set_drop_connect_(nn.Linear(2, 2), 0.5, sample=torch.randn(2, 2))

    def test_arguments_that_cannot_be_used_are_refused(self):
        model, sample = models.mlp()
        for arguments, message in (((2,), r"p must be a number in \[0, 1\]"), ((0.5, "alle"), "Did you mean 'all'")):
            with pytest.raises(InvalidValue, match=message):
                set_drop_connect_(model, *arguments, sample=sample)
        assert not any(isinstance(module, hs.nn.DropConnectLinear) for module in model.modules())


def test_types_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidValue, match=r"progress must be a number in .* but got '1'"):
        hs.dropout.dropout_at("early", 0.2, "1")
    with pytest.raises(InvalidType, match=r"set_p_: model must be a torch.nn.Module"):
        hs.dropout.set_p_([1], 0.2)
