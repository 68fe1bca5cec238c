"""Labels: whether they belong to their inputs, vary, and are about as frequent where it counts.

The facts come from `doctor.data_labels`. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.changes.rows import BalanceClasses
from homeostat.doctor.data.labels import LabelFacts, Relation
from homeostat.doctor.rule import Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

FOUND = 6.0
"""Standard deviations of permuted labels, from which a relation is one: one in a billion by chance."""

NOT_FOUND = 3.0
"""Up to which there is none."""

LEAST = 0.15
"""The correlation from which the relation of one split is held against the other; a network gains little from less."""

WEAK = 0.5
"""A relation is gone if it is surely (three errors) below this share of what the other split has."""

CLEARLY = 5.0
"""Standard errors between the relations of both splits, from which no judge is needed."""

NOISE = 0.1
"""The share of labels that is surely wrong, from which it is remarked."""

MUCH_NOISE = 0.25
"""The same, from which it may explain an ill training."""

RENUMBERED = 0.3
"""What accuracy gains at least where classes are numbered in another way in validation."""

RATIO = 10.0
"""Examples of the largest class for one of the smallest, where losses begin to be won by the large ones (Johnson &
Khoshgoftaar 2019 call 10:1 moderate)."""

SHIFT = 0.2
"""The share of examples that would need another class for both splits to have the same shares."""

MOSTLY = 0.9
"""The share of the most frequent class, from which accuracy says little."""

EXPECTED = 10.0
"""Examples of a class that training would hold if it were as frequent as in validation; by chance it holds none of them
once in 22,000 times."""

NOTED = 0.02
"""The share of examples with contradicting labels, or of a missing class, that is worth a word."""

_SAME = 0.15  # of class shares: labels of splits that differ more cannot be compared
_BEYOND = 0.1  # of a score over the prior: a model that got there found a relation


class ConstantTargets(Rule):
    """All training targets are the same.

    What it checks: whether training has more than one target; and whether validation has.

    Why it hurts: there is nothing to learn but a constant. Where validation has other targets, they were lost on the
    way: cast to an integer, divided, or taken from the wrong column.

    Threshold and its source: one target. By definition.

    False alarms: none where validation has others. Where it has none, it is only named in an ill training.

    Repair and its safety: none; look how the targets are made.

    References: none.
    """

    code = "DAT006"
    slug = "constant-targets"
    causes = ("constant_targets", "label_corruption")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.data is None or chart.data.distinct_targets[0] != 1 or len(chart.train) < 2:
            return
        other = chart.data.distinct_targets[1] > 1
        yield Suspect(
            f"All {len(chart.train)} training targets are the same"
            + ("; those in validation are not." if other else "."),
            "Look how the training targets are made.",
            "certain" if other and chart.train.complete else "likely",
            "error" if other else "warning",
            causes=None if other else ("constant_targets",),
            evidence={"train_targets": 1, "valid_targets": chart.data.distinct_targets[1]},
        )


class UnrelatedLabels(Rule):
    """The labels of one split have nothing to do with their inputs; those of the other split do.

    What it checks: how well a kernel ridge and nearest neighbors tell the label of an example from the other examples
    of its split, in both splits, against permuted labels. And whether neighbors from training are right about
    validation once its classes are numbered in another way.

    Why it hurts: a network can only learn such labels by heart. They come from shuffling inputs and labels apart,
    from sorting one of them, from two files in different order, or from encoding the labels of each split by itself.

    Threshold and its source: a relation six standard deviations of permutation beyond chance in one split, none in the
    other, and five standard errors between them. For classes numbered differently: 0.3 of accuracy.

    False alarms: a relation that no small model finds in either split is no evidence. A training that reaches more than
    the prior on validation has found a relation, and is left alone.

    Repair and its safety: none; shuffle and split inputs and labels together.

    References: Ojala & Garriga 2010, Permutation tests for studying classifier performance, JMLR 11; Zhang et al. 2017,
    arXiv:1611.03530 (networks learn random labels by heart).
    """

    code = "DAT007"
    slug = "unrelated-labels"
    causes = ("label_corruption",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = None if chart.data is None else chart.data.labels
        if facts is None or _learned(chart):
            return
        for side, broken, sound in (
            ("training", facts.train_all, facts.valid),
            ("validation", facts.valid, facts.train),
        ):
            there = sound.z >= FOUND and sound.strength >= LEAST
            gone = broken.z <= NOT_FOUND and broken.strength + 3 * broken.error < WEAK * sound.strength
            if there and gone:
                yield self._unrelated(side, broken, sound)
                return
        if facts.train.z >= FOUND and facts.valid.z >= FOUND and facts.renumbered - facts.straight >= RENUMBERED:
            expected = 1.0 - facts.valid.disagreement
            if facts.renumbered >= expected - RENUMBERED / 2 and facts.straight <= expected / 2:
                yield self._renumbered(facts)

    def _unrelated(self, side: str, broken: Relation, sound: Relation) -> Suspect:
        other = "validation" if side == "training" else "training"
        apart = (sound.strength - broken.strength) / math.hypot(sound.error, broken.error)
        return Suspect(
            f"Labels in {side} have nothing to do with their inputs: they correlate by {broken.strength:.2f} ± "
            f"{broken.error:.2f} with what the other examples tell of them; those in {other} by {sound.strength:.2f}.",
            "Shuffle, sort and split inputs and labels together; check that both files have the same order.",
            "certain" if apart >= CLEARLY else "likely",
            "error",
            evidence={"here": broken.strength, "error": broken.error, "there": sound.strength, "rows": broken.rows},
        )

    def _renumbered(self, facts: LabelFacts) -> Suspect:
        return Suspect(
            f"Classes are numbered differently in training and validation: neighbors from training are right for "
            f"{facts.straight:.0%} of validation, and for {facts.renumbered:.0%} once its classes are renumbered.",
            "Encode the labels of both splits with the same table.",
            "certain",
            "error",
            evidence={"straight": facts.straight, "renumbered": facts.renumbered},
        )


class NoisyLabels(Rule):
    """A part of the training labels seems to be wrong.

    What it checks: how often an example's nearest neighbors vote for another label, in training and in validation, with
    as many examples of each; and what permuted labels would give.

    Why it hurts: wrong labels are learned by heart late in training, and accuracy on validation falls then.

    Threshold and its source: a share that is above 0.1 by three standard errors is remarked, above 0.25 suspected.

    False alarms: inputs that are augmented where they are stored have fewer alike neighbors. It is a remark in a
    training that is not ill.

    Repair and its safety: none; look at examples whose neighbors disagree.

    References: Northcutt, Jiang & Chuang 2021, arXiv:1911.00068; Arpit et al. 2017, arXiv:1706.05394.
    """

    code = "DAT008"
    slug = "noisy-labels"
    causes = ("label_corruption",)
    requires = ("DAT007",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = None if chart.data is None else chart.data.labels
        classes = None if chart.data is None else chart.data.classes
        if facts is None or classes is None or classes.shift > _SAME or not math.isfinite(facts.wrong_share):
            return
        least = facts.wrong_share - 3 * facts.wrong_share_error
        if least < NOISE:
            return
        yield Suspect(
            f"About {facts.wrong_share:.0%} of the training labels disagree with their neighbors more than validation "
            "labels do.",
            "Look at training examples whose nearest neighbors have another label.",
            "likely" if least >= MUCH_NOISE else "certain",
            "warning" if least >= MUCH_NOISE else "info",
            evidence={"share": facts.wrong_share, "error": facts.wrong_share_error},
        )


class ImbalancedClasses(Rule):
    """Some classes are much rarer in training than others.

    What it checks: the ratio of the largest class to the smallest in training; how much the shares of the classes
    differ between the splits.

    Why it hurts: the loss is a mean over examples, so that rare classes hardly count, and a network may never answer
    with them. Where validation has them more often, accuracy there falls.

    Threshold and its source: 10 to 1 is suspected. It is likely where in validation a fifth of the examples would need
    another class for the same shares, and the most frequent class is less frequent there.

    False alarms: where classes are as rare in life as in training, nothing is wrong: it is said only if the training is
    ill and classes drawn evenly recover it. That accuracy means little where one class has 0.9 of the examples, is a
    remark.

    Repair and its safety: training examples are drawn evenly from all classes, as many as before. Safe: the model is
    not touched.

    References: Johnson & Khoshgoftaar 2019, Survey on deep learning with class imbalance; Buda et al. 2018,
    arXiv:1710.05381.
    """

    code = "DAT009"
    slug = "imbalanced-classes"
    causes = ("class_imbalance",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = None if chart.data is None else chart.data.classes
        if facts is None or not facts.ratio >= RATIO:
            return
        shifted = facts.shift >= SHIFT and facts.prior_valid < facts.prior
        evidence = {"ratio": facts.ratio, "shift": facts.shift, "prior": facts.prior}
        yield Suspect(
            f"The largest class has {facts.ratio:.0f} training examples for each of the smallest"
            + (
                f"; in validation {facts.shift:.0%} of the examples would need another class for that."
                if shifted
                else "."
            ),
            "Draw training examples evenly from the classes, or weigh the loss by 1 / frequency.",
            "likely" if shifted else "possible",
            evidence=evidence,
            changes=(BalanceClasses(),),
        )
        if facts.prior >= MOSTLY and facts.prior_valid >= MOSTLY:
            yield Suspect(
                f"One class has {facts.prior:.0%} of the examples: accuracy says little here.",
                "Judge by the accuracy within each class, or the area under the precision-recall curve.",
                "certain",
                "info",
                evidence=evidence,
            )


class MissingClasses(Rule):
    """Classes of validation do not occur in training.

    What it checks: classes with validation examples and without training examples, where all of training was read.

    Why it hurts: no network answers with a class that it never saw.

    Threshold and its source: classes that make 2 % of validation, and of which training would hold ten examples if they
    were as frequent there: that it holds none is chance once in 22,000 times.

    False alarms: classes that are meant to be unknown in training. Say so by leaving them out of validation.

    Repair and its safety: none; split at random, with all classes in both parts.

    References: none.
    """

    code = "DAT010"
    slug = "missing-classes"
    causes = ("class_imbalance",)
    requires = ("DAT006",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = None if chart.data is None else chart.data.classes
        if facts is None or not facts.missing or not chart.train.complete:
            return
        share = sum(facts.valid[index] for index in facts.missing) / max(1, sum(facts.valid))
        if share < NOTED or share * sum(facts.train) < EXPECTED:
            return
        listed = ", ".join(map(str, facts.missing[:5])) + (", ..." if len(facts.missing) > 5 else "")
        yield Suspect(
            f"Classes {listed} have {share:.0%} of the validation examples and none in training.",
            "Split at random, so that every class is in both parts.",
            "certain",
            evidence={"classes": len(facts.missing), "share": share},
        )


class ContradictingLabels(Rule):
    """The same inputs occur in training with different labels.

    What it checks: training examples whose inputs are equal, number for number, and whose labels are not.

    Why it hurts: no model can be right about all of them; the share that contradicts bounds what can be learned.

    Threshold and its source: 2 % of the training examples; a remark only.

    False alarms: coarse inputs, such as a few columns of whole numbers, repeat by nature.

    Repair and its safety: none.

    References: none.
    """

    code = "DAT011"
    slug = "contradicting-labels"
    causes = ("contradicting_labels",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        overlap = None if chart.data is None else chart.data.overlap
        if overlap is None or not overlap.contradicting >= NOTED:
            return
        yield Suspect(
            f"{overlap.contradicting:.0%} of the training examples have inputs that occur with another label too.",
            "Look whether a column was lost, or rows were joined wrongly.",
            "certain",
            "info",
            evidence={"share": overlap.contradicting},
        )


class NoRelation(Rule):
    """No small model finds any relation between inputs and labels, in neither split.

    What it checks: the same two models as for unrelated labels, on up to a thousand examples of each split.

    Why it hurts: it need not. Some relations are found by deep networks only; but there may be nothing to learn.

    Threshold and its source: within three standard deviations of permuted labels in both splits, with a hundred
    examples at least; a remark only.

    False alarms: parity and other relations without any trace in neighbors. A training that learned is not told.

    Repair and its safety: none.

    References: Ojala & Garriga 2010, JMLR 11.
    """

    code = "DAT012"
    slug = "no-relation"
    causes = ("no_signal",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = None if chart.data is None else chart.data.labels
        if facts is None or facts.valid.rows < 100 or _learned(chart):
            return
        if max(facts.train_all.z, facts.valid.z, facts.transfer.z) > NOT_FOUND:
            return
        if chart.data is not None and 1 in chart.data.distinct_targets:
            return
        yield Suspect(
            "Neither a linear model nor nearest neighbors find any relation between inputs and labels.",
            "See whether the labels can be told from these inputs at all.",
            "certain",
            "info",
            evidence={"train_z": facts.train_all.z, "valid_z": facts.valid.z},
        )


def _learned(chart: Chart) -> bool:
    """Whether the trial reached clearly more than the prior on validation."""
    prior = math.nan if chart.baselines is None else chart.baselines.prior
    return chart.course.score > prior + _BEYOND
