"""The optimizer's direction, kind, momentum and eps.

A first step, taken on a copy, says where it goes and how gradients compare with eps; kind and momentum are only tried
where the training is ill. Random only in that step's batch.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from homeostat.doctor.changes.optimizer import Minimize, SetEps, SetMomentum, SwapOptimizer
from homeostat.doctor.changes.options import momenta_of, settings_of
from homeostat.doctor.chart import Chart
from homeostat.doctor.network.step import goes_up, step_facts
from homeostat.doctor.rule import Rule, Suspect
from homeostat.doctor.rules.rate import evidence_of
from homeostat.doctor.trend import known, trend_of

_OTHER_EPS = frozenset({"Adadelta", "Adafactor", "Rprop"})  # there eps sets the size of steps, or bounds it
_USUAL_EPS = 1e-8
_SMALLEST_EPS = 1e-9
_NOT_ADAPTIVE = {
    "SGD": "steps all weights at one rate",
    "ASGD": "steps all weights at one rate",
    "Adagrad": "steps shorter and shorter",
    "Adadelta": "begins with very short steps",
    "Rprop": "needs the gradient of all examples, not that of a batch",
    "LBFGS": "needs the gradient of all examples, not that of a batch",
}
_SPREAD = 10.0
_LONG_MEMORY = 20.0
_USUAL_MOMENTUM = 0.9


class Maximizing(Rule):
    """The optimizer steps up the loss.

    What it checks: the loss along the first step of the optimizer, taken on a copy without weight decay, by finite
    differences; and whether the loss falls toward its targets, as one to be minimized does. `maximize=True`, a negative
    rate, and a gradient whose sign is turned inside the model all show there.

    Why it hurts: the training moves away from what it is to learn, faster and faster.

    Threshold and its source: none; the loss along a step falls (-1) or rises (1).

    False alarms: an objective that is meant to be maximized, such as a log likelihood, rises toward its targets, and
    nothing is said.

    Repair and its safety: maximize=False, a positive rate. Safe: the model computes what it did.

    References: PyTorch's documentation of torch.optim, `maximize`.
    """

    code = "OPT003"
    slug = "maximizing"
    causes = ("gradient_sign_flipped", "lr_negative")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts = step_facts(chart)
        if not goes_up(facts) or _meant(chart):
            return
        training = chart.training
        groups = training.optimizer.param_groups
        maximized = any(group.get("maximize") for group in groups)
        negative = any(rate < 0 for rate in settings_of(training.optimizer, "lr"))
        why = "maximize=True" if maximized else "its rate is negative" if negative else "the gradient's sign is turned"
        trend = trend_of(chart.course)
        risen = chart.course.diverged is not None or trend.progress < 0
        yield Suspect(
            f"The optimizer steps up the loss instead of down ({why})"
            + (f": {trend.start:.4g} became {trend.end:.4g}." if trend.progress < 0 else "."),
            "Set maximize=False and a positive learning rate; or turn the sign of the loss, once.",
            "certain",
            "error",
            evidence=known(rise_along_step=facts.rise if facts else math.nan, **evidence_of(chart, trend, facts)),
            causes=(*self.causes, "loss_diverging") if risen else self.causes,
            changes=(Minimize.of(training),) if maximized or negative else (),
        )


class UnsuitedEps(Rule):
    """The eps of an adaptive optimizer does not suit the size of the gradients.

    What it checks: eps against the root mean square of each parameter's gradient, and whether a first step with it is
    finite where the gradient is.

    Why it hurts: an eps above the gradients' size makes steps shorter by as much, and no longer adaptive. An eps of
    nothing divides 0 by 0 for every weight without gradient, which becomes NaN; a very small one gives weights whose
    gradient is only rounding noise steps of full length.

    Threshold and its source: eps above the median of the parameters' gradients; below 1e-9, a tenth of the smallest
    default in use (torch 1e-8, Keras 1e-7). A first step that is not finite needs no threshold.

    False alarms: large values are used on purpose (0.1 to 1 in Inception). They convict nobody: the training must be
    ill and recover with torch's default.

    Repair and its safety: eps = 1e-8. Safe: the model computes what it did.

    References: Kingma & Ba 2015, arXiv:1412.6980; Choi et al. 2019, arXiv:1910.05446 (tuning eps).
    """

    code = "OPT004"
    slug = "unsuited-eps"
    causes = ("optimizer_eps_too_low",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts, training = step_facts(chart), chart.training
        values = settings_of(training.optimizer, "eps")
        if facts is None or not values or type(training.optimizer).__name__ in _OTHER_EPS:
            return
        sizes = [size for size in facts.gradients.values() if size > 0 and math.isfinite(size)]
        typical = statistics.median(sizes) if sizes else math.nan
        change = (SetEps.of(training, _USUAL_EPS),)
        evidence = known(eps=max(values), median_gradient_rms=typical, zero_gradients=facts.zeros)
        cure = "Use torch's default, eps=1e-8."
        if not facts.finite and min(values) < _SMALLEST_EPS:
            text = f"With eps={min(values):g} the first step is not finite, though the gradient is."
            yield Suspect(text, cure, "certain", "error", evidence=evidence, changes=change)
        elif min(values) < _SMALLEST_EPS:
            text = f"With eps={min(values):g} weights whose gradient is rounding noise take steps of full length."
            yield Suspect(text, cure, "possible", evidence=evidence, changes=change)
        elif max(values) > typical:
            text = (
                f"eps={max(values):g} is above the gradients' size ({typical:.2g}), and shortens the steps by as much."
            )
            causes = ("lr_too_low",)
            yield Suspect(text, cure, "possible", evidence=evidence, causes=causes, changes=change)


class UnsuitedOptimizer(Rule):
    """An optimizer with one rate for all weights, on a problem whose gradients differ by orders of magnitude.

    What it checks: whether the optimizer scales all gradients alike (SGD), loses its rate with time (Adagrad), or needs
    the gradient of all examples (Rprop, LBFGS), in a training that is ill.

    Why it hurts: with one rate, layers with large gradients diverge at a rate at which those with small ones stand
    still.

    Threshold and its source: gradients of the parameters that differ by more than 10 in their root mean square, or any
    of the other kinds. It convicts nobody: Adam with its default rate must recover the training.

    False alarms: SGD trains most image classifiers well. They are not ill.

    Repair and its safety: Adam with its defaults, same groups and decay. Safe: the model computes what it did.

    References: Kingma & Ba 2015, arXiv:1412.6980; Zhang et al. 2020, arXiv:1912.03194 (why Adam, where SGD is poor).
    """

    code = "OPT010"
    slug = "unsuited-optimizer"
    causes = ("wrong_optimizer",)

    def check(self, chart: Chart) -> Iterator[Suspect]:
        facts, training = step_facts(chart), chart.training
        kind = type(training.optimizer).__name__
        if facts is None or kind not in _NOT_ADAPTIVE:
            return
        sizes = [size for size in facts.gradients.values() if size > 0 and math.isfinite(size)]
        spread = max(sizes) / min(sizes) if sizes else 1.0
        if kind in ("SGD", "ASGD") and spread < _SPREAD:
            return
        yield Suspect(
            f"{kind} {_NOT_ADAPTIVE[kind]}; the parameters' gradients differ by a factor of {spread:.2g} here.",
            "Use Adam, torch.optim.Adam(model.parameters()), which scales the step of each weight.",
            "possible",
            evidence=known(gradient_spread=spread),
            changes=(SwapOptimizer.of(training, "adam"),),
        )


class ExtremeMomentum(Rule):
    """The optimizer remembers more steps than the training can afford.

    What it checks: momentum, or the first of Adam's betas, against the number of steps; and beta1 against beta2.

    Why it hurts: with momentum m a gradient acts for 1 / (1 - m) steps, and the step grows by as much: the weights
    swing around the minimum for that long. With beta1 above the root of beta2 Adam's step is not bounded by its rate.

    Threshold and its source: m above the customary 0.9, and 1 / (1 - m) beyond a tenth of all steps or 20 (Sutskever
    et al. 2013 use up to 0.999, late and with tuned rates); beta1² >= beta2 (Zou et al. 2019 need beta1 < sqrt(beta2)).
    It convicts nobody: momentum 0.9 must recover the training.

    False alarms: large momentum with a tuned rate. Such a training is not ill.

    Repair and its safety: momentum 0.9; betas (0.9, 0.999). Safe: the model computes what it did.

    References: Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html; Zou et al. 2019,
    arXiv:1811.09358.
    """

    code = "OPT011"
    slug = "extreme-momentum"
    causes = ("oscillating_loss", "lr_too_high")

    def check(self, chart: Chart) -> Iterator[Suspect]:
        optimizer, steps = chart.training.optimizer, max(1, chart.course.total)
        momentum = max(momenta_of(optimizer), default=0.0)
        memory = 1 / (1 - momentum) if momentum < 1 else math.inf
        betas = [group["betas"] for group in optimizer.param_groups if len(group.get("betas", ())) == 2]
        unbounded = any(first**2 >= second for first, second in betas)
        long = memory > _LONG_MEMORY or (momentum > _USUAL_MOMENTUM and memory > 1 + steps / 10)
        if not long and not unbounded:
            return
        text = f"Momentum {momentum:g} keeps a gradient for {memory:.3g} steps of {steps}."
        if unbounded:
            text = f"betas={betas[0]} leave Adam's step without a bound: beta1 should be below the root of beta2."
        yield Suspect(
            text,
            "Use momentum 0.9, or betas=(0.9, 0.999).",
            "likely" if momentum >= 1 else "possible",
            evidence=known(momentum=momentum, memory_in_steps=memory, steps=steps),
            changes=(SetMomentum.of(chart.training, _USUAL_MOMENTUM),),
        )


def _meant(chart: Chart) -> bool:
    """Whether the loss is one to be maximized: it rises toward its targets, or where that is not known, training helps.

    A loss of the usual kind, which falls toward its targets, is never meant to rise.
    """
    agreement = None if chart.loss is None else chart.loss.agreement
    if agreement is not None and abs(agreement) > 0.5:
        return agreement < 0
    scores = [mark.train_score for mark in chart.course.marks]
    improved = len(scores) > 1 and scores[-1] > scores[0]
    return improved and not chart.ill and chart.course.diverged is None
