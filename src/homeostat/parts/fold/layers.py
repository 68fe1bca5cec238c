"""The layers that folding is about, found in a model's dataflow: those with weights, and batch normalization.

A layer is what its calls have in common: the same parameters. It may be a module of torch, one of `homeostat.nn`, or a
call of torch.nn.functional inside somebody's forward. Not random.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from homeostat.nn import functional as fast
from homeostat.nn.batchnorm import _BatchNorm as _FastBatchNorm
from homeostat.parts.dataflow import Dataflow, Node, Value
from homeostat.parts.norm import LastAxisBatchNorm, norm_kind

WEIGHTED: dict[Any, tuple[str, int]] = {
    F.linear: ("linear", 0),
    **{getattr(torch, f"conv{d}d"): ("convolution", d) for d in (1, 2, 3)},
    **{getattr(torch, f"conv_transpose{d}d"): ("transposed convolution", d) for d in (1, 2, 3)},
}
"""The functions of torch that have weights to fold into, with their kind and the number of spatial dimensions."""
BATCH_NORMS = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias"),
    fast.batch_norm: ("input", "running_mean", "running_var", "weight", "bias"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var"),
}
"""The functions that normalize over the batch, with the order of their arguments."""
_READS_OWN_BIAS = {
    getattr(nn, name).forward
    for name in ("Linear", *(f"{kind}{d}d" for kind in ("Conv", "ConvTranspose") for d in (1, 2, 3)))
}
_NORMALIZES_ONLY = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
_FAST_FORWARDS = {_FastBatchNorm.forward, LastAxisBatchNorm.forward}
_AFFINE = {"mul": 0, "multiply": 0, "rmul": 0, "add": 1, "radd": 1, "sub": 2, "subtract": 2}


class Refusal(Exception):
    """Why a layer cannot be folded; never leaves `plan_folding`."""


@dataclass(frozen=True)
class Slot:
    """Where a module holds a parameter or buffer."""

    owner: nn.Module
    attribute: str

    @property
    def tensor(self) -> Tensor | None:
        """What is there now."""
        held = self.owner._parameters.get(self.attribute)
        return self.owner._buffers.get(self.attribute) if held is None else held

    def held(self) -> Tensor:
        """The same where there must be one."""
        tensor = self.tensor
        assert tensor is not None
        return tensor

    def put(self, tensor: Tensor, like: Tensor) -> None:
        """Put a tensor there; a parameter or a buffer, and trainable, as `like` is."""
        if isinstance(like, nn.Parameter):
            self.owner._parameters[self.attribute] = nn.Parameter(tensor, requires_grad=like.requires_grad)
        else:
            self.owner._parameters.pop(self.attribute, None)
            self.owner._buffers[self.attribute] = tensor


@dataclass(frozen=True)
class Unfit:
    """Batch normalization that is no constant scale and shift."""

    module: nn.Module
    title: str
    reason: str


@dataclass(eq=False)
class Weighted:
    """A linear layer, convolution or transposed convolution, with all its calls."""

    kind: str
    dims: int
    """Spatial dimensions; 0 for a linear layer."""
    weight: Slot
    bias: Slot | None
    """None where its calls have no bias."""
    title: str
    nodes: list[Node] = field(default_factory=list)

    @property
    def axis(self) -> int:
        """The axis of the channels in its input and its output, from the end."""
        return -1 - self.dims

    @property
    def groups(self) -> int:
        """Into how many groups the channels are split."""
        return self._groups(self.nodes[0])

    @property
    def pads(self) -> bool:
        """Whether some outputs see less than the whole kernel."""
        return any(self._pads(node) for node in self.nodes)

    @property
    def is_uniform(self) -> bool:
        """Whether all calls are the same function with the same groups."""
        return len({(node.function, self._groups(node)) for node in self.nodes}) == 1

    @property
    def reads_own_bias(self) -> bool:
        """Whether a bias that is put where its module has none will be read."""
        owner = self.weight.owner
        return _forward(owner) in _READS_OWN_BIAS and all(node.module is owner for node in self.nodes)

    def _groups(self, node: Node) -> int:
        return int(argument(node, 6, "groups", 1)) if self.dims else 1

    def _pads(self, node: Node) -> bool:
        if self.kind == "transposed convolution":
            return True  # even without padding, outputs at the border see a part of the kernel
        padding = argument(node, 4, "padding", 0) if self.dims else 0
        sizes = padding if isinstance(padding, tuple | list) else (padding,)
        return padding == "same" or any(isinstance(size, int) and size > 0 for size in sizes)


@dataclass(eq=False)
class Norm:
    """Batch normalization with constants, with all its calls: y = x * scale + shift per channel."""

    module: nn.Module
    form: str
    """"module" (nothing else happens in it), "fused" (of homeostat.nn), or "call" (of a function in a forward)."""
    title: str
    scale: Tensor
    """In float64 on the CPU."""
    shift: Tensor
    mean: Tensor | None = None
    """The running mean that the function is called with, by which the call is found."""
    bare: bool = True
    """Whether no call of it adds a residual or applies an activation too."""
    nodes: list[tuple[Node, Value, Value]] = field(default_factory=list)
    """Of every call the first node, the value that goes in and the value that comes out."""

    @property
    def axis(self) -> int:
        """The axis of the channels."""
        return -1 if isinstance(self.module, LastAxisBatchNorm) else 1


def argument(node: Node, place: int, name: str, default: Any) -> Any:
    """An argument of a call, given by place or by name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def slot_of(flow: Dataflow, value: Value, user: nn.Module) -> Slot:
    """Where the model holds a parameter, as seen from the module that uses it.

    Raises: Refusal if it is not held, or held in several places and the user is none of them.
    """
    tensor = value.tensor
    if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or not tensor.is_floating_point():
        raise Refusal(f"its weights are of type {type(tensor).__name__}, {tensor.dtype}")
    if not value.names and value.producer is not None and any(each.tensor is tensor for each in value.producer.inputs):
        raise Refusal("its weights are written to in the run")
    slots = [Slot(module, attribute) for module, attribute in flow.holders.get(id(tensor), ())]
    if not slots:
        raise Refusal("its weights are computed at every call, as by a parametrization, or not registered")
    own = [slot for slot in slots if slot.owner is user]
    if not own and len(slots) > 1:
        raise Refusal("its weights are held by several modules")
    return (own or slots)[0]


