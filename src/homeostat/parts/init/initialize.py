"""Initialization of a whole model by one scheme; that of one tensor is `schemes`.

`initialize_` knows the layers, so groups, strides and transposed convolutions are counted as they are; with a sample it
runs the model and finds out what stands between the layers (`sites`, `paths`, `residual`, `aware`).
Random through the given generator, or torch's global one where none is given, as in torch.nn.init.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from homeostat.errors import invalid
from homeostat.parts.dataflow import record
from homeostat.parts.init.aware import Choice, Setter, zeroed_norms
from homeostat.parts.init.gains import Activation
from homeostat.parts.init.order import Order
from homeostat.parts.init.paths import Paths, following
from homeostat.parts.init.report import Initialization, Row
from homeostat.parts.init.residual import factors, find_branches, returned_sites
from homeostat.parts.init.run import Signal, measure, run
from homeostat.parts.init.sites import Site, Wiring, find_sites
from homeostat.parts.init.targets import (
    Target,
    check_settable,
    fans_of,
    is_trained,
    reset_statistics_,
    scale_,
    set_,
    sources,
    targets_of,
)
from homeostat.parts.layers import Sample, check_traceable, tensors_in


def initialize_(
    model: nn.Module,
    scheme: str,
    *,
    sample: Sample | None = None,
    generator: torch.Generator | None = None,
    activation: Activation = "relu",
    mode: str = "fan_in",
    gain: float | None = None,
    std: float = 0.01,
    value: float = 0.01,
    residual: str | None = None,
) -> Initialization:
    """Set the parameters of every layer anew, by one scheme.

    | scheme | weights |
    |---|---|
    | he | N(0, g² / fan), g the gain of the function that the run found in front of the layer |
    | xavier | N(0, g² / fan_avg) |
    | lsuv | orthogonal, then scaled until the output's variance on the sample is 1, layer by layer |
    | orthogonal | orthogonal rows or columns of length g; without a sample of length `init.gain(activation)` |
    | he_normal, he_uniform | variance 2 / fan; 2 / (1 + 0.01²) / fan if `activation` is leaky_relu |
    | xavier_normal, xavier_uniform | variance 1 / fan_avg |
    | lecun_normal, lecun_uniform | variance 1 / fan_in |
    | fan_in_uniform | U(-1/√fan_in, 1/√fan_in) |
    | normal | N(0, std²) |
    | trunc_normal | normal with standard deviation `std`, cut at two of its own deviations |
    | constant, zeros | `value`, 0 |

    Weights are those of Linear, convolutions, transposed convolutions, and the projections of MultiheadAttention
    (query, key and value each as a matrix of its own); their biases become 0. With a sample, parameters that the model
    gives to linear, conv, matmul or addmm by hand count too. torch's normalization layers get scale 1, shift 0 and
    fresh running statistics. Every other layer (embeddings, recurrent layers, ...) is left alone, and so are frozen
    parameters: somebody trained those. A weight that several layers share is drawn once. fan_in is what one output sums
    and fan_out what one input feeds, on average and away from the borders: the stride divides fan_out of a convolution
    (torch.nn.init ignores it) and fan_in of a transposed one.

    The gain g of he, xavier and orthogonal makes up for what stands in front of a layer, since the last weight or
    normalization layer: 1 / √E[φ(z)²] for z ~ N(0, 1), by quadrature of the very function that the model computed,
    averaged over all uses of the weight. It is 1 for layers that see the model's input and for the last layer of every
    output, and 1 / √m for a measured mean square m behind sums, gates and whatever else is no elementwise function of
    one tensor. What pooling, attention and other averages take away is not made up for. Where the mean square that
    arrives on the sample is more than twice or less than half of what theory expects (deep narrow nets, borders,
    functions such as silu whose error grows with depth), the gain makes up for that too, except with mode "fan_out".

    Args:
        model: changed in place. Weights under `torch.nn.utils.parametrize` are set through the parametrization.
        scheme: one of the table.
        sample: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments, on the
            model's device. Any scheme takes one, for the measurements in the table that is returned.
        generator: the source of randomness, used layer by layer in the model's order; None: torch's global one.
        activation: a name, module or function; matters without a sample to he_* with leaky_relu and to orthogonal, and
            with one to layers that the sample does not reach.
        mode: the fan of the he schemes: "fan_in", "fan_out" (then "he" makes up for the gradient, with the function
            behind the layer) or "fan_avg".
        gain: a factor on the standard deviation 1/√fan, in place of the scheme's own (he √2, xavier and lecun 1,
            fan_in_uniform 1/√3) or the gains found; the length for orthogonal.
        std: the standard deviation of normal and trunc_normal.
        value: that of constant.
        residual: what happens to residual branches, which the run finds: "keep": nothing; "scaled": the last weight of
            each of L branches that are added to one stream is multiplied by 1 / √L, unless normalization ends the
            branch; "zero": the scale of the normalization that ends a branch, or else its last weight, is 0; "fixup":
            with L branches in the model the m weights of each are multiplied by L^(-1 / (2m - 2)), the last of each and
            the last layers of the model are 0. None: "scaled" for he and xavier, else "keep".
    Returns: the names of the parameters that were set, in the model's order, false if there was nothing to set; with a
        table of layers, fans, gains and mean square ratios forward and backward.
    Raises: InvalidValue for unknown names, numbers that cannot be used, a scheme or `residual` that needs a sample and
        gets none, and weights that cannot be set (lazy layers before their first batch, hooks that recompute the
        weight), before anything has changed. Whatever the model raises on the sample; then it is as it was.
    Source: He et al. 2015, arXiv:1502.01852; Glorot & Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html;
        Mishkin & Matas 2016, arXiv:1511.06422; Goyal et al. 2017, arXiv:1706.02677; Zhang et al. 2019,
        arXiv:1901.09321.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> done = initialize_(model, "he", sample=torch.randn(16, 4), generator=torch.Generator().manual_seed(0))
        >>> list(done)
        ['0.weight', '0.bias', '2.weight', '2.bias', '4.weight', '4.bias']
        >>> [(row.layer, row.activation, round(row.gain, 2)) for row in done.rows]
        [('0', 'input', 1.0), ('2', 'relu', 1.41), ('4', 'tanh', 1.0)]
    """
    order = Order(scheme, generator, activation, mode, gain, std, value, residual, sample is not None)
    if sample is not None or not isinstance(model, nn.Module):
        check_traceable("initialize_", model)
    _check_sample(sample)
    flow = None if sample is None else record(model, sample)
    sites = find_sites(model, flow)
    targets = _all_targets(model, sites)
    for target in targets:
        check_settable(target)
    chosen = _unshared(targets)
    drawn = {target.name for target in chosen}
    if sample is None or flow is None:
        _set_all(model, chosen, order)
        return Initialization([target.name for target in chosen], [_row(site, order, drawn) for site in sites])
    paths = Paths(Wiring(flow, sites))
    for known in flow.values:
        paths.to(known)
    with _restored_on_error(model):
        _set_all(model, chosen, order)
        notes = _finish(model, sample, order, paths, sites, drawn)
        signals = measure(model, sample, sites)
    texts = _activations(paths, sites, order)
    rows = [_row(site, order, drawn, notes.get(site), signals.get(site), texts[site]) for site in sites]
    return Initialization([target.name for target in chosen], rows)


def _check_sample(sample: Sample | None) -> None:
    """Infinity is left to the model: masks for attention hold it."""
    for tensor in tensors_in(sample):
        if tensor.is_floating_point() and tensor.isnan().any():
            cure = "What is measured on it would be NaN too: fill in missing values, as training does."
            raise invalid("initialize_", "sample", "hold no NaN", tensor, cure)


def _all_targets(model: nn.Module, sites: list[Site]) -> list[Target]:
    """Those of known layers in the model's order, then those that only the run found."""
    known = targets_of(model)
    names = {target.name for target in known}
    bare = [target for site in sites if site.target.name not in names for target in (site.target, *site.biases)]
    return known + bare


