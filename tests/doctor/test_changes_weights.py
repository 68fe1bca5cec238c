"""Weights drawn anew stay the same objects; the rest of model and optimizer stays what it was."""

import pytest
import torch
from small_networks import chain, given
from torch import nn

from homeostat.doctor.changes.activation import SwapActivation
from homeostat.doctor.changes.change import CannotApply
from homeostat.doctor.changes.norm import AddNorm
from homeostat.doctor.changes.weights import Reinitialize, Unfreeze
from homeostat.doctor.course import batches
from homeostat.doctor.training import Training


def values(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def stepped(training):
    """A copy with a few steps behind it, so that its optimizer remembers something."""
    copy = training.copy()
    stream = batches(copy, copy.examples("train"), 0)
    for _ in range(3):
        batch = next(stream)
        copy.optimizer.zero_grad()
        copy.loss(copy.predict(batch.inputs), batch.targets).backward()
        copy.optimizer.step()
    return copy


def constant():
    return given(chain(3, init=lambda weight: nn.init.constant_(weight, 0.1)))


def test_all_weights_are_drawn_anew_for_the_functions_between_them():
    training = constant()
    Reinitialize().apply(training)
    second = training.model[2].weight.detach()
    assert float(second.std()) == pytest.approx((2 / 16) ** 0.5, rel=0.2)
    assert not any(bool(layer.bias.any()) for layer in training.model if isinstance(layer, nn.Linear))


def test_named_layers_alone_change():
    training = stepped(constant())
    before, held = values(training.model), list(training.model.parameters())
    Reinitialize(("2",)).apply(training)
    after = values(training.model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["2.weight", "2.bias"]
    assert all(new is old for new, old in zip(training.model.parameters(), held, strict=True))


def test_the_optimizer_forgets_what_changed_and_nothing_else():
    training = stepped(constant())
    state = training.optimizer.state
    kept = [p for name, p in training.model.named_parameters() if not name.startswith("2.")]
    momenta = [state[p]["momentum_buffer"].clone() for p in kept]
    Reinitialize(("2",)).apply(training)
    assert set(state) == set(kept)
    assert all(torch.equal(state[p]["momentum_buffer"], old) for p, old in zip(kept, momenta, strict=True))


def test_twice_is_once_and_the_seed_decides():
    training = constant()
    Reinitialize().apply(training)
    once = values(training.model)
    Reinitialize().apply(training)
    assert all(torch.equal(value, once[name]) for name, value in values(training.model).items())
    Reinitialize(seed=1).apply(training)
    assert not torch.equal(training.model[0].weight, once["0.weight"])


def test_global_random_state_stays():
    training, state = constant(), torch.get_rng_state()
    Reinitialize().apply(training)
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_weights_stay_and_the_freezing_stays_too():
    training = constant()
    training.model[0].weight.requires_grad_(False)
    before = training.model[0].weight.detach().clone()
    Reinitialize().apply(training)
    assert torch.equal(training.model[0].weight, before)
    assert [p.requires_grad for p in training.model.parameters()] == [False, True, True, True, True, True]


def test_dtype_mode_and_sharing_stay():
    twice = nn.Linear(4, 4)
    model = nn.Sequential(twice, nn.ReLU(), twice, nn.ReLU(), nn.Linear(4, 2)).double().eval()
    training = given(model, data=lambda *_: (torch.ones(8, 4).double(), torch.zeros(8).long()))
    before = twice.weight.detach().clone()
    Reinitialize().apply(training)
    assert training.model is model
    assert model[0] is model[2] is twice
    assert not torch.equal(twice.weight, before)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(module.training for module in model.modules())


def test_recurrent_layers_reset_themselves():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(self.lstm(x[:, None])[0][:, -1])

    model = Reader()
    with torch.no_grad():
        model.lstm.weight_ih_l0.zero_()
    training = given(model)
    Reinitialize(("lstm",)).apply(training)
    first = model.lstm.weight_ih_l0.detach().clone()
    assert float(first.abs().max()) > 0
    Reinitialize(("lstm",)).apply(training)
    assert torch.equal(model.lstm.weight_ih_l0, first)


def test_a_model_that_cannot_be_followed_is_drawn_without_a_run():
    training = given(chain(2))
    training.with_data("train", (torch.full((8, 4), torch.nan), torch.zeros(8, dtype=torch.long)))
    before = values(training.model)
    Reinitialize().apply(training)
    assert not torch.equal(training.model[0].weight, before["0.weight"])


def test_a_layer_that_is_not_there_cannot_be_drawn():
    with pytest.raises(CannotApply, match="no layer named 'x'"):
        Reinitialize(("x",)).apply(constant())
    with pytest.raises(CannotApply, match="drawn anew"):
        Reinitialize(("1",)).apply(constant())


def test_layers_are_found_behind_other_changes():
    training = constant()
    AddNorm("layer").apply(training)
    Reinitialize(("2",)).apply(training)
    training.model = nn.Sequential(training.model)
    SwapActivation("tanh", ("3",)).apply(training)
    Reinitialize(("4",)).apply(training)
    assert len(set(training.model[0][4].weight.flatten().tolist())) > 1


def test_namesakes_further_inside_are_not_taken_for_the_layer():
    training = given(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 2))))
    training.model = nn.Sequential(nn.Identity(), training.model)
    before = values(training.model)
    Reinitialize(("2.0",)).apply(training)
    after = values(training.model)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["1.2.0.weight", "1.2.0.bias"]


def test_the_texts_say_what_is_done():
    change = Reinitialize(("0", "2"))
    assert change.where == ("0", "2")
    assert "initialize_(model, 'he'" in change.diff
    assert all(line[0] in "+-" for line in change.diff.splitlines())
    assert str(Reinitialize()) == "weights drawn anew (he)"


def test_unfreezing_trains_and_gives_to_the_optimizer():
    model = chain(3)
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.01)
    training = given(model, optimizer=optimizer)
    before = model[0].weight.detach().clone()
    for _ in range(2):
        Unfreeze(("0.weight",)).apply(training)
    held = [p for group in training.optimizer.param_groups for p in group["params"]]
    assert sum(p is model[0].weight for p in held) == 1
    assert model[0].weight.requires_grad
    assert torch.equal(model[0].weight, before)
    with pytest.raises(CannotApply):
        Unfreeze(("0.nothing",)).apply(training)


def test_a_change_works_on_a_copy_of_an_examined_training():
    training = constant()
    copy = training.copy()
    Reinitialize().apply(copy)
    assert isinstance(copy, Training)
    assert bool((training.model[0].weight == 0.1).all())
    assert not bool((copy.model[0].weight == 0.1).any())
