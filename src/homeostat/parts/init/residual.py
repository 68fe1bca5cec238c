"""Residual branches: found in the dataflow, as sums whose one side comes from the other's source through more layers.

Not random.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from homeostat.parts.dataflow import Node, Value
from homeostat.parts.init.paths import Paths
from homeostat.parts.init.sites import Site

RESIDUALS: tuple[str, ...] = ("keep", "scaled", "zero", "fixup")
"""What can be done about residual branches."""


@dataclass(eq=False)
class Branch:
    """A residual branch: what is added to a stream."""

    sum: Value
    stream: Value
    """The other side of the sum."""
    last: list[Site]
    """The weight layers that end it; several if it is a sum itself."""
    norms: list[nn.Module | Node]
    """Normalization layers behind them."""
    sites: list[Site]
    """All weight layers in it."""
    depth: int
    """How many weight layers stand one behind the other, by the shortest way."""
    count: int = 1
    """How many branches are added to the same stream before it is normalized."""


def find_branches(paths: Paths) -> list[Branch]:
    """All residual branches, in the order of execution."""
    branches: list[Branch] = []
    for value, terms in list(paths.terms.items()):
        pair = (*terms, value) if value in paths.wiring.norms else terms  # a norm layer that adds the residual itself
        if len(pair) == 2:
            branch = _branch(paths, value, *pair)
            if branch is not None:
                branches.append(branch)
    branches.sort(key=lambda branch: branch.sum.index)
    _count(paths, branches)
    return branches


def factors(branches: list[Branch], residual: str) -> dict[Site, float]:
    """By what the standard deviation of each weight is multiplied."""
    found: dict[Site, float] = {}
    for branch in branches:
        if residual == "scaled" and not branch.norms:
            found |= dict.fromkeys(branch.last, branch.count**-0.5)
        if residual == "zero" and not scales(branch):
            found |= dict.fromkeys(branch.last, 0.0)
        if residual == "fixup":
            if branch.depth > 1:
                scale = len(branches) ** (-1 / (2 * branch.depth - 2))
                found |= dict.fromkeys(branch.sites, scale)
            found |= dict.fromkeys(branch.last, 0.0)
    return found


def returned_sites(paths: Paths, ends: list[Site]) -> list[Site]:
    """Those whose output the model returns, perhaps behind elementwise functions or softmax; not behind a division by
    its length, which zeros do not stand."""
    found = set()
    for value in paths.wiring.flow.values:
        if value.returned:
            softmax = value.producer is not None and value.producer.name in ("softmax", "log_softmax")
            source = value.producer.inputs[0] if softmax and value.producer is not None else value
            found |= {path.source for path in paths.to(source) if path.kind == "layer"}
    return [site for site in ends if site.output in found]


def scales(branch: Branch) -> list[nn.Module]:
    """The normalization layers that end a branch, if each has a scale that can be set to zero."""
    layers = [norm for norm in branch.norms if isinstance(norm, nn.Module)]
    settable = len(layers) == len(branch.norms) and all(_trained_scale(layer) for layer in layers)
    return layers if settable else []


def _trained_scale(layer: nn.Module) -> bool:
    scale = layer._parameters.get("weight")
    return scale is not None and scale.requires_grad


def _branch(paths: Paths, value: Value, first: Value, second: Value) -> Branch | None:
    """The branch of a sum, if it is a residual one: from the latest value behind both sides, one way is longer."""
    distances = [_distances(paths, side, value) for side in (first, second)]
    common = distances[0].keys() & distances[1].keys()
    if not common:
        return None
    split = max(common, key=lambda v: v.index)
    first_depth, second_depth = distances[0][split], distances[1][split]
    depth, shortcut = max(first_depth, second_depth), min(first_depth, second_depth)
    if depth == shortcut or shortcut > 1:  # a shortcut may hold one projection
        return None
    side, stream = (first, second) if first_depth > second_depth else (second, first)
    last, norms = _ends(paths, side, split, value)
    between = distances[0 if side is first else 1]
    sites = {
        site: None
        for v, site in paths.wiring.site_of.items()
        if v in between and v.index > split.index and _distance_to(paths, v, split)
    }
    if not sites:
        return None
    return Branch(value, stream, last or [max(sites, key=lambda site: site.first)], norms, [*sites], depth)


def _back(paths: Paths, value: Value, own: Value) -> tuple[tuple[Value, ...], int]:
    """One step back, and how many weights it passes; the sum's own norm layer leads to what it normalizes."""
    if value is own:
        return paths.wiring.norms[value][1][:1], 0
    site = paths.wiring.site_of.get(value)
    return paths.wiring.feeds(value), 0 if site is None else site.layers


