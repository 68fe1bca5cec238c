"""What a step of the optimizer does to the weights: gradients before it, weights before and after it.

Norms of gradients and weights are exact. What needs a copy of the weights, update and rotation, is taken from evenly
spaced values of large parameters, so that a copy is small; the relative error is below 1 %. The copies of all weights
with one dtype and device lie in one tensor, since on small networks the number of operations is what costs. Not random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from homeostat.doctor.watching.anatomy import Anatomy, is_plain
from homeostat.doctor.watching.vitals import STATISTICS

SAMPLE = 1 << 14
"""Values of a parameter that are copied: 1 / sqrt(2 n) = 0.6 % relative error of a norm."""

_GRADIENT, _UPDATE = STATISTICS.index("gradient"), STATISTICS.index("update")
_WEIGHT, _ROTATION = STATISTICS.index("weight"), STATISTICS.index("rotation")
_RATIO = STATISTICS.index("gradient_ratio")
_HALF = (torch.float16, torch.bfloat16)


@dataclass
class _Copy:
    """The weights that an optimizer is about to change, of one dtype and device."""

    places: tuple[int, ...]
    """Of the parameters, in the anatomy."""
    sizes: list[int]
    values: Tensor
    """Samples of them one behind the other, shape (sum of sizes,)."""
    change: Tensor | None = None
    """What the step has added to them."""


class Steps:
    """Measures around the steps of optimizers; `write` turns that into a row of vitals and `reset` forgets it."""

    def __init__(self, anatomy: Anatomy) -> None:
        self._anatomy = anatomy
        self._all = anatomy.parameters
        self._layers = np.array([held.layer for held in self._all], dtype=np.int64)
        self._heavy = np.array([held.heavy for held in self._all], dtype=bool)
        sizes = np.array([held.parameter.numel() * held.heavy for held in self._all], dtype=np.float64)
        self._weights = np.bincount(self._layers, sizes, minlength=len(anatomy.names))
        self._last: dict[tuple[int, ...], Tensor] = {}
        self._last_norms = self._nothing()
        self._matched = -1
        self.reset()
        self.gradient_norms = self._nothing()
        """Of the step last written, for each parameter of the anatomy; NaN where there was no gradient."""

    def reset(self) -> None:
        """Forget the step under way, but not the weights of the last one."""
        self._norms: list[tuple[str, Sequence[int], Sequence[Tensor], float]] = []
        self._copies: dict[int, list[_Copy]] = {}

    def forget(self) -> None:
        """Forget the weights of the last step too."""
        self.reset()
        self._last = {}
        self._last_norms = self._nothing()

    @torch.no_grad()
    def gradients(self, place: int | None, scale: float = 1.0) -> None:
        """Take the gradients of the parameters that an optimizer holds, or with None of those that none holds."""
        self._match()
        places, gradients = [], []
        for index in self._held.get(-1 if place is None else place, ()):
            gradient = self._all[index].parameter.grad
            if gradient is not None:
                if gradient.layout == torch.sparse_coo:
                    gradient = gradient.coalesce().values()
                if is_plain(gradient):
                    places.append(index)
                    gradients.append(gradient)
        self._note("gradient", places, gradients, scale)

    @torch.no_grad()
    def before(self, place: int) -> None:
        """Take the weights of an optimizer that is about to step."""
        self._match()
        self._copies[place] = []
        for group in self._groups.get(place, ()):
            places = tuple(index for index in group if self._all[index].parameter.requires_grad)
            if places:
                samples = [_sample(self._all[index].parameter) for index in places]
                sizes = [sample.numel() for sample in samples]
                self._copies[place].append(_Copy(places, sizes, _joined(samples)))
                large = [index for index in places if self._all[index].parameter.numel() > SAMPLE]
                self._note("weight", large, [self._all[index].parameter for index in large])

    @torch.no_grad()
    def after(self, place: int) -> None:
        """Take them again when it has."""
        for copy in self._copies.get(place, ()):
            now = _joined([_sample(self._all[index].parameter) for index in copy.places])
            if now.shape == copy.values.shape:
                copy.change = now - copy.values

    def write(self, row: NDArray[np.float64], order: Sequence[int]) -> None:
        """Fill in what was taken, shape (layers + 1, statistics).

        Args:
            order: the layers in the order of their first call.
        """
        self._match()
        for copy in (copy for copies in self._copies.values() for copy in copies):
            self._compare(copy)
        found = self._gathered()
        self.gradient_norms = gradients = found["gradient"]
        samples, turning = found["sample"], np.isnan(found["rotation"])
        exact = np.where(np.isnan(found["weight"]), samples, found["weight"])
        now, old = np.where(turning, np.nan, samples), np.where(turning, np.nan, self._last_norms)
        heavy = [gradients, exact, samples, found["update"], now, old, found["rotation"]]
        gradient, pull, weight, size, change, u, v, distance = self._by_layer([gradients], heavy)
        row[:-1, _GRADIENT], row[:-1, _WEIGHT] = gradient, weight
        with np.errstate(all="ignore"):
            row[:-1, _UPDATE] = change / size
            row[-1, _UPDATE] = _joint(change) / _joint(size)
            chord = np.sqrt(np.maximum(np.square(distance) - np.square(u - v), 0) / (u * v))
            row[:-1, _ROTATION] = 2 * np.arcsin(np.minimum(chord / 2, 1))  # from lengths and distance: exact if small
        row[-1, _GRADIENT] = _joint(gradients[self._owned])
        row[-1, _RATIO] = self._ratio(pull, order)
        self._last_norms = np.where(np.isnan(samples), self._last_norms, samples)

    def _match(self) -> None:
        """Sort the parameters by optimizer, and the weights among them by dtype and device, if that has changed."""
        if self._matched == self._anatomy.matches:
            return
        self._matched = self._anatomy.matches
        self._held: dict[int, list[int]] = {}
        groups: dict[int, dict[tuple[torch.dtype, torch.device], list[int]]] = {}
        for index, held in enumerate(self._all):
            self._held.setdefault(held.optimizer, []).append(index)
            parameter = held.parameter
            if held.heavy and is_plain(parameter) and parameter.numel():
                alike = groups.setdefault(held.optimizer, {}).setdefault((parameter.dtype, parameter.device), [])
                alike.append(index)
        self._groups = {place: list(alike.values()) for place, alike in groups.items()}
        self._owned = np.array([held.optimizer >= 0 for held in self._all], dtype=bool)

    @torch.no_grad()
    def _compare(self, copy: _Copy) -> None:
        """Lengths of weights, of their change by the step, and of their change since the last watched step."""
        last = self._last.get(copy.places)
        self._last[copy.places] = copy.values
        self._note("sample", copy.places, copy.values.split(copy.sizes))
        if copy.change is not None:
            self._note("update", copy.places, copy.change.split(copy.sizes))
        if last is not None and last.shape == copy.values.shape:
            self._note("rotation", copy.places, (copy.values - last).split(copy.sizes))

    def _note(self, name: str, places: Sequence[int], tensors: Sequence[Tensor], scale: float = 1.0) -> None:
        """Take the norms of tensors, in single precision or better."""
        if tensors:
            half = any(tensor.dtype in _HALF for tensor in tensors)
            norms = torch._foreach_norm(list(tensors), 2, torch.float32 if half else None)
            self._norms.append((name, places, norms, scale))

    def _gathered(self) -> dict[str, NDArray[np.float64]]:
        """The norms taken under each name, one for each parameter: NaN where there is none, inf for not finite."""
        names = ("gradient", "weight", "sample", "update", "rotation")
        found = np.full((len(names), len(self._all)), np.nan)
        norms = [norm for _, _, norms, _ in self._norms for norm in norms]
        if norms:
            apart = len({norm.device for norm in norms}) > 1
            numbers = torch.stack([norm.cpu() for norm in norms] if apart else norms).cpu().double().numpy()
            start = 0
            for name, places, taken, scale in self._norms:
                found[names.index(name), list(places)] = numbers[start : start + len(taken)] / scale
                start += len(taken)
                numbers_lost = ~np.isfinite(numbers[start - len(taken) : start])
                if numbers_lost.any():
                    found[names.index(name), np.array(places)[numbers_lost]] = np.inf
        return dict(zip(names, found, strict=True))

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
    """Evenly spaced values of a parameter as a vector; all of them if they are few."""
    values = parameter.detach().reshape(-1)
    size = len(values)
    if size <= SAMPLE:
        return values
    stride = -(-size // SAMPLE)
    while math.gcd(stride, size) > 1:  # so that not all of them lie in the same columns
        stride += 1
    return values[::stride]


def _joined(samples: list[Tensor]) -> Tensor:
    """Copies one behind the other, in single precision or better."""
    values = torch.cat(samples)
    return values.float() if values.dtype in _HALF else values
