"""Small networks with planted faults of initialization, activations and gradients, for the tests of rules."""

import torch
from small_trainings import made, rings, training
from torch import nn

from homeostat.doctor.budget import Deadline
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Runner, evaluating, mark_steps
from homeostat.doctor.network.probe import take
from homeostat.doctor.network.structure import read
from homeostat.doctor.score import score_of

BATCH = 100  # enough examples for units that are dead on all of them


def chain(depth=4, width=16, activation=nn.ReLU, init=None, inputs=4, outputs=2):
    """Linear layers with an activation between them, initialized by `init(weight)` with biases of zero; None: he."""

    def build():
        layers = []
        for index in range(depth):
            sizes = (inputs if index == 0 else width, outputs if index == depth - 1 else width)
            layer = nn.Linear(*sizes)
            (init or he)(layer.weight)
            nn.init.zeros_(layer.bias)
            layers += [layer, activation()]
        return nn.Sequential(*layers[:-1])

    return made(build)


def he(weight):
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def glorot(weight):
    nn.init.xavier_normal_(weight)


def narrow(weight):
    nn.init.uniform_(weight, -0.05, 0.05)


class Exponential(nn.Module):
    def forward(self, x):
        return torch.exp(x)


class Bare(nn.Module):
    """Activations by functions alone, hidden and at the output."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = torch.sigmoid(self.first(x))
        x = torch.sigmoid(self.second(x))
        return torch.sigmoid(self.last(x))


def given(model, **options):
    """A training of this model on `rings`, with batches that are large enough to speak of dead units."""
    return training(model, batch_size=BATCH, **{"data": rings, "epochs": 10, **options})


def charted(given, steps=3):
    """What is measured of a network, before and after a short trial; without baselines, facts of loss and data."""
    examples = given.examples("train")
    with evaluating(given.model):
        score = score_of(given.task, given.predict(examples.inputs), examples.targets, given.loss)
    runner = Runner(given.copy(), (examples, examples), score, seed=0, marks=mark_steps(steps))
    course = runner.advance(steps, Deadline(60))
    batch = examples.head(BATCH)
    late = None if course.error else take(runner.training, batch)
    structure = read(given.model, batch.inputs)
    return Chart(given, examples, examples, score, structure, None, None, take(given, batch), late, course, None)


def suspects(rule, given, steps=3):
    """What a rule has against a training."""
    return list(rule().check(charted(given, steps)))
