"""Whether what a model gives and what its loss takes go together, and which changes would make them.

The rules on losses and output activations share this view of a chart. Not random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.loss import ReplaceLoss
from homeostat.doctor.changes.output import ChangeOutput
from homeostat.doctor.loss.known import RATES
from homeostat.doctor.loss.metamorphic import LossFacts
from homeostat.doctor.loss.outputs import LastActivation, last_activation
from homeostat.doctor.score import Score

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

CE_LOGITS = "cross entropy on logits"
CE_PROBABILITIES = "cross entropy on probabilities"
CE_NORMALIZED = "cross entropy on normalized probabilities"
BCE_LOGITS = "binary cross entropy on logits"
BCE_PROBABILITIES = "binary cross entropy on probabilities"
NLL = "negative log-likelihood"
SQUARED = "squared error"
REGRESSION = (SQUARED, "absolute error", "Huber loss", "log-cosh", "squared logarithmic error")
"""Losses whose optimum is the target itself."""

SQUASHED = frozenset({"sigmoid", "hardsigmoid"})
"""Activations that give one probability per column."""


@dataclass(frozen=True)
class Fitting:
    """A loss, the outputs that it gets, and the task."""

    facts: LossFacts
    score: Score
    tail: LastActivation | None
    """The last activation; None if that is not known."""
    signed: bool
    """Whether truth values are -1 and 1."""

    @property
    def kind(self) -> str:
        """The task's."""
        return self.score.kind

    @property
    def known(self) -> str:
        """The name of the loss; "" if it is none of the known ones."""
        return self.facts.match.known.name if self.facts.match is not None else ""

    @property
    def class_axis(self) -> int | None:
        """Where outputs count classes; None where every column stands for itself."""
        layout = self.facts.layout
        return layout.axis if layout.form in ("index", "one-hot") else None

    @property
    def activation(self) -> str:
        """The name of the last activation; "?" if that is not known, "" for none."""
        return "?" if self.tail is None else self.tail.name

    @property
    def softmaxed(self) -> bool:
        """Whether outputs are probabilities that sum to one over the classes, by construction."""
        axis = self.class_axis
        return axis is not None and self.summing == axis

    @property
    def summing(self) -> int | None:
        """The axis of a softmax in the model: along which outputs sum to one, and not by chance."""
        if self.activation != "?" and "soft" not in self.activation:
            return None  # two idle sigmoids sum to one as well
        return self.facts.seen.sum_axis

    @property
    def log_softmaxed(self) -> bool:
        """Whether outputs are logarithms of such probabilities."""
        axis = self.class_axis
        return axis is not None and self.facts.seen.log_axis == axis

    @property
    def squashed(self) -> bool:
        """Whether every output is a probability of its own."""
        return self.activation in SQUASHED

    @property
    def bare(self) -> bool:
        """Whether outputs are what a weight layer gave."""
        return self.activation == ""

    @property
    def squares(self) -> bool:
        """Whether the loss is at its least where outputs equal targets."""
        return self.known in REGRESSION or bool(self.facts.aims)

    def replace(self, name: str) -> ReplaceLoss:
        """Another loss for the outputs as they are."""
        return ReplaceLoss(name, self.facts.layout)

    def output(self, activation: str, loss: str = "") -> ChangeOutput:
        """Another last activation, with a loss that fits it."""
        before = self.activation if self.activation != "?" else "softmax" if self.softmaxed else ""
        module = self.tail.module if self.tail is not None else None
        return ChangeOutput(activation, self.facts.layout, loss, before, module or "")

    @property
    def customary(self) -> bool:
        """Whether output and loss are such as the task usually has."""
        name = self.known
        if self.kind == "multiclass" and self.class_axis is not None:
            if self.softmaxed:
                return name in (CE_PROBABILITIES, CE_NORMALIZED)
            return (self.bare and name == CE_LOGITS) or (self.log_softmaxed and name in (CE_LOGITS, NLL))
        if self.kind in ("binary", "multilabel"):
            return (self.squashed and name == BCE_PROBABILITIES) or (self.bare and name == BCE_LOGITS)
        positive = self.tail is not None and self.tail.low >= 0
        return self.kind == "regression" and ((self.bare and name in REGRESSION) or (positive and name == RATES))

    def mended(self) -> tuple[Change, ...]:
        """What makes output and loss customary, the least change first; () where they are, or where it is not clear."""
        if self.customary or self.facts.comparable is False:
            return ()
        if self.kind == "multiclass" and self.class_axis is not None:
            return self._mended_classes()
        if self.kind in ("binary", "multilabel") and self.facts.layout.form == "same":
            return self._mended_truth()
        if self.kind == "regression" and self.facts.layout.form == "same":
            meant = self.facts.meant
            name = meant.name if meant is not None and meant.name in REGRESSION else SQUARED
            return (self.replace(name),) if self.bare else (self.output("", name),)
        return ()

    def _mended_classes(self) -> tuple[Change, ...]:
        if self.softmaxed:
            return (self.replace(CE_NORMALIZED), self.output("", CE_LOGITS))
        if self.bare or self.log_softmaxed:
            return (self.replace(CE_LOGITS),)
        return (self.output("", CE_LOGITS), self.output("softmax", CE_NORMALIZED))

    def _mended_truth(self) -> tuple[Change, ...]:
        if self.signed:
            return (self.replace("hinge loss"),) if self.bare else ()
        if self.squashed:
            return (self.replace(BCE_PROBABILITIES),)
        probabilities = self.output("sigmoid", BCE_PROBABILITIES)
        return (self.replace(BCE_LOGITS), probabilities) if self.bare and self.score.boundary == 0 else (probabilities,)


def fitting_of(chart: Chart) -> Fitting | None:
    """The view; None where the loss could not be asked."""
    if chart.loss is None:
        return None
    tail = last_activation(chart.structure, chart.training.model)
    targets = chart.train.targets
    signed = bool(targets.numel()) and float(targets.min()) < 0
    return Fitting(chart.loss, chart.score, tail, signed)


def unreachable(fitting: Fitting, targets: Tensor) -> float:
    """The share of the targets' variance that outputs in the last activation's range leave unexplained at best.

    Args:
        targets: shape (N, ...), one number for each output.
    Returns: a number >= 0; 0 where everything can be reached, or nothing is known.
    """
    tail = fitting.tail
    if tail is None or not tail.bounded or not targets.numel():
        return 0.0
    values = targets.detach().double().reshape(len(targets), -1)
    values = values[values.isfinite().all(1)]
    total = float((values - values.mean(0)).square().sum()) if len(values) else 0.0
    if total <= 0:
        return 0.0
    low, high = (bound if math.isfinite(bound) else None for bound in (tail.low, tail.high))
    lost = (values - torch.clamp(values, low, high)).square().sum()
    if tail.name == "softmax" and values.shape[1] > 1 and fitting.facts.seen.sum_axis is not None:
        lost = torch.maximum(lost, ((values.sum(1) - 1).square() / values.shape[1]).sum())
    return float(lost) / total
