"""Putting normalization, dropout and activations into a model that somebody else wrote, or taking them out.

Every function runs the model on a sample to learn which layers it has and in which order (`layers.trace_layers`), plans
all changes, makes them in place, runs the model again, and takes everything back if that fails: all or nothing.
Kept as they are: all other parameters (objects and values), device, dtype, training mode of every module,
requires_grad, sharing (a module that appears twice is replaced by one new module in both places), hooks, and the
optimizer's state.
Left alone: what attention and recurrent layers do inside, and whatever the model computes with functions instead of
modules. Initialization of a whole model is `init.initialize_`. Not random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from homeostat.errors import unknown
from homeostat.parts.activation import ACTIVATIONS, make_activation
from homeostat.parts.dropout import PLACES, check_place, set_drop_connect_, weight_layers
from homeostat.parts.dropout_layers import KINDS, check_probability, dropout_kind, make_dropout
from homeostat.parts.edit import Changes, Edit
from homeostat.parts.extended import Copy
from homeostat.parts.layers import RECTIFIERS, Layer, Sample, Trace, layers_of, trace_layers
from homeostat.parts.norm import NORMS, norm_kind
from homeostat.parts.norm_fit import fit_after, fit_in_place

__all__ = ["PLACES", "Changes", "set_activation_", "set_dropout_", "set_norm_"]

_RECTIFYING: tuple[Callable[..., Any], ...] = (
    torch.relu,
    F.relu,
    F.relu6,
    F.leaky_relu,
    F.elu,
    F.selu,
    F.gelu,
    F.silu,
    F.mish,
    F.hardswish,
)
_SQUASHING: tuple[Callable[..., Any], ...] = (torch.tanh, torch.sigmoid, F.tanh, F.sigmoid, F.hardsigmoid)


def set_norm_(model: nn.Module, kind: str, sample: Sample, optimizer: Optimizer | None = None) -> Changes:
    """Make `kind` the normalization of a model: replace its normalization layers, or add some if it has none.

    With "none" every normalization layer becomes the identity. With another kind, layers of other kinds are replaced
    and take over the old scale and shift where the sizes agree; a layer that has the kind already stays. If no
    normalization layer runs, one is put after every hidden weight layer: every Linear or convolution that runs, but for
    the last and those whose output the model returns.

    Args:
        model: changed in place.
        kind: batch, layer, group, instance, rms or none, as in `norm.make_norm`.
        sample: what the model is called with, on its device: a tensor, a tuple of arguments or a mapping of keywords.
        optimizer: one that holds the model's parameters already. Parameters of new layers join the group of the layer
            they belong to (of its bias, if it has one); those of removed layers leave it together with their state.
    Returns: what changed; a NoEffectWarning is given if the model could not become what was asked for.
    Raises: InvalidValue if the kind cannot apply to a layer (named, with the reason), and as `layers.trace_layers`
        does; the model is unchanged then.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(set_norm_(model, "batch", torch.zeros(3, 4)))
        set_norm_('batch')
          0: LastAxisBatchNorm added after Linear
    """
    if kind not in NORMS:
        raise unknown("set_norm_", "kind", kind, NORMS)
    trace = trace_layers(model, sample)
    edit = Edit(model, f"set_norm_({kind!r})")
    norms = [*trace.of("norm"), *(layer for layer in trace.idle if layer.role == "norm")]
    if kind == "none":
        for layer in norms:
            edit.replace(layer, Copy() if layer.changed_in_place else nn.Identity(), f"{layer.kind} removed")
    elif trace.of("norm"):
        for layer in norms:
            if norm_kind(layer.module) != kind:
                _replace_norm(edit, trace, layer, kind)
    else:
        for layer in trace.hidden():
            new = fit_after(layer, kind)
            edit.add(layer, new, "after", f"{type(new).__name__} added after {layer.kind}")
    return edit.apply(sample, optimizer, _why_no_norm(trace, kind))


def set_dropout_(
    model: nn.Module, p: float, where: str = "hidden", *, sample: Sample, kind: str | None = None
) -> Changes:
    """Make p the probability of dropout in a model: set it in its dropout layers, or add some if it has none.

    "input" is what happens before the first weight layer (Linear, convolution, attention, recurrent), "hidden" what
    happens behind it, "all" both. Dropout layers that are there already get p; with 0 they stay and do nothing. Where
    there are none, a dropout layer is put in front of weight layers: for "input" the first and others that read the
    model's input, for "hidden" the rest.

    Args:
        model: changed in place.
        p: the probability of dropping a unit, in [0, 1].
        where: "hidden", "input" or "all".
        sample: what the model is called with, on its device: a tensor, a tuple of arguments or a mapping of keywords.
        kind: as in `dropout.make_dropout`: element, channel, alpha or gaussian; layers of other kinds are replaced.
            "connect" drops weights instead, see `dropout.set_drop_connect_`, and sets p = 0 in dropout layers. None
            leaves layers what they are, and adds "element".
    Returns: what changed; a NoEffectWarning is given if the model could not become what was asked for.
    Raises: InvalidValue if p, where or kind cannot be used, and as `layers.trace_layers` does; the model is unchanged
        then.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(set_dropout_(model, 0.5, sample=torch.zeros(3, 4)))
        set_dropout_(0.5, 'hidden')
          2: Dropout(0.5) added before Linear
    """
    check_probability("set_dropout_", p)
    check_place("set_dropout_", where)
    if kind is not None and kind not in (*KINDS, "connect"):
        raise unknown("set_dropout_", "kind", kind, (*KINDS, "connect"))
    trace = trace_layers(model, sample)
    settings = f"{p:g}, {where!r}" if kind is None else f"{p:g}, {where!r}, kind={kind!r}"
    edit = Edit(model, f"set_dropout_({settings})")
    places = {"input": _input_dropout(trace), "hidden": _hidden_dropout(trace)}
    chosen = list(places.values()) if where == "all" else [places[where]]
    if kind == "connect":
        return _connect(edit, chosen, p, where, sample)
    for existing, targets in chosen:
        for layer in existing:
            _set_dropout(edit, trace, layer, p, kind)
        if not existing and p > 0:
            for layer in targets:
                new = make_dropout(p, kind or "element", _dims(layer))
                edit.add(layer, new, "before", f"{type(new).__name__}({p:g}) added before {layer.kind}")
    if "dropout" in trace.functional:
        edit.notes.append("it also drops with functions of torch.nn.functional, which stay")
    reachable = any(existing or targets for existing, targets in chosen)
    return edit.apply(sample, None, _why_no_dropout(trace, p, where, reachable))


def set_activation_(
    model: nn.Module, name: str, sample: Sample | None = None, optimizer: Optimizer | None = None
) -> Changes:
    """Make `name` the activation function of a model's activation modules.

    Attributes that hold a function such as torch.relu or F.gelu, as in torch's encoder layers, change too. Left alone,
    with a note, are activations behind the last weight layer, which shape the output (known only with a sample), and in
    models that have rectifiers sigmoid, tanh and their kin, which gate or bound something there.

    Args:
        model: changed in place. Functions that its forward calls by themselves cannot be changed.
        name: as in `activation.make_activation`.
        sample: what the model is called with, on its device; with one, the changed model is tried on it.
        optimizer: one that holds the model's parameters already; those of a replaced PReLU leave it.
    Returns: what changed; a NoEffectWarning is given if the model could not become what was asked for.
    Raises: InvalidValue for an unknown name, and as `layers.trace_layers` does; the model is unchanged then.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), nn.Sigmoid())
        >>> print(set_activation_(model, "gelu", torch.zeros(3, 4)))
        set_activation_('gelu')
          1: ReLU → gelu
          ('3' (Sigmoid) shapes the output: left alone)
    """
    if name not in ACTIVATIONS:
        raise unknown("set_activation_", "activation", name, ACTIVATIONS)
    trace = None if sample is None else trace_layers(model, sample)
    edit = Edit(model, f"set_activation_({name!r})")
    every_layer = list(layers_of(model).values()) if trace is None else [*trace.layers, *trace.idle]
    layers = [layer for layer in every_layer if layer.role == "activation"]
    functions = list(_function_attributes(model))
    rectifies = any(isinstance(layer.module, RECTIFIERS) for layer in layers)
    rectifies = rectifies or any(function in _RECTIFYING for *_, function in functions)
    settled = 0
    for layer in layers:
        if trace is not None and layer.first > trace.end():
            edit.notes.append(f"{layer.title} shapes the output: left alone")
        elif rectifies and not isinstance(layer.module, RECTIFIERS):
            edit.notes.append(f"{layer.title} gates or bounds something: left alone")
        elif isinstance(layer.module, type(make_activation(name))):
            settled += 1
        else:
            edit.replace(layer, _activation(name), f"{layer.kind} → {name}")
    for owner, attribute, where, function in functions:
        if rectifies and function not in _RECTIFYING:
            edit.notes.append(f"{where!r} ({function.__name__}) gates or bounds something: left alone")
        elif function.__name__ == name:
            settled += 1
        else:
            edit.set(owner, attribute, _activation(name), where, f"{function.__name__} → {name}")
    why = "; ".join(edit.notes) or "it has no activation modules, and functions called in forward cannot be changed"
    return edit.apply(sample, optimizer, "" if settled else why)


def _input_dropout(trace: Trace) -> tuple[list[Layer], list[Layer]]:
    """The dropout layers on the model's input, and the weight layers to put some in front of."""
    return [layer for layer in trace.of("dropout") if layer.reads_input or layer.first < trace.start()], trace.inputs()


