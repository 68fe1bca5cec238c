"""The structure of a model is what it computes, however it is written; reading it leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from homeostat.doctor.network.structure import Unreadable, read


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


class Clipped(nn.Module):
    def forward(self, x):
        return (0.2 * x + 0.5).clamp(0, 1)


class Doubling(nn.Module):
    def forward(self, x):
        return 2 * x + 1


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.out = nn.Linear(36, 10), nn.Linear(10, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 2).flatten(1)
        x = F.dropout(x, 0.5, self.training)
        x = self.hidden(x)
        return F.log_softmax(self.out(x * torch.sigmoid(x)), -1)


class Residual(nn.Module):
    def __init__(self, blocks=3):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(blocks)
        )

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.lstm, self.head = nn.Embedding(10, 4), nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, words):
        return self.head(self.lstm(self.embedding(words))[0][:, -1])


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.value, self.gate, self.out = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.value(x) * torch.sigmoid(self.gate(x)))


def steps(found, source, target):
    return [step.name for link in found.links if (link.source, link.target) == (source, target) for step in link.steps]


def test_links_name_what_stands_between_weight_layers():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    found = read(model, torch.zeros(3, 4))
    assert found.weights == ("0", "3", "5")
    assert steps(found, "0", "3") == ["relu", "dropout"]
    assert steps(found, "3", "5") == ["tanh"]
    assert (found.depth, found.residual, found.norms, found.dropouts) == (3, False, (), ("2",))
    assert found.activations == ("1", "4")
    assert found.tail == ()
    assert found.last == ("5",)


def test_bare_functions_are_seen_as_modules_are():
    found = read(Functional(), torch.zeros(2, 1, 8, 8))
    assert steps(found, "conv", "hidden") == ["batch_norm", "relu", "max_pool2d", "flatten", "dropout"]
    assert [step.role for link in found.into("out") for step in link.steps] == ["activation"]
    assert [step.name for step in found.tail] == ["log_softmax"]
    assert found.functional == {"activation", "dropout"}
    assert found.norms == ("norm",)


def test_dropout_that_goes_on_in_evaluation_is_noted():
    class Forgets(Functional):
        def forward(self, x):
            return super().forward(F.dropout(x, 0.1))

    assert read(Forgets(), torch.zeros(2, 1, 8, 8)).dropping == (0.1,)
    assert read(Functional(), torch.zeros(2, 1, 8, 8)).dropping == ()
    assert read(nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)), torch.zeros(3, 4)).dropping == ()


@pytest.mark.parametrize(("layer", "name"), [(Exponential(), "exp"), (Clipped(), "clipped"), (nn.PReLU(), "prelu")])
def test_an_activation_is_known_by_what_it_computes(layer, name):
    found = read(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), torch.zeros(3, 4))
    assert [(step.name, step.role, step.module) for step in found.hidden] == [(name, "activation", "1")]
    assert not found.into("2")[0].linear


@pytest.mark.parametrize("layer", [nn.Identity(), Doubling(), nn.Dropout(), nn.BatchNorm1d(8), nn.Flatten()])
def test_what_is_affine_is_no_activation(layer):
    found = read(nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 2)), torch.zeros(3, 4))
    assert found.into("2")[0].linear
    assert found.hidden == ()


def test_max_pooling_is_not_affine_and_average_pooling_is():
    pair = [
        read(nn.Sequential(nn.Conv1d(1, 2, 3), pool, nn.Conv1d(2, 2, 3)), torch.zeros(2, 1, 20))
        for pool in (nn.MaxPool1d(2), nn.AvgPool1d(2))
    ]
    assert [found.into("2")[0].linear for found in pair] == [False, True]


def test_residual_branches_make_links_from_all_that_was_added():
    found = read(Residual(), torch.zeros(3, 4))
    assert found.residual
    assert found.depth == 8
    assert {link.source for link in found.into("head")} == {"stem", "blocks.0.3", "blocks.1.3", "blocks.2.3"}
    assert steps(found, "stem", "blocks.2.1") == ["add", "layer_norm"]


def test_a_long_stream_is_read_in_reasonable_time():
    found = read(Residual(100), torch.zeros(3, 4))
    assert found.depth == 202
    assert len(found.into("head")) <= 101


def test_recurrent_layers_and_attention_are_weight_layers():
    assert read(Reader(), torch.zeros(2, 5, dtype=torch.long)).weights == ("lstm", "head")
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    found = read(encoder, torch.zeros(2, 5, 8))
    assert found.weights == ("self_attn", "linear1", "linear2")
    assert found.residual
    assert steps(found, "linear1", "linear2") == ["relu", "dropout"]


def test_gates_are_not_hidden_activations():
    found = read(Gated(), torch.zeros(3, 4))
    assert found.hidden == ()
    assert not any(link.linear for link in found.into("out"))


def test_a_step_is_a_cut_if_every_way_leads_through_it():
    def cuts(model):
        found = read(model, torch.zeros(3, 4))
        return {step.name: found.is_cut(step) for link in found.links for step in link.steps}

    assert cuts(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU())) == {"tanh": True, "relu": True}
    assert not cuts(Gated())["sigmoid"]
    assert not cuts(Residual())["gelu"]


def test_calls_of_functions_are_numbered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, x):
            return torch.sigmoid(self.last(torch.sigmoid(self.second(torch.sigmoid(self.first(x))))))

    found = read(Twice(), torch.zeros(2, 4))
    assert [(step.name, step.call) for step in found.hidden] == [("sigmoid", 1), ("sigmoid", 2)]
    assert [(step.name, step.call) for step in found.tail] == [("sigmoid", 3)]


def test_the_output_is_what_the_user_picks():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 3)

        def forward(self, x):
            return {"a": self.a(x).relu(), "b": self.b(x).tanh()}

    model, sample = Two(), torch.zeros(2, 4)
    assert read(model, sample, "b").last == ("b",)
    assert [step.name for step in read(model, sample, lambda out: out["b"]).tail] == ["tanh"]
    assert read(model, sample).last == ("a",)


def test_a_tuple_or_a_mapping_of_inputs_is_taken():
    class Adding(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x, y):
            return self.layer(x + y)

    x = torch.zeros(2, 4)
    assert read(Adding(), (x, x)).weights == read(Adding(), {"x": x, "y": x}).weights == ("layer",)


def test_reading_changes_nothing():
    model = Functional().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    read(model, torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_what_cannot_be_followed_says_why():
    with pytest.raises(Unreadable, match="Sequential cannot be followed"):
        read(nn.Sequential(nn.Linear(4, 2)), torch.zeros(3, 5))
    with pytest.raises(Unreadable, match="DataParallel"):
        read(nn.DataParallel(nn.Linear(4, 2)), torch.zeros(3, 4))
