"""What stands between one weight layer and the next: the function that a layer's input went through, found by running.

A path leads from a source, whose values are taken for normal (the output of a weight layer, of a normalization layer, a
sum), through elementwise functions of any kind to a weight layer's input. The function is what the model really
computed, called again on other numbers; whether it is elementwise is found out by changing half of its input.
Not random but for that probe, which has a seed of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from homeostat.parts.activation import make_activation
from homeostat.parts.dataflow import Node, Value, is_fast_layer
from homeostat.parts.init.gains import mean_square, mean_square_slope
from homeostat.parts.init.sites import Site, Wiring, data_of

_PASSING = frozenset({
    "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "movedim",
    "moveaxis", "swapaxes", "swapdims", "t", "T", "mT", "contiguous", "clone", "detach", "to", "type", "type_as",
    "float", "double", "half", "bfloat16", "cpu", "cuda", "expand", "expand_as", "repeat", "repeat_interleave",
    "tile", "broadcast_to", "chunk", "split", "tensor_split", "unbind", "getitem", "select", "narrow",
    "index_select", "gather", "roll", "flip", "pad", "unfold", "view_as", "reshape_as", "as_strided",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "cat", "concat",
    "concatenate", "stack", "hstack", "vstack", "masked_fill", "masked_select", "dropout", "dropout1d",
    "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout", "interpolate", "upsample", "atleast_1d",
    "atleast_2d", "atleast_3d", "ravel", "requires_grad", "alias", "constant_pad_nd",
})  # fmt: skip
"""Functions that move numbers and do not change them, or only some."""

_JOINING = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})
_AVERAGING = frozenset({
    "matmul", "mm", "bmm", "baddbmm", "einsum", "tensordot", "softmax", "log_softmax",
    "scaled_dot_product_attention", "multi_head_attention_forward", "sum", "cumsum", "logsumexp", "var", "std",
})  # fmt: skip
"""Functions that mix many numbers into one; no weight layer makes up for what averaging takes away."""
_WEIGHTED = frozenset({"matmul", "mm", "bmm", "einsum", "scaled_dot_product_attention"})
"""Those that average one operand with weights from the others."""
_WEIGHTS = frozenset({"mixing", "input", "constant"})
_SUMS = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub"})
_COLUMNS = 32


@dataclass(frozen=True)
class Step:
    """One function on a path; where it only moves numbers, `moved` is what it moved."""

    node: Node
    moved: Value | None = None

    @property
    def text(self) -> str:
        """Its name, as a table shows it; "" if it only moves numbers, other than by pooling."""
        return "" if self.moved is not None and not is_pooling(self.node) else self.node.name


@dataclass(frozen=True)
class Path:
    """One way from a source to a value; a concatenation has several, each with its share of the numbers."""

    source: Value
    kind: str
    """"layer", "norm", "sum", "input", "product" (gates and whatever else is not elementwise), "mixing", "constant"."""
    steps: tuple[Step, ...] = ()
    share: float = 1.0
    pooled: bool = False
    """Whether pooling stands in the way, which changes the mean square by what neighbors have in common."""
    piece: int = -1
    """Which part of the source it is about, where the source was cut."""
    first: str | None = None
    """The activation of a normalization layer that has one inside."""

    @property
    def text(self) -> str:
        """The functions on the way, such as "relu" or "sigmoid, mul"."""
        names = [self.first or "", *(step.text for step in self.steps)]
        return ", ".join(name for name in names if name and name != "identity")

    def function(self, inputs: Tensor) -> Tensor:
        """The functions on the way, of a column of numbers: (n, 1) -> (n, 1), or (n, k) with entries of a parameter."""
        known: dict[Value, Tensor] = {self.source: make_activation(self.first)(inputs) if self.first else inputs}
        result = known[self.source]
        for step in self.steps:
            result = known[step.moved] if step.moved is not None else _rerun(step.node, known)
            known |= dict.fromkeys(step.node.outputs, result)
        return result


def _rerun(node: Node, known: Mapping[Value, Tensor]) -> Tensor:
    """Call an elementwise function on columns; a parameter with many entries becomes a row of some of them."""
    values: dict[Value, Tensor] = {value: known[value] for value in node.inputs if value in known}
    for value in node.inputs:
        if value not in known and value.tensor.is_floating_point():
            entries = value.tensor.detach().to("cpu", torch.float64).flatten()
            if len(entries) > 1:
                entries = entries[torch.arange(_COLUMNS, device="cpu") * len(entries) // _COLUMNS]
            values[value] = entries if node.name == "prelu" or len(entries) == 1 else entries[None]
            if node.name == "prelu" and len(entries) > 1:
                values |= {data: column.expand(-1, _COLUMNS) for data, column in values.items() if data in known}
    output: Tensor = node.run({value: tensor.clone() if value in known else tensor for value, tensor in values.items()})
    return output


Levels = Callable[[Path], float | None]


@dataclass
class Paths:
    """The paths to every value of a run."""

    wiring: Wiring
    _known: dict[Value, tuple[Path, ...]] = field(default_factory=dict)
    terms: dict[Value, tuple[Value, ...]] = field(default_factory=dict)
    """What a sum adds."""
    _moments: dict[tuple[Path, float], float] = field(default_factory=dict)

    def to(self, value: Value) -> tuple[Path, ...]:
        """The paths that lead to a value; more than one behind a concatenation."""
        waiting = [value]
        while waiting:  # not by recursion: models are deeper than Python's stack
            current = waiting[-1]
            needs = [] if current in self._known else [v for v in self._needs(current) if v not in self._known]
            if needs:
                waiting += needs
                continue
            waiting.pop()
            if current not in self._known:
                self._known[current] = self._find(current)
        return self._known[value]

    def mean_square(self, path: Path, level: float = 1.0) -> float:
        """E[φ(z)²] of a path's function for normal z of mean square `level`; NaN where it cannot be called."""
        if not path.text:
            return level
        if (path, level) not in self._moments:
            self._moments[path, level] = _tried(mean_square, path, level)
        return self._moments[path, level]

    def slope(self, path: Path) -> float:
        """E[φ'(z)²] for standard normal z; NaN where it is not known."""
        return _tried(mean_square_slope, path, 1.0) if path.text else 1.0

    def expected(self, paths: tuple[Path, ...], levels: Levels) -> float | None:
        """The mean square of a value by theory, given those of its sources; None where one is not known."""
        total = 0.0
        for path in paths:
            level = levels(path)
            if level is None:
                return None
            total += path.share * self.mean_square(path, level)
        return total if math.isfinite(total) else None

    def keep_scale(self, paths: tuple[Path, ...]) -> bool:
        """Whether twice the input gives twice the output, as with ReLU: such functions have no scale of their own."""
        return all(
            math.isclose(self.mean_square(path, 4.0), 4 * self.mean_square(path), rel_tol=1e-6) for path in paths
        )

    def _needs(self, value: Value) -> tuple[Value, ...]:
        if value in self.wiring.site_of:
            return ()
        return self.wiring.feeds(value)

    def _find(self, value: Value) -> tuple[Path, ...]:
        wiring, node = self.wiring, value.producer
        if value in wiring.site_of:
            return (Path(value, "layer"),)
        if value in wiring.norms:
            return (self._norm(value),)
        if node is None:
            return (Path(value, "constant" if value.names or not value.given else "input"),)
        fed = {v: self._known[v] for v in wiring.feeds(value)}
        alive = {v: paths for v, paths in fed.items() if any(path.kind != "constant" for path in paths)}
        if not alive:
            return (Path(value, "constant"),)
        if all(path.kind == "input" for paths in alive.values() for path in paths):
            return (Path(value, "input"),)
        if node.name in _AVERAGING:
            averaged = _averaged(node, alive)
            return self._moved(node, value, averaged) if averaged else (Path(value, "mixing"),)
        if node.name in _PASSING or is_pooling(node):
            return self._moved(node, value, alive)
        return self._computed(node, value, alive)

    def _norm(self, value: Value) -> Path:
        module, given = self.wiring.norms[value]
        fast = isinstance(module, nn.Module) and is_fast_layer(module)
        first = getattr(module, "activation", None) if fast else None
        if fast and len(given) > 1:  # a residual is added inside
            self.terms[value] = given[1:]
            return Path(value, "sum", first=first)
        return Path(value, "norm", first=first)

    def _moved(self, node: Node, value: Value, alive: dict[Value, tuple[Path, ...]]) -> tuple[Path, ...]:
        """Numbers that moved: the same paths; a cut makes pieces, which have nothing to do with each other."""
        total = sum(v.tensor.numel() for v in alive)
        found = []
        for v, paths in alive.items():
            part = v.tensor.numel() / total if node.name in _JOINING and total else 1 / len(alive)
            cut = value.tensor.numel() != total
            for path in paths:
                steps = (*path.steps, Step(node, moved=v))
                piece = value.index if cut else path.piece
                pooled = path.pooled or is_pooling(node)
                found.append(replace(path, steps=steps, share=path.share * part, piece=piece, pooled=pooled))
        return tuple(found)

    def _computed(self, node: Node, value: Value, alive: dict[Value, tuple[Path, ...]]) -> tuple[Path, ...]:
        """Another function: a step if it is elementwise in one source, a sum of several, or something to measure."""
        groups = list(alive.values())
        alike = all(_keys(paths) == _keys(groups[0]) for paths in groups)
        if alike and groups[0][0].kind != "constant" and is_elementwise(node, tuple(alive)):
            merged = [_merge([paths[place] for paths in groups], Step(node)) for place in range(len(groups[0]))]
            return tuple(merged)
        if node.name in _SUMS and all(v.tensor.shape == value.tensor.shape for v in alive):
            self.terms[value] = tuple(alive)
            return (Path(value, "sum"),)
        return (Path(value, "product"),)


