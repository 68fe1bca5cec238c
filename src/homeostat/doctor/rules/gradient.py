"""Gradients: those that vanish or explode, that never arrive, and what clipping makes of them.

Measured on one batch at the weights as given and after the trial. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.changes.norm import AddNorm
from homeostat.doctor.changes.optimizer import UseClip
from homeostat.doctor.changes.weights import Reinitialize, Unfreeze
from homeostat.doctor.network import readings
from homeostat.doctor.network.hidden import hidden_of, is_chain, swap
from homeostat.doctor.network.probe import Probe
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

LITTLE = 5e-3
"""The relative gradient of a layer's weights over the largest of any layer; 7e-3 at the 0.1 % of healthy networks of up
to 30 layers (benchmarks/doctor_thresholds.py)."""

GONE = 1e-4
"""The norm of the gradient at a layer's output over that at the last layer's; 1.1e-4 at the 0.1 % of healthy networks
(benchmarks/doctor_thresholds.py)."""

HEALED = 0.02
"""Relative gradients that are at least this after the trial have recovered by themselves: 0.013 at the 5 % of healthy
networks after some steps (benchmarks/doctor_thresholds.py)."""

GROWN = 1e4
"""The norm of the gradient at a layer's output over that at the last one's; 1.9e3 at the 99.9 % of healthy networks
(benchmarks/doctor_thresholds.py)."""

MOST = 0.5
"""Of the weights that take part in the model: the larger part."""

ALWAYS = 0.99
"""The share of steps whose gradient was clipped."""

TURNED = 0.9
"""The cosine between the gradient and what clipping by value leaves of it: 26 degrees. A normal gradient of which only
signs are left has the cosine of the root of 2/pi, 0.8."""

_FEW_STEPS = 20
_SHOWN = 4


class VanishingGradient(Rule):
    """The first layers get nearly no gradient.

    What it checks: the gradient of each layer's weights, over the weights' own norm, beside the largest such ratio of
    any layer; and the norm of the gradient at each layer's output beside that at the last one's. In networks without
    residual branches, attention and recurrence, at the weights as given, and again after the trial.

    Why it hurts: layers with a thousandth of the others' relative gradient stay as they were drawn; the rest learns on
    what they happen to give.

    Threshold and its source: 5e-3 for weights, 1e-4 at outputs; 7e-3 and 1.1e-4 at the 0.1 % of healthy networks of up
    to 30 layers (benchmarks/doctor_thresholds.py). Where the ratio is above 0.02 after the trial nothing is said.

    False alarms: a last layer of zeros passes no gradient at first, and has recovered after the trial. Adaptive
    optimizers level out relative gradients in part; it takes an ill training.

    Repair and its safety: rectifiers in the place of what squashes; weights drawn anew; batch normalization. Unsafe.

    References: Hochreiter 1991; Bengio, Simard & Frasconi 1994, doi:10.1109/72.279181; Glorot & Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html.
    """

    code = "GRD001"
    slug = "vanishing-gradient"
    causes = ("vanishing_gradient",)
    requires = ("LOS001", "LOS007", "LOS010", "INI001")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None or not is_chain(chart) or _last_is_zero(chart.probe):
            return
        updates = readings.smallest(readings.update_ratios(chart.probe))
        outputs = readings.smallest(readings.backward_ratios(chart.probe))
        if updates is None or outputs is None or updates.value == 0:
            return
        if updates.value >= LITTLE and outputs.value >= GONE:
            return
        later = None if chart.late is None else readings.smallest(readings.update_ratios(chart.late))
        if later is not None and later.value >= HEALED:
            return
        weak = [each for each in hidden_of(chart) if each.weak]
        little = f"the weights of {updates.layer!r} get {updates.value:.1e} of the largest relative gradient"
        gone = f"{outputs.value:.1e} of the gradient at the last layer arrives at {outputs.layer!r}"
        told = [text for text, told in ((little, updates.value < LITTLE), (gone, outputs.value < GONE)) if told]
        yield Suspect(
            f"{'; '.join(told)[0].upper()}{'; '.join(told)[1:]}.",
            "Use rectifiers instead of functions that squash, initialize for them, normalize, or add skip connections.",
            "likely",
            layer=updates.layer,
            evidence={
                "weights": updates.value,
                "outputs": outputs.value,
                "later": None if later is None else later.value,
            },
            causes=("vanishing_gradient", "wrong_hidden_activation") if weak else None,
            changes=(*swap(chart, weak, "relu"), Reinitialize(), AddNorm.of(chart.training, "batch")),
        )


class ExplodingGradient(Rule):
    """Gradients grow on their way back, or overflow.

    What it checks: whether the gradient of a finite loss is finite; the norm of the gradient at each layer's output
    over that at the last one's, in networks without residual branches, attention and recurrence.

    Why it hurts: one learning rate cannot suit layers whose gradients differ by orders of magnitude; an infinite
    gradient makes all weights infinite in one step.

    Threshold and its source: not finite (certain); 1e4, with 1.9e3 at the 99.9 % of healthy networks
    (benchmarks/doctor_thresholds.py).

    False alarms: a gradient of mixed precision that overflows now and then is what gradient scalers are for; here the
    copy runs once, in the model's own precision.

    Repair and its safety: weights drawn anew; activations that grow no faster than their input (unsafe); clipping by
    norm (safe).

    References: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """

    code = "GRD002"
    slug = "exploding-gradient"
    causes = ("exploding_gradient",)
    requires = ("SIG007", "INI004")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        probe = chart.probe
        if probe is None or not math.isfinite(probe.loss):
            return
        explosive = swap(chart, [each for each in hidden_of(chart) if each.explosive], "relu")
        bad = [name for name, norm in probe.gradients.items() if math.isnan(norm)]
        if bad:
            yield Suspect(
                f"The loss is {probe.loss:.3g}, but the gradient of {_named(bad)} is not finite.",
                "Look for roots, logarithms and divisions at zero behind them, in the loss too: add a small number.",
                "certain",
                "error",
                layer=bad[-1].rpartition(".")[0],
                evidence={"parameters": len(bad), "loss": probe.loss},
                causes=("exploding_gradient", "nonfinite_values"),
                changes=(*explosive, Reinitialize()),
            )
            return
        most = readings.largest(readings.backward_ratios(probe))
        if most is not None and most.value > GROWN and is_chain(chart):
            yield Suspect(
                f"The gradient at {most.layer!r} is {most.value:.1e} times that at the last layer.",
                "Initialize for the activation, normalize between the layers, or clip the gradient's norm.",
                "likely",
                layer=most.layer,
                evidence={"ratio": most.value},
                changes=(*explosive, Reinitialize(), UseClip(1.0)),
            )


class Disconnected(Rule):
    """Trainable weights of layers that ran, and that the loss does not reach.

    What it checks: which trainable parameters get no gradient at all, of layers that were called, at the start and
    after the trial; whether any parameter gets one.

    Why it hurts: they never change. `detach()`, `.data`, numpy, a `no_grad` or an argmax between a layer and the loss
    cut it off.

    Threshold and its source: none. All parameters: certain. Weights of layers that take part: likely. Biases alone, and
    layers that do not run: a remark.

    False alarms: a teacher or a feature extractor that runs under `no_grad` on purpose should be frozen by
    `requires_grad_(False)`, which says so.

    Repair and its safety: advice, since the cut is in the user's code.

    References: PyTorch's documentation of torch.Tensor.detach.
    """

    code = "GRD003"
    slug = "disconnected-parameters"
    causes = ("disconnected_parameters",)
    requires = ("LOS001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        probe = chart.probe
        trainable = {name: p for name, p in chart.training.model.named_parameters() if p.requires_grad}
        if probe is None or not trainable:
            return
        missing = {name for name in trainable if name not in probe.gradients}
        missing &= {name for name in trainable if chart.late is None or name not in chart.late.gradients}
        if not missing:
            return
        remedy = "Look for detach(), .data, .numpy(), torch.no_grad() or an argmax between these layers and the loss."
        if len(missing) == len(trainable):
            text = f"No parameter gets a gradient{f': {probe.error}' if probe.error else ''}."
            yield Suspect(text, remedy, "certain", "error", evidence={"parameters": len(missing)})
            return
        ran = {layer.name for layer in probe.layers}
        cut = [name for name in trainable if name in missing and name.rpartition(".")[0] in ran]
        took_part = [name for name in trainable if name.rpartition(".")[0] in ran]
        share = sum(trainable[n].numel() for n in cut) / max(1, sum(trainable[n].numel() for n in took_part))
        weights = any(trainable[name].dim() > 1 for name in cut)
        evidence = {"parameters": len(missing), "share": share}
        if not cut:
            text = f"{_named(sorted(missing))} belong to layers that do not run; they get no gradient."
            yield Suspect(text, "Remove them, or call their layers.", "certain", "info", evidence=evidence)
            return
        yield Suspect(
            f"{_named(cut)} are used and get no gradient; these are {share:.0%} of the weights that take part.",
            remedy,
            "likely" if weights else "certain",
            "warning" if weights else "info",
            layer=cut[-1].rpartition(".")[0],
            evidence=evidence,
            causes=("disconnected_parameters", "frozen_parameters"),
        )


class Frozen(Rule):
    """Weights that take part are frozen.

    What it checks: which parameters of layers with weights require no gradient, and what share of all weights that is.

    Why it hurts: what was never trained stays random, and the layers behind it see random features.

    Threshold and its source: all of them: certain. Otherwise an ill training must recover when they are trained; it is
    likely where more than half of the weights are frozen, possible below.

    False alarms: a pretrained part that is frozen on purpose. The training is not ill then, and nothing is said.

    Repair and its safety: they are trained, and given to the optimizer. Safe: the model computes what it did.

    References: Humbatova et al. 2020, arXiv:1910.11015.
    """

    code = "GRD004"
    slug = "frozen-parameters"
    causes = ("frozen_parameters",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        named = dict(chart.training.model.named_parameters())
        frozen = [name for name, p in named.items() if not p.requires_grad and p.is_floating_point()]
        weights = sum(named[name].numel() for name in frozen if named[name].dim() > 1)
        total = sum(p.numel() for p in named.values() if p.dim() > 1)
        if not weights:
            return
        share, everything = weights / total, len(frozen) == len(named)
        certainty: Certainty = "certain" if everything else "likely" if share > MOST else "possible"
        yield Suspect(
            f"{_named(frozen)} are frozen: {share:.0%} of all weights never change.",
            "Remove requires_grad = False where nothing was trained before.",
            certainty,
            "error" if everything else "warning",
            layer=frozen[0].rpartition(".")[0],
            evidence={"share": share, "parameters": len(frozen)},
            changes=(Unfreeze(tuple(frozen)),),
        )


class ZeroGradient(Rule):
    """Gradients are exactly zero: nothing is learned there.

    What it checks: weights whose gradient is zero in every entry, on a batch at the start and again after the trial.

    Why it hurts: without a gradient there is no step, or one of weight decay and momentum alone.

    Threshold and its source: none; exactly zero both times. All weights: certain. Half of the weight layers: likely.

    False alarms: a last layer of zeros and branches that begin with zero have gradients after the trial. A loss that is
    exactly 0, as a hinge loss that is satisfied, has none on purpose.

    Repair and its safety: leaky rectifiers, weights drawn anew. Unsafe. Where all gradients are zero it is advice: the
    cause has a rule of its own, such as LOS001, SIG003 or SIG005.

    References: Lu et al. 2020, arXiv:1903.06733.
    """

    code = "GRD005"
    slug = "zero-gradient"
    causes = ("vanishing_gradient", "loss_not_decreasing")
    requires = ("LOS001", "LOS007", "LOS010", "LOS012", "SIG003", "SIG005", "INI001")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None or chart.late is None or chart.probe.loss == 0 or not math.isfinite(chart.late.loss):
            return
        both = [_zeros(probe) for probe in (chart.probe, chart.late)]
        zero = [name for name in both[0] if name in both[1]]
        known = [layer for layer in chart.probe.of("weight") if not math.isnan(layer.weight_gradient)]
        if not known or len(zero) < MOST * len(known):
            return
        every = len(zero) == len(known)
        rectifiers = [each for each in hidden_of(chart) if readings.dead_share(each.facts) > 0]
        yield Suspect(
            f"The gradient of {'all weights' if every else _named(zero)} is exactly zero, at the start and after "
            f"{chart.course.steps} steps.",
            "Look for dead rectifiers, saturated outputs, and a loss that is flat where the outputs are.",
            "certain" if every else "likely",
            "error" if every else "warning",
            layer=zero[0],
            evidence={"layers": len(zero), "of": len(known)},
            changes=() if every else (*swap(chart, rectifiers, "leaky_relu"), Reinitialize()),
        )


class AlwaysClipped(Rule):
    """The gradient's norm is clipped at every step.

    What it checks: the share of steps of the trial whose gradient was longer than the bound.

    Why it hurts: a bound that always holds is no protection; it is another learning rate. The length of the step says
    nothing any more about the slope, near the minimum neither.

    Threshold and its source: 99 % of at least 20 steps.

    False alarms: normalized steps are a method of their own, and language models clip for long. An ill training must
    recover with ten times the bound.

    Repair and its safety: ten times the bound. Safe: the model computes what it did.

    References: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063 (the bound as a multiple of the average norm); Zhang et
    al. 2020, arXiv:1905.11881.
    """

    code = "GRD006"
    slug = "always-clipped"
    causes = ("clipping",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        clip, course = chart.training.clip, chart.course
        if clip is None or clip[0] != "norm" or course.steps < _FEW_STEPS or course.clipped < ALWAYS * course.steps:
            return
        norm = math.nan if chart.probe is None else chart.probe.gradient_norm
        yield Suspect(
            f"The gradient was clipped in {course.clipped} of {course.steps} steps; its norm is {norm:.3g}, the bound "
            f"{clip[1]:g}.",
            "Set the bound to several times the usual norm, so that it holds exceptions only.",
            "possible",
            evidence={"clipped": course.clipped, "steps": course.steps, "norm": norm, "bound": clip[1]},
            changes=(UseClip(10 * clip[1]),),
        )


class TurnedGradient(Rule):
    """Clipping by value turns the gradient.

    What it checks: the angle between the gradient of a batch and what clipping each entry leaves of it.

    Why it hurts: the step no longer goes down the steepest way: large entries are cut, small ones are not, until only
    signs are left.

    Threshold and its source: a cosine below 0.9; 0.8 is what is left of a normal gradient when only signs are.

    False alarms: sign-like steps train many networks. An ill training must recover with clipping by norm.

    Repair and its safety: the norm of the gradient is clipped instead, which keeps its direction. Safe.

    References: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063.
    """

    code = "GRD007"
    slug = "turned-gradient"
    causes = ("clipping",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        clipping = None if chart.probe is None else chart.probe.clipping
        if clipping is None or clipping.kind != "value" or not clipping.cosine < TURNED:
            return
        angle = math.degrees(math.acos(max(-1.0, min(1.0, clipping.cosine))))
        yield Suspect(
            f"Clipping to ±{clipping.bound:g} turns the gradient by {angle:.0f} degrees; {clipping.share:.0%} of its "
            f"entries are beyond.",
            "Clip the norm instead: torch.nn.utils.clip_grad_norm_ keeps the direction.",
            "possible",
            evidence={"cosine": clipping.cosine, "share": clipping.share, "bound": clipping.bound},
            changes=(UseClip(max(clipping.norm, clipping.bound)),),
        )


def _last_is_zero(probe: Probe) -> bool:
    """Whether the last layer has weights of zero, and passes no gradient at first."""
    weights = probe.of("weight")
    return bool(weights) and weights[-1].weight_rms == 0


def _zeros(probe: Probe) -> set[str]:
    """The weight layers whose gradient is exactly zero."""
    return {layer.name for layer in probe.of("weight") if layer.weight_gradient == 0}


def _named(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
