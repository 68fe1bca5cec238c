"""Initialization: weights that are all alike, too large or too small for their place, outputs that start out too big.

All is measured at the weights as given, before any training. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.weights import Reinitialize
from homeostat.doctor.network import readings
from homeostat.doctor.network.hidden import hidden_of, is_chain, is_plain
from homeostat.doctor.network.layers import LayerFacts
from homeostat.doctor.rule import Rule, Suspect
from homeostat.parts.init.targets import layer_fans

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

TWINS = 0.5
"""The share of a layer's units that do what another one does, now and ever after: half of the layer is for nothing."""

ALIKE = 0.9
"""The share of a layer's units with equal weights; drawn numbers never are."""

FACTOR_LEAST, FACTOR_MOST = 0.5, 2.0
"""From layer to layer, in networks of six weight layers and more. The condition of Glorot & Bengio (2010) and He et al.
(2015) is 1; healthy networks stay within 0.67 and 1.2 forward and above 0.70 backward (0.1 and 99.9 %,
benchmarks/doctor_thresholds.py)."""

BACK_MOST = 3.0
"""The same for gradients on their way back, which batch normalization multiplies by a factor of its own (Yang et al.
2019): 1.3 without and 1.7 with it at the 99.9 % of healthy networks (benchmarks/doctor_thresholds.py)."""

SCALE = 3.0
"""By how much weights may be larger or smaller, all layers together, than any usual scheme makes them; healthy networks
have 0.97 to 1.84 (0.1 and 99.9 %, benchmarks/doctor_thresholds.py)."""

OFF = 1.5
"""A layer whose weights are so much beyond every usual scheme is named."""

EXCESS = 8.0
"""What outputs that mean nothing yet may add to the loss, in units of the loss of the class prior or mean; healthy
networks add up to 7.8 (99.9 %; 1.9 at the 95 %, benchmarks/doctor_thresholds.py)."""

BIAS = 10.0
"""Bias over what differs between examples behind it: no example changes the sign of such a unit's input."""

_SHOWN = 4


