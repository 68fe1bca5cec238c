"""A small classifier and the loop around it, for the tests of `watch`."""

import torch
from torch import nn

from homeostat.doctor.watching.watch import watch

STEPS = 12


def classifier(*, dropout=0.0, norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(16, 3))


def batches(count=STEPS):
    generator = torch.Generator().manual_seed(1)
    for _ in range(count):
        inputs = torch.randn(64, 6, generator=generator)
        yield inputs, inputs[:, :3].argmax(1)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, **options):
    """A healthy loop, watched at every step."""
    with watch(model, optimizer, every=1, **options) as w:
        for batch in batches():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
    return w


def codes(w, least=("warning", "error")):
    return [finding.code for finding in w.findings if finding.severity in least]


def sgd(model, lr=0.1, **options):
    return torch.optim.SGD(model.parameters(), lr=lr, **options)
