"""A model as an ONNX file, whole or not at all, compared with ONNX Runtime before it stands. Not random.

homeostat's kernels become ONNX's own operators, and dropout is gone: what is exported is the model in evaluation mode.
ONNX, its runtime and the exporter are the extra `onnx`.
"""

from __future__ import annotations

import copy
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from homeostat.errors import invalid, invalid_type
from homeostat.parts.dataflow import replace
from homeostat.parts.fold.check import relative_difference, tolerance
from homeostat.parts.layers import Sample, call, check_traceable, named_tensors_in, untouched

_NEEDS = ("onnx", "onnxruntime", "onnxscript")
_TALKATIVE = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir")


def export_onnx(
    model: nn.Module,
    sample: Sample,
    path: str | os.PathLike[str],
    *,
    dynamic_batch: bool = True,
    opset_version: int | None = None,
    rtol: float = 1e-3,
) -> Path:
    """Write a model as an ONNX file, checked by onnx and against ONNX Runtime.

    The file appears, or replaces an older one, only after every output of ONNX Runtime was equal to the model's on the
    sample and, with a dynamic batch, on a batch that is larger by one. Inputs have the names of forward's arguments,
    outputs the way to them ("logits", "hidden_states.0"; "output" for one tensor). Fold before exporting: `hs.fold`.

    Args:
        model: any module that torch.export can follow, homeostat's layers included; in evaluation mode for the export,
            otherwise untouched. Its dropout is left out.
        sample: what the model is called with: a tensor, a tuple of positional or a mapping of keyword arguments, on the
            model's device; numbers and None among them become constants.
        path: the file; its folder must exist.
        dynamic_batch: leave the size of the first dimension open, for every tensor that has it in common with the
            first one.
        opset_version: ONNX's version of operators; None takes the exporter's default.
        rtol: the largest difference between an output of ONNX Runtime and of the model, relative to the output's
            largest absolute value; never less than 16 times the precision of its dtype.
    Returns: the path.
    Raises: InvalidValue if onnx, onnxruntime or onnxscript are missing, if the model cannot be exported or checked, or
        if an output differs, naming it and the difference; nothing is written then.
    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export_onnx(model, torch.randn(3, 4), Path(folder) / "model.onnx").name
        'model.onnx'
    """
    target = _check(model, sample, path, opset_version, rtol)
    sample = dict(sample) if isinstance(sample, Mapping) else sample
    copied = _Flat(copy.deepcopy(model).eval(), sample)
    example = _with_batch(sample, max(2, _batch_size(sample))) if dynamic_batch else sample
    # a folder of its own: a new file in it has the mode that the umask gives, a temporary file would be private
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        with _quiet():
            _write(copied, example, temporary, dynamic_batch, opset_version)
            _compare(copied, example, temporary, rtol)
            if dynamic_batch:
                _compare(copied, _with_batch(sample, _batch_size(example) + 1), temporary, rtol)
        temporary.replace(target)
    return target


class _Place(int):
    """Stands for a tensor in a nest of arguments."""


class _Flat(nn.Module):
    """A model that takes the tensors of a sample one by one, and returns those of its output as a tuple."""

    def __init__(self, model: nn.Module, sample: Sample) -> None:
        super().__init__()
        self.model = model
        places = iter(range(len(named_tensors_in(sample))))
        self.nest = replace(sample, Tensor, lambda tensor: _Place(next(places)))
        with untouched(model):
            self.names = [name or "output" for name, _ in named_tensors_in(call(model, sample))]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the model's output."""
        sample = replace(self.nest, _Place, lambda place: tensors[place])
        return tuple(tensor for _, tensor in named_tensors_in(call(self.model, sample)))


def _check(model: nn.Module, sample: Sample, path: Any, opset_version: Any, rtol: Any) -> Path:
    where = "export_onnx"
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        cure = "pip install 'homeostat[onnx]'"
        raise invalid(where, "environment", f"have {', '.join(_NEEDS)}", f"no {', '.join(missing)}", cure)
    check_traceable(where, model)
    if not isinstance(path, str | os.PathLike):
        raise invalid_type(where, "path", "be a path", path)
    target = Path(path)
    if not target.parent.is_dir() or target.is_dir():
        raise invalid(where, "path", "name a file in a folder that exists", str(target))
    if isinstance(opset_version, bool) or not isinstance(opset_version, int | None):
        raise invalid_type(where, "opset_version", "be a whole number or None", opset_version)
    if isinstance(rtol, bool) or not isinstance(rtol, int | float) or not 0 < rtol < 1:
        raise invalid(where, "rtol", "be a number between 0 and 1", rtol)
    tensors = [tensor for _, tensor in named_tensors_in(sample)]
    if not tensors:
        raise invalid(where, "sample", "hold a tensor", sample)
    if any(tensor.dtype == torch.bfloat16 for tensor in tensors) or any(
        parameter.dtype == torch.bfloat16 for parameter in model.parameters()
    ):
        raise invalid(where, "model", "have a dtype that NumPy and ONNX Runtime know", torch.bfloat16, "model.float()")
    return target


