"""Early stopping: when to end training, judged by a value that is measured once per epoch.

The rule only watches; keeping and restoring the best weights is the loop's work. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from homeostat.errors import invalid, unknown


class EarlyStopping:
    """Stop after `patience` measurements in a row without an improvement by more than `min_delta`.

    A value that is not finite is never an improvement.

    Args:
        patience: at least 1; training stops at the `patience`-th measurement in a row that is no improvement.
        min_delta: how much better than the best a value must be to count, in the value's own unit; >= 0.
        mode: "min" if smaller is better, "max" if larger is.
    Raises: InvalidValue if an argument cannot be used.
    Source: Prechelt 1998, "Early stopping - but when?", doi:10.1007/3-540-49430-8_3.
    Example:
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.update(loss, epoch) for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.1])]
        [True, True, False, False]
        >>> stopping.should_stop, stopping.best, stopping.best_epoch
        (True, 2.0, 1)
    """

    def __init__(self, patience: int, min_delta: float = 0.0, mode: str = "min") -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            cure = "1 stops at the first epoch that is no better; leave early stopping out to train all epochs."
            raise invalid("EarlyStopping", "patience", "be an integer of at least 1", patience, cure)
        if not (math.isfinite(min_delta) and min_delta >= 0):
            raise invalid("EarlyStopping", "min_delta", "be finite and at least 0", min_delta)
        if mode not in ("min", "max"):
            raise unknown("EarlyStopping", "mode", mode, ("min", "max"))
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.best: float | None = None
        """The best value so far; None before the first finite one."""
        self.best_epoch: int | None = None
        """The epoch of the best value."""
        self.waited = 0
        """How many measurements in a row were no improvement."""

    def update(self, value: float | Tensor, epoch: int) -> bool:
        """Take in the value of an epoch, a number or a tensor of one element.

        Returns: whether it is the best so far, by more than min_delta; the loop then keeps these weights.
        """
        value = float(value.detach() if isinstance(value, Tensor) else value)
        improved = math.isfinite(value) and (self.best is None or self._gain(value, self.best) > self.min_delta)
        if improved:
            self.best, self.best_epoch, self.waited = value, epoch, 0
        else:
            self.waited += 1
        return improved

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, float | int | None]:
        """What `load_state_dict` needs to go on from here; it can be written as JSON."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        """Go on from where `state_dict` was taken.

        Raises: InvalidValue if the keys are not those of `state_dict`; nothing has changed then.
        """
        if set(state) != {"best", "best_epoch", "waited"}:
            raise invalid("EarlyStopping", "state", "have the keys best, best_epoch and waited", sorted(state))
        best, epoch, waited = state["best"], state["best_epoch"], state["waited"]
        self.best = None if best is None else float(best)
        self.best_epoch = None if epoch is None else int(epoch)
        self.waited = int(waited or 0)

    def _gain(self, value: float, best: float) -> float:
        return best - value if self.mode == "min" else value - best
