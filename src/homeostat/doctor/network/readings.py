"""Numbers made of a probe that rules compare with thresholds: how signals, gradients, weights and outputs are scaled.

`benchmarks/doctor_thresholds.py` prints how they are distributed over networks that are healthy by construction; every
threshold of a rule on one of them is taken from there. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from homeostat.doctor.network.layers import LayerFacts
from homeostat.doctor.network.probe import Probe
from homeostat.doctor.network.signals import Slopes, spread_of
from homeostat.parts.init.targets import layer_fans

_FLAT = 0.25  # of standard normal inputs without a slope: relu has a half, squashing functions none
_FLATTENING = 0.5  # the slope at 8 over that at 2: 1 for rectifiers, 0.003 for sigmoid
_STEEPENING = 2.0  # beyond it, a power or an exponential, flat where its inputs are small
_DEEP = 5  # ratios, of six weight layers: a factor of 1/2 for each makes 1/32 of them
_LARGEST = 1e9  # of ratios to what may be zero
_TELLING = 0.2  # of the loss without outputs: with centered targets of several kinds the two are nearly the same
_CONSTANT_STEPS = 30  # of L-BFGS towards the best constant output, a convex problem of a few numbers


@dataclass(frozen=True)
class Extreme:
    """A number and the layer where it was found."""

    value: float
    layer: str


def forward_ratios(probe: Probe) -> list[tuple[LayerFacts, float]]:
    """For every weight layer but the last, what of its output differs between examples, over the same of the input."""
    weights = probe.of("weight")
    given = weights[0].arriving if weights else None
    if given is None or not given.carried > 0:
        return []
    return [(layer, layer.signal.carried / given.carried) for layer in weights[:-1]]


def backward_ratios(probe: Probe) -> list[tuple[LayerFacts, float]]:
    """For every weight layer, the norm of the gradient at its output over that at the last one's."""
    weights = [layer for layer in probe.of("weight") if not math.isnan(layer.gradient_rms)]
    last = weights[-1].gradient_norm if weights else math.nan
    return [(layer, layer.gradient_norm / last) for layer in weights[:-1]] if last > 0 else []


def update_ratios(probe: Probe) -> list[tuple[LayerFacts, float]]:
    """For every weight layer, the relative gradient of its weights over the largest relative gradient of any."""
    weights = [layer for layer in probe.of("weight") if not math.isnan(layer.relative_gradient)]
    largest = max((layer.relative_gradient for layer in weights), default=math.nan)
    return [(layer, layer.relative_gradient / largest) for layer in weights] if largest > 0 else []


def smallest(ratios: list[tuple[LayerFacts, float]]) -> Extreme | None:
    """The smallest finite ratio."""
    found = [(ratio, layer.name) for layer, ratio in ratios if not math.isnan(ratio)]
    return Extreme(*min(found)) if found else None


def largest(ratios: list[tuple[LayerFacts, float]]) -> Extreme | None:
    """The largest ratio; infinite counts."""
    found = [(ratio, layer.name) for layer, ratio in ratios if not math.isnan(ratio)]
    return Extreme(*max(found)) if found else None


def factor(ratios: list[tuple[LayerFacts, float]], *, forward: bool) -> float:
    """By what a signal (or a gradient, on its way back) is multiplied from one layer to the next, on average.

    nan for fewer than six layers, where a factor matters little, and for signals that are gone.
    """
    end = ratios[-1][1] if forward and ratios else ratios[0][1] if ratios else math.nan
    return end ** (1 / len(ratios)) if len(ratios) >= _DEEP and 0 < end < math.inf else math.nan


def dead_share(layer: LayerFacts) -> float:
    """The share of units through which no gradient passes on any example, for functions with one flat side."""
    if layer.slopes is None or _squashes(layer.slopes) or layer.slopes.growth > _STEEPENING:
        return math.nan
    return layer.slopes.blocked


def saturated_share(layer: LayerFacts) -> float:
    """The share of values over which nearly no gradient passes, for functions that are flat on both sides."""
    return layer.slopes.saturated if layer.slopes is not None and _squashes(layer.slopes) else math.nan


def _squashes(slopes: Slopes) -> bool:
    """Whether a function is flat far from zero and not near it; softmax is."""
    return slopes.usual < _FLAT and (math.isnan(slopes.growth) or slopes.growth < _FLATTENING)


