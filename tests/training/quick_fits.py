"""Short fits for the tests of settings."""

import torch

from homeostat.training.recipe import Recipe


def quick(**settings):
    """A recipe of two short epochs."""
    return Recipe(epochs=2, batch_size=16, lr=0.01, widths=(8,), **settings)


def weights(fitted):
    """All parameters of a fit in one vector."""
    return torch.cat([parameter.detach().flatten() for parameter in fitted.model.parameters()])
