"""Whether two models give the same outputs: on a sample, and on a second batch made from it. Random by a fixed seed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from homeostat.errors import invalid
from homeostat.parts.dataflow import replace
from homeostat.parts.layers import Sample, call, call_once, named_tensors_in, untouched

_ROUNDINGS = 16
_NOISE = 0.1
_SEED = 20151


def check_outputs(where: str, model: nn.Module, changed: nn.Module, sample: Sample, rtol: float) -> None:
    """Compare all outputs of a model and of a changed copy, on the sample and on a second batch.

    Raises: InvalidValue if one differs by more than rtol times its scale, naming it and the difference.
    """
    with untouched(model):
        expected = named_tensors_in(call_once(model, sample))
    compare(where, expected, named_tensors_in(_run(changed, sample, where)), rtol)
    second = second_batch(sample)
    try:
        with untouched(model):
            expected = named_tensors_in(call(model, second))
    except Exception:  # whatever a user's model raises on inputs that the user did not give
        return
    compare(where, expected, named_tensors_in(_run(changed, second, where)), rtol)


def compare(where: str, expected: list[tuple[str, Tensor]], actual: list[tuple[str, Tensor]], rtol: float) -> None:
    """Compare named outputs.

    Raises: InvalidValue as `check_outputs`.
    """
    if [name for name, _ in expected] != [name for name, _ in actual]:
        names = [name for name, _ in actual]
        raise invalid(where, "model", f"give the same outputs when changed, {[n for n, _ in expected]}", names)
    for (name, tensor), (_, other) in zip(expected, actual, strict=True):
        difference = relative_difference(tensor, other)
        if not difference <= tolerance(tensor, rtol):
            output = f"output {name!r}" if name else "the output"
            condition = f"give the same outputs when changed: {output} may differ by {tolerance(tensor, rtol):.1e}"
            cure = "Numbers are relative to its largest value; plan_folding(model, sample) shows what was done."
            raise invalid(where, "model", condition, difference, cure)


def relative_difference(expected: Tensor, actual: Tensor) -> float:
    """The largest difference over the largest absolute value; inf for other shapes and dtypes, and where only one is
    finite.

    Example:
        >>> relative_difference(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0]))
        0.125
    """
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if not expected.numel():
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(expected, actual) else float("inf")
    wide = torch.complex128 if expected.is_complex() else torch.float64
    expected, actual = (each.detach().to("cpu", wide) for each in (expected, actual))
    finite = expected.isfinite()
    if not torch.equal(expected[~finite].nan_to_num(), actual[~finite].nan_to_num()):
        return float("inf")
    expected, actual = expected[finite], actual[finite]
    if not expected.numel():
        return 0.0
    difference, scale = float((expected - actual).abs().max()), float(expected.abs().max())
    if difference == 0:
        return 0.0
    return difference / scale if scale > 0 else float("inf")


def tolerance(expected: Tensor, rtol: float) -> float:
    """rtol, or the rounding of a coarse dtype if that is more."""
    if not (expected.is_floating_point() or expected.is_complex()):
        return rtol
    return max(rtol, _ROUNDINGS * torch.finfo(expected.dtype).eps)


def second_batch(sample: Any) -> Any:
    """The same sample with its examples permuted and a tenth of their deviation as noise; whole numbers stay as they
    are."""
    generator = torch.Generator().manual_seed(_SEED)

    def varied(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or not tensor.numel():
            return tensor
        values = tensor.detach().to("cpu", torch.float64)
        order = torch.randperm(len(values), generator=generator, device="cpu") if values.ndim else ...
        deviation = float(values.std()) if values.numel() > 1 else 0.0
        noise = torch.randn(values.shape, generator=generator, dtype=torch.float64, device="cpu")
        values = values[order] + noise * (_NOISE * deviation or 1.0)
        return torch.empty_like(tensor).copy_(values)

    return replace(sample, Tensor, varied)


def _run(changed: nn.Module, sample: Sample, where: str) -> Any:
    try:
        with untouched(changed):
            return call(changed, sample)
    except Exception as error:
        cure = f"Changed so, it fails with {type(error).__name__}: {error}"
        raise invalid(where, "model", "run when changed", type(changed).__name__, cure) from error
