"""What layers put out in one training step: moments of each output in one pass, and what follows from them.

Of each layer the first call counts that is in training mode and has gradients on, or the first in evaluation mode if
there is none: validation between steps leaves no trace. Units lie along the dimension where the layer with weights put
them: the second for convolutions, the last for linear layers. Not random.
"""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from homeostat.doctor.watching.anatomy import Anatomy
from homeostat.doctor.watching.vitals import STATISTICS
from homeostat.kernels.moments import moments_of
from homeostat.kernels.operator import is_eager
from homeostat.parts.layers import RECTIFIERS, tensors_in
from homeostat.parts.norm import ChannelRMSNorm, LastAxisBatchNorm, LastAxisGroupNorm, norm_kind

FEWEST_VALUES = 16
"""Values of a unit without which nothing is said about it being dead."""

STILL = 1e-6
"""A standard deviation relative to the largest magnitude that float32's rounding explains."""

TINY_SLOPE = 0.01
"""Of the largest slope: an activation that passes less is saturated, since the gradient loses two digits there."""

_TAIL = math.sqrt(1 - TINY_SLOPE)  # tanh' = 1 - tanh^2; sigmoid(x) = (1 + tanh(x / 2)) / 2 has the same tails
_END = 1 - 1e-6  # of activations that are flat beyond their ends

_MEAN, _STD, _ABS_MAX = (STATISTICS.index(name) for name in ("mean", "std", "abs_max"))
_ZEROS, _DEAD, _NONFINITE = (STATISTICS.index(name) for name in ("zeros", "dead", "nonfinite"))
_SATURATED, _DRIFT = (STATISTICS.index(name) for name in ("saturated", "drift"))


