"""Early stopping: when to end training, judged by a value that is measured once per epoch, and with which weights.

`EarlyStopping` is what a training loop asks; the rules of the literature that it can be given are `GL`, `PQ`, `UP`,
`Patience` and `SinceBest`. Saving checkpoints is the loop's work. Not random.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import nn

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.parts.stopping.rules import Rule
from homeostat.parts.stopping.values import Number, as_number, direction, from_json, to_json
from homeostat.parts.stopping.weights import (
    Weights,
    check_weights,
    copies,
    copy_weights,
    restore_weights_,
    uninterrupted,
)


@dataclass(frozen=True)
class _Seen:
    """What has been measured so far; one object, so that an interruption leaves all of it or nothing."""

    best: float | None = None
    best_epoch: int | None = None
    waited: int = 0
    epoch: int | None = None
    value: float | None = None


class EarlyStopping:
    """Watch a value, say when to stop, and put the best weights back.

    After every epoch `update` is given the value; `should_stop` says whether to stop now, `stopped` why. Within
    `keeping(model)` the weights of the best epoch are kept, and put back however the block ends.

    Args:
        monitor: the name of the value where `update` is given a mapping; valid_ and val_ are one.
        min_delta: how much better than the best a value must be to count, in the value's own unit; >= 0.
        patience: stop at the `patience`-th epoch in a row without an improvement; 0 acts as 1; None: never.
        mode: "min" if smaller is better, "max" if larger is, "auto" to tell from `monitor` or fail; None: the same, but
            min where the name does not tell.
        baseline: as long as no epoch is better than this (by min_delta), none counts as an improvement for patience.
        restore_best_weights: whether `keeping` puts the best weights back.
        start_from_epoch: earlier epochs are neither judged nor remembered; the first epoch is 0.
        check_finite: stop when the value is not finite. Such a value is never an improvement.
        stopping_threshold: stop when the value is at least as good as this.
        divergence_threshold: stop when the value is worse than this.
        rules: stop when one of these says so. They are given the value, or its negative where larger is better.
        verbose: print every improvement, and why training stops.
        strict: False passes over mappings that lack `monitor`.
    Raises: InvalidValue or InvalidType if an argument cannot be used.
    Source: Prechelt 1998, doi:10.1007/3-540-49430-8_3; arguments as in Keras and Lightning.
    Example:
        >>> stopping = EarlyStopping(patience=2)
        >>> [stopping.update(loss) for loss in (3.0, 2.0, 2.5, 2.1)]
        [True, True, False, False]
        >>> stopping.should_stop, stopping.best, stopping.best_epoch
        (True, 2.0, 1)
        >>> print(stopping.stopped)
        valid_loss has not been better than 2 (epoch 1) for 2 epochs; it is 2.1 at epoch 3.
    """

    def __init__(
        self,
        monitor: str = "valid_loss",
        min_delta: float = 0.0,
        patience: int | None = 3,
        mode: str | None = None,
        baseline: float | None = None,
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
        check_finite: bool = True,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        *,
        rules: Sequence[Rule] | Rule = (),
        verbose: bool = False,
        strict: bool = True,
    ) -> None:
        if not isinstance(monitor, str):
            raise invalid_type("EarlyStopping", "monitor", "be a name", monitor, "Say patience=3 for a patience of 3.")
        self.monitor = monitor
        self.min_delta = _finite("min_delta", min_delta, least=0)
        self.patience = None if patience is None else _count("patience", patience)
        self.mode = direction("EarlyStopping", monitor, mode)
        self.baseline = None if baseline is None else _finite("baseline", baseline)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = _count("start_from_epoch", start_from_epoch)
        self.check_finite = check_finite
        self.stopping_threshold = (
            None if stopping_threshold is None else _finite("stopping_threshold", stopping_threshold)
        )
        self.divergence_threshold = (
            None if divergence_threshold is None else _finite("divergence_threshold", divergence_threshold)
        )
        self.rules = _rules(rules)
        self.verbose = verbose
        self.strict = strict
        self.best_weights: Weights | None = None
        """The weights of the best epoch, by name, where `keeping` was at work; keep them with a checkpoint."""
        self._seen = _Seen()
        self._kept: _Keeping | None = None

    # -- measuring ----------------------------------------------------------------------------------------------------

    def update(
        self,
        value: Number | Mapping[str, Any],
        epoch: int | None = None,
        train_loss: Number | Iterable[Number] | None = None,
    ) -> bool:
        """Take in the value of an epoch: a number, a tensor of one element, or a mapping that has `monitor`.

        Args:
            epoch: its number, from 0; None is the one after the last.
            train_loss: for rules such as PQ; taken from the mapping's train_loss where it has one.
        Returns: whether it is the best so far, by more than min_delta; `keeping` has then kept these weights.
        Raises: InvalidValue or InvalidType, before anything is changed.
        """
        if isinstance(value, Mapping):
            name = self._name_in(value)
            if name is None:
                return False
            train_loss = value.get("train_loss") if train_loss is None else train_loss
            value = value[name]
        number = as_number("EarlyStopping.update", self.monitor, value)
        last = -1 if self._seen.epoch is None else self._seen.epoch
        epoch = last + 1 if epoch is None else _count("epoch", epoch)
        if epoch < self.start_from_epoch:
            self._seen = replace(self._seen, epoch=epoch)
            return False
        train_loss = list(train_loss) if isinstance(train_loss, Iterator) else train_loss
        train_losses = [rule.train_losses(train_loss) for rule in self.rules]
        before = self.best
        improved = uninterrupted(lambda: self._take_in(number, epoch, train_losses))
        if self.verbose:
            self._say(improved, before)
        return improved

    @property
    def best(self) -> float | None:
        """The best value so far; None before the first finite one."""
        return self._seen.best

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best value."""
        return self._seen.best_epoch

    @property
    def waited(self) -> int:
        """How many epochs in a row were no improvement, or none beyond the baseline."""
        return self._seen.waited

    @property
    def should_stop(self) -> bool:
        """Whether to stop after the epoch that was measured last."""
        return self.stopped is not None

    @property
    def stopped(self) -> str | None:
        """Which criterion asks to stop after the epoch that was measured last, with its numbers; None to go on."""
        value, named = self._seen.value, self.monitor
        if value is None:
            return None
        at = f"at epoch {self._seen.epoch}"
        finite = math.isfinite(value)
        if self.check_finite and not finite:
            return f"{named} is {value} {at}."
        if finite and self.stopping_threshold is not None and self._gain(value, self.stopping_threshold) >= 0:
            return f"{named} is {value:.6g} {at} and has reached the stopping threshold {self.stopping_threshold:g}."
        if self.divergence_threshold is not None and self._gain(value, self.divergence_threshold) < 0:
            return f"{named} is {value:.6g} {at}, worse than the divergence threshold {self.divergence_threshold:g}."
        for rule in self.rules:
            if rule.stopped:
                return f"{rule.reason()}; {named} is {value:.6g} {at}."
        if self.patience is None or self.waited < max(self.patience, 1):
            return None
        return f"{named} has {self._wanted()} for {self.waited} epochs; it is {value:.6g} {at}."

    def reset(self) -> None:
        """Forget everything that was measured and kept."""
        for rule in self.rules:
            rule.reset()
        self._seen, self.best_weights = _Seen(), None

    # -- weights ------------------------------------------------------------------------------------------------------

    def keeping(
        self,
        model: nn.Module,
        *,
        device: torch.device | str | None = None,
        weights: Weights | None = None,
    ) -> AbstractContextManager[EarlyStopping]:
        """A block in which every improvement copies the model's weights, and at whose end the best are put back.

        They are put back when the block ends by running out, by `break` or `return`, by any exception, by Ctrl-C, and
        by a signal that a handler turns into an exception; whole, even if Ctrl-C comes again meanwhile. Weights are
        parameters and buffers, written into the model's own tensors. The optimizer's state is not part of them.

        Args:
            model: any module, wrapped (as by DataParallel) or not; the same one throughout.
            device: where the copies lie, such as "cpu"; None: beside the originals.
            weights: the best ones so far, when training goes on from a saved state: the `best_weights` of then.
        Returns: a context manager that gives this object.
        Raises: InvalidValue if a best epoch is known and its weights are not, or weights are not the model's.
        Example:
            >>> layer = nn.Linear(1, 1)
            >>> with EarlyStopping(patience=2).keeping(layer) as stopping:
            ...     for epoch, loss in enumerate([3.0, 1.0, 2.0, 4.0, 5.0]):
            ...         _ = nn.init.constant_(layer.weight, epoch)
            ...         stopping.update(loss)
            ...         if stopping.should_stop:
            ...             break
            True
            True
            False
            False
            >>> epoch, layer.weight.item()
            (3, 1.0)
        """
        if not isinstance(model, nn.Module):
            raise invalid_type("EarlyStopping.keeping", "model", "be a torch.nn.Module", model)
        return _Keeping(self, model, device, weights)

    # -- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to go on from here; it can be written as JSON. Weights are in `best_weights`."""
        seen = self._seen
        numbers = {"best": seen.best, "best_epoch": seen.best_epoch, "waited": seen.waited}
        state = to_json({**numbers, "epoch": seen.epoch, "value": seen.value})
        return {**state, "rules": [rule.state_dict() for rule in self.rules]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where `state_dict` was taken; whether to stop is judged by this object's own settings.

        Raises: InvalidValue if the keys or the rules are not those of `state_dict`; nothing has changed then.
        """
        expected = ("best", "best_epoch", "waited", "epoch", "value", "rules")
        if set(state) != set(expected):
            raise invalid("EarlyStopping", "state", f"have the keys {', '.join(expected)}", sorted(state))
        if len(state["rules"]) != len(self.rules):
            raise invalid("EarlyStopping", "state", f"be of {len(self.rules)} rules", len(state["rules"]))
        before = [rule.state_dict() for rule in self.rules]
        try:
            for rule, entry in zip(self.rules, state["rules"], strict=True):
                rule.load_state_dict(entry)
            seen = _Seen(**from_json({name: state[name] for name in expected[:-1]}))
        except BaseException:
            for rule, entry in zip(self.rules, before, strict=True):
                rule.load_state_dict(entry)
            raise
        self._seen, self.best_weights = seen, None

    # -- private ------------------------------------------------------------------------------------------------------

    def _take_in(self, value: float, epoch: int, train_losses: list[list[float]]) -> bool:
        seen = self._seen
        improved = math.isfinite(value) and (seen.best is None or self._gain(value, seen.best) > self.min_delta)
        weights = self.best_weights
        if improved and self._kept is not None:
            weights = copy_weights(self._kept.model, self._kept.device)
        signed = value if self.mode == "min" else -value
        states = [rule.ahead(signed, losses) for rule, losses in zip(self.rules, train_losses, strict=True)]
        enough = improved and (self.baseline is None or self._gain(value, self.baseline) > self.min_delta)
        # All that can fail has been done; from here on everything is taken over.
        for rule, state in zip(self.rules, states, strict=True):
            rule.take(state)
        self._seen = _Seen(
            best=value if improved else seen.best,
            best_epoch=epoch if improved else seen.best_epoch,
            waited=0 if enough else seen.waited + 1,
            epoch=epoch,
            value=value,
        )
        self.best_weights = weights
        return improved

    def _say(self, improved: bool, before: float | None) -> None:
        if improved:
            old = "" if before is None else f" from {before:.6g}"
            print(f"Epoch {self._seen.epoch}: {self.monitor} has improved{old} to {self.best:.6g}.")
        if self.stopped is not None:
            print(f"Stopping: {self.stopped}")

    def _gain(self, value: float, than: float) -> float:
        return than - value if self.mode == "min" else value - than

    def _wanted(self) -> str:
        if self.best is None:
            return "not been finite"
        beyond = self.best if self.baseline is None or self._gain(self.best, self.baseline) > 0 else self.baseline
        where = f"epoch {self.best_epoch}" if beyond == self.best else "the baseline"
        margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"not been better than {beyond:.6g} ({where}){margin}"

    def _name_in(self, values: Mapping[str, Any]) -> str | None:
        twins = {"valid_": "val_", "val_": "valid_"}
        spellings = [self.monitor]
        spellings += [
            new + self.monitor.removeprefix(old) for old, new in twins.items() if self.monitor.startswith(old)
        ]
        name = next((spelling for spelling in spellings if spelling in values), None)
        if name is None and self.strict:
            raise unknown("EarlyStopping.update", "monitor", self.monitor, values)
        return name


class _Keeping(AbstractContextManager[EarlyStopping]):
    """The block of `EarlyStopping.keeping`."""

    def __init__(
        self, stopping: EarlyStopping, model: nn.Module, device: torch.device | str | None, weights: Weights | None
    ) -> None:
        self.stopping, self.model, self.device, self.weights = stopping, model, device, weights

    def __enter__(self) -> EarlyStopping:
        stopping = self.stopping
        if stopping._kept is not None:
            cure = "Put several models into one nn.ModuleList, or give each its own EarlyStopping."
            raise invalid("EarlyStopping.keeping", "the block", "not stand in another of the same object", self, cure)
        if self.weights is not None:
            check_weights(self.model, self.weights)
        elif stopping.best is not None and stopping.restore_best_weights:
            condition = f"be given, as epoch {stopping.best_epoch} was measured before"
            cure = "Give the best_weights that go with the state, or call reset() to begin anew."
            raise invalid("EarlyStopping.keeping", "weights", condition, None, cure)
        stopping.best_weights = None if self.weights is None else copies(self.weights, self.device)
        try:
            stopping._kept = self
            return stopping
        except BaseException:  # a signal in the last moment, after which no block follows
            stopping._kept = None
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            uninterrupted(self._finish)
        finally:
            # A signal came before signals were held back. One that comes before the first line of this method has even
            # run cannot be met: nothing is written then, and best_weights still has what should have been.
            if self.stopping._kept is self:
                uninterrupted(self._finish)

    def _finish(self) -> None:
        try:
            if self.stopping.restore_best_weights and self.stopping.best_weights is not None:
                restore_weights_(self.model, self.stopping.best_weights)
        finally:
            self.stopping._kept = None


def _finite(argument: str, value: object, least: float = -math.inf) -> float:
    number = as_number("EarlyStopping", argument, value)
    if not (math.isfinite(number) and number >= least):
        condition = "be finite" if least == -math.inf else f"be finite and at least {least:g}"
        raise invalid("EarlyStopping", argument, condition, value)
    return number


def _count(argument: str, value: Any) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise invalid("EarlyStopping", argument, "be an integer of at least 0", value)
    return number


def _rules(rules: Sequence[Rule] | Rule) -> tuple[Rule, ...]:
    alone = isinstance(rules, Rule | str) or not isinstance(rules, Iterable)
    listed: tuple[Any, ...] = (rules,) if alone else tuple(rules)  # type: ignore[arg-type]
    for rule in listed:
        if not isinstance(rule, Rule):
            raise invalid_type("EarlyStopping", "rules", "be rules such as GL(5)", rule)
    return listed
