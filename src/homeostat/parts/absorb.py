"""Putting the evaluation factor of dropout in mode "scaled" into the weights behind it, and taking the dropout out.

Such a layer multiplies by 1 - p in evaluation. The factor is followed through what the model computes: it passes
functions f with f(c x) = c f(x) for c > 0, such as relu, pooling and views, sums of values that carry the same factor,
and products; a Linear or convolution takes it into its weight: W (c x) + b = (c W) x + b. Everything else is refused.
Not random.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from homeostat import nn as fast
from homeostat.errors import NoEffectWarning, invalid
from homeostat.parts.dataflow import Dataflow, Node, Value, record
from homeostat.parts.edit import Changes
from homeostat.parts.extended import Copy
from homeostat.parts.layers import Sample, call, check_traceable, tensors_in, untouched
from homeostat.parts.use import become_

_TECHNIQUE = "absorb_dropout_scale_"

_WEIGHTED = {"linear", *(f"conv{dims}d" for dims in (1, 2, 3)), *(f"conv_transpose{dims}d" for dims in (1, 2, 3))}
_PRODUCTS = {"matmul", "rmatmul", "mm", "bmm", "mul", "rmul", "imul", "multiply", "einsum", "dot", "mv", "outer"}
_QUOTIENTS = {"div", "truediv", "itruediv", "divide"}
_HOMOGENEOUS = {
    *("relu", "leaky_relu", "prelu", "rrelu", "neg", "abs", "clone", "contiguous", "detach", "to", "float", "double"),
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim", "t", "T"),
    *("mT", "swapaxes", "expand", "expand_as", "repeat", "view_as", "reshape_as", "flip", "roll", "getitem", "select"),
    *("narrow", "chunk", "split", "unbind", "index_select", "gather", "unfold", "fold", "pixel_shuffle"),
    *("mean", "sum", "amax", "amin", "cumsum", "interpolate", "upsample"),
    *(f"{kind}_pool{dims}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)),
}
"""Functions of one tensor that a positive factor passes through."""
_ADDITIVE = {
    "add",
    "radd",
    "iadd",
    "sub",
    "isub",
    "subtract",
    "cat",
    "concat",
    "concatenate",
    "stack",
    "maximum",
    "minimum",
}
"""Functions of several tensors that a factor passes through if all of them carry it."""


def absorb_dropout_scale_(model: nn.Module, sample: Sample, *, rtol: float = 1e-4) -> Changes:
    """Push the factor 1 - p of dropout layers in mode "scaled" into the next layers' weights; the dropout is gone then.

    W <- (1 - p) W for every Linear or convolution behind such a layer. Evaluation gives what it gave, checked on the
    sample; training does not drop any more, so this is for a finished model. Dropout in the inverted mode, torch's, has
    no factor and stays.

    Args:
        model: changed in place: weights by their factor, dropout layers into identities with the same names.
        sample: what the model is called with, on its device: a tensor, a tuple of arguments or a mapping of keywords.
        rtol: how far outputs may change, relative to the largest; for half precision at least 32 of its epsilons.
    Returns: what changed; a NoEffectWarning is given where there is no such layer.
    Raises: InvalidValue, with the reason, where it is not exact: a factor meets a nonlinearity, a normalization, a sum
        with something that does not carry it, a weight that is also used without it, or the model's output. The model
        is unchanged then.
    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html, figure 2.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), fast.Dropout(0.25, mode="scaled"), nn.Linear(8, 2))
        >>> print(absorb_dropout_scale_(model, torch.zeros(3, 4)))
        absorb_dropout_scale_
          2: Dropout(0.25) removed
          3.weight: multiplied by 0.75
    """
    check_traceable(_TECHNIQUE, model)
    if isinstance(rtol, bool) or not isinstance(rtol, int | float) or not 0 < rtol < 1:
        raise invalid(_TECHNIQUE, "rtol", "be a number above 0 and below 1", rtol)
    flow = record(model, sample)
    layers = {name: module for name, module in model.named_modules() if _scales(module)}
    if not layers:
        text = f'{_TECHNIQUE} changed nothing in {type(model).__name__}: it has no dropout layer with mode="scaled"'
        warnings.warn(text, NoEffectWarning, stacklevel=2)
        return Changes(_TECHNIQUE, ())
    for name, module in layers.items():
        if module.p == 1:
            raise _refusal(f"{name!r} has p = 1: its factor would set the weights behind it to zero")
        if not flow.calls_of(module):
            raise _refusal(f"{name!r} did not run on the sample, so what is behind it is not known")
    factors = _weight_factors(flow)
    lines = [(f"{type(module).__name__}({module.p:g}) removed", name) for name, module in layers.items()]
    lines += [(f"multiplied by {factor:g}", weight.names[0]) for weight, factor in factors.items()]
    before = _outputs(model, sample)
    kinds = {module: Copy if _is_written_to(flow, module) else nn.Identity for module in layers.values()}
    with _taken_back_on_error(list(layers.values()), [weight.tensor for weight in factors]):
        for module, kind in kinds.items():
            become_(module, kind)
        with torch.no_grad():
            for weight, factor in factors.items():
                weight.tensor.mul_(factor)
        _compare(before, _outputs(model, sample), rtol)
    for module in layers.values():
        for setting in ("p", "inplace", "mode", "backend"):
            vars(module).pop(setting, None)
    return Changes(_TECHNIQUE, tuple(lines))


def _scales(module: nn.Module) -> bool:
    """Whether a module is dropout that multiplies in evaluation."""
    kinds = (fast.Dropout, fast.Dropout1d, fast.Dropout2d, fast.Dropout3d)
    return isinstance(module, kinds) and module.mode == "scaled" and module.p > 0


def _is_written_to(flow: Dataflow, module: nn.Module) -> bool:
    """Whether something writes into what the module returns: then it must not return its input itself."""
    outputs = [value.tensor for node in flow.nodes if node.function is module for value in node.outputs]
    return any(tensor.is_inference() or tensor._version > 0 for tensor in outputs)


def _weight_factors(flow: Dataflow) -> dict[Value, float]:
    """What every weight behind a scaling layer is to be multiplied with.

    A value carries the factor c if it is c times what it will be without the dropout layers.
    """
    carried: dict[Value, float] = {}
    taken: dict[Node, tuple[Value, float]] = {}
    for node in flow.nodes:
        scales = isinstance(node.function, nn.Module) and _scales(node.function)
        if not scales and all(carried.get(value, 1.0) == 1.0 for value in node.inputs):
            continue
        absorbed = _absorbed(node, carried)
        if absorbed is not None:
            taken[node] = absorbed
            continue
        if not node.outputs:
            raise _refusal(f"{_title(node)} takes a value that carries a factor out of torch")
        factor = _through(node, carried)
        if isinstance(node.function, nn.Module) and scales:
            factor *= 1 - float(node.function.p)  # type: ignore[arg-type]
        carried.update(dict.fromkeys(node.outputs, factor))
    for value, factor in carried.items():
        if value.returned and factor != 1:
            where = "" if value.producer is None else f" by {_title(value.producer)}"
            raise _refusal(f"the model returns what was made{where} with the factor {factor:g}; no weight is behind it")
    factors: dict[Value, float] = {}
    for weight, factor in taken.values():
        uses = {taken[node][1] if node in taken else 1.0 for node in weight.consumers}
        if len(uses) > 1:
            raise _refusal(f"{weight.names[0]!r} is used with different factors, {sorted(uses)}")
        factors[weight] = factor
    return {weight: factor for weight, factor in factors.items() if factor != 1}


def _absorbed(node: Node, carried: dict[Value, float]) -> tuple[Value, float] | None:
    """The parameter that takes the factor of a node's input, and that factor; None if the node is no weight layer."""
    if isinstance(node.function, nn.Module):
        connected = (fast.DropConnectLinear, fast.DropConnectConv1d, fast.DropConnectConv2d, fast.DropConnectConv3d)
        if not isinstance(node.function, connected):
            return None
        given: Any = next((value for value in node.inputs if value.tensor is node.function.weight), None)
    elif node.name in _WEIGHTED:
        given = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    else:
        return None
    if not isinstance(given, Value) or not given.names:
        raise _refusal(f"the weight of {_title(node)} is computed from others, so it cannot be scaled by itself")
    data = node.args[0] if node.args else node.kwargs["input"]
    if any(carried.get(value, 1.0) != 1 for value in node.inputs if value is not data):
        raise _refusal(f"{_title(node)} takes the factor in its weight or bias")
    return given, carried.get(data, 1.0)


