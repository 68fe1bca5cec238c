"""An examination finds planted faults, spares what works, touches nothing of the user's, and ends in time."""

import copy
import random
import time

import numpy as np
import pytest
import torch
from loss_programs import supervised_contrastive
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import homeostat as hs
from homeostat.errors import HomeostatError

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(400, 6, generator=GENERATOR)
Y = (X[:, 0] > 0).long() + (X[:, 1] > X[:, 2]).long()
TRAIN, VALID = (X[:300], Y[:300]), (X[300:], Y[300:])


def mlp(width=32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def training_of(model=None, loss_fn=F.cross_entropy, train=TRAIN, valid=VALID, lr=0.1, optimizer=None, **settings):
    model = model or mlp()
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return hs.Training(model, loss_fn, optimizer, train, valid, **{"batch_size": 30, "epochs": 20, **settings})


def serious(examination):
    return {finding.code for finding in examination.findings if finding.severity != "info"}


def test_a_healthy_training_gets_no_warning():
    examination = hs.examine(training_of(), budget=200)
    assert serious(examination) == set()
    assert not examination
    assert examination.verdict.startswith("Nothing is wrong as far as was seen: accuracy 0.9")


class Tagging(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.say = nn.Embedding(20, 16), nn.Linear(16, 5)

    def forward(self, words):
        return self.say(self.embed(words))


@pytest.mark.parametrize("padding", [-100, 0])
def test_padding_that_the_loss_leaves_out_is_no_error(padding):
    """Four fifths of the places are padding, which a model that learns the rest answers with any class."""
    words = torch.randint(0, 20, (300, 10), generator=GENERATOR)
    tags = torch.where(torch.arange(10) < 2, words % 4 + 1, padding)
    model = Tagging()
    loss = nn.CrossEntropyLoss(ignore_index=padding)
    training = training_of(
        model, lambda o, t: loss(o.flatten(0, 1), t.flatten()), (words[:200], tags[:200]), (words[200:], tags[200:]),
        optimizer=torch.optim.Adam(model.parameters(), 0.01),
    )  # fmt: skip
    examination = hs.examine(training, budget=150)
    assert serious(examination) == set()
    assert examination.chart.course.score > 0.95
    assert any("class 0 is not judged" in note for note in examination.notes) == (padding == 0)


def mlp_of(outputs):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, outputs))


COUNTS = torch.poisson((X[:, :1] + 1).exp(), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("loss", "outputs", "targets"),
    [
        (nn.PoissonNLLLoss(), 1, COUNTS),
        (lambda o, t: F.mse_loss(o, t.log1p()), 1, COUNTS),
        (supervised_contrastive, 8, Y),
    ],
    ids=["counts", "logarithms", "embeddings"],
)
def test_outputs_that_are_not_what_targets_are_are_judged_by_the_loss(loss, outputs, targets):
    model = mlp_of(outputs)
    data = (X[:300], targets[:300]), (X[300:], targets[300:])
    training = training_of(model, loss, *data, optimizer=torch.optim.Adam(model.parameters(), 0.01))
    examination = hs.examine(training, budget=200)
    assert serious(examination) == set()
    assert examination.chart.score.kind == "other"
    assert any("judged by the loss" in note for note in examination.notes)


def test_a_task_of_another_kind_is_judged_by_the_loss_where_the_user_says_so():
    examination = hs.examine(training_of(task="other"), budget=60)
    assert (examination.chart.score.kind, examination.chart.course.metric) == ("other", "minus loss")
    assert serious(examination) == set()


def frozen_loss(output, target):
    return F.cross_entropy(output, torch.zeros_like(target))


