"""Dropout of values, channels and examples; the arguments of torch.nn.functional, then seeds and backends.

In training a unit is zero with probability p and the others are divided by 1 - p (the inverted form); in evaluation,
and for p = 0, the input itself comes back. With mode="scaled" the others stay as they are, and evaluation multiplies by
1 - p. A dropped unit is exactly zero, even where the input is infinite or NaN. Only the seed is kept for the backward
pass, which makes the mask again. Dropout of weights is in `drop_connect`, multiplication by noise and what goes with
SELU in `noise`.

Random: a call draws one seed from `generator`, or from torch's own on the CPU; no other random state is read or
changed. The mask is a pure function of the seed and of each unit's place: with a `seed` it is the same on every
device and backend, in every memory format, and for parts of a batch that say with `offset` how many examples came
before them. Two calls with one seed and equal shapes drop the same units, so a `seed` serves one layer and one step.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional

from homeostat.errors import invalid, invalid_type, unknown
from homeostat.kernels import dropout as kernels
from homeostat.nn.functional.overridable import overridable

MODES: tuple[str, ...] = ("inverted", "scaled")
"""What makes training and evaluation agree in the mean: division by 1 - p in training, or a factor in evaluation."""


@overridable
def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mode: str = "inverted",
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero single values with probability p and divide the others by 1 - p.

    Args:
        input: floating, any shape.
        p: the probability of dropping a value, in [0, 1], in steps of 2**-32.
        training: False returns the input itself (for mode "scaled" the input times 1 - p).
        inplace: the result is also written to the input.
        mode: "inverted" divides by 1 - p in training; "scaled" multiplies by 1 - p in evaluation instead.
        generator: a generator on the CPU, where the seed of this call comes from; None takes torch's own.
        seed: instead of a drawn one: int64 (key, number of the stream), or an integer, which means (seed, 0).
        offset: how many examples (of the first dimension) came before this part of a batch.
        backend: 'numba', 'triton', 'reference', or None for what `homeostat.kernels.backend_for` says.
    Returns: the shape and dtype of the input.
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, where p is that of keeping.
    Example:
        >>> x = torch.ones(2, 4)
        >>> whole = dropout(x, 0.5, seed=7)
        >>> whole
        tensor([[...]])
        >>> torch.equal(dropout(x[1:], 0.5, seed=7, offset=1), whole[1:])
        True
    """
    batched = input.dim() > 0
    return _drop("dropout", input, p, training, inplace, batched, None, mode, generator, seed, offset, backend)


@overridable
def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mode: str = "inverted",
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero whole channels of an input (N, C, L) or (C, L); otherwise like `dropout`.

    Source: Tompson et al. 2015, arXiv:1411.4280.
    """
    if input.dim() not in (2, 3):
        raise invalid("dropout1d", "input", "have 2 or 3 dimensions, (C, L) or (N, C, L)", input)
    batched = input.dim() == 3
    return _drop("dropout1d", input, p, training, inplace, batched, 2, mode, generator, seed, offset, backend)


@overridable
def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mode: str = "inverted",
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero whole channels of an input (N, C, H, W); otherwise like `dropout`.

    As in torch, other inputs are read as (N, C, ...), with a warning: three dimensions do not mean (C, H, W).

    Source: Tompson et al. 2015, arXiv:1411.4280.
    """
    if input.dim() < 2:
        raise invalid("dropout2d", "input", "have 4 dimensions, (N, C, H, W)", input)
    if input.dim() != 4:
        text = "Its input should have 4 dimensions, (N, C, H, W), and is read as (N, C, ...)"
        if input.dim() == 3:
            text += ", assuming that channel-wise 1D dropout behavior is desired, which is dropout1d's"
        _warn(f"Received a {input.dim()}-D input to dropout2d. {text}.")
    return _drop("dropout2d", input, p, training, inplace, True, 2, mode, generator, seed, offset, backend)


