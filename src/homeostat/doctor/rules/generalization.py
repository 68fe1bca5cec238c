"""Training against validation, and both against honest baselines: too much learned by heart, too little, too early
ended.

Nothing is random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from homeostat.doctor.changes.change import Change
from homeostat.doctor.changes.dropping import FollowMode
from homeostat.doctor.changes.regularization import AddDecay, AddDropout, ScalePenalty, SetDropout
from homeostat.doctor.changes.schedule import MoreEpochs
from homeostat.doctor.chart import Chart
from homeostat.doctor.course import Mark
from homeostat.doctor.health import ERRORS, MARGIN
from homeostat.doctor.network.step import step_facts, weights_of
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.rules.holdings import WEIGHS, penalty_ratio
from homeostat.doctor.rules.rate import LITTLE_MOVED, falls, moved_by
from homeostat.doctor.trend import known, trend_of
from homeostat.parts.modes import drop_probability

STRONG_DROPOUT = 0.5
"""Above the 0.5 that Srivastava et al. 2014 use for hidden units (0.2 for inputs)."""

SOME_DROPOUT = 0.25

SHRUNK = 0.5
"""Weights that lost half of their length while they should have learned something."""


class Overfitting(Rule):
    """The network learns its training examples by heart.

    What it checks: a training score above the validation score by more than chance and a margin, where the validation
    score has fallen from its best, or lies below the baselines.

    Why it hurts: what is learned after that point does not hold for other data.

    Threshold and its source: a gap of 0.1 and 3 standard errors of the validation score; a fall of 0.05 and 3 standard
    errors of a difference, so that the best of many marks is not taken for it. A fall convicts if training that ends
    there, or decay, or dropout, keeps the best; a network below the baselines must recover.

    False alarms: a gap alone is ordinary: training scores of 1 beside good validation scores say nothing.

    Repair and its safety: fewer epochs, decay, dropout. Safe: the model computes what it did.

    References: Prechelt 1998, "Early stopping - but when?"; Srivastava et al. 2014,
    https://jmlr.org/papers/v15/srivastava14a.html.
    """

    code = "GEN001"
    slug = "overfitting"
    causes = ("overfitting", "under_regularized")
    requires = ("DAT007", "DAT013", "DAT015", "DAT016")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        course = chart.course
        if chart.training.valid is None or not course.marks or not math.isfinite(course.score):
            return
        last = course.marks[-1]
        error = _error(chart, last.valid_score)
        gap = last.train_score - last.valid_score
        best = max(course.marks, key=lambda mark: mark.valid_score if math.isfinite(mark.valid_score) else -math.inf)
        fall = best.valid_score - last.valid_score
        fallen = fall > max(MARGIN, ERRORS * math.sqrt(2) * error)
        if gap < max(2 * MARGIN, ERRORS * error) or not (fallen or chart.ill) or not _learned(chart):
            return
        text = f"{course.metric} {last.train_score:.3g} on training and {last.valid_score:.3g} on validation examples"
        text += f", which had {best.valid_score:.3g} after {best.step} steps." if fallen else "."
        yield Suspect(
            text,
            "Stop at the best validation score, add weight decay or dropout, augment, or get more data.",
            "likely" if fallen else "possible",
            evidence=known(train=last.train_score, valid=last.valid_score, best=best.valid_score, at=best.step),
            changes=_regularize(chart, best, fallen),
        )


class Underfitting(Rule):
    """The network has not learned its training examples either.

    What it checks: a training score below what simple baselines reach, or a loss on the training data that has hardly
    fallen, after a training that has ended.

    Why it hurts: it is not a matter of generalization, so that regularization and more data do not help.

    Threshold and its source: the illness of the training itself: 0.05 and 3 standard errors below the best baseline
    (scikit-learn's linear model, nearest neighbors, class prior).

    False alarms: baselines that learn noise by heart; they are judged on validation examples.

    Repair and its safety: advice: look at the other findings first, then at capacity and length of training.

    References: Goodfellow et al. 2016, "Deep Learning", section 5.2.
    """

    code = "GEN002"
    slug = "underfitting"
    causes = ("underfitting",)
    requires = ("DAT", "LOS", "INI", "SIG", "GRD", "NRM", "OPT", "GEN003", "GEN004", "GEN007")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        course, baselines = chart.course, chart.baselines
        if not chart.ill or course.ended or baselines is None or not course.finished:
            return
        trend = trend_of(course)
        stuck = trend.progress < 0.02
        if not stuck and not course.train_score < baselines.best - MARGIN:
            return
        text = f"{course.metric} on the training examples is only {course.train_score:.3g}"
        text += f"; their loss went from {trend.start:.4g} to {trend.end:.4g}." if stuck else "."
        yield Suspect(
            text,
            "Look at the other findings; then give the network more capacity, or more time.",
            "likely",
            evidence=known(train=course.train_score, baseline=baselines.best, progress=trend.progress),
            causes=("underfitting", "loss_not_decreasing") if stuck else self.causes,
        )


class TooFewEpochs(Rule):
    """The training ends while it is still getting better.

    What it checks: in a training that has ended and is ill, whether the loss was still falling at the end, or the
    weights had moved by little of their length.

    Why it hurts: it is judged by what it would have left behind.

    Threshold and its source: any steady fall in the last fifth, or one of 3 standard errors; 0.1 of the weights'
    length. Neither convicts: 4 or 10 times as many epochs must recover the training.

    False alarms: nearly every training would be a little better after more epochs. It is not ill.

    Repair and its safety: 4 or 10 times the epochs. Safe: the model computes what it did.

    References: Hoffer et al. 2017, arXiv:1705.08741 (train longer).
    """

    code = "GEN003"
    slug = "too-few-epochs"
    causes = ("too_few_epochs",)
    requires = ("DAT007", "DAT013", "DAT016")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        course, training = chart.course, chart.training
        facts = step_facts(chart)
        if course.ended or not course.finished or facts is None or not facts.total_gradient > 0:
            return
        trend, moved = trend_of(course), moved_by(chart)
        falling = falls(trend, least=0.0)
        if not (falling or moved < LITTLE_MOVED):
            return
        said = f"the loss still fell by {trend.fall:.2%} in the last fifth" if falling else ""
        said = said or f"the weights moved by {moved:.2g} of their length"
        yield Suspect(
            f"The training ends after {training.epochs} epochs ({course.total} steps), when {said}.",
            "Train longer, until the validation score no longer rises.",
            "possible",
            evidence=known(epochs=training.epochs, steps=course.total, fall=trend.fall, moved=moved),
            changes=tuple(MoreEpochs.of(training, factor) for factor in (4.0, 10.0)),
        )


class StrongDropout(Rule):
    """Dropout leaves too little of the signal.

    What it checks: the probabilities of all dropout layers, in attention and recurrent layers too, and of dropout
    functions that `forward` calls by itself, in a training that does not do well on its training examples.

    Why it hurts: with probability p of dropping, 1 - p of the units are left, and their noise has p / (1 - p) times the
    signal's power; several layers multiply. Narrow layers lose whole features.

    Threshold and its source: a probability above 0.5, the largest that Srivastava et al. 2014 use; from 0.25 on where
    the training is ill. Neither convicts: with a quarter of it, or none, the training must recover.

    False alarms: wide layers stand 0.8 and more. Such a training is not ill.

    Repair and its safety: the probabilities times 0 or 0.25. Safe: in evaluation the model computes what it did.

    References: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html; Liu et al. 2023,
    arXiv:2303.01500 (dropout and underfitting)."""

    code = "GEN004"
    slug = "strong-dropout"
    causes = ("dropout_too_high",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        training = chart.training
        layers = {name: drop_probability(module) for name, module in training.model.named_modules()}
        layers = {name: p for name, p in layers.items() if p > 0}
        functions = () if chart.probe is None else chart.probe.drops
        drops = [*layers.values(), *functions]
        largest = max(drops, default=0.0)
        if largest < SOME_DROPOUT:
            return
        kept = math.prod(1 - p for p in drops)
        counts = {"dropout layer": len(layers), "dropout function call": len(functions)}
        text = " and ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items() if count)
        yield Suspect(
            f"{text} drop{'s' * (len(drops) == 1)} up to {largest:.2g} of the units; {kept:.2g} are left in all.",
            "Leave dropout out until the training works, then begin with 0.1.",
            "likely" if largest > STRONG_DROPOUT and _train_score_low(chart) else "possible",
            layer=next((name for name, p in layers.items() if p == largest), None),
            evidence=known(largest=largest, layers=len(layers), functions=len(functions), kept=kept),
            changes=tuple(SetDropout.of(training, factor, functions=functions) for factor in (0.0, 0.25)),
        )


class StrongDecay(Rule):
    """The weights shrank while they should have learned.

    What it checks: the length of the weights after the trial against the start, in a training with decay or with a
    penalty in its loss. A penalty that is strong against the loss from the start is OPT006's.

    Why it hurts: see OPT006.

    Threshold and its source: half of the length, the median over layers, while the training score stays low.

    False alarms: weights that were initialized far too large have to shrink; the training recovers then without
    anything done about decay, and nothing is said.

    Repair and its safety: the penalty times 0 or 0.01. Safe: the model computes what it did.

    References: Krogh & Hertz 1991, "A simple weight decay can improve generalization".
    """

    code = "GEN005"
    slug = "strong-decay"
    causes = ("over_regularized",)
    requires = ("OPT006",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts, training = step_facts(chart), chart.training
        decays = any(group.get("weight_decay") for group in training.optimizer.param_groups)
        in_loss = facts is not None and facts.penalty > 0
        if chart.course.model is None or not (decays or in_loss) or not chart.ill or penalty_ratio(facts) >= WEIGHS:
            return
        before, after = weights_of(training.model), weights_of(chart.course.model)
        shared = [name for name in before if name in after and float(before[name].norm()) > 0]
        ratios = sorted(float(after[name].norm() / before[name].norm()) for name in shared)
        middle = ratios[len(ratios) // 2] if ratios else 1.0
        if not middle < SHRUNK:
            return
        yield Suspect(
            f"The weights shrank to {middle:.2g} of their first length while they should have learned.",
            "Take weight decay out, or make it a hundred times smaller.",
            "possible",
            evidence=known(length_left=middle),
            changes=tuple(ScalePenalty.of(training, factor, in_loss) for factor in (0.0, 0.01)),
        )


class BelowBaseline(Rule):
    """The network does not beat the honest baselines for its data, whatever the cause.

    What it checks: the score after the whole training against the class prior or mean, a linear model and the nearest
    neighbors on the same data; divergence; and a loss that never fell.

    Why it hurts: a simpler model that is fitted in seconds does better.

    Threshold and its source: 0.05 of accuracy or R², and 3 standard errors, below the best of them.

    False alarms: tasks that a linear model or neighbors solve by nature, at which networks are only as good.

    Repair and its safety: what the other findings propose; without any, advice: begin with a network that is known to
    work, and change one thing at a time.

    References: Karpathy 2019, "A Recipe for Training Neural Networks".
    """

    code = "GEN006"
    slug = "below-baseline"
    causes = ()

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if not chart.ill:
            return
        found = chart.baselines
        best, name = (found.best, found.best_name) if found is not None else (math.nan, "")
        evidence = known(score=chart.course.score, steps=chart.course.steps, baseline=best, name=name)
        cure = "See the other findings. Without any: begin with a network that is known to work on such data."
        yield Suspect(chart.ill, cure, "certain", evidence=evidence)


class DropoutInEvaluation(Rule):
    """Dropout goes on in evaluation.

    What it checks: which calls of dropout functions drop while the model runs in evaluation mode: `F.dropout(x, 0.5)`
    without `training=self.training`, and layers that do not follow the model's mode.

    Why it hurts: predictions are noise in part, and differ from call to call; scores are those of a network of which
    units are missing, and so is what is chosen by them.

    Threshold and its source: none. It convicts where the training recovers, or clearly wins, once evaluation drops
    nothing.

    False alarms: Monte Carlo dropout drops in evaluation on purpose, and averages many predictions; a single one is
    what is scored here.

    Repair and its safety: dropout functions follow the mode. Unsafe: in evaluation the model computes something else.

    References: PyTorch's documentation of torch.nn.functional.dropout (training=True is the default); Gal & Ghahramani
    2016, arXiv:1506.02142 (Monte Carlo dropout).
    """

    code = "GEN007"
    slug = "dropout-in-evaluation"
    causes = ("train_eval_gap",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        found = () if chart.structure is None else chart.structure.dropping
        if not found:
            return
        yield Suspect(
            f"In evaluation mode {len(found)} call{'s' * (len(found) > 1)} of dropout functions still "
            f"drop{'s' * (len(found) == 1)}, up to {max(found):.2g} of the units.",
            "Pass training=self.training to dropout functions, or use nn.Dropout layers.",
            "likely",
            evidence=known(calls=len(found), largest=max(found)),
            changes=(FollowMode(found),),
        )


def _regularize(chart: Chart, best: Mark, fallen: bool) -> tuple[Change, ...]:
    training = chart.training
    share = best.step / max(1, chart.course.total)
    changes: tuple[Change, ...] = (MoreEpochs.of(training, share),) if fallen and 0 < share < 1 else ()
    drops = any(drop_probability(module) > 0 for module in training.model.modules())
    drops = drops or (chart.probe is not None and bool(chart.probe.drops))
    return (*changes, AddDecay.of(training, _DECAY), *(() if drops else (AddDropout(STRONG_DROPOUT),)))


_DECAY = 0.01  # AdamW's default in torch, and a strong one


def _error(chart: Chart, score: float) -> float:
    """The standard error of a validation score; that of a share at worst where it is not known."""
    error = math.nan if chart.baselines is None else chart.baselines.error(min(score, 1.0), len(chart.valid))
    return error if math.isfinite(error) else 0.5 / math.sqrt(max(1, len(chart.valid)))


def _learned(chart: Chart) -> bool:
    """Whether the training examples are answered better than by a constant."""
    found = chart.baselines
    return found is None or not math.isfinite(found.prior) or chart.course.train_score > found.prior + MARGIN


def _train_score_low(chart: Chart) -> bool:
    """Whether the training examples themselves are not learned, compared with the best baseline."""
    found = chart.baselines
    return found is not None and chart.course.train_score < found.best - MARGIN
