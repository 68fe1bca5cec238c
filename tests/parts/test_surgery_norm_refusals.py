"""What `set_norm_` refuses or has no effect on: it says why, and the model stays as it was."""

import warnings

import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.norm import is_norm
from homeostat.parts.surgery import set_norm_


def snapshot(model):
    return {name: (module, module.training) for name, module in model.named_modules()}, dict(model.state_dict())


def unchanged(model, before):
    modules, state = before
    assert {name: (module, module.training) for name, module in model.named_modules()} == modules
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    return True


class Hidden(nn.Module):
    """Calls its layers through a closure, which nobody else can see into."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.last = nn.Linear(8, 2)
        first, last = self.first, self.last
        self.run = lambda x: last(first(x))

    def forward(self, x):
        return self.run(x)


def test_a_layer_that_cannot_be_reached_is_an_error_and_nothing_changes():
    model = Hidden()
    before = snapshot(model)
    with pytest.raises(InvalidValue, match=r"call what takes the place of 'first'.*register it"):
        set_norm_(model, "batch", torch.zeros(2, 3))
    assert unchanged(model, before)


class Picky(nn.Module):
    """Needs an attribute of its normalization layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(self.layer(x)) + self.norm.running_mean)


def test_a_model_that_fails_with_the_change_is_an_error_and_nothing_changes():
    model = Picky().train()
    model.head.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    with pytest.raises(InvalidValue, match="fails on its sample with AttributeError"):
        set_norm_(model, "layer", torch.zeros(2, 3), optimizer)
    assert unchanged(model, before)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in model.parameters()]


def test_a_kind_that_cannot_apply_names_the_layer_and_changes_nothing():
    model, sample = models.mlp()
    before = snapshot(model)
    with pytest.raises(InvalidValue, match=r"also to '0' \(Linear\), but got 'instance'.*Use layer, group or rms"):
        set_norm_(model, "instance", sample)
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 2), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(InvalidValue, match=r"also to '1' \(Conv2d\).*one position only"):
        set_norm_(pooled, "instance", torch.zeros(2, 3, 4, 4))
    narrow = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 1), nn.Linear(1, 2))
    with pytest.raises(InvalidValue, match=r"also to '1' \(Linear\).*Use batch"):
        set_norm_(narrow, "layer", torch.zeros(2, 3))
    unbatched = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3))
    with pytest.raises(InvalidValue, match=r"reach '0' \(Conv2d\) as a batch"):
        set_norm_(unbatched, "batch", torch.zeros(3, 8, 8))
    with pytest.raises(InvalidValue, match=r"unknown kind 'btach'. Did you mean 'batch'"):
        set_norm_(model, "btach", sample)
    assert unchanged(model, before)


def test_a_norm_whose_channels_cannot_be_told_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm((5, 4)), nn.Linear(4, 2))
    with pytest.raises(InvalidValue, match=r"show where the channels of '1' \(LayerNorm\) are"):
        set_norm_(model, "batch", torch.zeros(2, 5, 3))


def test_a_model_that_is_one_layer_has_to_be_put_into_another():
    with pytest.raises(InvalidValue, match=r"put it into a torch.nn.Sequential"):
        set_norm_(nn.BatchNorm1d(3), "layer", torch.zeros(4, 3))


def test_what_is_no_optimizer_is_refused_before_anything_changes():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(InvalidType, match=r"set_norm_: optimizer must be .* but got 'sgd'"):
        set_norm_(model, "layer", torch.zeros(3, 4), "sgd")
    assert not any(is_norm(module) for module in model.modules())


def test_no_effect_is_a_warning_that_names_model_and_cause():
    single = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with pytest.warns(NoEffectWarning, match=r"set_norm_\('batch'\) changed nothing in Sequential: its weight layers"):
        changes = set_norm_(single, "batch", torch.zeros(3, 4))
    assert not changes
    with pytest.warns(NoEffectWarning, match="no Linear or convolution"):
        set_norm_(nn.Sequential(nn.Flatten()), "batch", torch.zeros(3, 4))

    class Functional(nn.Linear):
        def forward(self, x):
            return F.layer_norm(super().forward(x), (2,))

    with pytest.warns(NoEffectWarning, match="normalizes with functions"):
        set_norm_(nn.Sequential(Functional(4, 2), nn.Softmax(1)), "none", torch.zeros(3, 4))


def test_dropout_by_homeostats_functions_is_said_not_missed():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(hs.nn.functional.dropout(self.first(x), 0.5, self.training))

    with pytest.warns(NoEffectWarning, match="it drops with functions"):
        hs.surgery.set_dropout_(Functional(), 0.0, sample=torch.zeros(3, 4))


def test_a_model_that_already_is_as_asked_for_gives_no_warning():
    model, sample = models.resnet()
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not set_norm_(model, "batch", sample)
        assert not set_norm_(models.mlp()[0], "none", models.mlp()[1])
    assert unchanged(model, before)
