"""What a step of the optimizer does to the weights: gradients before it, weights before and after it.

Norms of gradients and weights are exact. What needs a copy of the weights, update and rotation, is taken from evenly
spaced values of large parameters, so that a copy is small; the relative error is below 1 %. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.doctor.anatomy import Anatomy, is_plain
from homeostat.doctor.vitals import STATISTICS

SAMPLE = 1 << 14
"""Values of a parameter that are copied: 1 / sqrt(2 n) = 0.6 % relative error of a norm."""

_GRADIENT, _UPDATE = STATISTICS.index("gradient"), STATISTICS.index("update")
_WEIGHT, _ROTATION = STATISTICS.index("weight"), STATISTICS.index("rotation")
_RATIO = STATISTICS.index("gradient_ratio")
_HALF = (torch.float16, torch.bfloat16)


class Steps:
    """Measures around the steps of optimizers; `write` turns that into a row of vitals and `reset` forgets it."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._all = anatomy.parameters
        self._layers = np.array([held.layer for held in self._all], dtype=np.int64)
        self._heavy = np.array([held.heavy for held in self._all], dtype=bool)
        sizes = np.array([held.parameter.numel() * held.heavy for held in self._all], dtype=np.float64)
        self._weights = np.bincount(self._layers, sizes, minlength=len(anatomy.names))
        self._last: dict[int, Tensor] = {}
        self._last_norms = self._nothing()
        self.reset()
        self.gradient_norms = self._nothing()
        """Of the step last written, for each parameter of the anatomy; NaN where there was no gradient."""

    def reset(self) -> None:
        """Forget the step under way, but not the weights of the last one."""
        self._found: dict[str, list[tuple[list[int], Tensor, float]]] = {
            name: [] for name in ("gradient", "weight", "sample", "update", "rotation")
        }
        self._before: dict[int, dict[int, Tensor]] = {}
        self._taken: dict[int, Tensor] = {}

    def forget(self) -> None:
        """Forget the weights of the last step too."""
        self.reset()
        self._last = {}

    @torch.no_grad()
    def gradients(self, place: int | None, scale: float = 1.0) -> None:
        """Take the gradients of the parameters that an optimizer holds, or with None of those that none holds."""
        owner = -1 if place is None else place
        places, gradients = [], []
        for index, held in enumerate(self._all):
            gradient = held.parameter.grad
            if held.optimizer == owner and gradient is not None:
                if gradient.layout == torch.sparse_coo:
                    gradient = gradient.coalesce().values()
                if is_plain(gradient):
                    places.append(index)
                    gradients.append(gradient)
        self._note("gradient", places, gradients, scale)

    @torch.no_grad()
    def before(self, place: int) -> None:
        """Take the weights of an optimizer that is about to step."""
        samples: dict[int, Tensor] = {}
        large: list[int] = []
        for index, held in enumerate(self._all):
            parameter = held.parameter
            if held.optimizer == place and parameter.requires_grad and is_plain(parameter) and parameter.numel():
                samples[index] = _sample(parameter).clone()
                if parameter.numel() > SAMPLE:
                    large.append(index)
        self._before[place] = samples
        self._taken.update(samples)
        self._note("sample", list(samples), list(samples.values()))
        self._note("weight", large, [self._all[index].parameter for index in large])
        turned = [index for index in samples if index in self._last and _alike(samples[index], self._last[index])]
        self._note("rotation", turned, _differences([samples[i] for i in turned], [self._last[i] for i in turned]))

    @torch.no_grad()
    def after(self, place: int) -> None:
        """Take them again when it has."""
        old = self._before.pop(place, {})
        now = {index: _sample(self._all[index].parameter) for index in old}
        same = [index for index in old if _alike(now[index], old[index])]
        self._note("update", same, _differences([now[i] for i in same], [old[i] for i in same]))

    def write(self, row: NDArray[np.float64], order: Sequence[int]) -> None:
        """Fill in what was taken, shape (layers + 1, statistics).

        Args:
            order: the layers in the order of their first call.
        """
        found = {name: self._gathered(name) for name in self._found}
        self.gradient_norms = gradients = found["gradient"]
        norms = np.where(np.isnan(found["weight"]), found["sample"], found["weight"])
        turned = np.where(np.isnan(found["rotation"]), np.nan, found["sample"])
        old = np.where(np.isnan(found["rotation"]), np.nan, self._last_norms)
        light = [gradients]
        heavy = [gradients, norms, found["sample"], found["update"], turned, old, found["rotation"]]
        gradient, pull, weight, size, change, u, v, distance = self._by_layer(light, heavy)
        row[:-1, _GRADIENT], row[:-1, _WEIGHT] = gradient, weight
        with np.errstate(all="ignore"):
            row[:-1, _UPDATE] = change / size
            row[-1, _UPDATE] = _joint(change) / _joint(size)
            chord = np.sqrt(np.maximum(np.square(distance) - np.square(u - v), 0) / (u * v))
            row[:-1, _ROTATION] = 2 * np.arcsin(np.minimum(chord / 2, 1))  # from lengths and distance: exact if small
        held = np.array([held.optimizer >= 0 for held in self._all], dtype=bool)
        row[-1, _GRADIENT] = _joint(gradients[held])
        row[-1, _RATIO] = self._ratio(pull, order)
        self._last.update(self._taken)
        self._last_norms = np.where(np.isnan(found["sample"]), self._last_norms, found["sample"])

    def _note(self, name: str, places: list[int], tensors: list[Tensor], scale: float = 1.0) -> None:
        """Take the norms of tensors, in single precision or better."""
        if tensors:
            half = any(tensor.dtype in _HALF for tensor in tensors)
            norms = list(torch._foreach_norm(tensors, 2, torch.float32 if half else None))
            if len({norm.device for norm in norms}) > 1:
                norms = [norm.cpu() for norm in norms]
            self._found[name].append((places, torch.stack(norms), scale))

    def _gathered(self, name: str) -> NDArray[np.float64]:
        """The norms taken under a name, one for each parameter: NaN where there is none, inf for what is not finite."""
        values = self._nothing()
        for places, norms, scale in self._found[name]:
            numbers = norms.cpu().double().numpy() / scale
            values[places] = np.where(np.isfinite(numbers), numbers, np.inf)
        return values

    def _nothing(self) -> NDArray[np.float64]:
        return np.full(len(self._all), np.nan)

    def _by_layer(self, light: list[NDArray[np.float64]], heavy: list[NDArray[np.float64]]) -> NDArray[np.float64]:
        """The joint norms of each layer's parameters, and of those that count as weights; NaN for layers without any.

        Args:
            light, heavy: norms, shape (parameters,) each; over all parameters, and over the weights.
        Returns: shape (number of norms, layers).
        """
        norms = np.stack([*light, *heavy])
        norms[len(light) :, ~self._heavy] = np.nan
        there = ~np.isnan(norms)
        count, layers = len(norms), len(self._anatomy.names)
        place = (self._layers + layers * np.arange(count)[:, None])[there]
        squares = np.bincount(place, np.square(norms[there]), minlength=count * layers)
        some = np.bincount(place, minlength=count * layers)
        return np.where(some > 0, np.sqrt(squares), np.nan).reshape(count, layers)

    def _ratio(self, gradient: NDArray[np.float64], order: Sequence[int]) -> float:
        """Largest root mean square gradient among the first third of the layers with the role weight over the last's.

        Single layers may have small gradients for reasons of their own, such as the queries and keys of attention at
        the start; a gradient that vanishes on its way is small for all layers from there on.
        """
        roles = self._anatomy.roles
        layers = [layer for layer in order if roles[layer] == "weight" and gradient[layer] == gradient[layer]]
        if len(layers) < 2:
            return math.nan
        sizes = [float(gradient[layer]) / math.sqrt(self._weights[layer]) for layer in layers]
        third = max(1, len(layers) // 3)
        first, last = max(sizes[:third]), max(sizes[-third:])
        return first / last if last > 0 and math.isfinite(first) and math.isfinite(last) else math.nan


def _joint(norms: NDArray[np.float64]) -> np.float64:
    """The norm of everything together; NaN if there is nothing."""
    there = norms[~np.isnan(norms)]
    return np.sqrt(np.sum(np.square(there))) if len(there) else np.float64(np.nan)


def _sample(parameter: Tensor) -> Tensor:
    """Evenly spaced values of a parameter, in single precision or better; a view of it if that is all of them."""
    values = parameter.detach()
    size = values.numel()
    if size > SAMPLE:
        stride = -(-size // SAMPLE)
        while math.gcd(stride, size) > 1:  # so that not all of them lie in the same columns
            stride += 1
        values = values.reshape(-1)[::stride]
    return values.float() if values.dtype in _HALF else values


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _differences(ones: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return list(torch._foreach_sub(ones, others)) if ones else []
