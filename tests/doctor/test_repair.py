"""A repair makes new objects, proves what it did, keeps no more than it needs, and leaves what works alone."""

import copy
from math import nan

import pytest
import torch
from test_examine import TRAIN, VALID, X, Y, mlp, training_of
from torch import nn
from torch.nn import functional as F

import homeostat as hs
from homeostat.doctor.arms import Arms
from homeostat.doctor.budget import Deadline
from homeostat.doctor.changes.optimizer import ScaleLearningRate
from homeostat.doctor.course import mark_steps
from homeostat.doctor.data.baselines import measure_baselines
from homeostat.doctor.prescriptions import long_bundle
from homeostat.doctor.proof import PairedProof, confirmed, prove
from homeostat.doctor.score import score_of
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


@pytest.fixture(scope="module")
def flipped():
    """A training up the loss, its weights before, and its repair."""
    training = maximizing()
    weights = copy.deepcopy(training.model.state_dict())
    return training, weights, hs.repair(training, budget=200)


@pytest.fixture(scope="module")
def too_deep():
    """The repair of a deep net of sigmoids."""
    return hs.repair(sigmoids(), budget="30s")


def test_a_flipped_sign_is_one_safe_change_with_the_weights_kept(flipped):
    training, weights, repair = flipped
    assert [(change.code, change.safety) for change in repair.changes] == [("OPT003", "safe")]
    assert "-" in repair.diff
    assert "+" in repair.diff
    assert training.optimizer.param_groups[0]["maximize"]
    assert not repair.training.optimizer.param_groups[0]["maximize"]
    assert all(torch.equal(weights[name], value) for name, value in repair.training.model.state_dict().items())
    assert repair.undo() is training


def test_what_was_repaired_works_in_a_strangers_loop(flipped, too_deep):
    for repair, make in ((flipped[2], maximizing), (too_deep, sigmoids)):
        assert min(repair.proof.gains) > 0.1
        assert trained(copy.deepcopy(repair.training)) > trained(make()) + 0.3


def test_a_warmup_that_has_begun_at_0_is_repaired_by_the_rate_that_it_leads_to():
    training = training_of(nn.Linear(6, 1), F.mse_loss, (X[:300], X[:300, :1]), (X[300:], X[300:, :1]), epochs=5)
    torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda step: step / 10)
    repair = hs.repair(training, budget=50, unsafe=False)
    assert "learning rate 0 → 0.1" in {change.what for change in repair.changes if change.code == "OPT002"}
    assert repair.training.optimizer.param_groups[0]["lr"] == 0.1
    assert training.optimizer.param_groups[0]["lr"] == 0.0


def test_repairing_what_was_repaired_changes_nothing(flipped):
    again = hs.repair(flipped[2].training, budget=200)
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


def test_the_optimizer_of_a_repair_holds_its_model(too_deep):
    held = {id(p) for group in too_deep.training.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in too_deep.training.model.parameters()}


def test_labels_that_tell_nothing_are_not_repaired_but_told():
    noise = TRAIN[1][torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    repair = hs.repair(training_of(train=(X[:300], noise)), budget=60)
    assert any("DAT007" in line for line in repair.advice)


def test_only_trainings_are_repaired():
    with pytest.raises(HomeostatError, match="be a homeostat"):
        hs.repair(F.relu)


@pytest.mark.parametrize(
    ("before", "after", "known", "wanted"),
    [
        ((nan,) * 5, (0.5,) * 5, {"floor": 0.5}, False),
        ((nan,) * 5, (0.9,) * 5, {"floor": 0.5}, True),
        ((-100.0,) * 5, (0.0,) * 5, {}, False),
        ((0.9,) * 5, (nan,) * 5, {"floor": -1.0}, False),
        ((0.9,) * 5, (0.95,) * 5, {"error": 0.03}, False),
        ((0.9,) * 5, (0.97,) * 5, {"error": 0.03}, True),
        ((0.9,) * 5, (0.905,) * 5, {}, False),
        ((0.5,), (0.54,), {}, False),
        ((0.5,), (0.6,), {"error": 0.03}, True),
        ((0.5,), (0.6,), {"error": 0.06}, False),
    ],
    ids=[
        *("constant", "cured", "as bad as the mean", "diverges", "by chance", "beyond chance", "not worth it"),
        *("one pair, little", "one pair, much", "one pair, by chance"),
    ],
)
def test_a_gain_counts_from_a_constant_answer_and_is_beyond_chance(before, after, known, wanted):
    assert confirmed(PairedProof("accuracy", before, after, tuple(range(len(before))), 100, **known)) is wanted


def test_a_change_after_which_the_answer_is_constant_proves_nothing():
    model = mlp()
    nn.init.zeros_(model[2].weight)
    nn.init.zeros_(model[2].bias)
    training = training_of(model, lr=1e30, epochs=4)
    examples = training.examples("train"), training.examples("valid")
    score = score_of(None, torch.zeros(30, 3), Y)
    arms = Arms(training, examples, score, 0, mark_steps(40))
    baselines = measure_baselines(*examples, score, Deadline())
    proof = prove(arms, baselines, (ScaleLearningRate.of(training, 0.0),), 0, Deadline(), lambda stage, share: None)
    assert "diverged → 0." in str(proof)
    assert proof.gains == (0.0,) * 5
    assert not confirmed(proof)
    assert proof.ill.startswith("It ends below")


class SeesOne(nn.Module):
    """Of all inputs it sees one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x):
        return self.linear(x[:, :1])


def test_what_is_better_and_still_ill_is_told_so():
    target = X[:, :1] + X[:, 1:2]
    model = SeesOne()
    training = training_of(
        model, F.mse_loss, (X[:300], target[:300]), (X[300:], target[300:]), epochs=5,
        optimizer=torch.optim.SGD(model.parameters(), 0.1, maximize=True),
    )  # fmt: skip
    repair = hs.repair(training, budget=50, unsafe=False)
    assert repair.proof.gain.estimate > 0.2
    assert "below a linear model" in repair.ill
    assert "and still ill" in repair.verdict
    assert any("GEN006" in line for line in repair.advice)


def exclusive_or(epochs=2):
    """Four examples, one output with a softmax over it, two steps."""
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Softmax(1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    return hs.Training(model, nn.MSELoss(), optimizer, (x, y), (x, y), batch_size=4, epochs=epochs)


def test_where_a_training_is_too_short_for_anything_it_is_made_long_enough(monkeypatch):
    monkeypatch.setattr("homeostat.doctor.prescriptions.ENOUGH_STEPS", 200)
    repair = hs.repair(exclusive_or(), budget=10)
    assert repair.proof.after == (1.0,) * 5
    assert "epochs 2 → 200" in [change.what for change in repair.changes]
    assert repair.ill == ""


def test_a_training_of_many_steps_is_not_made_longer_by_the_last_resort():
    examination = hs.examine(exclusive_or(epochs=300), budget=20)
    assert long_bundle(examination.chart) == []


def test_a_validation_that_is_the_training_data_is_no_sample():
    few = hs.examine(exclusive_or(), budget=10)
    assert few.chart.data.same_splits
    assert not hs.examine(training_of(), budget=5).chart.data.same_splits
    change = (ScaleLearningRate.of(few.arms.training, 1.0),)
    proofs = [
        prove(few.arms, few.chart.baselines, change, 0, Deadline(), lambda stage, share: None, same_data=same)
        for same in (False, True)
    ]
    assert proofs[0].error > 0.2
    assert proofs[1].error == 0.0
