"""Whether labels belong to their inputs: a relation that small models find in one split and not in the other.

A kernel ridge and nearest neighbors predict each example from the others of its split; the same on permuted labels
tells what chance would give. Both splits are asked with the same number of examples, so that neither looks worse for
being small; the training split also with all it has. Also here: how often each class occurs. Random in samples and
permutations, by fixed streams.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from homeostat import seeds
from homeostat.doctor.budget import Deadline
from homeostat.doctor.data.flat import flat, numbers_of, sample, standardized
from homeostat.doctor.examples import Examples
from homeostat.doctor.score import Score

MOST_ROWS = 1000  # of each split: factorizing the kernel takes a tenth of a second
LEAST_ROWS = 16
PERMUTATIONS = 60
NEIGHBORS = 5
_ROOM = 0.2  # between what neighbors get wrong and what chance would: less, and nothing can be estimated
_RIDGE = 0.1  # times the mean of the kernel's diagonal
_MOST_COLUMNS = 50  # of the labels; more are sketched


@dataclass(frozen=True)
class Relation:
    """How well labels can be told from inputs within one split, or across."""

    rows: int
    strength: float
    """Correlation between labels and their predictions (of examples left out), less what permuted labels have."""
    error: float
    """The standard deviation of that under permutation."""
    disagreement: float = math.nan
    """The share of examples whose nearest neighbors vote for another label; nan for values."""
    expected: float = math.nan
    """The same for permuted labels."""

    @property
    def z(self) -> float:
        """The strength in standard deviations of chance."""
        return self.strength / self.error


@dataclass(frozen=True)
class LabelFacts:
    """Relations between inputs and labels in both splits."""

    train: Relation
    """On as many examples as validation has."""
    valid: Relation
    train_all: Relation
    """On all training examples, up to the bound."""
    transfer: Relation
    """How well the training split's relation tells the labels of the validation split."""
    renumbered: float = math.nan
    """Accuracy on validation of the training split's neighbors once their classes are renumbered in the way that
    suits best."""
    straight: float = math.nan
    """The same as they are numbered."""

    @property
    def wrong_share(self) -> float:
        """The share of training labels that are wrong, if errors are random and validation has none; nan if unknown."""
        room = self.train.expected - self.valid.disagreement
        if not math.isfinite(room) or room < _ROOM:
            return math.nan
        return min(1.0, max(0.0, (self.train.disagreement - self.valid.disagreement) / room))

    @property
    def wrong_share_error(self) -> float:
        """Its standard error."""
        room = self.train.expected - self.valid.disagreement
        if not math.isfinite(room) or room < _ROOM:
            return math.nan
        shares = (self.train.disagreement, self.valid.disagreement)
        return math.sqrt(sum(p * (1 - p) / self.valid.rows for p in shares)) / room


@dataclass(frozen=True)
class ClassFacts:
    """How often each class occurs, in the whole of what was read."""

    train: tuple[int, ...]
    valid: tuple[int, ...]

    @property
    def ratio(self) -> float:
        """Training examples of the most frequent class for one of the least frequent that occurs."""
        present = [count for count in self.train if count]
        return max(present) / min(present) if present else math.nan

    @property
    def prior(self) -> float:
        """The share of the most frequent class in training."""
        return max(self.train, default=0) / max(1, sum(self.train))

    @property
    def prior_valid(self) -> float:
        """The share of the training split's most frequent class in validation."""
        if not self.train or not sum(self.valid):
            return math.nan
        return self.valid[self.train.index(max(self.train))] / sum(self.valid)

    @property
    def missing(self) -> tuple[int, ...]:
        """Classes that occur in validation and not in training."""
        return tuple(i for i, (a, b) in enumerate(zip(self.train, self.valid, strict=True)) if b and not a)

    @property
    def shift(self) -> float:
        """Total variation between the classes' shares in training and in validation, in [0, 1]."""
        a, b = max(1, sum(self.train)), max(1, sum(self.valid))
        return 0.5 * sum(abs(x / a - y / b) for x, y in zip(self.train, self.valid, strict=True))


def count_classes(train: Examples, valid: Examples, score: Score) -> ClassFacts | None:
    """The classes of both splits; None where targets are no classes."""
    if score.kind not in ("multiclass", "binary"):
        return None
    found = []
    for split in (train, valid):
        labels = score.labels(split.targets).flatten()
        labels = labels[(labels >= 0) & (labels < score.classes)]
        found.append(tuple(labels.bincount(minlength=score.classes).tolist()))
    return ClassFacts(*found)


def examine_labels(train: Examples, valid: Examples, score: Score, deadline: Deadline) -> LabelFacts | None:
    """Whether labels can be told from inputs within each split, and across; None where that cannot be asked.

    Args:
        train: the training split.
        valid: the validation split, of other examples.
        score: tells what the labels are.
        deadline: None if it has passed.
    """
    rows = min(len(train), len(valid), MOST_ROWS)
    if score.kind == "other" or score.dense or rows < LEAST_ROWS or deadline.passed:
        return None
    asked = [_table(sample(split, rows, 0, "labels", name), score) for name, split in (("t", train), ("v", valid))]
    if asked[0] is None or asked[1] is None or asked[0][0].shape[1:] != asked[1][0].shape[1:]:
        return None
    (first, known), (second, truth) = asked  # type: ignore[misc]
    votes = score.kind in ("multiclass", "binary")
    within = [_relation(_Teller(table), _columns(labels, score), votes) for table, labels in asked]  # type: ignore[misc]
    if deadline.passed:
        return None
    whole = _table(sample(train, MOST_ROWS, 0, "labels", "t"), score) if len(train) > rows < MOST_ROWS else None
    across = _Teller(first, second)
    straight, renumbered = _renumbered(across, known, truth) if votes else (math.nan, math.nan)
    strength = across.strength(_columns(known, score), _columns(truth, score))
    return LabelFacts(
        train=within[0],
        valid=within[1],
        train_all=within[0] if whole is None else _relation(_Teller(whole[0]), _columns(whole[1], score), votes),
        transfer=Relation(len(truth), strength, 1 / math.sqrt(len(truth))),
        straight=straight,
        renumbered=renumbered,
    )


