"""Activation-aware initialization: weights drawn with variance 1 / fan, and each scaled when a run reaches it.

The scale is the gain that theory gives for the function found in front of the layer, as long as theory agrees with what
arrives there on the sample; LSUV measures alone. Random only in the draws, which are the caller's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.parts.init.paths import Path, Paths, following
from homeostat.parts.init.residual import Branch, scales
from homeostat.parts.init.run import Visits, mean_square, wide
from homeostat.parts.init.sites import Site
from homeostat.parts.init.targets import blocks, fans_of, scale_

NEAR = 2.0
"""By which factor a mean square may differ from what theory expects before the measured one counts."""

FAR = 4.0
"""From which factor on a mean square other than 1 counts for functions that have a scale of their own, such as tanh."""

LSUV_TOLERANCE = 0.01
"""How near to 1 LSUV brings a variance; the paper has 0.1."""

LSUV_STEPS = 10
"""How often LSUV scales a layer at most, as in the paper."""

_GIVEN = {"input", "constant"}


@dataclass
class Choice:
    """The gain of one site, and why."""

    gain: float = 1.0
    note: str = ""
    level: float | None = None
    """The expected mean square of the output; None if theory has nothing to say."""
    faint: bool = False
    """Whether averages in front of it have made that small; such values are not amplified."""


class Setter(Visits):
    """Scales the weight of each site when it is reached."""

    def __init__(
        self,
        paths: Paths,
        sites: list[Site],
        drawn: set[str],
        scheme: str,
        mode: str,
        gain: float | None,
        factors: dict[Site, float],
        zeroed: Iterable[nn.Module],
        ends: Iterable[Site],
    ) -> None:
        super().__init__(sites)
        self.drawn = drawn
        self.paths, self.scheme, self.mode, self.gain = paths, scheme, mode, gain
        self.factors, self.zeroed = factors, set(zeroed)
        self.ends = set(ends)
        self.after = following(paths, sites)
        self.choices: dict[Site, Choice] = {}

    def entering(self, site: Site, tensors: list[Tensor]) -> None:
        """Choose the gain by what arrives, and scale the weight."""
        place = {"k_proj_weight": 1, "v_proj_weight": 2}.get(site.target.attribute, 0)
        arrived = mean_square(tensors[min(place, len(tensors) - 1)]) if tensors else math.nan
        if site.target.name not in self.drawn:  # frozen, or set with another layer
            self.choices[site] = Choice(math.nan, level=arrived * self._size(site) ** 2 * fans_of(site.target)[0])
            return
        if self.scheme == "lsuv":
            self.choices[site] = Choice(note=self._unit_variance_inside(site, tensors))
            return
        choice = self._choose(site, arrived)
        self.choices[site] = choice
        factor = self.factors.get(site, 1.0)
        if choice.level is not None:
            choice.level *= (choice.gain * factor) ** 2 * self._spread(site)
        before = self._size(site)
        scale_(site.target, choice.gain * factor)
        if factor and not math.isclose(self._size(site), before * choice.gain * factor, rel_tol=0.1):
            choice.note, choice.level = "its parametrization decides the scale", None

    @staticmethod
    def _size(site: Site) -> float:
        return math.sqrt(mean_square(getattr(site.target.layer, site.target.attribute)))

    def leaving(self, site: Site, again: Callable[[], Any], output: Tensor) -> Tensor | None:
        """For LSUV: scale until the output's variance is what it should be."""
        if self.scheme != "lsuv" or site.target.name not in self.drawn:
            return None
        wanted, steps = self.factors.get(site, 1.0) ** 2, 0
        if wanted == 0:
            scale_(site.target, 0.0)
            output = again()
        while wanted and steps < LSUV_STEPS:
            variance = float(wide(output).var(correction=0))
            if not (math.isfinite(variance) and variance > 0):
                self.choices[site].note = f"variance {variance:g} on the sample: not scaled"
                break
            if abs(variance / wanted - 1) < LSUV_TOLERANCE:
                break
            scale_(site.target, math.sqrt(wanted / variance))
            output, steps = again(), steps + 1
        return output

    def _unit_variance_inside(self, site: Site, tensors: list[Tensor]) -> str:
        """Scale the first projections of an attention layer, whose outputs no call shows."""
        if site.output is not None or not isinstance(site.target.layer, nn.MultiheadAttention):
            return ""
        weight = site.target.layer._parameters.get(site.target.attribute)
        if weight is None:
            return "parametrized attention: not scaled"
        with torch.no_grad():
            parts = blocks(site.target, weight)
            place = {"k_proj_weight": 1, "v_proj_weight": 2}.get(site.target.attribute, 0)
            for (block, _), tensor in zip(
                parts, (tensors * 3)[place:] if len(tensors) < 3 else tensors[place:], strict=False
            ):
                variance = float(wide(nn.functional.linear(tensor, block)).var(correction=0))
                block.mul_(1 / math.sqrt(variance) if math.isfinite(variance) and variance > 0 else 1.0)
        return ""

    def _choose(self, site: Site, arrived: float) -> Choice:
        uses = self.paths.wiring.uses(site)
        paths = tuple(
            replace(path, share=path.share / len(uses))
            for use in uses
            for path in (self.paths.to(use.inputs[0]) if use.inputs else ())
        )
        if self.gain is not None:
            return Choice(self.gain)
        if site.mixes:
            return Choice(note="behind attention: gain 1")
        seen = f"sees the input, mean square {arrived:.3g}" if {path.kind for path in paths} <= _GIVEN else ""
        if self.mode == "fan_out" and self.scheme == "he":
            return self._backward(site, seen)
        if seen:
            return Choice(note=seen, level=arrived)
        if site in self.ends:
            return Choice(note="last layer: gain 1", level=arrived)
        return self._forward(paths, arrived, len(uses))

    def _backward(self, site: Site, note: str) -> Choice:
        """The gain of the functions behind a layer, by their derivatives."""
        slopes = [self.paths.slope(path) for path in self.after.get(site, [])]
        usable = [slope for slope in slopes if math.isfinite(slope) and slope > 0]
        if not usable:
            return Choice(note=note)
        return Choice(1 / math.sqrt(sum(usable) / len(usable)), note)

    def _forward(self, paths: tuple[Path, ...], arrived: float, uses: int) -> Choice:
        """The gain of the functions in front of a layer, corrected where the sample disagrees with theory."""
        unit = sum(path.share * self.paths.mean_square(path) for path in paths)
        usable = math.isfinite(unit) and unit > 0
        pooled = any(path.pooled for path in paths)
        if uses > 1 and usable:  # what arrives differs from use to use
            return Choice(1 / math.sqrt(unit))
        if not usable or any(path.kind in ("product", "sum") for path in paths):
            return self._measured(arrived, unit if pooled and usable else 0.0)
        expected = self.paths.expected(paths, self.level)
        if expected is None:  # theory begins anew with what arrives
            return Choice(1 / math.sqrt(unit), level=arrived, faint=True)
        choice = self._theory(paths, unit, expected)
        _correct(choice, arrived / expected if expected else math.nan, pooled)
        return choice

    def _theory(self, paths: tuple[Path, ...], unit: float, expected: float) -> Choice:
        """The gain for normal sources of the mean squares that they should have."""
        faint = any(path.kind == "layer" and self._choice(path).faint for path in paths)
        if expected <= 0 or self.paths.keep_scale(paths):
            return Choice(1 / math.sqrt(unit), level=expected, faint=faint)
        level = sum(path.share * (self.level(path) or 0.0) for path in paths)
        if level < 1 / FAR and faint:  # keep it, and do not amplify it
            return Choice(math.sqrt(level / expected), f"for mean square {level:.3g}", expected, faint)
        if not 1 / FAR <= level <= FAR:
            return Choice(1 / math.sqrt(expected), f"for mean square {level:.3g}", expected)
        # The output should have mean square 1 then: an error that theory lets grow is drift as well.
        return Choice(1 / math.sqrt(unit), level=unit, faint=faint)

    def _measured(self, arrived: float, least: float) -> Choice:
        """The gain that brings what arrives to mean square 1; no larger than for the mean square `least`."""
        if not (math.isfinite(arrived) and arrived > 0):
            return Choice(note=f"mean square {arrived:g} on the sample: gain 1")
        return Choice(1 / math.sqrt(max(arrived, least)), "measured", arrived)

    def level(self, path: Path) -> float | None:
        """The expected mean square of a path's source; None if theory has nothing to say."""
        if path.kind == "layer":
            return self._choice(path).level
        if path.kind == "norm":
            return 0.0 if self.paths.wiring.norms[path.source][0] in self.zeroed else 1.0
        if path.kind == "input":
            return mean_square(path.source.tensor) if path.source.tensor.is_floating_point() else None
        return None

    def _choice(self, path: Path) -> Choice:
        """What was chosen for the weight layer that a path starts from; nothing for a further use of a weight."""
        return self.choices.get(self.paths.wiring.site_of[path.source], Choice())

    def _spread(self, site: Site) -> float:
        """The mean square of an output over that of the input, for a weight as drawn, before it is scaled."""
        fan_in, fan_out = fans_of(site.target)
        if self.scheme == "orthogonal":
            block, _ = blocks(site.target, getattr(site.target.layer, site.target.attribute))[0]
            return min(1.0, block[0].numel() / len(block)) * fan_in / max(1, block[0].numel())
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        return fan_in / fan if fan else 0.0


def _correct(choice: Choice, ratio: float, pooled: bool) -> None:
    """Make up for what arrives being far from what theory expects; what averages took away is not amplified."""
    if not math.isfinite(ratio) or 1 / NEAR <= ratio <= NEAR or ratio <= 0:
        return
    choice.level = (choice.level or 0.0) * ratio
    if ratio < 1 and pooled:
        choice.faint = True
        return
    choice.gain /= math.sqrt(ratio)
    choice.note = f"{choice.note}, ".lstrip(", ") + f"drift {ratio:.3g} corrected"


def zeroed_norms(branches: list[Branch], residual: str) -> list[nn.Module]:
    """The normalization layers whose scale becomes zero."""
    return [layer for branch in branches for layer in scales(branch)] if residual == "zero" else []
