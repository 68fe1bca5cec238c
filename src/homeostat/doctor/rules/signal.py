"""Signals: activations that vanish, explode, die, saturate, lose their rank, or are not finite.

What activation functions are missing or unsuited is in `functions`. Measured on one batch at the weights as given and
after the trial. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.norm import AddNorm
from homeostat.doctor.changes.weights import Reinitialize
from homeostat.doctor.network import readings
from homeostat.doctor.network.hidden import hidden_of, is_chain, is_cut, is_output, is_plain, overflows, swap
from homeostat.doctor.network.layers import LayerFacts
from homeostat.doctor.network.probe import Probe
from homeostat.doctor.network.signals import spread_of
from homeostat.doctor.rule import Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

GONE = 1e-4
"""The share of what differs between examples that arrives at some layer; 2e-4 at the 0.1 % of healthy networks of up to
30 layers (benchmarks/doctor_thresholds.py)."""

GROWN = 30.0
"""The same growing: 6 at the 99.9 % of healthy networks at the start (benchmarks/doctor_thresholds.py)."""

DEAD, DEAD_LATER = 0.7, 0.75
"""The share of a layer's rectifiers that no example passes, at the start and after the trial: 0.56 and 0.65 at the
99.9 % of healthy networks (benchmarks/doctor_thresholds.py)."""

ALL = 0.999
"""Of a layer's units: all of them."""

SATURATED, SATURATED_LATER = 0.5, 0.95
"""The share of a layer's activations over which nearly no gradient passes: 0.01 at the start and 0.06 after some steps
at the 99.9 % of healthy networks (benchmarks/doctor_thresholds.py). Small networks that are trained to the end come to
0.9 and are well, so that later only nearly all count."""

STILL = 1e-3
"""The share of outputs that differs between examples: 0.08 at the 0.1 % of healthy networks at the start
(benchmarks/doctor_thresholds.py)."""

STILL_TO_TARGETS = 0.01
"""Deviation of outputs over that of targets: a ten-thousandth of the variance is all such outputs can explain."""

ONE_RANK = 1.1
"""Effective rank of a hidden layer at the start; 1.8 at the 0.1 % of healthy networks of up to 30 layers
(benchmarks/doctor_thresholds.py)."""

_ENOUGH = 64  # examples without which a unit that is dead on all of them may be alive on others
_RANK_BEFORE = 1.5  # of the first layer: what has one direction from the beginning has lost none


class VanishingActivations(Rule):
    """What differs between examples dies out on its way through the network.

    What it checks: the deviation between examples at every weight layer over that of the input, at the weights as
    given, in networks without normalization and residual branches.

    Why it hurts: later layers see the same for every example; the output is constant, and so is the gradient.

    Threshold and its source: 1e-4; healthy networks of up to 30 layers have 2e-4 and more (0.1 %,
    benchmarks/doctor_thresholds.py).

    False alarms: the size of inputs is divided out. A last layer of zeros does not count.

    Repair and its safety: weights drawn anew for the activations that there are; batch normalization; rectifiers in the
    place of what squashes. Unsafe: the model computes something else than before.

    References: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; Schoenholz et al. 2017,
    arXiv:1611.01232.
    """

    code = "SIG001"
    slug = "vanishing-activations"
    causes = ("vanishing_gradient", "bad_init_scale")
    requires = ("INI001", "INI002", "INI004", "SIG009")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        least = None if chart.probe is None else readings.smallest(readings.forward_ratios(chart.probe))
        if least is None or not is_plain(chart) or not least.value < GONE:
            return
        weak = [each for each in hidden_of(chart) if each.weak]
        yield Suspect(
            f"Of what differs between examples in the input, {least.value:.1e} arrives at {least.layer!r}.",
            "Use rectifiers or tanh, and initialize for them; or normalize between the layers.",
            "likely",
            layer=least.layer,
            evidence={"ratio": least.value},
            causes=("vanishing_gradient", "wrong_hidden_activation" if weak else "bad_init_scale"),
            changes=(*swap(chart, weak, "relu"), Reinitialize(), AddNorm.of(chart.training, "batch")),
        )


