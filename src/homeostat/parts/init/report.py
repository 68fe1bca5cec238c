"""What an initialization did: the names of the parameters it set, a table with a row for each weight. Not random."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Row:
    """What was done to one weight, and what it does to the sample; NaN where there is no sample or it does not pass."""

    layer: str
    """The layer's name; the parameter's where a model uses it without a layer."""
    kind: str
    """The layer's class, or the function."""
    fan_in: float
    fan_out: float
    activation: str
    """What its input went through since the last weight layer; with mode "fan_out", what its output goes through."""
    gain: float
    """What makes up for it: the standard deviation times √fan."""
    std: float
    """The root mean square of the weights as they are now."""
    forward: float
    """The mean square of the output over that of the input."""
    backward: float
    """The mean square of the gradient with respect to the input over that with respect to the output."""
    mean_square: float
    """Of the output."""
    note: str = ""
    """What was special."""


class Initialization(Sequence[str]):
    """The names of the parameters that were set, in the model's order, with a table; true if there are any.

    It equals the list of the names, and can be read like one.

    Example:
        >>> done = Initialization(["weight"], [Row("", "Linear", 4.0, 8.0, "input", 1.0, 0.5, 1.0, 2.0, 1.0)])
        >>> bool(done), len(done), done == ["weight"]
        (True, 1, True)
        >>> print(done)
        layer    kind    fan_in  fan_out  activation  gain    std  forward  backward  mean_square  note
        (model)  Linear       4        8  input          1  0.500        1     2.000            1
    """

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, parameters: Sequence[str], rows: Sequence[Row]) -> None:
        self.parameters = tuple(parameters)
        self.rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """A name by its place; a list for a slice."""
        return list(self.parameters[index]) if isinstance(index, slice) else self.parameters[index]

    def __len__(self) -> int:
        """How many parameters were set."""
        return len(self.parameters)

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.parameters)

    def __eq__(self, other: object) -> bool:
        """Whether another one, or a list or tuple, has the same names in the same order."""
        return isinstance(other, Initialization | list | tuple) and self.parameters == tuple(other)

    def __repr__(self) -> str:
        return f"Initialization({list(self.parameters)})"

    def __str__(self) -> str:
        """The table, in columns."""
        if not self.rows:
            return "no weights"
        names = [field.name for field in fields(Row)]
        lines = [names, *([_shown(name, getattr(row, name)) for name in names] for row in self.rows)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(names))]
        left = ("layer", "kind", "activation", "note")
        return "\n".join(
            "  ".join(
                text.ljust(width) if name in left else text.rjust(width)
                for name, text, width in zip(names, line, widths, strict=True)
            ).rstrip()
            for line in lines
        )

    def frame(self) -> pd.DataFrame:
        """The table as a data frame, a row for each weight."""
        import pandas as pd

        names = [field.name for field in fields(Row)]
        return pd.DataFrame([[getattr(row, name) for name in names] for row in self.rows], columns=names)

    def _repr_html_(self) -> str:
        return str(self.frame().to_html(index=False, float_format=lambda number: f"{number:.3g}"))


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value) or ("(model)" if name == "layer" else "")
    if math.isnan(value):
        return "-"
    if name in ("fan_in", "fan_out"):
        return f"{value:.6g}"
    return f"{value:.3f}" if 0.01 <= abs(value) < 1000 and value != 1 else f"{value:.3g}"
