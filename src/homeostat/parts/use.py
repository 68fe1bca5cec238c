"""A whole model on homeostat's layers, or back on torch's: every layer gets another class and stays the same object.

Nothing else changes: parameters, buffers, hooks, names, mode, parametrizations and every reference to a layer are its
own attributes, and those stay. Left alone are layers with a forward of their own (subclasses, lazy and scripted ones),
synchronized batch normalization, and what the model computes with functions instead of modules. Not random.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

from homeostat import nn as fast
from homeostat.errors import NoEffectWarning, invalid, invalid_type, unknown
from homeostat.parts.norm import is_norm

LAYERS: tuple[str, ...] = ("homeostat", "torch")
"""What `use` can put a model on."""

_NAMES = (
    *("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"),
    *("GroupNorm", "LayerNorm", "RMSNorm"),
    *("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout", "MaxPool2d"),
)
_FAST: dict[type[nn.Module], type[nn.Module]] = {getattr(nn, name): getattr(fast, name) for name in _NAMES}
_TORCH = {ours: theirs for theirs, ours in _FAST.items()}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "activation": (None, "identity"),
    "unbiased": (True,),
    "mode": ("inverted",),
    "backend": (None, "numba", "triton", "reference"),
}
"""The settings that torch's layers do not have, and the values with which they do what torch's do."""


@dataclass(frozen=True, eq=False)
class Use:
    """What `use` does to a model: which layers get another class, and which stay as they are, and why."""

    layers: str
    """Whose layers they become: "homeostat" or "torch"."""
    swapped: tuple[tuple[str, nn.Module, type[nn.Module]], ...]
    """Names (all of them, of a shared layer), the layer and its new class."""
    left: tuple[tuple[str, nn.Module, str], ...]
    """Names, the layer and the reason."""
    refused: tuple[tuple[str, nn.Module, str], ...]
    """The same for layers that would change their results; with any of them nothing can be applied."""
    settled: int
    """How many layers were as wanted already."""

    def apply(self) -> None:
        """Change the classes: all of them, or none.

        Raises: InvalidValue, naming the layers, if any would change its results.
        """
        if self.refused:
            text = "; ".join(f"{where!r} ({_kind(module)}) has {why}" for where, module, why in self.refused)
            cure = "torch.nn's layers have no such setting: put it into the model's forward and unset it first."
            raise invalid("use", "model", "be without layers that torch.nn cannot express", text, cure)
        for _, module, new in self.swapped:
            for name in _PLAIN:
                vars(module).pop(name, None)  # to torch: a setting that says what torch does
            become_(module, new)
            if isinstance(module, _DropoutNd) and not isinstance(module.p, int):
                module.p = float(module.p)  # torch's layers take NumPy's numbers too

    def __len__(self) -> int:
        """How many layers get another class."""
        return len(self.swapped)

    def __str__(self) -> str:
        """A line per class, then one per layer that stays."""
        kinds = Counter((_kind(module), new) for _, module, new in self.swapped)
        lines = [f"  {count:4d} × {kind} → {_home(new)}.{new.__name__}" for (kind, new), count in kinds.items()]
        lines += [f"  {self.settled:4d} already there"] if self.settled else []
        lines += [f"  refused: {where!r} ({_kind(module)}) has {why}" for where, module, why in self.refused]
        lines += [f"  left: {where!r} ({_kind(module)}): {why}" for where, module, why in self.left]
        return "\n".join([f"use({self.layers!r}): {len(self)} layers", *lines])


def use(model: nn.Module, layers: str = "homeostat") -> nn.Module:
    """Put a model's normalization, dropout and 2-d pooling layers on homeostat's kernels, or back on torch's.

    Outputs stay equal, in training (but for which units dropout drops) and evaluation; so do state_dict, parameters,
    hooks, names and all references, such as an optimizer's. `plan_use` says beforehand what will happen.

    Args:
        model: any module, a single layer too; changed in place. It may be compiled: it compiles anew.
        layers: "homeostat", or "torch" for the way back, for torch.jit.script and other tools that know torch's alone.
    Returns: the model itself.
    Raises: InvalidValue for unknown layers, and, before anything is changed, where a layer has a setting that torch's
        cannot express: a fused activation, `unbiased=False`, a dropout's `mode="scaled"`.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> use(model)[1]
        BatchNorm1d(8, ...)
        >>> type(model[1]).__module__, type(use(model, "torch")[1]).__module__
        ('homeostat.nn.batchnorm', 'torch.nn.modules.batchnorm')
    """
    plan = plan_use(model, layers)
    plan.apply()
    if not plan.swapped and not plan.settled:
        why = (
            f"no layer of it can be swapped.\n{plan}"
            if plan.left
            else "it has no modules that normalize, drop or pool."
        )
        text = f"use({layers!r}) changed nothing in {type(model).__name__}: {why}"
        warnings.warn(text, NoEffectWarning, stacklevel=2)
    return model


def plan_use(model: nn.Module, layers: str = "homeostat") -> Use:
    """What `use` would do; nothing is changed.

    Args:
        model, layers: as for `use`.
    Returns: a `Use`; printed, it is a table.
    Example:
        >>> class Own(nn.LayerNorm):
        ...     def forward(self, input):
        ...         return super().forward(input.float())
        >>> print(plan_use(nn.Sequential(nn.LayerNorm(4), Own(4), nn.LayerNorm(4))))
        use('homeostat'): 2 layers
             2 × LayerNorm → homeostat.nn.LayerNorm
          left: '1' (Own): a subclass of LayerNorm
    """
    if not isinstance(model, nn.Module):
        raise invalid_type("use", "model", "be a torch.nn.Module", model)
    if layers not in LAYERS:
        raise unknown("use", "layers", layers, LAYERS)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    swapped: list[tuple[str, nn.Module, type[nn.Module]]] = []
    left: list[tuple[str, nn.Module, str]] = []
    refused: list[tuple[str, nn.Module, str]] = []
    settled = 0
    classes = _FAST if layers == "homeostat" else _TORCH
    for module, own in names.items():
        where, kind = ", ".join(own), parametrize.type_before_parametrizations(module)
        if kind in classes and (why := _why_not(module, layers)):
            (left if layers == "homeostat" or "forward" in vars(module) else refused).append((where, module, why))
        elif kind in classes:
            swapped.append((where, module, classes[kind]))
        elif kind in classes.values() or (layers == "homeostat" and _is_ours(kind)):
            settled += kind in classes.values()
        elif why := _why_left(module, kind, layers):
            left.append((where, module, why))
    return Use(layers, tuple(swapped), tuple(left), tuple(refused), settled)


def become_(module: nn.Module, new: type[nn.Module]) -> None:
    """Give a layer another class; it stays the same object, with all its attributes and parametrizations.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> become_(layer, fast.DropConnectLinear)
        >>> layer
        DropConnectLinear(in_features=2, out_features=2, bias=True, p=0.5, per_example=False)
    """
    if parametrize.is_parametrized(module):  # its class was made for it alone, and another one is made in its place
        derived = {"__dict__", "__weakref__", "__doc__", "__module__"}
        members = {name: value for name, value in vars(type(module)).items() if name not in derived}
        new = type(f"Parametrized{new.__name__}", (new,), members)
    module.__class__ = new


def _why_not(module: nn.Module, layers: str) -> str:
    """Why a layer of the right class cannot get another one; empty if it can."""
    own = vars(module)
    if "forward" in own:
        return "a forward of its own"
    if "p" in own and not isinstance(own["p"], Real):
        return f"p={own['p']!r}, which is no number"
    for name, plain in _PLAIN.items():
        if name in own and (layers == "homeostat" or own[name] not in plain):
            return f"{name}={own[name]!r}"
    return ""


def _why_left(module: nn.Module, kind: type[nn.Module], layers: str) -> str:
    """Why a layer that normalizes or drops stays as it is; empty for every other module."""
    if isinstance(module, torch.jit.ScriptModule):
        return "scripted" if getattr(module, "original_name", None) in _NAMES else ""
    if not _normalizes_or_drops(module):
        return ""
    if layers == "torch" and _is_ours(kind):
        return "torch.nn has no such layer"
    if isinstance(module, LazyModuleMixin):
        return "lazy: run a batch through the model first"
    if isinstance(module, nn.SyncBatchNorm):
        return "its statistics are those of all processes"
    known = next((base.__name__ for base in kind.__mro__ if base in _FAST or base in _TORCH), None)
    return f"a subclass of {known}" if known else "not one of torch.nn's layers"


def _normalizes_or_drops(module: nn.Module) -> bool:
    return isinstance(module, _DropoutNd) or is_norm(module) or _is_ours(type(module))


def _kind(module: nn.Module) -> str:
    return str(parametrize.type_before_parametrizations(module).__name__)


def _home(kind: type[nn.Module]) -> str:
    return "homeostat.nn" if _is_ours(kind) else "torch.nn"


def _is_ours(kind: type[nn.Module]) -> bool:
    """Whether a class is a layer of `homeostat.nn` or made from one."""
    return any(base.__module__.startswith("homeostat.nn.") for base in kind.__mro__)
