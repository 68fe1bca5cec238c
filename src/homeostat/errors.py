"""One voice for everything that can go wrong because of what a user passed in.

A message names the callable, the argument, the condition it must meet, the value that came, and a likely cure:

    Dropout: p must lie in [0, 1], but got 1.5. p is the probability of dropping a unit.

Values raise `InvalidValue` (a ValueError), types raise `InvalidType` (a TypeError). Nothing here is random.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HomeostatError(Exception):
    """The base of every error that homeostat raises on purpose; its text is meant for the user."""


class InvalidValue(HomeostatError, ValueError):
    """An argument has the right type and a value that cannot be used."""


class InvalidType(HomeostatError, TypeError):
    """An argument has a type that cannot be used."""


class NoEffectWarning(UserWarning):
    """A technique was asked for and changed nothing in this model or on this data."""


def invalid(where: str, argument: str, condition: str, value: object, cure: str = "") -> InvalidValue:
    """The error for an argument with an unusable value; the caller raises it.

    Example:
        >>> print(invalid("Dropout", "p", "lie in [0, 1]", 1.5, "p is the probability of dropping."))
        Dropout: p must lie in [0, 1], but got 1.5. p is the probability of dropping.
    """
    return InvalidValue(_sentence(where, argument, condition, value, cure))


def invalid_type(where: str, argument: str, condition: str, value: object, cure: str = "") -> InvalidType:
    """The error for an argument of an unusable type; the caller raises it."""
    return InvalidType(_sentence(where, argument, condition, value, cure))


def unknown(where: str, kind: str, name: object, known: Iterable[object]) -> InvalidValue:
    """The error for a name that is not among the known ones; offers the nearest.

    Example:
        >>> print(unknown("Recipe", "key", "drpout", ["dropout", "norm"]))
        Recipe: unknown key 'drpout'. Did you mean 'dropout'? Known: dropout, norm.
    """
    choices = [str(choice) for choice in known]
    close = difflib.get_close_matches(str(name).lower(), [choice.lower() for choice in choices], n=1, cutoff=0.5)
    guess = next((choice for choice in choices if close and choice.lower() == close[0]), None)
    hint = f" Did you mean {guess!r}?" if guess else ""
    return InvalidValue(f"{where}: unknown {kind} {name!r}.{hint} Known: {', '.join(choices)}.")


def _sentence(where: str, argument: str, condition: str, value: object, cure: str) -> str:
    return f"{where}: {argument} must {condition}, but got {_shown(value)}.{' ' + cure if cure else ''}"


def _shown(value: object) -> str:
    """A value as the user would recognize it: tensors and arrays by shape, dtype and device, the rest by repr."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        device = getattr(value, "device", None)
        return f"{type(value).__name__}(shape={tuple(shape)}, dtype={dtype}{f', device={device}' if device else ''})"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."
