"""The statistics that batch normalization keeps for evaluation, and the modes that layers train in.

Whether statistics fit is measured on the trained model, by scoring it with statistics measured anew (`norm_tests`).
Random only in the order of the examples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.doctor.changes.norm import AddNorm, BatchNormMomentum, TrainMode, batch_norms
from homeostat.doctor.changes.schedule import BatchSize
from homeostat.doctor.chart import Chart
from homeostat.doctor.health import ERRORS, MARGIN
from homeostat.doctor.network.statistics import fails_on_one, norm_facts
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.trend import known

LEFT_OVER = 0.05
"""The weight that the initial statistics, 0 and 1, still have in the running ones when the whole training is over."""

_MOMENTUM = 0.1  # torch's


class StaleStatistics(Rule):
    """The running statistics of batch normalization are not those of the data.

    What it checks: layers that never update them (momentum 0, or tracking switched off after they were built), or so
    slowly that their initial values remain; and on the trained model, what statistics measured anew over the training
    data gain.
    Why it hurts: evaluation normalizes by numbers that have nothing to do with what arrives; training looks well.
    Threshold and its source: a gain of 0.05 and 3 standard errors, on training and validation examples both, is
    measured on this model and needs no other source. Without it, 5 % of the initial statistics left at the end.
    False alarms: momentum 0 freezes the statistics of a pretrained model on purpose; those are not the initial ones,
    and measured to fit, nothing is said.
    Repair and its safety: momentum 0.1 and tracking. Safe: in training the model computes what it did.
    References: Ioffe & Szegedy 2015, arXiv:1502.03167, algorithm 2; Wu & Johnson 2021, arXiv:2105.07576.
    """

    code = "NRM004"
    slug = "stale-running-statistics"
    causes = ("batchnorm_running_stats_not_updated", "train_eval_gap")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        steps = max(1, chart.course.total)
        layers = {
            n: b for n, b in batch_norms(chart.training.model).items() if b.training and b.running_mean is not None
        }
        if not layers:
            return
        initial = {name: _left_over(layer, steps) for name, layer in layers.items()}
        worst = max(initial, key=lambda name: initial[name])
        facts = norm_facts(chart)
        gain = facts.stale
        proven = gain > max(MARGIN, ERRORS * _error(chart, facts.valid_running, len(chart.valid)))
        settled = chart.course.finished or initial[worst] > LEFT_OVER
        if not (proven and settled) and not initial[worst] > LEFT_OVER:
            return
        text = f"Batch normalization ({worst}) ends with {initial[worst]:.0%} of its initial statistics"
        text = (
            text if initial[worst] > LEFT_OVER else f"The running statistics of batch normalization ({worst}) are stale"
        )
        if math.isfinite(gain):
            text += f"; measured anew, they change the validation score from {facts.valid_running:.3g} to "
            text += f"{facts.valid_measured:.3g}"
        slow = initial[worst] > LEFT_OVER
        yield Suspect(
            f"{text}.",
            "Use momentum=0.1 and track_running_stats=True; or homeostat.update_statistics_ after training.",
            "certain" if proven and slow else "likely",
            layer=worst,
            evidence=known(initial_left=initial[worst], gain=gain, score=facts.running, measured=facts.measured),
            changes=(BatchNormMomentum.of(chart.training, _MOMENTUM),)
            if slow
            else (AddNorm.of(chart.training, "group"),),
        )


class TrainEvalGap(Rule):
    """The model is better at its training examples in training mode than in evaluation mode.

    What it checks: the trained model's score on training examples with each batch's own statistics against that with
    running statistics, also after those were measured anew: what remains is the batch itself.
    Why it hurts: with few or sorted examples per batch, the batch's statistics tell what is in it; evaluation has
    nothing of the kind.
    Threshold and its source: a difference of 0.05 and 3 standard errors, measured on this model.
    False alarms: none known; dropout is in evaluation mode in both.
    Repair and its safety: larger batches (safe); group normalization (unsafe: another function).
    References: Ioffe 2017, arXiv:1702.03275; Wu & Johnson 2021, arXiv:2105.07576.
    """

    code = "NRM005"
    slug = "train-eval-gap"
    causes = ("train_eval_gap", "batch_size_too_small")
    requires = ("NRM004",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if not batch_norms(chart.training.model):
            return
        facts = norm_facts(chart)
        left = facts.batches - max(facts.running, facts.measured)
        if not left > max(MARGIN, ERRORS * _error(chart, facts.running, facts.examples)):
            return
        larger = min(len(chart.train), max(32, 4 * chart.training.batch_size))
        yield Suspect(
            f"On its training examples the model has {chart.course.metric} {facts.batches:.3g} with each batch's own "
            f"statistics, and {max(facts.running, facts.measured):.3g} in evaluation.",
            "Shuffle, use larger batches, or group normalization.",
            "likely",
            evidence=known(batch=facts.batches, running=facts.running, measured=facts.measured),
            changes=(AddNorm.of(chart.training, "group"), BatchSize.of(chart.training, larger)),
        )


class BatchOfOne(Rule):
    """A batch of one example, on which batch normalization cannot train.

    What it checks: whether the model fails to train on one example, and whether such a batch comes: by the batch size,
    or as the rest at the end of an epoch.
    Why it hurts: one value per channel has no variance; torch raises an error.
    Threshold and its source: none.
    False alarms: loops that leave such a batch out.
    Repair and its safety: another batch size, or drop_last=True in the loader. Safe: the model computes what it did.
    References: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """

    code = "NRM008"
    slug = "batch-of-one"
    causes = ("batch_size_too_small", "batch_size")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        training, total = chart.training, chart.train.total
        size = training.batch_size
        drops = getattr(training.train, "drop_last", False)
        rest = None if total is None or drops else total % size
        if not batch_norms(training.model) or not (size == 1 or total == 1 or rest == 1):
            return
        error = fails_on_one(training, chart.train)
        if not error:
            return
        always = size == 1 or total == 1
        where = "Every batch has one example" if always else f"The last batch of an epoch has one of {total} examples"
        better = next((n for n in range(max(size, 8), 2 * size + 16) if total is None or total % n != 1), 32)
        yield Suspect(
            f"{where}, on which batch normalization cannot train: {error}.",
            f"Use batches of {better}" + ("." if always else ", or drop_last=True."),
            "certain",
            "error" if always else "warning",
            evidence=known(batch_size=size, examples=total),
            changes=(BatchSize.of(training, better),),
        )


class EvalModeWhileTraining(Rule):
    """Layers are in evaluation mode while the model trains.

    What it checks: batch normalization that is in evaluation mode in a model in training mode, and has its initial
    statistics still. `homeostat.watch` sees a whole model in evaluation mode in anybody's loop.
    Why it hurts: it normalizes by 0 and 1, that is not at all.
    Threshold and its source: none.
    False alarms: frozen layers of a pretrained model have statistics of their own, and nothing is said of them.
    Repair and its safety: training mode for these layers. Safe: the weights and statistics stay.
    References: PyTorch's documentation of torch.nn.Module.train.
    """

    code = "NRM010"
    slug = "eval-mode-while-training"
    causes = ("eval_mode_while_training", "batchnorm_running_stats_not_updated")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        model = chart.training.model
        layers = batch_norms(model).items()
        found = [name for name, layer in layers if not layer.training and layer.affine and _is_initial(layer)]
        found = [name for name in found if any(p.requires_grad for p in model.get_submodule(name).parameters())]
        if not found:
            return
        yield Suspect(
            f"{len(found)} batch normalization layers ({', '.join(found[:3])}) are in evaluation mode with their "
            "initial statistics, 0 and 1: they normalize nothing.",
            "Call model.train() before training, and keep layers in evaluation mode only once they were trained.",
            "likely",
            layer=found[0],
            evidence=known(layers=len(found)),
            changes=(TrainMode(tuple(found)),),
        )


def _left_over(layer: _BatchNorm, steps: int) -> float:
    """The weight of the initial statistics after so many steps; 0 where the layer began with others."""
    if not _is_initial(layer):
        return 0.0
    if not layer.track_running_stats or layer.momentum == 0:
        return 1.0
    return 0.0 if layer.momentum is None else float((1 - layer.momentum) ** steps)


def _is_initial(layer: _BatchNorm) -> bool:
    mean, variance = layer.running_mean, layer.running_var
    return mean is not None and variance is not None and not bool(mean.any()) and bool((variance == 1).all())


def _error(chart: Chart, score: float, count: int) -> float:
    error = math.nan if chart.baselines is None else chart.baselines.error(min(score, 1.0), count)
    return error if math.isfinite(error) else 0.5 / math.sqrt(max(1, count))
