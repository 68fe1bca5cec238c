"""Rules and suspects: a rule proposes, from evidence, what may be wrong; whether it stands is decided by `judge`.

A rule's docstring is its page: `homeostat explain CODE` and docs/rules show it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from homeostat.doctor.changes.change import Change
from homeostat.doctor.finding import Severity

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

Certainty = Literal["certain", "likely", "possible"]


@dataclass(frozen=True)
class Suspect:
    """What a rule has against a training.

    `certain` is a fault by construction and stands at once. `likely` stands if the training is ill or an intervention
    recovers it, and is kept as a remark otherwise. `possible` stands only if an intervention recovers, and is dropped
    otherwise.
    """

    message: str
    remedy: str
    certainty: Certainty
    severity: Severity = "warning"
    """What it is where it stands."""
    layer: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    causes: tuple[str, ...] | None = None
    """None: the rule's."""
    changes: tuple[Change, ...] = ()
    """Interventions that would convict, the most telling first."""


class Rule(ABC):
    """One pattern. The docstring of a subclass has the sections What it checks, Why it hurts, Threshold and its
    source, False alarms, Repair and its safety, References."""

    code: ClassVar[str]
    slug: ClassVar[str]
    causes: ClassVar[tuple[str, ...]]
    requires: ClassVar[tuple[str, ...]] = ()
    """Codes of root causes, or their first letters: where one stands, this rule's findings are its consequences."""

    @abstractmethod
    def check(self, chart: Chart) -> Iterator[Suspect]:
        """The suspects on this chart."""
