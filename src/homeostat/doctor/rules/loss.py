"""The loss function and the outputs it is given: here what a loss ignores, pairs, maximizes; where it is flat.

Its size is in `loss_scale`, whether it fits the model's outputs in `loss_outputs`. All evidence is measured by calling
the loss (`loss_tests`), none is read off its name. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.loss import NegateLoss, ShapeTargets
from homeostat.doctor.loss.fitting import fitting_of
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_FLIPPED = -0.9  # agreement: nearly every example's loss rises toward its target; 1 for every known loss
_FLAT = 0.5  # share of wrong examples without gradient: more than half of what should be learned from is lost
_TASKS = ("multiclass", "binary", "multilabel", "regression")


class IgnoresOutputs(Rule):
    """The loss does not depend on the model's outputs, so that nothing can be learned.

    What it checks: the loss is called with several different outputs. It is constant, or it has no gradient with
    respect to them (detached, converted to numpy, an argmax or a comparison inside).

    Why it hurts: all gradients of the model are zero. The best known way to get there is a categorical cross entropy
    over a single output: normalized over its one column, every output is 1, and its logarithm 0.

    Threshold and its source: none; the gradient is zero at five different sets of outputs.

    False alarms: a loss that also depends on parameters directly (a penalty, a physics term computed from the model)
    is left alone.

    Repair and its safety: the customary loss for the task; safe.

    References: Humbatova et al. 2020, arXiv:1910.11015 (wrong loss function; missing or wrong gradient).
    """

    code = "LOS001"
    slug = "loss-ignores-outputs"
    causes = ("loss_impl_bug", "wrong_loss", "loss_not_decreasing")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.uses_outputs is not False:
            return
        if fitting.facts.detached:
            text = "The loss has no gradient with respect to the model's outputs: it is detached from them, or counts."
        else:
            text = f"The loss is {fitting.facts.value:.4g} whatever the model's outputs are."
        if fitting.facts.seen.columns == 1 and fitting.kind == "binary":
            text += " A cross entropy over classes needs two columns; with one, the answer is always that class."
        remedy = "Compute the loss from the outputs with differentiable functions, by the loss that fits the task."
        evidence = {"loss": fitting.facts.value, "detached": fitting.facts.detached}
        yield Suspect(text, remedy, "certain", "error", evidence=evidence, changes=fitting.mended())


class IgnoresTargets(Rule):
    """The loss, or one half of it, does not depend on the targets.

    What it checks: targets are exchanged, and all made equal; the gradient with respect to the outputs stays the same.
    For truth values also: all examples of one side never have a gradient, as in -t log p without its second half, or
    in a hinge loss that expects signs and gets 0 and 1.

    Why it hurts: the model learns something else than its task; with one half missing, the constant answer is best.

    Threshold and its source: a relative change of 1e-4, which is what rounding explains in single precision.

    False alarms: unsupervised losses with placeholder targets. A loss that depends on parameters directly is left
    alone; where the kind of task is unknown, or examples are compared with each other, the training must be ill.

    Repair and its safety: the customary loss for the task; safe.

    References: Chen et al. 2018, metamorphic testing, doi:10.1145/3143561.
    """

    code = "LOS002"
    slug = "loss-ignores-targets"
    causes = ("loss_impl_bug", "wrong_loss")
    requires = ("LOS001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None:
            return
        remedy = "Let the loss compare the outputs with the targets it is given."
        if fitting.facts.uses_targets is False:
            alone = fitting.kind in _TASKS and not fitting.facts.coupled  # examples compared with each other need none
            certainty: Certainty = "certain" if alone else "likely"
            text = "The gradient of the loss is the same whatever the targets are."
            yield Suspect(text, remedy, certainty, "error", changes=fitting.mended())
        elif fitting.facts.ignored is not None:
            side = fitting.facts.ignored
            text = f"Examples whose target is {side:g} have no gradient: the loss says nothing about them."
            remedy = (
                "Use a loss for both sides: binary cross entropy, or signs -1 and 1 where a hinge loss expects them."
            )
            yield Suspect(text, remedy, "certain", "error", evidence={"target": side}, changes=fitting.mended())


class BroadcastTargets(Rule):
    """Every output is compared with every target, because shapes (N, 1) and (N,) broadcast to (N, N).

    What it checks: exchanging the targets among the examples leaves the loss and its gradient as they are, although
    they depend on the targets. The operation that spread the shapes is looked for and named.

    Why it hurts: the best answer to all targets at once is their mean. The loss falls to the variance and stops.

    Threshold and its source: relative changes of 1e-4, which is what rounding explains in single precision.

    False alarms: losses that compare distributions (a discrepancy between samples) ignore the pairing on purpose; they
    are certain only if an operation that broadcasts was seen.

    Repair and its safety: the loss it is on equal targets, with targets in the outputs' shape; safe.

    References: Tambon et al. 2021, silent bugs, arXiv:2112.13314; Braiek & Khomh 2022, arXiv:2204.00694.
    """

    code = "LOS003"
    slug = "broadcast-targets"
    causes = ("shape_broadcast", "loss_impl_bug")
    requires = ("LOS001", "LOS002")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.paired is not False or fitting.kind not in _TASKS:
            return
        facts = fitting.facts
        shapes = (
            f"outputs {facts.seen.shape}, targets {tuple(chart.train.targets.shape[1:]) or 'one number'} per example"
        )
        text = f"The loss stays the same when targets are exchanged among the examples ({facts.broadcast or shapes})."
        changes: tuple[Change, ...] = ()
        if facts.meant is not None:
            changes = (fitting.replace(facts.meant.name),)
        else:
            changes = (ShapeTargets(),) if facts.layout.reshape else fitting.mended()
        yield Suspect(
            text,
            "Give outputs and targets the same shape: target.reshape(output.shape), or output.squeeze(1).",
            "certain" if facts.broadcast else "likely",
            "error",
            evidence={"operation": facts.broadcast},
            changes=changes,
        )


class WrongSign(Rule):
    """The loss rises as outputs come closer to their targets.

    What it checks: outputs are moved half the way to the right answer, and the slope on that way is taken.

    Why it hurts: an optimizer that minimizes drives the outputs away from the targets, without end.

    Threshold and its source: nearly all examples (-0.9 of +-1) must rise; every known loss falls for all of them.

    False alarms: a negative loss for an optimizer that maximizes is right, and is left alone.

    Repair and its safety: the same loss with the other sign; safe.

    References: Braiek & Khomh 2022, arXiv:2204.00694 (inverted gradients).
    """

    code = "LOS004"
    slug = "wrong-sign"
    causes = ("gradient_sign_flipped", "loss_impl_bug", "loss_diverging")
    requires = ("LOS001", "LOS002", "LOS003")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.facts.agreement is None or fitting.kind not in _TASKS:
            return
        if fitting.facts.agreement > _FLIPPED or maximizes(chart.training.optimizer):
            return
        share = (1 - fitting.facts.agreement) / 2
        text = f"The loss rises for {share:.0%} of the examples as outputs move toward their targets."
        match = fitting.facts.match
        named = match is not None and not match.weighted and not match.curved
        again: tuple[Change, ...] = (fitting.replace(fitting.known),) if named else ()
        remedy = "Minimize the loss with its other sign."
        evidence = {"agreement": fitting.facts.agreement}
        yield Suspect(text, remedy, "certain", "error", evidence=evidence, changes=(NegateLoss(), *again))


class FlatLoss(Rule):
    """The loss has no gradient for most of the examples that the model gets wrong.

    What it checks: at the outputs that the model gives now, examples predicted wrongly whose gradient with respect to
    the outputs is exactly zero; and for regression, outputs near their targets that have none.

    Why it hurts: these are the examples to learn from. A clamp under a logarithm that the outputs have left is the
    usual reason.

    Threshold and its source: more than half of them; a loss without clamps has none, a hinge loss none among the wrong.

    False alarms: losses that ignore small or large errors on purpose; the training must be ill, or the customary loss
    must recover it.

    Repair and its safety: the customary output and loss for the task; safe or unsafe.

    References: Braiek & Khomh 2022, arXiv:2204.00694 (loss and gradient checks before training).
    """

    code = "LOS012"
    slug = "flat-loss"
    causes = ("wrong_loss", "vanishing_gradient", "loss_not_decreasing")
    requires = ("LOS001", "LOS002", "LOS006", "LOS007", "LOS009", "LOS010")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or fitting.kind not in _TASKS:
            return
        flat = fitting.facts.flat or 0.0
        if flat <= _FLAT:
            return
        text = f"At the model's outputs {flat:.0%} of the wrong predictions have no gradient from the loss."
        remedy = "Use the loss in the form that takes what the model gives, without a clamp in the outputs' range."
        yield Suspect(text, remedy, "likely", evidence={"flat": flat}, changes=fitting.mended())


class OverflowingLoss(Rule):
    """The loss is not finite, or will not be for outputs that a network can give.

    What it checks: the loss of a batch; and the loss and its gradient at probabilities of exactly 0 and 1, or at
    logits of +-100.

    Why it hurts: log(0) and exp(89) end in inf and NaN in single precision, after one sure but wrong prediction.

    Threshold and its source: finite or not; 100 is beyond what exp holds in single precision, 88.7.

    False alarms: outputs may never come that far; so it is said only if the loss is not finite now, or if the training
    diverged.

    Repair and its safety: the same loss in its stable form, or the customary one; safe.

    References: Blanchard, Higham & Higham 2021, doi:10.1093/imanum/draa038 (log-sum-exp and softmax).
    """

    code = "LOS013"
    slug = "overflowing-loss"
    causes = ("loss_impl_bug", "loss_diverging")
    requires = ("LOS001", "LOS006", "LOS007", "LOS010")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or not fitting.facts.seen.finite:
            return
        facts = fitting.facts
        named: tuple[Change, ...] = (fitting.replace(fitting.known),) if facts.match and facts.match.factor > 0 else ()
        changes = named or fitting.mended()
        remedy = "Use the form of the loss that takes logits, or keep logarithms and exponentials away from their ends."
        finite_targets = bool(torch.isfinite(chart.train.targets.double()).all())
        if not facts.error and not math.isfinite(facts.value) and finite_targets:
            text = f"The loss of a batch is {facts.value} although outputs and targets are finite."
            yield Suspect(text, remedy, "certain", "error", evidence={"loss": str(facts.value)}, changes=changes)
        elif facts.overflows and chart.course.diverged is not None:
            text = f"The loss is not finite at {' and at '.join(facts.overflows)}, and the training diverged."
            yield Suspect(text, remedy, "likely", evidence={"at": facts.overflows[0]}, changes=changes)


class CoupledExamples(Rule):
    """What one example contributes to the loss depends on which other examples are in the batch.

    What it checks: half of a batch is exchanged; the profile of the other half's gradients changes, by more than a
    common factor.

    Why it hurts: a sum, a mean or a maximum over the wrong axis does that; what is learned depends on the batches.

    Threshold and its source: a relative change of 1e-3, beyond rounding.

    False alarms: many: contrastive losses, correlations, overlaps such as Dice couple examples on purpose. So it stands
    only if the customary loss recovers an ill training.

    Repair and its safety: the customary loss for the task; safe.

    References: Chen et al. 2018, metamorphic testing, doi:10.1145/3143561.
    """

    code = "LOS014"
    slug = "coupled-examples"
    causes = ("loss_impl_bug",)
    requires = ("LOS001", "LOS002", "LOS003", "LOS005")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        fitting = fitting_of(chart)
        if fitting is None or not fitting.facts.coupled or not fitting.facts.paired:
            return
        text = "The gradient of one example's loss depends on the other examples of the batch."
        remedy = "Reduce over the classes of each example first, and over the batch last."
        yield Suspect(text, remedy, "possible", changes=fitting.mended())


def maximizes(optimizer: Optimizer) -> bool:
    """Whether every group of an optimizer goes up: by maximize=True or by a negative learning rate, not both."""
    groups = optimizer.param_groups
    return bool(groups) and all(bool(group.get("maximize")) != (float(group.get("lr", 1)) < 0) for group in groups)
