"""Maximum pooling by 2x2 in plain torch: fallback and truth for `kernels.max_pool`. Not random."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.kernels.layout import memory_format


def pool(input: Tensor) -> tuple[Tensor, Tensor]:
    """See `homeostat.kernels.max_pool.max_pool`."""
    output, indices = F.max_pool2d(input, 2, return_indices=True)
    width = input.shape[3]
    return output, (indices // width % 2 * 2 + indices % width % 2).to(torch.uint8)


def spread(grad: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """See `homeostat.kernels.max_pool.max_pool_spread`."""
    form = memory_format(grad)
    spread = grad.new_empty((*grad.shape[:2], height, width)).contiguous(memory_format=form).zero_()
    for place, part in enumerate(_parts(spread, places)):
        part.copy_(grad.where(places == place, 0))
    return spread


def pick(input: Tensor, places: Tensor) -> Tensor:
    """See `homeostat.kernels.max_pool.max_pool_pick`."""
    picked = torch.zeros_like(places, dtype=input.dtype)
    for place, part in enumerate(_parts(input, places)):
        picked = torch.where(places == place, part, picked)
    return picked


def _parts(tensor: Tensor, places: Tensor) -> list[Tensor]:
    """For each place in a window, that value of all windows."""
    height, width = places.shape[2:]
    return [tensor[:, :, row : 2 * height : 2, column : 2 * width : 2] for row in (0, 1) for column in (0, 1)]
