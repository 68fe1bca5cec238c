import pytest
import torch
from torch.nn import functional as F

from homeostat.errors import InvalidType, InvalidValue
from homeostat.parts.activation import ACTIVATIONS, make_activation

REFERENCE = {
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_is_torchs_function_of_the_same_name(name):
    x = torch.linspace(-3, 3, 25)
    before = x.clone()
    assert torch.equal(make_activation(name)(x), REFERENCE[name](x))
    assert torch.equal(x, before)


def test_every_call_makes_a_new_module_without_parameters():
    assert make_activation("relu") is not make_activation("relu")
    assert not any(list(make_activation(name).parameters()) for name in ACTIVATIONS)


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(InvalidValue, match=r"unknown activation 'rellu'. Did you mean 'relu'"):
        make_activation("rellu")
    with pytest.raises(InvalidType, match="name must be a string, but got None"):
        make_activation(None)
