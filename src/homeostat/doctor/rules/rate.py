"""The optimizer: how far it steps, in which direction, with what memory, and what it holds.

Here are its rate and the size of batches; the rest of its settings is in `optimizer`, what it holds and what decays in
`holdings`. Everything is judged by what the steps did: by the loss, by how far the weights moved, by a step taken on a
copy; a setting by itself is no evidence. Random only in that step's batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch

from homeostat import seeds
from homeostat.doctor.changes.optimizer import ScaleLearningRate, moving_rates
from homeostat.doctor.changes.options import settings_of, shown
from homeostat.doctor.changes.schedule import BatchSize
from homeostat.doctor.chart import Chart
from homeostat.doctor.curvature.sharpness import curvature
from homeostat.doctor.network.step import StepFacts, displacement, goes_up, step_facts
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.training import Training
from homeostat.doctor.trend import Trend, known, trend_of
from homeostat.errors import HomeostatError

RISEN = 0.5
"""A loss that ends this share above where it began has risen: more than batches and dropout differ."""

PEAK = 3.0
"""A mean of neighboring losses this many times the first loss: growth in the first steps is the mark of a rate beyond
2 / curvature (Lewkowycz et al. 2020); healthy courses stay below 2 (calibrated by benchmarks/doctor_thresholds.py)."""

LARGE_UPDATE = 0.1
"""A step of a tenth of the weights' length, a hundred times the customary 1e-3 (Karpathy, "makemore", part 3; the trust
coefficient of You et al. 2017)."""

SMALL_UPDATE = 1e-3
"""The customary step over the weights' length; see LARGE_UPDATE."""

REPLACED = 1.0
"""Weights that moved by their own length: nothing of the initialization is left."""

SHARP = 6.0
"""Largest curvature at the start over 2 / rate. Beyond 1 the loss grows at first; networks with ReLU still settle in a
flatter place at up to 6, and no more (12 / curvature in Lewkowycz et al. 2020)."""

SWING = 0.5
"""The loss on the same examples went up and down by half of its mean in the second half of training."""

LITTLE_MOVED = 0.1
"""Weights that moved by less than a tenth of their length in all; in training that ends they move by 0.2 to several
(calibrated by benchmarks/doctor_thresholds.py)."""

HARDLY_MOVED = 0.03
SLIGHTLY = 0.005  # of the loss in the last fifth, where the weights have hardly moved

FALLING = 0.03
"""The last fifth of training takes 3 % or more off the loss; steadily on the same examples, or by 3 standard errors."""

SURE = 3.0
STUCK = 0.02  # the share of the first loss that is gone where nothing was learned

_FEW_STEPS = 200
_GOOD_BATCH = 32
_TINY_BATCH = 4


