"""Which layer can take a batch normalization into its weights: exactly, or a reason why none can.

Between the two may stand whatever moves numbers without changing them (reshape, transpose, slices), or multiplies them
all by one; how the channels of one side lie on the other is found by sending their indices through. Everything that
would see a changed value stops it: another consumer, a hook, the model's own output. Not random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod

import torch
from torch import Tensor, nn

from homeostat.parts.dataflow import Dataflow, Node, Value
from homeostat.parts.dropout import is_dropout
from homeostat.parts.fold.layers import Norm, Refusal, Weighted, argument, check_sole_use

_MOVES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims"}
    | {
        "squeeze",
        "unsqueeze",
        "contiguous",
        "clone",
        "expand",
        "expand_as",
        "view_as",
        "reshape_as",
        "getitem",
        "narrow",
    }
    | {"select", "index_select", "T", "mT", "t", "roll", "flip", "detach", "alias", "repeat"}
    | {"pixel_shuffle", "pixel_unshuffle", "channel_shuffle"}
)
_FORM = ("reshape_as", "view_as", "expand_as", "type_as", "zeros_like", "ones_like", "full_like", "empty_like")
"""Functions that take a tensor for its form alone; the first four take another one for its numbers before it."""


@dataclass(frozen=True, eq=False)
class Step:
    """One batch normalization into one layer."""

    norm: Norm
    layer: Weighted
    behind: bool
    """Whether the norm stands behind the layer, or before it."""
    channels: Tensor
    """For every output channel of the layer (input channel if the norm stands before it) the channel of the norm; -1
    where it has none."""
    factor: float = 1.0
    """What numbers are multiplied by on the way from the first of the two to the second."""


class Matcher:
    """Finds the layers for the norms of one dataflow."""

    def __init__(self, flow: Dataflow, weighted: dict[Node, Weighted | Refusal]) -> None:
        self.flow = flow
        self.weighted = weighted
        self.hooked: dict[Value, str] = {}
        for call in flow.calls:
            if call.module._forward_hooks or call.module._forward_pre_hooks:
                self.hooked.update(dict.fromkeys((*call.inputs, *call.outputs), call.name or "the model"))

    def steps(self, norm: Norm) -> list[Step]:
        """All that is needed to be rid of a norm.

        Raises: Refusal if it cannot be done exactly, with the reasons on both sides of the norm.
        """
        try:
            return self._behind(norm)
        except Refusal as refusal:
            first = refusal
        try:
            return self._before(norm)
        except Refusal as second:
            raise Refusal(f"not into what is before it: {first}; nor into what is behind it: {second}") from first

    def _behind(self, norm: Norm) -> list[Step]:
        """Into the layers that it stands behind."""
        ends = {node: source for node, source, _ in norm.nodes}
        steps = []
        for layer in dict.fromkeys(self._source(value) for _, value, _ in norm.nodes):
            check_sole_use(self.flow, layer)
            maps, factors = [], set()
            for start in layer.nodes:
                for path, _ in self._paths(start.outputs[0], ends, layer.title):
                    maps.append(self._outputs(layer, start, path, norm))
                    factors.add(_factor(path))
            steps.append(Step(norm, layer, True, *_agreed(maps, factors, layer)))
        return steps

    def _before(self, norm: Norm) -> list[Step]:
        """Into the layers that it stands before."""
        if not norm.bare:
            raise Refusal("it has an activation or a residual")
        ends = {node: argument(node, 0, "input", None) for node in self.weighted}
        maps: dict[Weighted, list[Tensor]] = {}
        factors: dict[Weighted, set[float]] = {}
        reached: dict[Weighted, set[Node]] = {}
        for _, _, value in norm.nodes:
            found = self._paths(value, ends, norm.title)
            if not found:
                raise Refusal("nothing uses its output")
            for path, end in found:
                layer = self.weighted[end]
                if isinstance(layer, Refusal):
                    raise layer
                maps.setdefault(layer, []).append(self._inputs(layer, end, path, norm, value))
                factors.setdefault(layer, set()).add(_factor(path))
                reached.setdefault(layer, set()).add(end)
        for layer in maps:
            check_sole_use(self.flow, layer)
            if set(layer.nodes) != reached[layer]:
                raise Refusal(f"{layer.title} is also called without it")
            if layer.pads and bool(norm.shift.any()):
                raise Refusal(f"{layer.title} pads with zeros, which the shift does not reach")
        return [Step(norm, layer, False, *_agreed(found, factors[layer], layer)) for layer, found in maps.items()]

    def _source(self, value: Value) -> Weighted:
        """The layer with weights that made a value."""
        while value.producer is not None and value.producer not in self.weighted:
            node = value.producer
            if not _moves(node) and _multiplier(node) is None:
                raise Refusal(f"that is {_where(node)}")
            value = node.inputs[0]
        if value.producer is None:
            raise Refusal("that is the model's input" if value.given else "that is a constant")
        layer = self.weighted[value.producer]
        if isinstance(layer, Refusal):
            raise Refusal(f"{_where(value.producer)}: {layer}")
        return layer

    def _paths(self, value: Value, ends: Mapping[Node, Value], title: str) -> list[tuple[list[Node], Node]]:
        """Every way from a value to the ends: the nodes between, and the end.

        Raises: Refusal if anything else sees the value.
        """
        if value.returned:
            raise Refusal(f"the model returns or keeps the output of {title}")
        if value in self.hooked:
            raise Refusal(f"a hook of {self.hooked[value]!r} sees the output of {title}")
        found: list[tuple[list[Node], Node]] = []
        for node in value.consumers:
            if ends.get(node) is value and node.inputs.count(value) == 1:
                found.append(([], node))
            elif (_moves(node) or _multiplier(node) is not None) and node.inputs[0] is value:
                found += [([node, *path], end) for path, end in self._paths(node.outputs[0], ends, title)]
            elif not _asks_form(node, value):
                raise Refusal(f"the output of {title} goes to {_where(node)}")
        return found

    def _outputs(self, layer: Weighted, start: Node, path: list[Node], norm: Norm) -> Tensor:
        """For every output channel of a layer the channel of the norm behind it."""
        made = start.outputs[0].tensor
        size = made.shape[layer.axis]
        labels = _sent(_numbered(made, layer.axis), path)
        if labels.shape[norm.axis] != len(norm.scale):
            raise Refusal(f"the channels of {layer.title} do not lie on those of {norm.title}")
        places = _numbered(labels, norm.axis)
        channels = labels.new_full((size,), -1)
        channels[labels.flatten()] = places.flatten()
        if not torch.equal(channels[labels], places):
            raise Refusal(f"a channel of {layer.title} becomes several in {norm.title}")
        return channels.cpu()

    def _inputs(self, layer: Weighted, end: Node, path: list[Node], norm: Norm, made: Value) -> Tensor:
        """For every input channel of a layer the channel of the norm before it."""
        labels = _sent(_numbered(made.tensor, norm.axis), path)
        rows = labels.movedim(layer.axis, 0).flatten(1)
        if not bool((rows == rows[:, :1]).all()):
            raise Refusal(f"channels of {norm.title} mix in an input of {layer.title}")
        return rows[:, 0].cpu()


def _moves(node: Node) -> bool:
    """Whether a call moves numbers and changes none."""
    if isinstance(node.function, nn.Module) or len(node.outputs) != 1 or not node.inputs:
        return False
    if node.name == "pad":
        return argument(node, 2, "mode", "constant") != "constant"
    same = node.outputs[0].tensor.dtype == node.inputs[0].tensor.dtype
    return same and node.name in _MOVES and node.outputs[0].tensor is not node.inputs[0].tensor


def _multiplier(node: Node) -> float | None:
    """The number that a call multiplies everything by, as dropout in mode "scaled" does in evaluation; or None."""
    if len(node.outputs) != 1 or len(node.inputs) != 1 or node.outputs[0].tensor is node.inputs[0].tensor:
        return None
    if isinstance(node.function, nn.Module):
        scaled = is_dropout(node.function) and getattr(node.function, "mode", "inverted") == "scaled"
        factor = 1.0 - float(node.function.p) if scaled else 0.0  # type: ignore[arg-type]
    elif node.name in ("mul", "multiply", "rmul") and len(node.args) == 2:
        factor = next((each for each in node.args if isinstance(each, int | float)), 0.0)
    elif node.name in ("div", "divide", "true_divide", "truediv") and len(node.args) == 2 and not node.kwargs:
        factor = 1.0 / node.args[1] if isinstance(node.args[1], int | float) and node.args[1] else 0.0
    else:
        return None
    return float(factor) if factor and isfinite(factor) else None


def _factor(path: list[Node]) -> float:
    """What numbers are multiplied by on a path."""
    return prod(_multiplier(node) or 1.0 for node in path)


def _asks_form(node: Node, value: Value) -> bool:
    """Whether a call takes nothing of a value but its form."""
    return node.name in _FORM and node.inputs.index(value) == int(node.name.endswith("_as"))


def _numbered(tensor: Tensor, axis: int) -> Tensor:
    """A tensor of the same form that holds at every place its index on one axis."""
    numbers = torch.arange(tensor.shape[axis], device=tensor.device)
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return torch.empty_like(tensor, dtype=torch.int64).copy_(numbers.view(shape))


def _sent(labels: Tensor, path: list[Node]) -> Tensor:
    """Labels after the functions on a path."""
    for node in (node for node in path if _multiplier(node) is None):
        try:
            labels = node.run({node.inputs[0]: labels})
        except Exception as error:
            raise Refusal(f"{_where(node)} stands between, and does not run on whole numbers: {error}") from error
    return labels


def _agreed(maps: list[Tensor], factors: set[float], layer: Weighted) -> tuple[Tensor, float]:
    """The one map and the one factor that all calls have."""
    if len(factors) > 1:
        raise Refusal(f"the numbers of {layer.title} are multiplied differently at every call")
    if any(not torch.equal(each, maps[0]) for each in maps[1:]):
        raise Refusal(f"the channels of {layer.title} lie differently at every call")
    return maps[0].cpu(), factors.pop()


def _where(node: Node) -> str:
    return f"{node.name} in {node.module_name!r}" if node.module_name else node.name