def _keys(paths: tuple[Path, ...]) -> list[tuple[Value, int]]:
    return [(path.source, path.piece) for path in paths]


def _merge(paths: list[Path], last: Step) -> Path:
    """Paths from one source that a function of several arguments brings together."""
    steps = {id(step.node): step for path in paths for step in path.steps}
    ordered = sorted(steps.values(), key=lambda step: step.node.index)
    return replace(paths[0], steps=(*ordered, last), pooled=any(path.pooled for path in paths))


def is_pooling(node: Node) -> bool:
    """Whether a function puts one number in the place of many."""
    return "pool" in node.name or node.name == "mean" or node.name in _WEIGHTED


def _averaged(node: Node, alive: dict[Value, tuple[Path, ...]]) -> dict[Value, tuple[Path, ...]]:
    """The operand of which averages are taken: attention's values, a graph's nodes; none where that is not clear."""
    if node.name == "scaled_dot_product_attention":
        values = {v: alive[v] for v in node.args[2:3] if v in alive}
    else:
        values = {v: paths for v, paths in alive.items() if not {path.kind for path in paths} <= _WEIGHTS}
    others = len(data_of(node.inputs)) > len(values)
    return values if node.name in _WEIGHTED and len(values) == 1 and others else {}


def is_elementwise(node: Node, data: tuple[Value, ...]) -> bool:
    """Whether each number of a function's result depends on the numbers in the same place alone."""
    if len(node.outputs) != 1 or any(v.tensor.shape != node.outputs[0].tensor.shape for v in data):
        return False
    generator = torch.Generator().manual_seed(node.index)
    shape = node.outputs[0].tensor.shape
    changed = torch.rand(shape, generator=generator, device="cpu") < 0.5
    before, after = {}, {}
    for v in data:
        draws = [torch.randn(shape, generator=generator, device="cpu").to(v.tensor) for _ in range(2)]
        before[v], after[v] = draws[0], torch.where(changed.to(v.tensor.device), draws[1], draws[0])
    try:
        first, second = (_output(node, values) for values in (before, after))
    except Exception:  # a function that does not take such numbers is not one of a plain tensor
        return False
    if first.shape != shape:
        return False
    kept = ~changed.to(first.device)
    return torch.equal(first[kept], second[kept]) and bool(first.isfinite().any())


