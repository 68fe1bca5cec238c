"""What the optimizer holds, and what decays: parameters that are missing or stale, gradients that add up, penalties.

What gets a gradient is read off the graph of a real loss, and what decays is measured in a real step; names and
settings only say where. Random only in that step's batch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from homeostat.doctor.changes.held import held_by, trainable_of
from homeostat.doctor.changes.optimizer import AddParameters
from homeostat.doctor.changes.options import settings_of, shown
from homeostat.doctor.changes.regularization import DecoupleDecay, ScalePenalty
from homeostat.doctor.chart import Chart
from homeostat.doctor.finding import Severity
from homeostat.doctor.network.step import StepFacts, late_step_facts, step_facts
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.trend import known

DOMINATES = 0.5
"""The penalty's gradient is half of the loss' or more: it decides where the weights go. In the trainings of
benchmarks/doctor_thresholds.py it is below 0.01 at the start."""

WEIGHS = 0.1

_SHOWN = 4


class CoupledDecay(Rule):
    """L2 decay in the gradient of an optimizer that divides by the gradient's size.

    What it checks: weight decay above 0 in Adam, NAdam and RAdam without their decoupled form.

    Why it hurts: the decay is divided by the gradient's size as the gradient is. Weights with large gradients hardly
    decay, and those without any take steps of full length toward zero: it is not the penalty that was asked for.

    Threshold and its source: none; a remark.

    False alarms: results that were tuned with the coupled form, and published so, need it.

    Repair and its safety: decoupled_weight_decay=True, or AdamW. Safe: the model computes what it did. The decay has
    another unit then and needs tuning.

    References: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """

    code = "OPT005"
    slug = "l2-coupled-with-adam"
    causes = ("l2_coupled_with_adam",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        optimizer = chart.training.optimizer
        groups = [group for group in optimizer.param_groups if "decoupled_weight_decay" in group]
        coupled = [group for group in groups if group.get("weight_decay") and not group["decoupled_weight_decay"]]
        if coupled:
            decays = tuple(float(group["weight_decay"]) for group in coupled)
            yield Suspect(
                f"{type(optimizer).__name__} divides its weight decay ({shown(decays)}) by the size of the gradient.",
                "Use AdamW, whose decay acts on the weights themselves, and tune it anew.",
                "certain",
                "info",
                evidence=known(weight_decay=max(decays)),
                changes=(DecoupleDecay.of(chart.training),),
            )


class PenaltyDominates(Rule):
    """The penalty on weights outweighs what there is to be learned.

    What it checks: the gradient of weight decay, or of a penalty that the loss itself puts on weights, over the
    gradient of the rest of the loss, at the start and after the trial. Decay that passes by the gradient is compared by
    steps.

    Why it hurts: weights go where the penalty leads, to zero, and the network computes less and less.

    Threshold and its source: 0.5 counts as strong, 0.1 as weak (see benchmarks/doctor_thresholds.py: 0.01 and less at
    the start of healthy trainings). After the trial the ratio of a converged network is near 1 by definition, and so
    says nothing by itself. None convicts: without the penalty the training must recover.

    False alarms: strong decay under which a network is trained for long, on purpose; it is not ill.

    Repair and its safety: the penalty times 0, or 0.01. Safe: the model computes what it did.

    References: Krogh & Hertz 1991, "A simple weight decay can improve generalization".
    """

    code = "OPT006"
    slug = "penalty-dominates"
    causes = ("over_regularized",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = step_facts(chart)
        first = penalty_ratio(facts)
        late = penalty_ratio(late_step_facts(chart)) if first > 0 else math.nan
        largest = max((value for value in (first, late) if math.isfinite(value)), default=0.0)
        if facts is None or largest < WEIGHS:
            return
        training = chart.training
        in_loss = facts.penalty > 0
        decays = settings_of(training.optimizer, "weight_decay")
        parts = [f"weight decay {shown(tuple(d for d in decays if d))}"] if any(decays) else []
        parts += ["a penalty in the loss"] if in_loss else []
        text = f"The gradient of {' and '.join(parts)} is {first:.2g} times that of the rest of the loss at the start"
        yield Suspect(
            text + (f", and {late:.2g} times after training." if math.isfinite(late) else "."),
            "Take the penalty out, or make it a hundred times smaller.",
            "likely" if first >= DOMINATES else "possible",
            evidence=known(ratio_at_start=first, ratio_after_trial=late),
            changes=tuple(ScalePenalty.of(training, factor, in_loss) for factor in (0.0, 0.01)),
        )


class StaleParameters(Rule):
    """The optimizer holds tensors that are not the model's.

    What it checks: tensors in the optimizer that are no parameters of the model and get no gradient from the loss.

    Why it hurts: an optimizer made before the model was copied, or before layers were replaced, steps tensors that
    nobody reads, while the model stays as it is.

    Threshold and its source: none.

    False alarms: parameters of the loss or of a second model are held on purpose; they get gradients, or the model's
    own are all held as well, in which case this is a remark.

    Repair and its safety: the model's parameters in their place, group by group. Safe: the model computes what it did.

    References: PyTorch's documentation of torch.optim, "Constructing it".
    """

    code = "OPT007"
    slug = "stale-parameters"
    causes = ("frozen_parameters", "parameters_not_optimized")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = step_facts(chart)
        if facts is None or not facts.stale:
            return
        instead = bool(facts.missing)
        text = f"{facts.stale} tensors in the optimizer are not the model's and get no gradient"
        text += f", while {len(facts.missing)} parameters of the model are missing in it." if instead else "."
        yield Suspect(
            text,
            "Make the optimizer of model.parameters() after the model is built, copied and loaded.",
            "certain",
            ("warning" if facts.held else "error") if instead else "info",
            evidence=known(stale=facts.stale, held=facts.held, missing=len(facts.missing)),
            changes=(AddParameters.of(chart.training),) if instead else (),
        )


class MissingParameters(Rule):
    """Trainable parameters that get gradients are not in the optimizer.

    What it checks: which leaves of the loss' graph require a gradient and are not held by the optimizer; those of
    modules in plain lists and dicts too, which `model.parameters()` does not give.

    Why it hurts: they stay as they were initialized, and the others learn around them.

    Threshold and its source: none. The first layers alone, before everything that is held, are a remark in a training
    that is not ill: a feature extractor that was not frozen by `requires_grad`.

    False alarms: a second optimizer that is not known here. What is left out on purpose should be frozen by
    `requires_grad_(False)`, which also saves its gradients.

    Repair and its safety: they are given to the optimizer. Safe: the model computes what it did.

    References: PyTorch's documentation of torch.nn.ModuleList; of torch.optim, "Constructing it".
    """

    code = "OPT008"
    slug = "parameters-not-in-optimizer"
    causes = ("parameters_not_optimized", "frozen_parameters")
    requires = ("OPT007",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = step_facts(chart)
        if facts is None or not facts.missing:
            return
        some = ", ".join(facts.missing[:_SHOWN]) + (", ..." if len(facts.missing) > _SHOWN else "")
        text = (
            f"{len(facts.missing)} parameters get gradients and are not in the optimizer, so they never change: {some}"
        )
        if facts.hidden:
            text += f"; {len(facts.hidden)} of them are in plain lists or dicts, where model.parameters() does not look"
        cure = "Make the optimizer of model.parameters() once the model is complete, and hold layers in nn.ModuleList."
        on_purpose = not chart.ill and not facts.hidden and _all_before(chart, facts)
        severity: Severity = "info" if on_purpose else "warning" if facts.held else "error"
        yield Suspect(
            f"{text}.",
            "If they are meant to stay, requires_grad_(False) says so." if on_purpose else cure,
            "certain",
            severity,
            evidence=known(missing=len(facts.missing), held=facts.held, hidden=len(facts.hidden)),
            changes=(AddParameters.of(chart.training),),
        )


class MissingZeroGrad(Rule):
    """Gradients of earlier steps are not cleared, and add up.

    What it checks: nothing here, where the training loop is the doctor's own and clears gradients. `homeostat.watch`
    sees it in anybody's loop: gradients that equal the step's own plus all before.

    Why it hurts: each step follows the sum of all gradients since the beginning: a momentum of 1, which never forgets.

    Threshold and its source: none; see `watch`.

    False alarms: gradients that are accumulated over some batches on purpose are cleared after each step.

    Repair and its safety: `optimizer.zero_grad()` before `backward()`. Advice: it is a line of the user's loop.

    References: PyTorch's documentation of Optimizer.zero_grad.
    """

    code = "OPT009"
    slug = "missing-zero-grad"
    causes = ("missing_zero_grad",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        return iter(())


def penalty_ratio(facts: StepFacts | None) -> float:
    """Decay and penalty together, over the rest of the gradient."""
    if facts is None:
        return math.nan
    parts = [value for value in (facts.decay, facts.penalty) if math.isfinite(value)]
    return sum(parts) if parts else math.nan


def _all_before(chart: Chart, facts: StepFacts) -> bool:
    """Whether all that is missing runs before all that is held, as a feature extractor does."""
    if not facts.held or chart.probe is None:
        return False
    order = {layer.name: place for place, layer in enumerate(chart.probe.layers)}
    held = {id(parameter) for parameter in held_by(chart.training.optimizer)}
    places: dict[bool, list[int]] = {True: [], False: []}
    for name, parameter in trainable_of(chart.training.model):
        place = order.get(name.rpartition(".")[0])
        if place is None:
            return False
        places[id(parameter) in held].append(place)
    return max(places[False], default=-1) < min(places[True], default=-1)
