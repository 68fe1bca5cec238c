"""Trainings for the tests of changes of data, and a copy of one with a change applied."""

import torch
from small_trainings import mlp, plane, rings
from torch import nn

from homeostat.doctor.training import Training


def regression(model=None, scale=1.0, shift=0.0, target_scale=1.0, target_shift=0.0, **options):
    """A training on `plane`, with inputs and targets on other scales."""
    x, y = plane()
    x, y = x * scale + shift, y * target_scale + target_shift
    model = mlp(3, 1) if model is None else model
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    loss = nn.functional.mse_loss
    options = {"batch_size": 20, "epochs": 5, **options}
    return Training(model, loss, optimizer, (x[:200], y[:200]), (x[200:], y[200:]), **options)


def classes(train, valid=None, outputs=2, **options):
    """A training of a classifier on what is given, whatever holds it."""
    columns = 4 if not isinstance(train, tuple) else train[0][0].numel()
    model = nn.Sequential(nn.Flatten(), *mlp(columns, outputs))
    options = {"batch_size": 20, "epochs": 2, **options}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Training(
        model, nn.functional.cross_entropy, optimizer, train, rings() if valid is None else valid, **options
    )


def applied(change, given):
    """A copy of a training with the change."""
    new = given.copy()
    change.apply(new)
    return new