class LearningRateTooHigh(Rule):
    """The learning rate is too high for the curvature of the loss.

    What it checks: whether the trial diverged, ended above the loss it began with, jumped to a multiple of it, or
    swings at its end; whether a step changes the weights by a tenth of their length or more, and whether nothing is
    left of their initialization; for SGD, the largest curvature at the start against 2 / rate.

    Why it hurts: beyond 2 / curvature a step of gradient descent overshoots, and the loss grows along the direction of
    largest curvature. Networks often survive that, by moving to a flatter place; on the way rectifiers die, outputs
    saturate, and what is left may learn nothing more.

    Threshold and its source: none on the rate itself. Loss at the end 1.5 times the first; a peak of 3 times the first
    loss; updates of 0.1 of the weights, a hundred times the customary ratio; a curvature of 6 times 2 / rate
    (Lewkowycz et al. 2020). None of these convicts: a training that is ill must recover with a tenth or a hundredth of
    the rate.

    False alarms: small networks that train well with large steps, and rates that are reached after a warmup. They are
    not ill, so nothing is said.

    Repair and its safety: the rate times 0.1 to 1e-6, by how far the steps go. Safe: the model computes what it did.

    References: Lewkowycz et al. 2020, arXiv:2003.02218; Cohen et al. 2021, arXiv:2103.00065; LeCun et al. 1998,
    "Efficient BackProp", section 4.6.
    """

    code = "OPT001"
    slug = "learning-rate-too-high"
    causes = ("lr_too_high",)
    requires = ("OPT003", "OPT004", "OPT007")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts, trend = step_facts(chart), trend_of(chart.course)
        if chart.course.diverged == 0 or goes_up(facts) or _stands_still(chart, facts):
            return  # the first loss is not finite before any step; or its direction is wrong, or there is no step
        sharpness = _sharpness(chart)
        strong, weak = _overshoots(chart, trend), _strides(chart, facts, sharpness)
        if not strong and not weak:
            return
        training = chart.training
        rates = settings_of(training.optimizer, "lr")
        factors = _downward(max(typical_update(chart), 0.0 if facts is None else facts.update))
        causes = ["lr_too_high"]
        causes += ["loss_diverging"] if chart.course.diverged is not None or trend.progress < -RISEN else []
        causes += ["oscillating_loss"] if trend.swing > SWING else []
        yield Suspect(
            f"The learning rate {shown(rates)} is too high: {'; '.join([*strong, *weak])}.",
            "Divide the learning rate by 10, then tune it between; or warm it up.",
            "likely" if strong else "possible",
            evidence=known(curvature_over_limit=sharpness, **evidence_of(chart, trend, facts)),
            causes=tuple(causes),
            changes=tuple(ScaleLearningRate.of(training, factor) for factor in factors) if rates else (),
        )


