"""Factors: what a study varies, each with its levels, from Python or from the text of a command line.

The first level of a factor is its *base level*, the simpler choice; the treatment with every factor at its base is the
*base treatment*. Which names and levels an objective understands is its own business; here only form is checked.
Nothing here is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TypeAlias

import numpy as np

from homeostat.errors import invalid, invalid_type

Level: TypeAlias = bool | int | float | str | None

# Columns that a table of trials or of treatments has beside the factors; a factor of that name would hide them.
RESERVED = frozenset({"trial", "treatment", "seed", "status", "attempt", "seconds", "failure", "warnings"}) | {
    *("n", "diverged", "failed", "factor", "level", "epoch"),
}

_INTEGER = re.compile(r"[+-]?\d+")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Factor:
    """One thing that a study varies, with the levels it takes; the first level is the base.

    Args:
        name: how the objective's configuration calls it, e.g. "norm".
        levels: two or more distinct levels, each None, a bool, a finite number or a text; Python's equality decides
            what is distinct, so that 1, 1.0 and True are one level.
    Raises: InvalidValue for an empty or reserved name, fewer than two levels, a level given twice, NaN or infinity;
        InvalidType for a level of another type.
    Example:
        >>> Factor("norm", ("none", "batch")).base
        'none'
    """

    name: str
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        if isinstance(self.levels, str) or not isinstance(self.levels, Sequence | np.ndarray):
            raise invalid_type("Factor", f"levels of {self.name!r}", "be a list or tuple", self.levels)
        levels = tuple(_checked_level(self.name, level) for level in self.levels)
        if len(levels) < 2:
            cure = "A factor compares: give the base level first, then what to compare with it."
            raise invalid("Factor", f"levels of {self.name!r}", "be two or more", list(levels), cure)
        for position, level in enumerate(levels):
            if level in levels[:position]:
                cure = f"Level {level!r} stands there twice."
                raise invalid("Factor", f"levels of {self.name!r}", "be distinct", list(levels), cure)
        object.__setattr__(self, "levels", levels)

    @property
    def base(self) -> Level:
        """The base level: the first one."""
        return self.levels[0]

    @property
    def coding(self) -> np.ndarray:
        """Sum coding with the base at -1: shape (levels, levels - 1), float; two levels give -1 and +1.

        Example:
            >>> Factor("norm", ("none", "batch", "layer")).coding
            array([[-1., -1.],
                   [ 1.,  0.],
                   [ 0.,  1.]])
        """
        count = len(self.levels)
        return np.vstack([-np.ones((1, count - 1)), np.eye(count - 1)])

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(level_text(level) for level in self.levels)})"


def level_text(level: Level) -> str:
    """A level as a person writes it: None as "none", True as "true", numbers so that `parse_level` reads the same.

    Example:
        >>> [level_text(level) for level in (None, True, 0, 0.5, 1e-4, 1e-5, 1e6, "batch")]
        ['none', 'true', '0', '0.5', '0.0001', '1e-5', '1e6', 'batch']
    """
    if level is None or isinstance(level, bool):
        return str(level).lower()
    if not isinstance(level, float):
        return str(level)
    plain = repr(level)
    if "e" not in plain and abs(level) < 1e5:
        return plain
    digits, _, exponent = (plain if "e" in plain else f"{Decimal(plain).normalize():e}").partition("e")
    short = f"{digits}e{int(exponent)}"
    return short if "e" in plain or len(short) < len(plain) else plain


def parse_factor(text: str) -> Factor:
    """The factor that `name=level,level,...` describes, as on a command line.

    Numbers become int or float, true and false become bool, everything else stays text ("none" stays "none").

    Raises: InvalidValue where the text has no name, no "=", an empty level, or levels that a Factor refuses.
    Example:
        >>> parse_factor("dropout=0,0.5")
        Factor(name='dropout', levels=(0, 0.5))
    """
    if not isinstance(text, str):
        raise invalid_type("parse_factor", "text", "be a text such as 'norm=none,batch'", text)
    name, equals, rest = text.partition("=")
    if not equals or not name.strip():
        raise invalid("parse_factor", "text", "read name=level,level", text, "For example: norm=none,batch.")
    words = [word.strip() for word in rest.split(",")]
    if "" in words:
        raise invalid("parse_factor", f"levels of {name.strip()!r}", "not be empty", text, "Is there a comma too many?")
    return Factor(name.strip(), tuple(parse_level(word) for word in words))


def parse_level(word: str) -> Level:
    """The level that a word means: a number, true or false, or the word itself.

    Example:
        >>> [parse_level(word) for word in ("0", "1e-4", "True", "none")]
        [0, 0.0001, True, 'none']
    """
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _DECIMAL.fullmatch(word) else word


def as_factors(factors: Mapping[str, Sequence[Level]] | Iterable[Factor | str]) -> tuple[Factor, ...]:
    """Factors from a mapping of names to levels, or from factors and texts such as "norm=none,batch", in that order.

    Raises: InvalidValue for no factor at all, or two of the same name; InvalidType for anything else.
    Example:
        >>> as_factors({"norm": ["none", "batch"]}) == as_factors(["norm=none,batch"])
        True
    """
    if isinstance(factors, str) or not isinstance(factors, Iterable):
        cure = "For example: {'norm': ['none', 'batch']}."
        raise invalid_type("as_factors", "factors", "be a mapping or a list", factors, cure)
    if isinstance(factors, Mapping):
        found = [Factor(name, levels) for name, levels in factors.items()]  # type: ignore[arg-type]
    else:
        found = [_as_factor(item) for item in factors]
    if not found:
        raise invalid("as_factors", "factors", "hold at least one factor", factors, "What should the study compare?")
    names = [factor.name for factor in found]
    for name in names:
        if names.count(name) > 1:
            cure = f"{name!r} stands there {names.count(name)} times; give all its levels in one factor."
            raise invalid("as_factors", "factors", "have distinct names", names, cure)
    return tuple(found)


def _as_factor(item: object) -> Factor:
    if isinstance(item, Factor):
        return item
    if isinstance(item, str):
        return parse_factor(item)
    raise invalid_type("as_factors", "each factor", "be a Factor or a text such as 'norm=none,batch'", item)


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise invalid_type("Factor", "name", "be a text", name)
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise invalid("Factor", "name", "be a printable text without blanks around it", name)
    if name in RESERVED:
        raise invalid("Factor", "name", "not be a column that every table of trials has", name, "Choose another name.")


def _checked_level(name: str, level: object) -> Level:
    if isinstance(level, np.generic):
        level = level.item()
    if level is not None and not isinstance(level, bool | int | float | str):
        raise invalid_type("Factor", f"each level of {name!r}", "be None, a bool, a number or a text", level)
    if isinstance(level, float) and not math.isfinite(level):
        raise invalid("Factor", f"each level of {name!r}", "be finite", level)
    return level