@pytest.mark.parametrize(
    ("code", "settings"),
    [
        ("OPT003", {"optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1, maximize=True)}),
        ("OPT002", {"optimizer": lambda model: torch.optim.SGD(model.parameters(), 1e-5)}),
        ("OPT001", {"optimizer": lambda model: torch.optim.SGD(model.parameters(), 300.0)}),
        ("OPT006", {"optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.1, weight_decay=3.0)}),
        ("OPT008", {"optimizer": lambda model: torch.optim.SGD(model[0].parameters(), 0.1)}),
        ("LOS002", {"loss_fn": frozen_loss}),
        ("LOS004", {"loss_fn": lambda output, target: -F.cross_entropy(output, target)}),
        ("DAT001", {"train": (torch.where(X[:300] > 3.0, torch.nan, X[:300]), Y[:300])}),
        ("DAT007", {"train": (X[:300], Y[:300][torch.randperm(300, generator=GENERATOR)])}),
    ],
)
def test_planted_faults_are_found(code, settings):
    model = mlp()
    make = settings.pop("optimizer", None)
    optimizer = make(model) if make else None
    assert code in serious(hs.examine(training_of(model, optimizer=optimizer, **settings), budget=200))


def test_nothing_of_the_users_is_touched():
    training = training_of(
        nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 3))
    )
    training.loss(training.predict(X[:30]), Y[:30]).backward()
    training.optimizer.step()
    model, optimizer = training.model, training.optimizer
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    hooks = [len(module._forward_hooks) for module in model.modules()]
    hs.examine(training, budget=60)
    assert str(before) == str((model.state_dict(), optimizer.state_dict(), [p.grad for p in model.parameters()]))
    assert random.getstate() == states[0]
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert torch.equal(torch.get_rng_state(), states[2])
    assert hooks == [len(module._forward_hooks) for module in model.modules()]
    assert all(module.training for module in model.modules())


def test_steps_give_the_same_findings_whatever_the_global_seed():
    torch.manual_seed(1)
    first = hs.examine(training_of(lr=1e-5), budget=200)
    torch.manual_seed(2)
    second = hs.examine(training_of(lr=1e-5), budget=200)
    assert [str(f) for f in first.findings] == [str(f) for f in second.findings]
    assert first.chart.course.losses == second.chart.course.losses


class Endless(IterableDataset):
    """A stream that never ends, and takes its time."""

    def __iter__(self):
        while True:
            time.sleep(0.002)
            yield X[0], Y[0]


def test_the_time_limit_holds_with_a_stream_that_never_ends():
    start = time.monotonic()
    hs.examine(training_of(train=DataLoader(Endless(), batch_size=30), epochs=1000), budget="4s")
    assert time.monotonic() - start < 12


class ReturnsDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = mlp()

    def forward(self, x, scale):
        return {"scores": self.body(x) * scale, "scale": scale}


def test_dicts_in_and_out():
    items = [{"x": x, "scale": torch.ones(1), "label": y} for x, y in zip(*TRAIN, strict=True)]
    loader = DataLoader(items, batch_size=30, shuffle=True)
    examination = hs.examine(training_of(ReturnsDict(), train=loader, valid=loader, output="scores"), budget=100)
    assert serious(examination) == set()


def test_a_dataset_and_loaders_are_examined_as_tensors_are():
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=30, shuffle=True)
    examination = hs.examine(training_of(train=loader, valid=TensorDataset(*VALID), batch_size=None), budget=100)
    assert serious(examination) == set()
    assert examination.chart.course.total == 200


def test_a_model_given_in_evaluation_mode_is_trained_and_noted():
    training = training_of()
    training.model.eval()
    examination = hs.examine(training, budget=200)
    assert any("evaluation mode" in note for note in examination.notes)
    assert not training.model.training


def test_a_loss_with_further_arguments_is_an_error_of_the_training():
    def weighted(output, target, weight):
        return F.cross_entropy(output, target, weight=weight)

    with pytest.raises(HomeostatError, match="functools"):
        hs.examine(training_of(loss_fn=weighted), budget=20)


@pytest.mark.parametrize("wrong", [mlp(), None, "module:function"])
def test_only_trainings_are_examined(wrong):
    with pytest.raises(HomeostatError, match="be a homeostat"):
        hs.examine(wrong)


def test_a_broken_model_says_what_it_raised():
    model = nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 3))
    with pytest.raises(HomeostatError, match="mat1 and mat2"):
        hs.examine(training_of(model), budget=20)


def test_progress_is_told_in_stages():
    told = []
    hs.examine(training_of(), budget=60, progress=lambda stage, share: told.append((stage, share)))
    assert {stage for stage, _ in told} >= {"reading the data", "facts", "baselines", "trial"}
    assert all(0 <= share <= 1 for _, share in told)
