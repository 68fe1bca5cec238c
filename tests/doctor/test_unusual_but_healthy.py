"""Trainings that break every rule of thumb and work: the doctor stays silent."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import homeostat as hs

DIGITS = load_digits()
X = torch.tensor(DIGITS.data, dtype=torch.float32)
Y = torch.tensor(DIGITS.target)


def training_of(model, loss_fn, optimizer, x, y, batch_size=20, epochs=25):
    data = (x[:1200], y[:1200]), (x[1200:], y[1200:])
    return hs.Training(model, loss_fn, optimizer(model.parameters()), *data, batch_size=batch_size, epochs=epochs)


def steep_sigmoids():
    """Squared error on sigmoids by plain SGD with a rate of 3 (Nielsen 2015, "Neural Networks and Deep Learning")."""
    model = nn.Sequential(nn.Linear(64, 30), nn.Sigmoid(), nn.Linear(30, 10), nn.Sigmoid())

    def optimizer(p):
        return torch.optim.SGD(p, 3.0)

    return training_of(model, F.mse_loss, optimizer, X / 16, F.one_hot(Y, 10).float(), batch_size=10)


def linear_convolutions():
    """No activation anywhere but one pooling layer."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.Flatten(), nn.Linear(32, 32), nn.Linear(32, 10)
    )
    return training_of(model, F.cross_entropy, torch.optim.Adam, X.reshape(-1, 1, 8, 8) / 16, Y)


def raw_inputs():
    """Pixels of 0 to 16 as they come, and a summed loss."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    loss = nn.CrossEntropyLoss(reduction="sum")
    return training_of(model, loss, torch.optim.Adam, X, Y)


def tanh_and_zeros():
    """Four tanh layers, a last layer of zeros, all decayed by an Adam with L2."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), *layers, nn.Linear(64, 10))
    nn.init.zeros_(model[-1].weight)
    return training_of(model, F.cross_entropy, lambda p: torch.optim.Adam(p, 2e-3, weight_decay=1e-4), X / 16, Y)


def whole_batch():
    """All data in every step, a rate of 1 with momentum, heavy dropout."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))

    def optimizer(p):
        return torch.optim.SGD(p, 0.5, momentum=0.9)

    return training_of(model, F.cross_entropy, optimizer, X / 16, Y, batch_size=1200, epochs=150)


@pytest.mark.parametrize("make", [steep_sigmoids, linear_convolutions, raw_inputs, tanh_and_zeros, whole_batch])
def test_no_warning(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        training = make()
    examination = hs.examine(training, budget=10_000)
    assert examination.chart.course.score > 0.85
    assert [str(finding) for finding in examination.findings if finding.severity != "info"] == []
