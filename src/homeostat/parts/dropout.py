"""Dropout of units and of weights in a whole model: layers by kind, their probability, its course over training.

In training a unit or weight is zero with probability p and the others are divided by 1 - p (the inverted form), so that
evaluation needs no factor; `absorb_dropout_scale_` removes the factor of the other form. Putting dropout layers into a
model is the work of `surgery.set_dropout_`. Random in training: a seed per call from torch's global generator decides
the mask.
"""

from __future__ import annotations

import math
import warnings

from torch import nn
from torch.nn.utils import parametrize

from homeostat import nn as fast
from homeostat.errors import NoEffectWarning, invalid, unknown
from homeostat.parts.absorb import absorb_dropout_scale_ as absorb_dropout_scale_
from homeostat.parts.dropout_layers import KINDS as KINDS
from homeostat.parts.dropout_layers import check_probability as check_probability
from homeostat.parts.dropout_layers import dropout_kind as dropout_kind
from homeostat.parts.dropout_layers import drops as drops
from homeostat.parts.dropout_layers import is_dropout as is_dropout
from homeostat.parts.dropout_layers import make_dropout as make_dropout
from homeostat.parts.dropout_layers import set_p_ as set_p_
from homeostat.parts.edit import Changes
from homeostat.parts.layers import Layer, Sample, Trace, trace_layers
from homeostat.parts.use import become_

PLACES: tuple[str, ...] = ("hidden", "input", "all")
"""Where dropout can work: on what the first weight layers take, on what the others take, or on both."""

SCHEDULES: tuple[str, ...] = ("constant", "ramp", "early", "curriculum")
"""The courses that `dropout_at` knows."""

_CONNECT: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: fast.DropConnectLinear,
    nn.Conv1d: fast.DropConnectConv1d,
    nn.Conv2d: fast.DropConnectConv2d,
    nn.Conv3d: fast.DropConnectConv3d,
}


def set_drop_connect_(
    model: nn.Module, p: float, where: str = "hidden", *, sample: Sample, per_example: bool = False
) -> Changes:
    """Let a model's Linear layers and convolutions drop their weights in training; they stay the same objects.

    Args:
        model: changed in place. Parameters, hooks, names and the optimizer's references stay; evaluation is as it was.
        p: the probability of dropping a weight, in [0, 1]; with 0 layers that drop weights stay and do nothing.
        where: "hidden", every layer but those that read the model's input; "input", those; or "all".
        sample: what the model is called with, on its device: a tensor, a tuple of arguments or a mapping of keywords.
        per_example: whether every example has its own mask, or the batch one.
    Returns: what changed; a NoEffectWarning is given if there is no layer for it. Transposed convolutions and
        subclasses are left alone, with a note.
    Raises: InvalidValue if p or where cannot be used, and as `layers.trace_layers` does; the model is unchanged then.
    Source: Wan et al. 2013, https://proceedings.mlr.press/v28/wan13.html.
    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> print(set_drop_connect_(model, 0.5, sample=torch.zeros(3, 4)))
        set_drop_connect_(0.5, 'hidden')
          2: Linear → DropConnectLinear(0.5)
    """
    technique = f"set_drop_connect_({p!r}, {where!r})"
    check_probability("set_drop_connect_", p)
    check_place("set_drop_connect_", where)
    lines, notes, settled = [], [], p == 0
    planned: list[tuple[Layer, type[nn.Module] | None]] = []
    for layer in weight_layers(trace_layers(model, sample), where):
        kind = parametrize.type_before_parametrizations(layer.module)
        if kind in _CONNECT.values():
            settled = True
            if layer.module.p != p or layer.module.per_example != per_example:
                planned.append((layer, None))
                lines.append((f"p {layer.module.p:g} → {p:g}", layer.where))
        elif kind in _CONNECT and p > 0:
            planned.append((layer, _CONNECT[kind]))
            lines.append((f"{layer.kind} → {_CONNECT[kind].__name__}({p:g})", layer.where))
        elif p > 0:
            notes.append(f"{layer.title} is neither Linear nor Conv1d, 2d, 3d: left alone")
    for layer, new in planned:
        if new is not None:
            become_(layer.module, new)
        layer.module.p, layer.module.per_example = p, per_example  # type: ignore[assignment]
    if not lines and not settled:
        why = "; ".join(notes) or f"it has no weight layer for where={where!r}"
        warnings.warn(f"{technique} changed nothing in {type(model).__name__}: {why}", NoEffectWarning, stacklevel=2)
    return Changes(technique, tuple(lines), tuple(notes))