def weighted_layers(flow: Dataflow) -> dict[Node, Weighted | Refusal]:
    """The layer that each call of a linear function or convolution belongs to, or why it cannot be changed."""
    layers: dict[tuple[nn.Module, str], Weighted] = {}
    found: dict[Node, Weighted | Refusal] = {}
    for node in flow.nodes:
        if node.function not in WEIGHTED:
            continue
        try:
            weight, bias = argument(node, 1, "weight", None), argument(node, 2, "bias", None)
            slot = slot_of(flow, weight, node.module)
            bias_slot = None if bias is None else slot_of(flow, bias, node.module)
        except Refusal as refusal:
            found[node] = refusal
            continue
        new = Weighted(*WEIGHTED[node.function], slot, bias_slot, title_of(flow, slot.owner))
        layer = layers.setdefault((slot.owner, slot.attribute), new)
        layer.nodes.append(node)
        found[node] = layer
        if layer.bias != bias_slot or not layer.is_uniform:
            found.update(dict.fromkeys(layer.nodes, Refusal("its weights are called in different ways")))
    return found


def check_sole_use(flow: Dataflow, layer: Weighted) -> None:
    """Raise a Refusal if anything but the layer's own calls uses its weights."""
    for slot in (layer.weight, layer.bias):
        value = None if slot is None else next(v for v in flow.values if v.tensor is slot.tensor and v.names)
        if value is None:
            continue
        if value.returned:
            raise Refusal(f"the model returns weights of {layer.title}")
        for node in value.consumers:
            if node not in layer.nodes and slot_of(flow, value, node.module) == slot:
                raise Refusal(f"{node.name} in {node.module_name or 'the model'!r} uses weights of {layer.title} too")


def norm_layers(flow: Dataflow) -> list[Norm | Unfit]:
    """All batch normalization that ran, or why it cannot be folded, in order of execution."""
    norms: dict[Any, Norm | Unfit] = {}
    inside = {node for call in flow.calls if _is_frozen(call.module) for node in flow.nodes_in(call)}
    frozen = {call.stop - 1: call for call in flow.calls if _is_frozen(call.module)}
    for node in flow.nodes:
        title = title_of(flow, node.module)
        key: Any = node.module
        try:
            called = _names(node) if node not in inside else None
            if called is not None and node.inputs[0] not in flow.constants:
                mean = argument(node, called.index("running_mean"), "running_mean", None)
                key = (node.module, None if mean is None else mean.tensor)
                new = _called(flow, node, title)
            elif isinstance(node.function, _FastBatchNorm):
                new = _fused(node, node.function, title)
            elif node.index in frozen:
                key, title = frozen[node.index].module, title_of(flow, frozen[node.index].module)
                new = _frozen(flow, frozen[node.index], title)
            else:
                continue
        except Refusal as refusal:
            norms[key] = Unfit(node.module, title, str(refusal))
            continue
        known = norms.setdefault(key, new)
        if isinstance(known, Norm) and known is not new:
            if torch.equal(known.scale, new.scale) and torch.equal(known.shift, new.shift):
                known.nodes += new.nodes
                known.bare &= new.bare
            else:
                norms[key] = Unfit(node.module, title, "its scale and shift differ from call to call")
    return list(norms.values())