@overridable
def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    mode: str = "inverted",
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero whole channels of an input (N, C, D, H, W) or (C, D, H, W); otherwise like `dropout`.

    As in torch, an input of other than four or five dimensions is read as (C, ...), with a warning.

    Source: Tompson et al. 2015, arXiv:1411.4280.
    """
    if input.dim() < 1:
        raise invalid("dropout3d", "input", "have 4 or 5 dimensions, (C, D, H, W) or (N, C, D, H, W)", input)
    if input.dim() not in (4, 5):
        text = "Its input should have 4 or 5 dimensions, (C, D, H, W) or (N, C, D, H, W), and is read as (C, ...)."
        _warn(f"Received a {input.dim()}-D input to dropout3d. {text}")
    batched = input.dim() == 5
    return _drop("dropout3d", input, p, training, inplace, batched, 2, mode, generator, seed, offset, backend)


@overridable
def drop_path(
    input: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero whole examples, for the residual branch of a block (stochastic depth); otherwise like `dropout`.

    The names and defaults are those of timm.

    Args:
        input: floating, shape (N, ...).
        drop_prob: the probability of dropping an example, in [0, 1].
        scale_by_keep: whether the examples that stay are divided by 1 - drop_prob.
    Source: Huang et al. 2016, arXiv:1603.09382.
    """
    if is_identity("drop_path", drop_prob, training, "drop_prob"):
        return input
    if not input.dim():
        raise invalid("drop_path", "input", "have a first dimension of examples", input)
    stream = stream_of("drop_path", seed, generator)
    if scale_by_keep:
        return kernels.dropout(input, stream, drop_prob, 1, offset, 0, backend)
    return _masked(input, stream, drop_prob, 1, offset, backend)


def check_probability(where: str, p: float, argument: str = "p") -> None:
    """Raise an error in `where`'s name unless p is a number in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise invalid_type(where, argument, "be a number", p)
    if not 0 <= p <= 1:
        raise invalid(where, argument, "lie in [0, 1]", p, f"{argument} is the probability of dropping a unit.")


def is_identity(where: str, p: float, training: bool, argument: str = "p") -> bool:
    """Whether nothing is to be dropped; checks p even then, as torch does."""
    check_probability(where, p, argument)
    return not training or p == 0


def check_mode(where: str, mode: str) -> None:
    """Raise an error in `where`'s name unless the mode is one of `MODES`."""
    if mode not in MODES:
        raise unknown(where, "mode", mode, MODES)


def stream_of(where: str, seed: Tensor | int | None, generator: torch.Generator | None) -> Tensor:
    """The seed as a kernel wants it, drawn if there is none."""
    if seed is None:
        return kernels.draw_seed(generator)
    if generator is not None:
        raise invalid(where, "generator", "be None where a seed is given", generator, "Give one of the two.")
    if isinstance(seed, Tensor):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise invalid_type(where, "seed", "be an integer or int64 of shape (2,)", seed)
    if not -(2**63) <= seed < 2**63:
        raise invalid(where, "seed", "fit 64 bits with a sign", seed)
    return torch.tensor([seed, 0], device="cpu")


def _drop(
    where: str, input: Tensor, p: float, training: bool, inplace: bool, batched: bool, dims: int | None, mode: str,
    generator: torch.Generator | None, seed: Tensor | int | None, offset: int, backend: str | None,
) -> Tensor:  # fmt: skip
    """Drop what the first `dims` dimensions name (None: single values), of a batch or of one example."""
    check_mode(where, mode)
    if is_identity(where, p, training):
        if mode == "inverted" or p == 0:
            return input
        return input.mul_(1 - p) if inplace else input * (1 - p)
    plain = mode == "inverted" and dims is None and seed is None and generator is None and backend is None
    if plain and input.is_nested:
        return functional.dropout(input, p, True, inplace)  # its examples differ in shape: torch's alone
    stream = stream_of(where, seed, generator)
    examples = input if batched else input.unsqueeze(0)
    if mode == "inverted":
        output = kernels.dropout(examples, stream, p, dims or examples.dim(), offset, 0, backend)
    else:
        output = _masked(examples, stream, p, dims or examples.dim(), offset, backend)
    output = output if batched else output.squeeze(0)
    return input.copy_(output) if inplace else output


def _masked(input: Tensor, stream: Tensor, p: float, dims: int, offset: int, backend: str | None) -> Tensor:
    """Zero where the kernel drops, and exactly the input elsewhere."""
    if not input.dtype.is_floating_point:
        raise invalid_type("dropout", "input", "be floating", input)
    ones = input.new_ones(input.shape[:dims] + (1,) * (input.dim() - dims))
    return torch.where(kernels.dropout(ones, stream, p, dims, offset, 0, backend) > 0, input, 0.0)


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=4)  # past overridable's frame
