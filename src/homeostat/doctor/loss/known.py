"""The losses that everybody knows: what outputs and targets each takes, and how it is written.

`FittedLoss` is one of them for one layout of outputs and targets, as a loss function. Which of them a user's function
computes, `identify` finds out. Not random.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.doctor.loss.layout import Layout, layout_of
from homeostat.errors import unknown

Expects = Literal["logits", "probabilities", "log-probabilities", "values"]
Takes = Literal["values", "unit", "signs", "classes"]

_ONE_HOT = "torch.nn.functional.one_hot({t}, output.shape[1]).to(output)"
_EPS = 1e-12  # under a logarithm in single precision: large enough that 1/eps times a probability stays finite


@dataclass(frozen=True)
class Known:
    """A loss with a name.

    Example:
        >>> known("absolute error")(torch.tensor([[1.0], [4.0]]), torch.tensor([[0.0], [1.0]]))
        tensor(2.)
    """

    name: str
    expects: Expects
    """What outputs it is meant for; "values" is any number in the targets' unit."""
    takes: Takes
    """What targets it is meant for: any values, values in [0, 1], signs (-1 and 1), or a class among several."""
    function: Callable[[Tensor, Tensor], Tensor]
    """Rows of outputs (M, C) and targets, (M,) for class numbers or (M, C), to the loss of each row (M,)."""
    code: str
    """How a person writes it; {o} and {t} stand for outputs and targets with classes second."""
    index: str = ""
    """The same for targets that are class numbers, where it is written otherwise."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over examples, for outputs and targets in any layout."""
        return self.rows(layout_of(outputs, targets), outputs, targets).mean()

    def rows(self, layout: Layout, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of every example (of every position of one), shape (M,)."""
        rows, goals = layout.rows(outputs, targets)
        if self.takes != "classes" and layout.form == "index":
            goals = F.one_hot(goals, rows.shape[1]).to(rows.dtype)
        return self.function(rows, goals)

    def applies(self, layout: Layout) -> bool:
        """Whether it can be computed for such outputs and targets."""
        return self.takes != "classes" or layout.form != "same"

    def __reduce__(self) -> tuple[Callable[[str], Known], tuple[str]]:
        """Pickled by name."""
        return known, (self.name,)

    def written(self, layout: Layout) -> str:
        """The line of code for a layout."""
        form = self.index if self.index and layout.form == "index" else self.code
        target = layout.target_code
        if self.takes != "classes" and layout.form == "index":
            target = _ONE_HOT.replace("{t}", target)
        return form.replace("{o}", layout.output_code).replace("{t}", target)


@dataclass(frozen=True)
class FittedLoss:
    """A known loss for one layout, as a loss function (outputs, targets) -> scalar: the mean over examples."""

    known: Known
    layout: Layout

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.known.rows(self.layout, outputs, targets).mean()

    def __repr__(self) -> str:
        return self.known.written(self.layout)


def _dense(goals: Tensor, rows: Tensor) -> Tensor:
    """Goals as a distribution over the columns."""
    return F.one_hot(goals, rows.shape[1]).to(rows.dtype) if goals.dim() == 1 else goals.to(rows.dtype)


def _picked(rows: Tensor, goals: Tensor) -> Tensor:
    """Each row's entries weighted with its distribution over classes."""
    return rows.gather(1, goals[:, None])[:, 0] if goals.dim() == 1 else (goals.to(rows.dtype) * rows).sum(1)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=_EPS, max=1.0).log()


def _binary(p: Tensor, t: Tensor) -> Tensor:
    return -(t * _log(p) + (1 - t) * _log(1 - p)).mean(1)


def _log_cosh(rows: Tensor, t: Tensor) -> Tensor:
    gap = (rows - t).abs()
    return (gap + F.softplus(-2 * gap) - 0.6931471805599453).mean(1)


def _normalized(rows: Tensor) -> Tensor:
    return rows / rows.sum(1, keepdim=True)


def _multi_margin(rows: Tensor, goals: Tensor) -> Tensor:
    right = _picked(rows, goals)[:, None]
    return ((1 - right + rows).clamp(min=0) * (1 - _dense(goals, rows))).mean(1)


def _cross_entropy(rows: Tensor, goals: Tensor) -> Tensor:
    return F.cross_entropy(rows, goals, reduction="none")