def _hidden_dropout(trace: Trace) -> tuple[list[Layer], list[Layer]]:
    """The same for what is behind; dropout layers that did not run count as hidden."""
    on_input, _ = _input_dropout(trace)
    layers = [layer for layer in (*trace.layers, *trace.idle) if layer.role == "dropout" and layer not in on_input]
    return layers, weight_layers(trace, "hidden")


def _set_dropout(edit: Edit, trace: Trace, layer: Layer, p: float, kind: str | None) -> None:
    """Give a dropout layer that is there p, or replace it by one of another kind."""
    old = dropout_kind(layer.module)
    if kind is not None and kind != old:
        before = trace.before(layer)
        fits = before is not None and len(layer.input_shape) == _dims(before) + 2
        new = make_dropout(p, kind, _dims(before) if before is not None and fits else 0)
        edit.replace(layer, new, f"{layer.kind} → {type(new).__name__}({p:g})")
    elif layer.module.p != p:
        check_probability("set_dropout_", p, layer.module)
        edit.set(layer.module, "p", p, layer.where, f"p {layer.module.p:g} → {p:g}")


def _connect(
    edit: Edit, chosen: list[tuple[list[Layer], list[Layer]]], p: float, where: str, sample: Sample
) -> Changes:
    """Drop weights instead of units."""
    for layer in (layer for existing, _ in chosen for layer in existing):
        if layer.module.p != 0:
            edit.set(layer.module, "p", 0.0, layer.where, f"p {layer.module.p:g} → 0")
    silenced = edit.apply(sample, None, "")
    connected = set_drop_connect_(edit.model, p, where, sample=sample)
    return Changes(edit.technique, silenced.lines + connected.lines, silenced.notes + connected.notes)


