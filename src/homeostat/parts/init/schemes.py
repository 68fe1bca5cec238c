"""Initialization of one tensor, with torch's names. Whole models are initialized by `init`, which exports these too.

The variance of a layer's weights follows from its fans: fan_in, the number of inputs that one output sums, and fan_out,
the number of outputs that one input feeds. They are read off the shape as torch.nn.init does.
Random, but only through the given generator; values are drawn on its device, in at least float32, so that a CPU
generator gives the same weights on every device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from homeostat.errors import invalid, invalid_type, unknown

Fans = tuple[float, float]
MODES: tuple[str, ...] = ("fan_in", "fan_out", "fan_avg")
"""The fans that a variance can be scaled by."""

_TORCH_NONLINEARITIES = (
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("sigmoid", "tanh", "relu", "leaky_relu", "selu"),
)
"""What torch.nn.init.calculate_gain knows."""

_STD_WITHIN_TWO = 0.8796256610342398  # of a standard normal variable that is known to lie in [-2, 2]


def he_normal_(
    tensor: Tensor, mode: str = "fan_in", *, negative_slope: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """Draw from N(0, 2 / ((1 + negative_slope²) · fan)): keeps the mean square through (leaky) ReLU layers.

    Args:
        tensor: at least two dimensions, (outputs, inputs, *kernel); changed in place.
        mode: "fan_in" keeps the forward pass, "fan_out" the backward pass, "fan_avg" compromises.
        negative_slope: that of the leaky ReLU that follows; 0 for ReLU.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Source: He et al. 2015, arXiv:1502.01852; torch.nn.init.kaiming_normal_.
    """
    scale = _he_scale("he_normal_", negative_slope)
    return _scale_variance_("he_normal_", tensor, scale, mode, "normal", generator)


def he_uniform_(
    tensor: Tensor, mode: str = "fan_in", *, negative_slope: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """As `he_normal_`, with the same variance, from U(-r, r), r = √(6 / ((1 + negative_slope²) · fan))."""
    scale = _he_scale("he_uniform_", negative_slope)
    return _scale_variance_("he_uniform_", tensor, scale, mode, "uniform", generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw from N(0, gain² · 2 / (fan_in + fan_out)): keeps linear and tanh layers in their linear range.

    Args:
        tensor: at least two dimensions, (outputs, inputs, *kernel); changed in place.
        gain: a factor on the standard deviation.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Source: Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """
    scale = finite_number("xavier_normal_", "gain", gain) ** 2
    return _scale_variance_("xavier_normal_", tensor, scale, "fan_avg", "normal", generator)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """As `xavier_normal_`, with the same variance, from U(-r, r), r = gain · √(6 / (fan_in + fan_out))."""
    scale = finite_number("xavier_uniform_", "gain", gain) ** 2
    return _scale_variance_("xavier_uniform_", tensor, scale, "fan_avg", "uniform", generator)


