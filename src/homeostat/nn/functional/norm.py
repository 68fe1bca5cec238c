"""Batch, instance and group normalization with torch.nn.functional's signatures, plus activation and residual.

output = activation((input - mean) / sqrt(variance + eps) * weight + bias + residual). Not random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from homeostat.errors import invalid
from homeostat.kernels import norm_channels, norm_rows
from homeostat.nn.activation import split


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    unbiased: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Normalize every channel over the batch and its positions.

    Args:
        input: (N, C) or (N, C, ...), floating; contiguous and channels_last are equally fast.
        running_mean, running_var: (C,), updated in place in training, used instead of the batch's otherwise; or None.
        weight, bias: (C,), in the input's dtype (float32 for float16 and bfloat16 inputs too), or None.
        training: normalize with the batch's own statistics.
        momentum: weight of the batch in the running statistics, a number or a tensor of one.
        eps: added to the variance; positive in training.
        activation: applied last, by name: relu, leaky_relu, elu, selu, gelu, silu, tanh, sigmoid, identity; or None.
        residual: like input, added before the activation, or None.
        unbiased: keep the unbiased variance as running variance, as torch does; else the population's.
        backend: numba, triton, reference, or None for the fastest that can run.
    Returns: like input, in its memory format.
    Raises: InvalidValue for shapes that do not fit, for one value per channel in training; InvalidType for dtypes.
    Source: Ioffe and Szegedy 2015, arXiv:1502.03167.
    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0], [3.0]])
        >>> batch_norm(x, None, None, training=True, activation="relu", eps=1e-12)
        tensor([[0.],
                [1.]])
    """
    where = "batch_norm"
    slope, after = split(where, activation)
    norm_channels.check(where, input, weight, bias, residual, running_mean, running_var)
    _check_running(where, running_mean, running_var)
    if training:
        count = input.numel() // input.shape[1]
        if count == 1:
            cure = "Raise the batch size, or use layer, group or RMS norm."
            raise invalid(where, "input", "have more than 1 value per channel in training", input, cure)
        _check_eps(where, eps, eps > 0)
        output, mean, variance = norm_channels.normalize(input, weight, bias, residual, 0, eps, slope, backend)
        if count and (running_mean is not None or running_var is not None):
            correction = count / (count - 1) if unbiased else 1.0
            norm_channels.update_running(running_mean, running_var, mean, variance, momentum, correction)
    else:
        _check_eps(where, eps, eps >= 0)
        mean, variance = _given(where, running_mean, running_var)
        output = norm_channels.affine(input, mean, variance, weight, bias, residual, eps, slope, backend)
    return output if after is None else after(output)


def instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    unbiased: bool = True,
    backend: str | None = None,
) -> Tensor:
    """Normalize every channel of every example over its positions.

    Args:
        input: (N, C, ...), floating, with positions. The other arguments are those of `batch_norm`; the running
            statistics keep the mean over the batch's examples.
        use_input_stats: normalize with the examples' own statistics, else with the running ones.
    Returns: like input, in its memory format.
    Raises: InvalidValue for shapes that do not fit, for one position; InvalidType for dtypes.
    Source: Ulyanov et al. 2016, arXiv:1607.08022.
    Example:
        >>> import torch
        >>> instance_norm(torch.tensor([[[1.0, 3.0]], [[10.0, 30.0]]]), eps=1e-12)
        tensor([[[-1.,  1.]],
                [[-1.,  1.]]])
    """
    where = "instance_norm"
    slope, after = split(where, activation)
    norm_channels.check(where, input, weight, bias, residual, running_mean, running_var)
    _check_running(where, running_mean, running_var)
    _check_eps(where, eps, eps >= 0)
    if use_input_stats:
        examples, channels = input.shape[:2]
        count = input.shape[2:].numel()
        if count == 1:
            raise invalid(where, "input", "have more than 1 position", input, "batch_norm needs no positions.")
        output, mean, variance = norm_channels.normalize(input, weight, bias, residual, channels, eps, slope, backend)
        if count and examples and (running_mean is not None or running_var is not None):
            correction = count / (count - 1) if unbiased else 1.0
            mean, variance = mean.mean(0), variance.mean(0)
            norm_channels.update_running(running_mean, running_var, mean, variance, momentum, correction)
    else:
        mean, variance = _given(where, running_mean, running_var)
        output = norm_channels.affine(input, mean, variance, weight, bias, residual, eps, slope, backend)
    return output if after is None else after(output)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Normalize groups of neighboring channels of every example.

    Args:
        input: (N, C) or (N, C, ...), floating.
        num_groups: how many groups the channels are split into; divides C.
        weight, bias, eps, activation, residual, backend: as in `batch_norm`.
    Returns: like input, in its memory format.
    Raises: InvalidValue for shapes that do not fit, for one value per group; InvalidType for dtypes.
    Source: Wu and He 2018, arXiv:1803.08494.
    Example:
        >>> import torch
        >>> group_norm(torch.tensor([[1.0, 3.0, 10.0, 30.0]]), 2, eps=1e-12)
        tensor([[-1.,  1., -1.,  1.]])
    """
    where = "group_norm"
    slope, after = split(where, activation)
    norm_channels.check(where, input, weight, bias, residual)
    shape = input.shape
    if num_groups < 1 or shape[1] % num_groups:
        raise invalid(where, "num_groups", f"be positive and divide the {shape[1]} channels", num_groups)
    length = shape[1] // num_groups
    if shape[0] * length * shape[2:].numel() == 1:
        raise invalid(where, "input", "have more than 1 value per group", input, "Use fewer groups.")
    if len(shape) == 2:
        output = norm_rows.normalize(input, weight, bias, residual, length, num_groups, eps, True, slope, backend)[0]
    else:
        output = norm_channels.normalize(input, weight, bias, residual, num_groups, eps, slope, backend)[0]
    return output if after is None else after(output)


def _check_running(where: str, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Both or neither, and without a gradient: there is none with respect to them."""
    if running_mean is None or running_var is None:
        if running_mean is not running_var:
            name = "running_mean" if running_mean is None else "running_var"
            raise invalid(where, name, "be given where the other running statistic is", None, "Give both or neither.")
    elif (running_mean.requires_grad or running_var.requires_grad) and torch.is_grad_enabled():
        name, tensor = ("running_mean", running_mean) if running_mean.requires_grad else ("running_var", running_var)
        raise invalid(where, name, "not require a gradient", tensor, "Give running statistics as .detach() has them.")


def _check_eps(where: str, eps: float, fits: bool) -> None:
    if not fits:
        raise invalid(where, "eps", "be positive (not negative outside training)", eps)


def _given(where: str, running_mean: Tensor | None, running_var: Tensor | None) -> tuple[Tensor, Tensor]:
    if running_mean is None or running_var is None:
        name = "running_mean" if running_mean is None else "running_var"
        raise invalid(where, name, "be given where the input's own statistics are not used", None)
    return running_mean, running_var
