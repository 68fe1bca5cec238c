"""Changing a model's modules as one transaction: all of it or nothing, tried on a sample before it stands.

`Edit` collects replacements, applies them everywhere the old module is held, runs the model, takes everything back if
that fails or a new module was not reached, and brings the optimizer along. `surgery` decides what is to be replaced.
Not random.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from homeostat.errors import NoEffectWarning, invalid, invalid_type
from homeostat.parts.extended import Extended
from homeostat.parts.layers import Layer, Sample, trace_layers

_ABSENT = object()
_INTERNAL = frozenset(vars(nn.Module()))
_HOOKS = [name for name in _INTERNAL if name.startswith(("_forward", "_backward", "_is_full_backward_hook"))]
_FAST_PATHS = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}


@dataclass(frozen=True)
class Changes:
    """What a surgery did to a model; true if it did anything."""

    technique: str
    """The call, such as "set_norm_('batch')"."""
    lines: tuple[tuple[str, str], ...]
    """What was done, and the name of the layer it was done to."""
    notes: tuple[str, ...] = ()
    """What was left alone, and why."""

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """The lines."""
        return iter(self.lines)

    def __len__(self) -> int:
        """The number of lines."""
        return len(self.lines)

    def __str__(self) -> str:
        """A line for each change, then the notes."""
        changes = [f"  {where}: {what}" for what, where in self.lines] or ["  nothing changed"]
        return "\n".join([self.technique, *changes, *(f"  ({note})" for note in self.notes)])


@dataclass(frozen=True, eq=False)
class _Step:
    """One entry of one container that gets a new value; _ABSENT is no entry."""

    container: Any
    key: Any
    old: Any
    new: Any

    def do(self) -> None:
        self._write(self.new)

    def undo(self) -> None:
        self._write(self.old)

    def _write(self, value: Any) -> None:
        if value is _ABSENT:
            self.container.pop(self.key, None)
        else:
            self.container[self.key] = value


class Edit:
    """Replacements in one model under one technique; nothing happens before `apply`."""

    def __init__(self, model: nn.Module, technique: str) -> None:
        self.model = model
        self.technique = technique
        self.lines: list[tuple[str, str]] = []
        self.notes: list[str] = []
        self._steps: list[_Step] = []
        self._touched: set[nn.Module] = set()
        self._must_run: dict[nn.Module, str] = {}
        self._owners: dict[nn.Module, nn.Module] = {}
        self._extended = {module.layer: module for module in model.modules() if isinstance(module, Extended)}

    def replace(self, layer: Layer, new: nn.Module, what: str, owner: Layer | None = None) -> None:
        """Put `new` wherever the model holds the layer; its mode and hooks go with it.

        Args:
            owner: the layer whose optimizer group the parameters of `new` join; None is the layer.
        """
        old = layer.module
        new.train(old.training)
        for hooks in _HOOKS:
            setattr(new, hooks, getattr(old, hooks))  # the same dictionaries, so that the user's handles keep working
        self._put(old, new)
        self._owners[new] = (owner or layer).module
        if layer.calls:
            self._must_run[new] = layer.where
        self.lines.append((what, layer.where))

    def add(self, layer: Layer, new: nn.Module, side: str, what: str) -> None:
        """Put `new` on one side ("before" or "after") of a layer, everywhere the model holds the layer."""
        new.train(layer.module.training)
        wrapper = self._extended.get(layer.module)
        if wrapper is None:
            wrapper = Extended(layer.module, **{side: new})
            self._put(layer.module, wrapper)
            self._extended[layer.module] = wrapper
        else:
            self._steps.append(_Step(wrapper._modules, side, wrapper._modules[side], new))
            self._touched.add(wrapper)
        self._owners[new] = layer.module
        self._must_run[new] = layer.where
        self.lines.append((what, layer.where))

    def set(self, owner: nn.Module, attribute: str, value: object, where: str, what: str) -> None:
        """Set an attribute of a module: a number, or a module where a function was."""
        old = vars(owner)[attribute]
        if isinstance(value, nn.Module):
            self._steps += [
                _Step(vars(owner), attribute, old, _ABSENT),
                _Step(owner._modules, attribute, _ABSENT, value),
            ]
            self._touched.add(owner)
        else:
            self._steps.append(_Step(vars(owner), attribute, old, value))
        self.lines.append((what, where))

    def apply(self, sample: Sample | None, optimizer: Optimizer | None, no_effect: str) -> Changes:
        """Do it all, or nothing.

        Args:
            sample: the model is run on it afterwards; None trusts the replacements.
            optimizer: parameters of new modules join the group of the module they belong to; vanished ones leave.
            no_effect: why nothing changed, if nothing did; empty if the model is as asked for. It becomes a warning.
        """
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            where = self.technique.partition("(")[0]
            raise invalid_type(where, "optimizer", "be a torch.optim.Optimizer or None", optimizer)
        if not self.lines:
            if no_effect:
                text = f"{self.technique} changed nothing in {type(self.model).__name__}: {no_effect}"
                warnings.warn(text, NoEffectWarning, stacklevel=3)
            return Changes(self.technique, (), tuple(self.notes))
        self._leave_fast_paths()
        before = list(self.model.parameters())
        try:
            for step in self._steps:
                step.do()
            if sample is not None:
                self._check(sample)
        except BaseException:
            for step in reversed(self._steps):
                step.undo()
            raise
        if optimizer is not None:
            self.notes += _follow(optimizer, before, self.model, self._owners)
        return Changes(self.technique, tuple(self.lines), tuple(self.notes))

    def _put(self, old: nn.Module, new: nn.Module) -> None:
        found = list(places(self.model, old))
        if not found:
            cure = "The layer is the whole model: put it into a torch.nn.Sequential."
            raise invalid(self.technique, "model", "have its layers as parts", type(self.model).__name__, cure)
        self._steps += [_Step(container, key, old, new) for container, key in found]
        self._touched.add(old)

    def _leave_fast_paths(self) -> None:
        """torch's encoder layers have a fused path for inference that reads weights past their modules: close it."""
        for kind, flag in _FAST_PATHS.items():
            for module in self.model.modules():
                if isinstance(module, kind) and vars(module).get(flag) and self._touched & set(module.modules()):
                    self._steps.append(_Step(vars(module), flag, vars(module)[flag], 0))

    def _check(self, sample: Sample) -> None:
        """Run the changed model; raise an error if it fails or passes a new module by."""
        reached: set[nn.Module] = set()
        handles = [
            module.register_forward_hook(lambda module, args, output: reached.add(module)) for module in self._must_run
        ]
        try:
            trace_layers(self.model, sample)
        except Exception as error:
            cure = f"Changed so, the model fails on its sample with {type(error).__name__}: {error}"
            raise invalid(self.technique, "model", "run with the change", type(self.model).__name__, cure) from error
        finally:
            for handle in handles:
                handle.remove()
        for module, where in self._must_run.items():
            if module not in reached:
                cure = "The model calls it through a reference that is not a registered submodule; register it."
                condition = f"call what takes the place of {where!r}"
                raise invalid(self.technique, "model", condition, type(self.model).__name__, cure)


