"""What is known of a loss function once it was tested: the facts that `loss_tests` measures and rules read."""

from __future__ import annotations

from dataclasses import dataclass

from homeostat.doctor.loss.identify import Match
from homeostat.doctor.loss.known import Expects, Known
from homeostat.doctor.loss.layout import Layout
from homeostat.doctor.loss.outputs import Seen


@dataclass(frozen=True)
class LossFacts:
    """What a loss function does; None is not known."""

    value: float
    """The loss of the batch."""
    layout: Layout
    seen: Seen
    """What the outputs look like."""
    match: Match | None = None
    """The known loss that it is."""
    meant: Known | None = None
    """The known loss that it is; where pairing or reduction is wrong, that on examples with equal targets."""
    expects: Expects | None = None
    """What outputs it takes."""
    error: str = ""
    """Why the loss could not be asked."""
    penalizes: bool = False
    """Whether it depends on parameters directly, as one with a penalty does."""
    uses_outputs: bool | None = None
    detached: bool = False
    """Whether the loss has no gradient at all with respect to outputs, though its value depends on them."""
    uses_targets: bool | None = None
    ignored: float | None = None
    """For truth values: the target value (0, 1 or -1) whose examples have no gradient."""
    paired: bool | None = None
    """Whether it matters which target belongs to which output."""
    broadcast: str = ""
    """The operation that made each example meet all others."""
    coupled: bool | None = None
    """Whether an example's gradient depends on the other examples by more than a common factor."""
    growth: float | None = None
    """The loss of a doubled batch over that of the batch: 1 for a mean, 2 for a sum."""
    agreement: float | None = None
    """Share of examples whose loss falls toward the target minus share whose loss rises, in [-1, 1]."""
    comparable: bool | None = None
    """Whether outputs can be held against targets: not log-rates, values in another unit, embeddings."""
    shifts: tuple[int, ...] = ()
    """Axes of the outputs along which adding a constant changes nothing: there is a softmax over them in the loss."""
    unbounded: bool | None = None
    """Whether the loss falls without end as outputs leave [0, 1] on the right side."""
    floor: float | None = None
    """The loss of perfect outputs within [0, 1], as a share of that of undecided ones: 0 if they reach the optimum."""
    aims: bool | None = None
    """Whether the loss is stationary where outputs equal targets."""
    blind: float | None = None
    """Regression: share of outputs near their targets that have no gradient."""
    flat: float | None = None
    """Share of the wrongly predicted rows whose gradient is zero at the model's outputs."""
    overflows: tuple[str, ...] = ()
    """Outputs at which the loss or its gradient is not finite."""
