"""Splits: whether both were prepared alike and are apart, in which order examples come, what augmentation does to them.

The facts come from `doctor.data_splits`, `data_rows` and `data_augment`. Not random.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.changes.rows import DropAugmentation, MatchSplits, Shuffle
from homeostat.doctor.data.augmentation import AugmentFacts
from homeostat.doctor.data.splits import Mismatch
from homeostat.doctor.rule import Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

MOST = 0.5
"""The share of features that differ, from which it is the preparation rather than a feature's own drift."""

SOME = 0.05
"""The same, from which it is worth a thought."""

SHARED = 0.05
"""The share of validation examples that occur in training beyond chance, by three standard errors; well-kept sets of
photographs have up to 0.03 of near copies (Barz & Denzler 2020, arXiv:1902.00423), and hardly any exact ones."""

ALIKE = 0.5
"""The correlation of targets within the batches of an unshuffled training, where a batch says nothing of the others."""

SOMEWHAT_ALIKE = 0.1
"""The same, from which it is suspected."""

BEYOND_CHANCE = 8.0
"""Standard errors of it."""

SPOILED = 0.5
"""The share of skill that is left under augmentation. Ten customary augmentations of three image sets, some heavy,
leave a small network at least 0.62 (benchmarks/doctor_augmentation.py)."""

LOST = 0.8
"""The same, below which augmentation is suspected in an ill training."""

SWAPPED = 0.2
"""The share of each of two classes that augmentation makes into the other. Customary augmentations stay below 0.2, but
for mirrored digits (0.31) and inverted pictures of clothes (0.24); digits upside down have 0.33 for six and nine
(benchmarks/doctor_augmentation.py)."""


