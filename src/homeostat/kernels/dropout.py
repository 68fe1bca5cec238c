"""Dropout: checks, choice of the backend, gradient. The arithmetic is in `dropout_cpu`, `_gpu` and `_reference`.

Random: a mask is a pure function of a seed and of each unit's place, see `philox_reference`. `draw_seed` is the one
function that draws, from torch's generator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.backend import choose, implementation
from homeostat.kernels.dropout_reference import layout
from homeostat.kernels.operator import Operator

EXAMPLES = 2**34
"""How many examples have draws of their own."""


def draw_seed(generator: torch.Generator | None = None) -> Tensor:
    """A fresh stream, drawn from `generator` or from torch's own on the CPU.

    Two streams are the same with a probability of 2**-95. Compiled code draws when it runs, and what eager code would
    draw. torch.func.vmap's `randomness` says, as for torch's own draws, whether its examples share the stream.

    Returns: int64 of shape (2,) on the CPU: the key and the number of the stream, in [0, 2**63).
    """
    if torch.compiler.is_compiling() or _len_torch_dispatch_stack():
        return torch.ops.homeostat.draw_seed(torch.empty(2, dtype=torch.int64, device="cpu"), generator)
    return _draw(None, generator)


def check_seed(where: str, seed: Tensor) -> None:
    """Raise an error in `where`'s name unless this is a stream such as `draw_seed` returns."""
    if seed.dtype != torch.int64 or seed.shape != (2,) or seed.device.type != "cpu":
        raise invalid(where, "seed", "be int64 of shape (2,) on the CPU", seed, "draw_seed() makes one.")


def check_place(where: str, p: float, example: int, examples: int, position: int) -> None:
    """Raise an error in `where`'s name unless p is a probability and every place has a draw."""
    if not 0 <= p <= 1:
        raise invalid(where, "p", "lie in [0, 1]", p, "p is the probability of dropping a unit.")
    if not 0 <= example <= EXAMPLES - examples:
        raise invalid(where, "example", f"be at least 0 and leave the last example below {EXAMPLES}", example)
    if position < 0:
        raise invalid(where, "position", "be at least 0", position)


def _draw(space: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
    return torch.randint(0, 2**63 - 1, (2,), generator=generator, dtype=torch.int64, device="cpu")


def _empty_seed(space: Tensor, generator: Any = None) -> Tensor:
    return torch.empty_like(space)


def _register_draw() -> torch.library.Library:
    """An operator that compilers neither fold nor merge nor repeat; under vmap, torch.randint knows what is asked for.

    The tag is not enough: torch's elimination of common subexpressions looks at a list of its own operators only. It
    never merges two empty tensors, though, so that with one for an argument no two draws look the same.
    """
    library = torch.library.Library("homeostat", "FRAGMENT")
    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded)
    library.define("draw_seed(Tensor space, Generator? generator=None) -> Tensor", tags=tags)
    library.impl("draw_seed", _draw, "CompositeExplicitAutograd")
    library.impl("draw_seed", _draw, "FuncTorchVmapMode")
    torch.library.register_fake("homeostat::draw_seed", _empty_seed, lib=library)
    return library


_library = _register_draw()


def _compute(
    input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int, backend: str | None
) -> Tensor:
    _check(input, seed, p, dims, example, position)
    module = implementation("dropout", choose("dropout", input, backend))
    output: Tensor = module.dropout(input, seed, p, dims, example, position)
    if output.stride() == input.stride():
        return output
    like = _empty(input, dims)
    return output if output.stride() == like.stride() else like.copy_(output)


def _empty(input: Tensor, dims: int) -> Tensor:
    """Memory for the output: in the order of the input's dimensions, in which torch's dropout has it too."""
    form = layout(input, dims)
    if form is torch.contiguous_format and not 2 < dims < input.dim() and not input.is_contiguous():
        form = torch.preserve_format
    return torch.empty_like(input, memory_format=form)


def _check(input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int) -> None:
    if not input.dtype.is_floating_point:
        raise invalid_type("dropout", "input", "be floating", input)
    if not 1 <= dims <= input.dim():
        raise invalid("dropout", "dims", f"lie in [1, {input.dim()}]", dims, "It counts dimensions of the input.")
    check_seed("dropout", seed)
    check_place("dropout", p, example, input.shape[0], position)


def _shape(
    input: Tensor, seed: Tensor, p: float, dims: int, example: int, position: int, backend: str | None
) -> Tensor:
    _check(input, seed, p, dims, example, position)
    return _empty(input, dims)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.settings = inputs[2:]


def _gradient(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    """The same units of the gradient are dropped: linear, so this serves derivatives of every order."""
    return dropout(grad, ctx.saved_tensors[0], *ctx.settings), None, None, None, None, None, None


def _batch(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Tensor, int]:
    """Inputs that share a seed share their masks: another dimension at the end, without draws of its own."""
    if in_dims[1] is not None:
        return dropout._loop(info, in_dims, *args)
    input = args[0].movedim(in_dims[0], -1)
    return dropout(input, *args[1:]), input.dim() - 1


dropout = Operator(
    "dropout(Tensor input, Tensor seed, float p, int dims, int example, int position, str? backend) -> Tensor",
    _compute,
    _shape,
    setup=_setup,
    gradient=_gradient,
    batch=_batch,
)
"""Dropout of units chosen by their places.

The first `dims` dimensions of the input say where a unit is; what lies behind them shares its fate: dims = input.dim()
drops single values, 2 channels, 1 whole examples. What stays is divided by 1 - p. A dropped unit is exactly zero, even
where the input is infinite or not a number. p counts in steps of 2**-32.

Args:
    input: floating, shape (N, ...).
    seed: the stream, int64 of shape (2,), see `draw_seed`.
    p: the probability of dropping, in [0, 1].
    dims: how many dimensions have draws of their own, in [1, input.dim()].
    example, position: where the input begins in a larger batch, and in larger examples that are cut along their
        places: parts of a batch get the masks of the whole.
    backend: see `homeostat.kernels.backend`; None chooses.
Returns: a new tensor; its dimensions follow one another in memory as the input's do, except for 2 < dims < input.dim().
Raises: InvalidValue, InvalidType for arguments outside of what is said above.
Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, where p is that of keeping.
"""
