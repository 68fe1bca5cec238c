"""What can be known of a training's data before it trains: scale, labels, splits, order, augmentation.

Facts only; `rules.data` says what is too much. Large splits are sampled; every part stops at the deadline, those most
likely to explain an illness coming first. Random in samples and permutations, by fixed streams.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.course import evaluating
from homeostat.doctor.data.augmentation import AugmentFacts, examine_augmentation
from homeostat.doctor.data.labels import ClassFacts, LabelFacts, count_classes, examine_labels
from homeostat.doctor.data.rows import Order, Overlap, find_overlap, stored_order
from homeostat.doctor.data.scale import (
    Finite,
    InputScale,
    TargetScale,
    count_nonfinite,
    finite_rows,
    input_scale,
    target_scale,
)
from homeostat.doctor.data.splits import Mismatch, compare_splits
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score
from homeostat.doctor.training import Training

_TRIED = 8  # examples with numbers that are not finite


@dataclass(frozen=True)
class DataFacts:
    """What was found; None where it does not apply or there was no time."""

    inputs: InputScale
    targets: TargetScale | None
    """Of a regression."""
    finite: Finite
    distinct_targets: tuple[int, int]
    """How many different targets training and validation have; more than two count as three."""
    classes: ClassFacts | None = None
    mismatch: Mismatch | None = None
    overlap: Overlap | None = None
    order: Order | None = None
    """Of a training that takes its examples in stored order."""
    labels: LabelFacts | None = None
    """None too where validation is the training data."""
    augmentation: AugmentFacts | None = None

    @property
    def same_splits(self) -> bool:
        """Whether validation is the training data."""
        return self.overlap is not None and self.overlap.identical


def examine_data(training: Training, train: Examples, valid: Examples, score: Score, deadline: Deadline) -> DataFacts:
    """The facts of both splits.

    Args:
        training: tells the batch size, the order and the augmentation.
        train: the training split.
        valid: the validation split; it may be the same.
        score: tells what the targets are.
        deadline: parts that are not begun by then are left out.
    """
    with np.errstate(all="ignore"):  # overflowing data give facts such as inf, which no rule takes for evidence
        return _examined(training, train, valid, score, deadline)


def takes_features_last(model: nn.Module) -> bool:
    """Whether inputs (N, T, F) of a model have features last: it has no convolution over sequences."""
    return not any(isinstance(module, nn.Conv1d) for module in model.modules())


def _examined(training: Training, train: Examples, valid: Examples, score: Score, deadline: Deadline) -> DataFacts:
    sequence = takes_features_last(training.model)
    facts = DataFacts(
        inputs=input_scale(train, sequence=sequence),
        targets=target_scale(train, score),
        finite=_finite(training, train, valid),
        distinct_targets=(_distinct(train), _distinct(valid)),
        classes=count_classes(train, valid, score),
    )
    same = train is valid
    found: dict[str, object] = {}
    if not deadline.passed and not same:
        found["mismatch"] = compare_splits(train, valid, sequence=sequence)
    if not deadline.passed:
        found["overlap"] = overlap = find_overlap(train, valid, score)
        same = same or overlap.identical
    if not training.shuffle:
        found["order"] = stored_order(train, score, training.batch_size)
    if not deadline.passed and not same:
        found["labels"] = examine_labels(train, valid, score, deadline)
    if training.augment is not None and not deadline.passed:
        found["augmentation"] = _augmentation(training, train, score, deadline)
    return DataFacts(**{**vars(facts), **found})


def _finite(training: Training, train: Examples, valid: Examples) -> Finite:
    found = count_nonfinite(train, valid)
    return replace(found, harmful=any(_harmful(training, split) for split in (train, valid))) if found.total else found


def _harmful(training: Training, split: Examples) -> bool:
    """Whether outputs or loss of a batch with such examples are not finite."""
    bad = (~finite_rows(split)).nonzero()[:_TRIED, 0]
    if not len(bad):
        return False
    batch = split.select(bad)
    with seeds.isolated(0, "doctor", "finite"), evaluating(training.model):
        try:
            outputs = training.predict(batch.inputs)
            return not bool(torch.isfinite(outputs).all() and torch.isfinite(training.loss(outputs, batch.targets)))
        except Exception:  # refused by the user's code: of no use either
            return True


def _augmentation(training: Training, train: Examples, score: Score, deadline: Deadline) -> AugmentFacts | None:
    if training.augment is None:
        return None
    try:
        return examine_augmentation(training.augment, train, score, deadline)
    except Exception:  # the user's function on copies of their inputs; the trial reports what it raises
        return None


def _distinct(examples: Examples) -> int:
    """How many different targets there are, up to three."""
    targets = examples.targets.detach().reshape(len(examples), -1)
    if not targets.shape[1]:
        return 1
    rows, found = targets[(targets == targets).all(1)], 0  # nan is no target
    while len(rows) and found < 3:
        rows = rows[(rows != rows[0]).any(1)]
        found += 1
    return found
