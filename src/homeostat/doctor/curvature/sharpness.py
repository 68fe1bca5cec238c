"""Curvature of the loss, on demand: its largest eigenvalues, whether the optimizer stands them, the loss along a step.

Everything happens on a copy. The Hessian is known by its products with vectors: a second backward pass, or differences
of gradients where an operation has none. Random layers draw the same masks in every evaluation; the first vector is
drawn from a stream of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from homeostat import seeds
from homeostat.doctor.curvature.lanczos import lanczos
from homeostat.doctor.curvature.stability import Stability, stability_of
from homeostat.doctor.curvature.surface import Method, Surface
from homeostat.doctor.examples import Examples
from homeostat.doctor.training import Training
from homeostat.errors import HomeostatError, invalid, invalid_type, unknown
from homeostat.parts.modes import device_of

MOST_EXAMPLES = 512
"""Of a training's data, if no batch is given. The sharpness of few examples is above that of many."""


@dataclass(frozen=True)
class Curvature:
    """What was found at the present weights, on one batch."""

    sharpness: float
    """The largest eigenvalue of the Hessian in the optimizer's metric, coupled weight decay included."""
    eigenvalues: tuple[float, ...]
    """As many as were asked for, falling; the first is the sharpness."""
    limit: float
    """The sharpness beyond which the optimizer's steps diverge along that eigenvector; NaN where it is not known."""
    preconditioned: bool
    """Whether the metric is that of an adaptive optimizer; otherwise the eigenvalues are those of the Hessian."""
    method: str
    """"double backward", or "finite differences" and their precision."""
    iterations: int
    """Products with the Hessian."""
    converged: bool
    residual: float
    """A bound on the relative error of the eigenvalues."""
    loss: float
    gradient: float
    """The norm of the loss's gradient."""
    losses: tuple[tuple[float, float], ...]
    """Pairs (multiple of the optimizer's step, loss there); empty without an optimizer."""
    note: str = ""
    """Why there is no limit."""

    @property
    def ratio(self) -> float:
        """Sharpness over its limit: above 1 a step overshoots by more than it came from. Training at the edge of
        stability hovers around 1."""
        return self.sharpness / self.limit

    @property
    def best_multiple(self) -> float:
        """The multiple of the step with the lowest loss among those tried; NaN if there is none."""
        finite = [(loss, multiple) for multiple, loss in self.losses if math.isfinite(loss)]
        return min(finite)[1] if finite else math.nan


def curvature(
    subject: Training | nn.Module,
    batch: Examples | tuple[Any, Tensor] | None = None,
    *,
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: Optimizer | None = None,
    top: int = 1,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    method: Method = "auto",
    seed: int = 0,
) -> Curvature:
    """The sharpness of the loss at the present weights, beside what the optimizer stands.

    Args:
        subject: a Training; or a model, with `batch`, `loss_fn` and perhaps `optimizer`. It runs in its present mode
            and is not changed.
        batch: (inputs, targets); None takes the first examples of the Training.
        loss_fn, optimizer: for a model.
        top: how many eigenvalues.
        tolerance: of their residuals, relative to the largest.
        max_iterations: products with the Hessian, each two or three times as expensive as a gradient.
        method: "double_backward" raises an error where an operation has no second derivative, "differences" takes
            differences of gradients, in double precision if the model runs in it; "auto" the first that works.
        seed: of the first vector and of random layers.
    Returns: over the parameters that require gradients, and that the optimizer holds if there is one.
    Raises: InvalidType, InvalidValue; HomeostatError if loss or gradient are not finite.
    Source: Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484; Pearlmutter 1994 (products).
    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> data = torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1)
        >>> found = curvature(
        ...     model, data, loss_fn=nn.MSELoss(), optimizer=torch.optim.SGD(model.parameters(), lr=0.1)
        ... )
        >>> round(found.sharpness, 3), round(found.limit, 3), round(found.ratio, 3)
        (9.0, 20.0, 0.45)
    """
    if method not in ("auto", "double_backward", "differences"):
        raise unknown("curvature", "method", method, ("auto", "double_backward", "differences"))
    with_optimizer = optimizer is not None or isinstance(subject, Training)
    training, examples = _subject(subject, batch, loss_fn, optimizer)
    surface = Surface(training.copy(), examples, seed, with_optimizer)
    loss, gradient = surface.gradient()
    size = float(gradient.norm())
    if not math.isfinite(loss) or not math.isfinite(size):
        cure = (
            "Curvature is defined at weights where loss and gradient are finite; `watch` says where they cease to be."
        )
        raise HomeostatError(f"curvature: the loss is {loss} and its gradient's norm {size} at these weights. {cure}")
    stability = Stability(math.nan, note="no optimizer was given")
    losses: tuple[tuple[float, float], ...] = ()
    if with_optimizer:
        stability = stability_of(surface.training.optimizer, surface.parameters)
        losses = surface.along_the_step()
    operator = _in_metric(surface.products(method), stability, surface.parameters)
    start = torch.randn(gradient.numel(), generator=seeds.torch_generator(seed, "curvature", "start"))
    found = lanczos(
        operator,
        start.to(surface.parameters[0]),
        top=min(top, gradient.numel()),
        tolerance=tolerance,
        max_iterations=max_iterations,
    )
    if math.isnan(found.values[0]):
        raise HomeostatError(
            "curvature: a product with the Hessian is not finite. Is the model at the edge of overflow?"
        )
    return Curvature(
        found.values[0],
        found.values,
        stability.limit,
        stability.preconditioned,
        surface.method,
        found.products,
        found.converged,
        found.residual,
        loss,
        size,
        losses,
        stability.note,
    )


