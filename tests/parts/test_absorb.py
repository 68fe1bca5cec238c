"""The evaluation factor of scaled dropout in the weights behind it: equal outputs, or a refusal without changes."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import homeostat as hs
from homeostat.errors import InvalidType, InvalidValue, NoEffectWarning
from homeostat.parts.absorb import absorb_dropout_scale_
from homeostat.parts.dropout_layers import LastAxisDropout, is_dropout


def scaled(p=0.4, kind=hs.nn.Dropout, **more):
    return kind(p, mode="scaled", **more)


class Branches(nn.Module):
    """One factor that goes three ways: through relu, through a view, and through a sum of both."""

    def __init__(self):
        super().__init__()
        self.drop = scaled(0.25)
        self.first, self.second, self.third = nn.Linear(6, 4), nn.Linear(3, 4, bias=False), nn.Linear(6, 4)

    def forward(self, x):
        x = self.drop(x)
        rectified = F.relu(x)
        both = torch.cat([rectified[:, :3], x[:, 3:]], dim=1) + x * 2
        return self.first(rectified) + self.second(x.view(-1, 2, 3)).mean(1) + self.third(both)


class Product(nn.Module):
    """Two factors that meet in a product, and one that is divided by something without."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.layer = scaled(0.5), scaled(0.2), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(self.left(x) * self.right(x) / (1 + x.abs()))


class Twice(nn.Module):
    """One dropout layer that is called twice, on top of itself."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(0.5), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(self.drop(F.leaky_relu(self.drop(x))))


MODELS = {
    "linear": lambda: (nn.Sequential(nn.Linear(6, 5), nn.ReLU(), scaled(), nn.Linear(5, 3)), (4, 6)),
    "two": lambda: (
        nn.Sequential(scaled(0.2), nn.Linear(6, 5), nn.Tanh(), scaled(0.5), nn.Linear(5, 3), nn.Softmax(-1)),
        (4, 6),
    ),
    "through": lambda: (
        nn.Sequential(
            nn.Conv2d(1, 4, 3),
            scaled(0.3, hs.nn.Dropout2d),
            nn.LeakyReLU(),
            nn.MaxPool2d(2),
            nn.AvgPool2d(2),
            nn.ZeroPad2d(1),
            nn.Conv2d(4, 3, 2, groups=1),
            nn.AdaptiveAvgPool2d(1),
            scaled(0.6),
            nn.Flatten(),
            nn.PReLU(),
            nn.Linear(3, 2),
        ),
        (2, 1, 12, 12),
    ),
    "transposed": lambda: (nn.Sequential(scaled(kind=hs.nn.Dropout1d), nn.ConvTranspose1d(3, 2, 3)), (2, 3, 5)),
    "reflected": lambda: (
        nn.Sequential(scaled(), nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")),
        (2, 2, 5, 5),
    ),
    "branches": lambda: (Branches(), (5, 6)),
    "product": lambda: (Product(), (5, 4)),
    "twice": lambda: (Twice(), (5, 4)),
    "drop_connect": lambda: (
        nn.Sequential(scaled(), hs.nn.DropConnectLinear(6, 4), scaled(), nn.Linear(4, 2)),
        (5, 6),
    ),
    "in_place": lambda: (nn.Sequential(nn.Linear(6, 5), scaled(inplace=True), nn.ReLU(True), nn.Linear(5, 3)), (4, 6)),
    "last_axis": lambda: (nn.Sequential(scaled(kind=LastAxisDropout), nn.Linear(6, 4)), (2, 3, 6)),
}


@pytest.mark.parametrize("name", MODELS)
def test_evaluation_stays_and_dropout_goes(name):
    model, shape = MODELS[name]()
    model.double().eval()
    x = torch.randn(shape).double()
    expected, names = model(x.clone()), [name for name, _ in model.named_modules()]
    biases = {key: value.clone() for key, value in model.state_dict().items() if key.endswith("bias")}
    model.train()
    changes = hs.absorb_dropout_scale_(model, x)
    assert changes
    assert all(module.training for module in model.modules())
    assert not any(is_dropout(module) for module in model.modules())
    assert [name for name, _ in model.named_modules()] == names
    for other in (model, copy.deepcopy(model)):
        torch.testing.assert_close(other.eval()(x.clone()), expected)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in biases.items())


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.01, 0.95), min_size=1, max_size=4), st.integers(1, 9), st.integers(0, 10**6))
def test_factors_of_a_chain(probabilities, width, seed):
    """Dropout layers in a row multiply, whatever the width; each weight gets the factors since the one before."""
    layers = []
    for place, p in enumerate(probabilities):
        layers += [scaled(p), *([nn.Linear(width, width), nn.ReLU()] if place % 2 else [])]
    model = nn.Sequential(*layers, nn.Linear(width, 2)).double()
    x = torch.randn(3, width, generator=torch.Generator().manual_seed(seed)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model.eval()(x)
    absorb_dropout_scale_(model, x)
    torch.testing.assert_close(model(x), expected)
    factor, weights = 1.0, {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Identity):
            factor *= 1 - probabilities[len([key for key in weights if key.startswith("drop")])]
            weights[f"drop{name}"] = 0
        elif isinstance(layer, nn.Linear):
            torch.testing.assert_close(layer.weight, before[f"{name}.weight"] * factor)
            factor, weights[name] = 1.0, 0


def test_hooks_references_and_the_optimizer_stay():
    model, x = MODELS["linear"]()[0], torch.randn(4, 6)
    optimizer, drop, seen = torch.optim.SGD(model.parameters(), lr=0.1), model[2], []
    drop.register_forward_hook(lambda *call: seen.append(call))
    weight = model[3].weight
    absorb_dropout_scale_(model, x)
    seen.clear()
    model(x).sum().backward()
    assert len(seen) == 1
    assert model[2] is drop
    assert model[3].weight is weight
    optimizer.step()
    assert repr(drop) == "Identity()"
    assert set(vars(drop)) == set(vars(nn.Identity()))


def test_what_is_written_to_stays_apart_from_the_input():
    """An activation in place behind the dropout must not reach the dropout's input once the dropout is gone."""

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.first, self.second = scaled(0.5), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x):
            return self.first(F.relu(self.drop(x), inplace=True)) + self.second(x)

    model, x = InPlace().eval(), torch.randn(5, 4)
    expected, given = model(x), x.clone()
    absorb_dropout_scale_(model, x)
    assert torch.equal(x, given)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(x, given)


