"""What a model computes: which function it called on which tensors, found by running it once on a sample.

`record` runs the model in evaluation mode, without gradients, on a random stream of its own, and leaves it as it was.
Every call of a function of torch becomes a `Node`, every tensor a `Value`; a function that calls others is one node.
Layers of `homeostat.nn` are one node each. What is here says nothing about training mode, and one run sees one way
through a model that chooses its way by its input. Not random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch._C import DisableTorchFunction
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from homeostat.parts.layers import Sample, call_once, check_traceable, storage_of, tensors_in, untouched

_ASKS = frozenset(
    {"size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size", "get_device", "type"}
    | {"is_contiguous", "is_floating_point", "is_complex", "is_signed", "is_pinned", "is_inference", "is_same_size"}
    | {"is_conj", "is_neg", "is_shared", "is_tensor", "has_names", "result_type", "can_cast"}
    | {"__len__", "__format__", "__repr__", "__hash__"}
)
"""Functions that ask about a tensor's form, and not for its numbers."""


@dataclass(eq=False, repr=False)
class Value:
    """A tensor at one moment: writing into it makes a new value of the same tensor."""

    index: int
    tensor: Tensor
    """The tensor itself, kept alive; its numbers may be overwritten by now, its shape and dtype are right."""
    producer: Node | None = None
    """The node that made it; None for the sample, parameters, buffers, and constants made outside the run."""
    consumers: list[Node] = field(default_factory=list)
    """The nodes that took it, in order; views and writes into it count."""
    names: tuple[str, ...] = ()
    """All names of a parameter or buffer in the model."""
    given: bool = False
    """Whether it is a tensor of the sample."""
    returned: bool = False
    """Whether the model returned it, or kept it in an attribute."""

    @property
    def name(self) -> str | None:
        """The first name of a parameter or buffer; None for what was computed."""
        return self.names[0] if self.names else None

    def __repr__(self) -> str:
        return f"%{self.index}" if self.name is None else self.name


@dataclass(eq=False, repr=False)
class Node:
    """One call of a function on tensors."""

    index: int
    function: Callable[..., Any]
    """What was called: a function or method of torch, or the module for a layer of `homeostat.nn`."""
    args: tuple[Any, ...]
    """Its arguments, with a `Value` in the place of every tensor."""
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    """All values that it took, in the order of the arguments; a module's parameters and buffers come last."""
    outputs: tuple[Value, ...]
    """All values that it made, also by writing into an input or into the memory behind one; none for x.item()."""
    module: nn.Module
    """The innermost module that was running; the module itself for a layer of `homeostat.nn`."""
    module_name: str
    """Its first name in the model; "" for the model itself."""

    @property
    def name(self) -> str:
        """The function's name without underscores around it, such as "conv2d" or "add"; a module's class."""
        if isinstance(self.function, nn.Module):
            return type(self.function).__name__
        found = getattr(self.function, "__name__", type(self.function).__name__)
        if found == "__get__":  # the way to an attribute, x.T
            found = getattr(getattr(self.function, "__self__", None), "__name__", found)
        return str(found).strip("_")

    def run(self, values: Mapping[Value, Any]) -> Any:
        """Call the function again, with other tensors (or anything else) in the place of some values.

        Example:
            >>> import torch
            >>> flow = record(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), torch.zeros(1, 1))
            >>> node = flow.nodes[1]
            >>> node.run({node.inputs[0]: torch.tensor([0.0, 100.0])})
            tensor([0., 1.])
        """

        def tensor_of(value: Value) -> Any:
            return values.get(value, value.tensor)

        args, kwargs = replace((self.args, self.kwargs), Value, tensor_of)
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        outputs = ", ".join(map(repr, self.outputs)) or "-"
        where = f"  ({self.module_name})" if self.module_name else ""
        return f"{outputs} = {self.name}({', '.join(map(repr, self.inputs))}){where}"


@dataclass(eq=False, repr=False)
class Call:
    """One call of a module: what went in and out, and which nodes ran meanwhile."""

    module: nn.Module
    name: str
    """Its first name in the model."""
    args: tuple[Any, ...]
    """Its arguments, with a `Value` in the place of every tensor."""
    kwargs: dict[str, Any]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...] = ()
    start: int = 0
    """The index of the first node that ran in it."""
    stop: int = 0
    """The index behind the last one."""
    parent: Call | None = None
    """The call it was made in; None for the model's own."""

    def __repr__(self) -> str:
        return f"Call({self.name!r}, {list(self.inputs)} -> {list(self.outputs)})"