def _unshared(targets: list[Target]) -> list[Target]:
    """Those to be set: not frozen, and each parameter once."""
    done: set[int] = set()
    chosen = []
    for target in targets:
        behind = sources(target)
        if is_trained(target) and not done.intersection(map(id, behind)):
            done.update(map(id, behind))
            chosen.append(target)
    return chosen


def _set_all(model: nn.Module, targets: list[Target], order: Order) -> None:
    for target in targets:
        set_(target, order.fill)
    reset_statistics_(model)


def _finish(
    model: nn.Module, sample: Sample, order: Order, paths: Paths, sites: list[Site], drawn: set[str]
) -> dict[Site, tuple[float, str]]:
    """Scale what was drawn: by the gains found, by what residual branches ask for. Returns gains and notes."""
    residual = order.residual or "keep"
    branches = find_branches(paths)
    held = {id(sources(site.target)[0]): site for site in sites if site.target.name in drawn}
    scaling = {
        held[id(sources(site.target)[0])]: factor
        for site, factor in factors(branches, residual).items()
        if id(sources(site.target)[0]) in held  # not frozen; a further use of a weight counts as the first
    }
    inside = {site.target.name for branch in branches for site in branch.sites}
    ends = [site for site in held.values() if site.target.name not in inside and paths.wiring.is_last(site)]
    if residual == "fixup":
        scaling |= dict.fromkeys(returned_sites(paths, ends), 0.0)
    zeroed = zeroed_norms(branches, residual)
    setter = Setter(paths, sites, drawn, order.scheme, order.fan_mode, order.gain, scaling, zeroed, ends)
    if order.aware:
        run(model, sample, setter)
        for site in held.values():
            if not site.calls and order.scheme != "lsuv":
                scale_(site.target, order.unreached_gain)
    else:
        for site, factor in scaling.items():
            scale_(site.target, factor)
    for layer in zeroed:
        nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
    return {site: _told(site, order, setter.choices.get(site), scaling.get(site)) for site in held.values()}