def places(model: nn.Module, *held: nn.Module) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) under which the model holds modules: as parts, or in plain attributes, lists or dicts."""
    sought = {id(each) for each in held}
    for module in model.modules():
        containers: list[Any] = [module._modules]
        attributes = {name: value for name, value in vars(module).items() if name not in _INTERNAL}
        containers += [value for value in attributes.values() if isinstance(value, list | dict)]
        for container in containers:
            entries = container.items() if isinstance(container, dict) else enumerate(container)
            yield from ((container, key) for key, value in entries if id(value) in sought)
        yield from ((vars(module), name) for name, value in attributes.items() if id(value) in sought)


def _follow(
    optimizer: Optimizer, before: list[nn.Parameter], model: nn.Module, owners: dict[nn.Module, nn.Module]
) -> list[str]:
    """Drop the parameters that left the model, with their state; add new ones to the group of what they belong to.

    Returns: a note for every module whose parameters found no group.
    """
    notes = []
    for new, owner in owners.items():
        trainable = [(name, parameter) for name, parameter in new.named_parameters() if parameter.requires_grad]
        group = _group_of(optimizer, owner)
        if group is None:
            if trainable:
                notes.append(f"the optimizer has no group for the new {type(new).__name__}: add its parameters")
            continue
        for name, parameter in trainable:
            group["params"].append(parameter)
            if "param_names" in group:
                group["param_names"].append(f"{type(new).__name__}.{name}")
    stays = {id(parameter) for parameter in model.parameters()}
    gone = {id(parameter): parameter for parameter in before if id(parameter) not in stays}
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        for key in {"params", "param_names"} & set(group):
            group[key][:] = [group[key][index] for index in kept]
    return notes


def _group_of(optimizer: Optimizer, owner: nn.Module) -> dict[str, Any] | None:
    """The group of a module's parameters, preferably its bias': that one is exempt from decay where anything is."""
    parameters = dict(owner.named_parameters())
    ordered = [parameters[name] for name in ("bias", "weight") if name in parameters] + list(parameters.values())
    for parameter in ordered:
        for group in optimizer.param_groups:
            if any(member is parameter for member in group["params"]):
                return group
    return None