@dataclass(frozen=True, eq=False)
class Dataflow:
    """All nodes of one run in the order of execution, all values, all calls of modules in the order of entry."""

    model: nn.Module
    nodes: tuple[Node, ...]
    values: tuple[Value, ...]
    calls: tuple[Call, ...]
    output: Any
    """What the model returned, with a `Value` in the place of every tensor."""
    names: dict[nn.Module, str]
    """The first name of every module in the model."""

    @cached_property
    def holders(self) -> dict[int, list[tuple[nn.Module, str]]]:
        """By the identity of a tensor, every module that holds it as a parameter or buffer, and the attribute."""
        held: dict[int, list[tuple[nn.Module, str]]] = {}
        for module in self.names:
            for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
                held.setdefault(id(tensor), []).append((module, attribute))
        return held

    @cached_property
    def constants(self) -> frozenset[Value]:
        """All values that depend on parameters, buffers and numbers alone."""
        found = {value for value in self.values if value.producer is None and value.names}
        for node in self.nodes:
            if node.inputs and found.issuperset(node.inputs):
                found.update(node.outputs)
        return frozenset(found)

    def value(self, name: str) -> Value:
        """The value that a parameter or buffer had before the run, by any of its names."""
        return next(value for value in self.values if name in value.names)

    def calls_of(self, module: nn.Module) -> list[Call]:
        """Every call of one module."""
        return [call for call in self.calls if call.module is module]

    def nodes_in(self, call: Call) -> tuple[Node, ...]:
        """The nodes that ran while a module was called, in it or in what it called."""
        return self.nodes[call.start : call.stop]

    def __str__(self) -> str:
        """A line for each node."""
        return "\n".join(map(repr, self.nodes))


def record(model: nn.Module, sample: Sample) -> Dataflow:
    """Run the model once on the sample and say what was computed from what.

    A function that hands back its very input, such as dropout in evaluation mode or contiguous() of what is contiguous,
    computes nothing and is left out: behind it stands the same value. Code outside of torch is not seen; what it took
    shows as a node without outputs (x.numpy()), what it made as a value without producer.

    Args:
        model: any module that can run; left as it was.
        sample: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments, on the
            model's device.
    Raises: InvalidValue for models that cannot be followed (compiled, scripted, wrapped for several devices, lazy
        layers before their first batch); whatever the model itself raises on the sample, with a note.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> print(record(model, torch.zeros(3, 4)))
        %4 = linear(%3, 0.weight, 0.bias)  (0)
        %5 = relu(%4)  (1)
        %6 = linear(%5, 2.weight)  (2)
    """
    check_traceable("record", model)
    recorder = _Recorder(model, sample)
    with untouched(model), recorder.watching():
        returned = call_once(model, sample)
    return recorder.dataflow(returned)