def _in_metric(
    apply: Callable[[Tensor], Tensor], stability: Stability, parameters: Sequence[Tensor]
) -> Callable[[Tensor], Tensor]:
    """The symmetric operator with the eigenvalues of P^-1 (H + decay)."""
    if math.isnan(stability.limit):
        return apply
    like = parameters[0]
    scales = [torch.as_tensor(s, dtype=like.dtype).to(like.device) for s in stability.scales]
    root = torch.cat([s.expand_as(p).reshape(-1) for s, p in zip(scales, parameters, strict=True)]).sqrt()
    decay = torch.cat([like.new_full((p.numel(),), d) for d, p in zip(stability.decays, parameters, strict=True)])

    def scaled(vector: Tensor) -> Tensor:
        inner = root * vector
        return root * (stability.sign * apply(inner) + decay * inner)

    return scaled


def _subject(subject: Any, batch: Any, loss_fn: Any, optimizer: Any) -> tuple[Training, Examples]:
    """A training and a batch of it."""
    if isinstance(subject, Training):
        if loss_fn is not None or optimizer is not None:
            given = "loss_fn" if loss_fn is not None else "optimizer"
            raise invalid("curvature", given, "be left out with a Training", given, "The training has its own.")
        if batch is None:
            return subject, subject.examples("train").head(MOST_EXAMPLES)
        return subject, _examples(batch, subject.model)
    if not isinstance(subject, nn.Module):
        raise invalid_type("curvature", "subject", "be a Training or a torch.nn.Module", subject)
    if batch is None or loss_fn is None:
        missing = "batch" if batch is None else "loss_fn"
        raise invalid_type("curvature", missing, "be given with a model", None, "Or pass a Training.")
    trainable = [parameter for parameter in subject.parameters() if parameter.requires_grad]
    if not trainable:
        raise invalid("curvature", "subject", "have parameters that require gradients", type(subject).__name__)
    examples = _examples(batch, subject)
    optimizer = optimizer if optimizer is not None else SGD(trainable, lr=1.0)
    data = (examples.inputs, examples.targets)
    return Training(subject, loss_fn, optimizer, data, None, batch_size=len(examples), epochs=1), examples


def _examples(batch: Any, model: nn.Module) -> Examples:
    if isinstance(batch, Examples):
        return batch.to(device_of(model))
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise invalid_type("curvature", "batch", "be (inputs, targets)", batch)
    return Examples(batch[0], batch[1], len(batch[1])).to(device_of(model))
