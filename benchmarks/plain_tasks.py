"""Two small tasks in plain torch: what throughput is compared on. Needs no homeostat, and no download.

`cnn`: ten classes of noisy 28x28 uint8 patterns, 6,000 / 1,000 / 1,000, and a small cnn for two epochs. `mlp`: ten
classes of 64 noisy features, 1,400 / 200 / 200, and a 64-128-128-10 mlp for twenty. With or without batch normalization
and dropout, under several seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

FACTORS: dict[str, list[Any]] = {"norm": ["none", "batch"], "dropout": [0, 0.5]}
BATCH_SIZE, LR = 64, 0.001


@dataclass(frozen=True)
class Plain:
    """A task: its splits (training, validation, test), its network, and for how many epochs it is trained."""

    splits: Callable[[], list[tuple[Tensor, Tensor]]]
    network: Callable[[bool, float], nn.Sequential]
    epochs: int


def images() -> list[tuple[Tensor, Tensor]]:
    """Patterns as uint8 images, with labels."""
    generator = np.random.default_rng(0)
    patterns = generator.uniform(0, 255, (10, 1, 28, 28))
    found = []
    for count in (6000, 1000, 1000):
        labels = np.resize(np.arange(10), count)
        pixels = np.clip(patterns[labels] * 0.3 + generator.normal(90, 60, (count, 1, 28, 28)), 0, 255)
        found.append((torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(labels)))
    return found


def features() -> list[tuple[Tensor, Tensor]]:
    """Patterns as floats, with labels."""
    generator = np.random.default_rng(0)
    patterns = generator.normal(size=(10, 64))
    found = []
    for count in (1400, 200, 200):
        labels = np.resize(np.arange(10), count)
        values = patterns[labels] + generator.normal(0, 2, (count, 64))
        found.append((torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels)))
    return found


def cnn(batch_norm: bool, dropout: float) -> nn.Sequential:
    """The built-in cnn, layer for layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32)):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        layers += [nn.BatchNorm2d(after)] if batch_norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def mlp(batch_norm: bool, dropout: float) -> nn.Sequential:
    """The built-in mlp, layer for layer."""
    layers: list[nn.Module] = []
    for before, after in ((64, 128), (128, 128)):
        layers.append(nn.Linear(before, after))
        layers += [nn.BatchNorm1d(after)] if batch_norm else []
        layers.append(nn.ReLU())
        layers += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers, nn.Linear(128, 10))


TASKS = {"cnn": Plain(images, cnn, 2), "mlp": Plain(features, mlp, 20)}


def standardized(task: str) -> list[TensorDataset]:
    """The splits as most people would hold them: floats, standardized once."""
    data = TASKS[task].splits()
    inputs = data[0][0].float()
    mean, deviation = inputs.mean(), inputs.std()
    return [TensorDataset((x.float() - mean) / deviation, y) for x, y in data]


def trials(seeds: int) -> list[tuple[str, float, int]]:
    """Every (norm, dropout, seed)."""
    return list(itertools.product(*FACTORS.values(), range(seeds)))


def train(task: str, data: list[TensorDataset], norm: str, dropout: float, seed: int) -> Iterator[float]:
    """A plain training loop; yields the validation accuracy after each epoch, and measures all splits at the end."""
    torch.manual_seed(seed)
    plain = TASKS[task]
    model = plain.network(norm == "batch", dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for epoch in range(plain.epochs):
        model.train()
        for x, y in DataLoader(data[0], batch_size=BATCH_SIZE, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        if epoch == plain.epochs - 1:
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