class _Teller:
    """Predicts labels of rows from labels of other rows, whatever the labels: both models are linear in them.

    Args:
        known: rows (n, columns), standardized.
        asked: rows to predict for; None predicts each known row from the others.
    """

    def __init__(self, known: np.ndarray, asked: np.ndarray | None = None) -> None:
        kernel = known @ known.T + 1.0
        ridge = _RIDGE * float(np.trace(kernel)) / len(kernel)
        inverse = np.linalg.inv(kernel + ridge * np.eye(len(kernel)))
        rows = known if asked is None else asked
        squares = (rows**2).sum(1)[:, None] + (known**2).sum(1)[None, :] - 2.0 * (rows @ known.T)
        if asked is None:  # leaving one out in closed form: y - (K + r)^-1 y / diag
            self._smoother = -inverse / np.diag(inverse)[:, None]
            np.fill_diagonal(self._smoother, 0.0)
            np.fill_diagonal(squares, np.inf)
        else:
            self._smoother = (rows @ known.T + 1.0) @ inverse
        count = min(NEIGHBORS, len(known) - 1)
        self._nearest = np.argpartition(squares, count - 1, axis=1)[:, :count]

    def votes(self, known: np.ndarray) -> np.ndarray:
        """The mean label of the nearest rows, (n, K)."""
        return np.asarray(known[self._nearest].mean(1))

    def strength(self, known: np.ndarray, truth: np.ndarray) -> float:
        """Correlation of the better model's predictions with the truth; not below 0."""
        return max(0.0, _correlation(self._smoother @ known, truth), _correlation(self.votes(known), truth))


def _relation(teller: _Teller, labels: np.ndarray, votes: bool) -> Relation:
    """The relation within a split, against permutations of its labels (n, K)."""
    rng = seeds.numpy_generator(0, "doctor", "permuted labels")
    strength, disagreement = teller.strength(labels, labels), _disagreement(teller, labels)
    chance = []
    for _ in range(PERMUTATIONS):
        permuted = labels[rng.permutation(len(labels))]
        chance.append((teller.strength(permuted, permuted), _disagreement(teller, permuted) if votes else 0.0))
    mean, spread = np.mean(chance, 0), np.std(chance, 0)
    # correlations of chance spread by at least this much: few permutations may show less
    error = max(float(spread[0]), 1 / math.sqrt(len(labels) * max(1, labels.shape[1] - 1)))
    shares = (disagreement, float(mean[1])) if votes else (math.nan, math.nan)
    return Relation(len(labels), strength - float(mean[0]), error, *shares)


def _disagreement(teller: _Teller, labels: np.ndarray) -> float:
    return float((teller.votes(labels).argmax(1) != labels.argmax(1)).mean())


def _correlation(predicted: np.ndarray, truth: np.ndarray) -> float:
    """One correlation over all columns, each around its mean; 0 where one side is constant."""
    a, b = predicted - predicted.mean(0), truth - truth.mean(0)
    size = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0


def _table(split: Examples, score: Score) -> tuple[np.ndarray, np.ndarray] | None:
    """Standardized inputs and labels of the examples whose labels are all there."""
    inputs = numbers_of(split)
    labels = score.labels(split.targets).cpu().numpy()
    if inputs is None:
        return None
    rows = labels.reshape(len(labels), -1)
    usable = np.isfinite(rows).all(1)
    if score.kind != "regression":
        usable &= (rows >= 0).all(1)
    if score.kind == "multiclass":
        usable &= rows[:, 0] < score.classes
    if usable.sum() < LEAST_ROWS:
        return None
    return standardized(flat(inputs)[usable]), labels[usable]  # each split by itself: its preparation may differ


def _columns(labels: np.ndarray, score: Score) -> np.ndarray:
    """Labels as columns of comparable size: one per class, or the values around their mean."""
    if score.kind == "multiclass" and score.classes > _MOST_COLUMNS:
        return np.asarray(seeds.numpy_generator(0, "doctor", "codes").normal(size=(score.classes, _MOST_COLUMNS)))[
            labels
        ]
    if score.kind in ("multiclass", "binary"):
        return np.asarray(np.eye(score.classes)[labels])
    return standardized(labels.reshape(len(labels), -1).astype(float))[:, :_MOST_COLUMNS]


def _renumbered(across: _Teller, known: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Accuracy of the neighbors' votes as they are, and with classes renumbered in the way that suits best."""
    from scipy.optimize import linear_sum_assignment

    classes = int(max(known.max(), truth.max())) + 1
    near = across.votes(np.eye(classes)[known]).argmax(1)
    table = np.zeros((classes, classes))
    np.add.at(table, (near, truth), 1.0)
    chosen = linear_sum_assignment(table, maximize=True)
    return float(np.trace(table) / len(truth)), float(table[chosen].sum() / len(truth))
