"""Images of MNIST's shape and a small cnn in plain torch: what throughput is compared on. Needs no homeostat.

Ten classes of noisy 28x28 uint8 patterns, 6,000 / 1,000 / 1,000: no download. The trials are two epochs each of a cnn
with or without batch normalization and dropout, under several seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FACTORS: dict[str, list[Any]] = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
EPOCHS, BATCH_SIZE, LR = 2, 64, 0.001
SIZES = (6000, 1000, 1000)


def splits() -> list[tuple[Tensor, Tensor]]:
    """Training, validation and test images as uint8, with labels."""
    generator = np.random.default_rng(0)
    patterns = generator.uniform(0, 255, (10, 1, 28, 28))
    found = []
    for count in SIZES:
        labels = np.resize(np.arange(10), count)
        pixels = np.clip(patterns[labels] * 0.3 + generator.normal(90, 60, (count, 1, 28, 28)), 0, 255)
        found.append((torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)))
    return found


def standardized() -> list[TensorDataset]:
    """The splits as most people would hold them: floats, standardized once."""
    data = splits()
    images = data[0][0].float() / 255
    mean, deviation = images.mean(), images.std()
    return [TensorDataset((x.float() / 255 - mean) / deviation, y) for x, y in data]


def network(batch_norm: bool, dropout: float) -> nn.Sequential:
    """The built-in cnn, layer for layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if batch_norm:
            layers.append(nn.BatchNorm2d(after))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def trials(seeds: int) -> list[tuple[str, float, int]]:
    """Every (norm, dropout, seed)."""
    return list(itertools.product(*FACTORS.values(), range(seeds)))


def train(data: list[TensorDataset], norm: str, dropout: float, seed: int) -> Iterator[float]:
    """A plain training loop; yields the validation accuracy after each epoch, and measures all splits at the end."""
    torch.manual_seed(seed)
    model = network(norm == "batch", dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for epoch in range(EPOCHS):
        model.train()
        for x, y in DataLoader(data[0], batch_size=BATCH_SIZE, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if epoch == EPOCHS - 1:
            for split in (data[0], data[2]):
                accuracy(model, split)
        yield accuracy(model, data[1])[0]


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Accuracy and mean loss."""
    model.eval()
    right, loss = 0, 0.0
    for x, y in DataLoader(data, batch_size=512):
        output = model(x)
        right += int((output.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(output, y)) * len(y)
    return right / len(data), loss / len(data)
