"""The ways through a run: from each weight layer through everything that is computed in between to the next.

Weight layers, normalization layers, sums and paths of elementwise functions are what `parts.init` found in the
dataflow; here they are put together, and every function gets a name and a role. An activation is what is elementwise
and not affine, found by calling it. Not random but for the probe of `parts.init.paths`, which has a seed of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from homeostat.parts.dataflow import Dataflow, Node, Value
from homeostat.parts.init.paths import Path, Paths, is_elementwise, is_pooling
from homeostat.parts.init.paths import Step as Call
from homeostat.parts.init.sites import Site, Wiring, data_of, find_sites
from homeostat.parts.layers import storage_of
from homeostat.parts.modes import DROPPING_FUNCTIONS, FAST_DROPPING_FUNCTIONS, drop_probability

Role = Literal["activation", "norm", "dropout", "pool", "shape", "sum", "other"]

_MOST_WAYS = 64  # per tensor: enough for the longest residual streams in use, and a bound for dense ones
_REACH = 8.0  # where a function is asked whether it is affine; beyond +-8 a normalized pre-activation never lies
_AFFINE = 1e-6  # the largest deviation from a line, relative to the function's range, that rounding explains
_SOFTMAX = frozenset({"softmax", "log_softmax", "softmin", "gumbel_softmax"})
_AVERAGES = frozenset({"mean", "sum", "cumsum"})
_MULTIPLE = frozenset({"matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention", "baddbmm", "tensordot"})
_DROPPING = frozenset(function.__name__ for function in (*DROPPING_FUNCTIONS, *FAST_DROPPING_FUNCTIONS))


@dataclass(frozen=True)
class Step:
    """Something that happens to a tensor between two weight layers."""

    name: str
    """The function's name, such as "relu", "batch_norm" or "add"; a module of several functions goes by its class."""
    role: Role
    """"activation" is whatever is elementwise and not affine, and softmax."""
    module: str | None
    """The name of the module that did it; None for a bare function."""
    linear: bool = False
    """Whether it is affine in what it takes, as dropout, reshaping and averaging are."""
    call: int = 0
    """Which call of a function with this name it was in the run, counted from 1; 0 for several functions at once."""


@dataclass(frozen=True)
class Way:
    """One way to a tensor: from which weight layer, through which steps."""

    source: str | None
    steps: tuple[Step, ...] = ()

    def then(self, steps: Iterable[Step]) -> Way:
        """Longer by some steps; sums that follow each other count as one."""
        found = list(self.steps)
        for step in steps:
            if not (step.role == "sum" and found and found[-1].role == "sum"):
                found.append(step)
        return Way(self.source, tuple(found))


