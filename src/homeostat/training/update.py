"""One step of training: gradients, penalties, clipping, decay, the optimizer, in that order. Not random."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import HomeostatError, NoEffectWarning
from homeostat.parts.clip import adaptive_clip_grad_, clip_grad_norm_, clip_grad_value_
from homeostat.parts.penalty import add_penalty_gradients_, decay_weights_, soft_threshold_, split_parameters
from homeostat.training.recipe import Recipe
from homeostat.training.schedule import learning_rate_factor


class Update:
    """The optimizer of a recipe, with all that happens to gradients and weights around its step.

    Args:
        model: on its device; its trainable parameters are updated.
        recipe: says how.
        steps: batches per epoch, over which the learning rate's schedule is laid out.
    Raises: HomeostatError if nothing is trainable.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps: int, device: torch.device) -> None:
        self.recipe = recipe
        self.steps = steps
        self.decayed, exempt = split_parameters(model)
        self.parameters = [*self.decayed, *exempt]
        self.optimizer = _optimizer(recipe, self.parameters)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.largest_norm = 0.0
        self.acted: set[str] = set()
        """Which ways of clipping but that by norm have changed a gradient."""

    def __call__(self, loss: Tensor, step: int) -> None:
        """Take step number `step` of the whole training, down the gradient of `loss`."""
        self._take_gradients(loss, step)
        self._move()

    def observed(self, loss: Tensor, step: int) -> dict[str, Any]:
        """Take a step as by calling, and say what happened.

        Returns: loss, learning_rate, gradient_norm (with penalties, before clipping), weight_norm (before the step) and
            update_ratio, the norm of the step over that of the weights; some as tensors of one number.
        """
        self._take_gradients(loss, step)
        gradient = _norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        before = [parameter.detach().clone() for parameter in self.parameters]
        self._move()
        size = _norm(before)
        torch._foreach_sub_(before, [parameter.detach() for parameter in self.parameters])
        return {
            "loss": loss.detach(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": gradient,
            "weight_norm": size,
            "update_ratio": _norm(before) / size,
        }

    def _take_gradients(self, loss: Tensor, step: int) -> None:
        recipe = self.recipe
        lr = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        for parameter in self.parameters:  # what zero_grad does, without its bookkeeping
            parameter.grad = None
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        if recipe.l1 or recipe.l2:
            add_penalty_gradients_(self.decayed, recipe.l1, recipe.l2)

    def _move(self) -> None:
        recipe, lr = self.recipe, self.optimizer.param_groups[0]["lr"]
        self._clip()
        if recipe.decay:
            decay_weights_(self.decayed, 1 - lr * recipe.decay)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if recipe.l1_proximal:
            soft_threshold_(self.decayed, lr * recipe.l1_proximal)

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step."""
        recipe = self.recipe
        warmup = round(recipe.warmup_epochs * self.steps)
        total = recipe.epochs * self.steps
        return recipe.learning_rate * learning_rate_factor(
            step, total, warmup, recipe.schedule, gamma=recipe.gamma, per_epoch=self.steps
        )

    def warn_if_idle(self) -> None:
        """Say so if clipping was asked for and never acted."""
        for name in ("clip_value", "clip_adaptive"):
            asked = getattr(self.recipe, name)
            if asked is not None and name not in self.acted:
                warnings.warn(f"{name}={asked:g} never acted: no gradient was so large.", NoEffectWarning, stacklevel=4)
        bound = self.recipe.clip_norm
        if bound is not None and self.largest_norm <= bound:
            largest = f"the largest gradient norm was {self.largest_norm:.3g}"
            warnings.warn(f"clip_norm={bound:g} never acted: {largest}.", NoEffectWarning, stacklevel=4)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What `load` needs to go on from here: tensors by name, and numbers that JSON can hold."""
        tensors: dict[str, Tensor] = {}
        scalars: dict[str, dict[str, Any]] = {}
        for index, slots in self.optimizer.state_dict()["state"].items():
            for slot, value in slots.items():
                if isinstance(value, Tensor):
                    tensors[f"{index}/{slot}"] = value
                else:
                    scalars.setdefault(str(index), {})[slot] = value
        return tensors, {
            "optimizer": scalars,
            "scaler": self.scaler.state_dict(),
            "largest_norm": self.largest_norm,
            "acted": sorted(self.acted),
        }

    def load(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Go on from where `state` was taken."""
        slots: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in state["optimizer"].items()}
        for name, tensor in tensors.items():
            index, slot = name.split("/")
            parameter = self.parameters[int(index)]
            if tensor.shape == parameter.shape:  # the parameter's own memory layout, as torch would have made it
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            slots.setdefault(int(index), {})[slot] = tensor
        self.optimizer.load_state_dict({"state": slots, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.scaler.load_state_dict(state["scaler"])
        self.largest_norm, self.acted = state["largest_norm"], set(state["acted"])

    def _clip(self) -> None:
        recipe = self.recipe
        if recipe.clip_value is not None:
            with self._watching("clip_value"):
                clip_grad_value_(self.parameters, recipe.clip_value)
        if recipe.clip_adaptive is not None:
            with self._watching("clip_adaptive"):
                adaptive_clip_grad_(self.parameters, recipe.clip_adaptive)
        if recipe.clip_norm is not None:
            norm = float(clip_grad_norm_(self.parameters, recipe.clip_norm))
            if math.isfinite(norm):  # others cannot be clipped; with float16 the first steps may have them
                self.largest_norm = max(self.largest_norm, norm)

    @contextmanager
    def _watching(self, name: str) -> Iterator[None]:
        """See whether the block changes a gradient; until it has done so once, since looking costs time."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if name in self.acted or not gradients:
            yield
            return
        before = torch._foreach_norm(gradients)
        yield
        pairs = zip(before, torch._foreach_norm(gradients), strict=True)
        if any(bool(old != new) for old, new in pairs):
            self.acted.add(name)


def _norm(tensors: list[Tensor]) -> Tensor:
    """Of all numbers together."""
    if not tensors:
        return torch.zeros(())
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm([tensor.float() for tensor in tensors])))


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The update rule alone: decay and penalties are not its. The fused forms update all parameters in one call."""
    if not parameters:
        raise HomeostatError("fit: the model has no trainable parameters. Set requires_grad on those to train.")
    options: dict[str, Any] = {"lr": recipe.learning_rate, "fused": all(p.is_floating_point() for p in parameters)}
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=recipe.momentum, **options)
    return torch.optim.Adam(parameters, betas=(recipe.momentum, 0.999), **options)