def _distances(paths: Paths, start: Value, own: Value) -> dict[Value, int]:
    """For every value behind one, the fewest weight layers between them; given values and computed ones alone."""
    found: dict[Value, int] = {}
    ends = [(0, start)]
    while ends:
        distance, value = ends.pop(0)
        if value in found and found[value] <= distance:
            continue
        found[value] = distance
        before, weights = _back(paths, value, own)
        ends += [(distance + weights, v) for v in before if found.get(v, distance + weights + 1) > distance + weights]
    return {value: distance for value, distance in found.items() if _is_data(paths, value) and value is not own}


def _is_data(paths: Paths, value: Value) -> bool:
    return any(path.kind != "constant" for path in paths.to(value))


def _distance_to(paths: Paths, value: Value, split: Value) -> bool:
    """Whether `split` lies behind a value."""
    seen, ends = {value}, [value]
    while ends:
        current = ends.pop()
        if current is split:
            return True
        fresh = {v for v in paths.wiring.feeds(current) if v.index >= split.index} - seen
        seen |= fresh
        ends += fresh
    return False


def _ends(paths: Paths, side: Value, split: Value, own: Value) -> tuple[list[Site], list[nn.Module | Node]]:
    """The last weight layers of a branch, and the normalization layers behind them."""
    last: dict[Site, None] = {}
    norms: dict[nn.Module | Node, None] = {}
    seen: set[Value] = set()
    ends = [side]
    while ends:
        value = ends.pop()
        if value in seen or value is split:
            continue
        seen.add(value)
        if value in paths.wiring.site_of:
            last[paths.wiring.site_of[value]] = None
        elif value in paths.wiring.norms:
            norms[paths.wiring.norms[value][0]] = None
        else:
            ends += _main(paths, value)
    return [*last], [*norms]


def _main(paths: Paths, value: Value) -> tuple[Value, ...]:
    """What a value is made of in the main: both terms of a sum, but of a product not what was computed as its gate."""
    before = tuple(v for v in paths.wiring.feeds(value) if _is_data(paths, v))
    kind = paths.to(value)[0].kind
    if len(before) < 2 or kind != "product":
        return before
    for v in before:
        if any(_distance_to(paths, other, v) for other in before if other is not v):
            return (v,)
    return before[:1]


def _count(paths: Paths, branches: list[Branch]) -> None:
    """Count the branches of each stream: sums that follow each other with no normalization in the stream."""
    parent = {branch: branch for branch in branches}

    def root(branch: Branch) -> Branch:
        while parent[branch] is not branch:
            branch = parent[branch]
        return branch

    by_sum = {branch.sum: branch for branch in branches}
    for branch in branches:
        seen, ends = set(), [branch.stream]
        while ends:
            value = ends.pop()
            if value in seen:
                continue
            seen.add(value)
            if value in by_sum and value is not branch.sum:
                parent[root(branch)] = root(by_sum[value])
            elif value not in paths.wiring.norms:
                site = paths.wiring.site_of.get(value)
                if site is None or site.layers == 1:
                    ends += paths.wiring.feeds(value)
    sizes: dict[Branch, int] = defaultdict(int)
    for branch in branches:
        sizes[root(branch)] += 1
    for branch in branches:
        branch.count = sizes[root(branch)]
