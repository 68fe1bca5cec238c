"""Factors: what a study varies, each with its levels, from Python or from the text of a command line.

The first level of a factor is its *base level*, the simpler choice; the treatment with every factor at its base is the
*base treatment*. A factor may be *nested* within a level of another: it then exists only in treatments with that level.
Which names and levels an objective understands is its own business; here only form is checked. Nothing here is random.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.page.text import encodable

Level: TypeAlias = bool | int | float | str | None

# The metric by which an objective says itself that a trial diverged.
DIVERGED = "diverged"
# Columns that tables of trials and of treatments have besides; a factor or metric of that name would hide them.
TAKEN = frozenset({"trial", "treatment", "seed", "status", "attempt", "seconds", "failure", "warnings", "outcome"}) | {
    *("n", DIVERGED, "failed", "missing"),
}
# No factor may be called like a column of tables by level or by epoch either.
RESERVED = TAKEN | {"factor", "level", "epoch"}

_INTEGER = re.compile(r"[+-]?\d+")
_NESTED = re.compile(r"\s@\s")
_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


@dataclass(frozen=True)
class Factor:
    """One thing that a study varies, with the levels it takes; the first level is the base.

    Args:
        name: how the objective's configuration calls it, e.g. "norm".
        levels: two or more levels, each None, a bool, a finite number or a text; distinct by Python's equality, for
            which 1, 1.0 and True are one level, and as texts, of which 1 and "1" are one.
        within: (name, level) of another factor, which is not nested itself: in treatments with that level this factor
            has its levels, and in all others it is left out. None is then no level: it marks where it is absent.
    Raises: InvalidValue for an empty or reserved name, fewer than two levels, two that are alike, NaN, infinity or what
        UTF-8 cannot hold; InvalidType for a level of another type.
    Example:
        >>> Factor("norm", ("none", "batch")).base
        'none'
        >>> print(Factor("rate", (0.1, 0.5), within=("dropout", "on")))
        rate (0.1, 0.5 where dropout is on)
    """

    name: str
    levels: tuple[Level, ...]
    within: tuple[str, Level] | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if isinstance(self.levels, str) or not isinstance(self.levels, Sequence | np.ndarray):
            raise invalid_type("Factor", f"levels of {self.name!r}", "be a list or tuple", self.levels)
        levels = tuple(_checked_level(self.name, level) for level in self.levels)
        if len(levels) < 2:
            cure = "A factor compares: give the base level first, then what to compare with it."
            raise invalid("Factor", f"levels of {self.name!r}", "be two or more", list(levels), cure)
        texts = [level_text(level) for level in levels]
        for position, level in enumerate(levels):
            if level in levels[:position]:
                cure = f"Level {level!r} stands there twice."
                raise invalid("Factor", f"levels of {self.name!r}", "be distinct", list(levels), cure)
            if texts[position] in texts[:position]:
                cure = f"{levels[texts.index(texts[position])]!r} and {level!r} are written alike; rename one."
                raise invalid("Factor", f"levels of {self.name!r}", "be distinct as texts", list(levels), cure)
        object.__setattr__(self, "levels", levels)
        if self.within is not None:
            object.__setattr__(self, "within", _checked_within(self.name, self.within))
            if None in levels:
                cure = "None marks the treatments in which a nested factor is absent."
                raise invalid("Factor", f"levels of {self.name!r}", "not hold None", list(levels), cure)

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
        where = "" if self.within is None else f" where {self.within[0]} is {level_text(self.within[1])}"
        return f"{self.name} ({', '.join(level_text(level) for level in self.levels)}{where})"


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
    """The factor that `name=level,level,...` describes, as on a command line; ` @ parent=level` behind it nests it.

    Numbers become int or float, true and false become bool, everything else stays text ("none" stays "none").

    Raises: InvalidValue where the text has no name, no "=", an empty level, or levels that a Factor refuses.
    Example:
        >>> parse_factor("dropout=0,0.5")
        Factor(name='dropout', levels=(0, 0.5), within=None)
        >>> parse_factor("rate=0.1,0.5 @ dropout=on").within
        ('dropout', 'on')
    """
    if not isinstance(text, str):
        raise invalid_type("parse_factor", "text", "be a text such as 'norm=none,batch'", text)
    own, *nesting = _NESTED.split(text)
    name, equals, rest = own.partition("=")
    if not equals or not name.strip():
        raise invalid("parse_factor", "text", "read name=level,level", text, "For example: norm=none,batch.")
    parent, parted, level = nesting[0].partition("=") if nesting else ("", "=", "")
    if len(nesting) > 1 or not parted or (nesting and not (parent.strip() and level.strip())):
        cure = "For example: rate=0.1,0.5 @ dropout=on."
        raise invalid("parse_factor", "text", "read name=level,level @ parent=level", text, cure)
    words = [word.strip() for word in rest.split(",")]
    if "" in words:
        raise invalid("parse_factor", f"levels of {name.strip()!r}", "not be empty", text, "Is there a comma too many?")
    within = (parent.strip(), parse_level(level.strip())) if nesting else None
    return Factor(name.strip(), tuple(parse_level(word) for word in words), within)


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


def as_factors(factors: Mapping[str, Any] | Iterable[Factor | str]) -> tuple[Factor, ...]:
    """Factors from a mapping of names to levels, or from factors and texts such as "norm=none,batch", in that order.

    In a mapping, a nested factor is {"levels": [...], "within": [parent, level]}.

    Raises: InvalidValue for no factor at all, two of the same name, or a nested factor whose parent is not there, lacks
        that level or is nested itself; InvalidType for anything else.
    Example:
        >>> as_factors({"norm": ["none", "batch"]}) == as_factors(["norm=none,batch"])
        True
        >>> nested = {"dropout": ["off", "on"], "rate": {"levels": [0.1, 0.5], "within": ["dropout", "on"]}}
        >>> as_factors(nested) == as_factors(["dropout=off,on", "rate=0.1,0.5 @ dropout=on"])
        True
    """
    if isinstance(factors, str) or not isinstance(factors, Iterable):
        cure = "For example: {'norm': ['none', 'batch']}."
        raise invalid_type("as_factors", "factors", "be a mapping or a list", factors, cure)
    if isinstance(factors, Mapping):
        found = [_named_factor(name, given) for name, given in factors.items()]
    else:
        found = [_as_factor(item) for item in factors]
    if not found:
        raise invalid("as_factors", "factors", "hold at least one factor", factors, "What should the study compare?")
    names = [factor.name for factor in found]
    for name in names:
        if names.count(name) > 1:
            cure = f"{name!r} stands there {names.count(name)} times; give all its levels in one factor."
            raise invalid("as_factors", "factors", "have distinct names", names, cure)
    return tuple(_placed(factor, found) for factor in found)


def _named_factor(name: Any, given: Any) -> Factor:
    if not isinstance(given, Mapping):
        return Factor(name, given)
    if set(given) != {"levels", "within"}:
        cure = "Give a list of levels where the factor is not nested."
        raise invalid("as_factors", f"factor {name!r}", "hold levels and within", sorted(map(str, given)), cure)
    return Factor(name, given["levels"], given["within"])


def _placed(factor: Factor, factors: Sequence[Factor]) -> Factor:
    """The factor, with its parent found, and the parent's level as the parent has it."""
    if factor.within is None:
        return factor
    name, level = factor.within
    parent = next((other for other in factors if other.name == name), None)
    if parent is None:
        raise unknown("as_factors", f"parent of {factor.name!r}", name, [other.name for other in factors])
    if parent.within is not None:
        cure = "Make one factor of both: its levels may be any texts."
        raise invalid("as_factors", f"parent of {factor.name!r}", "not be nested itself", name, cure)
    if level not in parent.levels:
        raise unknown("as_factors", f"level of {name!r}, in which {factor.name!r} is nested,", level, parent.levels)
    return replace(factor, within=(name, parent.levels[parent.levels.index(level)]))


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
        raise invalid("Factor", "name", "not be a column that tables of trials have", name, "Choose another name.")


def _checked_within(name: str, within: object) -> tuple[str, Level]:
    if not isinstance(within, Sequence) or isinstance(within, str) or len(within) != 2:
        raise invalid_type("Factor", f"within of {name!r}", "be (name, level) of another factor", within)
    parent, level = within
    if not isinstance(parent, str):
        raise invalid_type("Factor", f"within of {name!r}", "name another factor", within)
    if parent == name:
        raise invalid("Factor", f"within of {name!r}", "name another factor", parent)
    return parent, _checked_level(parent, level)


def _checked_level(name: str, level: object) -> Level:
    if isinstance(level, np.generic):
        level = level.item()
    if level is not None and not isinstance(level, bool | int | float | str):
        raise invalid_type("Factor", f"each level of {name!r}", "be None, a bool, a number or a text", level)
    if isinstance(level, str) and level != encodable(level):
        raise invalid("Factor", f"each level of {name!r}", "be text that UTF-8 can hold", level)
    if isinstance(level, float) and not math.isfinite(level):
        raise invalid("Factor", f"each level of {name!r}", "be finite", level)
    return level