def _told(site: Site, order: Order, choice: Choice | None, factor: float | None) -> tuple[float, str]:
    """The gain and the note of a site, for the table."""
    if choice is not None:
        gained = choice.gain
    else:
        gained = order.usual_gain if site.calls or not order.aware else order.unreached_gain
    notes = [choice.note if choice else "", _residual_note(factor, order.residual or "keep")]
    return gained, ", ".join(filter(None, notes))


def _residual_note(factor: float | None, residual: str) -> str:
    return "" if factor in (None, 1.0) else f"{residual}: times {factor:.3g}"


@contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """Put parameters and buffers back if the block fails."""
    states = [*model.parameters(), *model.buffers()]
    values = [state.detach().clone() for state in states]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for state, value in zip(states, values, strict=True):
                state.copy_(value)
        raise


def _activations(paths: Paths, sites: list[Site], order: Order) -> dict[Site, str]:
    """What the table says about the function in front of each layer, or behind it."""
    if order.scheme == "he" and order.mode == "fan_out":
        behind = following(paths, sites)
        return {site: _distinct([path.text or "none" for path in behind[site]]) for site in sites}
    found = {}
    for site in sites:
        before = paths.to(site.inputs[0]) if site.inputs else ()
        starts = {"layer": "", "mixing": "average", "constant": "input"}
        texts = [", ".join(filter(None, (starts.get(path.kind, path.kind), path.text))) for path in before]
        found[site] = "attention" if site.mixes else _distinct([text or "none" for text in texts])
    return found


def _distinct(texts: list[str]) -> str:
    return " | ".join(dict.fromkeys(texts))


def _row(
    site: Site,
    order: Order,
    drawn: set[str],
    found: tuple[float, str] | None = None,
    signal: Signal | None = None,
    activation: str = "",
) -> Row:
    """The line of the table about one weight."""
    fan_in, fan_out = fans_of(site.target)
    weight = getattr(site.target.layer, site.target.attribute).detach()
    std = math.sqrt(float(weight.double().square().mean())) if weight.numel() else 0.0
    gained, note = found if found else (order.usual_gain, "")
    notes = [note]
    if site.target.name not in drawn:
        gained = math.nan
        notes.append("shares its weight" if is_trained(site.target) else "frozen: left as it is")
    elif order.scheme in ("lsuv", "normal", "trunc_normal", "constant", "zeros"):
        gained = std * math.sqrt(fan_in)
    if order.sampled and not site.calls:
        notes.append("not reached by the sample")
    elif site.calls > 1:
        notes.append(f"used {site.calls} times")
    signal = signal or Signal()
    return Row(
        site.name, site.kind, fan_in, fan_out, activation, gained, std,
        signal.forward, signal.backward, signal.output, ", ".join(filter(None, notes)),
    )  # fmt: skip
