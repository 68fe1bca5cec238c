"""Data: numbers that are not finite, inputs and targets on a scale that optimizers find hard, columns without content.

That labels belong to their inputs is asked in `data_labels`, whether the splits agree in `data_splits`. Not random.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from homeostat.doctor.changes.data import StandardizeInputs, StandardizeTargets
from homeostat.doctor.changes.rows import DropNonFinite
from homeostat.doctor.data.scale import InputScale
from homeostat.doctor.rule import Certainty, Rule, Suspect

if TYPE_CHECKING:
    from homeostat.doctor.chart import Chart

UNEVEN = 10.0
"""The curvature of the loss along one direction of the first layer's weights over that along another, beyond which
scales are suspected: it costs gradient descent ten times the steps (LeCun et al. 1998, sections 4.3 and 5)."""

HARD = 1000.0
"""The same, beyond which they are likely to be what is wrong: no usual learning rate serves both directions."""

RESTED = (0.2, 5.0)
"""The root mean square of what reaches the first weight layer that is taken for scaled inside the model."""

CONSTANT = 0.1
"""The share of features without content that is worth a remark."""


class NonFiniteData(Rule):
    """Inputs or targets hold numbers that are not finite.

    What it checks: every number of both splits, as far as they were read; and whether a batch with such examples gives
    outputs and a loss that are finite all the same.

    Why it hurts: one NaN in a batch makes the loss NaN, its gradient, and after one step every weight.

    Threshold and its source: a single number, if outputs or loss are not finite with it.

    False alarms: missing labels that the loss leaves out, or missing inputs that the model fills in, only give a
    remark, because outputs and loss stay finite.

    Repair and its safety: these examples are left out. Safe: the model is not touched. Filling in what is missing may
    be better, and is for you to decide.

    References: IEEE 754-2019; Little & Rubin 2019, Statistical Analysis with Missing Data.
    """

    code = "DAT001"
    slug = "nonfinite-data"
    causes = ("nonfinite_data",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        if chart.data is None or not chart.data.finite.total:
            return
        found = chart.data.finite
        places = {
            "training inputs": found.train_inputs,
            "training targets": found.train_targets,
            "validation inputs": found.valid_inputs,
            "validation targets": found.valid_targets,
        }
        listed = ", ".join(f"{count} examples in {place}" for place, count in places.items() if count)
        yield Suspect(
            f"Numbers that are not finite: {listed}" + ("." if found.harmful else "; outputs and loss stay finite."),
            "Leave these examples out, or fill in what is missing, before training.",
            "certain",
            "error" if found.harmful else "info",
            evidence={place.replace(" ", "_"): count for place, count in places.items()},
            changes=(DropNonFinite(),) if found.harmful else (),
        )


class UnnormalizedInputs(Rule):
    """Inputs are large, far from zero for how much they vary, or vary very differently from feature to feature.

    What it checks: the root mean square of the inputs; the median of |mean| / deviation; how many times more a large
    feature varies than a small one. Columns of zeros and ones are left out, and so is the last for pixels. Where the
    first weight layer is reached by something else, because the model scales its inputs itself, nothing is suspected;
    bytes are looked at where they reach it as they are.

    Why it hurts: the curvature of the loss in the first layer's weights is that of the inputs' second moments. An input
    of size s gives it s² times the curvature, so that a learning rate that suits the other layers makes it diverge,
    saturates or kills the units behind it; unlike features need unlike rates.

    Threshold and its source: all three, squared, are ratios of curvatures. From 10 they are suspected, from 1000 they
    are likely: the number of steps of gradient descent grows in proportion (LeCun et al. 1998).

    False alarms: many programs learn from raw pixels or columns, with an adaptive optimizer or normalization inside.
    Therefore nothing is said unless the training is ill, or standardized inputs clearly win over the whole training.

    Repair and its safety: the model's first module becomes (x - mean) / deviation, measured on the training split.
    Unsafe: the model computes something else with the weights it has.

    References: LeCun, Bottou, Orr & Müller 1998, Efficient BackProp.
    """

    code = "DAT002"
    slug = "unnormalized-inputs"
    causes = ("inputs_unnormalized",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        scale = None if chart.data is None else chart.data.inputs
        if scale is None or scale.form not in ("real", "bytes") or not scale.typical_std or is_scaled_inside(chart):
            return
        uneven = {
            f"their root mean square is {scale.rms:.3g}": scale.rms,
            f"their mean is {scale.offset:.3g} deviations from 0": scale.offset,
            f"a large feature varies {scale.ratio:.3g} times as much as a small one": scale.ratio,
        }
        if is_small(scale):
            uneven = dict(list(uneven.items())[1:2])  # unlike features that are all small are told by that rule
        worst = max(uneven.values()) ** 2
        if worst < UNEVEN:
            return
        said = "; ".join(text for text, value in uneven.items() if value**2 >= UNEVEN)
        yield Suspect(
            f"Inputs are not normalized: {said} (they lie in {scale.low:.4g} .. {scale.high:.4g}).",
            "Subtract the training split's mean and divide by its deviation, per column, or per channel of images.",
            "likely" if worst >= HARD else "possible",
            evidence={"rms": scale.rms, "offset": scale.offset, "ratio": scale.ratio, "curvature_ratio": worst},
            changes=(StandardizeInputs(),),
        )


class UnderscaledInputs(Rule):
    """Inputs hardly vary, as if they were normalized twice.

    What it checks: the median deviation of the features that are neither constant nor zeros and ones; and whether
    values that lie on a grid have a step that is the square of their range, as whole numbers have that were divided by
    their range two times.

    Why it hurts: the gradient of the first layer's weights is proportional to the inputs, and so is what they add to
    its output; with inputs of size s the layer learns s² times as fast. Its units see little but their bias.

    Threshold and its source: 1 / s² is a ratio of curvatures, as for inputs that are too large: suspected from 10·10,
    since pixels in [0, 1] vary by 0.2 to 0.35 and are learned from everywhere; likely from 1000, or where the grid
    shows that it was done twice.

    False alarms: words weighted by frequency, and rows of unit length, have small entries and work with an adaptive
    optimizer. Nothing is said unless the training is ill, or standardized inputs clearly win.

    Repair and its safety: the model's first module becomes (x - mean) / deviation. Unsafe: the model computes something
    else with the weights it has.

    References: LeCun, Bottou, Orr & Müller 1998, Efficient BackProp.
    """

    code = "DAT003"
    slug = "underscaled-inputs"
    causes = ("inputs_underscaled",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        scale = None if chart.data is None else chart.data.inputs
        if scale is None or not is_small(scale) or is_scaled_inside(chart):
            return
        twice = scale.divided_twice
        certainty: Certainty = "likely" if twice or scale.typical_std**-2 >= HARD else "possible"
        how = " Their grid shows that they were divided by their range twice." if twice else ""
        unlike = scale.ratio**2 >= HARD
        yield Suspect(
            f"Inputs hardly vary: half of the features deviate by less than {scale.typical_std:.2g}.{how}",
            "Normalize once: subtract the training split's mean and divide by its deviation.",
            certainty,
            causes=("inputs_underscaled", "inputs_unnormalized") if unlike else None,
            evidence={"typical_std": scale.typical_std, "ratio": scale.ratio, "divided_twice": twice},
            changes=(StandardizeInputs(),),
        )


class UnnormalizedTargets(Rule):
    """Targets of a regression are large, tiny, or unlike from column to column.

    What it checks: the root mean square of the training targets, and the deviations of their columns.

    Why it hurts: a fresh model answers with numbers around 1. Its first errors are as large as the targets, and with
    the squared error so are the gradients: the learning rate that carries the answers there makes the weights jump.
    Tiny targets have the opposite effect, and of unlike columns the loss sees the large ones only.

    Threshold and its source: squared sizes are ratios of gradients' sizes to those that the customary rates are made
    for; suspected from 10, likely from 1000 (LeCun et al. 1998).

    False alarms: an adaptive optimizer or a long training gets there all the same. Nothing is said unless the training
    is ill, or standardized targets clearly win.

    Repair and its safety: the loss is taken on outputs and targets in deviations from the training mean, and the
    model's last module brings its answers back to raw units. Unsafe: the model computes something else with the weights
    it has.

    References: LeCun, Bottou, Orr & Müller 1998, Efficient BackProp; Bishop 1995, Neural Networks for Pattern
    Recognition, section 8.2.
    """

    code = "DAT004"
    slug = "unnormalized-targets"
    causes = ("targets_unnormalized",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        scale = None if chart.data is None else chart.data.targets
        if scale is None or scale.std <= 0:
            return
        ratio = scale.std / scale.least_std
        tiny = 1.0 / max(scale.rms, scale.std)
        uneven = {
            f"their root mean square is {scale.rms:.3g}": scale.rms,
            f"their deviation is {scale.std:.3g}": tiny if tiny**2 >= HARD else 0.0,
            f"one column varies {ratio:.3g} times as much as another": ratio,
        }
        worst = max(uneven.values()) ** 2
        if worst < UNEVEN:
            return
        said = "; ".join(text for text, value in uneven.items() if value**2 >= UNEVEN)
        yield Suspect(
            f"Targets are not normalized: {said}.",
            "Train on (y - mean) / deviation of the training targets, and turn predictions back.",
            "likely" if worst >= HARD and scale.rms**2 >= HARD else "possible",
            evidence={"rms": scale.rms, "std": scale.std, "ratio": ratio},
            changes=(StandardizeTargets(),),
        )


class ConstantFeatures(Rule):
    """Features have one value only.

    What it checks: columns, or channels, whose deviation over the training split is 0. Pixels are left out: those at
    the border of images often are constant.

    Why it hurts: they tell nothing, and act as a second bias. That a column is constant often shows an error in its
    making.

    Threshold and its source: a tenth of the features; a remark only.

    False alarms: none: it is a fact, and no fault.

    Repair and its safety: none; leave them out, or look how they came to be.

    References: none.
    """

    code = "DAT005"
    slug = "constant-features"
    causes = ("constant_features",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        scale = None if chart.data is None else chart.data.inputs
        if scale is None or scale.shared or not scale.constant or scale.constant < CONSTANT * scale.features:
            return
        yield Suspect(
            f"{scale.constant} of {scale.features} features have one value only.",
            "Leave them out, or see why they do not vary.",
            "certain",
            "info",
            evidence={"constant": scale.constant, "features": scale.features},
        )


def is_small(scale: InputScale) -> bool:
    """Whether typical inputs hardly vary, and none is large."""
    return scale.typical_std > 0 and scale.typical_std**-2 >= UNEVEN**2 and scale.large_std <= 1.0 and scale.rms <= 1.0


def is_scaled_inside(chart: Chart) -> bool:
    """Whether the model scales its inputs itself, before its first weight layer."""
    if chart.data is None:
        return False
    unknown = chart.data.inputs.form == "bytes"  # no layer takes bytes: something is done to them first
    if chart.probe is None:
        return unknown
    first = next((layer for layer in chart.probe.layers if layer.role in ("weight", "norm")), None)
    if first is None:
        return unknown
    if first.role == "norm":
        return True
    arriving, inputs = first.arriving, chart.data.inputs
    if arriving is None or not inputs.rms:
        return unknown
    low, high = RESTED
    changed = not 0.5 < arriving.rms / inputs.rms < 2.0
    return changed and low <= arriving.rms <= high and abs(arriving.mean) <= high * arriving.std
