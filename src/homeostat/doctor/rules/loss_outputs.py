"""The loss function and the outputs it is given: here whether the last activation gives what loss and targets need.

What the loss takes is measured (`loss_tests`), what the model gives is read off its structure and a batch
(`model_outputs`), and `fitting` brings them together. What is only unusual is in `loss_custom`. Not random.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.finding import Severity
from homeostat.doctor.loss.fitting import (
    BCE_LOGITS,
    BCE_PROBABILITIES,
    CE_LOGITS,
    CE_NORMALIZED,
    SQUARED,
    Fitting,
    fitting_of,
    unreachable,
)
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_LOST = 0.05  # of the targets' variance, out of reach: certain. R² can be 0.95 at best
_LITTLE = 0.01  # out of reach: worth a suspicion
_FLOOR = 0.3  # of the loss of undecided outputs, left by perfect ones: 0.56 to 0.7 for a second softmax or sigmoid
_MANY = 0.05  # of the rows with several yes, which a softmax cannot give
_CLASSES = ("multiclass", "binary", "multilabel")
_SECOND_SOFTMAX = "cross entropy of a softmax of the softmax"


class SoftmaxWrongAxis(Rule):
    """A softmax goes over the examples, or over positions, instead of over the classes.

    What it checks: on the model's side, outputs that sum to one along another axis than that of the classes; in the
    loss, an axis along which a constant may be added to the outputs without any effect, while it may not be over the
    classes.

    Why it hurts: examples compete with each other; what the model answers depends on the batch, and a single example
    always gets probability one.

    Threshold and its source: sums within 1e-3 of one for every column, and invariance to 1e-4, both beyond rounding.

    False alarms: none known for tasks with classes; losses between two views (contrastive) take no class targets.

    Repair and its safety: a cross entropy on logits over the classes (safe), or the softmax over the right axis
    (unsafe).

    References: Humbatova et al. 2020, arXiv:1910.11015 (wrong tensor shape and axis).
    """

    code = "LOS005"
    slug = "softmax-wrong-axis"
    causes = ("softmax_wrong_axis", "loss_impl_bug")
    requires = ("LOS001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.kind not in _CLASSES or fitting.facts.layout.form == "unlike":
            return
        facts, axis = fitting.facts, fitting.class_axis
        remedy = f"Take the softmax over axis {1 if axis is None else axis}, which counts the classes."
        wrong = [a for a in facts.shifts if a != axis and (axis is not None or a == 0)]
        if wrong and axis not in facts.shifts:
            text = f"The loss applies a softmax over axis {wrong[0]} of the outputs {facts.seen.shape}."
            yield Suspect(text, remedy, "certain", "error", evidence={"axis": wrong[0]}, changes=fitting.mended())
        elif facts.seen.shape[0] > 2 and (axis is not None or facts.seen.columns == 1):
            over = fitting.summing
            if over is None and fitting.activation in ("?", "log_softmax"):
                over = facts.seen.log_axis
            if over is None or over == axis:
                return
            text = f"The model's outputs {facts.seen.shape} sum to one over axis {over}."
            logits = CE_LOGITS if axis is not None else BCE_PROBABILITIES
            change = fitting.output("" if axis is not None else "sigmoid", logits)
            causes = ("softmax_wrong_axis", "wrong_output_activation")
            yield Suspect(text, remedy, "certain", "error", evidence={"axis": over}, causes=causes, changes=(change,))


class MissingOutputActivation(Rule):
    """The loss takes probabilities, or their logarithms, and the model gives bare numbers.

    What it checks: the loss is one on probabilities (a known one, or one that ends beyond [0, 1]) or on
    log-probabilities, and nothing but reshaping stands behind the last layer. And, as a deviation from custom, truth
    values fitted by a squared error of bare numbers.

    Why it hurts: outside [0, 1] the loss is clamped, and has no gradient, or is not a number; a negative
    log-likelihood of bare numbers falls without end.

    Threshold and its source: none; it is a matter of form. Where the structure is not known, outputs outside [0, 1].

    False alarms: least squares on truth values works, and is only tried where a training is ill.

    Repair and its safety: the form of the loss that takes logits (safe), or a sigmoid (unsafe).

    References: Schoop et al. 2021, UMLAUT, doi:10.1145/3411764.3445538; Braiek & Khomh 2022, arXiv:2204.00694.
    """

    code = "LOS006"
    slug = "missing-output-activation"
    causes = ("missing_output_activation",)
    requires = ("LOS001", "LOS002", "LOS005")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.layout.form == "unlike":
            return
        facts = fitting.facts
        span = f"[{facts.seen.low:.3g}, {facts.seen.high:.3g}]"
        evidence = {"low": facts.seen.low, "high": facts.seen.high}
        outside = facts.seen.finite and not facts.seen.in_unit
        unknown = fitting.activation == "?"
        truth = fitting.kind in _CLASSES or (fitting.known == BCE_PROBABILITIES and fitting.kind == "regression")
        if facts.expects == "probabilities" and truth and (fitting.bare or (unknown and outside)):
            softmax = fitting.class_axis is not None
            yield Suspect(
                f"The loss takes probabilities, and the model gives bare numbers, now in {span}.",
                f"Use the loss on logits, or put a {'softmax' if softmax else 'sigmoid'} behind the last layer.",
                "certain" if fitting.known and fitting.bare and outside else "likely",
                "error",
                evidence=evidence,
                changes=fitting.mended() if fitting.kind in _CLASSES else (fitting.output("sigmoid"),),
            )
        elif facts.expects == "log-probabilities" and not fitting.log_softmaxed and (fitting.bare or unknown):
            if fitting.kind == "multiclass" and not fitting.softmaxed:
                text = f"The loss takes logarithms of probabilities, and the model gives bare numbers, now in {span}."
                remedy = "Use cross_entropy, or put a log_softmax behind the last layer."
                yield Suspect(text, remedy, "certain", "error", evidence=evidence, changes=fitting.mended())
        elif fitting.bare and fitting.known == SQUARED and fitting.kind in ("binary", "multilabel"):
            text = "Truth values are fitted by a squared error of bare numbers."
            remedy = "Put a sigmoid behind the last layer, with binary cross entropy."
            change = () if fitting.signed else (fitting.output("sigmoid", BCE_PROBABILITIES),)
            causes = ("missing_output_activation", "wrong_loss")
            yield Suspect(text, remedy, "possible", evidence=evidence, causes=causes, changes=change)


class UnreachableTargets(Rule):
    """The last activation cannot give the values that the targets have.

    What it checks: the range of the last activation against the targets, where the loss asks for equality. A softmax
    over a single unit is the extreme: it always gives 1. A softmax over truth values that are not exclusive is another:
    at most one of its outputs exceeds one half.

    Why it hurts: what lies outside the range can never be learned, and near its ends the gradient is small or zero.

    Threshold and its source: the share of the targets' variance that the best outputs in the range leave, which is 1 -
    R² at best. From 0.05 it is certain: as much as a rectifier leaves of normal targets of which one in eight is
    negative; a tanh on standardized normal targets leaves 0.15. From 0.01 it is likely.

    False alarms: a loss that rescales the targets inside is not at its least where outputs equal targets, and is left
    alone; so is a model that has done better than the bound.

    Repair and its safety: no last activation for values, a sigmoid for truth values; unsafe.

    References: Bishop 2006, Pattern Recognition and Machine Learning, 5.2 (output units and error functions).
    """

    code = "LOS007"
    slug = "unreachable-targets"
    causes = ("wrong_output_activation", "constant_output")
    requires = ("LOS001", "LOS002", "LOS005")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.tail is None or fitting.facts.layout.form != "same":
            return
        seen, tail = fitting.facts.seen, fitting.tail
        truth = fitting.kind in ("binary", "multilabel") and not fitting.signed
        if tail.name == "softmax" and seen.low == seen.high == 1.0:
            text = "The last activation is a softmax over a single unit: it gives 1 for every example."
            remedy = "Use a sigmoid." if truth else "Use no activation behind the last layer."
            change = fitting.output("sigmoid", BCE_PROBABILITIES) if truth else fitting.output("", self._loss(fitting))
            yield Suspect(text, remedy, "certain", "error", tail.module, {"output": 1.0}, changes=(change,))
            return
        if fitting.kind == "multilabel" and tail.name == "softmax":
            yield from self._exclusive(fitting, chart)
            return
        if fitting.kind not in ("regression", "binary", "multilabel") or not fitting.squares:
            return
        lost = unreachable(fitting, chart.train.targets)
        if lost < _LITTLE or chart.course.score > 1 - lost + _LITTLE:
            return
        low, high = float(chart.train.targets.min()), float(chart.train.targets.max())
        text = (
            f"The last activation, {tail.title}, gives values from {tail.low:.3g} to {tail.high:.3g}; targets go from "
            f"{low:.4g} to {high:.4g}. At best {min(lost, 1):.0%} of their variance stays unexplained."
        )
        remedy = (
            "Use a sigmoid."
            if truth
            else "Use no activation behind the last layer, or scale the targets into its range."
        )
        certainty: Certainty = "certain" if lost >= _LOST else "likely"
        severity: Severity = "error" if lost >= _LOST else "warning"
        change = fitting.output("sigmoid", BCE_PROBABILITIES) if truth else fitting.output("", self._loss(fitting))
        yield Suspect(text, remedy, certainty, severity, tail.module, {"unreachable": lost}, changes=(change,))

    def _exclusive(self, fitting: Fitting, chart: Chart) -> Iterator[Suspect]:
        """A softmax over truth values of which several may be true."""
        several = float((chart.train.targets.reshape(len(chart.train), -1) > 0.5).sum(1).gt(1).double().mean())
        if several < _MANY:
            return
        text = f"A softmax gives at most one output above one half; {several:.0%} of the examples have several true."
        module = fitting.tail.module if fitting.tail is not None else None
        change = fitting.output("sigmoid", BCE_PROBABILITIES)
        causes = ("wrong_output_activation",)
        yield Suspect(
            text, "Use a sigmoid for each.", "certain", "error", module, {"several": several}, causes, (change,)
        )

    def _loss(self, fitting: Fitting) -> str:
        """Another loss only where the present one cannot take bare numbers."""
        return "" if fitting.squares and fitting.facts.expects == "values" else SQUARED


class RedundantSoftmax(Rule):
    """The loss applies a softmax or sigmoid to what is a probability already.

    What it checks: the loss takes logits (a known one, or one that does not change when a constant is added over the
    classes), and the outputs are probabilities by the model's last activation.

    Why it hurts: probabilities as logits lie within 0 and 1. Over ten classes the surest right answer still has a loss
    of 1.46, two thirds of that of a blind guess; gradients are small and the model cannot become sure.

    Threshold and its source: a matter of form for known losses. For others perfect outputs must leave 0.3 of the loss
    of undecided ones; a second softmax leaves 0.5 to 0.7, a loss on probabilities nothing.

    False alarms: none for known losses; logarithms of probabilities may go through another softmax, which does nothing
    to them, and are left alone. Such a training may well work, only worse than it could.

    Repair and its safety: the loss on probabilities (safe), or no last activation (unsafe).

    References: Bridle 1990, doi:10.1007/978-3-642-76153-9_28 (softmax); Nikanjam et al. 2021, arXiv:2105.08095.
    """

    code = "LOS008"
    slug = "redundant-softmax"
    causes = ("redundant_softmax",)
    requires = ("LOS001", "LOS002", "LOS005", "LOS007")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.kind not in _CLASSES:
            return
        facts = fitting.facts
        evidence = {"left": facts.floor if facts.floor is not None else "unknown"}
        layer = fitting.tail.module if fitting.tail is not None else None
        named = bool(fitting.known)
        if fitting.known == _SECOND_SOFTMAX:
            text = "The loss applies a softmax twice to the outputs."
            yield Suspect(text, "Apply it once.", "certain", evidence=evidence, changes=fitting.mended())
        elif fitting.softmaxed and (facts.expects == "logits" or fitting.class_axis in facts.shifts):
            again = "sigmoid" if fitting.known == BCE_LOGITS else "softmax"
            text = f"The outputs are probabilities that sum to one, and the loss applies a {again} to them again."
            remedy = "Give the loss what stands before the softmax, or use the loss on probabilities."
            keep = "" if facts.expects == "logits" else CE_LOGITS
            changes = (fitting.replace(CE_NORMALIZED), fitting.output("", keep))
            yield Suspect(text, remedy, "certain", layer=layer, evidence=evidence, changes=changes)
        elif fitting.class_axis is None and fitting.squashed and (facts.floor or 0.0) > _FLOOR:
            if named and facts.expects != "logits":
                return
            text = "The outputs are probabilities, and the loss applies a sigmoid to them again."
            remedy = "Give the loss what stands before the sigmoid, or use the loss on probabilities."
            causes = ("redundant_softmax", "wrong_output_activation", "wrong_loss")
            certainty: Certainty = "certain" if named else "likely"
            yield Suspect(
                text, remedy, certainty, "warning", layer, evidence, causes, (fitting.replace(BCE_PROBABILITIES),)
            )