def fan_in_uniform_(tensor: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from U(-1/√fan_in, 1/√fan_in), the old rule of thumb; its variance is only 1 / (3 · fan_in).

    Source: LeCun et al. 1998, "Efficient BackProp"; torch's own default for Linear and convolutions.
    """
    return _scale_variance_("fan_in_uniform_", tensor, 1 / 3, "fan_in", "uniform", generator)


def variance_scaling_(
    tensor: Tensor,
    scale: float = 1.0,
    mode: str = "fan_in",
    distribution: str = "normal",
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw with mean 0 and variance scale / fan.

    Args:
        tensor: at least two dimensions, (outputs, inputs, *kernel); changed in place.
        scale: c in c / n; >= 0 and finite.
        mode: which fan n is: "fan_in", "fan_out", or "fan_avg", their mean.
        distribution: "normal", "uniform", or "truncated": normal, cut at two of its own deviations and widened so that
            the variance is what it should be, as Keras and JAX do.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Raises: InvalidValue for an unknown mode or distribution, a scale that cannot be used, fewer than two dimensions.
    Example:
        >>> weight = torch.empty(1000, 500)
        >>> _ = variance_scaling_(weight, 3.0, "fan_in", generator=torch.Generator().manual_seed(0))
        >>> round(500 * weight.var().item(), 1)
        3.0
    """
    return _scale_variance_("variance_scaling_", tensor, scale, mode, distribution, generator)


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Make the rows, or the columns if there are fewer, orthogonal and of length `gain`; uniform over all such
    matrices.

    Args:
        tensor: at least two dimensions, (outputs, inputs, *kernel), seen as a matrix (outputs, inputs · kernel).
        gain: the length of the rows or columns.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Source: Saxe et al. 2014, arXiv:1312.6120; Mezzadri 2007, arXiv:math-ph/0609050 (the signs).
    """
    _check_drawn("orthogonal_", tensor, generator)
    _fans("orthogonal_", tensor)
    gain = finite_number("orthogonal_", "gain", gain)
    rows, columns = tensor.shape[0], tensor[0].numel() if len(tensor) else 0
    if not rows or not columns:
        return tensor
    draws = _standard_normal((rows, columns), tensor, generator)
    basis, triangle = torch.linalg.qr(draws if rows >= columns else draws.T)
    basis = basis * triangle.diagonal().sign()
    return _assign_(tensor, gain * (basis if rows >= columns else basis.T).reshape(tensor.shape))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw from U(a, b).

    Args:
        tensor: any shape; changed in place.
        a, b: the ends of the interval, finite, a <= b.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Source: torch.nn.init.uniform_.
    """
    _check_drawn("uniform_", tensor, generator)
    a, b = finite_number("uniform_", "a", a), finite_number("uniform_", "b", b)
    if a > b:
        raise invalid("uniform_", "a", f"be at most b, which is {b:g}", a)
    return _assign_(tensor, _empty(tensor.shape, tensor, generator).uniform_(a, b, generator=generator))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Draw from N(mean, std²).

    Args:
        tensor: any shape; changed in place.
        mean, std: finite; std >= 0.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Source: torch.nn.init.normal_.
    """
    _check_drawn("normal_", tensor, generator)
    _check_mean_and_std("normal_", mean, std)
    return _assign_(tensor, _standard_normal(tensor.shape, tensor, generator).mul_(std).add_(mean))


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw from N(mean, std²) under the condition that the value lies in [a, b].

    By the inverse of the distribution function in float64, in the tail where it is exact. As in torch, a and b are
    values, not multiples of std: with std = 0.02 the defaults cut nothing.

    Args:
        tensor: any shape; changed in place.
        mean, std: of the normal distribution before it is cut; finite, std > 0.
        a, b: the ends of the interval, a < b.
        generator: where the values come from; None is torch's default generator, as in torch.nn.init.
    Returns: the tensor.
    Raises: InvalidValue for numbers that cannot be used, and an interval so far out that it holds no probability.
    Source: torch.nn.init.trunc_normal_; Burkardt 2014, "The Truncated Normal Distribution".
    Example:
        >>> weight = trunc_normal_(torch.empty(1000), b=0.0, generator=torch.Generator().manual_seed(0))
        >>> bool((weight >= -2).all() and (weight <= 0).all())
        True
    """
    _check_drawn("trunc_normal_", tensor, generator)
    _check_mean_and_std("trunc_normal_", mean, std)
    if std == 0:
        raise invalid("trunc_normal_", "std", "be above 0", std)
    if not a < b:
        raise invalid("trunc_normal_", "a", "be below b", a, f"b is {b}.")
    lower, upper = (a - mean) / std, (b - mean) / std
    turn = -1.0 if lower > 0 else 1.0  # far above the mean the distribution function is 1 and tells nothing apart
    lower, upper = sorted((turn * lower, turn * upper))
    ends = [math.erfc(-end / math.sqrt(2)) / 2 for end in (lower, upper)]
    if ends[0] == ends[1]:
        cure = f"Between {a} and {b} a normal distribution with mean {mean} and std {std} has no probability."
        raise invalid("trunc_normal_", "a", "be nearer to the mean", a, cure)
    draws = _empty(tensor.shape, tensor, generator, torch.float64).uniform_(*ends, generator=generator)
    values = torch.special.ndtri(draws).mul_(turn * std).add_(mean)
    return _assign_(tensor, values.clamp_(a, b))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with the value `val`.

    Source: torch.nn.init.constant_.
    """
    if not isinstance(tensor, Tensor):
        raise invalid_type("constant_", "tensor", "be a tensor", tensor)
    if not isinstance(val, int | float | complex | Tensor):
        raise invalid_type("constant_", "val", "be a number", val)
    return _assign_(tensor, torch.as_tensor(val, device=tensor.device))


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with 1."""
    return constant_(tensor, 1.0)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """torch.nn.init.kaiming_normal_, argument by argument; `he_normal_` says the same with fewer words.

    Args:
        tensor: at least two dimensions, (outputs, inputs, *kernel); changed in place.
        a: the slope of the leaky ReLU; only with nonlinearity "leaky_relu".
        mode: "fan_in", "fan_out" or "fan_avg".
        nonlinearity: a name that torch.nn.init.calculate_gain knows; its gain is torch's (5/3 for tanh).
        generator: where the values come from; None is torch's default generator.
    Returns: the tensor.
    Source: He et al. 2015, arXiv:1502.01852.
    """
    scale = _torch_scale("kaiming_normal_", nonlinearity, a)
    return _scale_variance_("kaiming_normal_", tensor, scale, mode, "normal", generator)


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: torch.Generator | None = None,
) -> Tensor:
    """torch.nn.init.kaiming_uniform_, argument by argument; see `kaiming_normal_`."""
    scale = _torch_scale("kaiming_uniform_", nonlinearity, a)
    return _scale_variance_("kaiming_uniform_", tensor, scale, mode, "uniform", generator)