def dropout_at(schedule: str, p: float, progress: float) -> float:
    """The probability of dropping at a point of training.

    | schedule | probability at progress t |
    |---|---|
    | constant | p |
    | ramp | p t |
    | early | p (1 - 2 t) in the first half, then 0: against underfitting |
    | curriculum | p (1 - exp(-10 t)): soon p, but none at the start |

    Args:
        schedule: constant, ramp, early or curriculum.
        p: the probability that the schedule is about, in [0, 1].
        progress: t, the part of training that is done, in [0, 1].
    Returns: the probability to give to `set_p_`.
    Raises: InvalidValue for an unknown schedule, p or progress outside [0, 1].
    Source: Liu et al. 2023, arXiv:2303.01500 (early, with its linear course); Morerio et al. 2017, arXiv:1703.06229
        (curriculum, with its gamma = 10 / T).
    Example:
        >>> [dropout_at("early", 0.4, progress) for progress in (0.0, 0.25, 0.5, 1.0)]
        [0.4, 0.2, 0.0, 0.0]
    """
    if schedule not in SCHEDULES:
        raise unknown("dropout_at", "schedule", schedule, SCHEDULES)
    check_probability("dropout_at", p)
    if isinstance(progress, bool) or not isinstance(progress, int | float) or not 0 <= progress <= 1:
        cure = "It is the part of training that is done."
        raise invalid("dropout_at", "progress", "be a number in [0, 1]", progress, cure)
    shares = {
        "constant": 1.0,
        "ramp": progress,
        "early": max(0.0, 1 - 2 * progress),
        "curriculum": 1 - math.exp(-10 * progress),
    }
    return p * shares[schedule]


def drop_path_rates(drop_prob: float, depth: int) -> list[float]:
    """The probabilities of stochastic depth for the blocks of a residual network: from 0, evenly, up to `drop_prob`.

    Args:
        drop_prob: that of the last block, in [0, 1].
        depth: the number of residual blocks, at least 1.
    Returns: one probability per block; for a single block drop_prob.
    Raises: InvalidValue if drop_prob lies outside [0, 1] or depth is not a positive integer.
    Source: Huang et al. 2016, arXiv:1603.09382 (the linear decay rule, there from drop_prob / depth on); the values
        are timm's, whose first block is never dropped.
    Example:
        >>> drop_path_rates(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    if isinstance(drop_prob, bool) or not isinstance(drop_prob, int | float) or not 0 <= drop_prob <= 1:
        raise invalid("drop_path_rates", "drop_prob", "be a number in [0, 1]", drop_prob)
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise invalid("drop_path_rates", "depth", "be an integer of at least 1", depth)
    return [drop_prob * block / (depth - 1) for block in range(depth)] if depth > 1 else [float(drop_prob)]


def weight_layers(trace: Trace, where: str) -> list[Layer]:
    """The weight layers that take what `where` names."""
    first = trace.inputs()
    return [layer for layer in trace.of("weight") if where == "all" or (layer in first) == (where == "input")]


def check_place(caller: str, where: str) -> None:
    """Raise an error in the caller's name unless `where` is one of `PLACES`."""
    if where not in PLACES:
        raise unknown(caller, "where", where, PLACES)