def _dims(layer: Layer) -> int:
    """How many spatial dimensions a weight layer's inputs have: 0 for a Linear."""
    return len(layer.module.kernel_size) if isinstance(layer.module, _ConvNd) else 0


def _replace_norm(edit: Edit, trace: Trace, layer: Layer, kind: str) -> None:
    previous = trace.before(layer)
    new = fit_in_place(layer, kind, previous)
    if new is None:
        edit.notes.append(f"{layer.title} never ran on the sample: left alone")
        return
    owner = layer if previous is None or list(layer.module.parameters()) else previous
    edit.replace(layer, new, f"{layer.kind} → {type(new).__name__}", owner)


def _why_no_norm(trace: Trace, kind: str) -> str:
    """Why no normalization layer could be changed or added; empty if the model has what was asked for."""
    if kind == "none":
        functional = "norm" in trace.functional
        return "it normalizes with functions of torch.nn.functional, which cannot be removed" if functional else ""
    if trace.of("norm"):
        return ""
    return _no_weights(trace) or "its weight layers are all output layers, and those are not normalized"


def _why_no_dropout(trace: Trace, p: float, where: str, reachable: bool) -> str:
    """Why no dropout layer could be set or added; empty if the model has what was asked for."""
    if p == 0:
        return "it drops with functions of torch.nn.functional" if "dropout" in trace.functional else ""
    if reachable:
        return ""
    return _no_weights(trace) or f"it has no weight layer to drop in front of for where={where!r}"


def _no_weights(trace: Trace) -> str:
    return "" if trace.of("weight") else "no Linear or convolution is called as a module in it"


def _activation(name: str) -> nn.Module:
    """The identity must not hand on the memory of its input: a user may write into what an activation returned."""
    return Copy() if name == "identity" else make_activation(name)


def _function_attributes(model: nn.Module) -> Iterator[tuple[nn.Module, str, str, Callable[..., Any]]]:
    """Every attribute in the model that holds a known activation function: owner, attribute, full name, function."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if any(value is function for function in (*_RECTIFYING, *_SQUASHING)):
                yield module, attribute, f"{name}.{attribute}" if name else attribute, value
