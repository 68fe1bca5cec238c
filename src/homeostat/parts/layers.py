"""Which layers a model really uses, and in which order: found by running it once on a sample.

Names and attributes can mislead (a layer that is never called, an order that only `forward` knows, one layer under two
names); a run does not. The run is in evaluation mode, without gradients, on a random stream of its own, and leaves the
model as it was: mode, buffers, random state. Layers that the model applies as functions, from torch.nn.functional, are
not modules: they are only named. Not random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.overrides import TorchFunctionMode

from homeostat import seeds
from homeostat.errors import invalid, invalid_type
from homeostat.nn import functional as fast
from homeostat.parts.dropout_layers import is_dropout
from homeostat.parts.extended import Extended
from homeostat.parts.norm import is_norm

Sample = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]

RECTIFIERS: tuple[type[nn.Module], ...] = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Softplus,
)
"""Activation modules without an upper bound."""

SQUASHERS: tuple[type[nn.Module], ...] = (
    nn.Sigmoid,
    nn.Tanh,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softsign,
    nn.LogSigmoid,
)
"""Activation modules that saturate; next to rectifiers they usually are gates or bound an output."""

_FUNCTIONS: dict[Callable[..., Any], str] = {
    **{getattr(F, name): "dropout" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")},
    **{getattr(fast, name): "dropout" for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout")},
    **{getattr(F, f"{name}_norm"): "norm" for name in ("batch", "layer", "group", "instance", "rms")},
}
_WRAPPERS = {
    "OptimizedModule": "compile it afterwards",
    "DataParallel": "wrap it afterwards, and pass the module inside",
    "DistributedDataParallel": "wrap it afterwards, and pass the module inside",
    "FullyShardedDataParallel": "shard it afterwards",
    "FSDPModule": "shard it afterwards",
    "ScriptModule": "script it afterwards",
}


@dataclass(eq=False)
class Layer:
    """A module that computes something by itself, and what was seen of it."""

    names: tuple[str, ...]
    """Every name under which the model holds it; more than one if it is shared."""
    module: nn.Module
    role: str
    """"weight" (Linear, convolutions), "norm", "dropout", "activation", or "other" (attention and recurrent layers)."""
    calls: int = 0
    """How often it was called; 0 if the run did not reach it."""
    first: int = -1
    """The rank of its first call among all calls of layers."""
    last: int = -1
    """The rank of its last call."""
    input_shape: tuple[int, ...] = ()
    """Of the first call."""
    output_shapes: set[tuple[int, ...]] = field(default_factory=set)
    """Of all calls."""
    output: Tensor | None = None
    """Of the first call, as an example of device and dtype."""
    reads_input: bool = False
    """Whether it was called on the sample, on what the first layer with weights was called on, or on views of them."""
    is_output: bool = False
    """Whether the model returns its output or a view of it."""
    changed_in_place: bool = False
    """Whether something later wrote into its input or its output."""

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]

    @property
    def where(self) -> str:
        """All its names."""
        return ", ".join(self.names)

    @property
    def kind(self) -> str:
        """Its class."""
        return type(self.module).__name__

    @property
    def title(self) -> str:
        """Names and class, for messages."""
        return f"{self.where!r} ({self.kind})"


@dataclass(frozen=True, eq=False)
class Trace:
    """The layers of a model: those that ran, in the order of their first call, and those that did not."""

    layers: tuple[Layer, ...]
    idle: tuple[Layer, ...]
    """Layers that the run did not reach."""
    functional: tuple[str, ...]
    """"norm" and "dropout", where the model calls functions of torch.nn.functional instead of modules."""

    def of(self, role: str) -> list[Layer]:
        """The layers with this role that ran, in the order of their first call."""
        return [layer for layer in self.layers if layer.role == role]

    def start(self) -> int:
        """The rank of the first call of a weight, attention or recurrent layer; -1 if there is none."""
        return min((layer.first for layer in self.layers if layer.role in ("weight", "other")), default=-1)

    def end(self) -> int:
        """The rank of the last such call; -1 if there is none."""
        return max((layer.last for layer in self.layers if layer.role in ("weight", "other")), default=-1)

    def inputs(self) -> list[Layer]:
        """The weight layers that see the model's input: the first one, and those called on the sample or beside it."""
        return [layer for layer in self.of("weight") if layer.reads_input]

    def hidden(self) -> list[Layer]:
        """The weight layers whose output goes on inside the model: not called last, and not returned."""
        return [layer for layer in self.of("weight") if layer.last != self.end() and not layer.is_output]

    def before(self, layer: Layer) -> Layer | None:
        """The weight layer that was called last before the first call of `layer`."""
        return max((w for w in self.of("weight") if w.first < layer.first), key=lambda w: w.first, default=None)


def trace_layers(model: nn.Module, sample: Sample) -> Trace:
    """Run the model once on the sample and say which layers it has.

    Args:
        model: any module that can run; left as it was. Attention modules count as one layer: what is inside them is not
            called as a module.
        sample: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments, on the
            model's device.
    Raises: InvalidValue for models that cannot be traced (compiled, scripted, wrapped for several devices, lazy layers
        before their first batch); whatever the model itself raises on the sample, with a note.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(layer.name, layer.role) for layer in trace_layers(model, torch.zeros(3, 4)).layers]
        [('0', 'weight'), ('1', 'activation'), ('2', 'weight')]
    """
    check_traceable("trace_layers", model)
    recorder = _Recorder(model, sample)
    with untouched(model), recorder.watching():
        returned = call_once(model, sample)
    return recorder.trace(returned)


def call(model: nn.Module, sample: Sample) -> Any:
    """The model's output for a sample as `trace_layers` takes it."""
    if isinstance(sample, Mapping):
        return model(**sample)
    return model(*sample) if isinstance(sample, tuple | list) else model(sample)


