"""What of a model is watched: its layers by name, and the parameters that belong to each. Not random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from homeostat.parts.layers import layers_of
from homeostat.parts.modes import drop_probability

_NUMPYS = (torch.float64, torch.float32, torch.float16)
_COMPILED = "_orig_mod."
_PARAMETRIZED = ".parametrizations."


@dataclass(eq=False)
class Held:
    """A parameter of the model."""

    name: str
    parameter: nn.Parameter
    layer: int
    """The place of its layer among the names."""
    heavy: bool
    """Whether it counts as its layer's weights: it has two dimensions or more, or its layer has none such."""
    optimizer: int = -1
    """The place of the optimizer that holds it; -1 if none does."""


class Anatomy:
    """Layers and parameters of a model, in the order of registration.

    Layers are what `layers_of` calls so, dropout excepted, and every other module with parameters of its own. A layer
    whose weight is computed from others (weight norm, spectral norm) counts those as its own. Compiled modules run
    without their parts being called: they have no hooks, and gradients and weights are all that is seen of them.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names: tuple[str, ...] = ()
        self.roles: list[str] = []
        """As in `Layer.role`; "other" for modules that have parameters and no role."""
        self.index: dict[nn.Module, int] = {}
        self.hooked: list[nn.Module] = []
        """The modules whose outputs are looked at."""
        self.parameters: list[Held] = []
        self._find_layers()
        self._find_parameters()
        self.moody = [module for module in model.modules() if depends_on_mode(module)]
        """Modules that compute something else in evaluation mode."""
        self.matches = 0
        """How often `match` found something new."""
        self._matched: tuple[int, ...] = ()

    def match(self, optimizers: Sequence[Optimizer]) -> None:
        """Note which optimizer holds which parameter; quick if nothing was added to them."""
        sizes = tuple(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)
        if sizes == self._matched:
            return
        self._matched = sizes
        self.matches += 1
        owners = {
            id(parameter): place
            for place, optimizer in enumerate(optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for held in self.parameters:
            held.optimizer = owners.get(id(held.parameter), -1)

    def sentinels(self) -> list[NDArray]:
        """The memory of the first and of the last trained parameters, whose values are lost when a loss is not finite.

        On the CPU only: elsewhere each look would wait for the device. Reading a value here takes 0.1 µs, a torch
        operator on it 3 µs.
        """
        trained = [held.parameter for held in self.parameters if held.optimizer >= 0]
        seen = [p for p in trained if p.device.type == "cpu" and p.numel() and is_plain(p) and p.dtype in _NUMPYS]
        return [p.detach().numpy() for p in dict.fromkeys([*seen[:1], *seen[-1:]])]

    def ordered(self, called: Sequence[int]) -> list[int]:
        """All layers: those that were called in the order of their first call, the others behind their predecessor."""
        rank = {layer: place for place, layer in enumerate(called)}
        keys: list[tuple[int, int, int]] = []
        latest = -1
        for layer in range(len(self.names)):
            latest = rank.get(layer, latest)
            keys.append((latest, layer not in rank, layer))
        return sorted(range(len(self.names)), key=keys.__getitem__)

    def _find_layers(self) -> None:
        compiled = any(
            module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
            for module in self.model.modules()
        )
        roles = {module: layer.role for module, layer in layers_of(self.model).items() if layer.role != "dropout"}
        own_names = {module: layer.name for module, layer in layers_of(self.model).items()}
        for name, module in self.model.named_modules():
            if _PARAMETRIZED in f"{name}." or not (module in roles or module._parameters):
                continue
            self.index[module] = len(self.roles)
            self.roles.append(roles.get(module, "other"))
            self.names += ((own_names.get(module, name) or type(module).__name__).replace(_COMPILED, ""),)
            if module in roles and not compiled:
                self.hooked.append(module)

    def _find_parameters(self) -> None:
        modules = dict(self.model.named_modules())
        found: list[tuple[str, nn.Parameter, int]] = []
        for name, parameter in self.model.named_parameters():
            owner = modules[name.split(_PARAMETRIZED)[0] if _PARAMETRIZED in name else name.rpartition(".")[0]]
            if owner in self.index:
                found.append((name.replace(_COMPILED, ""), parameter, self.index[owner]))
        wide = {layer for _, parameter, layer in found if parameter.dim() > 1}
        for name, parameter, layer in found:
            self.parameters.append(Held(name, parameter, layer, parameter.dim() > 1 or layer not in wide))


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module drops something in training, or normalizes by running statistics in evaluation."""
    return isinstance(getattr(module, "running_mean", None), Tensor) or drop_probability(module) > 0


def is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor is one whose values can be read: dense, on a device, not distributed."""
    return (
        tensor is not None
        and type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.is_floating_point()
        and not tensor.is_meta
    )