def _through(node: Node, carried: dict[Value, float]) -> float:
    """The factor of a node's outputs, if the function lets it through."""
    factors = [carried.get(value, 1.0) for value in node.inputs]
    scales = isinstance(node.function, nn.Module) and _scales(node.function)
    name = node.name
    if scales or (name in _HOMOGENEOUS and all(factor == 1 for factor in factors[1:])):
        return factors[0]
    if name == "pad" and not (node.kwargs.get("value") or (len(node.args) > 3 and node.args[3])):
        return factors[0]
    if name in _PRODUCTS:
        return math.prod(factors)
    if name in _QUOTIENTS and all(factor == 1 for factor in factors[1:]) and not node.kwargs.get("rounding_mode"):
        return factors[0]
    constants = [argument for argument in node.args if isinstance(argument, int | float) and argument]
    if name in _ADDITIVE and len(set(factors)) == 1 and not (constants and len(factors) == 1):
        return factors[0]
    if name in _ADDITIVE:
        raise _refusal(f"{_title(node)} takes values with different factors, {factors}")
    raise _refusal(f"{_title(node)} does not let a factor through")


@contextmanager
def _taken_back_on_error(modules: list[nn.Module], weights: list[Tensor]) -> Iterator[None]:
    """Classes and weights as they were, if what is done here fails."""
    classes, values = [type(module) for module in modules], [weight.detach().clone() for weight in weights]
    try:
        yield
    except BaseException:
        for module, kind in zip(modules, classes, strict=True):
            module.__class__ = kind
        with torch.no_grad():
            for weight, value in zip(weights, values, strict=True):
                weight.copy_(value)
        raise


def _outputs(model: nn.Module, sample: Sample) -> list[Tensor]:
    with untouched(model):
        return [tensor.clone() for tensor in tensors_in(call(model, sample))]


def _compare(before: list[Tensor], after: list[Tensor], rtol: float) -> None:
    for old, new in zip(before, after, strict=True):
        if not old.is_floating_point():
            continue
        allowed = max(rtol, 32 * torch.finfo(old.dtype).eps if old.itemsize < 4 else 0.0)
        difference = (new - old).abs().max().item() if old.numel() else 0.0
        scale = old.abs().max().item() if old.numel() else 0.0
        if not difference <= allowed * max(scale, torch.finfo(old.dtype).tiny):
            raise _refusal(f"its output on the sample changes by {difference:g}, and its largest value is {scale:g}")


def _title(node: Node) -> str:
    return f"{node.module_name!r} ({node.name})" if node.module_name else node.name


def _refusal(reason: str) -> Exception:
    cure = 'Use dropout with mode="inverted" there, which has no factor in evaluation.'
    return invalid(
        _TECHNIQUE, "model", "have a weight behind every scaling dropout that can take its factor", reason, cure
    )
