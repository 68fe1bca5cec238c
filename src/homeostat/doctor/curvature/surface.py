"""The loss of a training's copy as a surface over its weights: gradient, products with the Hessian, loss along a step.

Random layers draw the same masks in every evaluation, from a stream of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from homeostat import seeds
from homeostat.doctor.examples import Examples
from homeostat.doctor.training import Training
from homeostat.errors import HomeostatError, invalid
from homeostat.parts.clip import clip_grad_norm_, clip_grad_value_
from homeostat.parts.modes import map_tensors, uncompiled

Method = Literal["auto", "double_backward", "differences"]

MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
"""Of the optimizer's step, at which the loss is taken."""


class Surface:
    """Loss, gradient and products with the Hessian at the weights of a training's copy, on one batch."""

    def __init__(self, training: Training, examples: Examples, seed: int, with_optimizer: bool) -> None:
        self.training, self.examples, self.seed = training, examples, seed
        held = {id(p) for group in training.optimizer.param_groups for p in group["params"]}
        trainable = [p for p in training.model.parameters() if p.requires_grad]
        self.parameters = [p for p in trainable if id(p) in held or not with_optimizer]
        if not self.parameters:
            raise invalid("curvature", "optimizer", "hold parameters of the model that require gradients", len(held))
        self.method = "double backward"
        if any(p.dtype in (torch.float16, torch.bfloat16) for p in self.parameters):
            self._convert(torch.float32)

    def gradient(self) -> tuple[float, Tensor]:
        """Loss and its gradient, shape (n,)."""
        with self._running():
            loss = self._loss()
            return loss.item(), _flat(self._gradients(loss), self.parameters)

    def products(self, method: Method) -> Callable[[Tensor], Tensor]:
        """v -> H v, both shape (n,)."""
        if method != "differences":
            try:
                apply = self._double_backward()
                apply(torch.ones_like(_flat(self.parameters, self.parameters)))
                return apply
            except (RuntimeError, NotImplementedError) as error:
                if method == "double_backward" or isinstance(error, torch.OutOfMemoryError):
                    cure = 'Pass method="differences".'
                    raise HomeostatError(f"curvature: the model has no second derivative: {error}. {cure}") from error
        return self._differences()

    @torch.no_grad()
    def along_the_step(self) -> tuple[tuple[float, float], ...]:
        """Pairs of a multiple of the optimizer's step and the loss there."""
        before = _flat(self.parameters, self.parameters)
        try:
            with self._running():
                self._step()
            step = _flat(self.parameters, self.parameters) - before
            found = []
            for multiple in MULTIPLES:
                self._place(before + multiple * step)
                with self._running(), torch.no_grad():
                    found.append((multiple, self._loss().item()))
            return tuple(found)
        finally:
            self._place(before)

    def _step(self) -> None:
        """One step of the copied optimizer, with the training's own clipping."""

        def closure() -> Tensor:
            with torch.enable_grad():
                loss = self._loss()
                for parameter, gradient in zip(self.parameters, self._gradients(loss), strict=True):
                    parameter.grad = gradient
            self._clip()
            return loss

        optimizer: Any = self.training.optimizer
        if isinstance(optimizer, torch.optim.LBFGS):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    def _clip(self) -> None:
        kind, bound = self.training.clip or ("", 0.0)
        if kind == "norm":
            clip_grad_norm_(self.parameters, bound)
        elif kind == "value":
            clip_grad_value_(self.parameters, bound)

    def _loss(self) -> Tensor:
        with seeds.isolated(self.seed, "curvature", "masks"):
            return self.training.loss(self.training.predict(self.examples.inputs), self.examples.targets)

    def _gradients(self, loss: Tensor, create_graph: bool = False) -> tuple[Tensor | None, ...]:
        if not loss.requires_grad:
            return (None,) * len(self.parameters)
        return torch.autograd.grad(loss, self.parameters, create_graph=create_graph, allow_unused=True)

    def _double_backward(self) -> Callable[[Tensor], Tensor]:
        with self._running():
            gradients = self._gradients(self._loss(), create_graph=True)
        _check_differentiable(gradients)
        curved = [(g, place) for place, g in enumerate(gradients) if g is not None and g.requires_grad]

        def apply(vector: Tensor) -> Tensor:
            if not curved:  # the loss is linear in the weights
                return torch.zeros_like(vector)
            parts = _parts(vector, self.parameters)
            found = torch.autograd.grad(
                [gradient for gradient, _ in curved],
                self.parameters,
                [parts[place] for _, place in curved],
                retain_graph=True,
                allow_unused=True,
            )
            return _flat(found, self.parameters)

        return apply

    def _differences(self) -> Callable[[Tensor], Tensor]:
        precise = self._in_double()
        self.method = f"finite differences in {'float64' if precise else str(self.parameters[0].dtype).split('.')[1]}"
        base = _flat(self.parameters, self.parameters)
        # the cube root balances rounding against curvature's own change, for differences to both sides
        width = torch.finfo(base.dtype).eps ** (1 / 3) * (1 + float(base.norm()))

        def apply(vector: Tensor) -> Tensor:
            length = vector.norm()
            if not length:
                return torch.zeros_like(vector)
            shift = vector * (width / length)
            try:
                self._place(base + shift)
                ahead = self.gradient()[1]
                self._place(base - shift)
                return (ahead - self.gradient()[1]) * (length / (2 * width))
            finally:
                self._place(base)

        return apply

    def _in_double(self) -> bool:
        """Go on in double precision; False, and all as before, if the model cannot."""
        before = self.parameters[0].dtype
        self._convert(torch.float64)
        try:
            return math.isfinite(self.gradient()[0])
        except (RuntimeError, TypeError, ValueError):
            self._convert(before)
            return False

    def _convert(self, dtype: torch.dtype) -> None:
        self.training.model.to(dtype)
        if isinstance(self.training.loss_fn, nn.Module):
            self.training.loss_fn.to(dtype)
        inputs, targets = (
            map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, nest)
            for nest in (self.examples.inputs, self.examples.targets)
        )
        self.examples = Examples(inputs, targets, self.examples.total)

    @torch.no_grad()
    def _place(self, weights: Tensor) -> None:
        for parameter, part in zip(self.parameters, _parts(weights, self.parameters), strict=True):
            parameter.copy_(part)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Gradients on, models as they were written, and attention in its form that has second derivatives."""
        with torch.enable_grad(), uncompiled(self.training.model), sdpa_kernel(SDPBackend.MATH):
            yield


def _check_differentiable(gradients: Sequence[Tensor | None]) -> None:
    """Raise a RuntimeError where an operation said that it can be differentiated once.

    Torch only raises one itself if it has to pass through; where it finds another way, it would leave out a part.
    """
    open_nodes: list[Any] = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    seen = set(open_nodes)
    while open_nodes:
        node = open_nodes.pop()
        if node.name() == "torch::autograd::Error":
            raise RuntimeError("an operation is marked as once_differentiable")
        found = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= found
        open_nodes.extend(found)


def _flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """All values in one vector; None counts as zeros."""
    parts = []
    for tensor, other in zip(tensors, like, strict=True):
        found = torch.zeros_like(other) if tensor is None else tensor.detach()
        dense = found if found.layout == torch.strided else found.to_dense()
        parts.append(dense.reshape(-1).to(like[0]))
    return torch.cat(parts)


def _parts(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The vector cut into tensors of the parameters' shapes."""
    pieces = vector.split([parameter.numel() for parameter in like])
    return [piece.view(p.shape).to(p) for piece, p in zip(pieces, like, strict=True)]
