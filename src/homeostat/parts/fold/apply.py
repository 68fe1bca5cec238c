"""From a dataflow to a plan of folding, and from the plan to a changed model. Not random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from homeostat.nn.dropout import DropPath
from homeostat.parts.activation import make_activation
from homeostat.parts.dataflow import Dataflow, Value, replace
from homeostat.parts.dropout import is_dropout
from homeostat.parts.edit import places
from homeostat.parts.fold.layers import (
    WEIGHTED,
    Norm,
    Refusal,
    Slot,
    Unfit,
    Weighted,
    norm_layers,
    title_of,
    weighted_layers,
)
from homeostat.parts.fold.match import Matcher, Step
from homeostat.parts.fold.rewrite import Rewriting
from homeostat.parts.fold.weights import absorb_before, absorb_behind, per_channel
from homeostat.parts.norm import norm_kind

_INTERNAL = frozenset(vars(nn.Module()))


class AddActivation(nn.Module):
    """What is left of a layer of `homeostat.nn` when its normalization is folded: activation(input + residual)."""

    def __init__(self, activation: str | None = None) -> None:
        super().__init__()
        self.activation = make_activation(activation or "identity")

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """The sum, activated."""
        return self.activation(input if residual is None else input + residual)


@dataclass(eq=False)
class Plan:
    """What is to be done to a model, in the order of execution."""

    steps: list[list[Step]] = field(default_factory=list)
    """All that one norm needs, for every norm."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Norms that stay, with the reason."""
    idle: list[tuple[str, str]] = field(default_factory=list)
    """The same for those that did not run."""
    rewritings: dict[nn.Module, Rewriting] = field(default_factory=dict)
    """Modules whose forward changes."""
    biases: dict[Weighted, Slot] = field(default_factory=dict)
    """Where layers without a bias get theirs."""


def make_plan(flow: Dataflow) -> Plan:
    """Decide for every batch normalization of a model."""
    weighted = weighted_layers(flow)
    matcher = Matcher(flow, weighted)
    plan = Plan()
    for norm in norm_layers(flow):
        if isinstance(norm, Unfit):
            plan.refused.append((norm.title, norm.reason))
            continue
        try:
            steps = matcher.steps(norm)
            _prepare(flow, plan, norm, steps)
        except Refusal as refusal:
            plan.refused.append((norm.title, str(refusal)))
        else:
            plan.steps.append(steps)
    read = {id(value.tensor) for value in flow.values if value.consumers}
    for module in flow.model.modules():
        ran = id(getattr(module, "running_mean", None)) in read or flow.calls_of(module)
        if norm_kind(module) == "batch" and not ran:
            plan.idle.append((title_of(flow, module), "it did not run on the sample"))
    return plan


def apply_(model: nn.Module, plan: Plan) -> nn.Module:
    """Do it, in place; returns the model, or what takes its place if it is rewritten itself."""
    for step in (step for steps in plan.steps for step in steps):
        _absorb(step, step.layer.bias or plan.biases.get(step.layer))
    norms = [steps[0].norm for steps in plan.steps]
    model = _put(model, {norm.module: _rest(norm) for norm in norms if norm.form != "call"})
    for module in reversed([module for module in model.modules() if module in plan.rewritings]):  # inner ones first
        model = _put(model, {module: plan.rewritings[module].build()})
    return model


def strip_dropout_(model: nn.Module, flow: Dataflow) -> tuple[nn.Module, tuple[str, ...]]:
    """Replace dropout by the identity, and layers that drop their weights by torch's; those with hooks stay.

    Returns: the model, and the names and classes of the layers.
    """
    removed = []
    identities: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            continue
        title = title_of(flow, module)
        if _drops_weights(module):
            module.__class__ = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn."))
            removed.append(title)
        elif _drops(module, flow):
            identities[module] = _stand_in(module, nn.Identity())
            removed.append(title)
    return _put(model, identities), tuple(removed)


def _prepare(flow: Dataflow, plan: Plan, norm: Norm, steps: list[Step]) -> None:
    """Find where missing biases go and which forwards change; note it in the plan only if all of it can be done."""
    rewritings: dict[nn.Module, Rewriting] = {}
    biases: dict[Weighted, Slot] = {}
    changes: list[Callable[[], None]] = []

    def rewriting(module: nn.Module) -> Rewriting:
        found = plan.rewritings.get(module) or rewritings.get(module) or Rewriting(flow, module)
        rewritings[module] = found
        return found

    if norm.form == "call":
        assert norm.mean is not None
        changes.append(rewriting(norm.module).dropping(norm.mean, len(norm.nodes)))
    for layer in (step.layer for step in steps if _needs_bias(step, plan)):
        if layer.reads_own_bias or _reads_bias(flow, layer):
            biases[layer] = Slot(layer.weight.owner, "bias")
        else:
            modules = {node.module for node in layer.nodes}
            if len(modules) > 1:
                raise Refusal(f"{layer.title} has no bias, and several modules call it")
            user = modules.pop()
            name, change = rewriting(user).biasing(layer)
            biases[layer] = Slot(user, name)
            changes.append(change)
    for change in changes:
        change()
    plan.rewritings.update(rewritings)
    plan.biases.update(biases)


