"""Dropout of values, channels, examples and weights; the arguments of torch.nn.functional, then seeds and backends.

In training a unit is zero with probability p and the others are divided by 1 - p (the inverted form); in evaluation,
and for p = 0, the input itself comes back. A dropped unit is exactly zero, even where the input is infinite or NaN.
Only the seed is kept for the backward pass, which makes the mask again.

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

from homeostat.errors import invalid, invalid_type
from homeostat.kernels import dropout as kernels
from homeostat.kernels.drop_connect import drop_connect


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Zero single values with probability p and divide the others by 1 - p.

    Args:
        input: floating, any shape.
        p: the probability of dropping a value, in [0, 1], in steps of 2**-32.
        training: False returns the input itself.
        inplace: the result is also written to the input.
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
    if _is_identity("dropout", p, training):
        return input
    stream = _stream("dropout", seed, generator)
    if input.dim():
        output = kernels.dropout(input, stream, p, input.dim(), offset, 0, backend)
    else:
        output = kernels.dropout(input.unsqueeze(0), stream, p, 1, offset, 0, backend).squeeze(0)
    return input.copy_(output) if inplace else output


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
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
    return _channels("dropout1d", input, p, training, inplace, batched, generator, seed, offset, backend)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
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
    return _channels("dropout2d", input, p, training, inplace, True, generator, seed, offset, backend)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
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
    return _channels("dropout3d", input, p, training, inplace, batched, generator, seed, offset, backend)


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
    if _is_identity("drop_path", drop_prob, training, "drop_prob"):
        return input
    if not input.dim():
        raise invalid("drop_path", "input", "have a first dimension of examples", input)
    stream = _stream("drop_path", seed, generator)
    if scale_by_keep:
        return kernels.dropout(input, stream, drop_prob, 1, offset, 0, backend)
    ones = input.new_ones(input.shape[:1] + (1,) * (input.dim() - 1))
    return torch.where(kernels.dropout(ones, stream, drop_prob, 1, offset, 0, backend) > 0, input, 0.0)


def drop_connect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    per_example: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """torch.nn.functional.linear with weights dropped with probability p and the others divided by 1 - p.

    One mask serves the batch, or every example has its own; then neither masks nor masked weights are stored, and the
    product is computed in the dtype of the weight, under autocast too. The bias stays. In evaluation the weight is used
    as it is: the mean of what training saw.

    Args:
        input: shape (N, ..., I), or (I,) for one example; all rows of an example share its mask.
        weight: shape (O, I).
        bias: shape (O,), or None.
        p: the probability of dropping a weight, in [0, 1].
        per_example: whether every example has its own mask.
        offset: how many examples came before this part of a batch; one mask for a batch does not depend on it.
        backend: 'numba', 'triton' (not with per_example), 'reference' or None.
    Returns: shape (N, ..., O), or (O,).
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    """
    if _is_identity("drop_connect_linear", p, training):
        return functional.linear(input, weight, bias)
    if weight.dim() != 2:
        raise invalid("drop_connect_linear", "weight", "have the shape (O, I)", weight)
    stream = _stream("drop_connect_linear", seed, generator)
    if not per_example:
        return functional.linear(input, kernels.dropout(weight, stream, p, 2, 0, 0, backend), bias)
    if torch.is_autocast_enabled(input.device.type):
        input = input.to(weight.dtype)
    shape = input.shape
    rows = input.reshape(shape[0] if input.dim() > 1 else 1, shape[1:-1].numel(), shape[-1])
    output = drop_connect(rows, weight, stream, p, offset, 0, backend).reshape(*shape[:-1], weight.shape[0])
    return output if bias is None else output + bias


def check_probability(where: str, p: float, argument: str = "p") -> None:
    """Raise an error in `where`'s name unless p is a number in [0, 1]."""
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise invalid_type(where, argument, "be a number", p)
    if not 0 <= p <= 1:
        raise invalid(where, argument, "lie in [0, 1]", p, f"{argument} is the probability of dropping a unit.")


def _is_identity(where: str, p: float, training: bool, argument: str = "p") -> bool:
    """Whether nothing is to be dropped; checks p even then, as torch does."""
    check_probability(where, p, argument)
    return not training or p == 0


def _channels(
    where: str, input: Tensor, p: float, training: bool, inplace: bool, batched: bool,
    generator: torch.Generator | None, seed: Tensor | int | None, offset: int, backend: str | None,
) -> Tensor:  # fmt: skip
    if _is_identity(where, p, training):
        return input
    stream = _stream(where, seed, generator)
    if batched:
        output = kernels.dropout(input, stream, p, 2, offset, 0, backend)
    else:
        output = kernels.dropout(input.unsqueeze(0), stream, p, 2, offset, 0, backend).squeeze(0)
    return input.copy_(output) if inplace else output


def _stream(where: str, seed: Tensor | int | None, generator: torch.Generator | None) -> Tensor:
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


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
