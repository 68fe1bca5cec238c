"""A repair makes new objects, proves what it did, keeps no more than it needs, and leaves what works alone."""

import copy

import pytest
import torch
from test_examine import TRAIN, VALID, X, mlp, training_of
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.errors import HomeostatError


def trained(training):
    """Train plainly, as a stranger would, and return the accuracy on the validation examples."""
    x, y = training.train
    torch.manual_seed(7)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(x)).split(training.batch_size):
            training.optimizer.zero_grad()
            training.loss_fn(training.model(x[rows]), y[rows]).backward()
            training.optimizer.step()
    training.model.eval()
    return (training.model(VALID[0]).argmax(1) == VALID[1]).float().mean().item()


def maximizing():
    model = mlp()
    return training_of(model, optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, maximize=True))


def scaled():
    return training_of(train=(X[:300] * 1e4, TRAIN[1]), valid=(X[300:] * 1e4, VALID[1]))


def sigmoids():
    torch.manual_seed(0)
    layers = [layer for _ in range(8) for layer in (nn.Linear(8, 8), nn.Sigmoid())]
    return training_of(nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), *layers, nn.Linear(8, 3)))


@pytest.mark.parametrize("make", [maximizing, sigmoids])
def test_a_repaired_training_works_in_a_strangers_loop(make):
    before, training = make(), make()
    repair = hs.repair(training, budget="15s")
    assert repair
    assert min(repair.proof.gains) > 0.1
    assert trained(repair.training) > trained(before) + 0.3


def test_the_repair_of_a_flipped_sign_is_one_safe_change_with_the_weights_kept():
    training = maximizing()
    weights = copy.deepcopy(training.model.state_dict())
    repair = hs.repair(training, budget=200)
    assert [(change.code, change.safety) for change in repair.changes] == [("OPT003", "safe")]
    assert "-" in repair.diff
    assert "+" in repair.diff
    assert training.optimizer.param_groups[0]["maximize"]
    assert not repair.training.optimizer.param_groups[0]["maximize"]
    assert all(torch.equal(weights[name], value) for name, value in repair.training.model.state_dict().items())
    assert repair.undo() is training


def test_repairing_what_was_repaired_changes_nothing():
    repaired = hs.repair(maximizing(), budget=200).training
    again = hs.repair(repaired, budget=200)
    assert not again
    assert "Nothing to repair" in again.verdict


def test_a_healthy_training_is_left_alone():
    training = training_of()
    repair = hs.repair(training, budget=200)
    assert not repair
    assert repair.training is not training
    assert repair.proof is None


def test_safe_repairs_leave_the_function_of_the_model():
    training = sigmoids()
    repair = hs.repair(training, budget="5s", unsafe=False)
    assert all(change.safety == "safe" for change in repair.changes)
    with torch.no_grad():
        assert torch.equal(repair.training.model(X), training.model(X))


def test_the_optimizer_of_a_repair_holds_its_model():
    repair = hs.repair(sigmoids(), budget="10s")
    held = {id(p) for group in repair.training.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in repair.training.model.parameters()}


def test_labels_that_tell_nothing_are_not_repaired_but_told():
    noise = TRAIN[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    repair = hs.repair(training_of(train=(X[:300], noise)), budget=60)
    assert any("DAT007" in line for line in repair.advice)


def test_only_trainings_are_repaired():
    with pytest.raises(HomeostatError, match="be a homeostat"):
        hs.repair(F.relu)
