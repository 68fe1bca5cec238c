"""The noises among the corruptions: Gaussian, shot, impulse and speckle. Random through the draws they are given.

Every function takes images (N, C, H, W) in [0, 1], the draws, and the constants of `constants`; what it
returns may leave [0, 1], for `corrupt` clips. No length is involved, so the scale is not used.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.parts.corrupt.constants import Constants
from homeostat.parts.corrupt.draws import Draws


def gaussian_noise(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """x + N(0, c²), value by value."""
    (deviation,) = constants
    return x + draws.normal(*x.shape[1:]).to(x) * deviation


def shot_noise(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """Poisson(c x) / c: counted photons, of which full brightness has c on average."""
    (photons,) = constants
    return draws.poisson(x.float() * photons).to(x) / photons


def impulse_noise(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """A share c of all values becomes 0 or 1, with equal chances."""
    (share,) = constants
    u = draws.uniform(*x.shape[1:]).to(x.device)
    return torch.where(u < share / 2, 0.0, torch.where(u < share, 1.0, x))


def speckle_noise(x: Tensor, draws: Draws, constants: Constants, scale: float) -> Tensor:
    """x + x N(0, c²): bright values are noisier."""
    (deviation,) = constants
    return x + x * (draws.normal(*x.shape[1:]).to(x) * deviation)