def is_stuck(probe: Probe, still: float) -> bool:
    """Whether outputs differ by a share of `still` at most where targets do, and no weight before the last moves."""
    differing = bool((probe.targets != probe.targets[:1]).any())
    before = probe.of("weight")[:-1]
    return differing and spread_of(probe.outputs) < still and all(layer.weight_gradient == 0 for layer in before)


def weight_scales(model: nn.Module) -> dict[str, float]:
    """For every Linear and convolution, how far the size of its weights is from what any usual scheme gives.

    1 between the smallest and the largest root mean square that torch's default, LeCun, Glorot and He give for its
    fans; above, the ratio to the largest; below, to the smallest.
    """
    found = {}
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Linear | _ConvNd) or not isinstance(weight, Tensor) or not weight.numel():
            continue
        fan_in, fan_out = layer_fans(layer)
        usual = (1 / math.sqrt(3 * fan_in), math.sqrt(2 / (fan_in + fan_out)), math.sqrt(2 / fan_in))
        rms = float(weight.detach().double().square().mean().sqrt())
        found[name] = rms / min(max(rms, min(usual)), max(usual))
    return found


def bias_ratio(layer: nn.Module, facts: LayerFacts) -> float:
    """The mean magnitude of a layer's bias over what of its output differs between examples; nan without a bias."""
    bias = getattr(layer, "bias", None)
    if not isinstance(bias, Tensor) or not bias.numel():
        return math.nan
    size = float(bias.detach().abs().mean())
    return size / max(facts.signal.carried, size / _LARGEST) if size > 0 else 0.0


@dataclass(frozen=True)
class OutputScale:
    """What the size of the first outputs costs."""

    loss: float
    """Of the outputs as they are."""
    without: float
    """Of zero in the place of every output; of their mean, where they are probabilities."""
    prior: float
    """Of the best constant output: a network that knows nothing about its inputs can have it."""

    @property
    def known(self) -> bool:
        """Whether the prior's loss is a measure: it is not where targets are all alike, or far from zero."""
        return self.prior > _TELLING * abs(self.without)

    @property
    def excess(self) -> float:
        """What the outputs, which mean nothing before training, add to the loss, in units of the prior's."""
        return (self.loss - self.without) / self.prior if self.known else math.nan


def output_scale(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> OutputScale | None:
    """The losses of outputs, of none and of the best constant; None where they cannot be had or are not finite.

    Args:
        loss: (outputs, targets) -> scalar tensor.
        outputs: shape (examples, ...).
        targets: as the loss takes them.
    """
    mean = outputs.detach().float().mean(0)
    try:
        nothing = mean if _are_probabilities(outputs) else torch.zeros_like(mean)
        with torch.no_grad():
            first, without = (float(loss(out, targets)) for out in (outputs, _constant(nothing, outputs)))
        prior = min(without, _best_constant(loss, outputs, targets))
    except Exception:  # the user's loss, on outputs that it may refuse
        return None
    found = OutputScale(first, without, prior)
    return found if all(map(math.isfinite, (first, without, prior))) else None


def _are_probabilities(outputs: Tensor) -> bool:
    return float(outputs.min()) >= 0 and float(outputs.max()) <= 1


def _constant(row: Tensor, outputs: Tensor) -> Tensor:
    return row.to(outputs.dtype).expand_as(outputs).clone()


def _best_constant(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor) -> float:
    """The least loss of outputs that are the same for all examples, within what such outputs can be."""
    mean = outputs.detach().double().mean(0)
    if _are_probabilities(outputs):  # and stay such
        sums = mean.sum(0) if mean.dim() else mean
        shares = mean.dim() > 0 and len(mean) > 1 and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
        link: Callable[[Tensor], Tensor] = (lambda u: u.softmax(0)) if shares else torch.sigmoid
        start = mean.clamp(1e-4, 1 - 1e-4)
        start = start.log() if shares else start.logit()
    else:
        start, link = mean, lambda u: u
    free = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([free], max_iter=_CONSTANT_STEPS, line_search_fn="strong_wolfe")
    best = math.inf

    def closure() -> Tensor:
        nonlocal best
        optimizer.zero_grad()
        value = loss(_constant(link(free), outputs), targets)
        value.backward()
        best = min(best, float(value.detach())) if math.isfinite(float(value.detach())) else best
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    return best
