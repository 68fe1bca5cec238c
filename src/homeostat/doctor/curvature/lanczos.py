"""Largest eigenvalues of a symmetric operator that is known by its products alone: Lanczos, and power iteration.

Start vectors are given, so nothing here is random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from homeostat.errors import invalid

Operator = Callable[[Tensor], Tensor]

MOST_VALUES = 1 << 28
"""Of the basis that is kept at a time, a gigabyte in single precision; a longer search starts again from its best."""


@dataclass(frozen=True)
class Spectrum:
    """What a search for eigenvalues found."""

    values: tuple[float, ...]
    """The largest eigenvalues, falling."""
    vector: Tensor
    """Of the first, shape (n,), length 1."""
    residual: float
    """The largest ||A v - value v|| over the largest magnitude among all Ritz values: bounds the relative error."""
    products: int
    """Products with the operator that this took."""
    converged: bool
    """Whether the residual fell below the tolerance."""


def lanczos(
    apply: Operator,
    start: Tensor,
    *,
    top: int = 1,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
    most_values: int = MOST_VALUES,
) -> Spectrum:
    """The `top` largest eigenvalues (the most positive ones) of a symmetric operator.

    Full reorthogonalization, twice; no ghost values. The error of an eigenvalue is at most its residual, and of the
    order of the residual squared where it is well separated. Equal eigenvalues are found once.

    Args:
        apply: v -> A v, both shape (n,).
        start: the first vector; random, so that it has a share of every eigenvector.
        top: how many eigenvalues.
        tolerance: relative to the largest magnitude.
        max_iterations: products with A.
        most_values: of the basis; where it is full, the search starts again from the best vectors.
    Raises: InvalidValue for an empty or zero start, `top` below 1 or more than one iteration gives.
    Source: Lanczos 1950, J. Res. NBS 45(4); Paige 1971 (orthogonality); Parlett 1998, The Symmetric Eigenvalue Problem.
    Example:
        >>> values = torch.arange(1.0, 21.0)
        >>> found = lanczos(lambda v: values * v, torch.ones(20), top=2)
        >>> [round(value, 2) for value in found.values]
        [20.0, 19.0]
    """
    size = start.numel()
    if not size or not math.isfinite(length := float(start.norm())) or not length:
        raise invalid("lanczos", "start", "be a vector with a finite length above 0", start)
    if top < 1 or top > max_iterations:
        raise invalid("lanczos", "top", f"lie in [1, {max_iterations}], the iterations", top)
    room = min(size, max(2 * top + 2, most_values // size))
    vector, products = start / length, 0
    while True:
        sweep = _sweep(apply, vector, min(room, max_iterations - products), top, tolerance)
        products += sweep.products
        if sweep.converged or products >= max_iterations or not math.isfinite(sweep.values[0]):
            return Spectrum(sweep.values, sweep.vector, sweep.residual, products, sweep.converged)
        vector = sweep.vector


def power_iteration(
    apply: Operator, start: Tensor, *, tolerance: float = 1e-6, max_iterations: int = 10_000
) -> Spectrum:
    """The eigenvalue of largest magnitude, by repeated products: slow and simple, to check others by.

    Args:
        apply: v -> A v, both shape (n,).
        start: the first vector.
        tolerance: of the residual, relative to the eigenvalue.
    Example:
        >>> found = power_iteration(lambda v: torch.tensor([1.0, -3.0]) * v, torch.ones(2))
        >>> round(found.values[0], 3)
        -3.0
    """
    vector = start / start.norm()
    value = residual = math.nan
    products = 0
    while products < max_iterations:
        product = apply(vector)
        products += 1
        value = float(vector @ product)
        residual = float((product - value * vector).norm()) / max(abs(value), torch.finfo(vector.dtype).tiny)
        if residual <= tolerance or not math.isfinite(value):
            break
        vector = product / product.norm()
    return Spectrum((value,), vector, residual, products, residual <= tolerance)


def _sweep(apply: Operator, vector: Tensor, room: int, top: int, tolerance: float) -> Spectrum:
    """One run of Lanczos from a unit vector; its vector is where to go on, the best for `top` = 1."""
    basis = vector.new_empty((room, vector.numel()))
    diagonal: list[float] = []
    beside: list[float] = []
    for count in range(1, room + 1):
        basis[count - 1] = vector
        product = apply(vector)
        diagonal.append(float(vector @ product))
        for _ in range(2):  # once leaves what rounding put back
            product = product - basis[:count].T @ (basis[:count] @ product)
        rest = float(product.norm())
        if not math.isfinite(rest) or not math.isfinite(diagonal[-1]):
            return Spectrum((math.nan,) * top, vector, math.nan, count, False)
        values, vectors = eigh_tridiagonal(np.array(diagonal), np.array(beside))
        kept = range(count - 1, max(count - 1 - top, -1), -1)
        scale = float(np.abs(values).max())
        residual = rest * float(np.abs(vectors[-1, list(kept)]).max())
        closed = rest <= 10 * torch.finfo(vector.dtype).eps * scale  # nothing outside the space found so far
        if (len(kept) == top and residual <= tolerance * scale) or closed or count == room:
            break
        beside.append(rest)
        vector = product / rest
    weights = torch.as_tensor(vectors[:, list(kept)].sum(1) / math.sqrt(len(kept)), dtype=basis.dtype)
    best = basis[:count].T @ weights.to(basis.device)
    done = closed or (len(kept) == top and residual <= tolerance * scale)
    found = tuple(float(values[place]) for place in kept)
    return Spectrum(found, best / best.norm(), residual / scale if scale else 0.0, count, done or not scale)
