"""Every claim there is, by theme, in the order in which the lectures come to them."""

from __future__ import annotations

from homeostat.claims.claim import Claim
from homeostat.claims.themes import (
    adaptation,
    convolution,
    dropout,
    dropout_average,
    dropout_training,
    early_stopping,
    entangled,
    entangled_imagenet,
    initialization,
    initialization_training,
    inputs,
    normalization_altered,
    normalization_direction,
    normalization_exact,
    normalization_training,
    normalization_use,
    normalization_why,
    optimization,
    penalties,
    regularization,
    symmetry,
)
from homeostat.errors import unknown

THEMES: dict[str, tuple[Claim, ...]] = {
    "Initialization": (
        *symmetry.CLAIMS, *initialization.CLAIMS, *initialization_training.CLAIMS, *inputs.CLAIMS,
    ),
    "Dropout": (*dropout.CLAIMS, *dropout_average.CLAIMS, *dropout_training.CLAIMS),
    "Normalization, exactly": normalization_exact.CLAIMS,
    "Normalization in training": (
        *normalization_training.CLAIMS, *normalization_altered.CLAIMS, *normalization_why.CLAIMS,
        *normalization_direction.CLAIMS,
    ),
    "Normalization in use": (*normalization_use.CLAIMS, *adaptation.CLAIMS),
    "Penalties and stopping": (*penalties.CLAIMS, *early_stopping.CLAIMS),
    "Optimization and architecture": (*optimization.CLAIMS, *convolution.CLAIMS),
    "Together": (*regularization.CLAIMS, *entangled.CLAIMS, *entangled_imagenet.CLAIMS),
}  # fmt: skip
CLAIMS: dict[str, Claim] = {claim.id: claim for claims in THEMES.values() for claim in claims}


def claim_of(id: str) -> Claim:
    """The claim of that name.

    Raises: InvalidValue for one that there is not, with the nearest.
    """
    if id not in CLAIMS:
        raise unknown("claims", "claim", id, CLAIMS)
    return CLAIMS[id]
