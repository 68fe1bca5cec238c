"""Folding batch normalization into the layers beside it, found by running the model and compared on every call."""

from homeostat.parts.fold.folding import Folding as Folding
from homeostat.parts.fold.folding import fold as fold
from homeostat.parts.fold.folding import plan_folding as plan_folding