def call_once(model: nn.Module, sample: Sample) -> Any:
    """The same; what the model raises says when it happened."""
    try:
        return call(model, sample)
    except Exception as error:
        error.add_note("This happened while homeostat ran the model once, in evaluation mode, on its sample.")
        raise


def layers_of(model: nn.Module) -> dict[nn.Module, Layer]:
    """Every layer of the model with its names and role, before anything ran; an extended layer goes by its old name."""
    layers: dict[nn.Module, Layer] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, module in modules.items():
        role = role_of(module)
        if role is not None:
            parent, _, last = name.rpartition(".")
            extended = last == "layer" and isinstance(modules[parent], Extended)
            layers.setdefault(module, Layer((), module, role)).names += (parent if extended else name,)
    return layers


def role_of(module: nn.Module) -> str | None:
    """What a module is for, in the words of `Layer.role`; None for containers and everything else."""
    if isinstance(module, nn.Linear | _ConvNd):
        return "weight"
    if is_norm(module):
        return "norm"
    if is_dropout(module):
        return "dropout"
    if isinstance(module, RECTIFIERS + SQUASHERS):
        return "activation"
    return "other" if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else None


class _Recorder(TorchFunctionMode):
    """Hooks that record every call of a layer, and every call of a function that does a layer's work.

    Being a torch function mode, it also closes the fused paths of torch's encoder layers, which call no modules.
    """

    def __init__(self, model: nn.Module, sample: Sample) -> None:
        super().__init__()
        self.layers = layers_of(model)
        self.input_storages = {storage_of(tensor) for tensor in tensors_in(sample)} - {0}
        self.functional: set[str] = set()
        self.started = False
        self.depth = 0
        self.rank = 0
        self.seen: list[tuple[Layer, Tensor, Tensor, int, int]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Attach the hooks; take them off again."""
        handles = [module.register_forward_pre_hook(self._enter) for module in self.layers]
        handles += [module.register_forward_hook(self._leave, with_kwargs=True) for module in self.layers]
        try:
            with self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note normalization and dropout that are called as functions, not by the layers made for it."""
        if self.depth == 0 and func in _FUNCTIONS:
            self.functional.add(_FUNCTIONS[func])
        return func(*args, **(kwargs or {}))

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.depth += self.layers[module].role in ("norm", "dropout")

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        layer = self.layers[module]
        self.depth -= layer.role in ("norm", "dropout")
        layer.last = self.rank
        layer.first = self.rank if layer.calls == 0 else layer.first
        layer.calls += 1
        self.rank += 1
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(output)
        if not inputs or not outputs:
            return
        source, result = inputs[0], outputs[0]
        if layer.role in ("weight", "other") and not self.started:
            self.started = True
            self.input_storages.add(storage_of(source))
            self.input_storages.discard(0)
        layer.reads_input |= storage_of(source) in self.input_storages
        if layer.output is None:
            layer.input_shape, layer.output = tuple(source.shape), result
        layer.output_shapes.add(tuple(result.shape))
        self.seen.append((layer, source, result, source._version, result._version))

    def trace(self, returned: Any) -> Trace:
        """What was seen, once the model has returned."""
        read_later = {storage_of(source) for layer, source, *_ in self.seen if layer.role == "weight"}
        returned_storages = {storage_of(tensor) for tensor in tensors_in(returned)} - read_later - {0}
        for layer, source, result, source_version, result_version in self.seen:
            layer.is_output |= storage_of(result) in returned_storages
            layer.changed_in_place |= source._version != source_version or result._version != result_version
        ran = sorted((layer for layer in self.layers.values() if layer.calls), key=lambda layer: layer.first)
        idle = tuple(layer for layer in self.layers.values() if not layer.calls)
        return Trace(tuple(ran), idle, tuple(sorted(self.functional)))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a nest of tuples, lists, mappings and dataclasses, in order."""
    return [tensor for _, tensor in named_tensors_in(value)]


def named_tensors_in(value: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """The same, each with the way to it: "0", "logits", "hidden_states.3"; "" for a tensor by itself."""
    if isinstance(value, Tensor):
        return [(name, value)]
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = enumerate(value)
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [(part.name, getattr(value, part.name)) for part in fields(value)]
    return [pair for key, part in parts for pair in named_tensors_in(part, f"{name}.{key}" if name else str(key))]


def storage_of(tensor: Tensor) -> int:
    """The address of a tensor's memory, the same for all its views; 0 if it has none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def check_traceable(where: str, model: nn.Module) -> None:
    """Raise an error in `where`'s name if the model is none, or one whose modules cannot be followed."""
    if not isinstance(model, nn.Module):
        raise invalid_type(where, "model", "be a torch.nn.Module", model)
    for name, module in model.named_modules():
        part = name or type(model).__name__
        for base in type(module).__mro__:
            if base.__name__ in _WRAPPERS:
                cure = f"Operate on the original model and {_WRAPPERS[base.__name__]}."
                raise invalid(where, "model", f"be without any {base.__name__}", part, cure)
        if module._compiled_call_impl is not None:
            raise invalid(where, "model", "not be compiled", part, "Compile it afterwards.")
        states = [*module._parameters.values(), *module._buffers.values()]
        if any(isinstance(state, UninitializedParameter | UninitializedBuffer) for state in states):
            cure = "Its shapes are still open: run one batch through the model first."
            raise invalid(where, "model", "hold no lazy layer", part, cure)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, a random stream of its own; then everything as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with seeds.isolated(0, "trace"), torch.no_grad():
            model.eval()  # the model's own way, not the flags: a layer may insist on training mode, and must be seen to
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)
