"""Which known loss a user's function computes.

Gradients with respect to the outputs are compared on probes, so that a constant factor, a sum in place of a mean,
weights of classes or examples, a penalty on parameters and a flipped sign do not hide which loss it is. Random only in
the probes, whose streams are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from homeostat.doctor.loss.black_box import BlackBox, Loss, choose_box
from homeostat.doctor.loss.known import KNOWN, Known
from homeostat.doctor.loss.layout import Layout, layout_of
from homeostat.doctor.loss.probes import interior, spread, unit

_AGREE = 1e-3  # relative; known losses differ by far more on probes, epsilons under a logarithm by far less
_PROBES = 4  # gradients compared; each holds a number per output


@dataclass(frozen=True)
class Match:
    """Which known loss a function computes, and up to what."""

    known: Known
    factor: float
    """Times the mean over rows; negative if it is to be maximized."""
    weighted: bool = False
    """Whether rows or classes have weights of their own."""
    curved: bool = False
    """Whether it is a function of the known loss, such as its square root."""


def identify(loss_fn: Loss, outputs: Tensor, targets: Tensor) -> Known | None:
    """Which known loss a function computes, up to a factor, weights and a penalty; None if it is none of them.

    Args:
        loss_fn: called with tensors like `outputs` and `targets`; returns a scalar.
        outputs: floating, shape (N, ...); only their shape, dtype and device are used.
        targets: shape (N, ...), as the loss takes them.
    Example:
        >>> outputs, targets = torch.zeros(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
        >>> found = identify(lambda o, t: 3 * F.nll_loss(o.log_softmax(1), t), outputs, targets)
        >>> found.name
        'cross entropy on logits'
    """
    layout = layout_of(outputs, targets)
    found = match(choose_box(loss_fn, interior(outputs, targets, layout, 0), targets), outputs, targets, layout)
    return None if found is None else found.known


def match(box: BlackBox, outputs: Tensor, targets: Tensor, layout: Layout) -> Match | None:
    """The same, with the factor and what else is between the loss and the known one."""
    if layout.form == "unlike":
        return None
    outside = [spread(outputs, targets, seed) for seed in range(_PROBES)]
    far = _answers(box, outside, targets)
    for place in (interior, unit):  # a loss on probabilities may have nothing to say near targets beyond [0, 1]
        inside = [place(outputs, targets, layout, seed) for seed in range(_PROBES)]
        near = _answers(box, inside, targets)
        if near is not None:
            break
    if near is None and far is None:
        return None
    for candidate in KNOWN:
        if not candidate.applies(layout):
            continue
        # beyond [0, 1] every loss on probabilities ends in its own way
        pairs = [(near, inside)] if candidate.expects == "probabilities" else [(near, inside), (far, outside)]
        asked = [(answers, probes) for answers, probes in pairs if answers is not None]
        found = _compare(candidate, asked, targets, layout)
        if found is not None:
            return found
    return None


def _answers(box: BlackBox, probes: list[Tensor], targets: Tensor) -> list[Tensor] | None:
    """The gradients at the probes; None if one is missing."""
    readings = [box.read(probe, targets) for probe in probes]
    gradients = [reading.gradient for reading in readings if reading.moves and reading.gradient is not None]
    return gradients if len(gradients) == len(probes) else None


def _compare(
    candidate: Known, asked: list[tuple[list[Tensor], list[Tensor]]], targets: Tensor, layout: Layout
) -> Match | None:
    """Whether the gradients are those of a known loss, row by row, up to each row's weight."""
    single = candidate.takes != "classes"  # elementwise: every number is a row of its own
    found: list[tuple[Tensor, Tensor]] = []
    count = 0
    for answers, probes in asked:
        for answer, probe in zip(answers, probes, strict=True):
            own = _known_gradient(candidate, layout, probe.to(answer.dtype), targets)
            user, mine = (layout.rows(gradient, targets)[0] for gradient in (answer, own))
            count = len(user)
            user, mine = (user.reshape(-1, 1), mine.reshape(-1, 1)) if single else (user, mine)
            if not bool(mine.isfinite().all()) or not _parallel(user, mine):
                return None
            found.append((user, mine))
    if not found:
        return None
    user, mine = (torch.stack(gradients) for gradients in zip(*found, strict=True))
    if candidate.takes in ("unit", "signs") and _one_sided(user, layout.rows(asked[0][1][0], targets)[1]):
        return None
    return _agreement(candidate, user, mine, count)


def _known_gradient(candidate: Known, layout: Layout, probe: Tensor, targets: Tensor) -> Tensor:
    with torch.enable_grad():
        given = probe.requires_grad_()
        (gradient,) = torch.autograd.grad(candidate.rows(layout, given, targets).sum(), given)
    return gradient


def _parallel(user: Tensor, own: Tensor) -> bool:
    """Whether every row (M, C) of one is a multiple of that of the other."""
    length, own_length = user.norm(dim=1), own.norm(dim=1)
    active = own_length > 1e-9 * own_length.max()
    if not active.any() or bool((length[~active] > _AGREE * length.max()).any()):
        return False
    ratio = torch.where(active, (user * own).sum(1) / (own_length**2).clamp(min=1e-300), 0.0)
    return bool(((user - ratio[:, None] * own).norm(dim=1) <= _AGREE * length + 1e-9 * length.max()).all())


def _agreement(candidate: Known, user: Tensor, own: Tensor, count: int) -> Match | None:
    """Compare gradients (P, M, C), parallel row by row: user = factor of the probe × weight of the row × own.

    Args:
        count: rows that the known loss averages over.
    """
    own_length = own.norm(dim=2)
    active = own_length > 1e-9 * own_length.amax(1, keepdim=True)
    ratio = torch.where(active, (user * own).sum(2) / (own_length**2).clamp(min=1e-300), 0.0)  # (P, M)
    factors, curved = torch.ones(len(ratio), 1, dtype=ratio.dtype), False
    if not _constant(ratio, active):
        common = active.all(0)
        if common.sum() < 4:  # too few rows to tell a function of the loss from anything else
            return None
        factors = ratio[:, common].abs().sum(1, keepdim=True)
        curved = True
        if not _constant(ratio / factors, active):
            return None
    signs = ratio[active & (ratio != 0)].sign()
    if not len(signs) or bool((signs != signs[0]).any()):
        return None
    weights = (ratio / factors).sum(0) / active.sum(0).clamp(min=1)
    seen = weights[active.any(0)]
    weighted = bool((seen.max() - seen.min()).abs() > 1e-2 * seen.abs().max())
    return Match(candidate, float(seen.mean() * factors.mean() * count), weighted, curved)


def _one_sided(user: Tensor, goals: Tensor) -> bool:
    """Whether the gradients (P, M, 1) are zero wherever the target is yes, or wherever it is no."""
    flat = (F.one_hot(goals, user.shape[1] // len(goals)) if goals.dim() == 1 else goals).reshape(-1) > 0.5
    silent = (user == 0).all(2).all(0)
    return any(bool(side.any()) and bool(silent[side].all()) for side in (flat, ~flat))


def _constant(ratio: Tensor, active: Tensor) -> bool:
    """Whether each row's ratio is the same at all probes."""
    mean = (ratio * active).sum(0) / active.sum(0).clamp(min=1)
    return bool((((ratio - mean).abs() * active) <= 3 * _AGREE * mean.abs() + 1e-9 * ratio.abs().max()).all())
