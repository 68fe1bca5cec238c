"""Changes of normalization, and of the mode that layers train in.

Modules are put in and exchanged by `parts.surgery`, which keeps everything else: device, dtype, mode, requires_grad,
sharing, hooks, the optimizer's groups, and its state of the parameters that stay. Not random.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.doctor.changes.change import CannotApply, Change, Safety
from homeostat.doctor.changes.places import find
from homeostat.errors import HomeostatError, NoEffectWarning, unknown
from homeostat.parts.norm import NORMS, is_norm, norm_kind
from homeostat.parts.surgery import set_norm_

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

_SAMPLE = 4  # examples that surgery runs the model on; batch statistics need more than one


@dataclass(frozen=True)
class AddNorm(Change):
    """Normalize by `kind`: behind every hidden weight layer, or in the place of the normalization that there is.

    Args:
        kind: batch, layer, group, instance or rms, as in `parts.norm.make_norm`.
        before: the classes of the layers it takes the place of; () where there are none.
    """

    kind: str
    before: tuple[str, ...] = ()

    slug: ClassVar[str] = "add-norm"
    family: ClassVar[str] = "norm"
    safety: ClassVar[Safety] = "unsafe"

    def __post_init__(self) -> None:
        if self.kind not in NORMS or self.kind == "none":
            raise unknown("AddNorm", "kind", self.kind, NORMS[:-1])

    @classmethod
    def of(cls, training: Training, kind: str) -> AddNorm:
        """The change for a training as it is."""
        found = [type(module).__name__ for module in training.model.modules() if is_norm(module)]
        return cls(kind, tuple(dict.fromkeys(found)))

    def apply(self, training: Training) -> None:
        if self._done(training.model):
            return
        sample = training.examples("train").head(_SAMPLE).inputs
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", NoEffectWarning)
                set_norm_(training.model, self.kind, sample, training.optimizer)
        except (HomeostatError, NoEffectWarning) as error:
            raise CannotApply(str(error)) from error

    def _done(self, model: nn.Module) -> bool:
        """Whether the model is normalized so already; group normalization with one group is layer normalization."""
        kinds = {self.kind, "layer"} if self.kind == "group" else {self.kind}
        norms = [module for module in model.modules() if is_norm(module)]
        old = [m for m in norms if type(m).__name__ in self.before and norm_kind(m) != self.kind]
        return bool(norms) and not old and all(norm_kind(module) in kinds for module in norms)

    @property
    def what(self) -> str:
        if self.before:
            return f"{self.kind} normalization in the place of {', '.join(self.before)}"
        return f"{self.kind} normalization behind every hidden weight layer"

    @property
    def diff(self) -> str:
        return (
            "+from homeostat.parts.surgery import set_norm_\n"
            f'+set_norm_(model, "{self.kind}", sample=next(iter(loader))[0], optimizer=optimizer)'
        )


@dataclass(frozen=True)
class BatchNormMomentum(Change):
    """Let batch normalization follow the data: its momentum, and running statistics where none were kept.

    Layers in evaluation mode are frozen and stay as they are.

    Args:
        momentum: the weight of a new batch in the running statistics, in (0, 1].
        layers: names of the layers.
        before: their momenta, as text.
    """

    momentum: float
    layers: tuple[str, ...]
    before: tuple[str, ...] = ()

    slug: ClassVar[str] = "batch-norm-momentum"
    family: ClassVar[str] = "norm"
    safety: ClassVar[Safety] = "safe"

    @classmethod
    def of(cls, training: Training, momentum: float) -> BatchNormMomentum:
        """The change for all batch norm layers of a training that are not frozen."""
        layers = {name: layer for name, layer in batch_norms(training.model).items() if layer.training}
        return cls(momentum, tuple(layers), tuple(dict.fromkeys(_momentum(layer) for layer in layers.values())))

    def apply(self, training: Training) -> None:
        named = [find(training.model, name) for name in self.layers]
        found = [layer for layer in named if isinstance(layer, _BatchNorm) and layer.training]
        if not found:
            raise CannotApply("the model has no batch normalization that trains")
        for layer in found:
            layer.momentum = self.momentum
            layer.track_running_stats = True
            if layer.running_mean is None:
                _start_tracking(layer)

    @property
    def what(self) -> str:
        return f"momentum of batch normalization {', '.join(self.before) or '?'} → {self.momentum:g}"

    @property
    def where(self) -> tuple[str, ...]:
        return self.layers

    @property
    def diff(self) -> str:
        return (
            "+for module in model.modules():\n"
            "+    if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):\n"
            f"+        module.momentum, module.track_running_stats = {self.momentum:g}, True"
        )


@dataclass(frozen=True)
class TrainMode(Change):
    """Training mode for layers that were left in evaluation mode.

    Args:
        layers: names of modules; "" is the model itself, with all its parts.
    """

    layers: tuple[str, ...] = ("",)

    slug: ClassVar[str] = "train-mode"
    family: ClassVar[str] = "mode"
    safety: ClassVar[Safety] = "safe"

    def apply(self, training: Training) -> None:
        for name in self.layers:
            (find(training.model, name) if name else training.model).train()

    @property
    def what(self) -> str:
        return "training mode"

    @property
    def where(self) -> tuple[str, ...]:
        return tuple(name for name in self.layers if name)

    @property
    def diff(self) -> str:
        return "\n".join(
            f'+model.get_submodule("{name}").train()' if name else "+model.train()" for name in self.layers
        )


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalization layers of a model by name, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def _momentum(layer: _BatchNorm) -> str:
    if not layer.track_running_stats:
        return "(not tracking)"
    return "None" if layer.momentum is None else f"{layer.momentum:g}"


def _start_tracking(layer: _BatchNorm) -> None:
    example = next((state for state in layer.parameters()), torch.zeros(()))
    zeros = torch.zeros(layer.num_features, dtype=example.dtype, device=example.device)
    layer.register_buffer("running_mean", zeros)
    layer.register_buffer("running_var", torch.ones_like(zeros))
    layer.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=example.device))
