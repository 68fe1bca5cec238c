"""Where a named layer is in a model that other changes may have altered before. Not random."""

from __future__ import annotations

from torch import nn

from homeostat.doctor.changes.change import CannotApply
from homeostat.parts.extended import Extended
from homeostat.parts.layers import Layer, layers_of


def find(model: nn.Module, name: str) -> nn.Module:
    """The module with a name, also where the model was put into another one, or the layer got company since.

    Raises: CannotApply if there is none, or more than one.
    Example:
        >>> find(nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(1, 2), nn.Tanh())), "1.0")
        Linear(in_features=1, out_features=2, bias=True)
    """
    modules = dict(model.named_modules())
    names = [name] if name in modules else [full for full in modules if full.endswith(f".{name}")]
    depths = [full.count(".") for full in names]
    names = [full for full, depth in zip(names, depths, strict=True) if depth == min(depths)]  # not a namesake inside
    if len(names) != 1:
        raise CannotApply(f"the model has {'no' if not names else 'more than one'} layer named {name!r} now")
    found = modules[names[0]]
    while isinstance(found, Extended):
        found = found.layer
    return found


def layer_of(model: nn.Module, name: str, role: str) -> Layer:
    """The same as a layer that surgery can replace or extend, taken for one that runs."""
    module = find(model, name)
    known = layers_of(model).get(module)
    names = known.names if known is not None else (name,)
    return Layer(names, module, role, calls=1)
