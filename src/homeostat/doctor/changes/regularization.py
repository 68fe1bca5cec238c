"""Changes of what holds a network back: weight decay, penalties inside the loss, dropout. Not random.

All are safe: in evaluation the model computes what it computed before.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.dropping import dropping
from homeostat.doctor.changes.options import Numbers, option_diff, set_option, settings_of, shown
from homeostat.doctor.changes.places import find
from homeostat.errors import HomeostatError, NoEffectWarning
from homeostat.parts.dropout_layers import drops
from homeostat.parts.modes import drop_probability
from homeostat.parts.penalty import split_parameters
from homeostat.parts.surgery import set_dropout_

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_SAMPLE = 4
_COUPLED = ("Adam", "NAdam", "RAdam")  # torch's optimizers with both forms of decay


@dataclass(frozen=True)
class ScalePenalty(Change):
    """Multiply weight decay in every group; and, where the loss itself penalizes weights, that penalty too.

    Args:
        factor: at least 0; 0 drops the penalty.
        decays: weight_decay of every group before; see `of`.
        in_loss: whether the loss depends on the weights past the model's output.
        kind: the optimizer's class, for the text.
    """

    factor: float
    decays: Numbers
    in_loss: bool = False
    kind: str = "Optimizer"

    slug: ClassVar[str] = "scale-penalty"
    family: ClassVar[str] = "penalty"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, factor: float, in_loss: bool = False) -> ScalePenalty:
        """The change for a training as it is."""
        decays = settings_of(training.optimizer, "weight_decay")
        return cls(factor, decays, in_loss, type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        groups = [group for group in training.optimizer.param_groups if "weight_decay" in group]
        for index, group in enumerate(groups):
            decay = float(group["weight_decay"])
            before = self.decays[index] if index < len(self.decays) else decay if decay in self.decays else None
            if before is not None:
                set_option(group, "weight_decay", before * self.factor)
        if self.in_loss:
            training.loss_fn = with_penalty(training.loss_fn, self.factor)

    @property
    def what(self) -> str:
        after = tuple(decay * self.factor for decay in self.decays)
        parts = [f"weight decay {shown(self.decays)} → {shown(after)}"] if any(self.decays) else []
        parts += [f"the loss' penalty on weights × {self.factor:g}"] if self.in_loss else []
        return ", ".join(parts) or "no penalty"

    @property
    def diff(self) -> str:
        after = tuple(decay * self.factor for decay in self.decays)
        lines = [option_diff(self.kind, "weight_decay", self.decays, after)] if any(self.decays) else []
        if self.in_loss:
            scaled = "data_loss" if self.factor == 0 else f"data_loss + {self.factor:g} * penalty"
            lines.append(f"-loss = data_loss + penalty\n+loss = {scaled}")
        return "\n".join(lines)


@dataclass(frozen=True)
class AddDecay(Change):
    """Weight decay on weights where there is none; biases and normalization stay exempt."""

    weight_decay: float
    kind: str = "Optimizer"

    slug: ClassVar[str] = "add-decay"
    family: ClassVar[str] = "penalty"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, weight_decay: float) -> AddDecay:
        """The change for a training as it is."""
        return cls(weight_decay, type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        groups = [group for group in training.optimizer.param_groups if "weight_decay" in group]
        if not groups:
            raise CannotApply(f"{type(training.optimizer).__name__} knows no weight decay")
        for group in groups:
            set_option(group, "weight_decay", max(float(group["weight_decay"]), self.weight_decay))
        _exempt(training)

    @property
    def what(self) -> str:
        return f"weight decay {self.weight_decay:g} on weights"

    @property
    def diff(self) -> str:
        return (
            f"-optimizer = torch.optim.{self.kind}(model.parameters())\n"
            f"+groups = homeostat.parts.penalty.param_groups_weight_decay(model, {self.weight_decay:g})\n"
            f"+optimizer = torch.optim.{self.kind}(groups)"
        )


@dataclass(frozen=True)
class DecoupleDecay(Change):
    """Decay past the gradient's normalization, as AdamW does; moments and groups stay."""

    kind: str = "Adam"

    slug: ClassVar[str] = "decouple-decay"
    family: ClassVar[str] = "coupling"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training) -> DecoupleDecay:
        """The change for a training as it is."""
        return cls(type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        groups = training.optimizer.param_groups
        if not all("decoupled_weight_decay" in group for group in groups):
            raise CannotApply(f"{type(training.optimizer).__name__} has no decoupled form in torch")
        for group in groups:
            group["decoupled_weight_decay"] = True

    @property
    def what(self) -> str:
        return "weight decay decoupled from the gradient"

    @property
    def diff(self) -> str:
        if self.kind == "Adam":
            new = "torch.optim.AdamW(model.parameters(), ...)"
        else:
            new = f"torch.optim.{self.kind}(model.parameters(), ..., decoupled_weight_decay=True)"
        return f"-optimizer = torch.optim.{self.kind}(model.parameters(), ...)\n+optimizer = {new}"


@dataclass(frozen=True)
class ExemptDecay(Change):
    """No weight decay on biases and on normalization: they move to groups of their own, with their state."""

    kind: str = "Optimizer"

    slug: ClassVar[str] = "exempt-decay"
    family: ClassVar[str] = "exempt"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training) -> ExemptDecay:
        """The change for a training as it is."""
        return cls(type(training.optimizer).__name__)

    def apply(self, training: Training) -> None:
        _exempt(training)

    @property
    def what(self) -> str:
        return "no weight decay on biases and normalization"

    @property
    def diff(self) -> str:
        return (
            f"-optimizer = torch.optim.{self.kind}(model.parameters(), weight_decay=decay)\n"
            "+groups = homeostat.parts.penalty.param_groups_weight_decay(model, decay)\n"
            f"+optimizer = torch.optim.{self.kind}(groups)"
        )