class Outputs:
    """Collects the outputs of one step; `write` turns them into a row of vitals and `reset` forgets them."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.order: list[int] = []
        """The layers in the order of their first call ever."""
        self.still: dict[int, tuple[NDArray[np.bool_], float]] = {}
        """Of the step last written: for each layer which units were constant, and on how many values each."""
        self.modes: list[int] = [0] * len(anatomy.roles)
        """Of the step under way: 0 for layers not called, 1 for those called in evaluation mode, 2 in training."""
        self._index = anatomy.index
        self._unit_dims = [_unit_dim(module, role) for module, role in zip(anatomy.index, anatomy.roles, strict=True)]
        self._tails = [_tails(module) for module in anatomy.index]
        self._averages = [isinstance(getattr(module, "running_mean", None), Tensor) for module in anatomy.index]
        self._known = [False] * len(anatomy.roles)
        self.reset()

    def reset(self) -> None:
        """Forget the step under way."""
        self._sets: dict[int, Tensor] = {}
        self._tail_sets: dict[int, Tensor] = {}
        self._drifts: dict[int, Tensor] = {}
        self._previous: tuple[Any, int, Tensor] | None = None
        self._current_dim = -1
        self.modes = [0] * len(self.modes)

    @staticmethod
    def warm_up(like: Tensor | None) -> None:
        """Compile what is needed for tensors like this one, or load it, so that it does not count as a step's cost."""
        if like is not None and like.is_floating_point() and not like.is_meta:
            for shape in ((2, 2), (1, 2, 64)):
                moments_of(torch.zeros(shape, dtype=like.dtype, device=like.device), 1, math.inf, None)

    def take(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Look at what a layer put out."""
        layer = self._index.get(module)
        training = module.training
        if layer is None or self.modes[layer] > training:
            return
        tensor = _values_of(output)
        if tensor is None:
            return
        self.modes[layer] = 1 + training
        if not self._known[layer]:
            self._known[layer] = True
            self.order.append(layer)
        dim = self._unit_dims[layer] or self._current_dim
        self._current_dim = dim
        if self._averages[layer] and training and args:
            self._drift(layer, module, args[0])
        center, bound = self._tails[layer]
        kept = dim % tensor.dim() if tensor.dim() > 1 else None
        found = moments_of.compute(tensor, kept, math.inf if center else bound, None)  # known to be eager
        self._sets[layer] = found
        self._previous = (weakref.ref(output), output._version, found) if isinstance(output, Tensor) else None
        if center:
            self._tail_sets[layer] = moments_of.compute(tensor - center, None, bound, None)

    def _drift(self, layer: int, module: Any, input: Any) -> None:
        """How far running statistics are from those of this batch; a channel's unit is its running deviation."""
        if type(input) is not Tensor or not is_eager(input) or input.dim() < 2:
            return
        previous = self._previous
        if previous is not None and previous[0]() is input and previous[1] == input._version:
            found = previous[2]  # the layer before has just been looked at
        else:
            found = moments_of(input.detach(), input.dim() - 1 if self._unit_dims[layer] == -1 else 1, math.inf, None)
        if found.shape[1] != len(module.running_mean):
            return
        running = module.running_var.detach().double() + module.eps
        shift = (found[1] - module.running_mean.detach()).square() / running
        scale = ((found[2] + module.eps) / running).log() / 2
        self._drifts[layer] = (shift + scale.square()).mean().sqrt()

    def write(self, row: NDArray[np.float64]) -> None:
        """Fill in what was seen, shape (layers, statistics)."""
        self.still = {}
        if not self._sets:
            return
        layers = list(self._sets)
        sizes = [found.shape[1] for found in self._sets.values()]
        starts = np.cumsum([0, *sizes[:-1]])
        count, mean, variance, largest, zeros, beyond, nonfinite = _joined(self._sets.values())
        total = np.add.reduceat(count, starts)
        with np.errstate(all="ignore"):  # a layer without a finite value has NaN, or the largest of none
            center = np.add.reduceat(np.where(count > 0, mean, 0) * count, starts) / total
            spread = np.where(count > 0, variance + np.square(mean - np.repeat(center, sizes)), 0) * count
            row[layers, _MEAN] = center
            row[layers, _STD] = np.sqrt(np.add.reduceat(spread, starts) / total)
            row[layers, _ABS_MAX] = np.fmax.reduceat(largest, starts)
            row[layers, _ZEROS] = np.add.reduceat(np.where(count > 0, zeros, 0) * count, starts) / total
            tails = np.add.reduceat(np.where(count > 0, beyond, 0) * count, starts) / total
            still = np.sqrt(np.maximum(variance, 0)) <= STILL * largest
        row[layers, _NONFINITE] = np.add.reduceat(nonfinite, starts)
        self._write_units(row, layers, starts, sizes, still, count + nonfinite)
        for place, layer in enumerate(layers):
            if self._tails[layer][1] < math.inf and not self._tails[layer][0]:
                row[layer, _SATURATED] = tails[place]
        for layer, found in self._tail_sets.items():
            row[layer, _SATURATED] = float(found[5, 0])
        for layer, drift in self._drifts.items():
            row[layer, _DRIFT] = float(drift)

    def _write_units(self, row: Any, layers: Any, starts: Any, sizes: Any, still: Any, values: Any) -> None:
        for layer, start, size in zip(layers, starts, sizes, strict=True):
            each = float(values[start])
            self.still[layer] = (still[start : start + size], each)
            if each >= FEWEST_VALUES and size > 1:
                row[layer, _DEAD] = np.count_nonzero(still[start : start + size]) / size


def _joined(sets: Any) -> NDArray[np.float64]:
    """Moments side by side, shape (7, units of all layers)."""
    parts = list(sets)
    if len({part.device for part in parts}) > 1:
        parts = [part.cpu() for part in parts]
    return torch.cat(parts, dim=1).cpu().numpy()


def _values_of(output: Any) -> Tensor | None:
    """The first tensor of a layer's output, if it can be read; without its history."""
    if not isinstance(output, Tensor):
        output = next(iter(tensors_in(output)), None)
    if output is None or not output.is_floating_point() or not output.numel() or not is_eager(output):
        return None
    return output.detach().resolve_neg() if output.layout == torch.strided and not output.is_meta else None


def _unit_dim(module: nn.Module, role: str) -> int:
    """Where a layer's units lie; 0 for where those of the layer before do."""
    if role == "activation":
        return 0
    if role == "norm":
        second = norm_kind(module) in ("batch", "instance", "group") or isinstance(
            module, nn.GroupNorm | ChannelRMSNorm
        )
        return 1 if second and not isinstance(module, LastAxisBatchNorm | LastAxisGroupNorm) else -1
    return 1 if isinstance(module, _ConvNd) else -1


def _tails(module: nn.Module) -> tuple[float, float]:
    """Center of a squashing activation's range, and the distance from it beyond which it is saturated."""
    if isinstance(module, nn.Tanh):
        return 0.0, _TAIL
    if isinstance(module, nn.Sigmoid):
        return 0.5, _TAIL / 2
    if isinstance(module, nn.Softsign):
        return 0.0, 1 - math.sqrt(TINY_SLOPE)  # softsign' = (1 - |softsign|)^2
    if isinstance(module, nn.Hardsigmoid):
        return 0.5, _END / 2
    if isinstance(module, nn.Hardtanh) and not isinstance(module, RECTIFIERS):
        return (module.max_val + module.min_val) / 2, _END * (module.max_val - module.min_val) / 2
    return 0.0, math.inf
