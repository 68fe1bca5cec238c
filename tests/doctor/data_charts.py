"""Trainings on given data, and what the rules on data have against them."""

import torch
from sklearn.datasets import load_digits
from small_trainings import chart_of, mlp
from torch import nn
from torch.utils.data import DataLoader

from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.facts import examine_data
from homeostat.doctor.training import Training


def chart(given, steps=5):
    """A chart with the facts of the data, after a short trial."""
    found = chart_of(given, steps)
    found.data = examine_data(given, found.train, found.valid, found.score, Deadline(60))
    return found


def classified(train, valid, outputs=2, model=None, **options):
    """A training of a classifier on the splits."""
    inputs = train.dataset.tensors[0] if isinstance(train, DataLoader) else train[0]
    model = mlp(inputs[0].numel(), outputs) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = {"batch_size": 20, "epochs": 10, **options}
    return Training(model, nn.functional.cross_entropy, optimizer, train, valid, **options)


def fitted(train, valid, columns=3):
    """A training of a regression on the splits."""
    model = mlp(columns, train[1].shape[1])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return Training(model, nn.functional.mse_loss, optimizer, train, valid, batch_size=20, epochs=5)


def found(rule, given, steps=5):
    """What a rule has against a training."""
    return list(rule().check(chart(given, steps)))


def only(rule, given, steps=5):
    """The one thing that a rule has against a training."""
    suspects = found(rule, given, steps)
    assert len(suspects) == 1
    return suspects[0]


def digits(train=600, valid=300):
    """Handwritten digits as rows of 64 numbers in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    x, y = torch.as_tensor(x.astype("float32"))[order] / 16, torch.as_tensor(y)[order]
    return (x[:train], y[:train]), (x[-valid:], y[-valid:])
