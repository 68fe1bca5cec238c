"""Layer norm and RMS norm as functions, fused with an activation and the addition of a residual. Not random."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as torch_functional

from homeostat.errors import invalid, invalid_type
from homeostat.kernels.norm_rows import check, norm_rows
from homeostat.nn.activation import activate, split


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalize over the last dimensions, to mean 0 and variance 1, then scale, shift, add the residual and activate.

    y = activation((x - mean) / sqrt(variance + eps) * weight + bias + residual), variance with 1/n. The statistics
    lose no digits where the mean is far from zero, nor, for float32 on a CPU, where squares overflow.

    Args:
        input: floating, shape (*, *normalized_shape).
        normalized_shape: the sizes of the last dimensions.
        weight, bias: shape normalized_shape; the input's dtype, or float32 for float16 and bfloat16 inputs.
        eps: added to the variance.
        activation: a name from `homeostat.nn.activation.ACTIVATIONS`; relu and leaky_relu cost nothing.
        residual: added before the activation; shape, dtype and device of the input.
        backend: numba, triton or reference; None chooses.
    Returns: a contiguous tensor of the input's shape and dtype, under autocast too.
    Raises: InvalidValue, InvalidType for shapes, dtypes and devices that do not fit.
    Source: Ba et al. 2016, arXiv:1607.06450.
    Example:
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), (2,), eps=0)
        tensor([[-1.,  1.]])
    """
    return _normalize("layer_norm", input, normalized_shape, weight, bias, eps, True, activation, residual, backend)


def rms_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Divide by the root of the mean square over the last dimensions, then scale, add the residual and activate.

    y = activation(x / sqrt(mean(x^2) + eps) * weight + residual).

    Args:
        input, normalized_shape, activation, residual, backend: as for `layer_norm`.
        weight: shape normalized_shape; another dtype than the input's is converted, as torch does.
        eps: added to the mean square; None: torch.finfo(dtype).eps, for float16 and bfloat16 that of float32.
    Returns: a contiguous tensor of the input's shape and dtype, under autocast too.
    Raises: InvalidValue, InvalidType for shapes, dtypes and devices that do not fit.
    Source: Zhang and Sennrich 2019, arXiv:1910.07467.
    Example:
        >>> rms_norm(torch.tensor([[3.0, 4.0, 0.0, 0.0]]), (4,), eps=0)
        tensor([[1.2000, 1.6000, 0.0000, 0.0000]])
    """
    if eps is None:
        eps = _DOUBLE if input.dtype is torch.float64 else _SINGLE
    if weight is not None and weight.dtype is not input.dtype and input.is_floating_point():
        weight = weight.to(torch.float32 if weight.dtype is torch.float32 and input.itemsize == 2 else input.dtype)
    return _normalize("rms_norm", input, normalized_shape, weight, None, eps, False, activation, residual, backend)


_SINGLE, _DOUBLE = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps


def _normalize(
    where: str,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    center: bool,
    activation: str | None,
    residual: Tensor | None,
    backend: str | None,
) -> Tensor:
    if input.is_nested and backend is None:
        return _nested(input, normalized_shape, weight, bias, eps, center, activation, residual)
    shape = normalized_shape if type(normalized_shape) is tuple else _as_tuple(where, normalized_shape)
    if not shape:
        raise invalid(where, "normalized_shape", "have at least one element", shape)
    if input.shape[-len(shape) :] != shape:
        raise invalid(where, "input", f"have a shape that ends in the normalized_shape, {shape}", input)
    length = 1
    for size in shape:
        length *= size
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.shape != shape:
            raise invalid(where, name, f"have the normalized_shape, {shape}", tensor)
    check(where, input, weight, bias, residual, length)
    slope, function = split(where, activation)
    output: Tensor = norm_rows(input, weight, bias, residual, length, 1, eps, center, slope, backend)[0]
    return output if function is None else function(output)


def _nested(
    input: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, center: bool,
    activation: str | None, residual: Tensor | None,
) -> Tensor:  # fmt: skip
    """Nested tensors, whose examples differ in shape, are torch's alone."""
    if center:
        output = torch_functional.layer_norm(input, shape, weight, bias, eps)
    else:
        output = torch_functional.rms_norm(input, shape, weight, eps)
    return activate(output if residual is None else output + residual, *split("layer_norm", activation))


def _as_tuple(where: str, shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise invalid_type(where, "normalized_shape", "be a sequence of sizes", shape, f"Write ({shape},).")
    return tuple(shape)
