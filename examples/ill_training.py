"""A training that does not work, for the doctor: nine sigmoid layers in a row, with torch's initial weights.

homeostat examine ill_training:training --out report.html
homeostat repair ill_training:training --unsafe
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import homeostat as hs


def training() -> hs.Training:
    """What a user holds: a model, a loss, an optimizer, and data."""
    torch.manual_seed(0)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32) / 16
    y = torch.tensor(digits.target)
    hidden = [layer for _ in range(8) for layer in (nn.Linear(32, 32), nn.Sigmoid())]
    model = nn.Sequential(nn.Linear(64, 32), nn.Sigmoid(), *hidden, nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train, valid = (x[:1200], y[:1200]), (x[1200:], y[1200:])
    return hs.Training(model, nn.CrossEntropyLoss(), optimizer, train, valid, batch_size=64, epochs=20)
