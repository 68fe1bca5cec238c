"""What page, terminal and files show of an examination: its numbers in words. Nothing is measured or random here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from homeostat.doctor.finding import SEVERITIES, Finding, Severity
from homeostat.page.text import duration, shorten

if TYPE_CHECKING:
    from homeostat.doctor.examine import Examination

NAMES: Mapping[Severity, tuple[str, str]] = {
    "error": ("error", "errors"),
    "warning": ("warning", "warnings"),
    "info": ("remark", "remarks"),
}
MARKS: Mapping[Severity, str] = {"error": "✖", "warning": "▲", "info": "○"}
_SHORT = frozenset({"a", "an", "as", "at", "by", "if", "in", "is", "it", "no", "of", "on", "or", "so", "to"})
_LONG = 120  # characters of a text in the evidence


@dataclass(frozen=True)
class Standing:
    """What a training reached, beside what is honest to expect; nan and "" where it is not known."""

    metric: str
    score: float
    train_score: float
    baseline: float
    baseline_name: str
    steps: int
    total: int

    @property
    def progress(self) -> str:
        """How much of the user's own training that was."""
        if not self.total:
            return f"after {self.steps:,} steps"
        if self.steps >= self.total:
            return f"after all {self.total:,} steps"
        return f"after {self.steps:,} of {self.total:,} steps"


def standing(examination: Examination) -> Standing:
    """The score of the trial and the best baseline."""
    chart = examination.chart
    if chart is None:
        return Standing("score", math.nan, math.nan, math.nan, "", 0, 0)
    course, baselines = chart.course, chart.baselines
    best, name = (math.nan, "") if baselines is None else (baselines.best, baselines.best_name)
    return Standing(chart.score.name, course.score, course.train_score, best, name, course.steps, course.total)


def counts(findings: Iterable[Finding]) -> str:
    """How many of each severity.

    Example:
        >>> counts([Finding("SIG001", "dead-units", "error", (), "text"), Finding("SIG001", "x", "info", (), "text")])
        '1 error, 1 remark'
    """
    found = [finding.severity for finding in findings]
    texts = [f"{n} {NAMES[s][n != 1]}" for s in reversed(SEVERITIES) if (n := found.count(s))]
    return ", ".join(texts) if texts else "nothing found"


def facts(examination: Examination) -> str:
    """Counts, time and steps on one line."""
    parts = [counts(examination.findings), f"took {duration(examination.seconds)}"]
    if examination.steps:
        parts.append(f"{examination.steps:,} training steps")
    return " · ".join(parts)


def evidence(finding: Finding) -> list[tuple[str, str]]:
    """The evidence as pairs of a name and a text."""
    return [(str(name).replace("_", " "), value_text(value)) for name, value in finding.evidence.items()]


def value_text(value: Any) -> str:
    """A value of the evidence for people.

    Example:
        >>> value_text(0.1234567), value_text([1, 2.5]), value_text(True), value_text(float("inf"))
        ('0.1235', '1, 2.5', 'yes', '∞')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Mapping):
        return shorten(", ".join(f"{key}: {value_text(item)}" for key, item in value.items()), _LONG)
    if isinstance(value, list | tuple | set | frozenset):
        return shorten(", ".join(value_text(item) for item in value), _LONG)
    return shorten(str(value), _LONG)


def number(value: float) -> str:
    """A number with four digits that count.

    Example:
        >>> number(0.00012345), number(1234.5), number(-0.5), number(float("nan")), number(1e12)
        ('0.0001234', '1234', '−0.5', '–', '1e12')
    """
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.4g}" if not 1e4 <= abs(value) < 1e6 else f"{value:,.0f}"
    mantissa, exponent, power = text.partition("e")
    text = f"{mantissa}e{int(power)}" if exponent else mantissa
    return text.replace("-", "−")


def score_text(value: float) -> str:
    """A score with three digits that count, as it is compared."""
    return number(float(f"{value:.3g}"))


def sentence(text: str) -> str:
    """The text with a capital letter first, unless it begins with a name.

    Example:
        >>> sentence("accuracy is low."), sentence("fc1.weight is zero."), sentence("R² is low.")
        ('Accuracy is low.', 'fc1.weight is zero.', 'R² is low.')
    """
    first = text.partition(" ")[0]
    return text[:1].upper() + text[1:] if first.isalpha() and (len(first) > 2 or first in _SHORT) else text


def jsonable(value: Any) -> Any:
    """The value as JSON has it: what is not finite and what JSON does not know become texts."""
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item) for item in value]
    return jsonable(value.item()) if callable(getattr(value, "item", None)) else str(value)


def by_severity(findings: Iterable[Finding]) -> Iterator[tuple[Severity, list[Finding]]]:
    """The findings in groups, errors first; a severity without any is left out."""
    everything = list(findings)
    for severity in reversed(SEVERITIES):
        group = [finding for finding in everything if finding.severity == severity]
        if group:
            yield severity, group