def replace(nest: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """A copy of a nest of tuples, lists, dictionaries and slices with everything of a kind changed.

    Example:
        >>> replace((1, [2, {"a": "text"}]), int, str)
        ('1', ['2', {'a': 'text'}])
    """
    if isinstance(nest, kind):
        return change(nest)
    if isinstance(nest, tuple):
        parts = [replace(part, kind, change) for part in nest]
        return type(nest)(*parts) if hasattr(nest, "_fields") else tuple(parts)
    if isinstance(nest, list):
        return [replace(part, kind, change) for part in nest]
    if isinstance(nest, dict):
        return {key: replace(part, kind, change) for key, part in nest.items()}
    if isinstance(nest, slice):
        return slice(*(replace(part, kind, change) for part in (nest.start, nest.stop, nest.step)))
    return nest


def is_fast_layer(module: nn.Module) -> bool:
    """Whether a module is a layer of `homeostat.nn`, or of a class made from one."""
    return any(base.__module__.startswith("homeostat.nn.") for base in type(module).__mro__)


class _Plain(TorchDispatchMode):
    """Does nothing; its presence sends homeostat's kernels through torch's dispatcher, where calls are seen."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Recorder(TorchFunctionMode):
    """Sees every function called, and by hooks every module."""

    def __init__(self, model: nn.Module, sample: Sample) -> None:
        super().__init__()
        self.model = model
        self.names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.stack: list[tuple[Call, tuple[Any, Any]]] = []
        self.newest: dict[int, tuple[Value, int]] = {}
        self.writers: dict[int, Node] = {}
        self.hidden = 0
        states = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        for name, tensor in states:
            self.value(tensor).names += (name,)
        for tensor in tensors_in(sample):
            self.value(tensor).given = True

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Attach the hooks and the modes; take them off again."""
        with ExitStack() as stack:
            for module in self.names:
                entering = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                leaving = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(entering.remove)
                stack.callback(leaving.remove)
            stack.enter_context(_Plain())
            stack.enter_context(self)
            yield

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.hidden:
            return func(*args, **kwargs)
        arguments = replace((args, kwargs), Tensor, self.value)
        output = func(*args, **kwargs)
        self._note(func, arguments, output)
        return output

    def value(self, tensor: Tensor) -> Value:
        """The value that a tensor has now."""
        known = self.newest.get(id(tensor))
        version = _version(tensor)
        if known is None:
            return self._new(tensor, None)
        value, seen = known
        if seen == version:
            return value
        writer = self.writers.get(storage_of(tensor))  # wrote through a view of it, or what it is a view of
        new = self._new(tensor, writer)
        if writer is not None:
            writer.inputs += (value,)
            writer.outputs += (new,)
            value.consumers.append(writer)
        return new

    def dataflow(self, returned: Any) -> Dataflow:
        """What was seen, once the model has returned."""
        output = replace(returned, Tensor, self.value)
        for tensor in tensors_in(returned):
            self.value(tensor).returned = True
        for module in self.names:
            attributes = {key: kept for key, kept in vars(module).items() if key not in ("_parameters", "_buffers")}
            for tensor in tensors_in([kept for kept in attributes.values() if not isinstance(kept, nn.Module)]):
                if id(tensor) in self.newest:
                    self.value(tensor).returned = True
        return Dataflow(self.model, tuple(self.nodes), tuple(self.values), tuple(self.calls), output, self.names)

    def _new(self, tensor: Tensor, producer: Node | None) -> Value:
        value = Value(len(self.values), tensor, producer)
        self.values.append(value)
        self.newest[id(tensor)] = value, _version(tensor)
        return value

    def _is_written(self, tensor: Tensor) -> bool:
        """Whether a tensor changed since its newest value was made."""
        return self.newest[id(tensor)][1] != _version(tensor)

    def _note(self, function: Any, arguments: tuple[Any, Any], output: Any) -> None:
        """Add the node of a call that made or read tensors."""
        inputs = _values_in(arguments)
        written = [value for value in inputs if self._is_written(value.tensor)]
        if inputs and output is inputs[0].tensor and output.is_inference() and _is_in_place(function):
            written.append(inputs[0])  # torch counts no writes into such tensors
        taken = {id(value.tensor) for value in inputs}
        made = [tensor for tensor in tensors_in(output) if id(tensor) not in taken]
        call, _ = self.stack[-1] if self.stack else (None, None)
        module = self.model if call is None else call.module
        node = Node(len(self.nodes), function, *arguments, tuple(inputs), (), module, self.names[module])
        if not (made or written) and (tensors_in(output) or not inputs or _asks(node, output)):
            return
        self.nodes.append(node)
        for value in inputs:
            value.consumers.append(node)
        outputs = []
        for tensor in {id(value.tensor): value.tensor for value in written}.values():
            self.writers[storage_of(tensor)] = node
            outputs.append(self._new(tensor, node))
        node.outputs = tuple(outputs) + tuple(self._new(tensor, node) for tensor in made)

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        with DisableTorchFunction():
            arguments: tuple[Any, Any] = replace((args, kwargs), Tensor, self.value)
            parent = self.stack[-1][0] if self.stack else None
            name, inputs = self.names[module], tuple(_values_in(arguments))
            call = Call(module, name, arguments[0], arguments[1], inputs, start=len(self.nodes), parent=parent)
            self.calls.append(call)
            self.stack.append((call, arguments))
            self.hidden += is_fast_layer(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        with DisableTorchFunction():
            call, arguments = self.stack[-1]
            if is_fast_layer(module):
                self.hidden -= 1
                if not self.hidden:
                    self._note_layer(module, arguments, output)
            self.stack.pop()
            call.stop = len(self.nodes)
            call.outputs = tuple(self.value(tensor) for tensor in tensors_in(output))

    def _note_layer(self, module: nn.Module, arguments: tuple[Any, Any], output: Any) -> None:
        """A layer of homeostat.nn as a node, with its parameters and buffers behind its inputs."""
        before = len(self.nodes)
        self._note(module, arguments, output)
        if len(self.nodes) > before:
            states = [self.value(state) for state in (*module.parameters(), *module.buffers())]
            self.nodes[-1].inputs += tuple(states)
            for state in states:
                state.consumers.append(self.nodes[-1])


def _values_in(nest: Any) -> list[Value]:
    found: list[Value] = []
    replace(nest, Value, found.append)
    return found


def _version(tensor: Tensor) -> int:
    """How often the tensor's memory was written to, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version


def _is_in_place(function: Any) -> bool:
    name = getattr(function, "__name__", "")
    return name.endswith("_") and not name.endswith("__")


def _asks(node: Node, output: Any) -> bool:
    """Whether a call without tensors in its result only asked about a tensor's form."""
    attribute = getattr(node.function, "__name__", "") == "__get__"
    return attribute or getattr(node.function, "__name__", "") in _ASKS