class SplitMismatch(Rule):
    """Inputs of training and validation were prepared differently.

    What it checks: mean and deviation of every feature in both splits, with their sampling errors; whether the mean
    image of one split is that of the other with its channels reversed, turned over, or inverted.

    Why it hurts: the network meets numbers it never saw. It may be right about training, and no better than chance on
    validation, whatever it learned.

    Threshold and its source: a deviation that differs by a factor of two, or means that differ by half a deviation,
    each by eight standard errors. It is likely where half of the features differ, possible where fewer do.

    False alarms: a split by time or place lets features drift, mostly few of them. It is a remark in a training that is
    not ill, unless bringing the splits together clearly wins.

    Repair and its safety: training inputs are brought to the scale or orientation of validation, which stands for what
    will be met later; or the other way round. Safe: the model is not touched. Better: prepare both in one place.

    References: Breck et al. 2019, Data Validation for Machine Learning, MLSys.
    """

    code = "DAT013"
    slug = "split-mismatch"
    causes = ("train_test_preprocessing_mismatch",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        found = None if chart.data is None else chart.data.mismatch
        if found is None:
            return
        frozen = found.frozen > MOST * (found.features + found.frozen)
        if not (found.gross >= max(1.0, SOME * found.features) or found.turned or frozen):
            return
        grossly = found.gross > MOST * found.features
        yield Suspect(
            f"Training and validation inputs were prepared differently: {_difference(found, frozen)}.",
            "Prepare both splits by the same function, with constants from the training split.",
            "likely" if grossly or found.turned or frozen else "possible",
            evidence={**found.examples, "features": found.features, "different": found.gross, "factor": found.factor},
            changes=() if frozen else (MatchSplits("train"), MatchSplits("valid")),
        )


class SharedExamples(Rule):
    """Validation examples occur in training.

    What it checks: inputs that are equal, number for number; against how often training repeats its own.

    Why it hurts: a network that learns by heart is right about them. Validation then promises more than new data will
    give, and early stopping and the choice of settings follow the promise.

    Threshold and its source: 5 % of validation beyond what repeats by chance, by three standard errors. Where both
    splits are the same examples, that is only remarked: it shows whether a model can learn, and nothing else.

    False alarms: where there are few possible inputs, such as bits, equal ones are to be expected, and are not counted.

    Repair and its safety: none; split before anything is copied, sampled with repetition or augmented.

    References: Kapoor & Narayanan 2023, Leakage and the reproducibility crisis, Patterns 4(9).
    """

    code = "DAT014"
    slug = "shared-examples"
    causes = ("validation_leak",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        found = None if chart.data is None else chart.data.overlap
        if found is None:
            return
        share = min(1.0, found.excess / max(found.coverage, 1e-9))
        evidence = {"shared": found.shared, "natural": found.natural, "rows": found.valid_rows}
        if found.identical:
            yield Suspect(
                "Validation is the training data: what is learned by heart counts as learned.",
                "Keep some examples out of training, and judge by them.",
                "certain",
                "info",
                evidence=evidence,
            )
        elif not found.small_space and share >= SHARED and found.excess - 3 * found.error > 0:
            yield Suspect(
                f"{share:.0%} of the validation examples occur in training.",
                "Split first, and copy, repeat or augment only training examples.",
                "certain",
                evidence=evidence,
            )


class Unshuffled(Rule):
    """Training takes examples in stored order, and neighbors have the same label.

    What it checks: where examples are not shuffled, the correlation of targets within batches of consecutive examples.

    Why it hurts: every batch pulls towards its own label and undoes what the batches before it taught; batch statistics
    are those of one class.

    Threshold and its source: an intraclass correlation of 0.5 is likely, of 0.1 possible, each by eight standard errors
    of a random order (Fisher 1925).

    False alarms: sequences that are meant to be read in order. It is a remark in a training that is not ill, unless
    shuffling clearly wins.

    Repair and its safety: shuffle. Safe: the model is not touched.

    References: Bottou 2012, Stochastic Gradient Descent Tricks; Bengio 2012, arXiv:1206.5533.
    """

    code = "DAT015"
    slug = "unshuffled"
    causes = ("not_shuffled",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        found = None if chart.data is None else chart.data.order
        if chart.training.shuffle or found is None or found.z < BEYOND_CHANCE or found.alike < SOMEWHAT_ALIKE:
            return
        yield Suspect(
            f"Examples are taken in stored order, in which batches are alike: their targets correlate by "
            f"{found.alike:.2f} within a batch.",
            "Shuffle: DataLoader(..., shuffle=True).",
            "likely" if found.alike >= ALIKE else "possible",
            evidence={"alike": found.alike, "z": found.z, "batches": found.batches},
            changes=(Shuffle(),),
        )


class SpoilingAugmentation(Rule):
    """Augmentation makes examples of one class into another, or into nothing that can be told.

    What it checks: a small network trained on clean examples is asked about augmented ones: are two classes made into
    each other? Another one is trained on augmented examples: what is it worth on clean ones, and on augmented ones?

    Why it hurts: a six upside down is a nine. Labels then contradict each other, or say nothing.

    Threshold and its source: two classes swapped for 0.2 of their examples, both ways; or less than half of the skill
    left, on clean or on augmented examples.

    False alarms: augmented examples look unfamiliar to a network that never saw any, and mostly fall to one class;
    being swapped both ways, and what a network learns from them, is another matter. It is a remark in a training that
    is not ill, unless it clearly wins without augmentation.

    Repair and its safety: no augmentation. Safe: the model is not touched. Better: milder augmentation.

    References: Shorten & Khoshgoftaar 2019, A survey on image data augmentation (label-preserving transformations).
    """

    code = "DAT016"
    slug = "spoiling-augmentation"
    causes = ("bad_augmentation",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.training.augment is None:
            return
        facts = None if chart.data is None else chart.data.augmentation
        harm = "" if facts is None else _harm(facts)
        if facts is not None and facts.nonfinite > 0:
            yield Suspect(
                f"Augmentation makes {facts.nonfinite:.0%} of the examples into numbers that are not finite.",
                "Look for a division by zero, or a logarithm, in the augmentation.",
                "certain",
                "error",
                causes=("bad_augmentation", "nonfinite_data"),
                evidence={"nonfinite": facts.nonfinite},
                changes=(DropAugmentation(),),
            )
        elif facts is None or harm or min(facts.kept, facts.left) < LOST * facts.clean:
            text = harm or "Augmentation may take from examples what tells their labels"
            yield Suspect(
                f"{text}.",
                "Train without augmentation, or with one that leaves labels recognizable.",
                "likely" if harm else "possible",
                evidence={} if facts is None else _evidence(facts),
                changes=(DropAugmentation(),),
            )


def _difference(found: Mismatch, frozen: bool) -> str:
    """What is different, in words."""
    if found.turned:
        return f"images of one split are {found.turned}"
    if frozen:
        return f"{found.frozen} features vary in one split only"
    moments = "mean {train_mean:.3g} and deviation {train_std:.3g} in training, {valid_mean:.3g} and {valid_std:.3g} in"
    said = moments.format(**found.examples) + " validation"
    if found.common:
        return f"all features are {found.factor:.3g} times as large in validation ({said})"
    return f"{found.gross} of {found.features} features have another scale or mean (such as {said})"


def _harm(facts: AugmentFacts) -> str:
    """What augmentation does, where it is beyond doubt."""
    pair = facts.swapped
    if pair is not None and min(pair.shares) >= SWAPPED and min(pair.shares) >= 2 * pair.error:
        return (
            f"Augmentation makes examples of class {pair.first} look like class {pair.second} ({pair.shares[0]:.0%}), "
            f"and the other way ({pair.shares[1]:.0%})"
        )
    if facts.clean < 4 * facts.error:
        return ""
    for skill, whose in ((facts.kept, "on clean examples"), (facts.left, "on augmented ones")):
        if skill < SPOILED * facts.clean and facts.clean - skill > 4 * facts.error:
            return (
                f"Augmentation spoils the examples: a small network trained on augmented ones keeps {skill:.2f} of "
                f"{facts.clean:.2f} of its skill {whose}"
            )
    return ""


def _evidence(facts: AugmentFacts) -> dict[str, float]:
    return {"clean": facts.clean, "kept": facts.kept, "left": facts.left, "factor": facts.factor}
