"""A training copied whole: model, optimizer, and functions that refer to either, linked to each other as they were.

`copy.deepcopy` follows modules and tensors but not functions, and a loss that adds a penalty on `model.parameters()`
would go on using the user's own model. Such functions are made anew, with the copies in their closures and globals.
Not random.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from homeostat.errors import HomeostatError

Memo = dict[int, Any]
_Callable = TypeVar("_Callable")


def copy_model(model: nn.Module, memo: Memo) -> nn.Module:
    """A deep copy; `memo` then leads from the id of every part to its copy.

    Raises: HomeostatError for a model that cannot be copied, with what stands in the way.
    """
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        cure = (
            "The doctor works on copies. Tensors that a module keeps from a forward pass must be detached, and handles "
            "(files, locks, generators) must not be attributes; or give the module a __deepcopy__."
        )
        raise HomeostatError(f"Training: model cannot be copied: {type(error).__name__}: {error}. {cure}") from error


def copy_optimizer(optimizer: Optimizer, memo: Memo) -> Optimizer:
    """A copy that holds the copied parameters, with its state, and without hooks; `memo` is that of the model."""
    try:
        new = copy.deepcopy(optimizer, memo)
        for name, value in vars(optimizer).items():  # what torch's own way of copying leaves out, as in LBFGS
            if name not in vars(new) and not callable(value) and "hook" not in name:
                setattr(new, name, copy.deepcopy(value, memo))
    except Exception as error:
        raise HomeostatError(f"Training: optimizer cannot be copied: {type(error).__name__}: {error}.") from error
    return new


def rebound(function: _Callable, memo: Memo) -> _Callable:
    """The function with everything that was copied in the place of its original; itself if it refers to none of it."""
    return _rebound(function, memo, {})


def _rebound(thing: Any, memo: Memo, seen: dict[int, Any]) -> Any:
    if id(thing) in memo:
        return memo[id(thing)]
    if id(thing) in seen:
        return seen[id(thing)]
    seen[id(thing)] = thing
    found = thing
    if isinstance(thing, functools.partial):
        args = [_rebound(part, memo, seen) for part in thing.args]
        keywords = {key: _rebound(part, memo, seen) for key, part in thing.keywords.items()}
        found = functools.partial(_rebound(thing.func, memo, seen), *args, **keywords)
    elif isinstance(thing, types.MethodType):
        found = types.MethodType(thing.__func__, _rebound(thing.__self__, memo, seen))
    elif isinstance(thing, types.FunctionType):
        found = _rebound_function(thing, memo, seen)
    elif isinstance(thing, nn.Module):
        found = copy_model(thing, memo)
    elif isinstance(thing, tuple | list) and any(id(part) in memo for part in thing):
        found = type(thing)(_rebound(part, memo, seen) for part in thing)
    elif callable(thing) and not isinstance(thing, type | types.BuiltinFunctionType) and hasattr(thing, "__dict__"):
        found = _rebound_object(thing, memo, seen)
    seen[id(thing)] = found
    return found


def _rebound_function(function: types.FunctionType, memo: Memo, seen: dict[int, Any]) -> types.FunctionType:
    cells = function.__closure__ or ()
    values = [_content(cell) for cell in cells]
    new_values = [_rebound(value, memo, seen) for value in values]
    known = function.__globals__
    ours = function.__module__ is None or not function.__module__.startswith(("torch.", "homeostat."))
    names = {name for name in _names(function.__code__) if name in known} if ours else set()
    new_names = {name: _rebound(known[name], memo, seen) for name in names}
    changed = {name: value for name, value in new_names.items() if value is not known[name]}
    if not changed and all(new is old for new, old in zip(new_values, values, strict=True)):
        return function
    closure = tuple(
        cell if new is old else types.CellType(new) for cell, old, new in zip(cells, values, new_values, strict=True)
    )
    scope = {**known, **changed} if changed else known
    new = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure or None)
    new.__kwdefaults__ = function.__kwdefaults__
    new.__dict__.update(function.__dict__)
    return new


def _rebound_object(thing: Any, memo: Memo, seen: dict[int, Any]) -> Any:
    """An instance with `__call__`, copied flatly if one of its attributes refers to what was copied."""
    attributes = {name: _rebound(value, memo, seen) for name, value in vars(thing).items()}
    if all(value is vars(thing)[name] for name, value in attributes.items()):
        return thing
    new = copy.copy(thing)
    vars(new).update(attributes)
    return new


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a name that is not bound yet
        return None


def _names(code: types.CodeType) -> Iterator[str]:
    """The global names of a function and of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
