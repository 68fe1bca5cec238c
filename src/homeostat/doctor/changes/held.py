"""Which parameters an optimizer holds and what its step asks for; which a model has, in plain lists too. Not random."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from torch import nn
from torch.optim import Optimizer


def held_by(optimizer: Optimizer) -> list[nn.Parameter]:
    """Every tensor that the optimizer steps."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether its step computes the loss itself, by a closure, as LBFGS's does."""
    return _asks_for_closure(type(optimizer).step)


@cache
def _asks_for_closure(step: Callable[..., Any]) -> bool:
    closure = inspect.signature(step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def trainable_of(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The trainable parameters by name, each once, those of modules in plain lists, tuples and dicts too."""
    found: dict[int, tuple[str, nn.Parameter]] = {}
    seen: set[int] = set()
    for prefix, module in _all_modules(model, "", seen):
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                found.setdefault(id(parameter), (f"{prefix}.{name}" if prefix else name, parameter))
        for name, value in _plain(module):
            if isinstance(value, nn.Parameter) and value.requires_grad:
                found.setdefault(id(value), (f"{prefix}.{name}" if prefix else name, value))
    return list(found.values())


def _all_modules(module: nn.Module, prefix: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    if id(module) in seen:
        return
    seen.add(id(module))
    yield prefix, module
    parts = [(name, part) for name, part in module._modules.items() if part is not None]
    parts += [(name, value) for name, value in _plain(module) if isinstance(value, nn.Module)]
    for name, part in parts:
        yield from _all_modules(part, f"{prefix}.{name}" if prefix else name, seen)


def _plain(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What a module holds in attributes that are lists, tuples or dicts."""
    for name, value in vars(module).items():
        if name.startswith("_"):
            continue
        entries: Any = value.items() if isinstance(value, dict) else enumerate(value) if _listed(value) else ()
        yield from ((f"{name}.{key}", entry) for key, entry in entries)


def _listed(value: Any) -> bool:
    return isinstance(value, list | tuple)
