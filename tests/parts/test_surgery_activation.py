import warnings

import pytest
import surgery_models as models
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.errors import InvalidValue, NoEffectWarning
from homeostat.parts.activation import ACTIVATIONS
from homeostat.parts.extended import Copy
from homeostat.parts.surgery import set_activation_


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_module_becomes_the_one_asked_for(name):
    model, sample = models.mlp()
    changes = set_activation_(model, name, sample)
    function = (lambda x: x) if name == "identity" else getattr(F, name, None) or getattr(torch, name)
    expected = model[4](function(model[2](function(model[0](sample)))))
    assert torch.equal(model(sample), expected)
    assert len(changes) == (0 if name == "relu" else 2)


def test_with_and_without_sample_the_model_becomes_the_same():
    first, sample = models.upsampler()
    second, _ = models.upsampler()
    set_activation_(first, "gelu", sample)
    set_activation_(second, "gelu")
    assert torch.equal(first(sample), second(sample))


def test_the_activation_of_encoder_layers_is_changed_in_training_and_in_inference():
    model, sample = models.encoder()
    set_activation_(model, "tanh", sample)
    layer = model.layers[0].eval()
    middle = layer.norm1(sample + layer.self_attn(sample, sample, sample)[0])
    expected = layer.norm2(middle + layer.linear2(torch.tanh(layer.linear1(middle))))
    with torch.no_grad():
        torch.testing.assert_close(layer(sample), expected)


def test_activations_of_the_output_stay_where_a_sample_shows_them():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2), nn.Sigmoid())
    changes = set_activation_(model, "relu", torch.zeros(2, 3))
    assert isinstance(model[1], nn.ReLU)
    assert isinstance(model[3], nn.Sigmoid)
    assert changes.notes == ("'3' (Sigmoid) shapes the output: left alone",)


def test_gates_beside_rectifiers_stay():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.act = F.relu
            self.gate = nn.Sigmoid()
            self.head = nn.Linear(4, 2)

        def forward(self, x):
            x = self.layer(x)
            return self.head(self.act(x) * self.gate(x))

    model = Gated()
    changes = set_activation_(model, "gelu", torch.zeros(2, 3))
    assert list(changes) == [("relu → gelu", "act")]
    assert isinstance(model.act, nn.GELU)
    assert isinstance(model.gate, nn.Sigmoid)


def test_the_identity_does_not_share_memory_with_its_input():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.act = nn.ReLU()
            self.head = nn.Linear(3, 2)

        def forward(self, x):
            x = self.layer(x)
            y = self.act(x)
            y += 1
            return self.head(x * y)

    model, sample = InPlace(), torch.randn(4, 3)
    x = model.layer(sample)
    expected = model.head(x * (x + 1))
    set_activation_(model, "identity", sample)
    assert isinstance(model.act, Copy)
    torch.testing.assert_close(model(sample), expected)


def test_a_shared_activation_stays_shared_and_prelu_leaves_the_optimizer():
    shared = nn.PReLU()
    model = nn.Sequential(nn.Linear(3, 4), shared, nn.Linear(4, 4), shared, nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    set_activation_(model, "relu", torch.zeros(2, 3), optimizer)
    assert model[1] is model[3]
    assert len(optimizer.param_groups[0]["params"]) == 6


def test_mode_stays():
    model, sample = models.mlp()
    model.train()
    model[1].eval()
    set_activation_(model, "silu", sample)
    assert [module.training for module in model] == [True, False, True, True, True]


def test_no_effect_is_told_and_being_right_already_is_none():
    model, sample = models.resnet()
    with pytest.warns(NoEffectWarning, match="changed nothing in ResNet: it has no activation modules"):
        set_activation_(model, "gelu", sample)
    output_only = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    with pytest.warns(NoEffectWarning, match="shapes the output"):
        set_activation_(output_only, "relu", torch.zeros(2, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not set_activation_(models.mlp()[0], "relu")


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidValue, match=r"set_activation_: unknown activation 'rleu'. Did you mean 'relu'"):
        set_activation_(models.mlp()[0], "rleu")