class ExplodingActivations(Rule):
    """Activations grow on their way through the network.

    What it checks: the deviation between examples at every weight layer over that of the input, at the weights as
    given, in networks without normalization and residual branches.

    Why it hurts: outputs, loss and gradient are larger by the same factor, and the first step throws the weights far
    off or overflows.

    Threshold and its source: 30; healthy networks have up to 6 (99.9 %, benchmarks/doctor_thresholds.py).

    False alarms: the size of inputs is divided out.

    Repair and its safety: weights drawn anew; rectifiers in the place of functions that grow faster than their input.
    Unsafe.

    References: He et al. 2015, arXiv:1502.01852; Hanin 2018, arXiv:1801.03744.
    """

    code = "SIG002"
    slug = "exploding-activations"
    causes = ("exploding_gradient", "bad_init_scale")
    requires = ("INI004", "SIG007", "SIG009")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        most = None if chart.probe is None else readings.largest(readings.forward_ratios(chart.probe))
        if most is None or overflows(chart) or not is_plain(chart) or not most.value > GROWN:
            return
        explosive = [each for each in hidden_of(chart) if each.explosive]
        yield Suspect(
            f"What differs between examples is {most.value:.3g} times as large at {most.layer!r} as in the input.",
            "Initialize for the activation, and use one that grows no faster than its input.",
            "likely",
            layer=most.layer,
            evidence={"ratio": most.value},
            causes=("exploding_gradient", "wrong_hidden_activation" if explosive else "bad_init_scale"),
            changes=(*swap(chart, explosive, "relu"), Reinitialize(), AddNorm.of(chart.training, "batch")),
        )