class LearningRateTooLow(Rule):
    """The learning rate is too low for the length of the training.

    What it checks: whether the loss is still falling at the end of the training, or has hardly moved, while the weights
    have moved by little of their length, or move by far less than is customary at a step; and whether the rate of every
    group is 0, so that a step moves nothing.

    Why it hurts: a training that has not come to its end is judged too early; many times more epochs would do what ten
    times the rate does.

    Threshold and its source: the last fifth of training takes 3 % off the loss, steadily or by 3 standard errors;
    weights moved by less than 0.1 of their length (0.03 with a falling loss counts as strong); or no progress at all
    with steps below 1e-3 of the weights, the customary ratio. None of these convicts: an intervention with 10 to 1000
    times the rate must recover. A rate of 0 needs no threshold.

    False alarms: fine-tuning moves weights little, on purpose. It is not ill, and does not gain from a larger rate. A
    scheduler with a warmup from 0 sets the rate to 0 when it is made. Schedulers are not followed here, so that this is
    said, as a warning, with the `initial_lr` that the scheduler leaves in the optimizer.

    Repair and its safety: the rate times 10 or 100; where it is 0, `initial_lr`, or what is customary for the
    optimizer. Safe: the model computes what it did.

    References: Smith 2017, arXiv:1506.01186 (range test); You et al. 2017, arXiv:1708.03888 (update ratios).
    """

    code = "OPT002"
    slug = "learning-rate-too-low"
    causes = ("lr_too_low",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts, trend, training = step_facts(chart), trend_of(chart.course), chart.training
        if _stands_still(chart, facts):
            yield _zero_rate(training)
            return
        if facts is None or not facts.total_gradient > 0 or chart.course.ended or goes_up(facts):
            return
        moved, falling = moved_by(chart, whole=True), falls(trend)
        stuck = trend.progress < STUCK and facts.update < SMALL_UPDATE
        said = [f"the loss still fell by {trend.fall:.0%} in the last fifth of training"] if falling else []
        said += [f"the loss has lost {max(0.0, trend.progress):.1%} of its first value"] if stuck else []
        said += [f"the weights moved by {moved:.2g} of their length in all"] if moved < LITTLE_MOVED else []
        rates = settings_of(training.optimizer, "lr")
        if not said or not rates or trend.peak > PEAK:
            return
        causes = ("lr_too_low", "loss_not_decreasing") if stuck else ("lr_too_low",)
        yield Suspect(
            f"The learning rate {shown(rates)} is too low: {', and '.join(said)}.",
            "Multiply the learning rate by 10, and again, until the loss no longer falls faster.",
            "likely" if moved < HARDLY_MOVED and falls(trend, SLIGHTLY) else "possible",
            evidence=known(moved=moved, **evidence_of(chart, trend, facts)),
            causes=causes,
            changes=tuple(ScaleLearningRate.of(training, factor) for factor in _upward(facts.update)),
        )


class UnsuitedBatchSize(Rule):
    """The batch size leaves too few steps, or steps that are mostly noise.

    What it checks: how many steps the whole training has, against the size of its batches; and for tiny batches how
    much the losses of the last steps scatter.

    Why it hurts: an epoch of large batches has few steps, and each can only go so far; tiny batches take the mean of
    few gradients, whose noise keeps the weights away from the minimum at a given rate.

    Threshold and its source: fewer than 200 steps in all with batches of 32 or more; batches of at most 4 of at least
    64 examples. Masters & Luschi 2018 find 2 to 32 best, Bengio 2012 32 a good default. It convicts nobody: another
    size must recover the training.

    False alarms: one batch of all data suits small problems. Such a training is not ill.

    Repair and its safety: an eighth of the size, or 32. Safe: the model computes what it did.

    References: Masters & Luschi 2018, arXiv:1804.07612; Bengio 2012, arXiv:1206.5533, section 3.1.1.
    """

    code = "OPT012"
    slug = "unsuited-batch-size"
    causes = ("batch_size",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        training, steps = chart.training, chart.course.total
        count = chart.train.total or len(chart.train)
        size = min(training.batch_size, count)
        evidence = {"batch_size": size, "steps": steps, "examples": count}
        if steps < _FEW_STEPS and size >= _GOOD_BATCH:
            smaller = max(1, size // 8)
            text = f"The whole training has {steps} steps, with {size} of {count} examples in each."
            cure = f"Use smaller batches, such as {smaller}."
            change = BatchSize.of(training, smaller)
            yield Suspect(text, cure, "possible", evidence=evidence, changes=(change,))
        elif training.batch_size <= _TINY_BATCH and count >= 2 * _GOOD_BATCH:
            text = f"Each step takes the mean gradient of {size} of {count} examples, which is mostly noise."
            causes = ("batch_size_too_small", "batch_size")
            change = BatchSize.of(training, _GOOD_BATCH)
            cure = f"Use batches of {_GOOD_BATCH}."
            yield Suspect(text, cure, "possible", evidence=evidence, causes=causes, changes=(change,))


def _stands_still(chart: Chart, facts: StepFacts | None) -> bool:
    """Whether the rate of every group is 0, and a step moves nothing."""
    rates = settings_of(chart.training.optimizer, "lr")
    return bool(rates) and not any(rates) and (facts is None or not facts.update > 0)


def _zero_rate(training: Training) -> Suspect:
    """A rate of 0: by a warmup, where a scheduler has left the rate that it leads to."""
    optimizer = training.optimizer
    initial, kind = settings_of(optimizer, "initial_lr"), type(optimizer).__name__
    text = "The learning rate is 0, so that no step changes anything"
    cure = f"Set the learning rate; {shown(moving_rates(optimizer))} is customary for {kind}."
    if any(initial):
        text += f": a scheduler has set it there, from initial_lr={shown(initial)}, and is not followed here"
        cure = "Examine with an optimizer that no scheduler was made for, and the rate that a warmup leads to."
    return Suspect(
        f"{text}.",
        cure,
        "certain",
        "warning" if any(initial) else "error",
        evidence=known(learning_rate=0.0, initial_lr=max(initial, default=math.nan)),
        causes=("lr_too_low", "loss_not_decreasing"),
        changes=tuple(ScaleLearningRate.of(training, factor) for factor in (1.0, 10.0, 0.1)),
    )


def typical_update(chart: Chart) -> float:
    """The length of a step over that of the weights: the median over layers and watched steps, or of the first step."""
    vitals = chart.course.vitals
    if vitals is not None and len(vitals.steps):
        values = [value for value in vitals.matrix("update").ravel().tolist() if math.isfinite(value)]
        if values:
            return statistics.median(values)
    facts = step_facts(chart)
    return math.nan if facts is None else facts.update


def _overshoots(chart: Chart, trend: Trend) -> list[str]:
    """What shows that steps went too far."""
    found = []
    if chart.course.diverged:
        found.append(f"the loss is not finite after {chart.course.diverged} steps")
    elif trend.progress < -RISEN:
        found.append(f"the loss rose from {trend.start:.4g} to {trend.end:.4g}")
    elif trend.peak > PEAK:
        found.append(f"the loss jumped to {trend.peak:.3g} times its first value")
    return found


def _sharpness(chart: Chart) -> float:
    """The curvature at the given weights over what the rate stands; nan where it is not known, or the training well."""
    if not chart.ill:
        return math.nan
    count = min(len(chart.train), max(_GOOD_BATCH, min(chart.training.batch_size, 8 * _GOOD_BATCH)))
    order = torch.randperm(len(chart.train), generator=seeds.torch_generator(0, "doctor", "sharpness"))
    try:
        found = curvature(chart.training, chart.train.select(order[:count]), tolerance=0.05, max_iterations=20)
    except (HomeostatError, RuntimeError):  # no second derivative, no finite loss, other people's parameters
        return math.nan
    return found.ratio


def _strides(chart: Chart, facts: StepFacts | None, sharpness: float) -> list[str]:
    """What suggests that they do."""
    found = []
    update, moved, trend = typical_update(chart), moved_by(chart), trend_of(chart.course)
    first = math.nan if facts is None else facts.update
    if max(update, first) > LARGE_UPDATE:
        found.append(f"a step changes the weights by {max(update, first):.2g} of their length")
    if moved > REPLACED and math.isfinite(moved):
        found.append(f"the weights moved by {moved:.2g} times their first length")
    if sharpness > SHARP:
        found.append(f"the curvature at the start is {sharpness:.2g} times what gradient descent stands at this rate")
    if trend.swing > SWING:
        found.append(f"the loss on the same examples went up and down by {trend.swing:.2g} of its mean")
    return found


def moved_by(chart: Chart, whole: bool = False) -> float:
    """How far the weights moved over their length, the median over layers; inf where that is not known.

    Args:
        whole: at most so far in the user's whole training, if the trial was only a part of it.
    """
    moved = [value for value in displacement(chart.training.model, chart.course.model).values() if math.isfinite(value)]
    if not moved or not chart.course.steps:
        return math.inf
    return statistics.median(moved) * (max(1.0, chart.course.total / chart.course.steps) if whole else 1.0)


def falls(trend: Trend, least: float = FALLING) -> bool:
    """Whether the loss is still falling at the end, by more than a share of it and more than chance."""
    return trend.fall > least and (trend.steady or trend.certainty > SURE)


def _upward(update: float) -> tuple[float, ...]:
    """By which factors to try: first what would make the step a customary one, from 10 to 100000."""
    steps = round(math.log10(3 * SMALL_UPDATE / update)) if update > 0 and math.isfinite(update) else 1
    first = 10.0 ** min(5, max(1, steps))
    return (first, 100.0) if first == 10 else (first, first / 10)


def _downward(update: float) -> tuple[float, ...]:
    """By which factors to try, the mildest first: down to what would make the step a customary one."""
    steps = round(math.log10(update / SMALL_UPDATE)) if 0 < update < math.inf else 3
    last = min(6, max(2, steps))
    return tuple(10.0**-power for power in range(max(1, last - 2), last + 1))


def evidence_of(chart: Chart, trend: Trend, facts: StepFacts | None) -> dict[str, Any]:
    numbers = {
        "first_loss": trend.start,
        "last_loss": trend.end,
        "fall_in_last_fifth": trend.fall,
        "peak_over_first": trend.peak,
        "swing": trend.swing,
        "update": typical_update(chart),
        "first_update": math.nan if facts is None else facts.update,
    }
    return {name: float(f"{value:.4g}") for name, value in numbers.items() if math.isfinite(value)}
