"""Changes of how far and how an optimizer steps: its rate, its kind, eps, momentum, the sign, what it holds.

All are safe: the model computes afterwards what it computed before. A change remembers the values that it was made for,
so that applying it twice is applying it once. What decays is in `regularization`, how long is trained in `schedule`.
Not random.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.held import held_by, trainable_of
from homeostat.doctor.changes.options import (
    Numbers,
    changed_line,
    momenta_of,
    option_diff,
    set_option,
    settings_of,
    shown,
)
from homeostat.errors import unknown
from homeostat.parts.penalty import split_parameters

if TYPE_CHECKING:
    from homeostat.doctor.training import Training


@dataclass(frozen=True)
class ScaleLearningRate(Change):
    """Multiply the learning rate of every group.

    Args:
        factor: > 0.
        rates: those before, one per group; see `of`.
        bases: what is multiplied: `rates`, or what stands in for them where all are 0.
        kind: the optimizer's class, for the text.
    """

    factor: float
    rates: Numbers
    bases: Numbers
    kind: str = "Optimizer"

    slug: ClassVar[str] = "scale-learning-rate"
    family: ClassVar[str] = "rate"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, factor: float) -> ScaleLearningRate:
        """The change for a training as it is."""
        optimizer = training.optimizer
        return cls(factor, settings_of(optimizer, "lr"), moving_rates(optimizer), type(optimizer).__name__)

    def apply(self, training: Training) -> None:
        if type(training.optimizer).__name__ != self.kind:
            raise CannotApply(f"the rate was that of {self.kind}, but the optimizer is {type(training.optimizer)}")
        known = dict(zip(self.rates, self._after, strict=True))
        for index, group in enumerate(training.optimizer.param_groups):
            rate = self._after[index] if index < len(self.rates) else known.get(float(group["lr"]))
            if rate is not None:
                set_option(group, "lr", rate)

    @property
    def what(self) -> str:
        return f"learning rate {shown(self.rates)} → {shown(self._after)}"

    @property
    def diff(self) -> str:
        return option_diff(self.kind, "lr", self.rates, self._after)

    @property
    def _after(self) -> Numbers:
        return tuple(base * self.factor for base in self.bases)


@dataclass(frozen=True)
class Minimize(Change):
    """Step down the loss: maximize=False, and a rate above zero."""

    kind: str = "Optimizer"
    rates: Numbers = ()

    slug: ClassVar[str] = "minimize"
    family: ClassVar[str] = "sign"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training) -> Minimize:
        """The change for a training as it is."""
        return cls(type(training.optimizer).__name__, settings_of(training.optimizer, "lr"))

    def apply(self, training: Training) -> None:
        for group in training.optimizer.param_groups:
            if group.get("maximize"):
                group["maximize"] = False
            if float(group.get("lr", 0.0)) < 0:
                set_option(group, "lr", -float(group["lr"]))

    @property
    def what(self) -> str:
        return "minimize the loss instead of maximizing it"

    @property
    def diff(self) -> str:
        if any(rate < 0 for rate in self.rates):
            return option_diff(self.kind, "lr", self.rates, tuple(abs(rate) for rate in self.rates))
        return changed_line(
            f"{self.kind}(model.parameters(), ..., maximize=True)", f"{self.kind}(model.parameters(), ...)"
        )


_KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "sgd": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
}
"""Optimizers that can be put in the place of another, with their customary settings (torch's, but RMSprop's rate is
Keras' and SGD has the usual momentum)."""
_SHARED_OPTIONS = ("weight_decay", "maximize")


@dataclass(frozen=True)
class SwapOptimizer(Change):
    """Another optimizer over the same parameters: groups, their decay and the ratio of their rates are kept.

    Args:
        name: adam, adamw, rmsprop or sgd.
        lr: of the first group that has one; None takes the customary one.
        before: the optimizer's class and rate, for the text.
    """

    name: str
    lr: float | None = None
    before: str = "Optimizer()"

    slug: ClassVar[str] = "swap-optimizer"
    family: ClassVar[str] = "optimizer"
    safety: ClassVar[Safety] = "safe"

    def __post_init__(self) -> None:
        if self.name not in _KINDS:
            raise unknown("SwapOptimizer", "optimizer", self.name, _KINDS)

    @classmethod
    def of(cls, training: Training, name: str, lr: float | None = None) -> SwapOptimizer:
        """The change for a training as it is."""
        rates = settings_of(training.optimizer, "lr")
        return cls(name, lr, f"{type(training.optimizer).__name__}(model.parameters(), lr={shown(rates)})")

    def apply(self, training: Training) -> None:
        kind, options = _KINDS[self.name]
        options = options if self.lr is None else {**options, "lr": self.lr}
        old = training.optimizer
        if type(old) is kind and float(old.param_groups[0]["lr"]) == options["lr"]:
            return
        rates = moving_rates(old) or (1.0,) * len(old.param_groups)
        first = next(rate for rate in rates if rate)
        groups = []
        for group, rate in zip(old.param_groups, rates, strict=True):
            new = {name: group[name] for name in _SHARED_OPTIONS if name in group}
            named = group.get("param_names")
            new["params"] = list(zip(named, group["params"], strict=True)) if named else list(group["params"])
            groups.append({**new, "lr": options["lr"] * abs(rate / first)})
        training.optimizer = kind(groups, **options)

    @property
    def what(self) -> str:
        return f"{self.before.partition('(')[0]} → {self._written}"

    @property
    def diff(self) -> str:
        return changed_line(f"torch.optim.{self.before}", f"torch.optim.{self._written}")

    @property
    def _written(self) -> str:
        kind, options = _KINDS[self.name]
        options = options if self.lr is None else {**options, "lr": self.lr}
        return f"{kind.__name__}(model.parameters(), {', '.join(f'{key}={value}' for key, value in options.items())})"


@dataclass(frozen=True)
class AddParameters(Change):
    """Give the optimizer every trainable parameter of the model.

    Where it holds parameters of the same shapes in the same order that are not the model's (it was made before the
    model was copied, moved or replaced), they are exchanged in their groups; otherwise those missing join the first
    group, and those that are exempt from decay, such as biases, the first group without any. Parameters of modules that
    the model keeps in plain lists and dicts count as its own.
    """

    names: tuple[str, ...] = ()
    kind: str = "Optimizer"

    slug: ClassVar[str] = "add-parameters"
    family: ClassVar[str] = "parameters"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training) -> AddParameters:
        """The change for a training as it is, with the names of what is missing."""
        held = {id(parameter) for parameter in held_by(training.optimizer)}
        names = [name for name, each in trainable_of(training.model) if id(each) not in held]
        return cls(tuple(names), type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        optimizer, model = training.optimizer, training.model
        held = {id(parameter) for parameter in held_by(optimizer)}
        own = dict(trainable_of(model))
        known = {id(parameter) for parameter in (*own.values(), *model.parameters())}
        missing = {name: each for name, each in own.items() if id(each) not in held}
        strange = [each for each in held_by(optimizer) if id(each) not in known]
        if strange and [each.shape for each in strange] == [each.shape for each in missing.values()]:
            _exchange(optimizer, strange, missing)
            return
        exempt = {id(parameter) for parameter in split_parameters(model)[1]}
        for name, parameter in missing.items():
            group = _group_for(optimizer, id(parameter) in exempt)
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(name)

    @property
    def what(self) -> str:
        return f"{len(self.names)} parameters given to the optimizer"

    @property
    def where(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name.rpartition(".")[0] for name in self.names))

    @property
    def diff(self) -> str:
        return f"+optimizer = {self.kind}(model.parameters(), ...)  # after the model has its final parts"


