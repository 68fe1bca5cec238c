"""The treatments' own means: the largest model of a study, in which every treatment has a mean of its own.

response = seed + treatment. Whatever interacts with whatever, it fits; what is left is how a treatment varies from seed
to seed (pure error). Its price: it says nothing of a treatment that was not run. Nothing here is random.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from homeostat.inference import LinearModel

MOST_MEANS = 512  # with more treatments the least squares would take minutes


@dataclass(frozen=True, eq=False)
class TreatmentMeans:
    """The model of the treatments' means, on the trials that count.

    Attributes:
        treatment: numbers of treatments, shape (n,).
        blocks: the block columns, shape (n, seeds - 1), summing to zero over the seeds.
    """

    treatment: np.ndarray
    blocks: np.ndarray

    @cached_property
    def numbers(self) -> list[int]:
        """The treatments that have a result."""
        return sorted(set(self.treatment.tolist()))

    @cached_property
    def linear(self) -> LinearModel:
        """The fitted model. A column of zeros stands for what has no result: nothing about it is estimable."""
        own = np.zeros((len(self.treatment), len(self.numbers) + 1))
        own[np.arange(len(own)), np.searchsorted(self.numbers, self.treatment)] = 1.0
        return LinearModel(np.hstack([own, self.blocks]))

    def contrasts(self, weights: np.ndarray) -> np.ndarray:
        """Contrasts of the coefficients from weights of the treatments in `numbers`, shape (q, len(numbers))."""
        return np.hstack([weights, np.zeros((len(weights), 1 + self.blocks.shape[1]))])

    def row(self, number: int | None) -> np.ndarray:
        """The row of a treatment's mean over the seeds, shape (1, coefficients); None is one that was not run."""
        found = np.zeros((1, self.linear.x.shape[1]))
        found[0, self.numbers.index(number) if number in self.numbers else len(self.numbers)] = 1.0
        return found

    def difference(self, number: int | None, other: int | None) -> np.ndarray:
        """The contrast of two treatments' means, shape (1, coefficients); not estimable where one has no result."""
        missing = [one for one in (number, other) if one not in self.numbers]
        return self.row(missing[0]) if missing else self.row(number) - self.row(other)