def _output(node: Node, values: dict[Value, Tensor]) -> Tensor:
    constants = {v: v.tensor.clone() for v in node.inputs if v not in values}
    with torch.no_grad():
        result: Any = node.run(constants | {v: tensor.clone() for v, tensor in values.items()})
    return result if isinstance(result, Tensor) else torch.empty(0, device="cpu")


def _tried(moment: Callable[[Callable[[Tensor], Tensor], float], float], path: Path, level: float) -> float:
    try:
        return moment(path.function, math.sqrt(level))
    except Exception:  # it took the model's own tensors, but no column of numbers: to be measured
        return math.nan


def following(paths: Paths, sites: list[Site]) -> dict[Site, list[Path]]:
    """The paths from each site's output to the inputs of other sites; through sums if nothing is in between."""
    found: dict[Site, list[Path]] = {site: [] for site in sites}

    def note(path: Path, source: Value) -> None:
        site = paths.wiring.site_of.get(source)
        if site is not None:
            owner = next((known for known in sites if known.target == site.target), None)
            if owner is not None:
                found[owner].append(path)
        for term in paths.terms.get(source, ()):
            for before in paths.to(term):
                if not before.text and before.source is not source:
                    note(path, before.source)

    for site in sites:
        for value in data_of(site.inputs[:1]):
            for path in paths.to(value):
                note(path, path.source)
    return found
