"""Where weights are applied: the weight layers of a model in the order in which a run reaches them.

A site is a weight with the values it was applied to and what came out: a call of a Linear, a convolution or an
attention layer, or of torch's function on a bare parameter. `Wiring` answers what feeds a value. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from homeostat.parts.dataflow import Call, Dataflow, Node, Value, is_fast_layer
from homeostat.parts.init.targets import Target, sources, targets_of
from homeostat.parts.norm import is_norm

_NORM_FUNCTIONS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "normalize"})
_WEIGHT_FUNCTIONS = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm",
    "baddbmm", "matmul", "mm",
})  # fmt: skip


@dataclass(eq=False)
class Site:
    """A weight and its first use."""

    target: Target
    kind: str
    """The layer's class, with the projection of an attention layer; the function's name for a bare parameter."""
    biases: tuple[Target, ...] = ()
    """Of a bare parameter; a layer's own bias is found by its layer."""
    inputs: tuple[Value, ...] = ()
    """What it was applied to; for the last projection of attention what the attention layer was called with."""
    output: Value | None = None
    """What came out; None for the first projection of attention, which happens inside a function, and without a run."""
    calls: int = 0
    """How often the run used it; 0: never."""
    first: int = -1
    """The index of its node."""
    last: int = -1
    """The index behind the last node of its first use."""
    module: nn.Module = field(default_factory=nn.Identity)
    """The module in whose call it is used: the layer, or the attention layer around it."""
    layers: int = 1
    """How many weights stand between the inputs and the output: 2 where attention is one function."""

    @property
    def bare(self) -> bool:
        """Whether the weight is a parameter that the model gives to a function by hand."""
        return self.kind.startswith("F.")

    @property
    def attends(self) -> bool:
        """Whether it belongs to an attention layer."""
        return self.mixes or isinstance(self.target.layer, nn.MultiheadAttention)

    @property
    def mixes(self) -> bool:
        """Whether it is the last projection of an attention layer."""
        return self.layers == 2

    @property
    def name(self) -> str:
        """The layer's name, or the parameter's where there is no layer for it."""
        whole = self.bare or isinstance(self.target.layer, nn.MultiheadAttention)
        return self.target.name if whole else self.target.name.rpartition(".")[0]


def find_sites(model: nn.Module, flow: Dataflow | None) -> list[Site]:
    """All weights that a scheme can set, in the order of their first use; those that the run did not reach come last.

    Without a run they are those of known layers, in the model's order.
    """
    parents: dict[nn.Module, nn.Module] = {
        child: module
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.children()
    }
    sites = [_site(target, parents) for target in targets_of(model) if target.to == "scheme"]
    if flow is None:
        return sites
    calls: dict[nn.Module, list[Call]] = {}
    for call in flow.calls:
        calls.setdefault(call.module, []).append(call)
    for site in sites:
        _place(site, calls.get(site.module, []))
    sites += _bare_sites(model, flow, {site.target.name for site in sites})
    return sorted(sites, key=lambda site: site.first if site.calls else len(flow.nodes))


def _site(target: Target, parents: dict[nn.Module, nn.Module]) -> Site:
    layer = target.layer
    if layer in parents:
        return Site(target, "MultiheadAttention.out_proj", module=parents[layer], layers=2)
    if isinstance(layer, nn.MultiheadAttention):
        return Site(target, f"MultiheadAttention.{target.attribute.removesuffix('_weight')}", module=layer)
    return Site(target, type(layer).__name__, module=layer)


def _place(site: Site, calls: list[Call]) -> None:
    if not calls:
        return
    call = calls[0]
    site.calls, site.first, site.last = len(calls), call.start, call.stop
    site.inputs = tuple(value for value in call.inputs if value.tensor.is_floating_point())
    inside = isinstance(site.target.layer, nn.MultiheadAttention)
    if inside:
        chosen = {"k_proj_weight": 1, "v_proj_weight": 2}.get(site.target.attribute, 0)
        site.inputs = site.inputs[chosen : chosen + 1] or site.inputs[:1]
    elif call.outputs:
        site.output = call.outputs[0]


def _bare_sites(model: nn.Module, flow: Dataflow, known: set[str]) -> Iterator[Site]:
    """Parameters given to linear, conv, matmul or addmm by hand, in any module but those known."""
    modules = dict(model.named_modules())
    found: dict[str, Site] = {}
    for node in flow.nodes:
        weight = _weight_operand(node)
        if weight is None or known.intersection(weight.names) or weight.name is None:
            continue
        if weight.name in found:
            found[weight.name].calls += 1
            continue
        given = [value for value in node.inputs if value is not weight and not value.names and _is_float(value)]
        if len(given) != 1 or len(node.outputs) != 1:
            continue
        biases = [value for value in node.inputs if value is not weight and value.names]
        target = _bare_target(weight.name, modules, node, "scheme")
        zeros = tuple(_bare_target(bias.name or "", modules, node, "zero") for bias in biases)
        found[weight.name] = Site(
            target, f"F.{node.name}", zeros, tuple(given), node.outputs[0], 1, node.index, node.index + 1, target.layer
        )
    yield from found.values()


