import copy
import warnings

import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import InvalidValue, NoEffectWarning
from homeostat.parts.dropout import KINDS, dropout_kind, is_dropout
from homeostat.parts.layers import call, tensors_in
from homeostat.parts.surgery import PLACES, set_dropout_, set_norm_


def dropouts(model):
    return {name: module.p for name, module in model.named_modules() if is_dropout(module)}


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("name", models.ALL)
def test_evaluation_gives_what_it_gave_and_training_drops(name, where):
    model, sample = models.ALL[name]()
    if name == "encoder" and where == "input":
        with pytest.warns(NoEffectWarning, match="no weight layer to drop in front of for where='input'"):
            set_dropout_(model, 0.5, where, sample=sample)
        return
    before = tensors_in(call(model.eval(), sample))
    parameters = {id(parameter) for parameter in model.parameters()}
    changes = set_dropout_(model.train(), 0.5, where, sample=sample)
    assert changes
    assert set(dropouts(model).values()) == {0.5}
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert all(module.training for module in model.modules())
    for each in (copy.deepcopy(model), model):
        for after, expected in zip(tensors_in(call(each.eval(), sample)), before, strict=True):
            torch.testing.assert_close(after, expected)
    torch.manual_seed(0)
    first, second = (tensors_in(call(model.train(), sample)) for _ in range(2))
    assert not all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("where", "places"),
    [("hidden", ["2", "4"]), ("input", ["0"]), ("all", ["0", "2", "4"])],
)
def test_dropout_is_put_in_front_of_weight_layers(where, places):
    model, sample = models.mlp()
    changes = set_dropout_(model, 0.25, where, sample=sample)
    assert list(changes) == [("Dropout(0.25) added before Linear", place) for place in places]
    assert dropouts(model) == {f"{place}.before": 0.25 for place in places}


def test_the_added_layer_drops_the_input_of_its_layer():
    model, sample = models.mlp()
    reference, _ = models.mlp()
    set_dropout_(model, 0.5, "input", sample=sample)
    torch.manual_seed(0)
    expected = reference(hs.nn.functional.dropout(sample, 0.5))
    torch.manual_seed(0)
    torch.testing.assert_close(model.train()(sample), expected)


def test_every_layer_that_reads_the_input_counts_as_first():
    model, sample = models.two_heads()
    set_dropout_(model, 0.5, "input", sample=sample)
    assert list(dropouts(model)) == ["left.before", "right.before"]
    set_dropout_(model, 0.2, "hidden", sample=sample)
    assert list(dropouts(model)) == ["left.before", "right.before", "trunk.before", "policy.before", "value.before"]
    assert list(dropouts(model).values()) == [0.5, 0.5, 0.2, 0.2, 0.2]


def test_dropout_layers_that_are_there_get_p_and_stay_with_zero():
    model, sample = models.encoder()
    changes = set_dropout_(model, 0.3, sample=sample)
    assert len(changes) == 6
    assert ("p 0.1 → 0.3", "layers.0.dropout1") in list(changes)
    set_dropout_(model, 0.0, sample=sample)
    assert set(dropouts(model).values()) == {0.0}
    set_dropout_(model, 0.2, sample=sample)
    assert set(dropouts(model).values()) == {0.2}
    assert model.layers[0].activation_relu_or_gelu  # torch's fused inference, which never drops, stays open


def test_input_and_hidden_dropout_are_told_apart():
    model = nn.Sequential(nn.Dropout(0.1), nn.Linear(3, 4), nn.AlphaDropout(0.2), nn.Linear(4, 2))
    sample = torch.zeros(2, 3)
    set_dropout_(model, 0.5, "hidden", sample=sample)
    assert list(dropouts(model).values()) == [0.1, 0.5]
    set_dropout_(model, 0.3, "input", sample=sample)
    assert list(dropouts(model).values()) == [0.3, 0.5]
    set_dropout_(model, 0.4, "all", sample=sample)
    assert list(dropouts(model).values()) == [0.4, 0.4]


def test_it_goes_together_with_added_norms_in_either_order():
    sample = models.mlp()[1]
    first, second = models.mlp()[0], models.mlp()[0]
    set_norm_(first, "layer", sample)
    assert [place for _, place in set_dropout_(first, 0.5, sample=sample)] == ["2", "4"]
    set_dropout_(second, 0.5, sample=sample)
    set_norm_(second, "layer", sample)
    assert [name for name, _ in first.named_modules()] == [name for name, _ in second.named_modules()]
    torch.manual_seed(0)
    expected = first.train()(sample)
    torch.manual_seed(0)
    assert torch.equal(second.train()(sample), expected)


def test_a_shared_layer_gets_one_dropout():
    model, sample = models.shared()
    changes = set_dropout_(model, 0.5, sample=sample)
    assert next(iter(changes)) == ("Dropout(0.5) added before Linear", "first, second")
    assert model.first is model.second


def test_an_extended_layer_passes_further_arguments_on():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv1d(2, 4, 3, stride=2)
            self.up = nn.ConvTranspose1d(4, 2, 3, stride=2)

        def forward(self, x):
            return self.up(self.down(x), output_size=x.shape[2:])

    model, sample = Net(), torch.randn(2, 2, 8)
    expected = model(sample)
    set_dropout_(model, 0.5, sample=sample)
    assert torch.equal(model.eval()(sample), expected)


