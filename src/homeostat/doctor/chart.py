"""All that is known of one training when the rules are asked. Rules read it and change nothing in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from homeostat.doctor.course import Course
    from homeostat.doctor.data.baselines import Baselines
    from homeostat.doctor.data.facts import DataFacts
    from homeostat.doctor.examples import Examples
    from homeostat.doctor.loss.metamorphic import LossFacts
    from homeostat.doctor.network.probe import Probe
    from homeostat.doctor.network.structure import Structure
    from homeostat.doctor.score import Score
    from homeostat.doctor.training import Training


@dataclass
class Chart:
    """What was measured; None where something could not be had."""

    training: Training
    """A copy with the user's weights as given."""
    train: Examples
    valid: Examples
    score: Score
    structure: Structure | None
    loss: LossFacts | None
    data: DataFacts | None
    probe: Probe | None
    """One training batch, forward and backward, at the given weights."""
    late: Probe | None
    """The same after the trial."""
    course: Course
    """The trial: what happened when a copy was trained."""
    baselines: Baselines | None
    ill: str = ""
    """Why the training is ill; empty if it is not."""
