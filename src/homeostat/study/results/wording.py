"""How numbers, names and lists are written for people: one place, so that every table and sentence agrees.

Accuracies are shown in percent and their changes in percentage points; everything else with three significant digits.
Pure functions of their arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from homeostat.study.factors import Level, level_text

_WORDS = {"valid": "validation", "train": "training", "rmse": "RMSE", "mae": "MAE", "mse": "MSE", "r2": "R²"}
_MISSING = "–"


@dataclass(frozen=True)
class Unit:
    """How the values of one metric are written.

    Args:
        metric: its name, e.g. "valid_accuracy".
        points: whether it is a fraction shown in percent, its changes in percentage points.
        decimals: of changes, where a table has settled them for a column; None: what suits each number.
    Example:
        >>> unit = Unit("valid_accuracy", points=True)
        >>> unit.value(0.9785), unit.change(0.019), unit.amount(0.019, 0.015, 0.023)
        ('97.9 %', '+1.9', '1.9 points [1.5, 2.3]')
        >>> Unit("valid_loss").gain(-0.1234, -0.2, -0.05)
        '−0.123 [−0.200, −0.050]'
    """

    metric: str
    points: bool = False
    decimals: int | None = None

    @property
    def name(self) -> str:
        """The metric in words: "validation accuracy"."""
        return metric_words(self.metric)

    @property
    def label(self) -> str:
        """The metric in words with its unit, for an axis: "validation accuracy (%)"."""
        return f"{self.name} (%)" if self.points else self.name

    @property
    def change_label(self) -> str:
        """What a change is measured in, for an axis or a column: "points of validation accuracy"."""
        return f"points of {self.name}" if self.points else self.name

    def column(self, changes: Iterable[Sequence[float]]) -> Unit:
        """The same unit with the decimals that suit a column of changes: those that its narrower intervals need.

        Args:
            changes: (estimate, low, high) of each row, NaN where there is none.
        Example:
            >>> unit = Unit("accuracy", points=True).column([(0.013, 0.010, 0.016), (0.0038, 0.0008, 0.0068)])
            >>> unit.gain(0.013, 0.010, 0.016), unit.gain(0.0038, 0.0008, 0.0068)
            ('+1.3 points [1.0, 1.6]', '+0.4 points [0.1, 0.7]')
        """
        rows = [tuple(self.scaled(number) for number in row) for row in changes]
        largest = max((abs(number) for row in rows for number in row if math.isfinite(number)), default=0.0)
        if not 1e-5 <= largest < 1e7:
            return self
        halves = sorted((high - low) / 2 for _, low, high in rows if math.isfinite(high - low))
        halves = [half for half in halves if half > 1e-4 * largest]
        finest = halves[len(halves) // 4] if halves else largest / 10  # a single lucky one would cost room in every row
        needed = (0 if self.points else 1) - math.floor(math.log10(finest))
        return replace(self, decimals=max(int(self.points), needed))

    def scaled(self, number: float) -> float:
        """A number on the scale on which it is written: times 100 for points."""
        return 100 * number if self.points else number

    def tick(self, number: float) -> str:
        """A number on an axis that `label` or `change_label` names."""
        return f"{self.scaled(number):.6g}".replace("-", "−")

    def value(self, number: float) -> str:
        """A level of the metric, e.g. "97.9 %"."""
        return self._number(number) + (" %" if self.points and math.isfinite(number) else "")

    def change(self, number: float) -> str:
        """A change with its sign and without its unit, e.g. "+1.9"."""
        return self._signed(number, self._decimals(number))

    def range(self, low: float, high: float) -> str:
        """An interval of changes without unit, e.g. "[1.5, 2.3]"; "" where there is none."""
        if math.isnan(low) or math.isnan(high):
            return ""
        decimals = self._decimals(low, high)
        return f"[{self._number(low, decimals)}, {self._number(high, decimals)}]"

    def gain(self, estimate: float, low: float, high: float) -> str:
        """A change with sign, unit and interval, e.g. "+1.9 points [1.5, 2.3]"."""
        return self._joined(self._signed(estimate, self._decimals(estimate, low, high)), estimate, low, high)

    def amount(self, estimate: float, low: float, high: float) -> str:
        """The same without the sign of a rise, for sentences: "1.9 points [1.5, 2.3]"."""
        return self._joined(self._number(estimate, self._decimals(estimate, low, high)), estimate, low, high)

    def _joined(self, text: str, estimate: float, low: float, high: float) -> str:
        unit = " points" if self.points and not math.isnan(estimate) else ""
        if math.isnan(low) or math.isnan(high):
            return text + unit
        decimals = self._decimals(estimate, low, high)
        return f"{text}{unit} [{self._number(low, decimals)}, {self._number(high, decimals)}]"

    def _decimals(self, *numbers: float) -> int | None:
        """Decimals that suit all the numbers together; None for the scientific notation of the very large and small."""
        if self.decimals is not None:
            return self.decimals
        size = max((abs(self.scaled(number)) for number in numbers if math.isfinite(number)), default=0.0)
        if self.points:
            return 1 if size >= 0.95 or size == 0 else 2 if size >= 0.095 else 3
        if size == 0:
            return 0
        if not 1e-5 <= size < 1e7:
            return None
        return max(0, 2 - math.floor(math.log10(size)))

    def _number(self, number: float, decimals: int | None = -1) -> str:
        if math.isnan(number):
            return _MISSING
        if math.isinf(number):
            return "∞" if number > 0 else "−∞"
        if decimals == -1:
            decimals = 1 if self.points else self._decimals(number)
        shown = self.scaled(number)
        text = f"{shown:.2e}" if decimals is None else f"{shown:.{decimals}f}"
        return text.replace("-", "−") if float(text) != 0 else text.lstrip("-")

    def _signed(self, number: float, decimals: int | None) -> str:
        text = self._number(number, decimals)
        return f"+{text}" if number > 0 and text.strip("0.") else text


def unit_of(metric: str, values: Iterable[float] = ()) -> Unit:
    """The unit of a metric: points where its name says accuracy and no finite value lies outside [0, 1].

    Example:
        >>> unit_of("test_accuracy", [0.5, 0.9]).points, unit_of("test_accuracy", [50.0]).points
        (True, False)
    """
    inside = all(0 <= value <= 1 for value in values if math.isfinite(value))
    return Unit(metric, points="accuracy" in metric.lower() and inside)


def metric_words(metric: str) -> str:
    """A metric's name in words.

    Example:
        >>> metric_words("valid_accuracy")
        'validation accuracy'
    """
    return " ".join(_WORDS.get(word, word) for word in metric.split("_") if word)


def setting(name: str, level: Level) -> str:
    """A factor at a level: "norm=batch"."""
    return f"{name}={level_text(level)}"


def settings(config: Mapping[str, Level]) -> str:
    """A configuration in one line: "norm=batch, dropout=0.5"."""
    return ", ".join(setting(name, level) for name, level in config.items())


def listed(names: Sequence[str], conjunction: str = "and") -> str:
    """A list as a sentence has it.

    Example:
        >>> listed(["dropout", "l1", "crop"])
        'dropout, l1 and crop'
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} {conjunction} {names[-1]}"


def counted(count: int, word: str) -> str:
    """A number with its noun: "1 trial", "20 trials"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """A text with a capital letter at its start; the others stay as they are."""
    return text[:1].upper() + text[1:]