def tensor_fans(tensor: Tensor) -> Fans:
    """(fan_in, fan_out) of a weight of shape (outputs, inputs, *kernel), counted as torch.nn.init does.

    Raises: InvalidValue if it has fewer than two dimensions.
    """
    return _fans("tensor_fans", tensor)


def draw_(tensor: Tensor, std: float, distribution: str, generator: torch.Generator | None) -> Tensor:
    """Fill with mean 0 and standard deviation `std`, whatever the shape; "truncated": normal within two deviations."""
    if distribution == "normal":
        return _assign_(tensor, _standard_normal(tensor.shape, tensor, generator).mul_(std))
    if distribution == "uniform":
        bound = math.sqrt(3) * std
        return _assign_(tensor, _empty(tensor.shape, tensor, generator).uniform_(-bound, bound, generator=generator))
    if distribution == "truncated" and std > 0:
        wider = std / _STD_WITHIN_TWO
        return trunc_normal_(tensor, 0.0, wider, -2 * wider, 2 * wider, generator=generator)
    if distribution == "truncated":
        return zeros_(tensor)
    raise unknown("variance_scaling_", "distribution", distribution, ("normal", "uniform", "truncated"))


def deviation(where: str, fans: Fans, scale: float, mode: str) -> float:
    """The standard deviation of weights with variance scale / fan; errors speak in `where`'s name."""
    if mode not in MODES:
        raise unknown(where, "mode", mode, MODES)
    finite_number(where, "scale", scale, least=0)
    fan = {"fan_in": fans[0], "fan_out": fans[1], "fan_avg": sum(fans) / 2}[mode]
    return math.sqrt(scale / fan) if fan else 0.0  # a fan of 0 belongs to an empty tensor


def _standard_normal(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return _empty(shape, like, generator).normal_(generator=generator)


def _empty(
    shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None, dtype: torch.dtype | None = None
) -> Tensor:
    """Where values are drawn: on the generator's device, in at least float32, whatever the parameter's own layout."""
    dtype = dtype or (torch.float64 if like.dtype == torch.float64 else torch.float32)
    return torch.empty(shape, dtype=dtype, device=like.device if generator is None else generator.device)


def _check_mean_and_std(where: str, mean: float, std: float) -> None:
    finite_number(where, "mean", mean)
    finite_number(where, "std", std, least=0)


def _check_drawn(where: str, tensor: Tensor, generator: torch.Generator | None) -> None:
    """Raise an error in `where`'s name unless values can be drawn from the generator into the tensor."""
    if not isinstance(tensor, Tensor):
        cure = "For a whole model there is initialize_."
        raise invalid_type(where, "tensor", "be a tensor", tensor, cure if isinstance(tensor, torch.nn.Module) else "")
    if not tensor.is_floating_point():
        raise invalid_type(where, "tensor", "be floating", tensor, "Its draws would be cut to whole numbers.")
    check_generator(where, generator)


def check_generator(where: str, generator: torch.Generator | None) -> None:
    """Raise an error in `where`'s name unless this is a generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        cure = "For a seed write torch.Generator().manual_seed(seed)."
        raise invalid_type(where, "generator", "be a torch.Generator or None", generator, cure)


def finite_number(where: str, argument: str, value: float, least: float = -math.inf) -> float:
    """The value, or an error in `where`'s name unless it is a finite number, and at least `least`."""
    try:
        usable = math.isfinite(value) and value >= least
    except TypeError:
        raise invalid_type(where, argument, "be a number", value) from None
    if not usable:
        condition = "be finite" if least == -math.inf else f"be finite and at least {least:g}"
        raise invalid(where, argument, condition, value)
    return value


def _fans(where: str, tensor: Tensor) -> Fans:
    if tensor.ndim < 2:
        cure = "A bias or a normalization scale has no fans: set it to zero or one."
        raise invalid(where, "tensor", "have at least two dimensions", tensor, cure)
    kernel = math.prod(tensor.shape[2:])
    return float(tensor.shape[1] * kernel), float(tensor.shape[0] * kernel)


def _scale_variance_(
    where: str, tensor: Tensor, scale: float, mode: str, distribution: str, generator: torch.Generator | None
) -> Tensor:
    _check_drawn(where, tensor, generator)
    return draw_(tensor, deviation(where, _fans(where, tensor), scale, mode), distribution, generator)


def _he_scale(where: str, negative_slope: float) -> float:
    return 2 / (1 + finite_number(where, "negative_slope", negative_slope) ** 2)


def _torch_scale(where: str, nonlinearity: str, a: float) -> float:
    if nonlinearity not in _TORCH_NONLINEARITIES:
        raise unknown(where, "nonlinearity", nonlinearity, _TORCH_NONLINEARITIES)
    return torch.nn.init.calculate_gain(nonlinearity, finite_number(where, "a", a)) ** 2  # type: ignore[arg-type]


@torch.no_grad()
def _assign_(tensor: Tensor, values: Tensor) -> Tensor:
    return tensor.copy_(values)
