"""Small trainings for the tests of rules and changes, and what an examination would measure of them."""

import torch
from torch import nn

from homeostat.doctor.budget import Deadline
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Runner, evaluating, mark_steps
from homeostat.doctor.data.baselines import measure_baselines
from homeostat.doctor.health import illness
from homeostat.doctor.network.probe import take
from homeostat.doctor.network.structure import read
from homeostat.doctor.score import score_of
from homeostat.doctor.training import Training


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def rings(count=400, seed=0):
    """Two classes that no straight line separates: inside and outside of a circle, in four dimensions."""
    x = torch.randn(count, 4, generator=seeded(seed))
    return x, (x.square().sum(1) > 3.4).long()


def plane(count=300, seed=0):
    """A linear function of three inputs, with a little noise."""
    x = torch.randn(count, 3, generator=seeded(seed))
    return x, x @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.1 * torch.randn(count, 1, generator=seeded(seed + 1))


def made(build):
    """What `build` gives, with weights that do not depend on, or change, global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def mlp(inputs=4, outputs=2, width=32, depth=2, norm=None, activation=nn.ReLU):
    """Linear layers with ReLU between them; with `norm(width)` in front of each."""

    def build():
        layers = []
        for index in range(depth):
            layers.append(nn.Linear(inputs if index == 0 else width, width))
            layers += [] if norm is None else [norm(width)]
            layers.append(activation())
        return nn.Sequential(*layers, nn.Linear(width, outputs))

    return made(build)


def training(model=None, optimizer=None, *, data=rings, loss=None, batch_size=20, epochs=10, lr=0.1, **options):
    """A training on `rings` that works, but for what a test changes."""
    model = mlp() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9) if optimizer is None else optimizer
    loss = nn.functional.cross_entropy if loss is None else loss
    return Training(model, loss, optimizer, data(), data(200, 5), batch_size=batch_size, epochs=epochs, **options)


def chart_of(given, steps=None):
    """All that an examination would measure of a training, with a trial of its whole length or of `steps`."""
    train, valid = given.examples("train"), given.examples("valid")
    with evaluating(given.model):
        score = score_of(given.task, given.predict(train.head(64).inputs), train.targets, given.loss)
    steps = min(given.total_steps, steps or given.total_steps)
    runner = Runner(given.copy(), (train, valid), score, seed=0, marks=mark_steps(steps))
    course = runner.advance(steps, Deadline(60))
    batch = train.head(max(2, given.batch_size))
    baselines = measure_baselines(train, valid, score, Deadline(10))
    structure = read(given.model, batch.inputs)
    late = None if course.error else take(runner.training, batch)
    return Chart(
        given, train, valid, score, structure, None, None, take(given, batch), late, course, baselines,
        illness(course, baselines, score, (train, valid)),
    )  # fmt: skip


def suspects(rule, given, steps=None):
    """What a rule has against a training."""
    return list(rule().check(chart_of(given, steps)))