def _weight_operand(node: Node) -> Value | None:
    """The parameter that a function multiplies its input with."""
    operand = weight_operand(node.name, node.args, node.kwargs)
    is_weight = isinstance(operand, Value) and isinstance(operand.tensor, nn.Parameter) and operand.tensor.ndim >= 2
    return operand if is_weight else None


def weight_operand(function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What stands in a weight's place in a call of linear, conv, matmul or addmm; None for any other function.

    It is the second operand, or the third of addmm.
    """
    if function not in _WEIGHT_FUNCTIONS:
        return None
    place = 2 if function in ("addmm", "baddbmm") else 1
    return args[place] if len(args) > place else kwargs.get("weight")


def is_turned(function: str) -> bool:
    """Whether such a function takes a weight of shape (inputs, outputs, ...)."""
    return function in ("addmm", "baddbmm", "matmul", "mm") or function.startswith("conv_transpose")


def _bare_target(name: str, modules: dict[str, nn.Module], node: Node, to: str) -> Target:
    owner, _, attribute = name.rpartition(".")
    turned = is_turned(node.name)
    groups = stride = 1
    if node.name.startswith("conv"):
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        strides = node.args[3] if len(node.args) > 3 else node.kwargs.get("stride", 1)
        dims = int(node.name[-2])
        stride = math.prod(strides) if isinstance(strides, tuple | list) else strides**dims
    return Target(name, modules[owner], attribute, to, turned, groups, stride)


def _is_float(value: Value) -> bool:
    return value.tensor.is_floating_point()


class Wiring:
    """A run's dataflow with weight layers and normalization layers as single steps."""

    def __init__(self, flow: Dataflow, sites: Iterable[Site]) -> None:
        self.flow = flow
        self.sites = [site for site in sites if site.calls]
        self.site_of: dict[Value, Site] = {site.output: site for site in self.sites if site.output is not None}
        self.norms: dict[Value, tuple[nn.Module | Node, tuple[Value, ...]]] = {}
        for node in flow.nodes:
            if node.name in _NORM_FUNCTIONS and node.outputs:
                self.norms[node.outputs[0]] = node, data_of(node.inputs)[:1]
        for call in flow.calls:
            if is_norm(call.module) and call.outputs:
                given = data_of(call.inputs)
                self.norms[call.outputs[0]] = call.module, given if is_fast_layer(call.module) else given[:1]
        self._add_further_uses()

    def _add_further_uses(self) -> None:
        """Every use of a weight but the first is a site of its own for the dataflow."""
        layers = {site.module: site for site in self.sites if not site.bare and not site.attends}
        bare = {site.target.name: site for site in self.sites if site.bare}
        uses = [(layers[call.module], call.inputs, call.outputs) for call in self.flow.calls if call.module in layers]
        for node in self.flow.nodes:
            weight = _weight_operand(node)
            if weight is not None and weight.name in bare:
                uses.append((bare[weight.name], data_of(node.inputs), node.outputs))
        for site, inputs, outputs in uses:
            if outputs and outputs[0] not in self.site_of:
                floats = tuple(value for value in inputs if _is_float(value))
                self.site_of[outputs[0]] = replace(site, inputs=floats, output=outputs[0])

    def uses(self, site: Site) -> list[Site]:
        """All uses of a site's parameter, in whatever layer; the site itself if no use has an output of its own."""
        parameters = set(map(id, sources(site.target)))
        found = [use for use in self.site_of.values() if parameters.intersection(map(id, sources(use.target)))]
        return found or [site]

    def feeds(self, value: Value) -> tuple[Value, ...]:
        """The values that one was computed from, one step back: through a weight or norm layer in one step."""
        if value in self.site_of:
            return self.site_of[value].inputs
        if value in self.norms:
            return self.norms[value][1]
        return () if value.producer is None else data_of(value.producer.inputs)

    def is_last(self, site: Site) -> bool:
        """Whether its output goes, by whatever way, into no further weight layer."""
        if site.output is None:
            return False
        seen, open_ends = {site.output}, [site.output]
        takers = {value for site in (*self.sites, *self.site_of.values()) for value in site.inputs}
        while open_ends:
            value = open_ends.pop()
            if value in takers:
                return False
            fresh = {output for node in value.consumers for output in node.outputs} - seen
            seen |= fresh
            open_ends += fresh
        return True


def data_of(values: Iterable[Value]) -> tuple[Value, ...]:
    """Those that are neither parameters nor buffers."""
    return tuple(value for value in values if not value.names)
