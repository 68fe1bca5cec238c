"""Small programs with sound and faulty losses and outputs, and a chart of what the loss rules read. None is trained."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from homeostat import seeds
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Course, evaluating
from homeostat.doctor.loss.metamorphic import examine_loss
from homeostat.doctor.network.structure import read
from homeostat.doctor.rule import Rule
from homeostat.doctor.rules import loss, loss_custom, loss_outputs, loss_scale
from homeostat.doctor.score import score_of
from homeostat.doctor.training import Training

N = 96
G = seeds.torch_generator(0, "test", "loss programs")
X = torch.randn(N, 6, generator=G)
CLASSES = (X @ torch.randn(6, 4, generator=G)).argmax(1)
ONE_HOT = F.one_hot(CLASSES, 4).float()
TRUTH = (X[:, :1] > 0).float()
TRUTHS = (X[:, :3] > 0).float()
VALUES = 3 * X @ torch.randn(6, 1, generator=G) + 1
SHARES = torch.randn(N, 4, generator=G).softmax(1)
IMAGES = torch.rand(N, 2, 6, 6, generator=G)
WORDS = torch.randint(0, 9, (N, 5), generator=G)

RULES = [
    rule
    for module in (loss, loss_scale, loss_outputs, loss_custom)
    for rule in vars(module).values()
    if isinstance(rule, type) and issubclass(rule, Rule) and rule is not Rule
]


class Called(nn.Module):
    """A model that ends with a function called in its forward."""

    def __init__(self, outputs, function):
        super().__init__()
        with seeds.isolated(1, "test", "weights"):
            self.hidden, self.last, self.function = nn.Linear(6, 8), nn.Linear(8, outputs), function

    def forward(self, x):
        return self.function(self.last(F.relu(self.hidden(x))))


def mlp(outputs, *tail):
    with seeds.isolated(1, "test", "weights"):
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs), *tail)


def training_of(model, loss_fn, inputs, targets, *, lr=0.1, maximize=False, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr, maximize=maximize)
    data = (inputs, targets)
    return Training(model, loss_fn, optimizer, data, data, **{"batch_size": 32, "epochs": 2, **settings})


def chart_of(training):
    """The chart of a training that was not trained."""
    train = training.examples("train")
    batch = train.head(training.batch_size)
    with evaluating(training.model):
        outputs = training.predict(batch.inputs)
    score = score_of(training.task, outputs, train.targets, training.loss)
    facts = examine_loss(training, batch, outputs, score)
    structure = read(training.model, batch.inputs)
    course = Course(training.total_steps, training.batch_size, score.name)
    return Chart(training, train, train, score, structure, facts, None, None, None, course, None)


def suspects_of(training):
    """All that the loss rules have against a training, by code."""
    chart = chart_of(training)
    return {rule.code: suspect for rule in RULES for suspect in rule().check(chart)}


def supervised_contrastive(o, t):
    """Embeddings of one class come together (Khosla et al. 2020); which number a class has does not matter."""
    directions = F.normalize(o, dim=1)
    itself = torch.eye(len(o), dtype=torch.bool)
    same = (t[:, None] == t) & ~itself
    return -(2 * directions @ directions.T).masked_fill(itself, -1e9).log_softmax(1)[same].mean()