def title_of(flow: Dataflow, module: nn.Module) -> str:
    """A module's name in the model and its class."""
    name = flow.names[module]
    return f"{name} ({type(module).__name__})" if name else type(module).__name__


def _names(node: Node) -> tuple[str, ...] | None:
    """The arguments of a call of batch normalization: of torch's function, or of the kernel of homeostat's."""
    if node.name.startswith("norm_channels_affine"):
        return BATCH_NORMS[fast.batch_norm]
    return BATCH_NORMS.get(node.function)


def _called(flow: Dataflow, node: Node, title: str) -> Norm:
    """A call of a function, by a module made for it or by any other."""
    names, kernel = _names(node) or (), node.function not in BATCH_NORMS
    values = [argument(node, place, name, None) for place, name in enumerate(names)]
    given: dict[str, Value | None] = dict(zip(names, values, strict=True))
    mean, variance = given["running_mean"], given["running_var"]
    if mean is None or variance is None or (not kernel and argument(node, 5, "training", False)):
        raise Refusal("it normalizes with the batch's own statistics, also in evaluation")
    weight, bias = (None if value is None else value.tensor for value in (given["weight"], given["bias"]))
    if not flow.constants.issuperset(value for value in values[1:] if value is not None):
        raise Refusal("its scale and shift depend on the input, or are not registered")
    eps = node.args[6] if kernel else argument(node, 7, "eps", 1e-5)
    scale, shift = _scale_and_shift(mean.tensor, variance.tensor, weight, bias, eps)
    bare = not kernel or (node.args[5] is None and node.args[7] == 1)  # residual, slope
    alone = _forward(node.module) in _NORMALIZES_ONLY
    form, title = ("module", title) if alone else ("call", f"batch_norm in {title}")
    return Norm(node.module, form, title, scale, shift, mean.tensor, bare, [(node, values[0], node.outputs[0])])


def _fused(node: Node, module: _FastBatchNorm, title: str) -> Norm:
    """A layer of homeostat.nn, with activation and residual."""
    if _forward(module) not in _FAST_FORWARDS:
        raise Refusal(f"{type(module).__name__} is homeostat's layer with a forward of its own")
    if module.running_mean is None or module.running_var is None or module.training:
        raise Refusal("it normalizes with the batch's own statistics, also in evaluation")
    scale, shift = _scale_and_shift(module.running_mean, module.running_var, module.weight, module.bias, module.eps)
    bare = module.activation in (None, "identity") and argument(node, 1, "residual", None) is None
    call = (node, argument(node, 0, "input", None), node.outputs[0])
    return Norm(module, "fused", title, scale, shift, None, bare, [call])


def _frozen(flow: Dataflow, call: Any, title: str) -> Norm:
    """A module named after batch normalization that multiplies by constants and adds constants, and nothing else."""
    if len(call.outputs) != 1 or not call.inputs:
        raise Refusal("it is no function of one tensor")
    value, source = call.outputs[0], call.inputs[0]
    steps: list[tuple[Node, Value]] = []
    while value is not source:
        node = value.producer
        varying = [] if node is None else [each for each in node.inputs if each not in flow.constants]
        if node is None or node.index < call.start or len(varying) != 1 or node.name not in _AFFINE:
            raise Refusal("it is more than a constant scale and shift")
        steps.append((node, varying[0]))
        value = varying[0]
    channels = source.tensor.shape[1] if source.tensor.ndim > 1 else 0
    probe = torch.ones([2, channels] + [1] * (source.tensor.ndim - 2), dtype=torch.float64, device="cpu")
    probe[0] = 0
    for node, varying_value in reversed(steps):
        constants = {each: each.tensor.to("cpu", torch.float64) for each in node.inputs if each is not varying_value}
        probe = node.run({**constants, varying_value: probe})
    if not steps or probe.shape != (2, channels, *[1] * (source.tensor.ndim - 2)):
        raise Refusal("its scale and shift differ from place to place")
    shift, both = probe.flatten(1)
    return Norm(
        call.module, "module", title, both - shift, shift, None, True, [(steps[-1][0], source, call.outputs[0])]
    )


def _forward(module: nn.Module) -> Any:
    """The function that a module's class, or the module by itself, has for forward."""
    return vars(module).get("forward", type(module).forward)


def _is_frozen(module: nn.Module) -> bool:
    return norm_kind(module) == "batch" and not isinstance(module, _BatchNorm)


def _scale_and_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """gamma / sqrt(var + eps) and beta - mean * gamma / sqrt(var + eps)."""
    mean, variance = (each.detach().to("cpu", torch.float64) for each in (mean, variance))
    scale = (variance + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().to("cpu", torch.float64)
    shift = -mean * scale
    return scale, shift if bias is None else shift + bias.detach().to("cpu", torch.float64)
