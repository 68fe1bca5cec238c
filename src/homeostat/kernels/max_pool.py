"""Maximum pooling by 2x2 windows side by side: checks, choice of the backend, gradient. Not random.

torch keeps the input and an int64 index per window for the gradient, and fills the gradient with zeros before it writes
the few others. Here a byte per window says which of its four values was the largest, and the gradient is written in one
pass. The arithmetic is in `max_pool_cpu` and `_reference`. Spreading by places and picking by places are linear and
each other's gradient, so derivatives of every order come from the two.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation
from homeostat.kernels.layout import channels_are_last, memory_format
from homeostat.kernels.operator import Operator


def is_compiled(input: Tensor) -> bool:
    """Whether `max_pool` runs compiled code on this input: float32 or float64 on a CPU, channels last in memory."""
    return input.is_cpu and input.dtype in (torch.float32, torch.float64) and channels_are_last(input)


def _implementation(input: Tensor, backend: str | None) -> ModuleType:
    choose("max_pool", input, backend)
    if backend == "triton":
        raise invalid("max_pool", "backend", "be 'numba', 'reference' or None", backend, "It has no GPU kernel.")
    if backend == "numba" and not channels_are_last(input):
        cure = "Convert it with .contiguous(memory_format=torch.channels_last)."
        raise invalid("max_pool", "input", "have its channels last in memory for backend 'numba'", input, cure)
    return implementation("max_pool", "numba" if backend != "reference" and is_compiled(input) else "reference")


def _check(input: Tensor) -> None:
    if not input.dtype.is_floating_point:
        raise invalid_type("max_pool", "input", "be floating", input)
    if input.dim() != 4 or min(input.shape[1:]) < 1 or min(input.shape[2:]) < 2:
        raise invalid("max_pool", "input", "have shape (N, C, H, W) with C > 0, H and W > 1", input)


def _check_places(tensor: Tensor, places: Tensor, shape: tuple[int, ...]) -> None:
    if places.dtype is not torch.uint8 or tuple(places.shape) != shape or places.device != tensor.device:
        raise invalid("max_pool", "places", f"be uint8 of shape {shape} on {tensor.device}", places)


def _compute(input: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(input)
    found: tuple[Tensor, Tensor] = _implementation(input, backend).pool(input)
    return found


def _shape(input: Tensor, backend: str | None) -> tuple[Tensor, Tensor]:
    _check(input)
    height, width = input.shape[2:]
    size = (*input.shape[:2], height // 2, width // 2)
    form = memory_format(input)
    output = torch.empty(size, dtype=input.dtype, device=input.device, memory_format=form)
    return output, torch.empty_like(output, dtype=torch.uint8)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    input, ctx.backend = inputs
    ctx.size = tuple(input.shape[2:])
    ctx.save_for_backward(output[1])


def _gradient(ctx: Any, grad: Tensor, _: None) -> tuple[Any, ...]:
    return max_pool_spread(grad, ctx.saved_tensors[0], *ctx.size, ctx.backend), None


max_pool = Operator(
    "max_pool(Tensor input, str? backend) -> (Tensor, Tensor)", _compute, _shape, setup=_setup, gradient=_gradient
)
"""The largest value of every 2x2 window, and where it was.

What torch.nn.functional.max_pool2d(input, 2) gives, bit for bit, the gradient too: of equal values the first counts, of
values that are not numbers the last; an odd last row or column is left out.

Args:
    input: floating, shape (N, C, H, W), H and W at least 2.
    backend: 'numba' (channels last in memory), 'reference' or None; there is no GPU kernel.
Returns: the values, shape (N, C, H // 2, W // 2), in the input's memory format; their places in the windows, uint8 of
    the same shape: 0 and 1 above, 2 and 3 below.
Raises: InvalidValue, InvalidType for arguments outside of what is said above.
"""


def _compute_spread(grad: Tensor, places: Tensor, height: int, width: int, backend: str | None) -> Tensor:
    _check_places(grad, places, (*grad.shape[:2], height // 2, width // 2))
    if channels_are_last(places) and not channels_are_last(grad):
        grad = grad.contiguous(memory_format=torch.channels_last)
    found: Tensor = _implementation(grad, backend).spread(grad, places, height, width)
    return found


def _shape_spread(grad: Tensor, places: Tensor, height: int, width: int, backend: str | None) -> Tensor:
    size = (*grad.shape[:2], height, width)
    return torch.empty(size, dtype=grad.dtype, device=grad.device, memory_format=memory_format(places))


def _setup_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensor, places, *_, ctx.backend = inputs
    ctx.size = tuple(tensor.shape[2:])
    ctx.save_for_backward(places)


def _gradient_spread(ctx: Any, further: Tensor) -> tuple[Any, ...]:
    return max_pool_pick(further, ctx.saved_tensors[0], ctx.backend), None, None, None, None


max_pool_spread = Operator(
    "max_pool_spread(Tensor grad, Tensor places, int height, int width, str? backend) -> Tensor",
    _compute_spread, _shape_spread, setup=_setup_places, gradient=_gradient_spread,
)  # fmt: skip
"""The gradient of `max_pool`: zeros of shape (N, C, height, width) with grad at the windows' places."""


def _compute_pick(input: Tensor, places: Tensor, backend: str | None) -> Tensor:
    height, width = input.shape[2:]
    _check_places(input, places, (*input.shape[:2], height // 2, width // 2))
    found: Tensor = implementation("max_pool", "reference").pick(input, places)
    return found


def _shape_pick(input: Tensor, places: Tensor, backend: str | None) -> Tensor:
    return torch.empty_like(places, dtype=input.dtype)


def _gradient_pick(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return max_pool_spread(grad, ctx.saved_tensors[0], *ctx.size, ctx.backend), None, None


max_pool_pick = Operator(
    "max_pool_pick(Tensor input, Tensor places, str? backend) -> Tensor",
    _compute_pick, _shape_pick, setup=_setup_places, gradient=_gradient_pick,
)  # fmt: skip
"""The values at the windows' places, shape (N, C, H // 2, W // 2): the gradient of `max_pool_spread`."""
