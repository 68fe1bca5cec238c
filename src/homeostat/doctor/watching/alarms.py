"""Alarms that vitals give by themselves: values that are not finite, dead units, gradients that vanish or explode.

The thresholds are wide: a healthy network must never set one off, and what is merely unusual stays silent. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from homeostat.doctor.finding import SEVERITIES, Finding, Severity
from homeostat.doctor.watching.notices import listed, named, notice
from homeostat.doctor.watching.recorder import Listener, Recorder
from homeostat.doctor.watching.vitals import STATISTICS, WHOLE, Vitals

FEWEST_STEPS = 5
"""Watched steps that must agree. Zero-initialized layers pass no gradient at the first."""

SHARE_OF_STEPS = 0.8
"""Of the watched steps that must agree, so that one lucky batch changes nothing."""

VANISHING = 1e-4
"""Root mean square gradient of the first layers' weights over the last's, below which it vanishes. AutoTrainer (Zhang
et al. 2021, ICSE) takes 1e-3, which healthy networks reach whose inputs are mostly 0."""

EXPLODING = 1e4
"""The same ratio above which it explodes; also the growth of the whole gradient since the first watched steps."""

DEAD_SHARE, MOSTLY_DEAD = 0.9, 0.5
"""Of an activation's units, for a warning and for a remark. Lu et al. 2019, arXiv:1903.06733: a net whose layer is dead
altogether is lost; one with half of its units works, and wastes them."""

QUIET_VALUES, QUIET_STEPS = 1000, 5
"""Values of a unit, from so many watched steps, that must all be the same before it counts as dead: a unit active on
1 % of the examples is taken for dead with probability 0.99^1000 < 1e-4."""

GROWTH = 100.0
"""Growth of the whole gradient before values ceased to be finite that makes an explosion of it."""

REPLACING = 1.0
"""Norm of a step over that of all weights, above which steps replace the weights instead of improving them. Healthy
training is around 1e-3 (Bottou 2012, Stochastic Gradient Descent Tricks) and, with weights that start at 0, above 1 in
the first steps alone."""

FEWEST_REPLACEMENTS = 3
"""Watched steps behind the first that must be so large; there are few before such a training overflows."""

_NONFINITE, _LOSS = STATISTICS.index("nonfinite"), STATISTICS.index("loss")
_GRADIENT, _WEIGHT = STATISTICS.index("gradient"), STATISTICS.index("weight")
_NEVER = (np.zeros(0), np.zeros(0, dtype=np.int64))
_ENOUGH_FOR_GROWTH = 3  # steps at either end whose median gradients are compared


class NonFinite(Listener):
    """Where values first ceased to be finite."""

    def __init__(self) -> None:
        self.first: Finding | None = None
        self._outputs = 0

    def alarmed(self, recorder: Recorder, step: int) -> None:
        """A weight is not finite behind a step; gradients are still there."""
        if self.first is None:
            self.first = _broken_weights(recorder, step)

    def finished(self, recorder: Recorder, step: int) -> None:
        """Look at the row of a watched step: outputs in the order of calls, then loss, gradients, weights."""
        if self.first is not None:
            return
        vitals = recorder.vitals
        row = vitals.values[-1]
        if not np.any(row[:, _NONFINITE] > 0) and not np.any(np.isinf(row)):
            return
        outputs = np.flatnonzero(row[:, _NONFINITE] > 0)
        gradients = np.flatnonzero(np.isinf(row[:-1, _GRADIENT]))
        weights = np.flatnonzero(np.isinf(row[:-1, _WEIGHT]))
        loss = row[-1, _LOSS]
        self._outputs += bool(len(outputs))
        lost = len(gradients) or len(weights) or math.isinf(loss)
        if lost or self._outputs >= 2:  # a float16 overflow that a GradScaler skips is over at the next step
            self.first = _broken_step(vitals, step, outputs, gradients, weights)

    def findings(self) -> Iterator[Finding]:
        if self.first is not None:
            yield self.first


def _broken_step(vitals: Vitals, step: int, outputs: NDArray, gradients: NDArray, weights: NDArray) -> Finding:
    """What of a watched step was not finite, and where that began."""
    names = vitals.layers
    before = int(vitals.steps[-2]) if len(vitals) > 1 else None
    since = "from the first step on" if before is None else f"at step {step}; at step {before} all was finite"
    kinds = [("weights", weights), ("output", outputs), ("gradients", gradients)]
    kind, places = next(((kind, places) for kind, places in kinds if len(places)), ("loss", np.array([], dtype=int)))
    layer = names[int(places[0] if kind != "gradients" else places[-1])] if len(places) else None
    layers = [names[int(place)] for place in places]
    if kind == "gradients":
        message = f"All outputs are finite and the gradients of {named(layers)} are not, {since}"
    else:
        message = f"The {kind} {'are' if kind == 'weights' else 'is'} not finite {since}"
    evidence = {"step": step, "last_finite_step": before, "what": kind, "layers": listed(layers)}
    return _non_finite(message, layer, evidence, vitals)


@torch.no_grad()
def _broken_weights(recorder: Recorder, step: int) -> Finding:
    """Which weights and gradients are not finite behind a step that was perhaps not watched."""
    anatomy = recorder.anatomy
    weights = [held for held in anatomy.parameters if not _finite(held.parameter)]
    gradients = [
        held for held in anatomy.parameters if held.parameter.grad is not None and not _finite(held.parameter.grad)
    ]
    called = {layer: place for place, layer in enumerate(recorder.outputs.order)}
    weights.sort(key=lambda held: called.get(held.layer, -1))
    message = f"Weights are not finite since step {step}"
    if gradients and len(gradients) == len([held for held in anatomy.parameters if held.parameter.grad is not None]):
        message += ", nor is any gradient there: the loss was not"
    elif gradients:
        message += f"; of the gradients there, these are not finite: {named([held.name for held in gradients])}"
    evidence = {
        "step": step,
        "what": "weights",
        "parameters": listed([held.name for held in weights]),
        "gradients": listed([held.name for held in gradients]),
    }
    layer = anatomy.names[weights[0].layer] if weights else None
    return _non_finite(message, layer, evidence, recorder.vitals)


def _finite(tensor: torch.Tensor) -> bool:
    return math.isfinite(float(tensor.detach().sum(dtype=torch.float64)))


def _non_finite(message: str, layer: str | None, evidence: dict[str, Any], vitals: Vitals) -> Finding:
    """The finding, with what the gradient did before: growth points to steps that are too long."""
    values = vitals.of(WHOLE, "gradient")[1]
    finite = values[np.isfinite(values)]
    causes: tuple[str, ...] = ("nonfinite_values", "loss_diverging")
    if len(finite):
        evidence = {**evidence, "first_gradient": float(finite[0]), "last_finite_gradient": float(finite[-1])}
        if finite[-1] > GROWTH * finite[0]:
            message += f". Before, the gradient's norm had grown from {finite[0]:.3g} to {finite[-1]:.3g}"
            causes = (*causes, "exploding_gradient")
    return notice("SIG007", message + ".", layer=layer, evidence=evidence, causes=causes)


class DeadUnits(Listener):
    """Which units of activations have been the same for all examples for long."""

    def __init__(self) -> None:
        self._quiet: dict[int, tuple[NDArray[np.float64], NDArray[np.int64]]] = {}
        self._passed: set[int] = set()  # layers that are still as a whole, and gradients get past them
        self._names: tuple[str, ...] = ()
        self._order: list[int] = []

    def finished(self, recorder: Recorder, step: int) -> None:
        """Count on for units that are still, and start again for those that are not."""
        self._names, self._order = recorder.anatomy.names, recorder.outputs.order
        for layer, (still, values) in recorder.outputs.still.items():
            if recorder.anatomy.roles[layer] != "activation":
                continue
            seen, steps = self._quiet.get(layer, _NEVER)
            if len(seen) != len(still):
                seen, steps = np.zeros(len(still)), np.zeros(len(still), dtype=np.int64)
            self._quiet[layer] = np.where(still, seen + values, 0.0), np.where(still, steps + 1, 0)
            if not still.all():
                self._passed.discard(layer)
            elif _learns_before(recorder.vitals, self._names[layer]):
                self._passed.add(layer)

    def findings(self) -> Iterator[Finding]:
        """One finding for the first of the layers that are worst: behind it, all that is fed by it is constant too."""
        shares = {}
        for layer in self._order:
            seen, steps = self._quiet.get(layer, _NEVER)
            dead = int(np.count_nonzero((seen >= QUIET_VALUES) & (steps >= QUIET_STEPS)))
            if len(seen) > 1 and dead / len(seen) >= MOSTLY_DEAD:
                shares[layer] = (dead, len(seen))
        if not shares:
            return
        severities = {layer: _severity(dead / units, layer in self._passed) for layer, (dead, units) in shares.items()}
        worst = max(severities.values(), key=SEVERITIES.index)
        layer = next(layer for layer, severity in severities.items() if severity == worst)
        dead, units = shares[layer]
        message = f"{dead} of {units} units give the same output for every example"
        others = [self._names[other] for other in shares if other != layer]
        message += f"; so do half or more of those in {named(others)}" if others else ""
        evidence = {"dead_units": dead, "units": units, "other_layers": listed(others)}
        yield notice("SIG003", message + ".", layer=self._names[layer], evidence=evidence, severity=worst)


def _severity(share: float, passed: bool) -> Severity:
    """A whole layer is an error, unless gradients find a way past it."""
    return "info" if share < DEAD_SHARE else "warning" if share < 1 or passed else "error"


def _learns_before(vitals: Vitals, layer: str) -> bool:
    """Whether a layer before one got a gradient at the last watched step; layers come in the order of execution."""
    return bool(np.any(vitals.values[-1, : vitals.row(layer), _GRADIENT] > 0))


def gradient_findings(vitals: Vitals) -> Iterator[Finding]:
    """Gradients that vanish or explode from the last layer to the first, or grow while training goes on."""
    ratios = vitals.of(WHOLE, "gradient_ratio")[1]
    if len(ratios) >= FEWEST_STEPS:
        middle = float(np.median(ratios))
        evidence = {"gradient_ratio": middle, "watched_steps": len(ratios)}
        if np.mean(ratios < VANISHING) >= SHARE_OF_STEPS:
            message = f"The gradient of the first layers' weights is {middle:.1g} times that of the last layers'"
            yield notice("GRD001", message + " (root mean square, median over watched steps).", evidence=evidence)
        if np.mean(ratios > EXPLODING) >= SHARE_OF_STEPS:
            message = f"The gradient of the first layers' weights is {middle:.1g} times that of the last layers'"
            yield notice("GRD002", message + " (root mean square, median over watched steps).", evidence=evidence)
    steps, updates = vitals.of(WHOLE, "update")
    large = (updates > REPLACING) & (steps > 0)
    if np.count_nonzero(large) >= max(FEWEST_REPLACEMENTS, len(large) / 2):
        middle = float(np.median(updates[large]))
        message = f"Steps are {middle:.3g} times as long as all weights together, at {large.sum()} watched steps."
        evidence = {"update": middle, "watched_steps": int(large.sum())}
        yield notice("GRD002", message, evidence=evidence, causes=("exploding_gradient", "lr_too_high"))
    norms = vitals.of(WHOLE, "gradient")[1]
    norms = norms[np.isfinite(norms)]
    if len(norms) >= 2 * _ENOUGH_FOR_GROWTH:
        first, last = (float(np.median(part)) for part in (norms[:_ENOUGH_FOR_GROWTH], norms[-_ENOUGH_FOR_GROWTH:]))
        if first > 0 and last > EXPLODING * first:
            message = f"The gradient's norm has grown from {first:.3g} to {last:.3g}."
            yield notice("GRD002", message, evidence={"first_gradient": first, "last_gradient": last})
