"""Honest baselines: what the class prior or the mean, a linear model and nearest neighbors reach on the same data.

A network that does not beat them after its whole training is ill, whatever the cause. Every baseline is fitted on a
bounded sample of the training split and scored on the validation split, in seconds. Random in the choice of that sample
alone, through `homeostat.seeds`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.flat import filled, flat, numbers_of, sample, standardized
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Kind, Score

MOST_TRAIN = 2000  # rows a baseline is fitted on: a linear model of ten classes of 28 x 28 images takes half a second
MOST_VALID = 2000
NEIGHBORS = 5  # scikit-learn's custom
_MOST_COLUMNS = 4096  # of labels: the neighbors' of MOST_VALID examples are 300 MB then
_MOST_WORK = 3e7  # rows x features x classes of a logistic regression; beyond it, ridge regression on the classes
_ITERATIONS = 100
_ALIKE = 0.75  # correlation: an input column tells half of its target's variance; a normal one and its sign have 0.80
_COLUMNS = 8  # fewer may be alike by chance, or because one of them is to be found


@dataclass(frozen=True)
class Baselines:
    """Scores on the validation split, on the scale of `Score`; nan where a baseline does not apply."""

    prior: float
    """Always the most frequent class, or the mean."""
    linear: float = math.nan
    """Logistic or ridge regression on standardized features."""
    neighbors: float = math.nan
    """A vote or mean of the nearest neighbors."""
    kind: Kind = "other"
    rows: int = 0
    """Validation examples with targets, which they were scored on."""

    @property
    def best(self) -> float:
        """The best of the three; nan if none applies."""
        return max((score for score, _ in self._named() if not math.isnan(score)), default=math.nan)

    @property
    def best_name(self) -> str:
        """What reached it, in words that fit a sentence; "" if none applies."""
        return next((name for score, name in self._named() if score == self.best), "")

    def error(self, score: float, rows: int | None = None) -> float:
        """The standard error of a score, by chance in which examples are in the validation split.

        Accuracy: binomial, with one example's worth of doubt at 0 and 1. R²: the delta method for normal residuals,
        2 (1 - R²) sqrt(R² / n) (Olkin and Finn 1995). nan for a score of another kind.

        Args:
            score: of any model on the validation split.
            rows: examples it was measured on; None takes those of the baselines.
        Example:
            >>> round(Baselines(0.5, kind="binary", rows=100).error(0.5), 3)
            0.05
        """
        count = self.rows if rows is None else rows
        if self.kind == "other" or count < 1 or not math.isfinite(score):
            return math.nan
        if self.kind == "regression":
            return 2.0 * (1.0 - score) * math.sqrt((max(score, 0.0) + 1.0 / count) / count)
        share = min(max(score, 0.0), 1.0)
        share = (share * count + 0.5) / (count + 1.0)
        return math.sqrt(share * (1.0 - share) / count)

    def _named(self) -> list[tuple[float, str]]:
        prior = "always the mean" if self.kind == "regression" else "always the most frequent answer"
        return [(self.prior, prior), (self.linear, "a linear model"), (self.neighbors, "nearest neighbors")]


def measure_baselines(train: Examples, valid: Examples, score: Score, deadline: Deadline, seed: int = 0) -> Baselines:
    """The baselines of a task; where targets are the inputs (an autoencoder), only the constant answer is one.

    Args:
        train: what they are fitted on; at most `MOST_TRAIN` examples are used.
        valid: what they are scored on; at most `MOST_VALID` examples.
        score: the task's score; one of kind "other" has no baselines.
        deadline: baselines that are not begun by then are nan.
        seed: of the choice of examples.
    """
    if score.kind == "other":
        return Baselines(math.nan)
    all_labels = _labels(score, train)
    train, valid = sample(train, MOST_TRAIN, seed, "baseline train"), sample(valid, MOST_VALID, seed, "baseline valid")
    known, truth = _labels(score, train), _labels(score, valid)
    usable = _answered(truth)
    if not usable.any() or not _answered(all_labels).any():
        return Baselines(math.nan, kind=score.kind)
    truth = truth[usable]
    prior = score.of_predictions(_prior(all_labels, truth, score.kind), truth)
    found = Baselines(prior, kind=score.kind, rows=len(truth))
    inputs, questions = numbers_of(train), numbers_of(valid)
    if inputs is None or questions is None or inputs.shape[1:] != questions.shape[1:] or _is_dense(truth, score):
        return found
    if score.kind in ("regression", "multilabel") and _are_inputs(train.targets, inputs):
        return found
    table = flat(inputs)
    asked = standardized(flat(questions)[usable], like=table)
    table = standardized(table)
    kept = _answered(known)
    table, known = table[kept], known[kept]
    if score.kind in ("regression", "multilabel"):  # each missing number is the mean of its column
        known = filled(np.where(_told(known), known, np.nan).astype(float))
    if len(known) < 2 or (score.kind != "regression" and len(np.unique(known, axis=0)) < 2):
        return found
    linear, neighbors = (
        math.nan if deadline.passed else score.of_predictions(fit(table, known, asked, score.kind), truth)
        for fit in (_linear, _neighbors)
    )
    return Baselines(prior, linear, neighbors, score.kind, len(truth))


def _labels(score: Score, examples: Examples) -> np.ndarray:
    return np.asarray(score.labels(examples.targets).cpu().numpy())


def _told(labels: np.ndarray) -> np.ndarray:
    """Which labels are there: not left out."""
    return np.isfinite(labels) if labels.dtype.kind == "f" else labels >= 0


def _answered(labels: np.ndarray) -> np.ndarray:
    """Which examples have a label at all, (N,)."""
    return np.asarray(_told(labels).reshape(len(labels), -1).any(1))


def _is_dense(labels: np.ndarray, score: Score) -> bool:
    """Whether an example has a label for each of its pixels or words, which no table row predicts, or very many."""
    return (score.kind == "multiclass" and labels.ndim > 1) or labels[0].size > _MOST_COLUMNS


def _are_inputs(targets: Tensor, inputs: Tensor) -> bool:
    """Whether targets are the inputs again, or these without noise, scaled, or as yes and no.

    A network that is to give them back through a bottleneck cannot be held against a model without one.
    """
    if targets[:1].numel() != inputs[:1].numel():
        return False
    wanted, given = (tensor.detach().reshape(len(tensor), -1).double().cpu() for tensor in (targets, inputs))
    if torch.equal(wanted, given):
        return True
    first, second = (standardized(filled(table.numpy())) for table in (wanted, given))
    varies = first.any(0) & second.any(0)
    alike = (first * second).mean(0)[varies]
    return len(alike) >= _COLUMNS and float(np.median(alike)) > _ALIKE


def _prior(known: np.ndarray, truth: np.ndarray, kind: Kind) -> np.ndarray:
    """The best constant prediction, as often as there are true labels."""
    told = _told(known)
    if kind in ("regression", "multilabel"):
        means = known.sum(0, dtype=float, where=told) / np.maximum(told.sum(0), 1)
        constant = means if kind == "regression" else (means > 0.5).astype(known.dtype)
    else:
        values, counts = np.unique(known[told], return_counts=True)
        constant = values[counts.argmax()]
    return np.broadcast_to(constant, truth.shape)


def _linear(table: np.ndarray, known: np.ndarray, asked: np.ndarray, kind: Kind) -> np.ndarray:
    """Predictions of ridge regression (values, columns of yes and no, very many classes) or logistic regression."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "regression":
        center, spread = known.mean(0), known.std(0)
        spread = np.where(spread > 0, spread, 1.0)
        return (
            np.asarray(Ridge().fit(table, (known - center) / spread).predict(asked)).reshape(-1, *known.shape[1:])
            * spread
            + center
        )
    if kind == "multilabel":
        return (np.asarray(Ridge().fit(table, known).predict(asked)).reshape(-1, *known.shape[1:]) > 0.5).astype(int)
    classes, numbers = np.unique(known, return_inverse=True)
    if table.size * len(classes) > _MOST_WORK:
        scores = Ridge(alpha=table.shape[1]).fit(table, np.eye(len(classes))[numbers]).predict(asked)
        return np.asarray(classes[scores.argmax(1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that has not converged is still a baseline
        model = LogisticRegression(max_iter=_ITERATIONS).fit(table, numbers)
    return np.asarray(classes[model.predict(asked)])


def _neighbors(table: np.ndarray, known: np.ndarray, asked: np.ndarray, kind: Kind) -> np.ndarray:
    """A vote (the smallest class wins a tie) or mean of the nearest rows."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    count = min(NEIGHBORS, len(table))
    if kind == "regression":
        return np.asarray(KNeighborsRegressor(count).fit(table, known).predict(asked))
    if kind == "multilabel":
        return (np.asarray(KNeighborsRegressor(count).fit(table, known).predict(asked)) > 0.5).astype(int)
    return np.asarray(KNeighborsClassifier(count).fit(table, known).predict(asked))
