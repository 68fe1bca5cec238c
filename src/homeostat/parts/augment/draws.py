"""What augmentations draw: uniform numbers per example, a function of a seed, a part's name and the example's index.

Every part of an augmentation has a stream of its own, so that what one part draws does not depend on the others, and
treatments that differ in one part share the rest. Random in this sense alone; no random state is read or changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.kernels import philox_reference
from homeostat.seeds import derive


def part_seed(seed: Tensor, part: str) -> Tensor:
    """The stream of one part under the seed of a call; both are int64 (key, number) on the CPU.

    Example:
        >>> part_seed(torch.tensor([1, 2]), "rotate")[1]
        tensor(2)
    """
    key, number = seed.tolist()
    return torch.tensor([derive(key, part), number], device="cpu")


def uniform(seed: Tensor, examples: int, count: int, example: int) -> Tensor:
    """`count` numbers in [0, 1) for each of the examples from index `example` on: float64 (examples, count), CPU.

    Example:
        >>> seed = torch.tensor([1, 2])
        >>> torch.equal(uniform(seed, 4, 2, 0)[3:], uniform(seed, 1, 2, 3))
        True
    """
    return philox_reference.words(seed, examples, count, example).double() * 2.0**-32


def below(numbers: Tensor, count: int | Tensor) -> Tensor:
    """Integers in 0..count-1 out of numbers in [0, 1): int64."""
    return (numbers * count).long()


def between(numbers: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Numbers in [low, high] out of numbers in [0, 1]."""
    return bounds[0] + (bounds[1] - bounds[0]) * numbers


def per_example(values: Tensor, images: Tensor) -> Tensor:
    """A value per example, shape (N,), as a factor of images (N, C, H, W): on their device, in their dtype."""
    return values.to(images.device, images.dtype).view(-1, 1, 1, 1)