def test_a_single_shared_weight_with_one_factor_is_scaled_once():
    layer = nn.Linear(4, 4)
    model, x = nn.Sequential(scaled(0.5), layer, scaled(0.5), layer).eval(), torch.randn(3, 4)
    expected, weight = model(x), layer.weight.clone()
    changes = absorb_dropout_scale_(model, x)
    assert list(changes)[-1] == ("multiplied by 0.5", "1.weight")
    assert torch.equal(layer.weight, weight * 0.5)
    torch.testing.assert_close(model(x), expected)


def half():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), scaled(), nn.Linear(5, 3)).bfloat16().eval()
    return model, torch.randn(4, 6, dtype=torch.bfloat16)


def test_half_precision_and_samples_of_other_forms():
    model, x = half()
    expected = model(x)
    absorb_dropout_scale_(model, (x,))
    torch.testing.assert_close(model(x), expected, atol=0.02, rtol=0.02)
    model, x = half()
    assert absorb_dropout_scale_(model, {"input": x})


class Sum(nn.Module):
    """A residual addition past the dropout."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x + self.drop(x))


class Used(nn.Module):
    """A weight that is also used without the factor."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(), nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.drop(self.layer(x)))


class Tied(nn.Module):
    """A weight that is an embedding too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.drop, self.layer = nn.Embedding(7, 4), scaled(), nn.Linear(4, 7)
        self.layer.weight = self.embedding.weight

    def forward(self, x):
        return self.layer(self.drop(self.embedding(x)))


class Idle(nn.Module):
    """A dropout layer that does not run."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x)