class DeadUnits(Rule):
    """Rectifiers that no example passes: they give 0 for all, and no gradient goes through.

    What it checks: the share of a hidden layer's units whose activation has no slope on any example and position of
    the batch, at the start and after the trial, for functions with a flat side.

    Why it hurts: a dead unit gets no gradient and stays dead, unless layers before it change. A layer of dead units
    cuts off everything before it, unless there are ways around it.

    Threshold and its source: 0.7 of a layer at the start, 0.75 after the trial; 0.56 and 0.65 at the 99.9 % of healthy
    networks, among them deep ones of 16 units (benchmarks/doctor_thresholds.py). A whole layer, with at least 64
    examples, that every way to the output leads through and no gradient gets past, is certain; after the trial, if no
    weight before it has a gradient and all outputs are alike.

    False alarms: sparse layers of trained networks, and the few units that compute a gate (squeeze and excitation); it
    takes an ill training. A unit may be dead on the batch alone.

    Repair and its safety: leaky rectifiers, weights drawn anew, batch normalization. Unsafe. Where units died while
    training the learning rate is often too high: OPT001.

    References: Lu et al. 2020, arXiv:1903.06733 (dying ReLU and initialization); Maas et al. 2013 (leaky rectifiers).
    """

    code = "SIG003"
    slug = "dead-units"
    causes = ("dying_relu",)
    requires = ("INI001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        for probe, bound, when in ((chart.probe, DEAD, "at the start"), (chart.late, DEAD_LATER, "after the trial")):
            layers = () if probe is None else probe.of("activation")
            dead = [(layer, readings.dead_share(layer)) for layer in layers if readings.dead_share(layer) >= bound]
            if probe is not None and dead:
                yield self._suspect(chart, probe, dead, bound, when)
                return

    def _suspect(
        self, chart: Chart, probe: Probe, dead: list[tuple[LayerFacts, float]], bound: float, when: str
    ) -> Suspect:
        cuts = {layer.name for layer, share in dead if share >= ALL and is_cut(chart, probe, layer)}
        worst, share = max(dead, key=lambda pair: (pair[1], pair[0].name in cuts))
        inner = [each for each in hidden_of(chart, probe) if any(each.facts is layer for layer, _ in dead)]
        cut, outer = worst.name in cuts, share >= ALL and is_output(chart, worst)
        certain = cut and len(probe.outputs) >= _ENOUGH and (probe is chart.probe or readings.is_stuck(probe, STILL))
        text = f"{share:.0%} of the units of {worst.name!r} are 0 on every example {when}"
        text += f"; so are {bound:.0%} and more in {len(dead) - 1} other layers" if len(dead) > 1 else ""
        return Suspect(
            f"{text}{'; nothing before them can learn' if cut else ''}.",
            "Use leaky rectifiers, initialize by he, normalize; and lower the rate if they died while training.",
            "certain" if certain else "likely",
            "error" if cut else "warning",
            layer=worst.name,
            evidence={"dead": share, "layers": len(dead), "when": when},
            causes=("dying_relu", "constant_output", "wrong_output_activation") if outer else None,
            changes=(*swap(chart, inner, "leaky_relu"), Reinitialize(), AddNorm.of(chart.training, "batch")),
        )


class SaturatedUnits(Rule):
    """Squashing activations lie where they are flat, and pass no gradient.

    What it checks: the share of a hidden layer's activations whose slope is less than a two-hundredth of the usual one
    (tanh beyond 3.3, sigmoid beyond 6.7), found by differentiating the very function, at the start and after the trial.

    Why it hurts: the gradient that passes is the slope; saturated units do not learn, and nothing before them does.

    Threshold and its source: half of the layer at the start, 0.95 after the trial; 0.01 and 0.06 at the 99.9 % of
    healthy networks, after some steps (benchmarks/doctor_thresholds.py).

    False alarms: what stands behind the last weight layer may be sure of its answer, and is not looked at; gates
    neither. Trained networks saturate in part; it takes an ill training.

    Repair and its safety: weights drawn anew on the inputs as they are; batch normalization; rectifiers. Unsafe. Where
    inputs are large it is they that should be scaled.

    References: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; Rakitianskaia & Engelbrecht 2015,
    doi:10.1109/SSCI.2015.180 (measuring saturation).
    """

    code = "SIG004"
    slug = "saturated-units"
    causes = ("saturated_units",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        times = ((chart.probe, SATURATED, "at the start"), (chart.late, SATURATED_LATER, "after the trial"))
        for probe, bound, when in times:
            layers = [] if probe is None or overflows(chart) else hidden_of(chart, probe)
            found = [(layer, readings.saturated_share(layer.facts)) for layer in layers]
            found = [(layer, share) for layer, share in found if share >= bound]
            if not found:
                continue
            worst, share = max(found, key=lambda pair: pair[1])
            yield Suspect(
                f"{share:.0%} of the activations of {worst.facts.name!r} are saturated {when}: "
                f"nearly no gradient passes them.",
                "Scale the inputs, make the weights before it smaller, normalize, or use rectifiers.",
                "likely",
                layer=worst.facts.name,
                evidence={"saturated": share, "layers": len(found), "when": when},
                changes=(
                    Reinitialize(),
                    AddNorm.of(chart.training, "batch"),
                    *swap(chart, [each for each, _ in found], "relu"),
                ),
            )
            return


class ConstantOutputs(Rule):
    """The outputs do not depend on the inputs.

    What it checks: whether the outputs are a softmax over a single unit, which is always 1; whether, after the trial,
    outputs differ between examples by less than a thousandth of their size, and by less than a hundredth of the
    deviation of targets where these are numbers.

    Why it hurts: the network is a constant. The loss stops at that of the class prior or mean.

    Threshold and its source: 1e-3; healthy networks have 0.08 and more at the start (0.1 %,
    benchmarks/doctor_thresholds.py).

    False alarms: targets that are all alike; a last layer of zeros, which is why only the outputs after the trial
    count. Outputs with a large common part are compared with the targets. It takes an ill training.

    Repair and its safety: weights drawn anew, leaky rectifiers. Unsafe. What else makes outputs constant (a rate too
    high, a loss without gradient) has its own rule.

    References: Wardat et al. 2021, DeepLocalize, arXiv:2103.03376 (constant outputs as a symptom).
    """

    code = "SIG005"
    slug = "constant-outputs"
    causes = ("constant_output",)
    requires = ("LOS001", "LOS007", "LOS010")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        tail = [] if chart.structure is None else [step for step in chart.structure.tail if step.role != "shape"]
        ones = chart.probe is not None and bool((chart.probe.outputs == 1).all())
        if tail and "softmax" in tail[-1].name and ones:
            yield Suspect(
                f"{tail[-1].module or tail[-1].name!r} is a softmax over one unit: the output is 1 for every input.",
                "For two classes use a sigmoid over one unit, for numbers no activation.",
                "certain",
                "error",
                layer=tail[-1].module,
                causes=("wrong_output_activation", "constant_output"),
            )
            return
        late = chart.late
        if late is None or not late.outputs.isfinite().all() or len(late.outputs) < 2:
            return
        spread, targets = spread_of(late.outputs), late.targets.double()
        deviation = float((targets - targets.mean(0)).square().mean().sqrt())
        if not spread < STILL or deviation == 0:
            return
        differing = spread * float(late.outputs.double().square().mean().sqrt())
        if chart.score.kind == "regression" and differing > STILL_TO_TARGETS * deviation:
            return
        rectifiers = [each for each in hidden_of(chart, late) if readings.dead_share(each.facts) > 0]
        yield Suspect(
            f"After the trial the outputs are the same for all inputs, but for {spread:.1e} of their size.",
            "See what else is found; begin with the learning rate, the scale of inputs, and dead units.",
            "likely",
            evidence={"spread": spread},
            changes=(Reinitialize(), *swap(chart, rectifiers, "leaky_relu")),
        )


class RankCollapse(Rule):
    """A hidden layer keeps one direction of all that its input has.

    What it checks: the effective rank (the exponential of the entropy of singular values) of what differs between
    examples at each hidden weight layer, at the weights as given.

    Why it hurts: whatever examples differ in, later layers see one number of it, at first. Deep networks of few units
    without normalization lose all directions but one by chance alone.

    Threshold and its source: 1.1, where the first layer has 1.5 and more; healthy networks of up to 30 layers have 1.8
    and more at the start (0.1 %, benchmarks/doctor_thresholds.py).

    False alarms: layers of one unit; inputs with one direction. After training one direction may be the answer, so that
    only the start counts.

    Repair and its safety: batch normalization, which keeps the rank; weights drawn anew. Unsafe.

    References: Daneshmand et al. 2020, arXiv:2003.01652 (batch normalization avoids rank collapse); Roy & Vetterli
    2007, https://www.eurasip.org/Proceedings/Eusipco/Eusipco2007/Papers/a5p-h05.pdf.
    """

    code = "SIG006"
    slug = "rank-collapse"
    causes = ("rank_collapse",)
    requires = ("INI001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        weights = [] if chart.probe is None else [layer for layer in chart.probe.of("weight") if layer.signal.units > 1]
        if len(weights) < 3 or overflows(chart) or not is_chain(chart) or not weights[0].rank > _RANK_BEFORE:
            return
        least = min(weights[1:], key=lambda layer: layer.rank if layer.rank > 0 else math.inf)
        if not 0 < least.rank < ONE_RANK:
            return
        flat = [each for each in hidden_of(chart) if readings.dead_share(each.facts) > 0]
        yield Suspect(
            f"{least.name!r} keeps one direction of its input (effective rank {least.rank:.2f}; "
            f"{weights[0].rank:.1f} at {weights[0].name!r}).",
            "Normalize between the layers, make them wider, or use fewer.",
            "likely",
            layer=least.name,
            evidence={"rank": least.rank, "before": weights[0].rank},
            causes=("rank_collapse", "dying_relu") if flat else None,
            changes=(AddNorm.of(chart.training, "batch"), *swap(chart, flat, "leaky_relu"), Reinitialize()),
        )


class NonFinite(Rule):
    """Activations overflow before the first step.

    What it checks: the first layer whose output is not finite on a batch of finite inputs, at the weights as given.

    Why it hurts: everything behind it, the loss and all gradients are infinite or not a number.

    Threshold and its source: none; outputs or loss are not finite.

    False alarms: infinities that a model makes on purpose, such as masks, do not reach its outputs.

    Repair and its safety: rectifiers in the place of functions that grow faster than their input; weights drawn anew.
    Unsafe.

    References: Zhang et al. 2021, AutoTrainer, doi:10.1109/ICSE43902.2021.00043 (exploding symptoms).
    """

    code = "SIG007"
    slug = "non-finite"
    causes = ("nonfinite_values", "exploding_gradient")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        probe = chart.probe
        if probe is None or (probe.inputs is not None and probe.inputs.nonfinite):
            return
        if math.isfinite(probe.loss) and bool(probe.outputs.isfinite().all()):
            return
        first = next((layer for layer in probe.layers if layer.nonfinite), None)
        if first is None:
            return
        explosive = [each for each in hidden_of(chart) if each.explosive]
        changes: tuple[Change, ...] = (*swap(chart, explosive, "relu"), Reinitialize())
        blame = f"; {explosive[0].step.name} grows faster than its input" if explosive else ""
        yield Suspect(
            f"The output of {first.name!r} ({first.kind}) is not finite on the first batch{_size(first)}{blame}.",
            "Use an activation that grows no faster than its input, such as relu; make inputs and weights smaller.",
            "certain",
            "error",
            layer=first.name,
            evidence={"nonfinite": first.nonfinite} | ({"input": first.input_rms} if _size(first) else {}),
            causes=(*self.causes, "wrong_hidden_activation") if explosive else None,
            changes=changes,
        )


def _size(layer: LayerFacts) -> str:
    return f", whose input is of size {layer.input_rms:.2g}" if math.isfinite(layer.input_rms) else ""
