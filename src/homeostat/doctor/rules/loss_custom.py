"""The loss function and the outputs it is given: here whether both are those that the task customarily has.

Most of what deviates trains all the same, so most of these suspicions need an ill training and a change that recovers
it. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.loss.fitting import (
    BCE_PROBABILITIES,
    CE_NORMALIZED,
    CE_PROBABILITIES,
    SQUARED,
    Fitting,
    fitting_of,
)
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_BLIND = 0.9  # of outputs near their targets without gradient
_MARGINS = ("hinge loss", "hinge loss with 0 and 1 made signs", "squared hinge loss", "margin between classes")
_DISTANCES = (
    *(SQUARED, "Huber loss", "log-cosh", "squared logarithmic error"),
    *("squared error of the softmax", "squared error of the sigmoid"),
)
_CLASSES = ("multiclass", "binary", "multilabel")


class UnsuitedLoss(Rule):
    """The loss is one for another kind of targets.

    What it checks: which known loss it is, against the kind of task. For values: a loss that ends beyond [0, 1], or
    that has no gradient near the targets. For classes: distances instead of a likelihood, an absolute error, a margin
    on probabilities, a likelihood of a single class where several may be true, a missing logarithm.

    Why it hurts: a cross entropy of unbounded values is clamped or falls without end. Distances of probabilities have
    vanishing gradients where the model is sure and wrong; an absolute error of probabilities hardly any elsewhere.

    Threshold and its source: a matter of form. Certain only where most values near the targets have no gradient (0.9),
    the loss has no least value, or there is one output for several classes; an absolute error of classes is likely (it
    trains badly with many classes, Zhang & Sabuncu); a squared error is possible (it often does as well, Hui & Belkin)
    and must be beaten by the customary loss in an ill training.

    False alarms: those: hence the degrees of certainty.

    Repair and its safety: the customary loss for the outputs as they are; safe.

    References: Golik, Doetsch & Ney 2013, Interspeech (cross entropy and squared error); Zhang & Sabuncu 2018,
    arXiv:1805.07836; Hui & Belkin 2020, arXiv:2006.07322.
    """

    code = "LOS009"
    slug = "unsuited-loss"
    causes = ("wrong_loss",)
    requires = ("LOS001", "LOS002", "LOS003", "LOS005", "LOS006")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.layout.form == "unlike":
            return
        found = self._for_values(fitting, chart) if fitting.kind == "regression" else self._for_classes(fitting)
        if found is None:
            return
        text, certainty = found
        remedy = {
            "regression": "Use a squared or absolute error.",
            "multiclass": "Use one output per class with cross_entropy on logits, or a likelihood of probabilities.",
        }.get(fitting.kind, "Use binary cross entropy.")
        name = fitting.known or "unknown"
        yield Suspect(text, remedy, certainty, evidence={"loss": name}, changes=fitting.mended())

    def _for_values(self, fitting: Fitting, chart: Chart) -> tuple[str, Certainty] | None:
        facts = fitting.facts
        low, high = float(chart.train.targets.min()), float(chart.train.targets.max())
        span = f"targets go from {low:.4g} to {high:.4g}"
        if (facts.blind or 0.0) >= _BLIND:
            return f"The loss has no gradient where outputs are near their targets; {span}.", "certain"
        takes = facts.match.known.takes if facts.match is not None else "values"
        if takes == "unit" and (low < 0 or high > 1):
            return f"The loss, {fitting.known}, is for targets in [0, 1]; {span}.", "certain"
        if takes == "signs":  # losses on classes take distributions over them too, which are values
            return f"The loss, {fitting.known}, is for classes; {span}.", "likely"
        return None

    def _for_classes(self, fitting: Fitting) -> tuple[str, Certainty] | None:
        name, kind = fitting.known, fitting.kind
        what = "several classes" if kind == "multiclass" else "truth values"
        if kind not in _CLASSES or (fitting.signed and name != "absolute error"):
            return None
        if fitting.score.numbered:
            many = f"The model gives one number for {fitting.score.classes} classes"
            return f"{many}: the loss takes their numbers for quantities, in an order that they do not have.", "certain"
        if kind == "multilabel" and 1 in fitting.facts.shifts:
            return "The loss applies a softmax over truth values of which several may be true.", "likely"
        if name == "absolute error":
            return (
                f"The loss is an absolute error for {what}: its gradient is the same for every wrong answer.",
                "likely",
            )
        if name == "negative log-likelihood" and fitting.softmaxed:
            return (
                "The loss takes logarithms of probabilities and gets probabilities: the logarithm is missing.",
                "likely",
            )
        if name in _MARGINS and (fitting.softmaxed or fitting.squashed):
            return f"The loss, {name}, asks for margins that probabilities cannot give.", "likely"
        centered = fitting.tail is not None and -math.inf < fitting.tail.low < 0  # as for signs
        if name in _DISTANCES and not centered and not (fitting.bare and kind != "multiclass"):
            return (
                f"The loss, {name}, is a distance for {what}: where the model is sure and wrong it pulls weakly.",
                "possible",
            )
        if kind == "multiclass" and name == BCE_PROBABILITIES and fitting.softmaxed:
            return "The loss treats classes that exclude each other as truth values.", "possible"
        return None


class UnsuitedOutputActivation(Rule):
    """The last activation bounds what the loss takes, though the targets could be reached.

    What it checks: a rectifier, tanh, sigmoid or another bounded activation in front of a loss on logits; anything but
    a softmax in front of a cross entropy over classes, anything but a sigmoid in front of one on truth values.

    Why it hurts: bounded logits cannot become sure; a rectifier can give zeros for all classes, with no gradient; a
    cross entropy that looks at the right class alone is least where every sigmoid says yes.

    Threshold and its source: a matter of form.

    False alarms: sigmoids with a cross entropy that normalizes over the classes train well, and are only tried where a
    training is ill; the others need an ill training too, or a change that recovers it.

    Repair and its safety: the activation off, with the loss on logits, or the customary one; unsafe.

    References: Bishop 2006, Pattern Recognition and Machine Learning, 5.2 (output units and error functions).
    """

    code = "LOS010"
    slug = "unsuited-output-activation"
    causes = ("wrong_output_activation",)
    requires = ("LOS001", "LOS002", "LOS005", "LOS007", "LOS008")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.tail is None or not fitting.tail.bounded or fitting.kind not in _CLASSES:
            return
        if fitting.facts.layout.form == "unlike" or fitting.summing is not None:  # over whichever axis
            return
        found = self._for_classes(fitting) if fitting.class_axis is not None else self._for_truth(fitting)
        if found is None:
            return
        text, certainty = found
        span = {"low": fitting.tail.low, "high": fitting.tail.high}
        evidence = {"activation": fitting.activation, **{key: f"{value:.3g}" for key, value in span.items()}}
        remedy = "Use a softmax." if fitting.class_axis is not None else "Use a sigmoid."
        remedy += " Or no activation, with the loss on logits."
        yield Suspect(text, remedy, certainty, layer=fitting.tail.module, evidence=evidence, changes=fitting.mended())

    def _for_classes(self, fitting: Fitting) -> tuple[str, Certainty] | None:
        tail, expects, name = fitting.tail, fitting.facts.expects, fitting.activation
        if tail is None or (fitting.log_softmaxed and expects != "probabilities"):
            return None
        bounds = f"{tail.title} gives values from {tail.low:.3g} to {tail.high:.3g}"
        if expects == "logits":
            return f"The last activation, {bounds}, and the loss takes logits.", "likely"
        if expects == "log-probabilities":
            return f"The last activation, {bounds}, and the loss takes logarithms of probabilities.", "likely"
        if expects != "probabilities":
            return None
        if tail.low < 0:
            text = f"The last activation, {bounds}, and the loss takes probabilities."
            return text, "certain" if fitting.facts.seen.low < 0 else "likely"
        if fitting.squashed and fitting.known == CE_NORMALIZED:
            return f"The classes exclude each other, and each has a {name} of its own.", "possible"
        if fitting.known == CE_PROBABILITIES:
            return f"The loss looks at the right class alone, and {name} lets all classes be sure together.", "likely"
        return f"The last activation is {tail.title}, and the loss takes probabilities over classes.", "likely"

    def _for_truth(self, fitting: Fitting) -> tuple[str, Certainty] | None:
        tail, expects = fitting.tail, fitting.facts.expects
        if tail is None or fitting.squashed or fitting.signed or fitting.activation == "softmax":
            return None
        bounds = f"{tail.title} gives values from {tail.low:.3g} to {tail.high:.3g}"
        if expects == "probabilities":
            outside = fitting.facts.seen.finite and not fitting.facts.seen.in_unit
            text = f"The last activation, {bounds}, and the loss takes probabilities."
            return text, "certain" if tail.low < 0 and outside else "likely"
        if expects == "logits":
            return f"The last activation, {bounds}, and the loss takes logits.", "likely"
        if fitting.known == SQUARED and tail.low == 0:
            return f"The last activation, {bounds}, and the targets are truth values.", "possible"
        return None