_F = "torch.nn.functional."
LOG_RATES, RATES = "Poisson loss on log-rates", "Poisson loss on rates"
KNOWN: tuple[Known, ...] = (
    Known("cross entropy on logits", "logits", "classes", _cross_entropy, _F + "cross_entropy({o}, {t})"),
    Known(
        "cross entropy on probabilities",
        "probabilities",
        "classes",
        lambda o, t: -_picked(_log(o), t),
        "-({t} * {o}.clamp_min(1e-12).log()).sum(1).mean()",
        _F + "nll_loss({o}.clamp_min(1e-12).log(), {t})",
    ),
    Known(
        "cross entropy on normalized probabilities",
        "probabilities",
        "classes",
        lambda o, t: -_picked(_log(_normalized(o)), t),
        "-({t} * ({o} / {o}.sum(1, keepdim=True)).clamp_min(1e-12).log()).sum(1).mean()",
        _F + "nll_loss(({o} / {o}.sum(1, keepdim=True)).clamp_min(1e-12).log(), {t})",
    ),
    Known(
        "negative log-likelihood",
        "log-probabilities",
        "classes",
        lambda o, t: -_picked(o, t),
        "-({t} * {o}).sum(1).mean()",
        _F + "nll_loss({o}, {t})",
    ),
    Known(
        "squared error of the softmax",
        "logits",
        "classes",
        lambda o, t: (o.softmax(1) - _dense(t, o)).square().mean(1),
        _F + "mse_loss({o}.softmax(1), {t})",
        _F + "mse_loss({o}.softmax(1), " + _ONE_HOT + ")",
    ),
    Known(
        "cross entropy of a softmax of the softmax",
        "logits",
        "classes",
        lambda o, t: _cross_entropy(o.softmax(1), t),
        _F + "cross_entropy({o}.softmax(1), {t})",
    ),
    Known(
        "margin between classes",
        "logits",
        "classes",
        _multi_margin,
        _F + "multi_margin_loss({o}, {t}.argmax(1))",
        _F + "multi_margin_loss({o}, {t})",
    ),
    Known("squared error", "values", "values", lambda o, t: ((o - t) ** 2).mean(1), _F + "mse_loss({o}, {t})"),
    Known("absolute error", "values", "values", lambda o, t: (o - t).abs().mean(1), _F + "l1_loss({o}, {t})"),
    Known(
        "Huber loss",
        "values",
        "values",
        lambda o, t: F.huber_loss(o, t, reduction="none").mean(1),
        _F + "huber_loss({o}, {t})",
    ),
    Known("log-cosh", "values", "values", _log_cosh, "torch.log(torch.cosh({o} - {t})).mean()"),
    Known(
        "squared logarithmic error",
        "values",
        "values",
        lambda o, t: (torch.log1p(o.clamp(min=-1 + _EPS)) - torch.log1p(t)).square().mean(1),
        _F + "mse_loss({o}.log1p(), {t}.log1p())",
    ),
    Known(
        "binary cross entropy on probabilities", "probabilities", "unit", _binary, _F + "binary_cross_entropy({o}, {t})"
    ),
    Known(
        "binary cross entropy on logits",
        "logits",
        "unit",
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, reduction="none").mean(1),
        _F + "binary_cross_entropy_with_logits({o}, {t})",
    ),
    Known(
        "squared error of the sigmoid",
        "logits",
        "unit",
        lambda o, t: (o.sigmoid() - t).square().mean(1),
        _F + "mse_loss({o}.sigmoid(), {t})",
    ),
    Known(
        "hinge loss",
        "values",
        "signs",
        lambda o, t: (1 - t * o).clamp(min=0).mean(1),
        "(1 - {t} * {o}).clamp(min=0).mean()",
    ),
    Known(
        "hinge loss with 0 and 1 made signs",
        "values",
        "unit",
        lambda o, t: (1 - (2 * t - 1) * o).clamp(min=0).mean(1),
        "(1 - (2 * {t} - 1) * {o}).clamp(min=0).mean()",
    ),
    Known(
        "squared hinge loss",
        "values",
        "signs",
        lambda o, t: (1 - t * o).clamp(min=0).square().mean(1),
        "(1 - {t} * {o}).clamp(min=0).square().mean()",
    ),
    Known(
        LOG_RATES,
        "values",
        "values",
        lambda o, t: (o.exp() - t * o).mean(1),
        _F + "poisson_nll_loss({o}, {t})",
    ),
    Known(
        RATES,
        "values",
        "values",
        lambda o, t: (o - t * (o + 1e-8).log()).mean(1),
        _F + "poisson_nll_loss({o}, {t}, log_input=False)",
    ),
)
"""In the order in which they are tried; where two agree on everything that can be asked, the first is said."""

_BY_NAME = {each.name: each for each in KNOWN}


def known(name: str) -> Known:
    """A known loss by its name.

    Raises: InvalidValue for a name that is not in `KNOWN`.
    """
    if name not in _BY_NAME:
        raise unknown("known", "loss", name, _BY_NAME)
    return _BY_NAME[name]
