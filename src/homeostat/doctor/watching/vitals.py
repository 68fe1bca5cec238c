"""Vitals: a table of what was measured of a network while it trained, by step, layer and statistic.

Here is the table alone; `recorder` measures, `watch` is what users call. Rows are only ever added. Not random.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from homeostat.errors import invalid, unknown

if TYPE_CHECKING:
    import pandas as pd

WHOLE = "(model)"
"""The name under which statistics of the network as a whole stand beside its layers."""

MEANINGS: dict[str, str] = {
    "mean": "of a layer's output, over examples, units and positions; in the output's unit",
    "std": "standard deviation of the same values",
    "abs_max": "largest magnitude among them",
    "zeros": "share of them that are 0",
    "dead": "share of units whose output is the same for all examples and positions of the batch; "
    "only where a unit has 16 values or more",
    "saturated": "share of values at which a squashing activation passes less than 1 % of its largest slope",
    "nonfinite": "how many of them are NaN or infinite",
    "drift": "of batch normalization: distance between the batch's and the running statistics, root mean square "
    "over channels of the means' difference in running deviations and of the log ratio of the deviations",
    "gradient": "L2 norm of the gradient of the layer's parameters as the optimizer takes it; inf if it is not finite",
    "update": "norm of the step's change of the weights over the norm of the weights",
    "weight": "L2 norm of the weights before the step; inf if it is not finite",
    "rotation": "angle between the weights and those of the last watched step, in radians",
    "gradient_ratio": "root mean square gradient of the first layers' weights over that of the last layers': "
    "the largest in either third of the layers",
    "learning_rate": "the largest of the optimizers' groups",
    "loss": "as given; inf if it is not finite",
}
"""The statistics, what they say and their unit; the last three stand under `WHOLE` only,
where gradient and update are those of all parameters together."""

STATISTICS: tuple[str, ...] = tuple(MEANINGS)
_COLUMN = {name: place for place, name in enumerate(STATISTICS)}


class Vitals:
    """What was measured: a value for each watched step, layer and statistic; NaN where there is none.

    Args:
        layers: names in the order in which they are shown; `WHOLE` is added behind them if it is missing.
    Example:
        >>> vitals = Vitals(["0", "2"])
        >>> row = vitals.blank()
        >>> row[vitals.row("0"), vitals.column("std")] = 0.5
        >>> vitals.append(0, row)
        >>> vitals.of("0", "std")
        (array([0]), array([0.5]))
    """

    def __init__(self, layers: Iterable[str]) -> None:
        names = [name for name in layers if name != WHOLE]
        self.layers: tuple[str, ...] = (*names, WHOLE)
        """In the order of execution once a step was watched, then `WHOLE`."""
        self._rows = {name: place for place, name in enumerate(self.layers)}
        self._steps = np.empty(8, dtype=np.int64)
        self._values = np.empty((8, len(self.layers), len(STATISTICS)))
        self._count = 0

    @property
    def steps(self) -> NDArray[np.int64]:
        """The watched steps, rising; step 0 is the first."""
        return _sealed(self._steps[: self._count])

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of what is measured; `MEANINGS` says what they are."""
        return STATISTICS

    @property
    def values(self) -> NDArray[np.float64]:
        """Everything, shape (steps, layers, statistics)."""
        return _sealed(self._values[: self._count])

    def __len__(self) -> int:
        return self._count

    def __repr__(self) -> str:
        return f"Vitals({self._count} steps x {len(self.layers)} layers x {len(STATISTICS)} statistics)"

    def of(self, layer: str, statistic: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The steps at which a layer's statistic was measured, and its values there; both shape (n,).

        Raises: InvalidValue for a layer or a statistic that is not in the table.
        """
        values = self.values[:, self.row(layer), self.column(statistic)]
        there = ~np.isnan(values)
        return self.steps[there], values[there]

    def last(self, layer: str, statistic: str) -> float:
        """The latest value; NaN if there is none."""
        values = self.of(layer, statistic)[1]
        return float(values[-1]) if len(values) else float("nan")

    def matrix(self, statistic: str) -> NDArray[np.float64]:
        """A statistic of all layers at all watched steps, shape (layers, steps), without `WHOLE`."""
        return self.values[:, :-1, self.column(statistic)].T

    def frame(self) -> pd.DataFrame:
        """The same in long form: step, layer, statistic, value; a row for each value that was measured."""
        import pandas as pd

        step, layer, statistic = np.nonzero(~np.isnan(self.values))
        return pd.DataFrame(
            {
                "step": self.steps[step],
                "layer": pd.Categorical.from_codes(layer, categories=pd.Index(self.layers)),
                "statistic": pd.Categorical.from_codes(statistic, categories=pd.Index(STATISTICS)),
                "value": self.values[step, layer, statistic],
            }
        )

    def row(self, layer: str) -> int:
        """The place of a layer among `layers`."""
        if layer not in self._rows:
            raise unknown("Vitals", "layer", layer, self.layers)
        return self._rows[layer]

    def column(self, statistic: str) -> int:
        """The place of a statistic among `statistics`."""
        if statistic not in _COLUMN:
            raise unknown("Vitals", "statistic", statistic, STATISTICS)
        return _COLUMN[statistic]

    def blank(self) -> NDArray[np.float64]:
        """A step without any value yet, shape (layers, statistics)."""
        return np.full(self._values.shape[1:], np.nan)

    def append(self, step: int, values: NDArray[np.float64]) -> None:
        """Add a watched step.

        Args:
            step: later than all before.
            values: shape (layers, statistics), as `blank` makes them.
        Raises: InvalidValue for a step that is not later, or another shape.
        """
        if self._count and step <= self._steps[self._count - 1]:
            raise invalid("Vitals.append", "step", f"come after {self._steps[self._count - 1]}", step)
        if values.shape != self._values.shape[1:]:
            raise invalid("Vitals.append", "values", f"have the shape {self._values.shape[1:]}", values.shape)
        if self._count == len(self._steps):  # doubled, so that a row costs the same however long the training
            self._steps = np.concatenate([self._steps, np.empty_like(self._steps)])
            self._values = np.concatenate([self._values, np.empty_like(self._values)])
        self._steps[self._count] = step
        self._values[self._count] = values
        self._count += 1

    def reorder(self, layers: Sequence[str]) -> None:
        """Show the layers in another order, which is known once the network has run; `layers` are the same names."""
        names = (*(name for name in layers if name != WHOLE), WHOLE)
        if sorted(names) != sorted(self.layers):
            raise invalid("Vitals.reorder", "layers", "be the layers of the table", layers)
        self._values = self._values[:, [self._rows[name] for name in names]]
        self.layers = names
        self._rows = {name: place for place, name in enumerate(names)}


def _sealed(values: NDArray) -> NDArray:
    """A view that cannot be written to."""
    view = values.view()
    view.flags.writeable = False
    return view
