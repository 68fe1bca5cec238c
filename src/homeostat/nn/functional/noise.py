"""Dropout that keeps mean and variance for SELU networks, and multiplication by normal noise.

Seeds, offsets and backends are those of `homeostat.nn.functional.dropout`. Random in training.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type
from homeostat.kernels import dropout as kernels
from homeostat.kernels.noise import add_noise
from homeostat.nn.functional.dropout import is_identity, stream_of
from homeostat.nn.functional.overridable import overridable

_SATURATION = 1.7580993408473766
"""Minus the limit of SELU at minus infinity: 1.0507... times 1.6732..."""


@overridable
def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """Set single values to SELU's limit -s with probability p, then scale and shift back to mean 0 and variance 1.

    y = a (x or -s) + b, with s = 1.7581, a = ((1 - p) (1 + p s^2))^(-1/2), b = a p s; zero everywhere for p = 1.

    Args:
        input: floating, any shape; mean 0 and variance 1 are what stays.
        p: the probability of dropping a value, in [0, 1].
        training: False, the default as in torch, returns the input itself.
        inplace, generator, seed, offset, backend: as in `dropout`.
    Returns: the shape and dtype of the input.
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Klambauer et al. 2017, arXiv:1706.02515.
    Example:
        >>> y = alpha_dropout(torch.randn(1000, 100), 0.2, training=True)
        >>> bool(y.mean().abs() < 0.05 and (y.var() - 1).abs() < 0.05)
        True
    """
    batched = input.dim() > 0
    return _alpha("alpha_dropout", input, p, training, inplace, batched, None, generator, seed, offset, backend)


@overridable
def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: Tensor | int | None = None,
    offset: int = 0,
    backend: str | None = None,
) -> Tensor:
    """The same for whole channels of an input (N, C, ...); otherwise like `alpha_dropout`.

    As in torch, the first two dimensions name a channel, however many there are.

    Source: Klambauer et al. 2017, arXiv:1706.02515; Tompson et al. 2015, arXiv:1411.4280.
    """
    if training and input.dim() < 2:
        raise invalid("feature_alpha_dropout", "input", "have at least 2 dimensions, (N, C, ...)", input)
    return _alpha("feature_alpha_dropout", input, p, training, inplace, True, 2, generator, seed, offset, backend)


@overridable
def gaussian_dropout(
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
    """Multiply every value by normal noise with mean 1 and variance p / (1 - p), which are those of dropout's factor.

    Args:
        input: floating, any shape.
        p: in [0, 1): the dropout that has the same mean and variance.
        training: False returns the input itself.
        inplace, generator, seed, offset, backend: as in `dropout`.
    Returns: the shape and dtype of the input. The noise is kept for the backward pass.
    Raises: InvalidValue, InvalidType for arguments outside of what is said above.
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, section 10.
    Example:
        >>> y = gaussian_dropout(torch.ones(1000, 100), 0.2)
        >>> bool((y.mean() - 1).abs() < 0.02 and (y.var() - 0.25).abs() < 0.02)
        True
    """
    if is_identity("gaussian_dropout", p, training):
        return input
    if p == 1:
        raise invalid("gaussian_dropout", "p", "lie in [0, 1)", p, "The variance of the noise is p / (1 - p).")
    if not input.dtype.is_floating_point:
        raise invalid_type("gaussian_dropout", "input", "be floating", input)
    stream = stream_of("gaussian_dropout", seed, generator)
    ones = torch.ones_like(input if input.dim() else input.unsqueeze(0))
    factor: Tensor = add_noise(ones, stream, math.sqrt(p / (1 - p)), offset, backend)
    output = input * factor.reshape(input.shape)
    return input.copy_(output) if inplace else output


def _alpha(
    where: str, input: Tensor, p: float, training: bool, inplace: bool, batched: bool, dims: int | None,
    generator: torch.Generator | None, seed: Tensor | int | None, offset: int, backend: str | None,
) -> Tensor:  # fmt: skip
    """One pass of dropout: with s added before and subtracted after it, what it zeroes is at -s."""
    if is_identity(where, p, training):
        return input
    if not input.dtype.is_floating_point:
        raise invalid_type(where, "input", "be floating", input)
    stream = stream_of(where, seed, generator)
    examples = input if batched else input.unsqueeze(0)
    if examples.itemsize < 4:
        examples = examples.float()  # s would swallow the input's last digits
    raised = examples + _SATURATION if p < 1 else examples
    output: Tensor = kernels.dropout(raised, stream, p, dims or examples.dim(), offset, 0, backend)
    if p < 1:
        output = (output - _SATURATION) * math.sqrt((1 - p) / (1 + p * _SATURATION**2))
    output = (output if batched else output.squeeze(0)).to(input.dtype)
    return input.copy_(output) if inplace else output