@dataclass(frozen=True)
class SetEps(Change):
    """Another eps, what an adaptive optimizer adds to the root of its second moment."""

    eps: float
    before: Numbers
    kind: str = "Optimizer"

    slug: ClassVar[str] = "set-eps"
    family: ClassVar[str] = "eps"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, eps: float) -> SetEps:
        """The change for a training as it is."""
        return cls(eps, settings_of(training.optimizer, "eps"), type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        groups = [group for group in training.optimizer.param_groups if isinstance(group.get("eps"), int | float)]
        if not groups:
            raise CannotApply(f"{type(training.optimizer).__name__} has no eps")
        for group in groups:
            group["eps"] = self.eps

    @property
    def what(self) -> str:
        return f"eps {shown(self.before)} → {self.eps:g}"

    @property
    def diff(self) -> str:
        return option_diff(self.kind, "eps", self.before, (self.eps,) * max(1, len(self.before)))


@dataclass(frozen=True)
class SetMomentum(Change):
    """Another share of the last step in the next: `momentum`, or the first of `betas`, with 0.999 for the second."""

    momentum: float
    before: Numbers
    kind: str = "Optimizer"

    slug: ClassVar[str] = "set-momentum"
    family: ClassVar[str] = "momentum"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, momentum: float) -> SetMomentum:
        """The change for a training as it is."""
        return cls(momentum, momenta_of(training.optimizer), type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        groups = training.optimizer.param_groups
        if not momenta_of(training.optimizer):
            raise CannotApply(f"{type(training.optimizer).__name__} has no momentum")
        for group in groups:
            if "betas" in group:
                group["betas"] = (self.momentum, 0.999)
            elif "momentum" in group:
                group["momentum"] = self.momentum
                if self.momentum == 0 and group.get("nesterov"):
                    group["nesterov"] = False

    @property
    def what(self) -> str:
        return f"momentum {shown(self.before)} → {self.momentum:g}"

    @property
    def diff(self) -> str:
        return option_diff(self.kind, "momentum", self.before, (self.momentum,) * max(1, len(self.before)))


@dataclass(frozen=True)
class UseClip(Change):
    """Clip the joint norm of all gradients, or each entry."""

    max_norm: float
    kind: Literal["norm", "value"] = "norm"

    slug: ClassVar[str] = "use-clip"
    family: ClassVar[str] = "clip"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        training.clip = (self.kind, self.max_norm)

    @property
    def what(self) -> str:
        return f"gradients clipped to {'a norm of ' if self.kind == 'norm' else '±'}{self.max_norm:g}"

    @property
    def diff(self) -> str:
        bound = f"torch.nn.utils.clip_grad_{self.kind}_(model.parameters(), {self.max_norm:g})"
        return f" loss.backward()\n+{bound}\n optimizer.step()"


def moving_rates(optimizer: Optimizer) -> Numbers:
    """The rates of the groups; where all are 0, `initial_lr`, as a scheduler leaves it, or what is customary.

    Example:
        >>> moving_rates(torch.optim.Adam([torch.zeros(1)], lr=0.0))
        (0.001,)
    """
    rates, initial = settings_of(optimizer, "lr"), settings_of(optimizer, "initial_lr")
    if any(rates):
        return rates
    if any(initial) and len(initial) == len(rates):
        return initial
    known = inspect.signature(type(optimizer)).parameters.get("lr")
    usual = [options["lr"] for kind, options in _KINDS.values() if type(optimizer) is kind]
    if known is not None and isinstance(known.default, int | float) and known.default > 0:
        usual.append(known.default)
    return (float((*usual, _KINDS["adam"][1]["lr"])[0]),) * len(rates)


def _exchange(optimizer: Optimizer, old: list[nn.Parameter], new: dict[str, nn.Parameter]) -> None:
    """Put the new parameters where the old ones are, in order; the state of the old ones goes."""
    following = iter(new.values())
    strange = {id(parameter) for parameter in old}
    for group in optimizer.param_groups:
        group["params"][:] = [next(following) if id(each) in strange else each for each in group["params"]]
    for parameter in old:
        optimizer.state.pop(parameter, None)


def _group_for(optimizer: Optimizer, exempt: bool) -> dict[str, Any]:
    groups = optimizer.param_groups
    if exempt:
        return next((group for group in groups if not group.get("weight_decay")), groups[0])
    return groups[0]