@dataclass
class Ways:
    """The ways to every tensor of a run."""

    flow: Dataflow
    _known: dict[Value, tuple[Way, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.wiring = Wiring(self.flow, find_sites(self.flow.model, self.flow))
        self.paths = Paths(self.wiring)
        self.recurrent = {
            value: call.name
            for call in self.flow.calls
            if isinstance(call.module, nn.RNNBase | nn.RNNCellBase)
            for value in call.outputs
        }
        self.recurrent_inputs = {
            value: call.inputs[:1] for call in self.flow.calls for value in call.outputs if value in self.recurrent
        }

    @cached_property
    def _ordinals(self) -> dict[Node, int]:
        """Which call of a function with its name each node was."""
        counts: Counter[str] = Counter()
        found = {}
        for node in self.flow.nodes:
            counts[node.name] += 1
            found[node] = counts[node.name]
        return found

    def targets(self) -> list[tuple[str, Value]]:
        """Every weight layer with what it was called on, in the order of execution."""
        found: dict[tuple[str, Value], int] = {}
        for site in (*self.wiring.sites, *self.wiring.site_of.values()):
            for value in data_of(site.inputs[:1]):
                found.setdefault((_name(site, self.flow), value), site.first)
        for call in self.flow.calls:
            if any(value in self.recurrent for value in call.outputs) and self.recurrent[call.outputs[0]] == call.name:
                found.setdefault((call.name, call.inputs[0]), call.start)
        return sorted(found, key=lambda pair: found[pair])

    def to(self, value: Value) -> tuple[Way, ...]:
        """All ways to a value. Not by recursion: models are deeper than Python's stack."""
        waiting = [value]
        while waiting:
            current = waiting[-1]
            needs = [] if current in self._known else [v for v in self._needs(current) if v not in self._known]
            if needs:
                waiting += needs
                continue
            waiting.pop()
            if current not in self._known:
                found = dict.fromkeys(way for path in self.paths.to(current) for way in self._along(path))
                nearest = sorted(found, key=lambda way: len(way.steps))
                self._known[current] = tuple(nearest[:_MOST_WAYS])
        return self._known[value]

    def _needs(self, value: Value) -> list[Value]:
        return [before for path in self.paths.to(value) for before in self._before(path)]

    def _before(self, path: Path) -> tuple[Value, ...]:
        """What the source of a path was made of; nothing where a way begins."""
        source = path.source
        if path.kind in ("layer", "input", "constant") or source in self.recurrent:
            return ()
        if path.kind == "sum" and source in self.paths.terms:
            given = self.wiring.norms[source][1][:1] if source in self.wiring.norms else ()
            return (*given, *self.paths.terms[source])
        return tuple(v for v in self.wiring.feeds(source) if v not in self.flow.constants and not v.names)

    def _along(self, path: Path) -> Iterator[Way]:
        """The ways to the end of a path: to its source, through what made it, along its steps."""
        steps = self._steps(path)
        source = path.source
        if source in self.recurrent:
            yield Way(self.recurrent[source]).then(steps)
        elif path.kind == "layer":
            yield Way(_name(self.wiring.site_of[source], self.flow)).then(steps)
        elif path.kind == "input":
            yield self._from_input(source).then(steps)
        elif path.kind != "constant":
            made = self._made(path)
            for before in self._before(path):
                for way in self._known[before]:
                    yield way.then((made, *steps))

    def _made(self, path: Path) -> Step:
        """The step that made a path's source of what came before."""
        node, source = path.source.producer, path.source
        if path.kind == "norm" or source in self.wiring.norms:
            layer = self.wiring.norms[source][0]
            name = node.name if node is not None and "norm" in node.name else type(layer).__name__.lower()
            where = self.flow.names[layer] if isinstance(layer, nn.Module) else None
            return Step(name, "norm", where, linear=name in ("batch_norm", "batchnorm1d", "batchnorm2d"))
        if node is None:
            return Step("unknown", "other", None)
        where = _module_of(node)
        if path.kind == "sum":
            return Step("add", "sum", where, linear=True)
        if node.name in _SOFTMAX:
            return Step(node.name, "activation", where, call=self._ordinals[node])
        if node.name in _AVERAGES:
            return Step(node.name, "pool", where, linear=True)
        return Step(node.name, "other", where)

    def _from_input(self, value: Value, steps: tuple[Step, ...] = ()) -> Way:
        """The way from the model's input or a recurrent layer to a value without another weight layer behind it."""
        while value.producer is not None and value not in self.recurrent and len(steps) < _MOST_WAYS:
            before = self._data(value.producer)
            if len(before) != 1:
                break
            steps = (*self._early_step(value.producer, before[0]), *steps)
            value = before[0]
        return Way(self.recurrent.get(value), steps)

    def _early_step(self, node: Node, before: Value) -> list[Step]:
        """A function that no path tells about, because it stands before the first weight."""
        if is_pooling(node) or node.name in _DROPPING or is_elementwise(node, (before,)):
            return self._step([Call(node)], before)
        if storage_of(before.tensor) == storage_of(node.outputs[0].tensor):
            return [Step(node.name, "shape", _module_of(node), linear=True)]
        if node.name in _SOFTMAX:
            return [Step(node.name, "activation", _module_of(node), call=self._ordinals[node])]
        return [Step(node.name, "other", _module_of(node))]

    def _steps(self, path: Path) -> list[Step]:
        """The steps of a path; functions of one module are one step, and so are those that meet again (x * f(x))."""
        groups: list[list[Call]] = []
        for call in path.steps:
            same = bool(groups) and _module_of(call.node) is not None
            if same and _module_of(groups[-1][-1].node) == _module_of(call.node):
                groups[-1].append(call)
            elif call.moved is None and len(self._data(call.node)) > 1:
                together = [each for group in groups for each in group if not _only_moves(each)]
                groups = [group for group in groups if all(map(_only_moves, group))] + [[*together, call]]
            else:
                groups.append([call])
        before = path.source
        found: list[Step] = []
        for group in groups:
            found += self._step(group, before)
            before = group[-1].node.outputs[0]
        return found

    def _data(self, node: Node) -> tuple[Value, ...]:
        return tuple(dict.fromkeys(v for v in data_of(node.inputs) if v not in self.flow.constants))

    def _step(self, calls: list[Call], before: Value) -> list[Step]:
        """What a group of functions is; nothing for those that only copy."""
        nodes = [call.node for call in calls]
        where, last = _module_of(nodes[-1]), nodes[-1]
        module = nodes[-1].module if where is not None else None
        if any(node.name in _DROPPING for node in nodes) or (module is not None and drop_probability(module) > 0):
            return [Step("dropout", "dropout", where, linear=True)]
        if any(map(is_pooling, nodes)):
            if last.name in _MULTIPLE:
                return [Step(last.name, "other", where)]
            return [Step(last.name, "pool", where, linear="max" not in last.name and "lp_" not in last.name)]
        if all(map(_only_moves, calls)):
            return [] if all(node.name in ("clone", "contiguous", "to") for node in nodes) else [_moving(nodes, where)]
        names = [call.node.name for call in calls if not _only_moves(call)]
        name = names[0] if len(names) == 1 else f"{names[-1]}({', '.join(names[:-1])})"
        if len(names) > 1 and module is not None:
            name = type(module).__name__.lower()
        if _is_affine(Path(before, "layer", tuple(calls))):
            return [Step(name, "other", where, linear=True)]
        computing = [call.node for call in calls if not _only_moves(call)]
        ordinal = self._ordinals[computing[0]] if len(computing) == 1 else 0
        return [Step(name, "activation", where, call=ordinal)]

    def depth(self, returned: Value | None) -> int:
        """The most weight layers on a way; values are numbered in the order in which they were made."""
        depths: dict[Value, int] = {}
        for value in self.flow.values:
            site = self.wiring.site_of.get(value)
            fed = self.wiring.feeds(value) if value not in self.recurrent else self.recurrent_inputs[value]
            before = max((depths.get(v, 0) for v in fed), default=0)
            depths[value] = before + (1 if site is not None or value in self.recurrent else 0)
        return max(depths.values(), default=0) if returned is None else depths[returned]


def _name(site: Site, flow: Dataflow) -> str:
    """The name of a weight layer; attention counts as one."""
    return flow.names[site.module] if site.attends else site.name


def _module_of(node: Node) -> str | None:
    """The module without parts that called a function, unless it is the whole model; None for a bare function."""
    return node.module_name if node.module_name and not any(node.module.children()) else None


def _only_moves(call: Call) -> bool:
    return call.moved is not None and not is_pooling(call.node)


def _moving(nodes: list[Node], where: str | None) -> Step:
    return Step(nodes[-1].name, "shape", where, linear=True)


def _is_affine(path: Path) -> bool:
    """Whether the functions on a path together are a x + b; also where that cannot be tried, to suspect nobody."""
    inputs = torch.linspace(-_REACH, _REACH, 257, dtype=torch.float64)[:, None]
    try:
        with torch.no_grad():
            outputs = path.function(inputs).double()
    except Exception:  # it took the model's tensors, but no column of numbers
        return False
    if outputs.dim() != 2 or not outputs.isfinite().all():
        return False
    line = outputs[:1] + (outputs[-1:] - outputs[:1]) * (inputs - inputs[0]) / (inputs[-1] - inputs[0])
    spread = (outputs.amax(0) - outputs.amin(0)).clamp(min=1.0)
    return bool(((outputs - line).abs().amax(0) <= _AFFINE * spread).all())