class Leaves(nn.Module):
    """A factor that leaves torch."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x) * self.drop(x).mean().item()


class Constant(nn.Module):
    """A number that is added to what carries the factor."""

    def __init__(self):
        super().__init__()
        self.drop, self.layer = scaled(), nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(self.drop(x) + 1)


REFUSED = {
    "nonlinearity": (
        lambda: nn.Sequential(scaled(), nn.Tanh(), nn.Linear(4, 2)),
        r"'1' \(tanh\) does not let a factor",
    ),
    "normalization": (lambda: nn.Sequential(scaled(), nn.LayerNorm(4), nn.Linear(4, 2)), "layer_norm"),
    "own normalization": (lambda: nn.Sequential(scaled(), hs.nn.RMSNorm(4), nn.Linear(4, 2)), "RMSNorm"),
    "output": (lambda: nn.Sequential(nn.Linear(4, 2), scaled()), "the model returns what was made by '1'"),
    "sum": (Sum, r"takes values with different factors, \[1.0, 0.6\]"),
    "number": (Constant, "takes values with different factors"),
    "used elsewhere": (Used, r"'layer.weight' is used with different factors, \[0.6, 1.0\]"),
    "embedding": (Tied, r"'embedding.weight' is used with different factors"),
    "idle": (Idle, "'drop' did not run on the sample"),
    "out of torch": (Leaves, "out of torch"),
    "p": (lambda: nn.Sequential(scaled(1.0), nn.Linear(4, 2)), "'0' has p = 1"),
    "computed weight": (
        lambda: nn.Sequential(scaled(), parametrizations.weight_norm(nn.Linear(4, 2))),
        "is computed from others",
    ),
    "attention": (
        lambda: nn.Sequential(scaled(), nn.TransformerEncoderLayer(4, 1, 4, batch_first=True)),
        "does not let a factor|different factors",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_exact_is_refused_and_changes_nothing(name):
    build, message = REFUSED[name]
    model = build().train()
    x = (
        torch.randint(7, (3, 4))
        if name == "embedding"
        else torch.randn(3, 4, 4)
        if name == "attention"
        else torch.randn(3, 4)
    )
    state = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with pytest.raises(InvalidValue, match=message):
        absorb_dropout_scale_(model, x)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_difference_on_the_sample_takes_everything_back():
    """Code that asks whose object it has goes another way without the dropout: only running it shows that."""

    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.layer = scaled(0.5), nn.Linear(4, 2)

        def forward(self, x):
            dropped = self.drop(x)
            return self.layer(dropped) if dropped is x else self.layer(dropped * 2)

    model, x = Looks(), torch.randn(3, 4)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValue, match="its output on the sample changes by"):
        absorb_dropout_scale_(model, x)
    torch.testing.assert_close(model.state_dict(), state, atol=0, rtol=0)
    assert type(model.drop) is hs.nn.Dropout
    assert model.drop.p == 0.5


def test_inverted_dropout_has_no_factor():
    model = nn.Sequential(hs.nn.Dropout(0.5), nn.Dropout(0.5), scaled(0.0), nn.Linear(4, 2))
    with pytest.warns(NoEffectWarning, match='it has no dropout layer with mode="scaled"'):
        assert not absorb_dropout_scale_(model, torch.randn(3, 4))
    model = nn.Sequential(hs.nn.Dropout(0.5), scaled(0.5), nn.Linear(4, 2))
    absorb_dropout_scale_(model, torch.randn(3, 4))
    assert [type(module).__name__ for module in model] == ["Dropout", "Identity", "Linear"]


def test_arguments_that_cannot_be_used_are_refused():
    with pytest.raises(InvalidType, match=r"absorb_dropout_scale_: model must be a torch.nn.Module, but got \[1\]"):
        absorb_dropout_scale_([1], torch.zeros(2, 2))
    for rtol in ("1e-4", 0, -1.0, True):
        with pytest.raises(InvalidValue, match="rtol must be a number above 0"):
            absorb_dropout_scale_(nn.Linear(2, 2), torch.zeros(2, 2), rtol=rtol)


def test_a_rounded_quotient_is_refused_also_where_the_sample_does_not_show_it():
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.last = hs.nn.Dropout(0.5, mode="scaled"), nn.Linear(4, 2)

        def forward(self, x):
            return self.last(torch.div(self.drop(x), 3, rounding_mode="floor"))

    with pytest.raises(InvalidValue, match="does not let a factor through"):
        absorb_dropout_scale_(Rounded(), torch.zeros(2, 4))