def _write(model: _Flat, sample: Sample, path: Path, dynamic_batch: bool, opset_version: int | None) -> None:
    """Export, and have onnx check the file."""
    import onnx

    names, tensors = zip(*_named_inputs(model.model, sample), strict=True)
    size, batch = _batch_size(sample), torch.export.Dim("batch")
    open_dims: list[Any] = [{0: batch} if each.ndim and len(each) == size else {} for each in tensors]
    shapes = {"tensors": tuple(open_dims)} if dynamic_batch else None
    try:
        with torch.no_grad():
            program = torch.export.export(model, tensors, dynamic_shapes=shapes, strict=False)
        program = program.run_decompositions(_decompositions())
        torch.onnx.export(
            program,
            f=str(path),
            input_names=list(names),
            output_names=model.names,
            opset_version=opset_version,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        cure = f"It fails with {type(error).__name__}: {error}"
        if dynamic_batch:
            cure += "\nIf the size of the batch is the reason: dynamic_batch=False."
        raise invalid(
            "export_onnx", "model", "be one that can be exported", type(model.model).__name__, cure
        ) from error


def _compare(model: _Flat, sample: Sample, path: Path, rtol: float) -> None:
    """Run the file and the model."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    size = _batch_size(sample)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        known = {each.name for each in session.get_inputs()}
        inputs = {name: value.detach().cpu().numpy() for name, value in _named_inputs(model.model, sample)}
        results = session.run(model.names, {name: value for name, value in inputs.items() if name in known})
    except Exception as error:
        cure = f"ONNX Runtime fails on a batch of {size} with {type(error).__name__}: {error}"
        raise invalid("export_onnx", "model", "run in ONNX Runtime", type(model.model).__name__, cure) from error
    with untouched(model):
        expected = model(*(tensor for _, tensor in named_tensors_in(sample)))
    for name, tensor, result in zip(model.names, expected, results, strict=True):
        difference = relative_difference(tensor.detach().cpu(), torch.from_numpy(result))
        if not difference <= tolerance(tensor, rtol):
            condition = f"give the same in ONNX Runtime: output {name!r} may differ by {tolerance(tensor, rtol):.1e}"
            cure = f"It is relative to the largest value, on a batch of {size}. Nothing was written."
            raise invalid("export_onnx", "model", condition, difference, cure)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """homeostat's kernels in evaluation, in terms of torch's operators, which ONNX has."""
    from homeostat.kernels import norm_channels, norm_rows

    return {
        norm_channels.affine.dispatched: _affine,
        norm_channels.normalize.dispatched: _channels,
        norm_rows.norm_rows.dispatched: _rows,
    }


def _affine(
    input: Tensor, mean: Tensor, variance: Tensor, weight: Any, bias: Any, residual: Any, eps: float, slope: float,
    *_: Any,
) -> Tensor:  # fmt: skip
    return _finished(F.batch_norm(input, mean, variance, weight, bias, False, 0.0, eps), residual, slope)


def _channels(
    input: Tensor, weight: Any, bias: Any, residual: Any, groups: int, eps: float, slope: float, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    if groups:
        output = F.group_norm(input, groups, weight, bias, eps)
    else:
        output = F.batch_norm(input, None, None, weight, bias, True, 0.0, eps)
    unused = input.new_zeros((input.shape[0], groups) if groups else (input.shape[1],), dtype=torch.float64)
    return _finished(output, residual, slope), unused, unused


def _rows(
    input: Tensor, weight: Any, bias: Any, residual: Any, length: int, groups: int, eps: float, center: bool,
    slope: float, *_: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if groups > 1:
        output = F.group_norm(input, groups, weight, bias, eps)
    else:
        shape = _trailing(input, length)
        weight, bias = (None if each is None else each.reshape(shape) for each in (weight, bias))
        output = F.layer_norm(input, shape, weight, bias, eps) if center else F.rms_norm(input, shape, weight, eps)
    return _finished(output, residual, slope), input.new_zeros((2, input.numel() // length), dtype=torch.float64)


def _finished(output: Tensor, residual: Tensor | None, slope: float) -> Tensor:
    """What a kernel does behind its normalization."""
    if residual is not None:
        output = output + residual
    if slope == 1:
        return output
    return F.relu(output) if slope == 0 else F.leaky_relu(output, slope)


def _trailing(input: Tensor, length: int) -> list[int]:
    """The last dimensions of the input that hold `length` values."""
    shape: list[int] = []
    while not shape or torch.Size(shape).numel() < length:
        shape.insert(0, input.shape[input.ndim - 1 - len(shape)])
    return shape


def _named_inputs(model: nn.Module, sample: Sample) -> list[tuple[str, Tensor]]:
    """The tensors of a sample, named after the arguments of the model's forward."""
    if isinstance(sample, Mapping):
        return named_tensors_in(sample)
    args = sample if isinstance(sample, tuple | list) else (sample,)
    names = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    names += [f"input_{place}" for place in range(len(names), len(args))]
    return [pair for name, value in zip(names, args, strict=False) for pair in named_tensors_in(value, name)]


def _batch_size(sample: Sample) -> int:
    """The size of the first dimension of the first tensor."""
    first = next((tensor for _, tensor in named_tensors_in(sample)))
    return len(first) if first.ndim else 1


def _with_batch(sample: Any, size: int) -> Any:
    """The sample with its examples repeated to another number of them, in every tensor that has the batch's size."""
    old = _batch_size(sample)

    def repeated(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != old or not old:
            return tensor
        return tensor[torch.arange(size, device=tensor.device) % old]

    return replace(sample, Tensor, repeated)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the exporter about itself."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
