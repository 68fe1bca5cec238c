"""Taking a call of batch_norm out of somebody's forward, or giving a call of conv2d a bias: by torch.fx.

Only the module whose forward makes the call is traced, with the modules inside it as they are. What is traced holds for
the arguments that were seen: those that are no tensors become constants, which the new forward insists on. Not random.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor, fx, nn

from homeostat.errors import invalid
from homeostat.nn import functional as fast
from homeostat.parts.activation import make_activation
from homeostat.parts.dataflow import Call, Dataflow, Value, replace
from homeostat.parts.fold.layers import BATCH_NORMS, WEIGHTED, Refusal, Weighted

_INTERNAL = frozenset(vars(nn.Module()))
_PLAIN = (type(None), bool, int, float, str)
_LEAVES: Any = (math, fast)
"""Modules whose functions stay calls in a graph."""
_TENSORS = object()
"""Stands for an argument that holds tensors."""


class Rewriting:
    """One module's forward as a graph, with what is to be changed in it; nothing changes before `build`.

    Raises: Refusal if the forward cannot be traced.
    """

    def __init__(self, flow: Dataflow, module: nn.Module) -> None:
        if "forward" in vars(module):
            raise Refusal(f"the forward of a {type(module).__name__} was replaced")
        self.module = module
        calls = flow.calls_of(module)
        constants = [_constants(module, call) for call in calls]
        if not calls or any(each != constants[0] for each in constants):
            raise Refusal(f"{type(module).__name__} is called in different ways")
        tracer = _Tracer(constants[0], _dimensions(module, calls))
        try:
            self.graph = tracer.trace(module)
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise Refusal(f"the forward of {type(module).__name__} cannot be rewritten by torch.fx: {text}") from error
        tracer.insist(self.graph)
        self.calls = len(calls)
        self.dropped: set[fx.Node] = set()
        self.left_out: set[str] = set()
        self.biased: list[tuple[fx.Node, str]] = []
        self.names: set[str] = set()

    def dropping(self, mean: Tensor, times: int) -> Callable[[], None]:
        """How to take out the calls of batch_norm with this running mean; `times` of them were seen in all."""
        found = [node for node in self.graph.nodes if node.target in BATCH_NORMS]
        places = {function: names.index("running_mean") for function, names in BATCH_NORMS.items()}
        found = [node for node in found if self._held(_argument(node, places[node.target], "running_mean")) is mean]
        self._check(len(found), times)
        return lambda: self.dropped.update(found)

    def biasing(self, layer: Weighted) -> tuple[str, Callable[[], None]]:
        """The name of the parameter that the module must get, and how to give the calls of a layer this bias."""
        weight = layer.weight.tensor
        found = [node for node in self.graph.nodes if node.target in WEIGHTED]
        found = [node for node in found if self._held(_argument(node, 1, "weight")) is weight]
        self._check(len(found), len(layer.nodes))
        name = f"{layer.weight.attribute}_bias".removeprefix("weight_")
        while getattr(self.module, name, None) is not None or name in self.names:
            name += "_"
        self.names.add(name)
        return name, lambda: self.biased.extend((node, name) for node in found)

    def build(self) -> nn.Module:
        """The module with its forward rewritten; it shares everything else with the old one."""
        for node in self.dropped:
            node.replace_all_uses_with(self._rest(node))
            self.left_out |= {str(each.target) for each in node.all_input_nodes if each.op == "get_attr"}
            self.graph.erase_node(node)
        for node, name in self.biased:
            with self.graph.inserting_before(node):
                bias = self.graph.get_attr(name)
            if len(node.args) > 2:
                node.update_arg(2, bias)
            else:
                node.update_kwarg("bias", bias)
        for node in reversed(self.graph.nodes):
            if node.op == "get_attr" and not node.users:
                self.graph.erase_node(node)
        new = fx.GraphModule(self.module, self.graph, type(self.module).__name__)
        self._share(new)
        return new.train(self.module.training)

    def _rest(self, node: fx.Node) -> Any:
        """What is left of a call of batch_norm: its input, with the residual and the activation of homeostat's."""
        input = _argument(node, 0, "input")
        residual, activation = node.kwargs.get("residual"), node.kwargs.get("activation")
        if residual is None and activation in (None, "identity"):
            return input
        with self.graph.inserting_before(node):
            return self.graph.call_function(add_activated, (input, residual, activation))

    def _share(self, new: nn.Module) -> None:
        """What the forward does not use, others may."""
        for store in ("_modules", "_parameters", "_buffers"):
            for name, held in vars(self.module)[store].items():
                if name not in self.left_out:
                    vars(new)[store].setdefault(name, held)
        for name, value in vars(self.module).items():
            if name not in _INTERNAL:
                vars(new).setdefault(name, value)

    def _held(self, argument: Any) -> Any:
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        return attrgetter(str(argument.target))(self.module)

    def _check(self, found: int, times: int) -> None:
        if not found or found * self.calls != times:
            raise Refusal(
                f"the forward of {type(self.module).__name__} calls it {times} times, its graph {found} times"
            )


class _Sized(fx.Proxy):
    """A tensor of known dimension, so that forwards may check it."""

    def dim(self) -> int:
        """The dimension; the graph will insist on it."""
        return self.tracer.dimension_of(self.node)  # type: ignore[attr-defined]

    ndim = property(dim)


