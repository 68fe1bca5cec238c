"""How functions that drop let themselves be seen from outside, as torch's own functions do.

Not random.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

Arguments = ParamSpec("Arguments")


def overridable(function: Callable[Arguments, Tensor]) -> Callable[Arguments, Tensor]:
    """Let torch function modes, subclasses of Tensor and torch.fx take over a function whose first argument is `input`.

    Without it they would see what it calls, and in evaluation, where it calls nothing, not even that it was there.

    Example:
        >>> import torch
        >>> from torch.overrides import TorchFunctionMode
        >>> class Negated(TorchFunctionMode):
        ...     def __torch_function__(self, func, types, args=(), kwargs=None):
        ...         return -func(*args, **(kwargs or {}))
        >>> @overridable
        ... def unchanged(input):
        ...     return input
        >>> x = torch.tensor(1.0)
        >>> with Negated():
        ...     y = unchanged(x)
        >>> y
        tensor(-1.)
    """

    @functools.wraps(function)
    def overridden(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Tensor:
        input = args[0] if args else kwargs.get("input")
        if has_torch_function_unary(input):
            found: Tensor = handle_torch_function(overridden, (input,), *args, **kwargs)
            return found
        return function(*args, **kwargs)

    return overridden
