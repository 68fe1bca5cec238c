"""What must be the same for two runs to be the same study: the configuration, its name and its differences.

A configuration is plain JSON. Nothing here is random.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from homeostat import usercode
from homeostat.errors import invalid_type


def plain(where: str, argument: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping as it will look after a trip through JSON.

    Raises: InvalidType if JSON cannot hold it.
    """
    try:
        return json.loads(json.dumps(dict(value)))
    except (TypeError, ValueError) as error:
        raise invalid_type(where, argument, f"be a mapping that JSON can hold ({error})", value) from error


def digest(configuration: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits that tell configurations apart."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()[:8]


def identity(objective: Any) -> dict[str, Any]:
    """What tells an objective from another: its qualified name, and for a function a digest of its source.

    Of a partial there are besides the arguments that JSON can hold; of an object a digest of its class
    (`usercode.digest`), and its public attributes that JSON can hold, unless it has an attribute `base`, which says
    what results depend on. What a function calls or captures is not looked at; whoever varies that puts it into `base`.
    """
    inner, arguments = objective, dict[str, Any]()
    while isinstance(inner, functools.partial):
        arguments = {**{str(place): value for place, value in enumerate(inner.args)}, **inner.keywords, **arguments}
        inner = inner.func
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    found: dict[str, Any] = {"name": f"{named.__module__}.{named.__qualname__}"}
    if inspect.isfunction(inner) or inspect.ismethod(inner):
        found["source"] = hashlib.sha256(_source(inner)).hexdigest()[:16]
    told: dict[str, Any] = {"arguments": {name: value for name, value in arguments.items() if usercode.is_plain(value)}}
    if not inspect.isfunction(inner):
        owner = inner.__self__ if inspect.ismethod(inner) else inner
        told["code"] = usercode.digest(owner if isinstance(owner, type) else type(owner))
        told["attributes"] = {} if hasattr(owner, "base") else usercode.settings_of(owner)
    return found | plain("Study", "objective", {name: value for name, value in told.items() if value})


def short_name(objective: Any) -> str:
    """A name for the study of this objective, for people and directories."""
    while isinstance(objective, functools.partial):
        objective = objective.func
    for candidate in (getattr(objective, "name", None), getattr(objective, "__name__", None)):
        if isinstance(candidate, str) and candidate:
            return candidate
    return type(objective).__name__


def file_name(name: str) -> str:
    """A name as part of a path: letters, digits, "-" and "_", at most 60 of them.

    Example:
        >>> file_name("../<lambda> of été")
        'lambda-of-t'
    """
    return re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-")[:60] or "study"


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two configurations differ, one line per key.

    Example:
        >>> differences({"seeds": [0, 1], "base": {"lr": 0.1}}, {"seeds": [0, 1], "base": {"lr": 0.2, "epochs": 3}})
        ['base.lr: 0.1 → 0.2', 'base.epochs: (not set) → 3']
    """
    lines = []
    for key in [*stored, *(key for key in asked if key not in stored)]:
        old, new = stored.get(key, _NOT_SET), asked.get(key, _NOT_SET)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif type(old) is not type(new) or json.dumps(old) != json.dumps(new):
            lines.append(f"{prefix}{key}: {_short(old)} → {_short(new)}")
    return lines


class _NotSet:
    def __repr__(self) -> str:
        return "(not set)"


_NOT_SET = _NotSet()


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _source(function: Any) -> bytes:
    text = usercode.source_of(function)
    if text is not None:
        return text.encode()
    code = function.__code__
    constants = [each for each in code.co_consts if not inspect.iscode(each)]
    return bytes(code.co_code) + repr((code.co_names, constants)).encode()
