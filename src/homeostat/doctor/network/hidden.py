"""The hidden activations of a chart's model, each with what the probe saw of it, and what kind of model it is.

Functions are judged by their slopes, not by their names: a sigmoid under another name is weak all the same.
Not random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from torch import nn

from homeostat.doctor.changes.activation import SwapActivation
from homeostat.doctor.changes.change import Change
from homeostat.doctor.network.layers import LayerFacts
from homeostat.doctor.network.probe import Probe
from homeostat.doctor.network.structure import Step, Structure

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

WEAK = 0.3
"""A function whose slope is at most this where it is steep takes from the gradient at every layer: the logistic
function has 1/4 (Glorot & Bengio 2010), tanh and rectifiers have 1."""

EXPLOSIVE = 10.0
"""A function whose slope grows this much from 2 to 8 makes large numbers larger from layer to layer: exp 403, a square
4, everything in use 1."""

_LOOPING = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)


@dataclass(frozen=True)
class Hidden:
    """An activation between weight layers."""

    step: Step
    facts: LayerFacts

    @property
    def softmax(self) -> bool:
        """Whether units compete: the sum over them is 1."""
        return "softmax" in self.step.name

    @property
    def weak(self) -> bool:
        """Whether it passes little of a gradient even at its best."""
        slopes = self.facts.slopes
        return self.softmax or (slopes is not None and slopes.steepest <= WEAK)

    @property
    def explosive(self) -> bool:
        """Whether it grows faster than its input."""
        return self.facts.slopes is not None and self.facts.slopes.growth > EXPLOSIVE


def hidden_of(chart: Chart, probe: Probe | None = None) -> list[Hidden]:
    """The hidden activations in the order of execution; those that are not in the structure are left out."""
    probe = probe or chart.probe
    if chart.structure is None or probe is None:
        return []
    names: dict[str, Step] = {}
    wanted = set(chart.structure.hidden)
    for name, step in _named(chart.structure):
        if step in wanted:
            names.setdefault(name, step)
    return [Hidden(names[facts.name], facts) for facts in probe.layers if facts.name in names]


def is_chain(chart: Chart) -> bool:
    """Whether signals pass the layers one after the other: no residual branches, attention or recurrence."""
    structure = chart.structure
    looping = any(isinstance(module, _LOOPING) for module in chart.training.model.modules())
    return structure is not None and not structure.residual and not looping


def is_plain(chart: Chart) -> bool:
    """Whether, besides, nothing is normalized on the way."""
    structure = chart.structure
    return is_chain(chart) and structure is not None and not structure.norms and "norm" not in structure.functional


def is_cut(chart: Chart, probe: Probe, layer: LayerFacts) -> bool:
    """Whether an activation that passes nothing stands in every way: no gradient gets past it to a layer before."""
    if chart.structure is None:
        return False
    step = next((step for name, step in _named(chart.structure) if name == layer.name), None)
    before = takewhile(lambda each: each is not layer, probe.layers)
    return step is not None and chart.structure.is_cut(step) and not any(each.gradient_rms > 0 for each in before)


def overflows(chart: Chart) -> bool:
    """Whether the first outputs are not finite: what else is seen there follows from that."""
    return chart.probe is not None and not bool(chart.probe.outputs.isfinite().all())


def is_output(chart: Chart, layer: LayerFacts) -> bool:
    """Whether an activation stands behind the last weight layer."""
    if chart.structure is None:
        return False
    names = {
        step.module or f"{step.name}() after {last}" for step in chart.structure.tail for last in chart.structure.last
    }
    return layer.name in names


def swap(chart: Chart, hidden: list[Hidden], to: str) -> tuple[Change, ...]:
    """The change of these activations' kind; nothing where they are of that kind, or cannot be exchanged."""
    names = tuple(dict.fromkeys(each.step.name for each in hidden if each.step.name != to))
    change = SwapActivation.of(chart.structure, to, names) if chart.structure is not None and names else None
    return () if change is None else (change,)


def _named(structure: Structure) -> Iterator[tuple[str, Step]]:
    """Every step with the name that a probe gives it."""
    for link in structure.links:
        for step in link.steps:
            yield step.module or f"{step.name}() after {link.source}", step
