"""Normalization: layers in the wrong place, over too few values, missing, or decayed.

Here is what the structure and one batch show; the statistics that batch normalization keeps, and modes, are in
`norm_statistics`. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

from homeostat.doctor.changes.held import held_by
from homeostat.doctor.changes.norm import AddNorm, batch_norms
from homeostat.doctor.changes.regularization import ExemptDecay, SetDropout
from homeostat.doctor.changes.schedule import BatchSize
from homeostat.doctor.chart import Chart
from homeostat.doctor.network.layers import LayerFacts
from homeostat.doctor.network.probe import Probe
from homeostat.doctor.network.structure import Link, Step
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.trend import known
from homeostat.parts.norm import norm_kind
from homeostat.parts.penalty import split_parameters

SMALL_BATCH = 8
"""Wu & He 2018, figure 1: the error of batch normalization rises from 8 images per batch downward, steeply below 4."""

ENOUGH = 32
"""The batch for which batch normalization was tuned in the same study, and the size it is compared with."""

DEEP = 8
"""Weight layers on a path. AlexNet has 8; VGG's networks of more than 11 could not be trained from scratch at first,
and were begun from the trained one of 11 (Simonyan & Zisserman 2015)."""

VANISHING = 1e-2
"""Gradient at the first layer's output over that at the last one's, root mean squares."""

_CONSTANT = 1e-6  # the deviation of a layer's output over its input's, where nothing of it is left


class BiasBeforeNorm(Rule):
    """A bias is taken out at once by the normalization behind it.

    What it checks: weight layers with a bias whose output goes to batch or instance normalization first.
    Why it hurts: it costs memory and time, and does nothing: the mean is subtracted, and the normalization has a shift
    of its own.
    Threshold and its source: none; a remark.
    False alarms: models from a library with pretrained weights need their biases to load.
    Repair and its safety: advice: bias=False in these layers.
    References: Ioffe & Szegedy 2015, arXiv:1502.03167, section 3.2.
    """

    code = "NRM001"
    slug = "bias-before-norm"
    causes = ("bias_before_norm",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.structure is None:
            return
        modules = dict(chart.training.model.named_modules())
        found = []
        for name in chart.structure.weights:
            links = [link for link in chart.structure.links if link.source == name]
            bias = getattr(modules.get(name), "bias", None)
            if links and isinstance(bias, nn.Parameter) and all(_first_is_norm(link, modules) for link in links):
                found.append(name)
        if found:
            text = f"{len(found)} layers have a bias that normalization takes out at once: {_some(found)}."
            yield Suspect(
                text,
                "Build them with bias=False.",
                "certain",
                "info",
                layer=found[0],
                evidence=known(layers=len(found)),
            )


class DropoutBeforeBatchNorm(Rule):
    """Dropout in front of batch normalization, whose statistics then do not fit evaluation.

    What it checks: dropout on the way into batch normalization, directly or through a weight layer.
    Why it hurts: in training dropout adds variance, which batch normalization learns; in evaluation that variance is
    gone and everything is scaled wrongly ("variance shift").
    Threshold and its source: none. It convicts nobody: without these dropout layers the training must recover.
    False alarms: wide residual networks have both and train well. They are not ill.
    Repair and its safety: p = 0 in these layers. Safe: in evaluation the model computes what it did.
    References: Li et al. 2019, arXiv:1801.05134.
    """

    code = "NRM002"
    slug = "dropout-before-batch-norm"
    causes = ("dropout_before_batchnorm", "train_eval_gap")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.structure is None:
            return
        modules = dict(chart.training.model.named_modules())
        behind = {link.source for link in chart.structure.links if _norms(link, modules)}
        found: list[str] = []
        for link in chart.structure.links:
            drops = [place for place, step in enumerate(link.steps) if step.role == "dropout"]
            norms = [place for place, step in enumerate(link.steps) if _is_batch_norm(step, modules)]
            into = link.target in behind
            found += [link.steps[i].module or "" for i in drops if into or any(i < place for place in norms)]
        layers = tuple(dict.fromkeys(name for name in found if name in modules))
        layers = tuple(name for name in layers if float(getattr(modules[name], "p", 1.0)) > 0)
        if layers:
            yield Suspect(
                f"Dropout ({_some(layers)}) stands before batch normalization, and changes its variance in training.",
                "Put dropout behind the last batch normalization, or leave it out.",
                "possible",
                layer=layers[0],
                evidence=known(layers=len(layers)),
                changes=(SetDropout.of(chart.training, 0.0, layers),),
            )


class SmallBatchInBatchNorm(Rule):
    """Batch normalization over few examples.

    What it checks: batches of fewer than 8 examples in a model that normalizes by the batch's statistics.
    Why it hurts: means and variances of few examples are noise, which differs from evaluation's running statistics.
    Threshold and its source: 8 (Wu & He 2018, figure 1). It convicts nobody: batches of 32, or group normalization,
    must recover the training.
    False alarms: many positions per example make up for few examples, up to a point. Such a training is not ill.
    Repair and its safety: batches of 32 (safe), or group normalization (unsafe: another function).
    References: Wu & He 2018, arXiv:1803.08494; Wu & Johnson 2021, arXiv:2105.07576.
    """

    code = "NRM003"
    slug = "small-batch-in-batch-norm"
    causes = ("batch_size_too_small", "batch_size")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        training = chart.training
        layers = [name for name, layer in batch_norms(training.model).items() if layer.training]
        if not layers or training.batch_size >= SMALL_BATCH:
            return
        changes = (BatchSize.of(training, ENOUGH),) if len(chart.train) > training.batch_size else ()
        yield Suspect(
            f"Batch normalization ({_some(layers)}) takes its statistics from {training.batch_size} examples.",
            f"Use batches of {ENOUGH}, or group normalization, which does not depend on the batch.",
            "possible",
            layer=layers[0],
            evidence=known(batch_size=training.batch_size),
            changes=(*changes, AddNorm.of(training, "group")),
        )


class DecayOnNorms(Rule):
    """Weight decay acts on biases and on the scales of normalization.

    What it checks: groups of the optimizer with weight decay that hold biases, normalization or other vectors.
    Why it hurts: scales are drawn to zero instead of small weights being preferred; biases do not overfit.
    Threshold and its source: none; a remark.
    False alarms: most published trainings do this, and the difference is small.
    Repair and its safety: groups of their own, without decay. Safe: the model computes what it did.
    References: He et al. 2019, arXiv:1812.01187, section 3.1 (no bias decay).
    """

    code = "NRM006"
    slug = "decay-on-norms-and-biases"
    causes = ("norm_decayed",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        training = chart.training
        exempt = {id(parameter) for parameter in split_parameters(training.model)[1]}
        groups = [group for group in training.optimizer.param_groups if group.get("weight_decay")]
        decayed = [each for group in groups for each in group["params"] if id(each) in exempt]
        norms = [p for m in training.model.modules() if norm_kind(m) for p in m.parameters(recurse=False)]
        count = len({id(each) for each in decayed} & {id(p) for p in norms})
        if decayed:
            text = f"Weight decay acts on {len(decayed)} biases and scales"
            text += f", {count} of them of normalization layers." if count else "."
            yield Suspect(
                text,
                "Give them a group without decay: homeostat.parts.penalty.param_groups_weight_decay.",
                "certain",
                "info",
                evidence=known(decayed=len(decayed), of_norms=count, held=len(held_by(training.optimizer))),
                changes=(ExemptDecay.of(training),),
            )


class DeepWithoutNorm(Rule):
    """A deep network without normalization and without skip connections.

    What it checks: eight and more weight layers on one path with neither, in which the gradient vanishes on its way to
    the first layer, or nothing is learned.
    Why it hurts: each layer multiplies signal and gradient by a factor; the product of many is seldom near 1.
    Threshold and its source: 8 layers, as AlexNet has; a gradient at the first layer below a hundredth of the last
    one's. It convicts nobody: with normalization the training must
    recover.
    False alarms: with a careful initialization much deeper plain networks train. They are not ill.
    Repair and its safety: batch or layer normalization behind every hidden weight layer; unsafe: another function.
    References: Ioffe & Szegedy 2015, arXiv:1502.03167; He et al. 2016, arXiv:1512.03385.
    """

    code = "NRM007"
    slug = "deep-without-norm"
    causes = ("batchnorm_missing",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        structure = chart.structure
        if structure is None or structure.depth < DEEP or structure.norms or structure.residual:
            return
        if "norm" in structure.functional:
            return
        ratio = _gradient_ratio(chart.probe)
        vanishes = ratio < VANISHING
        if not vanishes and not chart.ill:
            return
        text = f"{structure.depth} weight layers in a row have neither normalization nor skip connections"
        text += f"; the first one's gradient is {ratio:.2g} of the last one's." if vanishes else "."
        yield Suspect(
            text,
            "Put normalization behind the hidden layers, or add skip connections.",
            "possible",
            evidence=known(depth=structure.depth, gradient_ratio=ratio),
            causes=("batchnorm_missing", "vanishing_gradient") if vanishes else None,
            changes=(AddNorm.of(chart.training, "batch"), AddNorm.of(chart.training, "layer")),
        )


class NormOfOneValue(Rule):
    """A normalization layer takes its statistics from one value, and so gives a constant.

    What it checks: the output of every normalization layer on a training batch: it is constant over examples, while the
    input is not.
    Why it hurts: a value minus its own mean is zero. Nothing of the input comes through.
    Threshold and its source: a deviation below 1e-6 of the input's.
    False alarms: scales that are zero on purpose, at the end of residual branches, are left alone.
    Repair and its safety: batch normalization in its place; unsafe: another function.
    References: Wu & He 2018, arXiv:1803.08494, section 3.
    """

    code = "NRM009"
    slug = "norm-of-one-value"
    causes = ("constant_output",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.probe is None:
            return
        modules = dict(chart.training.model.named_modules())
        for layer in chart.probe.of("norm"):
            module = modules.get(layer.name)
            kind = None if module is None else norm_kind(module)
            scale = getattr(module, "weight", None)
            zeroed = isinstance(scale, nn.Parameter) and not bool(scale.any())
            if kind in (None, "batch", "rms") or zeroed or not _is_constant(layer):
                continue
            yield Suspect(
                f"{layer.kind} gives {layer.mean:.3g} whatever it gets: it normalizes single values.",
                "Use batch normalization there, or normalize before positions and features are merged into one.",
                "certain",
                layer=layer.name,
                evidence=known(output_std=layer.std, shape=str(layer.shape)),
                changes=(AddNorm.of(chart.training, "batch"),),
            )


def _first_is_norm(link: Link, modules: dict[str, nn.Module]) -> bool:
    """Whether the first thing that computes on a way is batch or instance normalization."""
    steps = [step for step in link.steps if step.role != "shape"]
    return bool(steps) and _kind(steps[0], modules) in ("batch", "instance")


def _norms(link: Link, modules: dict[str, nn.Module]) -> bool:
    """Whether batch normalization follows a weight layer before anything but dropout and shapes."""
    steps = [step for step in link.steps if step.role not in ("shape", "dropout")]
    return bool(steps) and _is_batch_norm(steps[0], modules)


def _is_batch_norm(step: Step, modules: dict[str, nn.Module]) -> bool:
    return _kind(step, modules) == "batch"


def _kind(step: Step, modules: dict[str, nn.Module]) -> str | None:
    if step.role != "norm":
        return None
    if step.module is not None and step.module in modules:
        return norm_kind(modules[step.module])
    return next((kind for kind in ("batch", "instance", "layer", "group") if step.name.startswith(kind)), None)


def _gradient_ratio(probe: Probe | None) -> float:
    """The gradient at the first weight layer's output over that at the last one's; nan without one."""
    sizes = [] if probe is None else [layer.gradient_rms for layer in probe.of("weight")]
    sizes = [size for size in sizes if math.isfinite(size)]
    return sizes[0] / sizes[-1] if len(sizes) > 1 and sizes[-1] > 0 else math.nan


def _is_constant(layer: LayerFacts) -> bool:
    arriving = layer.arriving
    return arriving is not None and arriving.std > 0 and layer.std <= _CONSTANT * arriving.std and layer.dead >= 1.0


def _some(names: list[str] | tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
