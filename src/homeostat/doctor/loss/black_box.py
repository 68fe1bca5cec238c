"""Calling a loss function of which nothing is known but that it takes outputs and targets.

`BlackBox.read` gives the loss and its gradient with respect to the outputs, or says why there is none: exceptions,
warnings and random draws of the user's function stay inside, and so do changes of its buffers. Nothing here judges.
Not random: a loss that draws numbers gets the same ones at every call.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from homeostat import seeds

Loss = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True, eq=False)
class Reading:
    """What a loss function answered once."""

    value: float = math.nan
    """The loss; nan if there is none."""
    gradient: Tensor | None = None
    """With respect to the outputs, in their shape; None if the loss has no gradient there."""
    error: str = ""
    """What the function raised, or what is wrong with what it returned; empty if it answered."""

    @property
    def answered(self) -> bool:
        """Whether there is a loss at all, finite or not."""
        return not self.error

    @property
    def usable(self) -> bool:
        """Whether the loss and its gradient are there and finite."""
        finite = self.answered and math.isfinite(self.value)
        return finite and self.gradient is not None and bool(self.gradient.isfinite().all())

    @property
    def moves(self) -> bool:
        """Whether the loss is usable and its gradient is not zero everywhere."""
        return self.usable and bool((self.gradient != 0).any())  # type: ignore[union-attr]


class BlackBox:
    """A user's loss function, to be asked again and again.

    Args:
        loss: called with outputs and targets; returns a scalar tensor.
        dtype: the precision that outputs and floating targets are given in.
    Example:
        >>> box = BlackBox(nn.functional.mse_loss)
        >>> reading = box.read(torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0]))
        >>> reading.value, reading.gradient
        (5.0, tensor([1., 3.], dtype=torch.float64))
    """

    def __init__(self, loss: Loss, dtype: torch.dtype = torch.float64) -> None:
        self.loss = loss
        self.dtype = dtype
        self._draws: bool | None = None  # whether the loss draws numbers; setting seeds takes longer than most losses

    def read(self, outputs: Tensor, targets: Tensor) -> Reading:
        """The loss and its gradient for these outputs."""
        given = outputs.detach().to(self.dtype).requires_grad_()
        goal = targets.detach().to(self.dtype) if targets.is_floating_point() else targets.detach()
        goal = goal.clone()  # a loss may write into its arguments
        state = _state(self.loss)
        try:
            with self._quiet(), torch.enable_grad():
                return _read(self.loss, given, goal)
        except Exception as error:
            return Reading(error=f"{type(error).__name__}: {error}"[:300])
        finally:
            _restore(state)

    def penalizes(self, outputs: Tensor, targets: Tensor) -> bool:
        """Whether the loss depends on parameters by itself, not through the outputs."""
        fixed = outputs.detach().to(self.dtype)
        state = _state(self.loss)
        try:
            with self._quiet(), torch.enable_grad():
                returned = self.loss(fixed, targets.to(self.dtype) if targets.is_floating_point() else targets)
                return isinstance(returned, Tensor) and returned.grad_fn is not None
        except Exception:  # it has nothing to say; `read` tells why
            return False
        finally:
            _restore(state)

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Without warnings, and on the same random numbers at every call if the loss draws any."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._draws is False:
                yield
                return
            with seeds.isolated(0, "loss"):
                before = _drawn()
                yield
                self._draws = bool(self._draws) or _drawn() != before

    def broadcasts(self, outputs: Tensor, targets: Tensor) -> str:
        """The first elementwise operation of the loss that made each example meet all others; "" if there is none.

        Returns: such as "sub of (32, 1) and (32,) gave (32, 32)".
        """
        spread = _Broadcasting(len(outputs))
        with spread:
            self.read(outputs, targets)
        return spread.found


def choose_box(loss: Loss, outputs: Tensor, targets: Tensor) -> BlackBox:
    """The loss in double precision if it takes that, else in single."""
    double, single = BlackBox(loss), BlackBox(loss, torch.float32)
    return single if single.read(outputs, targets).answered and not double.read(outputs, targets).answered else double


def _read(loss: Loss, outputs: Tensor, targets: Tensor) -> Reading:
    returned = loss(outputs.clone(), targets)  # the loss may work in place on what it is given
    if not isinstance(returned, Tensor):
        return Reading(error=f"the loss is a {type(returned).__name__}, not a tensor")
    if returned.numel() != 1:
        return Reading(error=f"the loss has shape {tuple(returned.shape)}, not a scalar's")
    value = float(returned.detach())
    if not returned.requires_grad:
        return Reading(value)
    (gradient,) = torch.autograd.grad(returned.sum(), outputs, allow_unused=True)
    return Reading(value, gradient)


def _drawn() -> tuple[object, ...]:
    """What changes when somebody draws from global random state."""
    numpy: Any = np.random.get_state()  # noqa: NPY002 - the legacy global state is the one other people's code reads
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2]


def _state(loss: Any) -> list[tuple[Tensor, Tensor]]:
    """Buffers of a loss that is a module, or a module's method, with copies of their values."""
    owner = loss if isinstance(loss, nn.Module) else getattr(loss, "__self__", None)
    return [(buffer, buffer.clone()) for buffer in owner.buffers()] if isinstance(owner, nn.Module) else []


def _restore(state: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in state:
            buffer.copy_(value)


class _Broadcasting(TorchFunctionMode):
    """Notes the first function whose result pairs every example with every other."""

    def __init__(self, examples: int) -> None:
        super().__init__()
        self.examples = examples
        self.found = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and compare shapes."""
        result = func(*args, **(kwargs or {}))
        if not self.found and isinstance(result, Tensor):
            with suppress(Exception):
                self._compare(getattr(func, "__name__", "function").strip("_"), args, result)
        return result

    def _compare(self, name: str, args: Any, result: Tensor) -> None:
        shapes = [tuple(each.shape) for each in args if isinstance(each, Tensor)]
        n = self.examples
        if len(shapes) < 2 or n < 2 or name in _PRODUCTS or max(shape.count(n) for shape in shapes[:2]) > 1:
            return
        spread = tuple(torch.broadcast_shapes(*shapes[:2])) if name in _ELEMENTWISE else tuple(result.shape)
        if spread.count(n) >= 2 and math.prod(spread) > max(map(math.prod, shapes[:2])):
            self.found = f"{name} of {shapes[0]} and {shapes[1]} gave {spread}"


_ELEMENTWISE = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
"""Losses that pair examples inside, where no mode looks."""

_PRODUCTS = frozenset({"matmul", "mm", "bmm", "einsum", "outer", "ger", "cdist", "addmm", "rmatmul", "tensordot"})
"""Functions that pair examples on purpose."""
