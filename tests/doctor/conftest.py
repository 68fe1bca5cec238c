"""Handwritten digits, for the tests of what the doctor knows of data."""

import pytest
import torch
from data_examples import examples
from sklearn.datasets import load_digits


@pytest.fixture(scope="module")
def digits():
    """Rows of 64 numbers in 0..16, in random order, and their classes."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.as_tensor(x.astype("float32")), torch.as_tensor(y)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))
    return x[order], y[order]


@pytest.fixture(scope="module")
def pictures(digits):
    """Digits as images, in two splits."""
    x, y = digits
    x = x.reshape(-1, 1, 8, 8) / 16
    return examples(x[:1200], y[:1200]), examples(x[1200:], y[1200:])
