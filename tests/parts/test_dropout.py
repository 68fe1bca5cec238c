import math

import pytest
import torch
from torch import nn

from homeostat.errors import InvalidValue
from homeostat.parts.dropout import is_dropout, make_dropout, set_p_


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
    for call in (lambda: make_dropout(p), lambda: set_p_(layer, p)):
        with pytest.raises(InvalidValue, match=r"p must be a number in \[0, 1\]"):
            call()
    assert layer.p == 0.5
