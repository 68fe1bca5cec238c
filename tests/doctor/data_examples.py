"""Examples of random numbers, for the tests of what the doctor knows of data."""

import torch

from homeostat.doctor.budget import Deadline
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score

TEN = Score("multiclass", 10)
LONG = Deadline()


def examples(x, y=None):
    """A split that is held whole; targets of zero unless given."""
    x = torch.as_tensor(x)
    y = torch.zeros(len(x)) if y is None else torch.as_tensor(y)
    return Examples(x, y, len(x))


def normal(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def shuffled(values, seed=0):
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))]
