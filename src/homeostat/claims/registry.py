"""Every claim there is, by theme, in the order in which the lectures come to them."""

from __future__ import annotations

from homeostat.claims.claim import Claim
from homeostat.claims.themes import normalization_exact
from homeostat.errors import unknown

THEMES: dict[str, tuple[Claim, ...]] = {
    "Normalization, exactly": normalization_exact.CLAIMS,
}
CLAIMS: dict[str, Claim] = {claim.id: claim for claims in THEMES.values() for claim in claims}


def claim_of(id: str) -> Claim:
    """The claim of that name.

    Raises: InvalidValue for one that there is not, with the nearest.
    """
    if id not in CLAIMS:
        raise unknown("claims", "claim", id, CLAIMS)
    return CLAIMS[id]
