"""One training batch, forward and backward, on a copy: what every layer put out, and what gradient came back.

Activations that a model calls as bare functions are seen as well, under the name of the layer before them. The copy
runs in the modes of the user's model, with a random stream of its own, as a step of the training would. Not random
beyond that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from homeostat import seeds
from homeostat.doctor.examples import Examples
from homeostat.doctor.network.hooks import Watcher
from homeostat.doctor.network.layers import LayerFacts, norm_of
from homeostat.doctor.network.signals import Signal, signal_of
from homeostat.doctor.training import Training
from homeostat.parts.modes import uncompiled


@dataclass(frozen=True)
class Clipping:
    """What clipping does to the gradient of the batch."""

    kind: str
    bound: float
    norm: float
    """Of the whole gradient."""
    share: float
    """Of entries beyond the bound, for clipping by value; 1 or 0 by norm."""
    cosine: float
    """Between the gradient and what clipping leaves of it."""


@dataclass(frozen=True)
class Probe:
    """What one batch showed."""

    layers: tuple[LayerFacts, ...]
    """In the order of their first call."""
    outputs: Tensor
    """What the loss took, shape (examples, ...)."""
    targets: Tensor
    loss: float
    gradients: dict[str, float]
    """The norm of each parameter's gradient; nan if it is not finite; parameters without gradient are missing."""
    inputs: Signal | None
    """Of the model's input; None if that is not one floating tensor."""
    clipping: Clipping | None = None
    error: str = ""
    """What backward raised."""
    drops: tuple[float, ...] = ()
    """The probabilities with which dropout functions dropped that no dropout layer called."""

    def of(self, *roles: str) -> tuple[LayerFacts, ...]:
        """The layers with these roles."""
        return tuple(layer for layer in self.layers if layer.role in roles)

    def layer(self, name: str) -> LayerFacts | None:
        """The layer with this name."""
        return next((layer for layer in self.layers if layer.name == name), None)

    @property
    def gradient_norm(self) -> float:
        """The norm of the whole gradient."""
        return math.sqrt(sum(norm * norm for norm in self.gradients.values()))


def take(training: Training, batch: Examples) -> Probe:
    """Send one batch forward and backward through a copy of a training.

    Args:
        training: left as it is.
        batch: on the model's device; augmented as the training does.
    Returns: what was seen; where backward fails, without gradients and with the reason.
    Raises: whatever the user's augmentation, model or loss raise in the forward pass.
    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> data = torch.randn(32, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(32, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
        >>> training = Training(model, nn.MSELoss(), optimizer, data, data, batch_size=32, epochs=1)
        >>> [layer.role for layer in take(training, training.examples("train")).layers]
        ['weight', 'activation', 'weight']
    """
    own = training.copy()
    watcher = Watcher(own.model, len(batch))
    with seeds.isolated(0, "doctor", "probe"), uncompiled(own.model):
        inputs = batch.inputs if own.augment is None else own.augment(batch.inputs)
        first = inputs if isinstance(inputs, Tensor) and inputs.is_floating_point() else None
        given = None if first is None or first.dim() < 2 else signal_of(first, 1)
        with torch.enable_grad(), watcher.watching():
            outputs = own.predict(inputs)
        outputs = outputs.clone() if outputs.requires_grad else outputs  # a loss may write into what it gets
        loss = own.loss(outputs, batch.targets)
        error = _backward(loss)
    named = dict(own.model.named_parameters())
    gradients = {name: norm_of(p.grad) for name, p in named.items() if p.grad is not None}
    layers = tuple(seen.facts(watcher.weights) for seen in watcher.seen)
    return Probe(
        layers, outputs.detach(), batch.targets, float(loss.detach()), gradients, given, _clipping(own), error,
        tuple(watcher.drops),
    )  # fmt: skip


def _backward(loss: Tensor) -> str:
    try:
        loss.backward()
    except Exception as error:  # no parameter has a gradient, or the user's function has none
        return f"{type(error).__name__}: {error}"
    return ""


def _clipping(training: Training) -> Clipping | None:
    if training.clip is None:
        return None
    kind, bound = training.clip
    held = [p.grad for group in training.optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients = [each.detach().to_dense().double().flatten() for each in held]
    if not gradients:
        return None
    whole = torch.cat(gradients)
    norm = float(whole.norm())
    if kind == "norm":
        return Clipping(kind, bound, norm, float(norm > bound), 1.0)
    kept = whole.clamp(-bound, bound)
    cosine = float(torch.nn.functional.cosine_similarity(whole, kept, dim=0)) if norm > 0 else 1.0
    return Clipping(kind, bound, norm, float((whole.abs() > bound).double().mean()), cosine)
