"""Normalization layers by kind, built for the output of a given layer.

Means and variances are taken over: the batch and all positions (batch); all channels and positions of one example
(layer); a group of channels and all positions (group); one channel's positions (instance). `rms` divides each
position's channels by their root mean square and subtracts nothing. Every kind has a scale per channel, starting at 1;
all but `rms` have a shift, starting at 0. The layers are those of `homeostat.nn`, which are torch's with an activation
and a residual on top; the ones defined here only teach them where the channels are. Not random.
"""

from __future__ import annotations

import re

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from homeostat import nn as fast
from homeostat.errors import invalid, unknown

NORMS: tuple[str, ...] = ("batch", "layer", "group", "instance", "rms", "none")
"""The kinds that `make_norm` knows."""

MAX_GROUPS = 32
"""Group normalization uses at most this many groups (Wu & He 2018)."""

MIN_CHANNELS_IN_GROUP = {False: 4, True: 16}
"""The fewest channels of a group, with and without spatial positions that add to the statistics (key: no positions)."""

RMS_EPS = 1e-5

_KIND_IN_NAME = re.compile("(batch|layer|group|instance|rms)norm", re.IGNORECASE)

_BATCH: dict[int, type[nn.Module]] = {1: fast.BatchNorm1d, 2: fast.BatchNorm2d, 3: fast.BatchNorm3d}
_INSTANCE: dict[int, type[nn.Module]] = {1: fast.InstanceNorm1d, 2: fast.InstanceNorm2d, 3: fast.InstanceNorm3d}


class LastAxisBatchNorm(fast.BatchNorm1d):
    """Batch normalization of (N, ..., C): every leading dimension counts as batch. For (N, C) it is BatchNorm1d."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize each of the last axis' C features over all the others; the shape stays."""
        return super().forward(_rows(input), None if residual is None else _rows(residual)).reshape(input.shape)


class LastAxisGroupNorm(fast.GroupNorm):
    """Group normalization of (N, ..., C): each position's C features in groups. For (N, C) it is GroupNorm."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize each group of the last axis' features, position by position; the shape stays."""
        return super().forward(_rows(input), None if residual is None else _rows(residual)).reshape(input.shape)


class ChannelRMSNorm(fast.RMSNorm):
    """RMS normalization of (N, C, *spatial) over C at every position; cheapest for channels_last memory."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Divide by the root mean square over the channels and scale; the shape stays."""
        added = None if residual is None else residual.movedim(1, -1)
        return super().forward(input.movedim(1, -1), added).movedim(-1, 1)


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def make_norm(kind: str, channels: int, dims: int, activation: str | None = None) -> nn.Module:
    """A new normalization layer for outputs with `channels` channels and `dims` spatial dimensions.

    | kind | dims = 0: (N, ..., C), channels last | dims = 1, 2, 3: (N, C, *spatial) |
    |---|---|---|
    | batch | over N and all dimensions between | BatchNorm1d, 2d, 3d |
    | layer | LayerNorm over C | GroupNorm with one group: over C and space |
    | group | over the C / g features of a group | GroupNorm with g groups |
    | instance | an error: there is nothing to average over | InstanceNorm1d, 2d, 3d with scale and shift |
    | rms | RMSNorm over C | over C, position by position |
    | none | Identity | Identity |

    The number of groups g is `groups(channels, dims)`.

    Args:
        kind: batch, layer, group, instance, rms or none.
        channels: C, at least 1.
        dims: 0 for the output of a Linear, 1, 2 or 3 for that of a convolution.
        activation: the name of a function to apply to the result, in the same pass where it is piecewise linear; not
            for none.
    Raises: InvalidValue for an unknown kind or activation, channels < 1, dims outside 0..3, and where the kind cannot
        work: instance without spatial dimensions, or layer, group and rms on a single feature, whose result would not
        depend on it.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167; Ba et al. 2016, arXiv:1607.06450; Wu & He 2018, arXiv:1803.08494;
        Ulyanov et al. 2016, arXiv:1607.08022; Zhang & Sennrich 2019, arXiv:1910.07467.
    Example:
        >>> make_norm("group", 64, 2)
        GroupNorm(16, 64, ...
    """
    _check(kind, channels, dims)
    if kind == "none":
        return nn.Identity()
    if kind == "batch":
        return (LastAxisBatchNorm if dims == 0 else _BATCH[dims])(channels, activation=activation)
    if kind == "instance":
        return _INSTANCE[dims](channels, affine=True, activation=activation)
    if kind == "rms":
        return (fast.RMSNorm if dims == 0 else ChannelRMSNorm)(channels, eps=RMS_EPS, activation=activation)
    if kind == "layer" and dims == 0:
        return fast.LayerNorm(channels, activation=activation)
    count = 1 if kind == "layer" else groups(channels, dims)
    return (LastAxisGroupNorm if dims == 0 else fast.GroupNorm)(count, channels, activation=activation)


def groups(channels: int, dims: int) -> int:
    """The number of groups of group normalization: the largest divisor of `channels` that is at most 32 and leaves
    every group at least 4 channels (16 where there are no spatial positions to average over); 1 where no other does.

    Example:
        >>> groups(128, 2), groups(24, 2), groups(64, 0), groups(7, 2)
        (32, 6, 4, 1)
    """
    fewest = MIN_CHANNELS_IN_GROUP[dims == 0]
    return max((g for g in range(1, MAX_GROUPS + 1) if channels % g == 0 and channels // g >= fewest), default=1)


def norm_kind(module: nn.Module) -> str | None:
    """The kind of a normalization layer, in the words of `make_norm`; None for any other module.

    torch's layers and their subclasses are known by class; others only if they have no submodules and their class is
    named after a kind (LlamaRMSNorm, FrozenBatchNorm2d). GroupNorm with one group is layer normalization.

    Example:
        >>> norm_kind(nn.SyncBatchNorm(8)), norm_kind(nn.Linear(2, 2))
        ('batch', None)
    """
    if isinstance(module, nn.GroupNorm):
        return "layer" if module.num_groups == 1 else "group"
    for classes, kind in (
        (_BatchNorm, "batch"),
        (_InstanceNorm, "instance"),
        (nn.LayerNorm, "layer"),
        (nn.RMSNorm, "rms"),
    ):
        if isinstance(module, classes):
            return kind
    named = _KIND_IN_NAME.search(type(module).__name__)
    return named.group(1).lower() if named and not module._modules else None


def is_norm(module: nn.Module) -> bool:
    """Whether the module is a normalization layer, as `norm_kind` knows them."""
    return norm_kind(module) is not None


def _check(kind: str, channels: int, dims: int) -> None:
    if kind not in NORMS:
        raise unknown("make_norm", "kind", kind, NORMS)
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise invalid("make_norm", "channels", "be an integer of at least 1", channels)
    if dims not in (0, 1, 2, 3):
        raise invalid("make_norm", "dims", "be 0, 1, 2 or 3", dims, "0 is for Linear, 2 for images.")
    if kind == "instance" and dims == 0:
        cure = "It averages over an example's positions; outputs of a Linear have none. Use layer, group or rms."
        raise invalid("make_norm", "dims", "be 1, 2 or 3 for instance normalization", dims, cure)
    if channels == 1 and (kind == "rms" or (dims == 0 and kind in ("layer", "group"))):
        cure = "Normalized alone, a single feature becomes a constant. Use batch."
        raise invalid("make_norm", "channels", f"be at least 2 for {kind} normalization", channels, cure)
