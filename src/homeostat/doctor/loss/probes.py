"""Outputs and targets that a loss is tried on.

Outputs are drawn from streams of their own, so that the same loss is always asked the same; global random state stays
as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.doctor.loss.layout import Layout

if TYPE_CHECKING:
    from homeostat.doctor.training import Training

MOST_OUTPUTS = 1 << 23
"""Numbers of outputs that are tested at once: a dozen probes of these in double precision are a gigabyte."""

_MOST_EXAMPLES = 32  # enough for shares in steps of 3 %; tests cost a few dozen calls of the loss
_MOST_NUMBERS = 1 << 18  # of outputs: beyond it, fewer examples, and fewer positions of one


def interior(outputs: Tensor, targets: Tensor, layout: Layout, seed: int) -> Tensor:
    """Outputs that nearly every loss takes, shaped like `outputs`; float64.

    For targets in [0, 1] and classes: numbers in [0.04, 0.96], which are probabilities and logits alike, summing to one
    over classes for even seeds. For other targets: the targets with noise of unit scale and of the targets' own.
    """
    generator = seeds.torch_generator(seed, "loss", "interior")
    shape = outputs.shape
    if layout.form == "same" and not in_unit(targets):
        goals = targets.detach().cpu().double().reshape(len(targets), -1)
        goals = goals.expand(len(goals), shape[1:].numel()).reshape(shape) if goals.numel() else torch.zeros(shape)
        scale = float(goals.std()) if goals.numel() > 1 else 1.0
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        wide = torch.rand(shape, generator=generator) < 0.5
        return (goals + noise * torch.where(wide, max(scale, 1.0), 1.0)).to(outputs.device)
    return unit(outputs, targets, layout, seed)


def unit(outputs: Tensor, targets: Tensor, layout: Layout, seed: int) -> Tensor:
    """Outputs within [0.04, 0.96], summing to one over classes for even seeds; float64."""
    generator = seeds.torch_generator(seed, "loss", "unit")
    values = 0.04 + 0.92 * torch.rand(outputs.shape, generator=generator, dtype=torch.float64)
    if layout.form in ("index", "one-hot") and seed % 2 == 0:
        values = values / values.sum(layout.axis, keepdim=True)
    return values.to(outputs.device)


def spread(outputs: Tensor, targets: Tensor, seed: int) -> Tensor:
    """Outputs of both signs and some size, as logits are, shaped like `outputs`; float64."""
    generator = seeds.torch_generator(seed, "loss", "spread")
    return (2 * torch.randn(outputs.shape, generator=generator, dtype=torch.float64)).to(outputs.device)


def in_unit(targets: Tensor) -> bool:
    """Whether all targets lie in [-1, 1], as truth values, signs and probabilities do."""
    return bool(targets.numel()) and bool(((targets >= -1) & (targets <= 1)).all())


def positive(outputs: Tensor) -> Tensor:
    """Outputs above zero of unit size, for losses that take logarithms; float64."""
    generator = seeds.torch_generator(0, "loss", "positive")
    return (0.1 + torch.rand(outputs.shape, generator=generator, dtype=torch.float64)).to(outputs.device)


def various(targets: Tensor, layout: Layout, most: int) -> Tensor:
    """Indices of a few examples with as different targets as there are, in a mixed order; shape (n,), n <= most."""
    count = len(targets)
    flat = targets.reshape(count, -1)
    labels = flat.argmax(1) if layout.form == "one-hot" else flat[:, 0]
    order = torch.argsort(labels.double(), stable=True)
    picked = order[torch.linspace(0, count - 1, min(most, count), device=order.device).round().long()]
    return picked[torch.randperm(len(picked), generator=seeds.torch_generator(0, "loss", "order")).to(picked.device)]


def probe_batches(training: Training, outputs: Tensor, own: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor]]:
    """Small batches to test with, outputs in shape only: first of as many classes as the training data have, then of
    the batch's own, at last the batch as it is, for a loss that takes no other."""
    few = [own[_few(own, layout, outputs)]] if len(own) else []
    with suppress(Exception):  # data that cannot be read are somebody else's finding
        targets = training.examples("train").targets
        if targets.shape[1:] == own.shape[1:] and targets.dtype == own.dtype:
            few.insert(0, targets[_few(targets, layout, outputs)].to(own.device))
    for targets in few:
        yield from _shortened(outputs, targets, layout)
    if len(own) and outputs.numel() <= MOST_OUTPUTS:
        yield torch.zeros_like(outputs), own


def _few(targets: Tensor, layout: Layout, outputs: Tensor) -> Tensor:
    return various(targets, layout, max(4, min(_MOST_EXAMPLES, _MOST_NUMBERS // max(1, outputs[:1].numel()))))


def _shortened(outputs: Tensor, targets: Tensor, layout: Layout) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs and targets with fewer positions where there are many, then as they are where they are not too many."""
    sizes = outputs.shape[1:]
    count = len(targets) * sizes.numel()
    if count > _MOST_NUMBERS and layout.form == "index" and targets.dim() > 1:
        length = max(1, int(_MOST_NUMBERS // (len(targets) * outputs.shape[layout.axis])))
        for axis in range(1, targets.dim()):
            targets = targets.narrow(axis, 0, min(targets.shape[axis], length))
            length = max(1, length // targets.shape[axis])
        sizes = torch.Size((*targets.shape[1 : layout.axis], outputs.shape[layout.axis], *targets.shape[layout.axis :]))
    if len(targets) * sizes.numel() <= MOST_OUTPUTS:
        yield outputs.new_zeros(len(targets), *sizes), targets
