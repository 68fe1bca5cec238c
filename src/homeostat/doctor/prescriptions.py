"""Customary remedies: what a practitioner would try on a training that does not work, whoever is suspected.

`repair` tries them after what the findings propose, one at a time and in bundles: where several faults hide each other,
no single remedy helps. Not random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from homeostat.doctor.changes.activation import SwapActivation
from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.data import StandardizeInputs, StandardizeTargets
from homeostat.doctor.changes.norm import AddNorm
from homeostat.doctor.changes.optimizer import ScaleLearningRate, SwapOptimizer
from homeostat.doctor.changes.regularization import ScalePenalty, SetDropout
from homeostat.doctor.changes.schedule import BatchSize, MoreEpochs
from homeostat.doctor.changes.weights import Reinitialize
from homeostat.doctor.chart import Chart
from homeostat.doctor.loss.fitting import fitting_of
from homeostat.parts.modes import drop_probability

RATE = 1e-3
"""Adam's default, Kingma & Ba 2015."""

BATCH = 32
"""Bengio 2012, arXiv:1206.5533, section 3.1.1."""

ENOUGH_STEPS = 2000
"""A training that makes a tenth of these, or fewer, may be too short for anything: the exclusive or of four rows takes
1,000 to 2,000 steps of Adam at its default rate."""

_SLOPES = ("relu", "leaky_relu", "elu")  # that do not saturate on the positive side
_LONGER, _MUCH_LONGER = 4.0, 10.0  # times the epochs


def prescriptions(chart: Chart) -> list[Change]:
    """Single remedies, those first that cost least."""
    training = chart.training
    found: list[Change] = [
        *(ScaleLearningRate.of(training, factor) for factor in (0.1, 10.0, 0.01, 100.0)),
        *_made(lambda: SwapOptimizer.of(training, "adam", RATE)),
        *_made(lambda: SwapOptimizer.of(training, "adam", 10 * RATE)),
        *_outputs(chart),
        StandardizeInputs(),
        *([StandardizeTargets()] if chart.score.kind == "regression" else []),
        Reinitialize(),
        *_activations(chart),
        *_made(lambda: AddNorm.of(training, "batch")),
        *_made(lambda: AddNorm.of(training, "layer")),
    ]
    if any(group.get("weight_decay") for group in training.optimizer.param_groups):
        found.append(ScalePenalty.of(training, 0.01))
    functions = () if chart.probe is None else chart.probe.drops
    if functions or any(drop_probability(module) for module in training.model.modules()):
        found += _made(lambda: SetDropout.of(training, 0.0, functions=functions))
    if training.batch_size != BATCH < (chart.train.total or len(chart.train)):
        found.append(BatchSize.of(training, BATCH))
    return [*found, MoreEpochs.of(training, _LONGER), MoreEpochs.of(training, _MUCH_LONGER)]


def bundles(chart: Chart) -> list[list[Change]]:
    """Remedies that go together: the textbook's network on standardized data, without and with normalization."""
    training = chart.training
    textbook = [*_network(chart), *_made(lambda: SwapOptimizer.of(training, "adam", RATE))]
    quick = _quick(chart)
    normalized = [*textbook, *_made(lambda: AddNorm.of(training, "batch"))]
    return [textbook, quick, normalized, [*quick, MoreEpochs.of(training, _LONGER)]]


def long_bundle(chart: Chart) -> list[Change]:
    """The textbook's network trained for ENOUGH_STEPS, where a training makes far fewer; empty where it does not."""
    factor = ENOUGH_STEPS / max(1, chart.training.total_steps)
    return [*_quick(chart), MoreEpochs.of(chart.training, factor)] if factor > _MUCH_LONGER else []


def _quick(chart: Chart) -> list[Change]:
    """The textbook's network at ten times the customary rate."""
    return [*_network(chart), *_made(lambda: SwapOptimizer.of(chart.training, "adam", 10 * RATE))]


def _network(chart: Chart) -> list[Change]:
    """The customary output, standardized data, rectifiers, and weights drawn for them."""
    return [
        *_outputs(chart)[:1],
        StandardizeInputs(),
        *([StandardizeTargets()] if chart.score.kind == "regression" else []),
        *_activations(chart)[:1],
        Reinitialize(),
    ]


def _outputs(chart: Chart) -> tuple[Change, ...]:
    """The output and the loss that are customary for the task."""
    view = fitting_of(chart)
    return () if view is None else view.mended()


def _activations(chart: Chart) -> list[Change]:
    """Rectifiers in the place of every hidden activation that is another function."""
    structure = chart.structure
    if structure is None:
        return []
    found: list[Change] = []
    for to in _SLOPES:
        names = tuple({step.name for step in structure.hidden} - {to})
        change = SwapActivation.of(structure, to, names) if names else None
        found += [change] if change is not None else []
    return found


def _made(make: Callable[[], Change]) -> Iterable[Change]:
    """The change, if this training has a place for it."""
    try:
        return [make()]
    except Exception:
        return []
