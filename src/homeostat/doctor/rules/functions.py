"""Hidden activation functions: missing between weight layers, or unsuited to stand there.

Functions are judged by calling them, whatever their names. Not random.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.conv import _ConvNd

from homeostat.doctor.changes.activation import InsertActivation
from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.weights import Reinitialize
from homeostat.doctor.network import readings
from homeostat.doctor.network.hidden import Hidden, hidden_of, swap
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart
    from homeostat.doctor.network.structure import Link

MANY_WEAK = 3
"""Layers of functions with slope 1/4 at most, one behind the other: they leave less than 2 % of a gradient."""

WEAKENED = 5e-3
"""The relative gradient of the first weights over the largest of any layer: 7e-3 at the 0.1 % of healthy networks
(benchmarks/doctor_thresholds.py)."""

_SHOWN = 3


class MissingActivation(Rule):
    """Two weight layers follow each other without an activation function between them.

    What it checks: what stands between each weight layer and the next, found by running the model: whether all of it is
    affine (dropout, reshaping, averaging, batch normalization). Functions count that `forward` calls by itself.

    Why it hurts: two linear layers compute what one can. A network without any activation is a linear model.

    Threshold and its source: none. Without a single nonlinear function in the whole network it is likely, otherwise
    possible.

    False alarms: networks of convolutions with pooling alone between them reach 99 % on digits; factorized layers,
    separable convolutions and the projections of residual networks are linear on purpose. Residual models, depthwise
    convolutions and bottlenecks are left out, and an ill training must recover with activations put in.

    Repair and its safety: a rectifier behind the first layer of each pair. Unsafe: the model computes something else.

    References: Islam et al. 2019, arXiv:1906.01388; Humbatova et al. 2020, arXiv:1910.11015 (missing activation).
    """

    code = "SIG008"
    slug = "missing-hidden-activation"
    causes = ("missing_hidden_activation",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        structure = chart.structure
        if structure is None or structure.residual:
            return
        modules = dict(chart.training.model.named_modules())
        between = [link for link in structure.links if link.source is not None and link.target is not None]
        straight = [link for link in between if link.linear and _on_account(link, modules)]
        names = tuple(dict.fromkeys(link.source for link in straight if link.source is not None))
        if not names:
            return
        every = all(link.linear for link in between)
        pairs = ", ".join(f"{link.source!r} and {link.target!r}" for link in straight[:_SHOWN])
        text = f"Nothing nonlinear stands between {pairs}{' and others' if len(straight) > _SHOWN else ''}"
        yield Suspect(
            f"{text}{', nor anywhere else: the network is a linear model' if every else ''}.",
            "Put an activation function, such as nn.ReLU(), behind every weight layer but the last.",
            "likely" if every else "possible",
            layer=names[0],
            evidence={"pairs": len(straight), "links": len(between)},
            changes=(InsertActivation(names),),
        )


class UnsuitedActivation(Rule):
    """A hidden activation function that passes little of signal and gradient, or makes large numbers larger.

    What it checks: the slope of every hidden activation, by differentiating the very function: at most 0.3 where it is
    steep (sigmoid, hard sigmoid), growing more than tenfold from 2 to 8 (exp); and softmax, where units compete for a
    sum of 1. Gates, which are multiplied with something, and attention are left out.

    Why it hurts: each sigmoid takes three quarters of the gradient and more, and gives numbers around 1/2 that differ
    little between examples; a softmax over many units gives numbers near zero. exp overflows after two or three layers.

    Threshold and its source: likely for softmax and for what explodes; for weak functions from three layers on, or
    where the relative gradient of the first weights is below 5e-3 of the largest (7e-3 at the 0.1 % of healthy
    networks, benchmarks/doctor_thresholds.py); else possible.

    False alarms: shallow networks with sigmoids train; they must be ill, and recover with rectifiers.

    Repair and its safety: rectifiers in their place; if need be with weights drawn anew. Unsafe.

    References: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html; Glorot, Bordes & Bengio 2011,
    https://proceedings.mlr.press/v15/glorot11a.html.
    """

    code = "SIG009"
    slug = "unsuited-hidden-activation"
    causes = ("wrong_hidden_activation",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        hidden = hidden_of(chart)
        softmax = [each for each in hidden if each.softmax]
        explosive = [each for each in hidden if each.explosive and not each.softmax]
        weak = [each for each in hidden if each.weak and not each.softmax]
        if softmax:
            text = "is a softmax between hidden layers: its units share a sum of 1, and little of it differs"
            yield self._suspect(chart, softmax, text, "likely", ("wrong_hidden_activation",))
        if explosive:
            text = "grows faster than its input: large numbers become larger at every layer"
            yield self._suspect(chart, explosive, text, "likely", ("wrong_hidden_activation", "exploding_gradient"))
        if weak:
            least = None if chart.probe is None else readings.smallest(readings.update_ratios(chart.probe))
            weakened = least is not None and least.value < WEAKENED
            text = f"passes {weak[0].facts.slopes.steepest if weak[0].facts.slopes else 0:.2g} of a gradient at best"
            text += f"; the first weights get {least.value:.1e} of the largest" if weakened and least else ""
            certainty: Certainty = "likely" if weakened or len(weak) >= MANY_WEAK else "possible"
            causes = ("wrong_hidden_activation", "vanishing_gradient") if weakened else ("wrong_hidden_activation",)
            yield self._suspect(chart, weak, text, certainty, causes)

    def _suspect(
        self, chart: Chart, found: list[Hidden], text: str, certainty: Certainty, causes: tuple[str, ...]
    ) -> Suspect:
        first = found[0]
        changes: tuple[Change, ...] = swap(chart, found, "relu")
        name = f"{first.facts.name!r}" if first.facts.bare else f"{first.facts.name!r} ({first.step.name})"
        return Suspect(
            f"{name}{f', with {len(found) - 1} like it,' if len(found) > 1 else ''} {text}.",
            "Use a rectifier (relu, gelu) or tanh between hidden layers, initialized for it.",
            certainty,
            layer=first.facts.name,
            evidence={"function": first.step.name, "layers": len(found)},
            causes=causes,
            changes=(*changes, Reinitialize()) if changes and certainty == "likely" else changes,
        )


def _on_account(link: Link, modules: dict[str, nn.Module]) -> bool:
    """Whether nobody leaves out the activation there on purpose: no sum, no depthwise convolution, no bottleneck."""
    source, target = (modules.get(name or "") for name in (link.source, link.target))
    layers = [layer for layer in (source, target) if isinstance(layer, nn.Linear | _ConvNd)]
    if len(layers) < 2 or link.of("sum") or any(step.name != "batch_norm" for step in link.of("norm")):
        return False
    if any(isinstance(layer, _ConvNd) and layer.groups > 1 for layer in layers):
        return False
    (before, width), (_, after) = (_widths(layer) for layer in layers)
    return width >= min(before, after)


def _widths(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return (layer.in_channels, layer.out_channels) if isinstance(layer, _ConvNd) else (0, 0)