class _Tracer(fx.Tracer):
    """Leaves modules inside as they are, and takes what was no tensor for the constant that it was."""

    def __init__(self, constants: dict[str, Any] | None = None, dimensions: dict[str, int] | None = None) -> None:
        super().__init__(autowrap_modules=_LEAVES, param_shapes_constant=True)
        self.constants = constants or {}
        self.dimensions = dimensions or {}
        self.asked: set[fx.Node] = set()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """All are."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Arguments know their dimension."""
        return (_Sized if node.op == "placeholder" and node.target in self.dimensions else fx.Proxy)(node, self)

    def create_proxy(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> Any:
        """A placeholder for a constant stays in the signature, and is not looked at; *args and **kwargs are opened."""
        proxy: Any = super().create_proxy(kind, target, *args, **kwargs)
        if kind != "placeholder" or target not in self.constants:
            return proxy
        constant = self.constants[target]
        if isinstance(constant, _Arguments):
            return _Arguments(proxy[place] if each is _TENSORS else each for place, each in enumerate(constant))
        if isinstance(constant, _Keywords):
            return _Keywords({name: proxy[name] if each is _TENSORS else each for name, each in constant.items()})
        return constant

    def dimension_of(self, node: fx.Node) -> int:
        """The dimension of an argument."""
        self.asked.add(node)
        return self.dimensions[str(node.target)]

    def insist(self, graph: fx.Graph) -> None:
        """Make the graph raise an error for other constants and other dimensions, where these were asked for."""
        placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        for node in placeholders:
            varying = isinstance(self.constants.get(str(node.target)), _Arguments | _Keywords)
            with graph.inserting_before((node if varying else placeholders[-1]).next):  # before it is opened
                if node.target in self.constants:
                    _insist(graph, node, self.constants[node.target])
                if node in self.asked:
                    dimension = graph.call_method("dim", (node,))
                    expected = self.dimensions[node.target]
                    graph.call_function(expect_constant, (dimension, expected, f"{node.target}.dim()"))


class _Arguments(tuple[Any, ...]):
    """What *args hold; a class of its own, which torch.fx leaves as it is."""


class _Keywords(dict[str, Any]):
    """What **kwargs hold."""


def _insist(graph: fx.Graph, node: fx.Node, constant: Any) -> None:
    """Make a graph raise an error where an argument is not what it was."""
    name = str(node.target)
    if isinstance(constant, _Arguments | _Keywords):
        keys: Any = sorted(constant) if isinstance(constant, _Keywords) else list(range(len(constant)))
        constants: Any = {key: constant[key] for key in keys if constant[key] is not _TENSORS}
        graph.call_function(expect_held, (node, keys, constants, name.strip("*")))
    else:
        graph.call_function(expect_constant, (node, constant, name))


def add_activated(input: Any, residual: Any, activation: str | None) -> Any:
    """What is left of homeostat's batch_norm when its normalization is folded: activation(input + residual)."""
    if isinstance(input, fx.Proxy):
        return _traced(add_activated, input, residual, activation)
    return make_activation(activation or "identity")(input if residual is None else input + residual)


def expect_held(held: Any, keys: list[Any], constants: dict[Any, Any], name: str) -> None:
    """Raise an error unless *args or **kwargs hold what they held when the model was folded."""
    if isinstance(held, fx.Proxy):
        _traced(expect_held, held, keys, constants, name)
        return
    found = sorted(held) if isinstance(held, dict) else list(range(len(held)))
    expect_constant(found, keys, f"keys of {name}" if isinstance(held, dict) else f"places of {name}")
    for key, constant in constants.items():
        expect_constant(held[key], constant, f"{name}[{key!r}]")


def expect_constant(value: Any, constant: Any, name: str) -> None:
    """Raise an error unless an argument is what it was when the model was folded."""
    if isinstance(value, fx.Proxy):
        _traced(expect_constant, value, constant, name)
    elif isinstance(value, Tensor) or value != constant:
        condition = f"be {constant!r}, as it was when the model was folded"
        raise invalid("fold", name, condition, value, "Fold the model with a sample that is used like this.")


def _traced(function: Callable[..., Any], argument: fx.Proxy, *more: Any) -> fx.Proxy:
    """A call for somebody who traces the rewritten module, as unpickling it does."""
    return argument.tracer.create_proxy("call_function", function, (argument, *more), {})


def _constants(module: nn.Module, call: Call) -> dict[str, Any]:
    """The arguments of a call that hold no tensor, by name; all that *args and **kwargs hold."""
    signature = inspect.signature(module.forward)
    bound = signature.bind(*call.args, **call.kwargs)
    bound.apply_defaults()
    constants: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            held = (_constant(module, f"{name}[{place}]", each) for place, each in enumerate(value))
            constants[f"*{name}"] = _Arguments(held)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            constants[f"**{name}"] = _Keywords({key: _constant(module, key, each) for key, each in value.items()})
        elif (constant := _constant(module, name, value)) is not _TENSORS:
            constants[name] = constant
    return constants


def _constant(module: nn.Module, name: str, value: Any) -> Any:
    """An argument that holds no tensor."""
    tensors: list[Value] = []
    replace(value, Value, tensors.append)
    if tensors:
        return _TENSORS
    if not isinstance(value, _PLAIN):
        raise Refusal(f"the forward of {type(module).__name__} takes {name}, a {type(value).__name__}")
    return value


def _dimensions(module: nn.Module, calls: list[Call]) -> dict[str, int]:
    """The dimension of every argument that is a tensor, where all calls agree."""
    signature = inspect.signature(module.forward)
    seen: dict[str, set[int]] = {}
    for call in calls:
        for name, value in signature.bind(*call.args, **call.kwargs).arguments.items():
            if isinstance(value, Value):
                seen.setdefault(name, set()).add(value.tensor.ndim)
    return {name: dimensions.pop() for name, dimensions in seen.items() if len(dimensions) == 1}


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)
