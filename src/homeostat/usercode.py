"""The user's own code: which files hold it, and a digest by which a change of it is noticed.

homeostat's code, Python's and that of installed packages is left out: it changes with their versions. Nothing here is
random.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

_INSTALLED = {"site-packages", "dist-packages"}  # the folders that packages are installed into


def is_users(filename: str) -> bool:
    """Whether a file is neither homeostat's, nor Python's, nor an installed package's; "<string>" is no file."""
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    libraries = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
    return _INSTALLED.isdisjoint(path.parts) and not any(path.is_relative_to(each.resolve()) for each in libraries)


def source_of(thing: Callable[..., Any]) -> str | None:
    """The source of a function or class; None where it cannot be had, as of builtins or what was typed at a prompt."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError, SyntaxError, tokenize.TokenError):
        return None


def is_plain(value: object) -> bool:
    """Whether JSON can hold a value."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def settings_of(thing: object) -> dict[str, Any]:
    """The plain values among an object's attributes, but for those whose name begins with an underscore."""
    held = getattr(thing, "__dict__", {})
    return {name: value for name, value in held.items() if not name.startswith("_") and is_plain(value)}


def digest(thing: Any) -> str | None:
    """Sixteen hexadecimal digits that change with what the user has written of a thing; None where that is nothing.

    Covered: the source of functions and classes of the user's; the same of their base classes, and of what they name of
    their module, of another module of the user's, or of a function around them; and of all that, of the arguments of a
    partial, and of the public attributes of an object, the values that JSON can hold. Not covered: what is imported or
    looked up while the code runs, and values such as tensors.

    Args:
        thing: a function, a class, a partial, an object.
    """
    parts = list(_parts(thing, {}))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16] if parts else None


def _parts(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    """The texts that a digest is made of.

    Args:
        seen: what was looked at before, by its id; kept alive, so that the id stays its own.
    """
    if callable(thing) and not isinstance(thing, type):
        thing = inspect.unwrap(thing)
    if id(thing) in seen:
        return
    seen[id(thing)] = thing
    if isinstance(thing, functools.partial):
        named = {"": thing.func, **{str(place): value for place, value in enumerate(thing.args)}, **thing.keywords}
    elif inspect.ismethod(thing):
        named = {"": thing.__func__, "self": thing.__self__}
    elif isinstance(thing, type | FunctionType):
        if not _is_own(thing):
            return
        source = source_of(thing)
        if source is not None:
            yield source
        named = _named_by_class(thing) if isinstance(thing, type) else _named_by_function(thing)
    elif callable(thing) or _is_own(type(thing)):
        named = {"": type(thing), **settings_of(thing)}
    else:
        return
    for name, value in named.items():
        if is_plain(value):
            yield f"{name} = {json.dumps(value)}"
        else:
            yield from _parts(value, seen)


def _named_by_class(thing: type) -> dict[str, Any]:
    """The bases of a class, and the functions and classes in it."""
    held = {name: getattr(value, "fget", getattr(value, "__func__", value)) for name, value in vars(thing).items()}
    inside = {name: value for name, value in held.items() if isinstance(value, type | FunctionType)}
    return {base.__qualname__: base for base in thing.__bases__} | inside


def _named_by_function(function: FunctionType) -> dict[str, Any]:
    """What a function names of its module, of other modules of the user's, and of the functions around it."""
    names = dict.fromkeys(_names(function.__code__))
    found: dict[str, Any] = {}
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and _is_own(value):
            found |= {f"{name}.{inner}": vars(value)[inner] for inner in names if inner in vars(value)}
        elif name in function.__globals__:
            found[name] = value
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # it may be empty still
            found[name] = cell.cell_contents
    return found


def _names(code: CodeType) -> Iterator[str]:
    """The names that code looks up, also in the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_own(thing: type | FunctionType | ModuleType) -> bool:
    """Whether a module, or that of a class or function, is the user's; a notebook and a script are, file or no file."""
    name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
    file = getattr(sys.modules.get(name), "__file__", None)
    return name == "__main__" or (file is not None and is_users(file))