@dataclass(frozen=True)
class SetDropout(Change):
    """Other probabilities of dropping, layer by layer; also inside attention and recurrent layers, and for paths.

    Args:
        probabilities: (name, p) of every layer.
        before: theirs, in the same order.
        functions: (p before, p) of every dropout function that `forward` calls by itself.
    """

    probabilities: tuple[tuple[str, float], ...]
    before: Numbers = ()
    functions: tuple[tuple[float, float], ...] = ()

    slug: ClassVar[str] = "set-dropout"
    family: ClassVar[str] = "dropout"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(
        cls, training: Training, factor: float, layers: tuple[str, ...] | None = None, functions: Numbers = ()
    ) -> SetDropout:
        """The probabilities of a training times `factor`, at most 1; of some layers, or of all, and of functions.

        Args:
            functions: the probabilities that `forward` calls dropout functions with; see `Probe.drops`.
        """
        modules = dict(training.model.named_modules())
        found = {name: drop_probability(module) for name, module in modules.items() if _option(module)}
        chosen = {name: p for name, p in found.items() if p > 0 and (layers is None or name in layers)}
        return cls(
            tuple((name, min(1.0, p * factor)) for name, p in chosen.items()),
            tuple(chosen.values()),
            tuple((p, min(1.0, p * factor)) for p in dict.fromkeys(functions)),
        )

    def apply(self, training: Training) -> None:
        if not self.probabilities and not self.functions:
            raise CannotApply("the model has no dropout layer, and calls no dropout function")
        for name, p in self.probabilities:
            layer = find(training.model, name)
            option = _option(layer)
            if option is None:
                raise CannotApply(f"{name!r} is no dropout layer now")
            setattr(layer, option, p)
        if self.functions:
            training.model = dropping(training.model, dict(self.functions))

    @property
    def what(self) -> str:
        before = (*self.before, *(p for p, _ in self.functions))
        after = tuple(p for _, p in (*self.probabilities, *self.functions))
        return f"dropout {shown(before)} → {shown(after)}"

    @property
    def where(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.probabilities)

    @property
    def diff(self) -> str:
        lines = [f'+model.get_submodule("{name}").p = {p:g}' for name, p in self.probabilities]
        for before, p in self.functions:
            lines += [f"-x = F.dropout(x, {before:g}, self.training)", f"+x = F.dropout(x, {p:g}, self.training)"]
        return "\n".join(lines)


@dataclass(frozen=True)
class AddDropout(Change):
    """Dropout layers in front of hidden weight layers of a model that has none."""

    p: float

    slug: ClassVar[str] = "add-dropout"
    family: ClassVar[str] = "dropout"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        sample = training.examples("train").head(_SAMPLE).inputs
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", NoEffectWarning)
                set_dropout_(training.model, self.p, sample=sample)
        except (HomeostatError, NoEffectWarning) as error:
            raise CannotApply(str(error)) from error

    @property
    def what(self) -> str:
        return f"dropout {self.p:g} in front of hidden weight layers"

    @property
    def diff(self) -> str:
        return (
            "+from homeostat.parts.surgery import set_dropout_\n"
            f"+set_dropout_(model, {self.p:g}, sample=next(iter(loader))[0])"
        )


class ScaledPenalty:
    """A loss whose dependence on weights past the model's output counts `factor` times in the gradient.

    That part of the gradient is the loss' gradient with the output held fixed. The value stays what it was.
    """

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor], factor: float) -> None:
        self.loss_fn = loss_fn
        self.factor = factor

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss of a batch."""
        loss = self.loss_fn(output, target)
        if not torch.is_grad_enabled():
            return loss
        fixed = self.loss_fn(output.detach(), target)
        if not fixed.requires_grad:
            return loss
        return loss - (1 - self.factor) * (fixed - fixed.detach())


def with_penalty(loss_fn: Callable[[Tensor, Tensor], Tensor], factor: float) -> ScaledPenalty:
    """A loss with its penalty on weights times `factor`, of the loss as the user wrote it."""
    return ScaledPenalty(loss_fn.loss_fn if isinstance(loss_fn, ScaledPenalty) else loss_fn, factor)


def _exempt(training: Training) -> None:
    """Split groups that decay, so that biases and normalization do not."""
    optimizer = training.optimizer
    exempt = {id(parameter) for parameter in split_parameters(training.model)[1]}
    for group in list(optimizer.param_groups):
        spared = [index for index, each in enumerate(group["params"]) if id(each) in exempt]
        if not group.get("weight_decay") or not spared:
            continue
        if len(spared) == len(group["params"]):
            set_option(group, "weight_decay", 0.0)
            continue
        new: dict[str, Any] = {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for key in {"params", "param_names"} & set(group):
            new[key] = [group[key][index] for index in spared]
            group[key][:] = [each for index, each in enumerate(group[key]) if index not in set(spared)]
        set_option(new, "weight_decay", 0.0)
        optimizer.param_groups.append(new)


def _option(module: nn.Module) -> str | None:
    """The attribute that holds a layer's probability of dropping."""
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return "dropout"
    if drops(module):
        return "p"
    if not drop_probability(module):
        return None
    return next((name for name in ("p", "drop_prob", "dropout", "drop_rate") if name in vars(module)), None)
