"""What batch normalization does in evaluation that it does not in training, measured on the model after the trial.

The trained model is scored three times on the same examples: with its running statistics, as evaluation does; with each
batch's own, as training does; and with running statistics measured anew over the training data. Everything else is in
evaluation mode, on a copy. Random by a stream of its own: the order of the examples.
"""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from homeostat import seeds
from homeostat.doctor.changes.norm import batch_norms
from homeostat.doctor.course import evaluating
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.doctor.training import Training
from homeostat.errors import HomeostatError
from homeostat.parts.modes import only_training
from homeostat.parts.norm import norm_kind
from homeostat.parts.population import update_statistics_

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

_MOST = 1000  # examples scored: the standard error of a share is then at most 0.016


@dataclass(frozen=True)
class NormFacts:
    """Scores of the trained model; nan where there is no batch normalization, or no score."""

    fails_on_one: str = ""
    """What the model raises when it trains on a single example."""
    running: float = math.nan
    """With running statistics, on training examples."""
    batches: float = math.nan
    """With each batch's own."""
    measured: float = math.nan
    """With running statistics measured anew."""
    valid_running: float = math.nan
    valid_measured: float = math.nan
    examples: int = 0
    """How many training examples were scored."""

    @property
    def stale(self) -> float:
        """What new statistics gain, on training and validation examples alike: the smaller of both gains."""
        return min(self.measured - self.running, self.valid_measured - self.valid_running)

    @property
    def gap(self) -> float:
        """How much better the training examples are scored as in training."""
        return self.batches - self.running


def norm_facts(chart: Chart) -> NormFacts:
    """The facts of a chart, measured when they are first asked for."""
    training = chart.training
    if training not in _KNOWN:
        _KNOWN[training] = examine_norms(training, chart.course.model, chart.train, chart.valid, chart.score)
    return _KNOWN[training]


def examine_norms(
    training: Training, trained: nn.Module | None, train: Examples, valid: Examples, score: Score
) -> NormFacts:
    """Score the trained model in three ways.

    Args:
        training: with the weights as given; left as it is.
        trained: the model after the trial, left as it is; None if there was none.
    """
    fails = fails_on_one(training, train)
    if trained is None or not _followed(trained) or score.kind == "other":
        return NormFacts(fails)
    judged = copy.copy(training)
    judged.model = copy.deepcopy(trained)
    with seeds.isolated(0, "doctor", "norms"):
        try:
            return _scored(judged, _batches(training, train), valid.head(_MOST), score, fails)
        except (HomeostatError, RuntimeError, ValueError):  # a batch that has no statistics, outputs that diverged
            return NormFacts(fails)


def fails_on_one(training: Training, train: Examples) -> str:
    """What a model raises when it trains on a single example, if that is about normalization; empty otherwise."""
    if not any(norm_kind(module) in ("batch", "instance") for module in training.model.modules()):
        return ""
    alone = training.copy()
    with seeds.isolated(0, "doctor", "norms", "one"):
        try:
            with torch.no_grad():
                alone.predict(train.head(1).inputs)
        except ValueError as error:  # torch's own words: "Expected more than 1 value per channel when training"
            return str(error) if "more than 1" in str(error) else ""
        except Exception:  # something else that is wrong with one example: not about normalization
            return ""
    return ""


def _batches(training: Training, train: Examples) -> list[Examples]:
    """Some batches as training would take them: of a random order, or from all over the stored one."""
    size = max(2, min(training.batch_size, len(train)))
    count = max(1, _MOST // size)
    order = torch.arange(len(train))
    if training.shuffle:
        order = torch.randperm(len(train), generator=seeds.torch_generator(0, "doctor", "norms"))
    rows = [part for part in order.split(size) if len(part) > 1]
    return [train.select(part) for part in rows[:: max(1, len(rows) // count)]]


def _scored(judged: Training, parts: list[Examples], valid: Examples, score: Score, fails: str) -> NormFacts:
    model = judged.model
    followed = _followed(model)
    with evaluating(model):
        running, valid_running = _score(judged, parts, score), _score(judged, [valid], score)
        with only_training(model, followed):
            batches = _score(judged, parts, score)
        measured = copy.copy(judged)
        measured.model = copy.deepcopy(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            update_statistics_(
                measured.model, parts, forward=lambda part: measured.predict(part.inputs), device=valid.targets.device
            )
        return NormFacts(
            fails,
            running,
            batches,
            _score(measured, parts, score),
            valid_running,
            _score(measured, [valid], score),
            sum(len(part) for part in parts),
        )


def _score(judged: Training, parts: list[Examples], score: Score) -> float:
    outputs: list[Tensor] = [judged.predict(part.inputs) for part in parts]
    return score.of(torch.cat(outputs), torch.cat([part.targets for part in parts]))


def _followed(model: nn.Module) -> list[nn.Module]:
    """The batch norm layers that train and have running statistics."""
    return [layer for layer in batch_norms(model).values() if layer.running_mean is not None and layer.training]


_KNOWN: WeakKeyDictionary[Training, NormFacts] = WeakKeyDictionary()