def _needs_bias(step: Step, plan: Plan) -> bool:
    shifted = bool(per_channel(step.norm.shift, step.channels, 0.0).any())
    return shifted and step.layer.bias is None and step.layer not in plan.biases


class _Watch(TorchFunctionMode):
    """Looks whether a function is called with a certain bias."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = bias
        self.seen = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.seen |= func in WEIGHTED and any(each is self.bias for each in (*args, *kwargs.values()))
        return func(*args, **kwargs)


def _reads_bias(flow: Dataflow, layer: Weighted) -> bool:
    """Whether a module with a forward of its own would read a bias where it has none: tried with zeros."""
    owner, weight = layer.weight.owner, layer.weight.tensor
    missing = owner._parameters.get("bias", owner) is None
    if not missing or weight is None or any(node.module is not owner for node in layer.nodes):
        return False
    call = flow.calls_of(owner)[0]
    args, kwargs = replace((call.args, call.kwargs), Value, lambda value: value.tensor)
    made = layer.nodes[0].outputs[0].tensor
    bias = nn.Parameter(weight.detach().new_zeros(made.shape[layer.axis]))
    watch = _Watch(bias)
    owner._parameters["bias"] = bias
    try:
        with torch.no_grad(), watch:
            owner(*args, **kwargs)
    except Exception:  # whatever a user's module raises, it does not take a bias
        return False
    finally:
        owner._parameters["bias"] = None
    return watch.seen


@torch.no_grad()
def _absorb(step: Step, slot: Slot | None) -> None:
    """Fold one norm into one layer, whose bias is or will be at the slot."""
    layer, norm = step.layer, step.norm
    old = layer.weight.held()
    held = None if slot is None else slot.tensor
    scale, shift = per_channel(norm.scale, step.channels, 1.0), per_channel(norm.shift, step.channels, 0.0)
    shift = shift / step.factor if step.behind else shift * step.factor
    absorb = absorb_behind if step.behind else absorb_before
    bias = None if held is None else held.to("cpu", torch.float64)
    new_weight, new_bias = absorb(layer, old.to("cpu", torch.float64), bias, scale, shift)
    layer.weight.put(torch.empty_like(old).copy_(new_weight), old)
    if slot is not None and new_bias is not None:
        slot.put(torch.empty(new_bias.shape, dtype=old.dtype, device=old.device).copy_(new_bias), old)


def _rest(norm: Norm) -> nn.Module:
    """What stays in the place of a norm."""
    activation = getattr(norm.module, "activation", None) if norm.form == "fused" else None
    if norm.form == "fused" and any(len(node.args) + len(node.kwargs) > 1 for node, *_ in norm.nodes):
        return _stand_in(norm.module, AddActivation(activation))
    return _stand_in(norm.module, make_activation(activation or "identity"))


def _drops(module: nn.Module, flow: Dataflow) -> bool:
    """Whether a module is dropout: by class, or by name and by having done nothing in the run."""
    if module.state_dict() or module._modules:
        return False
    calls = flow.calls_of(module)
    if any(call.inputs[:1] != call.outputs for call in calls):
        return False
    known = type(module).__module__.startswith(("torch.nn.", "homeostat.nn."))
    if known:
        constant = getattr(module, "mode", "inverted") == "scaled"  # then it does something in evaluation
        return (is_dropout(module) or isinstance(module, DropPath)) and not constant
    return bool(calls) and "drop" in type(module).__name__.lower()


def _drops_weights(module: nn.Module) -> bool:
    """Whether a module is a DropConnect layer of homeostat.nn that does in evaluation what torch's layer does."""
    ours = type(module).__module__.startswith("homeostat.nn.") and isinstance(module, nn.Linear | _ConvNd)
    return ours and getattr(module, "activation", None) is None


def _stand_in(old: nn.Module, new: nn.Module) -> nn.Module:
    """`new` with the settings of `old`, which somebody may read."""
    for name, value in vars(old).items():
        if name not in _INTERNAL and name != "forward" and not hasattr(new, name):
            vars(new)[name] = value
    return new.train(old.training)


def _put(model: nn.Module, changed: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put modules in the places of others; returns the model, or what takes its own place."""
    for container, key in list(places(model, *changed)):
        container[key] = changed[container[key]]
    return changed.get(model, model)
