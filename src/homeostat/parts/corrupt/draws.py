"""Draws of a batch in which every example has a generator of its own. Random only through these generators.

What is drawn for an example depends on its generator alone: not on its neighbors, the batch's size, the images' dtype
or the device. Draws are made on the CPU in float32 and then moved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """One generator per example; each method draws the same shape for all of them and stacks the results."""

    generators: Sequence[torch.Generator]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, shape (N, *shape)."""
        return self._stacked(lambda generator: torch.randn(shape, generator=generator, device="cpu"))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers from [low, high), shape (N, *shape)."""
        numbers = self._stacked(lambda generator: torch.rand(shape, generator=generator, device="cpu"))
        return numbers * (high - low) + low

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Integers from low to high - 1, shape (N, *shape)."""
        return self._stacked(lambda generator: torch.randint(low, high, shape, generator=generator, device="cpu"))

    def poisson(self, rates: Tensor) -> Tensor:
        """Counts with these means, on the CPU; rates of shape (N, ...), each example from its own generator."""
        rates = rates.to("cpu", torch.float32)
        counts = [torch.poisson(rate, generator) for rate, generator in zip(rates, self.generators, strict=True)]
        return torch.stack(counts)

    def _stacked(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators])