class DuplicatedWeights(Rule):
    """Units of a layer have the same weights, in and out, and stay the same for ever.

    What it checks: which output units of a layer have the same incoming weights as another unit, and, on a batch, the
    same bias and gradients; and layers of equal weights whose biases or gradients still differ. Of recurrent layers a
    unit's weights in all gates count, of attention the projections, and parameters that a function takes as weights
    are layers too.

    Why it hurts: units that agree in weights and in gradients agree after every step. A layer of them has the capacity
    of one unit, however wide it is. Where gradients differ the units part in time, from a start that has lost all but
    one direction of their inputs. Weights of zero behind a rectifier get no gradient at all.

    Threshold and its source: half of the layer's units are twins of another (certain); nine tenths of them have equal
    weights (likely). Drawn weights are never equal, so that any number between would do.

    False alarms: a single output unit has no twin, nor have the channels of a depthwise convolution. A last layer of
    zeros, and a last layer of residual branches of zeros, are healthy: their units have different gradients, those of
    the one once the other has moved, which the trial shows. Dropout parts twins, and shows in the gradients.

    Repair and its safety: these layers are drawn anew by a scheme that knows the functions around them. Unsafe: the
    model computes something else than before.

    References: Goodfellow, Bengio & Courville 2016, Deep Learning, section 8.4 (breaking symmetry).
    """

    code = "INI001"
    slug = "duplicated-weights"
    causes = ("constant_init",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None:
            return
        weights = chart.probe.of("weight")
        twins = [layer for layer in weights if layer.twins > TWINS and _stays(chart, layer)]
        inner = [layer for layer in weights if not _is_last(chart, layer)]
        equal = [layer for layer in inner if layer.duplicates > ALIKE and layer not in twins]
        for found, certain in ((twins, True), (equal, False)):
            if not found:
                continue
            names = tuple(layer.name for layer in found)
            text = f"{found[0].twins if certain else found[0].duplicates:.0%} of the {found[0].signal.units} units of "
            text += f"{names[0]!r} have the same weights as another unit"
            text += ", and the same gradients: they stay copies of each other" if certain else ""
            others = len(names) - 1
            text += f"; so in {others} other layer{'s' * (others > 1)}" if others else ""
            yield Suspect(
                f"{text}.",
                "Draw the weights at random: nn.init.kaiming_uniform_ or xavier_uniform_.",
                "certain" if certain else "likely",
                layer=names[0],
                evidence={"twins": found[0].twins, "duplicates": found[0].duplicates, "layers": len(names)},
                changes=(*(() if any(layer.bare for layer in found) else (Reinitialize(names),)), Reinitialize()),
            )


class ForwardFactor(Rule):
    """Signals shrink or grow by the same factor from layer to layer.

    What it checks: in networks without normalization and residual branches, by what the deviation between examples is
    multiplied at a weight layer, on average over the depth, at the weights as given.

    Why it hurts: a factor of 1/2 leaves a thousandth after ten layers. What arrives does not depend on the input any
    more, and the gradient shrinks alike.

    Threshold and its source: below 0.5 or above 2 in networks of six weight layers and more; the condition of the
    sources is 1, healthy networks have 0.67 to 1.2 (benchmarks/doctor_thresholds.py).

    False alarms: the size of inputs is divided out. Activations that squash signals by themselves are SIG009's.

    Repair and its safety: all weights are drawn anew, each by the gain of the functions before it. Unsafe.

    References: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; He et al. 2015, arXiv:1502.01852.
    """

    code = "INI002"
    slug = "forward-factor"
    causes = ("bad_init_scale",)
    requires = ("INI001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None or not is_plain(chart) or any(each.weak or each.explosive for each in hidden_of(chart)):
            return
        ratios = readings.forward_ratios(chart.probe)
        factor = readings.factor(ratios, forward=True)
        if math.isnan(factor) or FACTOR_LEAST <= factor <= FACTOR_MOST:
            return
        small = factor < 1
        symptom = "vanishing_gradient" if small else "exploding_gradient"
        yield Suspect(
            f"What differs between examples is multiplied by {factor:.2g} at every layer; {ratios[-1][1]:.1e} of it "
            f"arrives behind {len(ratios)} layers.",
            "Initialize for the activation: he for rectifiers, xavier for tanh; or normalize between the layers.",
            "likely",
            evidence={"factor": factor, "ratio": ratios[-1][1], "layers": len(ratios)},
            causes=("bad_init_scale", symptom),
            changes=_redrawn(chart),
        )


class BackwardFactor(Rule):
    """Gradients shrink or grow by the same factor from layer to layer on their way back.

    What it checks: in networks without residual branches, by what the norm of the gradient is multiplied from the
    output of one weight layer to that of the one before, on average, at the weights as given.

    Why it hurts: the first layers get a gradient that is smaller or larger than the last ones' by the factor to the
    power of the depth. No learning rate suits both.

    Threshold and its source: below 0.5 or above 3 in networks of six weight layers and more; the condition is 1,
    healthy networks have 0.7 to 1.3, with batch normalization up to 1.7 (benchmarks/doctor_thresholds.py).

    False alarms: a last layer of zeros passes no gradient at first, and is left out. Activations that take from the
    gradient by themselves are SIG009's.

    Repair and its safety: all weights are drawn anew, each by the gain of the functions around it. Unsafe.

    References: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; Yang et al. 2019,
    arXiv:1902.08129.
    """

    code = "INI003"
    slug = "backward-factor"
    causes = ("bad_init_scale",)
    requires = ("INI001", "INI002")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None or not is_chain(chart) or any(each.weak or each.explosive for each in hidden_of(chart)):
            return
        ratios = readings.backward_ratios(chart.probe)
        factor = readings.factor(ratios, forward=False)
        if math.isnan(factor) or FACTOR_LEAST <= factor <= BACK_MOST:
            return
        symptom = "vanishing_gradient" if factor < 1 else "exploding_gradient"
        yield Suspect(
            f"The gradient is multiplied by {factor:.2g} at every layer on its way back; {ratios[0][1]:.1e} of it "
            f"arrives at {ratios[0][0].name!r}.",
            "Initialize for the activation: he for rectifiers, xavier for tanh.",
            "likely",
            evidence={"factor": factor, "ratio": ratios[0][1], "layers": len(ratios)},
            causes=("bad_init_scale", symptom),
            changes=_redrawn(chart),
        )


class WeightScale(Rule):
    """Weights are much larger or smaller than any usual initialization makes them.

    What it checks: the root mean square of each layer's weights beside what torch's default, LeCun, Glorot and He give
    for its fans; how far all layers together are beyond them. Layers whose output is normalized do not count: there
    the size of weights changes nothing.

    Why it hurts: the product of what is wrong at each layer is what arrives at the output, and at the gradient of the
    first layer. The same standard deviation for every layer, or a fixed range, is right for one width alone.

    Threshold and its source: a product beyond 3 or below 1/3; healthy networks have 0.97 to 1.84 (0.1 and 99.9 %,
    benchmarks/doctor_thresholds.py). One layer by itself is named if it is beyond by half.

    False alarms: layers of zeros are left out, which start residual branches and last layers on purpose; models with
    residual branches or attention too, whose customary deviation of 0.02 relies on their normalization. Weights that
    were trained before may have any size: it takes an ill training.

    Repair and its safety: all weights are drawn anew, each by the gain of the functions before it. Unsafe.

    References: He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010,
    https://proceedings.mlr.press/v9/glorot10a.html.
    """

    code = "INI004"
    slug = "weight-scale"
    causes = ("bad_init_scale",)
    requires = ("INI001",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.structure is None or not is_chain(chart):
            return
        free = set(chart.structure.weights) - _normalized(chart)
        scales = readings.weight_scales(chart.training.model)
        scales = {name: scale for name, scale in scales.items() if name in free and scale > 0}
        product = math.prod(scales.values())
        if 1 / SCALE <= product <= SCALE:
            return
        off = {name: scale for name, scale in scales.items() if not 1 / OFF < scale < OFF} or scales
        shown = ", ".join(f"{name} × {scale:.2g}" for name, scale in list(off.items())[:_SHOWN])
        worst = max(off, key=lambda name: abs(math.log(off[name])))
        size = "larger" if product > 1 else "smaller"
        yield Suspect(
            f"The weights are {size} than any usual initialization makes them ({shown}): × {product:.2g} in all.",
            "Scale weights by the number of inputs of their layer: he for rectifiers, xavier for tanh.",
            "likely",
            layer=worst,
            evidence={"product": product, "worst": off[worst], "layers": len(off)},
            changes=(Reinitialize(), *((Reinitialize(tuple(off)),) if len(off) < len(scales) else ())),
        )


class OutputScale(Rule):
    """The first outputs are so large that the loss begins far above that of a constant answer.

    What it checks: the loss at the start beside that of outputs of zero, or of their mean where they are
    probabilities, in units of the loss of the best constant answer (for C classes in equal parts: ln C).

    Why it hurts: the first steps do nothing but shrink outputs, with gradients so large that they throw weights far
    off, saturate what saturates and kill rectifiers.

    Threshold and its source: 8 units; healthy networks add up to 7.8 (99.9 %, benchmarks/doctor_thresholds.py).

    False alarms: a network that was trained before on other targets. It takes an ill training. Where targets are all
    alike or far from zero the best constant is no measure, and nothing is said. Outputs that are large because the
    inputs are: divided by the inputs' own deviation they must still be larger than healthy networks' (6).

    Repair and its safety: the last layers are drawn anew, then all. Unsafe.

    References: Karpathy 2019, "A recipe for training neural networks" (verify the loss at init).
    """

    code = "INI005"
    slug = "output-scale"
    causes = ("bad_init_scale",)
    requires = ("INI001", "INI004")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        probe = chart.probe
        if probe is None or chart.structure is None or not probe.outputs.isfinite().all():
            return
        scale = readings.output_scale(chart.training.loss, probe.outputs, probe.targets)
        weights, given = probe.of("weight"), probe.inputs
        if scale is None or not scale.excess > EXCESS or not weights:
            return
        gain = weights[-1].rms / given.rms if given is not None and given.rms > 0 else math.inf
        if gain < _GAIN:
            return
        yield Suspect(
            f"The loss begins at {scale.loss:.3g}, where a constant answer has {scale.prior:.3g}: "
            f"the first outputs are of size {weights[-1].rms:.2g}.",
            "Make the weights of the last layer smaller: its outputs should begin near zero.",
            "likely",
            layer=weights[-1].name,
            evidence={"loss": scale.loss, "prior": scale.prior, "size": weights[-1].rms},
            changes=(Reinitialize(chart.structure.last), Reinitialize()),
        )


class LargeBias(Rule):
    """Biases are so large at the start that they, and not the inputs, decide what units do.

    What it checks: the mean magnitude of a hidden layer's bias beside what differs between examples at its output.

    Why it hurts: a rectifier with a large negative bias is dead on all examples; with a large positive one it is
    linear. Saturating functions saturate.

    Threshold and its source: 10, where no example changes the sign of a unit's input; and ten times what torch's
    default makes a bias, since a signal that has died out makes any bias large beside it.

    False alarms: the bias of the last layer may be the prior, and is not looked at; a forget gate's neither.

    Repair and its safety: weights drawn anew, biases 0. Unsafe. It must recover an ill training to stand.

    References: Jozefowicz et al. 2015, https://proceedings.mlr.press/v37/jozefowicz15.html (where it is on purpose).
    """

    code = "INI006"
    slug = "large-bias"
    causes = ("nonzero_bias",)
    requires = ("INI001", "INI004", "SIG001")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None or chart.structure is None or not is_plain(chart):
            return
        modules = dict(chart.training.model.named_modules())
        found: dict[str, float] = {}
        for facts in chart.probe.of("weight"):
            layer = modules.get(facts.name)
            if layer is not None and facts.name not in chart.structure.last:
                ratio = readings.bias_ratio(layer, facts)
                found |= {facts.name: ratio} if ratio > BIAS and _large(layer) else {}
        if found:
            worst = max(found, key=lambda name: found[name])
            yield Suspect(
                f"The bias of {worst!r} is {found[worst]:.3g} times what differs between examples there.",
                "Begin with biases of zero.",
                "possible",
                layer=worst,
                evidence={"ratio": found[worst], "layers": len(found)},
                changes=(Reinitialize(tuple(found)),),
            )


_UNUSUAL = 10.0  # times what torch's default bias is at most, 1 over the root of fan_in
_GAIN = 6.0  # output over input: 5.7 at the 99.9 % of healthy networks, benchmarks/doctor_thresholds.py


def _large(layer: nn.Module) -> bool:
    """Whether the bias is far beyond a usual initialization's, whatever the signal there is."""
    if not isinstance(layer, nn.Linear | _ConvNd) or layer.bias is None:
        return False
    return float(layer.bias.detach().abs().mean()) > _UNUSUAL / math.sqrt(layer_fans(layer)[0])


def _stays(chart: Chart, layer: LayerFacts) -> bool:
    """Whether twins remain so: without a gradient at the start, as before a last layer of zeros, they may part yet."""
    later = None if chart.late is None else chart.late.layer(layer.name)
    return later is None or layer.weight_gradient > 0 or later.twins > TWINS


def _is_last(chart: Chart, layer: LayerFacts) -> bool:
    """Whether a layer, or a parameter of its own, leads to the output and to no further one."""
    last = () if chart.structure is None else chart.structure.last
    return any(name == layer.name or name.rpartition(".")[0] == layer.name for name in last)


def _redrawn(chart: Chart) -> tuple[Change, ...]:
    return (Reinitialize(),)


def _normalized(chart: Chart) -> set[str]:
    """The weight layers whose output is normalized before anything else is done with it."""
    if chart.structure is None:
        return set()
    links = chart.structure.links
    return {link.source for link in links if link.source is not None and link.of("norm")}
