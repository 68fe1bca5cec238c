"""Small tasks that every test of training may use."""

import pytest
import torch

from homeostat.training.task import Task


def blobs(count, generator, classes=3, size=8):
    """Noisy class patterns as uint8 images (count, 1, size, size) and their classes."""
    patterns = torch.rand(classes, 1, size, size, generator=torch.Generator().manual_seed(0)) * 160
    labels = torch.arange(count) % classes
    noise = torch.rand(count, 1, size, size, generator=generator) * 90
    return (patterns[labels] + noise).to(torch.uint8), labels


@pytest.fixture(scope="session")
def image_task():
    generator = torch.Generator().manual_seed(1)
    splits = tuple(blobs(count, generator) for count in (97, 40, 40))
    return Task(data=splits, name="blobs", default_model="mlp")


@pytest.fixture(scope="session")
def regression_task():
    generator = torch.Generator().manual_seed(2)
    splits = []
    for count in (60, 20, 20):
        x = torch.randn(count, 3, generator=generator)
        splits.append((x, x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(count, generator=generator)))
    return Task(data=tuple(splits), loss="mse", name="plane")


@pytest.fixture(scope="session")
def color_task():
    """Three classes of 28x28 color images: large enough to corrupt."""
    generator = torch.Generator().manual_seed(3)
    patterns = torch.rand(3, 3, 28, 28, generator=generator) * 160

    def split(count):
        labels = torch.arange(count) % 3
        return (patterns[labels] + torch.rand(count, 3, 28, 28, generator=generator) * 90).to(torch.uint8), labels

    return Task(data=(split(48), split(24), split(24)), name="patterns", default_model="cnn")
