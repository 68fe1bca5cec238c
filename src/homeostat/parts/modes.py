"""The mode that a model runs in, changed for a while: evaluation throughout, some layers in training, all put back.

Flags are set one by one, without `train()` and `eval()`, which a user may have overridden. Also here: what counts as
dropout, and nests of tensors as data loaders give them. Not random.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from homeostat.nn import functional as fast

DROPPING_FUNCTIONS: dict[Callable[..., Any], str] = {
    **{getattr(F, name): "training" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d")},
    **{getattr(F, name): "training" for name in ("alpha_dropout", "feature_alpha_dropout")},
    **{getattr(torch, name): "train" for name in ("dropout", "feature_dropout")},
    **{getattr(torch, name): "train" for name in ("alpha_dropout", "feature_alpha_dropout")},
}
"""torch's dropout functions, (input, p, training, ...), and how each calls its third argument."""

FAST_DROPPING_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    {
        *(fast.dropout, fast.dropout1d, fast.dropout2d, fast.dropout3d, fast.drop_path),
        *(fast.alpha_dropout, fast.feature_alpha_dropout, fast.gaussian_dropout),
        *(fast.drop_connect_linear, fast.drop_connect_conv1d, fast.drop_connect_conv2d, fast.drop_connect_conv3d),
    }
)
"""homeostat's, which have an argument `training` and one of `p` and `drop_prob`."""

_DROPS_BY_NAME = re.compile("drop_?(out|path|connect|block)|stochastic_?depth", re.IGNORECASE)
_PROBABILITIES = ("p", "drop_prob", "dropout", "drop_rate")


def drop_probability(module: nn.Module) -> float:
    """The probability with which a module drops something in training; 0 for a module that drops nothing.

    Known are torch's and homeostat's dropout layers, attention and recurrent layers that drop inside, and layers
    without submodules whose class is named after dropout (DropPath, StochasticDepth, StableDropout); of these, one that
    does not say how often counts as 1.

    Example:
        >>> drop_probability(nn.Dropout(0.2)), drop_probability(nn.GRU(2, 2)), drop_probability(nn.ReLU())
        (0.2, 0.0, 0.0)
    """
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return float(module.dropout)
    if isinstance(module, _DropoutNd):
        return float(module.p)
    if module._modules or not _DROPS_BY_NAME.search(type(module).__name__):
        return 0.0
    said = [getattr(module, name, None) for name in _PROBABILITIES]
    return next((float(p) for p in said if isinstance(p, int | float)), 1.0)


@contextmanager
def only_training(model: nn.Module, layers: Iterable[nn.Module]) -> Iterator[None]:
    """Evaluation mode for every module of the model but `layers`, which are in training mode; then all as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.training = True
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def dropping(model: nn.Module, layers: Iterable[nn.Module] = ()) -> Iterator[DropoutCalls]:
    """Evaluation mode, but everything that drops does so, and `layers` are in training mode too.

    Gives the watch over dropout functions: `nn` layers and `F.dropout(x, p, self.training)` alike.
    """
    drops = [module for module in model.modules() if drop_probability(module) > 0]
    with only_training(model, [*drops, *layers]), DropoutCalls() as calls:
        yield calls


def _always(p: float, training: bool) -> tuple[float, bool]:
    return p, training or p > 0


class DropoutCalls(TorchFunctionMode):
    """While it is on, torch's and homeostat's dropout functions drop whatever mode they are told, if p is above 0.

    Being a torch function mode, it also closes the fused paths of torch's encoder layers, which would drop nothing.

    Args:
        altered: (p, training) of a call -> those that it is made with instead.
    """

    def __init__(self, altered: Callable[[float, bool], tuple[float, bool]] = _always) -> None:
        super().__init__()
        self.altered = altered
        self.count = 0
        """How many calls dropped something."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a dropout function otherwise; pass on everything else."""
        kwargs = kwargs or {}
        asked = dropout_asked(func, args, kwargs)
        if asked is None:
            return func(*args, **kwargs)
        p, training = self.altered(*asked)
        self.count += training and p > 0
        if func in FAST_DROPPING_FUNCTIONS:
            call = fast_dropout_call(func, args, kwargs)
            call.arguments.update({_fast_name(call): p, "training": training})
            return func(*call.args, **call.kwargs)
        input, _, rest = dropout_arguments(args, kwargs)
        return func(input, p, training, **rest)


def dropout_asked(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[float, bool] | None:
    """(p, training) of a call of one of torch's or homeostat's dropout functions; None for any other function."""
    if function in FAST_DROPPING_FUNCTIONS:
        call = fast_dropout_call(function, args, kwargs)
        return fast_dropout_probability(call), call.arguments["training"]
    if function not in DROPPING_FUNCTIONS:
        return None
    training = args[2] if len(args) > 2 else kwargs.get(DROPPING_FUNCTIONS[function], True)
    return dropout_arguments(args, kwargs)[1], training


def dropout_arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor, float, dict[str, Any]]:
    """Of a call of one of torch's dropout functions: input, p, and what comes behind `training`."""
    named = dict(zip(("input", "p", "training", "inplace"), args, strict=False)) | dict(kwargs)
    rest = {"inplace": named["inplace"]} if "inplace" in named else {}
    return named["input"], named.get("p", 0.5), rest


def fast_dropout_call(function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    """The arguments of a call of one of homeostat's dropout functions, by name and with those that were not given."""
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    return call


def fast_dropout_probability(call: inspect.BoundArguments) -> float:
    """The probability of dropping in such a call."""
    p: float = call.arguments[_fast_name(call)]
    return p


def _fast_name(call: inspect.BoundArguments) -> str:
    return "p" if "p" in call.arguments else "drop_prob"


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Run compiled models as they were written: hooks and modes set after compiling would not be seen otherwise."""
    compiled = any(
        module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"
        for module in model.modules()
    )
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same nest of mappings, tuples and lists with every tensor replaced; other leaves stay as they are."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(function, part) for part in value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, part) for key, part in value.items()}
    return value


def device_of(model: nn.Module) -> torch.device | None:
    """The device of the model's first parameter or buffer; None if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return None