def kinds(model):
    return [dropout_kind(module) for module in model.modules() if is_dropout(module)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mlp", "encoder", "shared"])
def test_every_kind_can_be_asked_for(name, kind):
    model, sample = models.ALL[name]()
    expected = tensors_in(call(model.eval(), sample))
    set_dropout_(model, 0.4, sample=sample, kind=kind)
    assert set(kinds(model)) == {kind}
    assert set(dropouts(model).values()) == {0.4}
    for after, before in zip(tensors_in(call(model.eval(), sample)), expected, strict=True):
        torch.testing.assert_close(after, before)
    tensors_in(call(model.train(), sample))
    before = dict(model.named_modules())
    set_dropout_(model, 0.2, sample=sample)
    assert dict(model.named_modules()) == before
    assert set(kinds(model)) == {kind}


def test_channel_dropout_knows_where_the_channels_are():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    set_dropout_(model, 0.3, "all", sample=torch.randn(2, 3, 6, 6), kind="channel")
    assert [type(module).__name__ for module in model.modules() if is_dropout(module)] == [
        "Dropout2d", "Dropout2d", "LastAxisDropout",
    ]  # fmt: skip
    given = nn.Sequential(
        nn.Conv1d(3, 4, 1), nn.Dropout(0.1), nn.Flatten(), nn.Linear(20, 4), nn.Dropout(), nn.Linear(4, 1)
    )
    changes = set_dropout_(given, 0.3, sample=torch.randn(2, 3, 5), kind="channel")
    assert list(changes) == [("Dropout → Dropout1d(0.3)", "1"), ("Dropout → LastAxisDropout(0.3)", "4")]
    back = set_dropout_(given, 0.3, sample=torch.randn(2, 3, 5), kind="element")
    assert [what for what, _ in back] == ["Dropout1d → Dropout(0.3)", "LastAxisDropout → Dropout(0.3)"]


def test_weights_are_dropped_instead_of_units():
    model, sample = models.encoder()
    expected = tensors_in(call(model.eval(), sample))
    changes = set_dropout_(model, 0.5, sample=sample, kind="connect")
    assert set(dropouts(model).values()) == {0.0}
    assert ("p 0.1 → 0", "layers.0.dropout1") in list(changes)
    assert ("Linear → DropConnectLinear(0.5)", "layers.0.linear1") in list(changes)
    assert changes.technique == "set_dropout_(0.5, 'hidden', kind='connect')"
    for after, before in zip(tensors_in(call(model.eval(), sample)), expected, strict=True):
        torch.testing.assert_close(after, before)
    model, sample = models.mlp()
    assert [place for _, place in set_dropout_(model, 0.5, sample=sample, kind="connect")] == ["2", "4"]
    assert dropouts(model) == {}


def test_kinds_that_cannot_be_are_refused_and_change_nothing():
    model, sample = models.mlp()
    with pytest.raises(InvalidValue, match=r"unknown kind 'connected'. Did you mean 'connect'\?"):
        set_dropout_(model, 0.5, sample=sample, kind="connected")
    with pytest.raises(InvalidValue, match=r"p must lie in \[0, 1\)"):
        set_dropout_(model, 1.0, sample=sample, kind="gaussian")
    assert dropouts(model) == {}
    set_dropout_(model, 0.5, sample=sample, kind="gaussian")
    with pytest.raises(InvalidValue, match=r"p must lie in \[0, 1\)"):
        set_dropout_(model, 1.0, sample=sample)
    assert set(dropouts(model).values()) == {0.5}


def test_compiled_afterwards_it_gives_the_same():
    model, sample = models.mlp()
    set_norm_(model, "batch", sample)
    set_dropout_(model, 0.5, sample=sample)
    model.eval()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(sample), model(sample))


def test_no_effect_and_functional_dropout_are_told():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return F.dropout(self.layer(x), 0.5, self.training)

    sample = torch.zeros(2, 3)
    with pytest.warns(NoEffectWarning, match=r"set_dropout_\(0, 'all'\) changed nothing in Functional: it drops with"):
        set_dropout_(Functional(), 0.0, "all", sample=sample)
    changes = set_dropout_(Functional(), 0.5, "all", sample=sample)
    assert "also drops with functions" in changes.notes[0]
    with pytest.warns(NoEffectWarning, match="for where='hidden'"):
        set_dropout_(Functional(), 0.5, sample=sample)
    with pytest.warns(NoEffectWarning, match="no Linear or convolution"):
        set_dropout_(nn.Sequential(nn.Flatten()), 0.5, sample=sample)


def test_no_dropout_where_there_is_none_gives_no_warning():
    model, sample = models.mlp()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not set_dropout_(model, 0.0, "all", sample=sample)
    assert dropouts(model) == {}


def test_arguments_that_cannot_be_used_are_refused():
    model, sample = models.mlp()
    with pytest.raises(InvalidValue, match=r"set_dropout_: p must be a number in \[0, 1\], but got 1.5"):
        set_dropout_(model, 1.5, sample=sample)
    with pytest.raises(InvalidValue, match=r"unknown where 'hiden'. Did you mean 'hidden'"):
        set_dropout_(model, 0.5, "hiden", sample=sample)
    assert dropouts(model) == {}
