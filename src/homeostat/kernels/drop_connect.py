"""A linear map whose weights are dropped for every example anew, without storing masks or masked weights.

Three products of the same masked kind, each of which is linear in both of its tensors: their gradients are one
another's values, to every order. The arithmetic is in `drop_connect_cpu` and `_reference`.
Random: a mask is a pure function of a seed, the example and the weight's place, see `philox_reference`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation
from homeostat.kernels.dropout import check_place, check_seed
from homeostat.kernels.operator import Operator

_REST = "Tensor seed, float p, int example, int position, str? backend) -> Tensor"


def _operator(name: str, tensors: str, method: str, sizes: Any, shape: Any, gradient: Any) -> Operator:
    """The operator `name` of two tensors: of `sizes` of the two, which must agree, and giving `shape` of the two."""

    def check(first: Tensor, second: Tensor, seed: Tensor, p: float, example: int, position: int) -> None:
        if not first.dtype.is_floating_point:
            raise invalid_type("drop_connect", "input", "be floating", first)
        if second.dtype != first.dtype or second.device != first.device:
            raise invalid_type("drop_connect", "weight", f"be {first.dtype} on {first.device}, like the input", second)
        one, other = sizes(first, second)
        if one != other:
            raise invalid("drop_connect", "weight", f"agree with the input, which has {one} features", second)
        check_seed("drop_connect", seed)
        check_place("drop_connect", p, example, first.shape[0], position)

    def compute(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        *places, backend = rest
        check(first, second, *places)
        return getattr(_implementation(first, backend), method)(first, second, *places)

    def empty(first: Tensor, second: Tensor, *rest: Any) -> Tensor:
        check(first, second, *rest[:-1])
        return first.new_empty(shape(first, second))

    return Operator(f"{name}({tensors}, {_REST}", compute, empty, setup=_setup, gradient=gradient)


def _implementation(tensor: Tensor, backend: str | None) -> ModuleType:
    chosen = choose("drop_connect", tensor, backend)
    if backend == "triton":
        raise invalid("drop_connect", "backend", "be 'numba', 'reference' or None", backend, "It has no GPU kernel.")
    return implementation("drop_connect", "numba" if chosen == "numba" else "reference")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _product_gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weight, seed = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_input = drop_connect_input(grad, weight, seed, *ctx.settings) if needs[0] else None
    to_weight = drop_connect_weight(grad, input, seed, *ctx.settings) if needs[1] else None
    return to_input, to_weight, *(None,) * 5


def _input_gradient(ctx: Any, further: Tensor) -> tuple[Any, ...]:
    grad, weight, seed = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_grad = drop_connect(further, weight, seed, *ctx.settings) if needs[0] else None
    to_weight = drop_connect_weight(grad, further, seed, *ctx.settings) if needs[1] else None
    return to_grad, to_weight, *(None,) * 5


def _weight_gradient(ctx: Any, further: Tensor) -> tuple[Any, ...]:
    grad, input, seed = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_grad = drop_connect(input, further, seed, *ctx.settings) if needs[0] else None
    to_input = drop_connect_input(grad, further, seed, *ctx.settings) if needs[1] else None
    return to_grad, to_input, *(None,) * 5


drop_connect = _operator(
    "drop_connect", "Tensor input, Tensor weight", "product",
    lambda x, w: (x.shape[-1], w.shape[-1]), lambda x, w: (*x.shape[:-1], w.shape[0]), _product_gradient,
)  # fmt: skip
"""y[n, t, o] = sum over i of x[n, t, i] w[o, i] m(n, o, i) / (1 - p), where m is 0 with probability p, else 1.

Args:
    input: x, floating, shape (N, T, I): the T rows of an example share its mask.
    weight: w, shape (O, I).
    seed: the stream, see `homeostat.kernels.dropout.draw_seed`.
    p: the probability of dropping a weight, in [0, 1].
    example, position: where the batch begins in a larger one, and the weight in the places (o I + i) of a larger one.
    backend: 'numba', 'reference' or None; there is no GPU kernel.
Returns: shape (N, T, O).
Raises: InvalidValue, InvalidType for arguments outside of what is said above.
Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
"""

drop_connect_input = _operator(
    "drop_connect_input", "Tensor grad, Tensor weight", "input_gradient",
    lambda g, w: (g.shape[-1], w.shape[0]), lambda g, w: (*g.shape[:-1], w.shape[1]), _input_gradient,
)  # fmt: skip
"""The gradient to the input: sum over o of g[n, t, o] w[o, i] m(n, o, i) / (1 - p), shape (N, T, I)."""

drop_connect_weight = _operator(
    "drop_connect_weight", "Tensor grad, Tensor input", "weight_gradient",
    lambda g, x: (g.shape[:-1], x.shape[:-1]), lambda g, x: (g.shape[-1], x.shape[-1]), _weight_gradient,
)  # fmt: skip
"""The gradient to the weight: sum over n, t of g[n, t, o] x[n, t, i] m(n, o, i) / (1 - p), shape (O, I)."""
