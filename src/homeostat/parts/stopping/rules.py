"""Rules that say after which epoch to stop, by Prechelt's definitions: GL, PQ, UP, and patience in two meanings.

A rule takes losses, one validation loss per call: for a score that should grow, give its negative. A loss that is not
finite is worse than every number. What `EarlyStopping` does with rules, and with weights, is in `stopping`. Not random.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from homeostat.errors import invalid, invalid_type
from homeostat.parts.stopping.values import Number, State, as_number, as_numbers, from_json, to_json


class Rule(ABC):
    """What all rules have: `update` after every epoch, `criterion`, `reason`, a state that can be written as JSON.

    A rule of your own defines `start`, the state before the first epoch, with the keys criterion and stop among its
    keys, and `following`, the state after one more epoch.
    """

    needs_train_loss = False
    """Whether `update` must be given the training loss."""

    start: State

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything that was measured."""
        self._state = copy.deepcopy(self.start)

    def update(self, valid_loss: Number, train_loss: Number | Iterable[Number] | None = None) -> bool:
        """Take in an epoch's validation loss, and its training loss where the rule needs one.

        Args:
            valid_loss: smaller is better.
            train_loss: that of the epoch, or several, oldest first, where validation is measured more rarely.
        Returns: whether to stop now.
        Raises: InvalidType for what is not a number, InvalidValue where a training loss is needed and not given.
        """
        loss = as_number(repr(self), "valid_loss", valid_loss)
        self.take(self.ahead(loss, self.train_losses(train_loss)))
        return self.stopped

    def ahead(self, loss: float, train_losses: list[float]) -> State:
        """The state that `update` would lead to; nothing is changed."""
        return self.following(self._state, loss if math.isfinite(loss) else math.inf, train_losses)

    def take(self, state: State) -> None:
        """Go on from a state that `ahead` has given."""
        self._state = state

    def train_losses(self, train_loss: Number | Iterable[Number] | None) -> list[float]:
        """The training losses that the rule will see, checked; none where it needs none."""
        if not self.needs_train_loss:
            return []
        if train_loss is None:
            cure = "Progress is measured on it: update(valid_loss, train_loss)."
            raise invalid(repr(self), "train_loss", "be given", train_loss, cure)
        return as_numbers(repr(self), train_loss)

    @property
    def criterion(self) -> float:
        """The value that the rule compares with its threshold; NaN before there is one."""
        return float(self._state["criterion"])

    @property
    def stopped(self) -> bool:
        """Whether the last epoch was one to stop after."""
        return bool(self._state["stop"])

    def state_dict(self) -> State:
        """What `load_state_dict` needs to go on from here; it can be written as JSON."""
        return to_json(self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken.

        Raises: InvalidValue if the keys are not those of `state_dict`; nothing has changed then.
        """
        if set(state) != set(self.start):
            raise invalid(repr(self), "state", f"have the keys {', '.join(self.start)}", sorted(state))
        self._state = from_json(state)

    @abstractmethod
    def following(self, state: State, loss: float, train_losses: list[float]) -> State:
        """The state after an epoch with these losses; `state` itself stays as it is. A loss may be infinite."""

    @abstractmethod
    def reason(self) -> str:
        """The criterion in words, with its numbers."""


class GL(Rule):
    """Stop as soon as the generalization loss exceeds `alpha` percent.

    GL(t) = 100 (E(t) - E_opt(t)) / |E_opt(t)|, where E_opt(t) is the lowest validation loss so far. For positive losses
    this is Prechelt's 100 (E / E_opt - 1); the absolute value gives losses below zero a meaning. Above a best loss of
    exactly zero every loss is infinitely worse.

    Args:
        alpha: in percent of the best loss, > 0; Prechelt compared 1, 2, 3 and 5.
    Source: Prechelt 1998, "Early stopping - but when?", doi:10.1007/3-540-49430-8_3.
    Example:
        >>> rule = GL(alpha=12)
        >>> [rule.update(loss) for loss in (10, 8, 9)], rule.criterion
        ([False, False, True], 12.5)
    """

    start = {"best": None, "criterion": math.nan, "stop": False}  # noqa: RUF012 - copied by reset

    def __init__(self, alpha: float = 5.0) -> None:
        self.alpha = _threshold("GL", "alpha", alpha)
        super().__init__()

    def __repr__(self) -> str:
        return f"GL(alpha={self.alpha:g})"

    def following(self, state: State, loss: float, train_losses: list[float]) -> State:
        best = _best(state["best"], loss)
        criterion = generalization_loss(loss, best)
        return {"best": best, "criterion": criterion, "stop": criterion > self.alpha}

    def reason(self) -> str:
        return (
            f"{self!r}: the generalization loss is {self.criterion:.4g} %, the best loss {_shown(self._state['best'])}"
        )


class PQ(Rule):
    """Stop after a strip of epochs when the generalization loss, divided by the training progress, exceeds `alpha`.

    PQ(t) = GL(t) / P(t), with GL as in `GL` and P as in `progress`, over the strip's training losses. While training
    still makes progress, a validation loss that rises may come down again. Without progress the quotient is infinite,
    whatever GL. A strip ends with the first epoch at which `strip` training losses have come since the last one ended;
    given one per epoch, every `strip` epochs. A strip with a training loss that is not finite is not judged.

    Args:
        alpha: > 0; Prechelt compared 0.5, 0.75, 1, 2 and 3.
        strip: epochs, or training losses, in a strip; at least 2, since one loss alone shows no progress.
        min_progress: stop as well where P is at most this; Prechelt stopped every run below 0.1.
    Source: Prechelt 1998, "Early stopping - but when?", doi:10.1007/3-540-49430-8_3.
    Example:
        >>> rule = PQ(alpha=2.0, strip=2)
        >>> epochs = [(8.0, 10.0), (8.0, 9.0), (9.0, 8.8), (10.0, 8.7)]
        >>> [rule.update(valid, train) for valid, train in epochs], round(rule.criterion, 2)
        ([False, False, False, True], 4.35)
    """

    needs_train_loss = True
    start = {"best": None, "train": [], "since": 0, "progress": math.nan, "criterion": math.nan, "stop": False}  # noqa: RUF012

    def __init__(self, alpha: float = 0.75, strip: int = 5, *, min_progress: float = 0.0) -> None:
        self.alpha = _threshold("PQ", "alpha", alpha)
        self.strip = _count("PQ", "strip", strip, 2)
        self.min_progress = as_number("PQ", "min_progress", min_progress)
        if not (math.isfinite(self.min_progress) and self.min_progress >= 0):
            raise invalid("PQ", "min_progress", "be finite and at least 0", min_progress, "Prechelt used 0.1.")
        super().__init__()

    def __repr__(self) -> str:
        least = f", min_progress={self.min_progress:g}" if self.min_progress else ""
        return f"PQ(alpha={self.alpha:g}, strip={self.strip}{least})"

    def following(self, state: State, loss: float, train_losses: list[float]) -> State:
        best = _best(state["best"], loss)
        train = [*state["train"], *train_losses][-self.strip :]
        since = state["since"] + len(train_losses)
        if since < self.strip:
            return {**state, "best": best, "train": train, "since": since, "stop": False}
        advance = progress(train) if all(map(math.isfinite, train)) else math.nan
        quotient = math.inf if advance == 0 else generalization_loss(loss, best) / advance
        return {
            "best": best,
            "train": train,
            "since": 0,
            "progress": advance,
            "criterion": quotient,
            "stop": quotient > self.alpha or advance <= self.min_progress,
        }

    def reason(self) -> str:
        numbers = f"the quotient is {self.criterion:.4g}, the progress {self._state['progress']:.4g} per thousand"
        return f"{self!r}: {numbers}"


class UP(Rule):
    """Stop when the validation loss has risen over `successive` strips of epochs in a row.

    UP_s: E(t) > E(t - k) at the end of s strips of k epochs one after another, however much it rose. An equal loss is
    no rise.

    Args:
        successive: s, at least 1; Prechelt compared 2, 3, 4, 6 and 8.
        strip: k, epochs in a strip, at least 1.
    Source: Prechelt 1998, "Early stopping - but when?", doi:10.1007/3-540-49430-8_3.
    Example:
        >>> rule = UP(successive=2, strip=2)
        >>> [rule.update(loss) for loss in (9, 5, 4, 6, 5, 7)], rule.criterion
        ([False, False, False, False, False, True], 2.0)
    """

    start = {"epochs": 0, "previous": None, "criterion": 0, "stop": False}  # noqa: RUF012

    def __init__(self, successive: int, strip: int = 5) -> None:
        self.successive = _count(type(self).__name__, "successive", successive, 1)
        self.strip = _count("UP", "strip", strip, 1)
        super().__init__()

    def __repr__(self) -> str:
        return f"UP(successive={self.successive}, strip={self.strip})"

    def following(self, state: State, loss: float, train_losses: list[float]) -> State:
        epochs = state["epochs"] + 1
        if epochs % self.strip:
            return {**state, "epochs": epochs, "stop": False}
        previous = state["previous"]
        # Infinity is no number to rise from: where nothing was measured twice in a row, matters have not improved.
        rose = previous is not None and (loss > previous or math.isinf(loss))
        rises = state["criterion"] + 1 if rose else 0
        return {"epochs": epochs, "previous": loss, "criterion": rises, "stop": rises >= self.successive}

    def reason(self) -> str:
        strips = "" if self.strip == 1 else f" over strips of {self.strip} epochs"
        return f"{self!r}: {self.criterion:g} rises in a row{strips}, to {_shown(self._state['previous'])}"


class Patience(UP):
    """Stop after `n` epochs in a row in each of which the validation loss rose: UP with strips of one epoch.

    Not the patience of Keras and Lightning, which counts epochs since the best: that is `SinceBest`.

    Args:
        n: at least 1.
    Source: Prechelt 1998, doi:10.1007/3-540-49430-8_3; the name is that of EarlyStopping.jl.
    Example:
        >>> rule = Patience(2)
        >>> [rule.update(loss) for loss in (3, 4, 4, 5, 6)]
        [False, False, False, False, True]
    """

    def __init__(self, n: int = 5) -> None:
        super().__init__(_count("Patience", "n", n, 1), strip=1)

    def __repr__(self) -> str:
        return f"Patience({self.successive})"


class SinceBest(Rule):
    """Stop after `n` epochs in a row that were not better than the best by more than `min_delta`.

    Args:
        n: at least 1; the patience of Keras and Lightning.
        min_delta: in the loss's own unit, >= 0.
    Example:
        >>> rule = SinceBest(2)
        >>> [rule.update(loss) for loss in (3, 2, 4, 2.5)], rule.criterion
        ([False, False, False, True], 2.0)
    """

    start = {"best": None, "criterion": 0, "stop": False}  # noqa: RUF012

    def __init__(self, n: int = 6, min_delta: float = 0.0) -> None:
        self.n = _count("SinceBest", "n", n, 1)
        self.min_delta = as_number("SinceBest", "min_delta", min_delta)
        if not (math.isfinite(self.min_delta) and self.min_delta >= 0):
            raise invalid("SinceBest", "min_delta", "be finite and at least 0", min_delta)
        super().__init__()

    def __repr__(self) -> str:
        return f"SinceBest({self.n}{f', min_delta={self.min_delta:g}' if self.min_delta else ''})"

    def following(self, state: State, loss: float, train_losses: list[float]) -> State:
        best = state["best"]
        if math.isfinite(loss) and (best is None or best - loss > self.min_delta):
            return {"best": loss, "criterion": 0, "stop": False}
        waited = state["criterion"] + 1
        return {"best": best, "criterion": waited, "stop": waited >= self.n}

    def reason(self) -> str:
        return f"{self!r}: {self.criterion:g} epochs since the best loss, {_shown(self._state['best'])}"


def generalization_loss(loss: float, best: float | None) -> float:
    """100 (loss - best) / |best|, in percent; NaN without a best, infinite above a best of zero.

    Example:
        >>> generalization_loss(9.0, 8.0), generalization_loss(-3.0, -4.0), generalization_loss(0.0, 0.0)
        (12.5, 25.0, 0.0)
    """
    return math.nan if best is None else 100 * _relative(loss - best, best)


def progress(train_losses: Iterable[Number]) -> float:
    """How far training came within a strip, per thousand: 1000 (mean - lowest) / |lowest| of the strip's losses.

    For positive losses this is Prechelt's P(t) = 1000 (mean / lowest - 1). It is 0 where all are equal, and infinite
    where the lowest of different ones is zero.

    Args:
        train_losses: at least one; their order does not matter.
    Raises: InvalidValue if there is none.
    Source: Prechelt 1998, doi:10.1007/3-540-49430-8_3.
    Example:
        >>> progress([2, 3, 6, 7])
        1250.0
    """
    losses = as_numbers("progress", train_losses)
    if not losses:
        raise invalid("progress", "train_losses", "hold at least one loss", losses)
    lowest = min(losses)
    return 1000 * _relative(math.fsum(loss - lowest for loss in losses) / len(losses), lowest)


def stopping_time(
    rule: Rule,
    losses: Iterable[Number],
    train_losses: Iterable[Number | Iterable[Number]] | None = None,
) -> int | None:
    """The epoch, counted from 1, after which the rule would have stopped; None if it would not.

    Args:
        rule: asked as if it had seen nothing yet; it is left as it is.
        losses: validation losses, one per epoch.
        train_losses: as many training losses, for rules that need them.
    Raises: InvalidValue if the rule needs training losses and has not got them, or their number differs.
    Example:
        >>> losses = [10, 8, 9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 16]
        >>> stopping_time(GL(alpha=40), losses), stopping_time(Patience(5), losses), stopping_time(Patience(6), losses)
        (6, 12, None)
    """
    if not isinstance(rule, Rule):
        raise invalid_type("stopping_time", "rule", "be a Rule such as GL(5)", rule)
    fresh = copy.deepcopy(rule)
    fresh.reset()
    valid = list(losses)
    train: list[Any] = [None] * len(valid) if train_losses is None else list(train_losses)
    if len(train) != len(valid):
        counts = f"{len(valid)} validation and {len(train)} training losses"
        raise invalid("stopping_time", "train_losses", "be as many as losses", counts)
    return next((epoch for epoch, pair in enumerate(zip(valid, train, strict=True), 1) if fresh.update(*pair)), None)


def _relative(gap: float, base: float) -> float:
    if gap == 0:
        return 0.0
    return gap / abs(base) if base else math.copysign(math.inf, gap)


def _best(best: float | None, loss: float) -> float | None:
    return loss if math.isfinite(loss) and (best is None or loss < best) else best


def _threshold(where: str, argument: str, value: float) -> float:
    number = as_number(where, argument, value)
    if not (math.isfinite(number) and number > 0):
        raise invalid(where, argument, "be positive and finite", value)
    return number


def _count(where: str, argument: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise invalid(where, argument, f"be an integer of at least {least}", value)
    return value


def _shown(value: float | None) -> str:
    return "none yet" if value is None else f"{value:.6g}"
